/* The wheel against a plain list: every timer fires once, never early, at the first look after its time; deadlines are lower bounds
 * that lead to it in a few wakes. */
#include "check.h"
#include "timer.h"

#define TIMERS 200u

typedef struct entry {
  pl_timer t; /* first */
  bool set;
  uint64_t when;
} entry;

static uint64_t random_delay(uint64_t *seed) {
  uint64_t r = check_u64(seed);
  unsigned bits = (unsigned)(r % 44); /* from nanoseconds to hours */
  return check_u64(seed) & ((1ull << bits) - 1);
}

static void property(uint64_t seed) {
  static entry e[TIMERS];
  memset(e, 0, sizeof e);
  uint64_t now = check_u64(&seed) % 3 ? check_u64(&seed) >> 20 : 0, start = now, printed = seed;
  pl_wheel *w = pl_wheel_new(now);
  CHECK(w != NULL);
  unsigned fired = 0;
  for (unsigned step = 0; step < 4000; step++) {
    unsigned i = (unsigned)(check_u64(&seed) % TIMERS);
    switch (check_u64(&seed) % 8) {
      case 0:
        pl_wheel_cancel(w, &e[i].t);
        e[i].set = false;
        break;
      case 1: /* in the past, or never */
        e[i].when = check_u64(&seed) & 1 ? PL_NEVER : now - (now > start ? check_u64(&seed) % (now - start + 1) : 0);
        e[i].set = e[i].when != PL_NEVER;
        pl_wheel_set(w, &e[i].t, e[i].when);
        break;
      case 2: { /* time passes, by a little or to the deadline */
        uint64_t at = pl_wheel_deadline(w);
        if (check_u64(&seed) & 1 && at != PL_NEVER)
          now = pl_max64(now, at);
        else
          now += random_delay(&seed);
        break;
      }
      default:
        e[i].when = now + random_delay(&seed);
        e[i].set = true;
        pl_wheel_set(w, &e[i].t, e[i].when);
    }
    uint64_t min = PL_NEVER;
    for (unsigned k = 0; k < TIMERS; k++)
      if (e[k].set && e[k].when < min) min = e[k].when;
    if (pl_wheel_deadline(w) > min || (min == PL_NEVER) != (pl_wheel_deadline(w) == PL_NEVER)) fprintf(stderr, "seed %llu step %u\n", (unsigned long long)printed, step);
    CHECK(pl_wheel_deadline(w) <= min && (min == PL_NEVER) == (pl_wheel_deadline(w) == PL_NEVER));
    for (pl_timer *t; (t = pl_wheel_expire(w, now));) {
      entry *x = (entry *)t;
      CHECK(x->set && x->when <= now && !t->next && !t->prev);
      x->set = false;
      fired++;
    }
    for (unsigned k = 0; k < TIMERS; k++) CHECK(!e[k].set || e[k].when > now);
  }
  CHECK(fired > 100);
  for (unsigned k = 0; k < TIMERS; k++)
    if (e[k].set && k % 2) pl_wheel_cancel(w, &e[k].t), e[k].set = false;
  /* The rest, by deadlines alone: each is reached exactly when due, with few wakes for nothing. */
  unsigned wakes = 0, left = 0;
  for (unsigned k = 0; k < TIMERS; k++) left += e[k].set;
  unsigned total = left;
  while (left) {
    uint64_t at = pl_wheel_deadline(w), min = PL_NEVER;
    for (unsigned k = 0; k < TIMERS; k++)
      if (e[k].set && e[k].when < min) min = e[k].when;
    CHECK(at >= now && at <= min);
    bool first = at == now;
    now = at;
    wakes++;
    for (pl_timer *t; (t = pl_wheel_expire(w, now));) {
      entry *x = (entry *)t;
      CHECK(x->set && x->when == now);
      x->set = false;
      left--;
    }
    CHECK(!first || pl_wheel_deadline(w) > now); /* progress */
  }
  CHECK(wakes <= 8 * total + 8);
  CHECK(pl_wheel_deadline(w) == PL_NEVER && !pl_wheel_expire(w, PL_NEVER - 1));
  pl_wheel_free(w);
}

static void cases(void) {
  pl_wheel *w = pl_wheel_new(1000);
  pl_timer a = {0}, b = {0}, far = {0};
  CHECK(pl_wheel_deadline(w) == PL_NEVER && !pl_wheel_expire(w, 5000));
  pl_wheel_cancel(w, &a); /* not set: nothing happens */
  pl_wheel_set(w, &a, 7000);
  pl_wheel_set(w, &b, 7001);
  CHECK(pl_wheel_deadline(w) == 7000);
  CHECK(!pl_wheel_expire(w, 6999) && pl_wheel_expire(w, 7000) == &a && !pl_wheel_expire(w, 7000));
  pl_wheel_set(w, &b, PL_NEVER);
  CHECK(pl_wheel_deadline(w) == PL_NEVER && !b.next);
  pl_wheel_set(w, &a, 0); /* late when set: at the next look */
  CHECK(pl_wheel_deadline(w) <= 7000 && pl_wheel_expire(w, 7000) == &a);
  pl_wheel_set(w, &far, PL_NEVER - 1);
  CHECK(!pl_wheel_expire(w, 1ull << 62) && pl_wheel_expire(w, PL_NEVER - 1) == &far);
  pl_wheel_free(w);
  /* A long sleep: everything that became due meanwhile comes, over all levels. */
  w = pl_wheel_new(0);
  static pl_timer many[64];
  for (unsigned i = 0; i < 64; i++) pl_wheel_set(w, &many[i], (1ull << i) - 1);
  unsigned n = 0;
  while (pl_wheel_expire(w, PL_NEVER - 1)) n++;
  CHECK(n == 64);
  pl_wheel_free(w);
}

int main(void) {
  cases();
  uint64_t seed = check_seed("test_timer", 1);
  for (unsigned i = 0; i < 30; i++) property(seed + i);
  printf("test_timer: ok\n");
  return 0;
}
