/* Frames that came before their key.
 *
 * A peer that knows our key beforehand (docs/wire-extensions.md 9) sends the SYN of its first stream right behind its key. We may still be
 * asking the registry whose signature that is, or the network has turned the two round. So a few short frames without a key are kept for a
 * moment. Anybody can send such frames: those of others are displaced, never anything else, and they open or they do not. */
#include "engine_internal.h"

static pl_early *set_of(pl_engine *e, uint32_t node) {
  uint64_t h = (node ^ e->rng[3]) * 0x9e3779b97f4a7c15ull;
  return e->early + (h >> 40) % (PL_EARLY / PL_EARLY_WAYS) * PL_EARLY_WAYS;
}

/* Free slots have the time 0: they come first. */
static pl_early *oldest(pl_early *set) {
  pl_early *at = set;
  for (pl_early *i = set + 1; i < set + PL_EARLY_WAYS; i++)
    if (i->at_ns < at->at_ns) at = i;
  return at;
}

void pl_early_keep(pl_engine *e, uint32_t node, const uint8_t *p, size_t len, const pl_addr *from, bool relayed) {
  if (len > PL_EARLY_BYTES) return;
  pl_early *at = oldest(set_of(e, node));
  at->node = node;
  at->len = (uint32_t)len;
  at->relayed = relayed;
  at->from = *from;
  at->at_ns = e->now_ns;
  memcpy(at->data, p, len);
}

void pl_early_open(pl_engine *e, pl_peer *p) {
  pl_early *set = set_of(e, p->node);
  uint64_t before = e->st.opened_ok;
  for (unsigned i = 0; i < PL_EARLY_WAYS; i++) {
    pl_early *at = NULL;
    for (pl_early *s = set; s < set + PL_EARLY_WAYS; s++)
      if (s->at_ns && s->node == p->node && (!at || s->at_ns < at->at_ns)) at = s;
    if (!at) break;
    bool stale = e->now_ns - at->at_ns > PL_EARLY_NS;
    at->at_ns = 0;
    if (!stale) pl_session_on_pils(e, at->data, at->len, &at->from, at->relayed);
  }
  e->st.opened_early += e->st.opened_ok - before;
}
