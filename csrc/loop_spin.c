/* Waiting awake. A processor that has gone to sleep takes tens of microseconds to wake up, which in a conversation of small messages is most of
 * the delay. So there, and only there, who waits for the answer polls for a while before it sleeps: a conversation is several turns in a row
 * that moved few bytes and came soon. One wait in vain ends it. Every look gives the processor to whoever else wants it. */
#include "loop_internal.h"

#include <poll.h>
#include <sched.h>
#include <sys/resource.h>

#define SPIN_AFTER 3u     /* turns in a row that make a conversation */
#define SPIN_LOOK 16u     /* offers of the processor ... */
#define SPIN_CROWDED 12   /* ... of which so many were taken: another waits awake on it, and asleep one of both would get one of its own */
#define SPIN_BYTES 1024u  /* in and out in one turn; a paced stream moves more, and its delay is not worth a processor */

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

static long given_away(void) {
  struct rusage r;
  return getrusage(RUSAGE_THREAD, &r) == 0 ? r.ru_nivcsw : 0;
}

void pl_spin_on(int fd, uint64_t until_ns) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  long before = 0;
  for (unsigned n = 1; poll(&p, 1, 0) == 0 && pl_loop_clock_ns() < until_ns; n++) {
    sched_yield();
    if (n % SPIN_LOOK) continue;
    long now = given_away();
    if (n > SPIN_LOOK && now - before >= SPIN_CROWDED) return;
    before = now;
  }
}
