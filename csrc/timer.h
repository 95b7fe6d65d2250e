/* Timers: a hierarchical wheel, O(1) to set, move and cancel; granularity 2^16 ns (65 us) at the lowest level.
 * A timer never fires early. Sans-I/O: time comes from the caller. */
#ifndef PL_TIMER_H
#define PL_TIMER_H

#include "pl.h"

typedef struct pl_timer {
  struct pl_timer *next, *prev; /* NULL when not set */
  uint64_t when_ns;
} pl_timer;

typedef struct pl_wheel pl_wheel;

pl_wheel *pl_wheel_new(uint64_t now_ns);
void pl_wheel_free(pl_wheel *w); /* timers still set are forgotten */
/* Sets or moves. A time in the past fires at the next expiry call. PL_NEVER cancels. */
void pl_wheel_set(pl_wheel *w, pl_timer *t, uint64_t when_ns);
void pl_wheel_cancel(pl_wheel *w, pl_timer *t);
/* Lower bound of the next expiry, PL_NEVER if none: waking then either fires a timer or gives a later bound. */
uint64_t pl_wheel_deadline(const pl_wheel *w);
/* Returns one due timer, removed from the wheel, or NULL. Call until NULL. */
pl_timer *pl_wheel_expire(pl_wheel *w, uint64_t now_ns);

#endif
