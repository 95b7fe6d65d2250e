/* Receive side of a stream: buffer, out-of-order ranges, acknowledgements, advertised windows. transport.md 4.3, 4.5;
 * docs/wire-extensions.md 3.
 *
 * Any byte range is taken that overlaps what is missing; other implementations re-send exact segments, our own kind may cut
 * anew. Acknowledgements leave from pl_stream_next, that is, once per receive batch. */
#include "stream_internal.h"

#include <stdlib.h>

#define DUPS_OWED_MAX 16u /* acknowledgements per batch toward a sender that counts duplicates */
#define DUP_THRESH 3u
#define RECV_WINDOW_START (1u << 20)
#define ROUND_MIN_NS (2 * PL_NS_PER_MS)       /* a reader that shares its core with others is away for so long */
#define ROUND_UNKNOWN_NS (200 * PL_NS_PER_MS) /* round trip taken for granted while there is no sample */
#define ROUND_LATE 8u
#define READ_ROUNDS 6u

/* ---- windows ---- */

/* Plain: a little more is kept than is advertised, for peers that must not be shown a closed window. */
static uint64_t plain_reserve(const pl_stream *s) { return s->cfg.recv_buffer_plain / 8; }

/* Bytes from rcv_read on that may be buffered: our own kind keeps to what it was promised, others have the reserve on top. */
static uint64_t hard_limit(const pl_stream *s) {
  if (!s->options) return s->cfg.recv_buffer_plain + plain_reserve(s);
  return pl_max64(s->adv_edge, s->rcv_nxt + s->local_opt.max_segment) - s->rcv_read;
}

uint64_t pl_recv_window_start(const pl_stream *s) { return pl_min64(RECV_WINDOW_START, s->cfg.recv_buffer); }

/* The window follows the reader: several times what it takes in a round trip, so that it is not the limit of a sender that doubles its
 * rate every round trip, nor of one that mends a hole behind a full queue whose repair was lost too; a slow reader, or one of many
 * streams, has no megabytes waiting for it. */
static void follow_reader(pl_stream *s, uint64_t now) {
  uint64_t rtt = pl_min_rtt(s), round = pl_max64(rtt ? rtt : ROUND_UNKNOWN_NS, ROUND_MIN_NS), took = now - s->rcv_round_ns;
  if (took < round) return;
  uint64_t bytes = s->rcv_read - s->rcv_round_read;
  if (took > ROUND_LATE * round) bytes = bytes / took * (ROUND_LATE * round); /* it slept in between */
  s->rcv_window = pl_max64(s->rcv_window, pl_min64(READ_ROUNDS * bytes, s->cfg.recv_buffer));
  s->rcv_round_ns = now;
  s->rcv_round_read = s->rcv_read;
}

/* What may be promised: the configured buffer, less when the memory shared by all streams runs short. A quarter of what is left
 * to each, so that many streams together approach the limit gently. */
static uint64_t promise(const pl_stream *s) {
  uint64_t max = s->options ? s->rcv_window : s->cfg.recv_buffer_plain;
  return pl_min64(max, pl_max64(s->rcv.cap + pl_budget_left(s->cfg.budget) / 4, 65536));
}

static uint32_t plain_slots(const pl_stream *s) {
  uint64_t unread = s->rcv_nxt - s->rcv_read, max = promise(s);
  uint64_t slots = unread < max ? (max - unread) / PL_PLAIN_SLOT : 0;
  if (slots) return slots < 65535 ? (uint32_t)slots : 65535;
  /* Older releases read 0 as "no limit" and newer ones as "stop": 1 while the reserve lasts serves both, then the truth,
   * unless the peer is known to be of the older kind. */
  return s->peer_zero_open || unread < max + plain_reserve(s) ? 1 : 0;
}

uint16_t pl_recv_window(pl_stream *s) {
  if (!s->options) {
    s->adv_window = plain_slots(s);
    return (uint16_t)s->adv_window;
  }
  /* A promise is not taken back: the edge only moves up. */
  uint64_t edge = pl_max64(s->adv_edge, s->rcv_read + promise(s));
  uint64_t w = edge > s->rcv_nxt ? (edge - s->rcv_nxt) >> s->local_opt.window_shift : 0;
  if (w > 65535) w = 65535;
  s->adv_edge = pl_max64(s->adv_edge, s->rcv_nxt + (w << s->local_opt.window_shift));
  s->adv_window = (uint32_t)w;
  return (uint16_t)w;
}

static bool window_update_due(const pl_stream *s) {
  if (!s->options) {
    uint32_t max = s->cfg.recv_buffer_plain / PL_PLAIN_SLOT, slots = plain_slots(s), few = max / 4 < 8 ? max / 4 : 8;
    if (!few) few = 1;
    return slots > s->adv_window && (slots - s->adv_window >= (max >= 4 ? max / 4 : 1) || (s->adv_window <= few && slots >= s->adv_window + few));
  }
  uint64_t window = promise(s), edge = s->rcv_read + window, now_open = edge > s->rcv_nxt ? edge - s->rcv_nxt : 0;
  uint64_t open = s->adv_edge > s->rcv_nxt ? s->adv_edge - s->rcv_nxt : 0;
  uint64_t two = pl_min64(2 * (uint64_t)s->local_opt.max_segment, window / 2);
  return now_open > open && (now_open - open >= window / 4 || (open < two && now_open >= two));
}

/* ---- out-of-order ranges ---- */

/* Adds [start, end). False when the table is full or memory is out. */
static bool add_range(pl_stream *s, uint64_t start, uint64_t end) {
  uint32_t lo = 0, hi = s->n_ranges;
  if (hi && s->ranges[hi - 1].end < start) {
    lo = hi; /* the common case: behind everything */
  } else {
    while (lo < hi) {
      uint32_t mid = lo + (hi - lo) / 2;
      if (s->ranges[mid].end < start)
        lo = mid + 1;
      else
        hi = mid;
    }
  }
  if (lo < s->n_ranges && s->ranges[lo].start <= end) {
    pl_range *r = &s->ranges[lo];
    if (start < r->start) r->start = start;
    if (end > r->end) r->end = end;
    uint32_t next = lo + 1;
    while (next < s->n_ranges && s->ranges[next].start <= r->end) {
      if (s->ranges[next].end > r->end) r->end = s->ranges[next].end;
      next++;
    }
    memmove(r + 1, s->ranges + next, (s->n_ranges - next) * sizeof *r);
    s->n_ranges -= next - lo - 1;
    return true;
  }
  if (s->n_ranges == (s->options ? PL_RANGES_OWN : PL_RANGES_PLAIN)) return false;
  if (s->n_ranges == s->ranges_cap) {
    uint32_t cap = s->ranges_cap ? 2 * s->ranges_cap : 16;
    pl_range *grown = realloc(s->ranges, cap * sizeof *grown);
    if (!grown) return false;
    pl_budget_take(s->cfg.budget, (cap - s->ranges_cap) * sizeof *grown);
    s->ranges = grown;
    s->ranges_cap = cap;
  }
  memmove(s->ranges + lo + 1, s->ranges + lo, (s->n_ranges - lo) * sizeof *s->ranges);
  s->ranges[lo] = (pl_range){start, end};
  s->n_ranges++;
  return true;
}

/* rcv_nxt moves to at least `to`, and on through ranges that now join. */
static void advance(pl_stream *s, uint64_t to) {
  uint32_t gone = 0;
  while (gone < s->n_ranges && s->ranges[gone].start <= to) {
    if (s->ranges[gone].end > to) to = s->ranges[gone].end;
    gone++;
  }
  if (gone) {
    memmove(s->ranges, s->ranges + gone, (s->n_ranges - gone) * sizeof *s->ranges);
    s->n_ranges -= gone;
  }
  s->rcv_nxt = to;
  s->episode_segs = 0;
}

void pl_recv_trim(pl_stream *s) {
  if (s->n_ranges) return;
  if (s->rcv_read == s->rcv_nxt) {
    pl_byte_ring_release(&s->rcv, &s->cfg);
    s->rcv_window = pl_recv_window_start(s);
  }
  if (s->ranges) {
    pl_budget_give(s->cfg.budget, s->ranges_cap * sizeof *s->ranges);
    free(s->ranges);
    s->ranges = NULL;
    s->ranges_cap = 0;
  }
}

/* ---- arrival ---- */

static void out_of_order(pl_stream *s) {
  s->ack_due = true;
  if (s->options) return;
  if (s->acks_owed < DUPS_OWED_MAX) s->acks_owed++;
  if (s->episode_segs < DUP_THRESH && ++s->episode_segs == DUP_THRESH) s->empties_owed = DUP_THRESH;
}

static void in_order(pl_stream *s, uint64_t now) {
  s->pending_segs++;
  if (s->n_ranges || s->pending_segs >= 2 || s->quick_acks) {
    if (s->quick_acks) s->quick_acks--;
    s->ack_due = true;
  } else if (s->at[PL_T_ACK] == PL_NEVER) {
    s->at[PL_T_ACK] = now + PL_DELACK_NS;
  }
}

unsigned pl_recv_data(pl_stream *s, const pl_packet *pkt, uint64_t now) {
  s->n_segs_recv++;
  int64_t d = pl_seq_cmp(pkt->seq, pl_rcv_seq(s, s->rcv_nxt));
  int64_t e = d + pkt->len;
  if (e <= 0) { /* old: duplicate, or a probe for the window */
    s->ack_due = true;
    return 0;
  }
  uint32_t cut = d < 0 ? (uint32_t)-d : 0;
  uint64_t start = s->rcv_nxt + (uint64_t)(d < 0 ? 0 : d), end = s->rcv_nxt + (uint64_t)e;
  if (s->fin_seen && end > s->peer_fin_off) end = s->peer_fin_off;
  uint64_t limit = s->rcv_read + hard_limit(s);
  if (s->options && end > limit) end = limit;
  if (start >= end || end > limit) { /* no room (or behind the FIN): not acknowledged, but the window is shown */
    s->ack_due = true;
    return 0;
  }
  if (end - s->rcv_read > s->rcv.cap) {
    uint64_t top = s->n_ranges ? s->ranges[s->n_ranges - 1].end : s->rcv_nxt;
    if (s->rcv_read == top) s->rcv.base = s->rcv_read;
    if (pl_byte_ring_grow(&s->rcv, s->rcv_read, top, end - s->rcv_read, hard_limit(s), &s->cfg) != PL_OK) {
      s->ack_due = true;
      return 0;
    }
    pl_stream_trim_later(s, now);
  }
  pl_byte_ring_put(&s->rcv, start, pkt->payload + cut, (size_t)(end - start));
  if (start > s->rcv_nxt) {
    if (add_range(s, start, end)) s->recent = start;
    out_of_order(s);
    return 0;
  }
  advance(s, end);
  in_order(s, now);
  unsigned ev = PL_SEV_READABLE;
  if (s->fin_seen && !s->fin_done) {
    s->at[PL_T_HOLD] = now + s->cfg.linger_ns;
    if (s->rcv_nxt == s->peer_fin_off) ev |= pl_stream_fin_reached(s, now);
  }
  return ev;
}

uint64_t pl_recv_fin_ack(const pl_stream *s) { return s->rcv_nxt + (s->fin_done ? 1 : 0); }

/* ---- acknowledgements ---- */

/* The range that changed last, then the others in turn, so that each is told several times however many there are. */
static unsigned choose_blocks(pl_stream *s, pl_sack_block *b) {
  unsigned max = s->options ? s->peer_opt.max_sack : PL_SACK_PLAIN_MAX, n = 0;
  uint32_t first = 0;
  for (uint32_t lo = 0, hi = s->n_ranges; lo < hi;) {
    uint32_t mid = lo + (hi - lo) / 2;
    if (s->ranges[mid].start <= s->recent) {
      first = mid;
      lo = mid + 1;
    } else {
      hi = mid;
    }
  }
  uint32_t i = s->n_ranges <= max ? 0 : s->sack_cursor % s->n_ranges;
  b[n++] = (pl_sack_block){pl_rcv_seq(s, s->ranges[first].start), pl_rcv_seq(s, s->ranges[first].end)};
  for (uint32_t seen = 0; seen < s->n_ranges && n < max; seen++, i = (i + 1) % s->n_ranges) {
    if (i == first) continue;
    b[n++] = (pl_sack_block){pl_rcv_seq(s, s->ranges[i].start), pl_rcv_seq(s, s->ranges[i].end)};
  }
  s->sack_cursor = i;
  return n;
}

int pl_recv_next_ack(pl_stream *s, uint64_t now, bool first, pl_stream_out *out) {
  if (s->n_ranges && s->ack_due) {
    uint8_t owed = s->acks_owed;
    pl_sack_block b[PL_SACK_MAX];
    unsigned n = choose_blocks(s, b);
    pl_stream_fill(s, out, PL_FLAG_ACK, s->nxt, now);
    out->p1 = s->scratch;
    out->n1 = (uint32_t)pl_sack_write(s->scratch, b, n);
    s->n_sack_sent++;
    if (owed > 1) {
      s->acks_owed = (uint8_t)(owed - 1);
      s->ack_due = true;
    }
    return 1;
  }
  if (s->empties_owed) {
    s->empties_owed--;
    if (s->n_ranges) {
      pl_stream_fill(s, out, PL_FLAG_ACK, s->nxt, now);
      return 1;
    }
    s->empties_owed = 0;
  }
  if (first || !s->ack_due) return 0;
  pl_stream_fill(s, out, PL_FLAG_ACK, s->nxt, now);
  return 1;
}

/* ---- reading ---- */

size_t pl_stream_readable(const pl_stream *s) { return (size_t)(s->rcv_nxt - s->rcv_read); }

unsigned pl_stream_peek(const pl_stream *s, const uint8_t *p[2], size_t n[2]) {
  return pl_byte_ring_spans(&s->rcv, s->rcv_read, pl_stream_readable(s), p, n);
}

void pl_stream_consume(pl_stream *s, size_t n, uint64_t now) {
  size_t have = pl_stream_readable(s);
  s->rcv_read += n < have ? n : have;
  if (s->options) follow_reader(s, now);
  if (s->rcv_read == s->rcv_nxt) {
    if (!s->n_ranges) s->rcv.base = s->rcv_nxt;
    pl_stream_trim_later(s, now);
    if (s->wait_over) s->at[PL_T_WAIT] = now;
  }
  if (s->state == PL_ST_ESTABLISHED || s->state == PL_ST_FIN_WAIT) {
    if (!s->fin_done && window_update_due(s)) s->ack_due = true;
  }
}

bool pl_stream_eof(const pl_stream *s) { return s->fin_done && s->rcv_read == s->rcv_nxt; }
