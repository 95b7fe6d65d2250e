/* What nobody waits for goes with what comes next. In a conversation every turn counts: a client that ends a stream often dials the next one at
 * once, and if both leave in one train, the peer has one turn of work and its client one wake-up. So there a Close waits a moment for the
 * client's next word, and the CloseOK that a client has asked for goes with the next frame that it is sent. */
#include "local_internal.h"

#define HOLD_NS (30 * PL_NS_PER_US)
#define PATIENCE_NS (200 * PL_NS_PER_US)

void pl_local_brisk(pl_local *l, bool brisk) { l->brisk = brisk; }

bool pl_client_hold_close(pl_local *l, pl_client *c, bool last) {
  if (!c->held) {
    if (!last || !l->brisk || l->holder || c->hup) return false;
    l->holder = c;
    l->hold_ns = l->now_ns + HOLD_NS;
    c->held = true;
    return true;
  }
  if (last && l->holder == c && !c->hup) return true;
  pl_client_no_hold(l, c);
  c->held = false;
  return false;
}

void pl_client_no_hold(pl_local *l, const pl_client *c) {
  if (l->holder == c) l->holder = NULL;
}

bool pl_client_may_wait(const pl_local *l, const pl_client *c) { return l->brisk && !l->patient && !pl_client_has_output(c); }

void pl_client_wait(pl_local *l, pl_client *c) {
  l->patient = c;
  l->patient_ns = l->now_ns + PATIENCE_NS;
}

void pl_client_no_wait(pl_local *l, const pl_client *c) {
  if (l->patient == c) l->patient = NULL;
}

void pl_local_now_or_later(pl_local *l) {
  if (l->holder && l->now_ns >= l->hold_ns) {
    pl_local_work(l, l->holder, true);
    l->holder = NULL;
  }
  if (l->patient && l->now_ns >= l->patient_ns) {
    pl_local_work(l, l->patient, false);
    l->patient = NULL;
  }
}

uint64_t pl_local_later_ns(const pl_local *l) {
  return pl_min64(l->holder ? l->hold_ns : PL_NEVER, l->patient ? l->patient_ns : PL_NEVER);
}
