/* Waiting awake. A processor that has gone to sleep takes tens of microseconds to wake up, which in a conversation of small messages is most of
 * the delay. So there, and only there, who waits for the answer polls for a while before it sleeps: a conversation is several turns in a row
 * that moved few bytes and came soon. One wait in vain ends it. Every look gives the processor to whoever else wants it.
 *
 * In a conversation the data thread also asks for a short slice of time: its share stays what it is, but who asks for less at once is served
 * sooner (Linux 6.12; older ones take no notice), and what another thread of this processor has to do comes after the answer. Not in bulk,
 * where more switches would gain nothing. */
#include "loop_internal.h"

#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_AFTER 3u     /* turns in a row that make a conversation */
#define SPIN_LOOK 16u     /* offers of the processor ... */
#define SPIN_CROWDED 12   /* ... of which so many were taken: another waits awake on it, and asleep one of both would get one of its own */
#define SPIN_BYTES 1024u  /* in and out in one turn; a paced stream moves more, and its delay is not worth a processor */
#define SLICE_NS (100 * PL_NS_PER_US) /* the shortest there is */

void pl_spin_note(pl_loop *l, pl_spin *s, uint64_t waited_ns, bool served) {
  uint64_t moved = l->moved - s->moved;
  s->moved = l->moved;
  bool junk = l->junk != s->junk; /* strangers must not keep a processor awake */
  s->junk = l->junk;
  if (junk || moved > SPIN_BYTES || waited_ns >= l->spin_ns)
    s->soon = 0;
  else if (served && s->soon < SPIN_AFTER) /* woken by a deadline of our own: neither */
    s->soon++;
}

uint64_t pl_spin_limit(const pl_loop *l, const pl_spin *s) { return s->soon >= SPIN_AFTER ? l->spin_ns : 0; }

/* sched_setattr(2); its header and that of the C library exclude each other. */
typedef struct sched_attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
} sched_attributes;

void pl_spin_slice(bool brisk) {
  sched_attributes a = {0};
  if (syscall(SYS_sched_getattr, 0, &a, (unsigned)sizeof a, 0) < 0 || a.policy != SCHED_OTHER) return;
  a.runtime = brisk ? SLICE_NS : 0; /* 0: the system's own */
  syscall(SYS_sched_setattr, 0, &a, 0);
}

static long given_away(void) {
  struct rusage r;
  return getrusage(RUSAGE_THREAD, &r) == 0 ? r.ru_nivcsw : 0;
}

bool pl_spin_on(pl_spin *s, int fd, uint64_t until_ns) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  while (poll(&p, 1, 0) == 0 && pl_loop_clock_ns() < until_ns) {
    if (!s->looks) s->given = given_away();
    sched_yield();
    if (++s->looks < SPIN_LOOK) continue;
    s->looks = 0; /* a wait is often shorter than so many looks: they count from one to the next */
    if (given_away() - s->given >= SPIN_CROWDED) return false;
  }
  return true;
}
