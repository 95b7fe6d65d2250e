/* What rides in stream payloads: SACK blocks (transport.md 4.3) and stream options (docs/wire-extensions.md 3). */
#include "wire.h"

enum { SACK_HEAD = 5, SACK_BLOCK = 8 };

static size_t left(const uint8_t *p, const uint8_t *end) { return p < end ? (size_t)(end - p) : 0; }

unsigned pl_sack_parse(const uint8_t *p, const uint8_t *end, unsigned max, pl_sack_block *out) {
  size_t n = left(p, end);
  if (n < SACK_HEAD || memcmp(p, "SACK", 4) != 0) return 0;
  unsigned count = p[4];
  if (count > max || n - SACK_HEAD < (size_t)count * SACK_BLOCK) return 0;
  for (unsigned i = 0; i < count; i++) {
    const uint8_t *b = p + SACK_HEAD + (size_t)i * SACK_BLOCK;
    out[i] = (pl_sack_block){.left = pl_get32(b), .right = pl_get32(b + 4)};
  }
  return count;
}

size_t pl_sack_write(uint8_t *out, const pl_sack_block *blocks, unsigned n) {
  memcpy(out, "SACK", 4);
  out[4] = (uint8_t)n;
  for (unsigned i = 0; i < n; i++) {
    uint8_t *b = out + SACK_HEAD + (size_t)i * SACK_BLOCK;
    pl_put32(b, blocks[i].left);
    pl_put32(b + 4, blocks[i].right);
  }
  return SACK_HEAD + (size_t)n * SACK_BLOCK;
}

bool pl_sack_ambiguous(const uint8_t *p, size_t len) {
  return len >= SACK_HEAD && memcmp(p, "SACK", 4) == 0 && p[4] >= 1 && p[4] <= PL_SACK_MAX;
}

bool pl_synopt_parse(const uint8_t *p, const uint8_t *end, pl_synopt *out) {
  if (left(p, end) < PL_SYNOPT_SIZE || memcmp(p, "PLX1", 4) != 0) return false;
  *out = (pl_synopt){
      .window_shift = p[4],
      .max_sack = p[5],
      .max_segment = pl_get16(p + 6),
      .reorder_segments = pl_get32(p + 8),
      .flags = pl_get32(p + 12),
  };
  return true;
}

void pl_synopt_write(uint8_t out[PL_SYNOPT_SIZE], const pl_synopt *o) {
  memcpy(out, "PLX1", 4);
  out[4] = o->window_shift;
  out[5] = o->max_sack;
  pl_put16(out + 6, o->max_segment);
  pl_put32(out + 8, o->reorder_segments);
  pl_put32(out + 12, o->flags);
}
