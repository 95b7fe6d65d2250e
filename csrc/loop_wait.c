/* Callers that wait for a stream.
 *
 * Two ways to wait. Mostly the data thread serves the socket and wakes the caller: two wake-ups per message, and bulk is received on one core
 * while the caller works on another. In a conversation of small messages the second wake-up is most of the delay, so there the caller leads: it
 * waits on the socket itself, receives and decrypts in its own thread, and the data thread leaves the socket alone for the length of a lease.
 * When the caller comes back without having been served for HOT_NS, or much data comes in, or the lease runs out because the caller does
 * something else, the data thread serves the socket again. The lease also delays acknowledgements: the answer that the caller is about to
 * write carries them. */
#include "loop_wait.h"

#include "loop_internal.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEASE_NS (250 * PL_NS_PER_US)       /* the longest that the socket goes unwatched when a leader turns to something else */
#define HOT_NS PL_NS_PER_MS                 /* a wait shorter than this makes the next one lead, one that is longer stops leading */
#define BULK_REST_NS (5 * PL_NS_PER_MS)
#define COPY_BYTES ((size_t)256 * 1024)     /* moved under one hold of the lock */

struct pl_waiter {
  uint32_t word; /* 1 = woken */
  bool queued;   /* in l->woken */
  pl_waiter *next;
};

static void wake(void *ctx, void *waiter) {
  pl_loop *l = ctx;
  pl_waiter *w = waiter;
  w->queued = true;
  w->next = l->woken;
  l->woken = w;
}

void pl_loop_wait_init(pl_loop *l) { pl_engine_on_wake(l->engine, wake, l); }

/* As the last thing under the lock: who wakes up wants it. A waiter lives until its thread has had the lock once more. */
void pl_loop_wake_all(pl_loop *l) {
  while (l->woken) {
    pl_waiter *w = l->woken;
    l->woken = w->next;
    w->queued = false;
    __atomic_store_n(&w->word, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &w->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  }
}

static struct timespec to_timespec(uint64_t ns) {
  return (struct timespec){.tv_sec = (time_t)(ns / PL_NS_PER_S), .tv_nsec = (long)(ns % PL_NS_PER_S)};
}

/* Without the lock. False after a signal. */
static bool sleep_on(pl_waiter *w, uint64_t until_ns) {
  while (!__atomic_load_n(&w->word, __ATOMIC_ACQUIRE)) {
    struct timespec at = to_timespec(until_ns), *timeout = until_ns == PL_NEVER ? NULL : &at;
    if (syscall(SYS_futex, &w->word, FUTEX_WAIT_BITSET_PRIVATE, 0, timeout, NULL, FUTEX_BITSET_MATCH_ANY) < 0) {
      if (errno == EINTR) return false;
      if (errno == ETIMEDOUT) return true;
    }
  }
  return true;
}

/* With the lock: nobody holds on to `w` any more. True if it was woken. */
static bool retire(pl_loop *l, uint32_t conn, enum pl_wait what, pl_waiter *w) {
  pl_engine_unwait(l->engine, conn, what, w);
  for (pl_waiter **at = &l->woken; w->queued && *at; at = &(*at)->next) {
    if (*at != w) continue;
    *at = w->next; /* woken under this hold of the lock, or between the deadline and it */
    break;
  }
  return w->queued || __atomic_load_n(&w->word, __ATOMIC_ACQUIRE);
}

/* With the lock; returns with it. 1 to try again, 0 after the deadline or a signal, or an error. */
static int wait_for(pl_loop *l, uint32_t conn, enum pl_wait what, uint64_t until_ns) {
  if (l->stopped || l->stop) return PL_ESTATE;
  pl_waiter w = {0};
  int r = pl_engine_wait(l->engine, conn, what, &w);
  if (r < 0) return r;
  pl_loop_settle(l);
  pl_loop_hurry(l, pl_loop_deadline(l));
  pl_loop_leave(l);
  bool calm = sleep_on(&w, until_ns);
  pl_loop_enter(l);
  if (retire(l, conn, what, &w)) return 1;
  return calm && pl_loop_clock_ns() < until_ns;
}

/* ---- leading ---- */

static bool may_lead(const pl_loop *l, uint64_t now_ns) {
  return l->hot && !l->leading && l->started && !l->stop && now_ns >= l->bulk_ns + BULK_REST_NS;
}

static void take_lease(pl_loop *l, uint64_t now_ns) {
  l->lease_ns = now_ns + LEASE_NS;
  if (l->udp_leased) return;
  pl_loop_watch_udp(l, false);
  pl_loop_hurry(l, l->lease_ns);
}

/* With the lock; returns with it. What the stream gave, or PL_EAGAIN: wait the other way. */
static int64_t lead(pl_loop *l, uint32_t conn, uint8_t *buf, size_t cap, uint64_t until_ns) {
  uint64_t now = pl_loop_clock_ns(), end = pl_min64(now + HOT_NS, until_ns);
  int64_t r = PL_EAGAIN;
  pl_waiter w = {0}; /* as long as it is set, what comes in is no event for others */
  int set = pl_engine_wait(l->engine, conn, PL_WAIT_READ, &w);
  if (set < 0) return set;
  l->leading = true;
  l->lead_spin.looks = 0; /* another thread than the last one, perhaps */
  while (r == PL_EAGAIN && now < end && !l->stop) {
    take_lease(l, now);
    pl_loop_settle(l);
    uint64_t at = pl_min64(pl_min64(pl_loop_deadline(l), l->lease_ns), end);
    uint64_t awake = pl_spin_limit(l, &l->lead_spin), begin = now = pl_loop_clock_ns();
    struct pollfd p = {.fd = l->udp.fd, .events = POLLIN};
    bool more = l->udp.more;
    pl_loop_leave(l);
    if (awake && !more) pl_spin_on(&l->lead_spin, l->udp.fd, pl_min64(at, begin + awake));
    now = pl_loop_clock_ns();
    struct timespec left = to_timespec(at > now ? at - now : 0);
    int n = more ? 1 : ppoll(&p, 1, &left, NULL);
    bool interrupted = n < 0;
    uint64_t waited = pl_loop_clock_ns() - begin;
    pl_loop_enter(l);
    now = pl_loop_clock_ns();
    if (l->stop) break;
    size_t bytes = n > 0 ? pl_loop_receive(l) : 0;
    pl_spin_note(l, &l->lead_spin, waited, n > 0);
    if (retire(l, conn, PL_WAIT_READ, &w)) w = (pl_waiter){0};
    r = pl_engine_read(l->engine, conn, buf, cap, now);
    if (r != PL_EAGAIN || interrupted || bytes >= PL_BULK_BYTES) break;
    set = pl_engine_wait(l->engine, conn, PL_WAIT_READ, &w);
    if (set < 0) r = set;
  }
  retire(l, conn, PL_WAIT_READ, &w);
  l->leading = false;
  if (r == PL_EAGAIN || l->bulk_ns > now) {
    l->hot = false;
    if (l->udp_leased) pl_loop_watch_udp(l, true);
  } else {
    l->lease_ns = pl_loop_clock_ns() + LEASE_NS; /* what is due to be sent may wait for the caller, so long */
  }
  return r;
}

/* ---- calls ---- */

static uint64_t end_of(uint64_t timeout_ns) {
  uint64_t now = pl_loop_clock_ns();
  return timeout_ns > PL_NEVER - now ? PL_NEVER : now + timeout_ns;
}

int64_t pl_loop_read_wait(pl_loop *l, uint32_t conn, uint8_t *buf, size_t cap, uint64_t timeout_ns) {
  uint64_t until = end_of(timeout_ns);
  if (cap > COPY_BYTES) cap = COPY_BYTES;
  pl_loop_enter(l);
  uint64_t now = pl_loop_clock_ns();
  int64_t r = pl_engine_read(l->engine, conn, buf, cap, now);
  if (r == PL_EAGAIN && timeout_ns && may_lead(l, now)) {
    r = lead(l, conn, buf, cap, until);
    if (r >= 0) {
      pl_loop_leave(l);
      return r;
    }
  }
  while (r == PL_EAGAIN && timeout_ns) {
    int again = wait_for(l, conn, PL_WAIT_READ, until);
    if (again < 0) r = again;
    if (again <= 0) break;
    r = pl_engine_read(l->engine, conn, buf, cap, pl_loop_clock_ns());
    l->hot = r > 0 && pl_loop_clock_ns() - now < HOT_NS;
  }
  pl_loop_unlock(l);
  return r;
}

int64_t pl_loop_write_wait(pl_loop *l, uint32_t conn, const uint8_t *data, size_t len, uint64_t timeout_ns) {
  uint64_t until = end_of(timeout_ns);
  size_t done = 0;
  int64_t r = 0;
  while (done < len) {
    size_t piece = len - done < COPY_BYTES ? len - done : COPY_BYTES;
    pl_loop_enter(l);
    r = pl_engine_write(l->engine, conn, data + done, piece, pl_loop_clock_ns());
    if (r > 0) done += (size_t)r;
    int again = r >= 0 && (size_t)r < piece ? wait_for(l, conn, PL_WAIT_WRITE, until) : 1;
    pl_loop_unlock(l);
    if (r >= 0 && again < 0) r = again;
    if (r < 0) return r;
    if (!again) break;
  }
  return done || !len ? (int64_t)done : PL_EAGAIN;
}
