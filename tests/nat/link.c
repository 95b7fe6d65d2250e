/* Link emulator: two TUN interfaces in two network namespaces, joined by a line with delay, jitter, loss and rate, both
 * directions alike. One process per link; no root services, no kernel modules.
 *
 *   link NETNS_A IF_A NETNS_B IF_B DELAY_US JITTER_US LOSS_PPM RATE_BYTES_PER_S QUEUE_BYTES
 *
 * Prints "ready" when both interfaces exist; ends on SIGTERM. A packet waits in the queue of its direction until the line has
 * room (tail drop beyond QUEUE_BYTES), then travels DELAY plus a uniform share of JITTER; jitter may reorder, as on real links. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define MTU 1500
#define SLOTS 65536u
#define CROWDED 32u        /* packets in flight, from which on they are served in batches, as a network card does ... */
#define BATCH_NS 50000ull  /* ... so far apart */

typedef struct {
  uint64_t at;
  uint32_t len;
  uint8_t *data;
} packet;

/* Packets in flight of one direction: a binary heap by arrival time. */
typedef struct {
  packet *heap;
  uint32_t n;
  uint64_t line_free_at;
} direction;

static volatile sig_atomic_t stopping;
static void on_term(int sig) {
  (void)sig;
  stopping = 1;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
  fprintf(stderr, "link: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int open_tun(const char *ns, const char *name) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", ns);
  int nsfd = open(path, O_RDONLY | O_CLOEXEC);
  if (nsfd < 0 || setns(nsfd, CLONE_NEWNET) < 0) die(path);
  close(nsfd);
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) die("/dev/net/tun");
  struct ifreq ifr = {.ifr_flags = IFF_TUN | IFF_NO_PI};
  strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(fd, TUNSETIFF, &ifr) < 0) die("TUNSETIFF");
  return fd;
}

static void push(direction *d, packet p) {
  uint32_t i = d->n++;
  while (i && d->heap[(i - 1) / 2].at > p.at) {
    d->heap[i] = d->heap[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  d->heap[i] = p;
}

static packet pop(direction *d) {
  packet top = d->heap[0], last = d->heap[--d->n];
  uint32_t i = 0;
  for (;;) {
    uint32_t c = 2 * i + 1;
    if (c >= d->n) break;
    if (c + 1 < d->n && d->heap[c + 1].at < d->heap[c].at) c++;
    if (last.at <= d->heap[c].at) break;
    d->heap[i] = d->heap[c];
    i = c;
  }
  if (d->n) d->heap[i] = last;
  return top;
}

int main(int argc, char **argv) {
  if (argc != 10) {
    fprintf(stderr, "usage: link NETNS_A IF_A NETNS_B IF_B DELAY_US JITTER_US LOSS_PPM RATE QUEUE\n");
    return 2;
  }
  uint64_t delay = strtoull(argv[5], NULL, 10) * 1000, jitter = strtoull(argv[6], NULL, 10) * 1000;
  uint64_t loss = strtoull(argv[7], NULL, 10), rate = strtoull(argv[8], NULL, 10), queue = strtoull(argv[9], NULL, 10);
  struct sigaction sa = {.sa_handler = on_term};
  sigaction(SIGTERM, &sa, NULL);
  sigaction(SIGINT, &sa, NULL);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  prctl(PR_SET_TIMERSLACK, 1);
  srandom((unsigned)now_ns());

  int fd[2] = {open_tun(argv[1], argv[2]), open_tun(argv[3], argv[4])};
  direction dir[2] = {{0}};
  for (int i = 0; i < 2; i++)
    if (!(dir[i].heap = malloc(SLOTS * sizeof(packet)))) die("memory");
  printf("ready\n");
  fflush(stdout);

  static uint8_t buf[65536];
  while (!stopping) {
    uint64_t now = now_ns(), next = UINT64_MAX;
    for (int i = 0; i < 2; i++) { /* from fd[i] to fd[1 - i] */
      direction *d = &dir[i];
      for (int k = 0; k < 256; k++) {
        ssize_t n = read(fd[i], buf, sizeof buf);
        if (n <= 0) break;
        if (n > MTU || d->n == SLOTS) continue;
        if (loss && (uint64_t)random() % 1000000 < loss) continue;
        uint64_t start = now;
        if (rate) {
          if (d->line_free_at < now) d->line_free_at = now;
          if ((d->line_free_at - now) / 1000 * rate / 1000000 > queue) continue;
          d->line_free_at += (uint64_t)n * 1000000000ull / rate;
          start = d->line_free_at;
        }
        packet p = {.at = start + delay + (jitter ? (uint64_t)random() % jitter : 0), .len = (uint32_t)n, .data = malloc((size_t)n)};
        if (!p.data) continue;
        memcpy(p.data, buf, (size_t)n);
        push(d, p);
      }
      while (d->n && d->heap[0].at <= now) {
        packet p = pop(d);
        if (write(fd[1 - i], p.data, p.len) < 0 && errno != EAGAIN && errno != EIO) { /* EIO: the interface is down */
          if (errno == EBADFD || errno == EINVAL) break;
        }
        free(p.data);
      }
      if (d->n && d->heap[0].at < next) next = d->heap[0].at;
    }
    struct pollfd p[2] = {{.fd = fd[0], .events = POLLIN}, {.fd = fd[1], .events = POLLIN}};
    now = now_ns();
    uint64_t wait = next == UINT64_MAX ? 100000000ull : next > now ? next - now : 0;
    if (wait > 100000000ull) wait = 100000000ull;
    bool crowded = dir[0].n + dir[1].n > CROWDED;
    if (crowded && wait < BATCH_NS) wait = BATCH_NS;
    struct timespec ts = {.tv_sec = 0, .tv_nsec = (long)wait};
    if (crowded && wait == BATCH_NS)
      nanosleep(&ts, NULL);
    else
      ppoll(p, 2, &ts, NULL);
  }
  return 0;
}
