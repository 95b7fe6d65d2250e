/* Byte ring addressed by stream offset: a power-of-two buffer that starts small, doubles when asked to hold more, and is given
 * back when idle. The send and the receive buffer of a stream are one each. Offsets count payload bytes from 0 and never wrap. */
#ifndef PL_STREAM_RING_H
#define PL_STREAM_RING_H

#include "stream.h"

#define PL_RING_MIN 16384u

typedef struct pl_byte_ring {
  uint8_t *p;
  uint32_t cap;  /* power of two; 0 = no memory held */
  uint64_t base; /* the offset stored at p[0]; moves to the front of the data whenever the ring is empty, so that a reader
                    who keeps up stays on the same few warm pages however large the ring once grew */
} pl_byte_ring;

/* Makes room for `need` bytes from offset `from`, keeping what is stored in [from, to). `hard` bounds `need`; the budget
 * bounds growth beyond 64 KiB. PL_OK, PL_ELIMIT (bound or budget) or PL_ENOMEM: nothing has changed then. */
int pl_byte_ring_grow(pl_byte_ring *r, uint64_t from, uint64_t to, uint64_t need, uint64_t hard, const pl_stream_cfg *cfg);
void pl_byte_ring_release(pl_byte_ring *r, const pl_stream_cfg *cfg);
/* Copies `n` bytes in at offset `off`. The caller has made room. */
void pl_byte_ring_put(pl_byte_ring *r, uint64_t off, const uint8_t *data, size_t n);
/* The bytes [off, off+n) as one or two spans; returns the number of spans. */
unsigned pl_byte_ring_spans(const pl_byte_ring *r, uint64_t off, size_t n, const uint8_t *p[2], size_t len[2]);

static inline uint32_t pl_byte_ring_pos(const pl_byte_ring *r, uint64_t off) {
  return (uint32_t)(off - r->base) & (r->cap - 1);
}
static inline uint8_t pl_byte_ring_at(const pl_byte_ring *r, uint64_t off) { return r->p[pl_byte_ring_pos(r, off)]; }

#endif
