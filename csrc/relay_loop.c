/* The beacon's data thread around the sans-I/O relay: socket in, pl_relay_input, socket out; and the sockets that answer NAT probes.
 *
 * One batch: pl_udp_recv (GRO trains), pl_relay_input (heads rewritten in place), pl_udp_sendv (GSO trains), all from the receive arena, under
 * one hold of the lock. `lock` guards the relay and the socket's counters; `turn` stands before it, so that a caller who waits gets the
 * lock before the thread that has just released it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/resource.h>
#endif

#include "relay.h"

#define EXPIRE_NS PL_NS_PER_S

struct pl_relay_loop {
  pl_relay *relay;
  pl_udp udp;
  pl_udp extra[PL_SOCK_COUNT]; /* by pl_relay_socket, PL_SOCK_MAIN unused; fd -1 where the socket of the first address serves both */
  pthread_mutex_t turn, lock;
  pthread_t thread;
  bool running;
  int wake[2]; /* pipe: a byte ends the thread */
  int hand[2]; /* pipe: a byte says that deliveries wait to be taken */
  bool told;   /* the byte is in it */
  int news[2]; /* pipe: a byte says that peers should hear of something, or that letters wait */
  bool told_letters;
  uint64_t wakeups, expired_ns;
};

static uint64_t clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * PL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static void take(pl_relay_loop *l) {
  pthread_mutex_lock(&l->turn);
  pthread_mutex_lock(&l->lock);
  pthread_mutex_unlock(&l->turn);
}

static const pl_udp *socket_of(const pl_relay_loop *l, enum pl_relay_socket which) {
  if (which == PL_SOCK_MAIN) return &l->udp;
  if (l->extra[which].fd < 0) which = which == PL_SOCK_QUIET_ALT ? PL_SOCK_QUIET : PL_SOCK_OBSERVER;
  return &l->extra[which];
}

static void answer_probes(pl_relay_loop *l) {
  const pl_relay_reply *a;
  unsigned n = pl_relay_replies(l->relay, &a);
  for (unsigned i = 0; i < n; i++) (void)pl_udp_send_one(socket_of(l, a[i].socket), &a[i].to, &a[i].from, a[i].data, a[i].len); /* lost: asked again */
}

static void tell_news(pl_relay_loop *l) {
  uint8_t news = 1, letters = 2;
  if (pl_relay_take_news(l->relay)) (void)!write(l->news[1], &news, 1); /* full: it says so already */
  if (pl_relay_has_letters(l->relay) && !l->told_letters) l->told_letters = write(l->news[1], &letters, 1) == 1;
}

/* Deals with a batch under the lock. */
static void forward(pl_relay_loop *l, pl_rx *batch, unsigned n, uint64_t now) {
  const pl_relay_send *sends;
  pl_relay_input(l->relay, batch, n, now);
  unsigned n_sends = pl_relay_sends(l->relay, &sends);
  pl_udp_sendv(&l->udp, sends, n_sends);
  answer_probes(l);
  if (pl_relay_waiting(l->relay) && !l->told) {
    uint8_t byte = 0;
    l->told = write(l->hand[1], &byte, 1) == 1;
  }
}

/* One batch. True if more is waiting. */
static bool serve(pl_relay_loop *l) {
  pl_rx batch[PL_UDP_BATCH];
  take(l);
  l->wakeups++;
  int n = pl_udp_recv(&l->udp, batch);
  uint64_t now = clock_ns();
  if (n > 0) forward(l, batch, (unsigned)n, now);
  if (now - l->expired_ns >= EXPIRE_NS) {
    pl_relay_expire(l->relay, now);
    l->expired_ns = now;
  }
  tell_news(l);
  bool more = l->udp.more;
  pthread_mutex_unlock(&l->lock);
  return more;
}

static void observe(pl_relay_loop *l, enum pl_relay_socket which) {
  pl_rx batch[PL_UDP_BATCH];
  take(l);
  int n = pl_udp_recv(&l->extra[which], batch);
  if (n > 0) {
    pl_relay_observe(l->relay, which, batch, (unsigned)n, clock_ns());
    answer_probes(l);
  }
  pthread_mutex_unlock(&l->lock);
}

#ifdef __linux__
/* A relay that waits for a processor has a queue in which flows share by how much each keeps in flight; one that is served at once has none.
 * Refused without the right to it: then it waits its turn like any other thread. So it does on a lone processor, where a flood would else leave
 * the control plane too little. */
static void take_precedence(void) {
  if (sysconf(_SC_NPROCESSORS_ONLN) < 2) return;
  errno = 0;
  int nice = getpriority(PRIO_PROCESS, 0); /* of this thread; -1 is one of its values */
  if (errno == 0) (void)setpriority(PRIO_PROCESS, 0, nice - PL_RELAY_PRECEDENCE);
}
#endif

static void *run(void *arg) {
  pl_relay_loop *l = arg;
#ifdef __linux__
  take_precedence();
  prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* the waits of pl_udp_sendv end in time */
  prctl(PR_SET_NAME, "pilot-relay", 0, 0, 0);
#endif
  /* poll passes over descriptors below 0. */
  struct pollfd fds[4] = {{.fd = l->udp.fd, .events = POLLIN}, {.fd = l->wake[0], .events = POLLIN},
                          {.fd = l->extra[PL_SOCK_OBSERVER].fd, .events = POLLIN}, {.fd = l->extra[PL_SOCK_OBSERVER_ALT].fd, .events = POLLIN}};
  bool more = false;
  for (;;) {
    /* The pipe is looked at between batches too: a flood does not delay the end. */
    int ready = poll(fds, 4, more ? 0 : (int)(EXPIRE_NS / PL_NS_PER_MS));
    if (ready > 0 && fds[1].revents) return NULL;
    if (ready < 0 && errno != EINTR) {
      struct timespec pause = {.tv_nsec = 10000000}; /* no memory in the kernel: not in a busy loop */
      nanosleep(&pause, NULL);
    }
    if (ready > 0 && fds[2].revents) observe(l, PL_SOCK_OBSERVER);
    if (ready > 0 && fds[3].revents) observe(l, PL_SOCK_OBSERVER_ALT);
    more = serve(l);
  }
}

static int open_pipe(int fds[2]) {
  if (pipe(fds) < 0) return PL_EIO;
  for (int i = 0; i < 2; i++) {
    fcntl(fds[i], F_SETFD, FD_CLOEXEC);
    fcntl(fds[i], F_SETFL, O_NONBLOCK);
  }
  return PL_OK;
}

static bool is_wildcard(const pl_addr *a) {
  static const uint8_t zero[16];
  return memcmp(a->ip, zero, a->family == 6 ? 16 : 4) == 0;
}

#define PROBE_BUFFER 262144u

static int open_extra(pl_relay_loop *l, enum pl_relay_socket which, const pl_addr *host, uint16_t port) {
  pl_addr at = *host;
  at.port = port;
  int r = pl_udp_open(&l->extra[which], &at, PROBE_BUFFER, false, false);
  if (r == PL_OK) pl_udp_relay_mode(&l->extra[which]);
  return r;
}

/* The sockets of the first address; those of the other one, unless wildcard sockets serve it too. */
static int open_probe(pl_relay_loop *l, const pl_addr *bind, const pl_relay_probe_cfg *cfg) {
  pl_addr alt = cfg->alt;
  int r = open_extra(l, PL_SOCK_OBSERVER, bind, cfg->observer_port);
  if (r == PL_OK) r = open_extra(l, PL_SOCK_QUIET, bind, cfg->quiet_port);
  if (r < 0) return r;
  alt.port = l->extra[PL_SOCK_OBSERVER].local.port;
  if (alt.family && !is_wildcard(bind)) {
    r = open_extra(l, PL_SOCK_OBSERVER_ALT, &alt, cfg->observer_port);
    if (r == PL_OK) r = open_extra(l, PL_SOCK_QUIET_ALT, &alt, cfg->quiet_port);
    if (r < 0) return r;
    alt.port = l->extra[PL_SOCK_OBSERVER_ALT].local.port;
  } else if (alt.family) { /* whether this host has it */
    pl_udp test;
    pl_addr at = cfg->alt;
    at.port = 0;
    r = pl_udp_open(&test, &at, PROBE_BUFFER, false, false);
    if (r < 0) return r;
    pl_udp_close(&test);
  }
  pl_relay_set_probe(l->relay, l->extra[PL_SOCK_OBSERVER].local.port, &alt);
  return PL_OK;
}

int pl_relay_loop_new(const pl_relay_cfg *cfg, const pl_addr *bind, const pl_relay_probe_cfg *probe, uint32_t socket_buffer,
                      pl_relay_loop **out) {
  pl_relay_loop *l = calloc(1, sizeof *l);
  if (!l) return PL_ENOMEM;
  pthread_mutex_init(&l->turn, NULL);
  pthread_mutex_init(&l->lock, NULL);
  l->udp.fd = l->wake[0] = l->wake[1] = l->hand[0] = l->hand[1] = l->news[0] = l->news[1] = -1;
  for (int i = 0; i < PL_SOCK_COUNT; i++) l->extra[i].fd = -1;
  l->expired_ns = clock_ns();
  l->relay = pl_relay_new(cfg, l->expired_ns);
  int r = l->relay ? PL_OK : PL_ENOMEM;
  if (r == PL_OK) r = open_pipe(l->wake);
  if (r == PL_OK) r = open_pipe(l->hand);
  if (r == PL_OK) r = open_pipe(l->news);
  if (r == PL_OK) r = pl_udp_open(&l->udp, bind, socket_buffer, true, true);
  if (r == PL_OK && probe) r = open_probe(l, bind, probe);
  if (r < 0) {
    int why = errno;
    pl_relay_loop_free(l);
    errno = why;
    return r;
  }
  pl_udp_relay_mode(&l->udp);
  *out = l;
  return PL_OK;
}

int pl_relay_loop_start(pl_relay_loop *l) {
  if (l->running) return PL_ESTATE;
  /* Signals belong to the threads of the program around us. */
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int why = pthread_create(&l->thread, NULL, run, l);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (why) {
    errno = why;
    return PL_EIO;
  }
  l->running = true;
  return PL_OK;
}

void pl_relay_loop_stop(pl_relay_loop *l) {
  if (!l->running) return;
  uint8_t byte = 0;
  while (write(l->wake[1], &byte, 1) < 0 && errno == EINTR) continue;
  pthread_join(l->thread, NULL);
  l->running = false;
  while (read(l->wake[0], &byte, 1) > 0) continue;
}

void pl_relay_loop_free(pl_relay_loop *l) {
  if (!l) return;
  pl_relay_loop_stop(l);
  pl_udp_close(&l->udp);
  for (int i = 0; i < 2; i++) {
    if (l->wake[i] >= 0) close(l->wake[i]);
    if (l->hand[i] >= 0) close(l->hand[i]);
    if (l->news[i] >= 0) close(l->news[i]);
  }
  for (int i = 0; i < PL_SOCK_COUNT; i++) pl_udp_close(&l->extra[i]);
  pl_relay_free(l->relay);
  pthread_mutex_destroy(&l->lock);
  pthread_mutex_destroy(&l->turn);
  free(l);
}

pl_relay *pl_relay_loop_lock(pl_relay_loop *l, uint64_t *now_ns) {
  take(l);
  *now_ns = clock_ns();
  return l->relay;
}

void pl_relay_loop_unlock(pl_relay_loop *l) { pthread_mutex_unlock(&l->lock); }

void pl_relay_loop_local_addr(const pl_relay_loop *l, pl_addr *out) { *out = l->udp.local; }

int pl_relay_loop_news_fd(const pl_relay_loop *l) { return l->news[0]; }

int pl_relay_loop_send(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len) {
  return pl_udp_send_one(&l->udp, to, NULL, data, len);
}

int pl_relay_loop_send_peer(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len) {
  const uint8_t *p;
  take(l);
  int n = pl_relay_for_peer(l->relay, to, data, (uint32_t)len, &p);
  int r = n < 0 ? n : pl_udp_send_one(&l->udp, to, NULL, p, (size_t)n);
  pthread_mutex_unlock(&l->lock);
  return r;
}

unsigned pl_relay_loop_take_letters(pl_relay_loop *l, pl_relay_letter out[PL_RELAY_LETTERS]) {
  take(l);
  unsigned n = pl_relay_take_letters(l->relay, out);
  l->told_letters = false;
  pthread_mutex_unlock(&l->lock);
  return n;
}

int pl_relay_loop_send_node(pl_relay_loop *l, uint32_t node, const uint8_t *data, size_t len) {
  pl_addr to, from;
  if (!pl_relay_lookup(l->relay, node, &to) || !pl_relay_lookup_local(l->relay, node, &from)) return PL_ENOENT;
  return pl_udp_send_one(&l->udp, &to, &from, data, len);
}

void pl_relay_loop_inject(pl_relay_loop *l, uint32_t node, pl_rx *batch, unsigned n) {
  for (unsigned i = 0; i < n; i++) pl_relay_stream_addr(&batch[i].from, node);
  take(l);
  forward(l, batch, n, clock_ns());
  tell_news(l);
  pthread_mutex_unlock(&l->lock);
}

int pl_relay_loop_hand_fd(const pl_relay_loop *l) { return l->hand[0]; }

size_t pl_relay_loop_take(pl_relay_loop *l, const uint8_t **out) {
  uint8_t byte;
  take(l);
  while (l->told && read(l->hand[0], &byte, 1) > 0) continue;
  l->told = false;
  size_t n = pl_relay_take(l->relay, out);
  pthread_mutex_unlock(&l->lock);
  return n;
}

void pl_relay_loop_get_stats(const pl_relay_loop *l, pl_relay_loop_stats *out) {
  const pl_udp *u = &l->udp;
  *out = (pl_relay_loop_stats){.wakeups = l->wakeups, .recv_calls = u->recv_calls, .recv_datagrams = u->recv_datagrams,
                               .send_calls = u->send_calls, .send_datagrams = u->send_datagrams, .send_errors = u->send_errors,
                               .gso_fallbacks = u->gso_fallbacks, .gso = u->gso, .gro = u->gro};
}
