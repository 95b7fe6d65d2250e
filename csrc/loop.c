/* The data thread: one epoll over the tunnel socket, the local clients and a wake-up descriptor. Linux.
 *
 *   data thread                                 any other thread
 *   wait in epoll                               pl_loop_lock
 *   lock                                        pl_engine_*, pl_loop_client_*
 *   receive, serve clients, flush, announce     pl_loop_unlock: serve clients, flush, announce; wake the data thread if it
 *   note the deadline, unlock                     sleeps beyond the deadline
 *
 * The lock is two mutexes. `next` is held while waiting for `main`, so whoever waits is first in line when `main` is released: a
 * data thread that never rests cannot starve the callers, which a plain mutex lets it do. */
#include "loop_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WAIT_EVENTS 64
#define RX_TURN_CALLS 8u
#define QUIET_NS (10 * PL_NS_PER_MS) /* quiet events wait for each other */
#define STOP_FLUSHES 64u             /* each sends up to a MiB: a last word on every stream */

/* ---- lock ---- */

void pl_loop_enter(pl_loop *l) {
  pthread_mutex_lock(&l->next);
  pthread_mutex_lock(&l->main);
  pthread_mutex_unlock(&l->next);
}

void pl_loop_leave(pl_loop *l) {
  pl_loop_wake_all(l);
  pthread_mutex_unlock(&l->main);
}

static void signal_fd(int fd) {
  uint64_t one = 1;
  (void)!write(fd, &one, sizeof one); /* full means signalled already */
}

static void send_all(pl_tx *tx, void *ctx) {
  pl_loop *l = ctx;
  l->moved += tx->used;
  if (l->udp.fd >= 0) pl_udp_send(&l->udp, tx);
  pl_tx_reset(tx);
}

static void forget_announcement(pl_loop *l) {
  l->announced = false;
  l->announce_ns = PL_NEVER;
}

/* Wakes the reader of events. It is another thread and wants a processor; for quiet events that is not worth what it takes from the streams. */
static void announce(pl_loop *l, uint64_t now) {
  if (!pl_engine_has_events(l->engine)) {
    forget_announcement(l);
  } else if (!l->announced) {
    if (l->announce_ns == PL_NEVER) l->announce_ns = now + QUIET_NS;
    if (now < l->announce_ns && !l->stopped && !pl_engine_has_pressing_events(l->engine)) return;
    signal_fd(l->event_fd);
    l->announced = true;
    l->announce_ns = PL_NEVER;
  }
}

/* Everything that follows from input or commands. */
void pl_loop_settle(pl_loop *l) {
  uint64_t now = pl_loop_clock_ns();
  /* The reader may have emptied the queue just now, under the lock that is held: what the pump adds is news to it. */
  if (!pl_engine_has_events(l->engine)) forget_announcement(l);
  if (l->local) pl_local_pump(l->local, now);
  pl_engine_flush(l->engine, now);
  announce(l, now);
}

uint64_t pl_loop_deadline(const pl_loop *l) {
  uint64_t at = pl_min64(pl_engine_deadline(l->engine), l->announce_ns);
  return l->local ? pl_min64(at, pl_local_deadline(l->local)) : at;
}

pl_engine *pl_loop_lock(pl_loop *l, uint64_t *now_ns) {
  pl_loop_enter(l);
  *now_ns = pl_loop_clock_ns();
  return l->engine;
}

void pl_loop_hurry(pl_loop *l, uint64_t at_ns) {
  if (!l->sleeping || at_ns >= l->sleep_until_ns) return;
  l->sleep_until_ns = at_ns;
  signal_fd(l->wake_fd);
}

void pl_loop_unlock(pl_loop *l) {
  pl_loop_settle(l);
  pl_loop_hurry(l, pl_loop_deadline(l));
  pl_loop_leave(l);
}

/* ---- data thread ---- */

static int wait_for(const pl_loop *l, struct epoll_event *ev, uint64_t until_ns) {
  struct timespec t = {0, 0}, *timeout = NULL;
  if (until_ns != PL_NEVER) {
    uint64_t now = pl_loop_clock_ns(), left = until_ns > now ? until_ns - now : 0;
    t.tv_sec = (time_t)(left / PL_NS_PER_S);
    t.tv_nsec = (long)(left % PL_NS_PER_S);
    timeout = &t;
  }
#ifdef SYS_epoll_pwait2
  static bool missing; /* written by data threads only, always with the same value */
  if (!__atomic_load_n(&missing, __ATOMIC_RELAXED)) {
    int n = (int)syscall(SYS_epoll_pwait2, l->epoll_fd, ev, WAIT_EVENTS, timeout, NULL, 0);
    if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return n;
    __atomic_store_n(&missing, true, __ATOMIC_RELAXED); /* before Linux 5.11, or a sandbox */
  }
#endif
  int ms = -1;
  if (timeout) {
    uint64_t left = (uint64_t)t.tv_sec * 1000 + (uint64_t)(t.tv_nsec + 999999) / 1000000;
    ms = left > 60000 ? 60000 : (int)left;
  }
  return epoll_wait(l->epoll_fd, ev, WAIT_EVENTS, ms);
}

size_t pl_loop_receive(pl_loop *l) {
  pl_rx rx[PL_UDP_BATCH];
  size_t bytes = 0;
  uint64_t opened = pl_engine_opened(l->engine);
  for (unsigned call = 0; call < RX_TURN_CALLS && bytes < PL_RX_TURN_BYTES; call++) {
    int n = pl_udp_recv(&l->udp, rx);
    uint64_t now = pl_loop_clock_ns();
    for (int i = 0; i < n; i++) {
      bytes += rx[i].len;
      pl_engine_input(l->engine, rx[i].data, rx[i].len, rx[i].seg, &rx[i].from, now);
    }
    if (!l->udp.more) break;
  }
  pl_engine_send_made(l->engine); /* what is answered at once goes before local clients are served */
  l->moved += bytes;
  if (bytes && pl_engine_opened(l->engine) == opened) l->junk++;
  if (bytes >= PL_BULK_BYTES) l->bulk_ns = pl_loop_clock_ns();
  return bytes;
}

static void dispatch(pl_loop *l, const struct epoll_event *ev, int n) {
  bool udp = l->udp.more;
  uint64_t now = pl_loop_clock_ns(), count;
  for (int i = 0; i < n; i++) {
    uint32_t kind = (uint32_t)(ev[i].data.u64 >> 32);
    switch (kind) {
      case KIND_UDP:
        udp = true;
        break;
      case KIND_WAKE:
        (void)!read(l->wake_fd, &count, sizeof count);
        break;
      case PL_LOCAL_LISTEN:
        pl_local_on_accept(l->local, now);
        break;
      default:
        pl_local_on_client(l->local, (uint32_t)ev[i].data.u64, ev[i].events, now);
    }
  }
  if (udp) pl_loop_receive(l);
}

/* In a conversation the clients that were told something go first, if they wait for this processor: what they say next leaves together with
 * what is due to be sent, the acknowledgement above all. */
static void give_way(pl_loop *l) {
  struct epoll_event ev[WAIT_EVENTS];
  pl_loop_leave(l);
  sched_yield();
  int n = epoll_wait(l->epoll_fd, ev, WAIT_EVENTS, 0);
  pl_loop_enter(l);
  if (n > 0) dispatch(l, ev, n);
}

static void *run(void *arg) {
  pl_loop *l = arg;
  struct epoll_event ev[WAIT_EVENTS];
  prctl(PR_SET_TIMERSLACK, 1ul); /* pacing sleeps overshoot by 50 us otherwise */
  pl_spin spin = {0};
  uint64_t until = 0, awake = 0;
  bool brisk = false;
  for (;;) {
    if ((awake > 0) != brisk) pl_spin_slice(brisk = !brisk);
    uint64_t begin = pl_loop_clock_ns();
    if (awake) pl_spin_on(&spin, l->epoll_fd, pl_min64(until, begin + awake));
    int n = wait_for(l, ev, until);
    uint64_t waited = pl_loop_clock_ns() - begin;
    pl_loop_enter(l);
    l->sleeping = false;
    l->wakeups++;
    if (l->stop) break;
    if (l->udp_leased && !l->leading && pl_loop_clock_ns() >= l->lease_ns) pl_loop_watch_udp(l, true);
    dispatch(l, ev, n > 0 ? n : 0);
    if (pl_local_pump(l->local, pl_loop_clock_ns()) && awake) give_way(l);
    pl_loop_settle(l);
    pl_spin_note(l, &spin, waited, n > 0);
    awake = l->udp_leased ? 0 : pl_spin_limit(l, &spin);
    pl_local_brisk(l->local, awake > 0);
    until = l->udp.more ? 0 : pl_loop_deadline(l);
    if (l->udp_leased) until = pl_min64(until, pl_max64(l->lease_ns, pl_loop_clock_ns() + PL_LEASE_LOOK_NS));
    l->sleep_until_ns = until;
    l->sleeping = true;
    pl_loop_leave(l);
  }
  pl_loop_leave(l);
  return NULL;
}

/* ---- life ---- */

void pl_loop_cfg_default(pl_loop_cfg *cfg) {
  memset(cfg, 0, sizeof *cfg);
  pl_engine_cfg_default(&cfg->engine);
  cfg->bind.family = 4;
  cfg->local_listen_fd = -1;
  cfg->max_clients = 1024;
  cfg->socket_buffer = 8u << 20;
  cfg->spin_us = 200;
  cfg->use_gso = cfg->use_gro = true;
}

static int watch(const pl_loop *l, int fd, uint32_t kind) {
  struct epoll_event ev = {.events = EPOLLIN, .data.u64 = (uint64_t)kind << 32};
  return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? PL_EIO : PL_OK;
}

void pl_loop_watch_udp(pl_loop *l, bool watch) {
  struct epoll_event ev = {.events = watch ? EPOLLIN : 0, .data.u64 = (uint64_t)KIND_UDP << 32};
  if (epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, l->udp.fd, &ev) == 0) l->udp_leased = !watch;
}

static int set_up(pl_loop *l, const pl_loop_cfg *cfg) {
  l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  l->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (l->epoll_fd < 0 || l->wake_fd < 0 || l->event_fd < 0) return PL_EIO;
  if (pl_udp_open(&l->udp, &cfg->bind, cfg->socket_buffer, cfg->use_gso, cfg->use_gro) < 0) return PL_EIO;
  l->local_addr = l->udp.local;
  if (watch(l, l->udp.fd, KIND_UDP) < 0 || watch(l, l->wake_fd, KIND_WAKE) < 0) return PL_EIO;
  static const uint8_t none[sizeof cfg->engine.entropy];
  uint64_t seed;
  pl_engine_cfg engine = cfg->engine;
  if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) return PL_EIO;
  if (memcmp(engine.entropy, none, sizeof none) == 0 && getrandom(engine.entropy, sizeof none, 0) != (ssize_t)sizeof none) return PL_EIO;
  if (getrandom(engine.probe_secret, sizeof engine.probe_secret, 0) != (ssize_t)sizeof engine.probe_secret) return PL_EIO;
  if (pl_tx_init(&l->tx, send_all, l) < 0) return PL_ENOMEM;
  l->engine = pl_engine_new(&engine, &l->tx, pl_loop_clock_ns());
  if (!l->engine) return PL_ENOMEM;
  pl_loop_wait_init(l);
  l->local = pl_local_new(l->engine, l->epoll_fd, cfg->max_clients, seed);
  if (!l->local) return PL_ENOMEM;
  return cfg->local_listen_fd >= 0 ? pl_local_serve(l->local, cfg->local_listen_fd) : PL_OK;
}

int pl_loop_new(const pl_loop_cfg *cfg, pl_loop **out) {
  pl_loop *l = calloc(1, sizeof *l);
  if (!l) return PL_ENOMEM;
  l->epoll_fd = l->wake_fd = l->event_fd = l->udp.fd = -1;
  l->announce_ns = PL_NEVER;
  l->spin_ns = (cfg->spin_us < 1000 ? cfg->spin_us : 1000) * PL_NS_PER_US;
  pthread_mutex_init(&l->main, NULL);
  pthread_mutex_init(&l->next, NULL);
  int r = set_up(l, cfg);
  if (r < 0) {
    int why = errno;
    pl_loop_free(l);
    errno = why;
    return r;
  }
  *out = l;
  return PL_OK;
}

int pl_loop_start(pl_loop *l) {
  if (l->started || l->stopped) return PL_ESTATE;
  sigset_t all, old; /* signals are for the threads of the program */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int why = pthread_create(&l->thread, NULL, run, l);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (why) {
    errno = why;
    return PL_EIO;
  }
  (void)pthread_setname_np(l->thread, "pilot-data");
  l->started = true;
  return PL_OK;
}

int pl_loop_serve(pl_loop *l, int listen_fd) {
  pl_loop_enter(l);
  int r = PL_ESTATE;
  if (l->local)
    r = pl_local_serve(l->local, listen_fd);
  else if (listen_fd >= 0)
    close(listen_fd);
  int why = errno;
  pl_loop_leave(l);
  errno = why;
  return r;
}

/* FIN on streams whose data has arrived; RST on the others, whose peers would else take a part for the whole. */
static void end_streams(pl_loop *l, uint64_t now) {
  pl_engine_stats st;
  pl_engine_get_stats(l->engine, &st);
  pl_conn_info info;
  size_t it = 0, n = 0;
  uint32_t *ids = calloc((size_t)st.conns + 1, sizeof *ids);
  if (!ids) return;
  while (n < st.conns && pl_engine_next_conn(l->engine, &it, &info)) ids[n++] = info.id;
  for (size_t i = 0; i < n; i++) {
    if (pl_engine_unacked(l->engine, ids[i]) > 0)
      pl_engine_abort(l->engine, ids[i], now);
    else
      pl_engine_close(l->engine, ids[i], now);
  }
  free(ids);
  for (unsigned i = 0; i < STOP_FLUSHES; i++) {
    pl_engine_flush(l->engine, now);
    if (pl_engine_deadline(l->engine) > now) break;
  }
}

void pl_loop_stop(pl_loop *l) {
  if (l->started) {
    pl_loop_enter(l);
    l->stop = true;
    signal_fd(l->wake_fd);
    pl_loop_leave(l);
    pthread_join(l->thread, NULL);
    l->started = false;
  }
  pl_loop_enter(l);
  if (!l->stopped) {
    uint64_t now = pl_loop_clock_ns();
    l->stopped = true;
    l->sleeping = false;
    pl_local_get_stats(l->local, &l->last_local);
    l->last_local.clients = 0;
    pl_local_free(l->local, now);
    l->local = NULL;
    end_streams(l, now);
    pl_udp_close(&l->udp);
  }
  pl_loop_leave(l);
}

void pl_loop_free(pl_loop *l) {
  if (!l) return;
  if (l->started) pl_loop_stop(l);
  if (l->local) pl_local_free(l->local, pl_loop_clock_ns());
  pl_engine_free(l->engine);
  if (l->tx.arena) pl_tx_free(&l->tx);
  pl_udp_close(&l->udp);
  if (l->epoll_fd >= 0) close(l->epoll_fd);
  if (l->wake_fd >= 0) close(l->wake_fd);
  if (l->event_fd >= 0) close(l->event_fd);
  pthread_mutex_destroy(&l->main);
  pthread_mutex_destroy(&l->next);
  free(l);
}

int pl_loop_event_fd(const pl_loop *l) { return l->event_fd; }
void pl_loop_local_addr(const pl_loop *l, pl_addr *out) { *out = l->local_addr; }

/* ---- local clients ---- */

int pl_loop_client_send(pl_loop *l, uint32_t client, uint8_t cmd, const uint8_t *payload, uint32_t len) {
  return l->local ? pl_local_send(l->local, client, cmd, payload, len) : PL_ENOENT;
}

int pl_loop_client_close(pl_loop *l, uint32_t client) {
  return l->local ? pl_local_close(l->local, client, pl_loop_clock_ns()) : PL_ENOENT;
}

int pl_loop_attach(pl_loop *l, uint32_t conn, uint32_t client) {
  return l->local ? pl_local_attach(l->local, conn, client, pl_loop_clock_ns()) : PL_ENOENT;
}

int pl_loop_serve_streams(pl_loop *l, int32_t net) {
  if (!l->local) return PL_ESTATE;
  pl_local_serve_streams(l->local, net);
  return PL_OK;
}

int pl_loop_dial_answered(pl_loop *l, uint32_t client) {
  return l->local ? pl_local_dial_answered(l->local, client, pl_loop_clock_ns()) : PL_ENOENT;
}

/* ---- counters ---- */

void pl_loop_get_stats(pl_loop *l, pl_loop_stats *out) {
  pl_loop_enter(l);
  pl_local_stats c = l->last_local;
  if (l->local) pl_local_get_stats(l->local, &c);
  const pl_udp *u = &l->udp;
  *out = (pl_loop_stats){
      .recv_calls = u->recv_calls,
      .recv_datagrams = u->recv_datagrams,
      .send_calls = u->send_calls,
      .send_datagrams = u->send_datagrams,
      .send_errors = u->send_errors,
      .gso_fallbacks = u->gso_fallbacks,
      .wakeups = l->wakeups,
      .client_frames = c.frames,
      .client_bad_frames = c.bad_frames,
      .client_dials = c.dials,
      .client_slow = c.slow,
      .client_refused = c.refused,
      .client_send_drops = c.send_drops,
      .client_datagram_drops = c.datagram_drops,
      .clients = c.clients,
      .gso = u->gso,
      .gro = u->gro,
  };
  pl_loop_leave(l);
}
