/* Hierarchical timing wheel (Varghese and Lauck, 1987): 8 levels of 64 slots cover 2^64 ns in ticks of 2^16 ns.
 *
 * A timer lies at the level of the highest 6-bit digit in which its tick differs from the wheel's, in the slot of that digit. So all of
 * a level is due before anything of the level above, and the first slot of the lowest occupied level holds the next timers. Within the
 * slot of the present tick times are compared exactly: granularity never delays a timer. */
#include "timer.h"

#include <stdlib.h>

enum { LEVELS = 8, DIGIT_BITS = 6, SLOTS = 1 << DIGIT_BITS, TICK_SHIFT = 16 };

struct pl_wheel {
  uint64_t tick;            /* no timer is set below, except those that were late when set: they lie in its own slot */
  uint64_t occupied[LEVELS]; /* bit s: slot s is not empty */
  pl_timer slots[LEVELS][SLOTS]; /* heads of circular lists */
};

pl_wheel *pl_wheel_new(uint64_t now_ns) {
  pl_wheel *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  w->tick = now_ns >> TICK_SHIFT;
  for (unsigned l = 0; l < LEVELS; l++)
    for (unsigned s = 0; s < SLOTS; s++) w->slots[l][s].next = w->slots[l][s].prev = &w->slots[l][s];
  return w;
}

void pl_wheel_free(pl_wheel *w) { free(w); }

static void insert(pl_wheel *w, pl_timer *t) {
  uint64_t tick = pl_max64(t->when_ns >> TICK_SHIFT, w->tick), diff = tick ^ w->tick;
  unsigned level = diff ? (63u - (unsigned)__builtin_clzll(diff)) / DIGIT_BITS : 0;
  unsigned slot = (unsigned)(tick >> (level * DIGIT_BITS)) & (SLOTS - 1);
  pl_timer *head = &w->slots[level][slot];
  t->next = head;
  t->prev = head->prev;
  head->prev->next = t;
  head->prev = t;
  w->occupied[level] |= 1ull << slot;
}

void pl_wheel_cancel(pl_wheel *w, pl_timer *t) {
  if (!t->next) return;
  pl_timer *next = t->next;
  t->prev->next = next;
  next->prev = t->prev;
  if (next->next == next) { /* only the head is left */
    size_t at = (size_t)(next - &w->slots[0][0]);
    w->occupied[at / SLOTS] &= ~(1ull << at % SLOTS);
  }
  t->next = t->prev = NULL;
}

void pl_wheel_set(pl_wheel *w, pl_timer *t, uint64_t when_ns) {
  pl_wheel_cancel(w, t);
  t->when_ns = when_ns;
  if (when_ns != PL_NEVER) insert(w, t);
}

/* The first slot in time: its level and number; false if the wheel is empty. */
static bool first_slot(const pl_wheel *w, unsigned *level, unsigned *slot) {
  for (unsigned l = 0; l < LEVELS; l++) {
    if (!w->occupied[l]) continue;
    *level = l;
    *slot = (unsigned)__builtin_ctzll(w->occupied[l]);
    return true;
  }
  return false;
}

/* First tick of a slot: the wheel's digits above the level, the slot's at it, zero below. */
static uint64_t slot_tick(const pl_wheel *w, unsigned level, unsigned slot) {
  unsigned shift = level * DIGIT_BITS;
  uint64_t above = w->tick >> shift >> DIGIT_BITS << DIGIT_BITS;
  return (above | slot) << shift;
}

uint64_t pl_wheel_deadline(const pl_wheel *w) {
  unsigned level, slot;
  if (!first_slot(w, &level, &slot)) return PL_NEVER;
  if (level > 0) return slot_tick(w, level, slot) << TICK_SHIFT;
  uint64_t min = PL_NEVER;
  const pl_timer *head = &w->slots[0][slot];
  for (const pl_timer *t = head->next; t != head; t = t->next) min = pl_min64(min, t->when_ns);
  return min;
}

/* Moves the timers of a slot that has come to the levels below. */
static void cascade(pl_wheel *w, unsigned level, unsigned slot) {
  pl_timer *head = &w->slots[level][slot], *t = head->next;
  head->next = head->prev = head;
  w->occupied[level] &= ~(1ull << slot);
  while (t != head) {
    pl_timer *next = t->next;
    insert(w, t);
    t = next;
  }
}

pl_timer *pl_wheel_expire(pl_wheel *w, uint64_t now_ns) {
  uint64_t now = pl_max64(now_ns >> TICK_SHIFT, w->tick);
  unsigned level, slot;
  while (first_slot(w, &level, &slot)) {
    uint64_t tick = slot_tick(w, level, slot);
    if (tick > now) break;
    w->tick = pl_max64(w->tick, tick);
    if (level > 0) {
      cascade(w, level, slot);
      continue;
    }
    pl_timer *head = &w->slots[0][slot];
    for (pl_timer *t = head->next; t != head; t = t->next) {
      if (t->when_ns > now_ns) continue;
      pl_wheel_cancel(w, t);
      return t;
    }
    return NULL; /* the slot of this very tick: the rest of it is still to come */
  }
  w->tick = now; /* every occupied slot begins later, so all keep their level */
  return NULL;
}
