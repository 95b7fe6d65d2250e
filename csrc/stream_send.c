/* Send side of a stream: buffer, segmentation, pacing, and the choice of the next data packet. transport.md 4.3 to 4.8, 9.1.
 *
 * Toward other implementations a segment's boundaries are frozen when it is first sent, at most min(window, 128) segments are
 * unacknowledged, and none is larger than 4096 bytes. Toward our own kind the window counts bytes, and a lost segment
 * that has become too large for the path is resent in pieces. No segment ever begins with what a receiver would take for SACK. */
#include "stream_internal.h"

#include <stdlib.h>

#define PACE_CATCH_UP_NS PL_NS_PER_MS /* a late wake-up may be made good this far */
#define PACE_MIN_RATE 16384u          /* bytes per second: no estimate may stop a stream */
#define PROBE_MAX_NS (10 * PL_NS_PER_S)
#define SEND_WAITING_MIN (256u * 1024u) /* what an application can hand over before it has to be woken again */

/* ---- buffer ---- */

static uint64_t window_bytes(const pl_stream *s) {
  uint64_t w = s->cc.cwnd;
  if (!s->srtt_ns || s->srtt_ns >= PL_FAST_RTT_NS || s->rto_count) return w;
  uint32_t senders = s->cfg.budget && s->cfg.budget->senders ? s->cfg.budget->senders : 1;
  uint64_t least = pl_min64(PL_FAST_CWND_MIN, PL_FAST_TOTAL / senders);
  return pl_max64(w, pl_max64(s->fast_cwnd / senders, least));
}

void pl_send_count(pl_stream *s) {
  bool now = s->una != s->end;
  if (now == s->sending) return;
  s->sending = now;
  if (!s->cfg.budget) return;
  if (now)
    s->cfg.budget->senders++;
  else
    s->cfg.budget->senders--;
}

static uint64_t held(const pl_stream *s) { return s->end - s->una; }

/* What may be in flight and half as much waiting behind it. What the peer has beyond a hole does not count: the stream must not stop
 * for want of bytes while the hole is mended. */
uint64_t pl_send_limit(const pl_stream *s) {
  uint64_t window = window_bytes(s), arrived = s->nxt - s->una - s->in_flight - s->lost_bytes;
  window = pl_min64(window, s->options ? s->peer_edge - s->una : (uint64_t)pl_send_unacked_max(s) * pl_send_mss(s));
  return pl_min64(window + pl_max64(window / 2, SEND_WAITING_MIN) + arrived, s->cfg.send_buffer);
}

static bool can_write(const pl_stream *s) {
  return !s->closing && (s->state == PL_ST_SYN_SENT || s->state == PL_ST_ESTABLISHED);
}

/* Makes room for up to `want` more bytes; returns how many fit. */
static size_t make_room(pl_stream *s, size_t want) {
  uint64_t limit = pl_send_limit(s), have = held(s);
  if (have >= limit) return 0;
  if (want > limit - have) want = (size_t)(limit - have);
  if (have + want > s->snd.cap) {
    if (!have) s->snd.base = s->end;
    uint64_t bound = pl_max64(limit, PL_RING_MIN);
    while (pl_byte_ring_grow(&s->snd, s->una, s->end, have + want, bound, &s->cfg) != PL_OK) {
      /* Short of memory: take what fits without growing, or with growing less. */
      if (have + want <= s->snd.cap) break;
      if (have < s->snd.cap) {
        want = (size_t)(s->snd.cap - have);
        break;
      }
      if (want <= PL_RING_MIN / 4) return 0;
      want /= 2;
    }
  }
  return want;
}

size_t pl_stream_writable(const pl_stream *s) {
  uint64_t limit = pl_send_limit(s);
  return can_write(s) && held(s) < limit ? (size_t)(limit - held(s)) : 0;
}

size_t pl_stream_unacked(const pl_stream *s) { return (size_t)held(s); }

int64_t pl_stream_write(pl_stream *s, const uint8_t *data, size_t len) {
  if (!can_write(s)) return PL_ESTATE;
  size_t n = len ? make_room(s, len) : 0;
  if (n) {
    pl_byte_ring_put(&s->snd, s->end, data, n);
    s->end += n;
    pl_send_count(s);
  }
  if (n < len) s->want_write = true;
  return (int64_t)n;
}

size_t pl_stream_reserve(pl_stream *s, size_t want, uint8_t **p) {
  *p = NULL;
  if (!can_write(s) || !want) return 0;
  size_t n = make_room(s, want);
  if (!n) {
    s->want_write = true;
    return 0;
  }
  uint32_t pos = pl_byte_ring_pos(&s->snd, s->end);
  if (n > s->snd.cap - pos) n = s->snd.cap - pos;
  *p = s->snd.p + pos;
  return n;
}

void pl_stream_commit(pl_stream *s, size_t len) {
  if (!can_write(s)) return;
  uint64_t room = s->snd.cap - held(s);
  s->end += len < room ? len : room;
  pl_send_count(s);
}

void pl_send_trim(pl_stream *s) {
  if (s->una != s->end) return;
  pl_byte_ring_release(&s->snd, &s->cfg);
  if (s->segs) {
    pl_budget_give(s->cfg.budget, (s->seg_mask + 1) * sizeof *s->segs);
    free(s->segs);
    s->segs = NULL;
  }
}

void pl_send_drop_all(pl_stream *s) {
  s->seg_head = s->seg_tail;
  s->flight.head = s->flight.tail = s->lost.head = s->lost.tail = PL_SEG_NONE;
  s->in_flight = s->lost_bytes = 0;
  s->sacked_segs = 0;
  s->cut_seg = PL_SEG_NONE;
  s->una = s->end = s->nxt;
  s->snd.base = s->end;
  pl_send_count(s);
  s->tlp_due = s->probe_due = false;
  s->at[PL_T_RTX] = s->at[PL_T_REORDER] = s->at[PL_T_PACE] = s->at[PL_T_PROBE] = s->at[PL_T_LINGER] = PL_NEVER;
}

/* ---- limits ---- */

uint32_t pl_send_mss(const pl_stream *s) {
  uint32_t limit = s->options ? s->peer_opt.max_segment : PL_SEGMENT_PLAIN_MAX;
  return s->mss < limit ? s->mss : limit;
}

uint32_t pl_send_unacked_max(const pl_stream *s) {
  if (s->options) return s->peer_opt.reorder_segments;
  return s->peer_slots < PL_PLAIN_UNACKED ? s->peer_slots : PL_PLAIN_UNACKED;
}

/* A packet of n bytes may leave under the congestion window. Something may always be in flight. */
static bool fits_window(const pl_stream *s, uint32_t n) { return !s->in_flight || s->in_flight + n <= window_bytes(s); }

/* ---- pacing: trains at line rate, gaps between trains ---- */

void pl_send_update_pacing(pl_stream *s) {
  uint64_t rate = s->cc.pacing_rate;
  if (!rate || !s->srtt_ns || s->srtt_ns < PL_FAST_RTT_NS) {
    s->pace_rate = 0;
    return;
  }
  if (rate < PACE_MIN_RATE) rate = PACE_MIN_RATE;
  s->pace_rate = rate;
  /* A millisecond's worth, 16 to 64 KB so that segmentation offload has something to work on; on slow paths 4 ms. */
  uint64_t train = pl_max64(rate / 1000, pl_min64(16384, rate / 250));
  train = pl_max64(pl_min64(train, 65536), 2 * (uint64_t)pl_send_mss(s));
  s->train_ns = train * PL_NS_PER_S / rate;
}

static bool paced(pl_stream *s, uint64_t now) {
  if (!s->pace_rate) return false;
  if (s->pace_wait && now < s->pace_next_ns) {
    s->at[PL_T_PACE] = s->pace_next_ns;
    return true;
  }
  s->pace_wait = false;
  if (s->pace_next_ns > now + s->train_ns) {
    s->pace_wait = true;
    s->at[PL_T_PACE] = s->pace_next_ns;
    return true;
  }
  return false;
}

static void charge(pl_stream *s, uint32_t n, uint64_t now) {
  s->at[PL_T_PACE] = PL_NEVER;
  if (!s->pace_rate) return;
  uint64_t floor = now > PACE_CATCH_UP_NS ? now - PACE_CATCH_UP_NS : 0;
  if (s->pace_next_ns < floor) s->pace_next_ns = floor;
  s->pace_next_ns += n * PL_NS_PER_S / s->pace_rate; /* payload only, as rates are measured */
}

/* ---- packets ---- */

static void fill_data(pl_stream *s, pl_stream_out *out, uint64_t off, uint32_t len, uint64_t now) {
  pl_stream_fill(s, out, PL_FLAG_ACK, off, now);
  const uint8_t *p[2];
  size_t n[2];
  pl_byte_ring_spans(&s->snd, off, len, p, n);
  out->p1 = p[0];
  out->n1 = (uint32_t)n[0];
  out->p2 = p[1];
  out->n2 = (uint32_t)n[1];
  s->n_segs_sent++;
  charge(s, len, now);
}

/* Length of a packet that starts at `off` and may have `len` bytes: 4 if its beginning would be taken for SACK. */
static uint32_t unambiguous(const pl_stream *s, uint64_t off, uint32_t len) {
  if (len < 5) return len;
  if (pl_byte_ring_at(&s->snd, off) != 'S') return len;
  uint8_t head[5];
  for (unsigned i = 0; i < 5; i++) head[i] = pl_byte_ring_at(&s->snd, off + i);
  return pl_sack_ambiguous(head, 5) ? 4 : len;
}

static void put_in_flight(pl_stream *s, uint32_t number, uint64_t now) {
  pl_seg *seg = pl_seg_at(s, number);
  pl_rate_on_send(s, seg, now);
  if (!s->in_flight && s->seg_head == number) s->rto_base_ns = now;
  seg->sent_ns = now;
  if (seg->sends < UINT8_MAX) seg->sends++;
  seg->state = PL_SEG_FLIGHT;
  s->in_flight += seg->len;
  pl_seg_push(s, &s->flight, number, false);
  pl_rtx_arm(s, now);
}

static void resend(pl_stream *s, uint32_t number, uint64_t now, pl_stream_out *out) {
  pl_seg *seg = pl_seg_at(s, number);
  uint64_t off = seg->off;
  uint32_t len = seg->len;
  bool last = true;
  if (s->options) {
    if (s->cut_seg == number && s->cut_len < len) {
      off += s->cut_len;
      len -= s->cut_len;
    } else {
      s->cut_seg = PL_SEG_NONE;
    }
    uint32_t n = unambiguous(s, off, len < pl_send_mss(s) ? len : pl_send_mss(s));
    last = n == len;
    s->cut_len = (s->cut_seg == number ? s->cut_len : 0) + n;
    s->cut_seg = last ? PL_SEG_NONE : number;
    len = n;
  }
  if (last) {
    pl_seg_unlink(s, &s->lost, number);
    s->lost_bytes -= seg->len;
    put_in_flight(s, number, now);
    s->undo_count++;
  }
  s->force_rtx = false;
  s->n_retransmits++;
  fill_data(s, out, off, len, now);
}

/* Tail loss probe without new data: the segment sent last once more. */
static int probe_tail(pl_stream *s, uint64_t now, pl_stream_out *out) {
  uint32_t number = s->flight.tail;
  if (number == PL_SEG_NONE) return 0;
  pl_seg *seg = pl_seg_at(s, number);
  if (s->options && seg->len > pl_send_mss(s)) return 0; /* too large for the path now: the timeout cuts it */
  pl_seg_unlink(s, &s->flight, number);
  s->in_flight -= seg->len;
  put_in_flight(s, number, now);
  s->n_retransmits++;
  fill_data(s, out, seg->off, seg->len, now);
  return 1;
}

static int send_new(pl_stream *s, uint32_t n, uint64_t now, pl_stream_out *out) {
  uint32_t number = s->seg_tail;
  pl_seg *seg = pl_seg_append(s);
  if (!seg) return 0; /* no memory: acknowledgements will free some */
  seg->off = s->nxt;
  seg->len = n;
  s->nxt += n;
  put_in_flight(s, number, now);
  s->n_bytes_sent += n;
  fill_data(s, out, seg->off, n, now);
  return 1;
}

/* Size of the new segment that windows (not congestion) allow now, 0 if none. */
static uint32_t new_size(pl_stream *s) {
  uint64_t unsent = s->end - s->nxt;
  uint32_t count = pl_seg_count(s), max = pl_send_unacked_max(s), mss = pl_send_mss(s);
  if (!unsent || s->fin_sent || count >= max) return 0;
  uint32_t n = unsent < mss ? (uint32_t)unsent : mss;
  if (s->options) {
    if (s->peer_edge <= s->nxt) return 0;
    uint64_t room = s->peer_edge - s->nxt;
    if (n > room) {
      if (count) return 0; /* no slivers while acknowledgements are coming anyway */
      n = (uint32_t)room;
    }
  }
  /* Short writes go out at once until they would use up the segments that may be out; then they gather. */
  if (n < mss && n == unsent && !s->closing && count && count >= max / 4) {
    s->short_held = true;
    return 0;
  }
  return unambiguous(s, s->nxt, n);
}

/* Peer's window closed and nothing out that would bring an acknowledgement: an already acknowledged byte is answered with
 * the present window by every receiver; empty packets are answered by none. */
static int probe_window(pl_stream *s, uint64_t now, pl_stream_out *out) {
  s->probe_due = false;
  if (s->seg_head != s->seg_tail || s->nxt == s->end) return 0;
  if (!s->una) return send_new(s, 1, now, out);
  pl_stream_fill(s, out, PL_FLAG_ACK, s->una - 1, now);
  out->p1 = &s->last_byte;
  out->n1 = 1;
  return 1;
}

static void arm_window_probe(pl_stream *s, uint64_t now) {
  if (s->seg_head != s->seg_tail || s->at[PL_T_PROBE] != PL_NEVER) return;
  if (!s->probe_interval_ns)
    s->probe_interval_ns = pl_rto(s);
  else
    s->probe_interval_ns = pl_min64(2 * s->probe_interval_ns, PROBE_MAX_NS);
  s->at[PL_T_PROBE] = now + s->probe_interval_ns;
}

int pl_send_next(pl_stream *s, uint64_t now, pl_stream_out *out) {
  if (s->probe_due && probe_window(s, now, out)) return 1;
  if (s->seg_head == s->seg_tail && s->nxt == s->end) return 0;
  if (s->tlp_due) {
    s->tlp_due = false;
    uint32_t n = s->lost.head == PL_SEG_NONE ? new_size(s) : 0;
    if (n && send_new(s, n, now, out)) return 1;
    if (probe_tail(s, now, out)) return 1;
  }
  if (s->lost.head != PL_SEG_NONE) {
    pl_seg *seg = pl_seg_at(s, s->lost.head);
    if (!s->force_rtx && (!fits_window(s, seg->len) || paced(s, now))) return 0;
    resend(s, s->lost.head, now, out);
    return 1;
  }
  uint32_t n = new_size(s);
  if (!n) {
    if (s->nxt != s->end) arm_window_probe(s, now);
    /* Neither loss nor the path limits what is out: rate samples from here on say little about the path. */
    if (s->in_flight < window_bytes(s)) s->app_limited_until = pl_max64(s->delivered + s->in_flight, 1);
    return 0;
  }
  if (!fits_window(s, n) || paced(s, now)) return 0;
  return send_new(s, n, now, out);
}
