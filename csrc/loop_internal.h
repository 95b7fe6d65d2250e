/* Shared between the files of the data thread's shell: loop.c (the thread) and loop_wait.c (callers that wait). */
#ifndef PL_LOOP_INTERNAL_H
#define PL_LOOP_INTERNAL_H

#include "local.h"
#include "loop.h"
#include "udp.h"

#include <pthread.h>
#include <time.h>

enum { KIND_UDP = 16, KIND_WAKE = 17 };

#define PL_RX_TURN_BYTES (256u * 1024u) /* received before what came in is handled and acknowledged */

#define PL_BULK_BYTES (64u * 1024u)      /* received in one turn: no conversation of small messages */

#define PL_LEASE_LOOK_NS (50 * PL_NS_PER_US) /* the data thread looks again whether a lease that ran out was renewed */

typedef struct pl_waiter pl_waiter;

/* What one who waits has seen lately (loop_spin.c). */
typedef struct pl_spin {
  unsigned soon;  /* turns in a row of a conversation of small messages */
  uint64_t moved; /* l->moved and l->junk when the last turn ended */
  uint64_t junk;
  unsigned looks; /* since `given` was read */
  long given;     /* how often the thread had lost its processor */
} pl_spin;

struct pl_loop {
  pthread_mutex_t main, next;
  pthread_t thread;
  bool started, stopped;
  bool stop;            /* the rest: under the lock */
  bool sleeping;        /* the data thread waits, until sleep_until_ns */
  bool announced;       /* event_fd was written and the queue has not been empty since */
  uint64_t announce_ns; /* when it is written for quiet events alone; PL_NEVER = there are none */
  uint64_t sleep_until_ns;
  int epoll_fd, wake_fd, event_fd;
  pl_addr local_addr;
  pl_udp udp;
  pl_tx tx;
  pl_engine *engine;
  pl_local *local;
  uint64_t wakeups;
  uint64_t spin_ns;          /* the longest wait without sleep */
  uint64_t moved;            /* bytes received and sent */
  uint64_t junk;             /* turns at the socket that brought no frame of a session */
  pl_local_stats last_local; /* what the clients' counters were when they were stopped */

  /* loop_wait.c */
  pl_waiter *woken;      /* to be woken when the lock is left */
  bool leading;          /* a caller waits for the socket itself */
  bool udp_leased;       /* the data thread does not look at the socket: it is a caller's until lease_ns */
  bool hot;              /* the last wait was short: the next one may lead */
  uint64_t lease_ns;
  pl_spin lead_spin;     /* of whoever leads */
  uint64_t bulk_ns;      /* when the socket last brought so much that callers should not lead */
};

void pl_loop_enter(pl_loop *l);
void pl_loop_leave(pl_loop *l);
void pl_loop_settle(pl_loop *l);               /* everything that follows from input or commands */
size_t pl_loop_receive(pl_loop *l);            /* one turn at the socket; bytes */
uint64_t pl_loop_deadline(const pl_loop *l);
void pl_loop_hurry(pl_loop *l, uint64_t at_ns); /* the data thread wakes up by then */
void pl_loop_watch_udp(pl_loop *l, bool watch);  /* in the data thread's epoll */

/* With the lock, after a wait: how long it was, and whether something came. */
void pl_spin_note(pl_loop *l, pl_spin *s, uint64_t waited_ns, bool served);
uint64_t pl_spin_limit(const pl_loop *l, const pl_spin *s); /* with the lock: how long the next wait may be awake, 0 = not at all */
void pl_spin_slice(bool brisk); /* of the calling thread */
/* Without it: until fd is readable, or then. False before that if another waits awake on this processor. */
bool pl_spin_on(pl_spin *s, int fd, uint64_t until_ns);

void pl_loop_wait_init(pl_loop *l);
void pl_loop_wake_all(pl_loop *l);

static inline uint64_t pl_loop_clock_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * PL_NS_PER_S + (uint64_t)t.tv_nsec;
}

#endif
