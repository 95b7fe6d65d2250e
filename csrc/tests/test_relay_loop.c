/* The beacon on loopback sockets, its thread running: discover, trains of relayed datagrams, two beacons, pinned replies, a lock that the
 * control plane gets during a flood, an orderly end, a thread that goes before others. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/resource.h>
#endif

#include "check.h"
#include "relay.h"
#include "wire.h"

static pl_addr loopback(uint8_t last, uint16_t port) { return (pl_addr){.family = 4, .port = port, .ip = {127, 0, 0, last}}; }

static pl_relay_loop *beacon(pl_addr *at) {
  pl_relay_cfg cfg;
  pl_relay_cfg_default(&cfg);
  cfg.hash_seed = 42;
  cfg.punch_rate = 1000;
  pl_relay_loop *l;
  pl_addr any = loopback(1, 0);
  CHECK(pl_relay_loop_new(&cfg, &any, NULL, 4u << 20, &l) == PL_OK);
  CHECK(pl_relay_loop_start(l) == PL_OK && pl_relay_loop_start(l) == PL_ESTATE);
  pl_relay_loop_local_addr(l, at);
  CHECK(at->port != 0);
  return l;
}

typedef struct node {
  pl_udp u;
  uint32_t id;
  pl_addr beacon;
  pl_rx rx[PL_UDP_BATCH];
  int n, at;
  uint32_t off;
} node;

/* The next datagram, whatever buffer it came in; NULL after a second without one. */
static const uint8_t *receive(node *n, uint32_t *len, pl_addr *from) {
  while (n->at == n->n) {
    struct pollfd p = {.fd = n->u.fd, .events = POLLIN};
    if (poll(&p, 1, 1000) <= 0) return NULL;
    n->n = pl_udp_recv(&n->u, n->rx);
    n->at = 0;
  }
  pl_rx *x = &n->rx[n->at];
  uint32_t seg = x->seg ? x->seg : x->len, left = x->len - n->off;
  const uint8_t *p = x->data + n->off;
  *len = left < seg ? left : seg;
  *from = x->from;
  n->off += *len;
  if (n->off >= x->len) {
    n->at++;
    n->off = 0;
  }
  return p;
}

static void node_open(node *n, uint32_t id, const pl_addr *to) {
  memset(n, 0, sizeof *n);
  n->id = id;
  n->beacon = *to;
  pl_addr any = loopback(1, 0);
  CHECK(pl_udp_open(&n->u, &any, 4u << 20, true, true) == PL_OK);
  uint8_t p[5] = {0x01};
  pl_put32(p + 1, id);
  CHECK(pl_udp_send_one(&n->u, to, NULL, p, sizeof p) == PL_OK);
  uint32_t len;
  pl_addr from;
  const uint8_t *reply = receive(n, &len, &from);
  uint8_t want[8] = {0x02, 4, 127, 0, 0, 1};
  pl_put16(want + 6, n->u.local.port);
  CHECK(reply && len == 8 && memcmp(reply, want, 8) == 0 && pl_addr_eq(&from, to));
}

/* `count` datagrams of `size` payload bytes each, as trains; they arrive once, whole, in order, from the receiver's own beacon. */
static void relayed(node *a, node *b, uint32_t size, unsigned count) {
  uint32_t seg = PL_RELAY_HEAD + size;
  unsigned per_train = PL_TX_RUN_BYTES / seg;
  if (per_train > PL_TX_RUN_SEGS) per_train = PL_TX_RUN_SEGS;
  if (per_train == 0) per_train = 1;
  uint8_t *train = malloc((size_t)seg * per_train);
  CHECK(train);
  for (unsigned done = 0; done < count;) {
    unsigned n = count - done < per_train ? count - done : per_train;
    for (unsigned i = 0; i < n; i++) {
      uint8_t *p = train + (size_t)i * seg;
      p[0] = 0x05;
      pl_put32(p + 1, a->id);
      pl_put32(p + 5, b->id);
      for (uint32_t k = 0; k < size; k++) p[9 + k] = (uint8_t)((done + i) * 31 + k % 251);
    }
    struct iovec iov = {train, (size_t)seg * n};
    pl_udp_msg m = {.to = a->beacon, .iov = &iov, .n_iov = 1, .seg = n > 1 ? seg : 0};
    pl_udp_sendv(&a->u, &m, 1);
    for (unsigned i = 0; i < n; i++) { /* one train at a time: no socket buffer overflows */
      uint32_t len;
      pl_addr from;
      const uint8_t *p = receive(b, &len, &from);
      CHECK(p && len == PL_DELIVER_HEAD + size && p[0] == 0x06 && pl_get32(p + 1) == a->id && pl_addr_eq(&from, &b->beacon));
      for (uint32_t k = 0; k < size; k++) CHECK(p[5 + k] == (uint8_t)((done + i) * 31 + k % 251));
    }
    done += n;
  }
  free(train);
}

static pl_relay_stats stats_of(pl_relay_loop *l) {
  uint64_t now;
  pl_relay_stats st;
  pl_relay_get_stats(pl_relay_loop_lock(l, &now), &st);
  pl_relay_loop_unlock(l);
  return st;
}

static void one_beacon(void) {
  pl_addr at;
  pl_relay_loop *l = beacon(&at);
  static node a, b;
  node_open(&a, 100, &at);
  node_open(&b, 200, &at);
  static const uint32_t sizes[] = {0, 1, 100, 1400, 8000, 60000, PL_UDP_MAX - PL_RELAY_HEAD};
  unsigned total = 0;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    relayed(&a, &b, sizes[i], 150);
    relayed(&b, &a, sizes[i], 3);
    total += 153;
  }
  CHECK(stats_of(l).relayed == total && stats_of(l).spoofed == 0 && stats_of(l).not_found == 0);
  uint64_t now;
  pl_relay_loop_stats io;
  pl_relay_loop_lock(l, &now);
  pl_relay_loop_get_stats(l, &io);
  pl_relay_loop_unlock(l);
  CHECK(io.recv_datagrams == total + 2 && io.send_datagrams == total + 2 && io.send_errors == 0);
  if (io.gso && io.gro) CHECK(io.send_calls < total); /* trains came in and left as trains */

  uint8_t punch[9] = {0x03};
  pl_put32(punch + 1, 100);
  pl_put32(punch + 5, 200);
  CHECK(pl_udp_send_one(&a.u, &at, NULL, punch, sizeof punch) == PL_OK);
  uint32_t len;
  pl_addr from;
  const uint8_t *p = receive(&a, &len, &from);
  CHECK(p && len == 8 && p[0] == 0x04 && pl_get16(p + 6) == b.u.local.port);
  p = receive(&b, &len, &from);
  CHECK(p && len == 8 && p[0] == 0x04 && pl_get16(p + 6) == a.u.local.port);

  uint8_t notify[2] = {0x0a, 1};
  pl_relay_loop_lock(l, &now);
  CHECK(pl_relay_loop_send_node(l, 200, notify, 2) == PL_OK && pl_relay_loop_send_node(l, 201, notify, 2) == PL_ENOENT);
  pl_relay_loop_unlock(l);
  p = receive(&b, &len, &from);
  CHECK(p && len == 2 && memcmp(p, notify, 2) == 0 && pl_addr_eq(&from, &at));

  pl_relay_loop_stop(l); /* and on again: the table is kept */
  CHECK(pl_relay_loop_start(l) == PL_OK);
  relayed(&a, &b, 500, 10);
  pl_udp_close(&a.u);
  pl_udp_close(&b.u);
  pl_relay_loop_free(l);
}

static void two_beacons(void) {
  pl_addr at1, at2;
  pl_relay_loop *one = beacon(&at1), *two = beacon(&at2);
  uint64_t now;
  pl_relay_set_peers(pl_relay_loop_lock(one, &now), &at2, 1);
  pl_relay_loop_unlock(one);
  pl_relay_set_peers(pl_relay_loop_lock(two, &now), &at1, 1);
  pl_relay_loop_unlock(two);
  static node a, b;
  node_open(&a, 100, &at1);
  node_open(&b, 200, &at2);
  /* Each tells what it has; node 999 is a ghost that both believe to be at the other. */
  uint8_t sync[15] = {0x07, 0, 0, 0, 1, 0, 2};
  pl_put32(sync + 11, 999);
  pl_put32(sync + 7, 100);
  CHECK(pl_relay_loop_send(one, &at2, sync, sizeof sync) == PL_OK);
  pl_put32(sync + 7, 200);
  CHECK(pl_relay_loop_send(two, &at1, sync, sizeof sync) == PL_OK);
  for (int i = 0; stats_of(one).routes < 2 || stats_of(two).routes < 2; i++) {
    CHECK(i < 5000);
    usleep(1000);
  }
  relayed(&a, &b, 1400, 200);
  relayed(&b, &a, 8000, 20);
  CHECK(stats_of(one).forwarded == 200 && stats_of(two).relayed == 200 && stats_of(two).forwarded == 20);

  uint8_t ghost[10] = {0x05};
  pl_put32(ghost + 1, 100);
  pl_put32(ghost + 5, 999);
  CHECK(pl_udp_send_one(&a.u, &at1, NULL, ghost, sizeof ghost) == PL_OK);
  relayed(&a, &b, 10, 1); /* behind it in the same queues: the ghost has been dealt with */
  CHECK(stats_of(one).forwarded == 202 && stats_of(two).not_found == 1 && stats_of(two).forwarded == 20);
  pl_udp_close(&a.u);
  pl_udp_close(&b.u);
  pl_relay_loop_free(one);
  pl_relay_loop_free(two);
}

typedef struct flood {
  pl_addr to;
  atomic_bool stop;
} flood;

static void *flood_run(void *arg) {
  flood *f = arg;
  pl_udp u;
  pl_addr any = loopback(1, 0);
  CHECK(pl_udp_open(&u, &any, 1u << 20, true, false) == PL_OK);
  uint8_t junk[64 * 50];
  memset(junk, 0x05, sizeof junk);
  for (size_t i = 0; i < sizeof junk; i += 50) pl_put32(junk + i + 1, 0); /* a sender that nobody can be */
  struct iovec iov = {junk, sizeof junk};
  pl_udp_msg m = {.to = f->to, .iov = &iov, .n_iov = 1, .seg = 50};
  while (!atomic_load(&f->stop)) pl_udp_sendv(&u, &m, 1);
  pl_udp_close(&u);
  return NULL;
}

static void control_and_end_during_a_flood(void) {
  pl_addr at;
  pl_relay_loop *l = beacon(&at);
  flood f = {.to = at};
  atomic_init(&f.stop, false);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, flood_run, &f) == 0);
  while (stats_of(l).spoofed < 1000) usleep(1000);
  uint64_t now;
  for (uint32_t id = 1; id <= 2000; id++) { /* would take minutes if each waited for a lull */
    pl_addr v = loopback(1, 0);
    CHECK(pl_relay_vouch(pl_relay_loop_lock(l, &now), id, &v, now) == PL_OK);
    pl_relay_loop_unlock(l);
  }
  static node a; /* and a node is served meanwhile; what the kernel drops for lack of room is asked again */
  memset(&a, 0, sizeof a);
  pl_addr any = loopback(1, 0);
  CHECK(pl_udp_open(&a.u, &any, 65536, false, false) == PL_OK);
  const uint8_t *p = NULL;
  for (int i = 0; i < 30 && !p; i++) {
    uint8_t ask[5] = {0x01, 0, 0, 0, 7};
    CHECK(pl_udp_send_one(&a.u, &at, NULL, ask, sizeof ask) == PL_OK || errno == EAGAIN);
    uint32_t len;
    pl_addr from;
    p = receive(&a, &len, &from);
  }
  CHECK(p && p[0] == 0x02);
  pl_relay_loop_stop(l);
  atomic_store(&f.stop, true);
  pthread_join(thread, NULL);
  pl_udp_close(&a.u);
  pl_relay_loop_free(l);
}

static void refusals(void) {
  pl_relay_cfg cfg;
  pl_relay_cfg_default(&cfg);
  pl_addr at;
  pl_relay_loop *l = beacon(&at), *second = NULL;
  errno = 0;
  CHECK(pl_relay_loop_new(&cfg, &at, NULL, 65536, &second) == PL_EIO && errno == EADDRINUSE && !second);
  pl_addr v6 = {.family = 6, .port = 9};
  v6.ip[15] = 1;
  uint8_t byte = 7;
  CHECK(pl_relay_loop_send(l, &v6, &byte, 1) == PL_EIO); /* no such family on this socket */
  pl_relay_loop_free(l);
  pl_relay_loop_free(NULL);
}

#ifdef __linux__
static void *lower(void *allowed) {
  *(bool *)allowed = setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) - PL_RELAY_PRECEDENCE) == 0; /* of this thread alone */
  return NULL;
}

/* The thread of the only relay. */
static id_t relay_thread(void) {
  DIR *tasks = opendir("/proc/self/task");
  CHECK(tasks);
  id_t found = 0;
  for (struct dirent *d; (d = readdir(tasks));) {
    char path[300], name[32] = "";
    (void)snprintf(path, sizeof path, "/proc/self/task/%s/comm", d->d_name);
    FILE *f = fopen(path, "r");
    if (!f) continue;
    if (fgets(name, sizeof name, f) && strcmp(name, "pilot-relay\n") == 0) found = (id_t)strtoul(d->d_name, NULL, 10);
    (void)fclose(f);
  }
  closedir(tasks);
  CHECK(found);
  return found;
}

static void goes_before_others(void) {
  bool allowed = false;
  pthread_t probe;
  CHECK(pthread_create(&probe, NULL, lower, &allowed) == 0 && pthread_join(probe, NULL) == 0);
  int before = getpriority(PRIO_PROCESS, 0), expected = allowed && sysconf(_SC_NPROCESSORS_ONLN) > 1 ? before - PL_RELAY_PRECEDENCE : before;
  pl_addr at;
  pl_relay_loop *l = beacon(&at);
  node a;
  node_open(&a, 7, &at); /* answered: the thread is under way */
  CHECK(getpriority(PRIO_PROCESS, relay_thread()) == (expected < -20 ? -20 : expected));
  CHECK(getpriority(PRIO_PROCESS, 0) == before);
  pl_udp_close(&a.u);
  pl_relay_loop_free(l);
}
#endif

int main(void) {
#ifdef __linux__
  goes_before_others();
#endif
  one_beacon();
  two_beacons();
  control_and_end_during_a_flood();
  refusals();
  puts("ok");
  return 0;
}
