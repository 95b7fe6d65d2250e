/* Byte ring of a stream: growth, copies, spans. */
#include "stream_ring.h"

#include <stdlib.h>

/* Below this size growth ignores the budget: a stream must be able to move at all. */
#define RING_ALWAYS 65536u

void pl_spares_free(pl_spares *k) {
  while (k->n) free(k->p[--k->n]);
}

static uint8_t *take(uint64_t cap, pl_spares *k) {
  return cap == PL_RING_MIN && k && k->n ? k->p[--k->n] : malloc((size_t)cap);
}

static void give(uint8_t *p, uint32_t cap, pl_spares *k) {
  if (cap == PL_RING_MIN && k && k->n < PL_SPARES)
    k->p[k->n++] = p;
  else
    free(p);
}

int pl_byte_ring_grow(pl_byte_ring *r, uint64_t from, uint64_t to, uint64_t need, uint64_t hard, const pl_stream_cfg *cfg) {
  if (need <= r->cap) return PL_OK;
  if (need > hard) return PL_ELIMIT;
  uint64_t cap = r->cap ? r->cap : PL_RING_MIN;
  while (cap < need) cap *= 2;
  if (cap > 1u << 30) return PL_ELIMIT;
  uint64_t more = cap - r->cap;
  if (cap > RING_ALWAYS && more > pl_budget_left(cfg->budget)) return PL_ELIMIT;
  uint8_t *p = take(cap, cfg->spares);
  if (!p) return PL_ENOMEM;
  if (to > from) {
    const uint8_t *span[2];
    size_t len[2];
    unsigned n = pl_byte_ring_spans(r, from, (size_t)(to - from), span, len);
    memcpy(p, span[0], len[0]);
    if (n > 1) memcpy(p + len[0], span[1], len[1]);
  }
  give(r->p, r->cap, cfg->spares);
  r->p = p;
  r->cap = (uint32_t)cap;
  r->base = from;
  pl_budget_take(cfg->budget, more);
  return PL_OK;
}

void pl_byte_ring_release(pl_byte_ring *r, const pl_stream_cfg *cfg) {
  if (!r->cap) return;
  give(r->p, r->cap, cfg->spares);
  pl_budget_give(cfg->budget, r->cap);
  r->p = NULL;
  r->cap = 0;
}

void pl_byte_ring_put(pl_byte_ring *r, uint64_t off, const uint8_t *data, size_t n) {
  if (!n) return;
  uint32_t pos = pl_byte_ring_pos(r, off);
  size_t first = r->cap - pos;
  if (first > n) first = n;
  memcpy(r->p + pos, data, first);
  if (n > first) memcpy(r->p, data + first, n - first);
}

unsigned pl_byte_ring_spans(const pl_byte_ring *r, uint64_t off, size_t n, const uint8_t *p[2], size_t len[2]) {
  p[0] = p[1] = NULL;
  len[0] = len[1] = 0;
  if (!n) return 0;
  uint32_t pos = pl_byte_ring_pos(r, off);
  size_t first = r->cap - pos;
  p[0] = r->p + pos;
  if (first >= n) {
    len[0] = n;
    return 1;
  }
  len[0] = first;
  p[1] = r->p;
  len[1] = n - first;
  return 2;
}
