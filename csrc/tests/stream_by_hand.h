/* One stream whose peer is the test: packets in and out one by one, on the test's clock. */
#ifndef PL_STREAM_BY_HAND_H
#define PL_STREAM_BY_HAND_H

#include "stream_sim.h"

#define MS PL_NS_PER_MS
#define S PL_NS_PER_S

static pl_budget budget;

static inline pl_stream_cfg cfg(void) {
  budget = (pl_budget){.limit = 256u << 20};
  pl_stream_cfg c = sim_cfg("cubic");
  c.budget = &budget;
  return c;
}

static inline pl_packet pkt(uint8_t flags, uint32_t seq, uint32_t ack, uint16_t window, const void *data, size_t len) {
  return (pl_packet){.flags = flags, .proto = PL_PROTO_STREAM, .seq = seq, .ack = ack, .window = window, .payload = data, .len = (uint16_t)len};
}

static inline unsigned give(pl_stream *s, uint8_t flags, uint32_t seq, uint32_t ack, uint16_t window, const void *data, size_t len, uint64_t now) {
  pl_packet p = pkt(flags, seq, ack, window, data, len);
  return pl_stream_recv(s, &p, now);
}

/* Expects exactly one packet to be ready. */
static inline pl_stream_out only(pl_stream *s, uint64_t now) {
  pl_stream_out o, none;
  CHECK(pl_stream_next(s, now, &o) == 1);
  uint8_t keep[5 + 8 * PL_SACK_MAX];
  bool small = o.n1 <= sizeof keep && !o.n2 && o.n1;
  if (small) memcpy(keep, o.p1, o.n1);
  CHECK(pl_stream_next(s, now, &none) == 0);
  if (small) {
    static uint8_t kept[sizeof keep];
    memcpy(kept, keep, o.n1);
    o.p1 = kept;
  }
  return o;
}

static inline void silent(pl_stream *s, uint64_t now) {
  pl_stream_out o;
  CHECK(pl_stream_next(s, now, &o) == 0);
}

/* Lets time pass until a packet is sent: some deadlines are only housekeeping. */
static inline pl_stream_out await(pl_stream *s, uint64_t *at) {
  pl_stream_out o;
  do {
    *at = pl_stream_deadline(s);
    CHECK(*at != PL_NEVER);
    CHECK(pl_stream_tick(s, *at) == 0);
  } while (!pl_stream_next(s, *at, &o));
  return o;
}

static inline void done(pl_stream *s) {
  pl_stream_free(s);
  CHECK(budget.used == 0);
}

/* A dialer at ISN 1000 whose peer is a plain one at ISN 0: first byte out 1001, first byte in 1. */
static inline pl_stream *opened(const pl_stream_cfg *c, uint64_t now) {
  pl_stream *s = pl_stream_dial(c, 1000, 1152, NULL, now);
  pl_stream_release(s, now);
  CHECK(only(s, now).flags == PL_FLAG_SYN);
  CHECK(give(s, PL_FLAG_SYN | PL_FLAG_ACK, 0, 1001, 512, NULL, 0, now + 10 * MS) & PL_SEV_OPENED);
  pl_stream_out o = only(s, now + 10 * MS);
  CHECK(o.flags == PL_FLAG_ACK && o.seq == 1001 && o.ack == 1 && o.window == 512 && !o.n1);
  return s;
}

#endif
