/* Loss detection and round-trip time of a stream: RFC 6298 (RTO), RFC 8985 (RACK-TLP), rate samples.
 *
 * Segments in flight form a list in order of their last transmission, so RACK looks only at the front of it. Without
 * timestamps or D-SACK on the wire, a retransmission is known to have been needless when its acknowledgement comes back
 * sooner than a round trip allows, or when a segment given up as lost arrives without having been sent again; the reordering window
 * widens on such proof. */
#include "stream_internal.h"

#define TLP_MIN_NS (3 * PL_NS_PER_MS) /* a busy machine answers late; an early probe is a wasted packet */
#define MIN_RTT_BUCKET_NS (30 * PL_NS_PER_S)
#define REO_MULT_MAX 16u
#define REO_KEEP_RECOVERIES 16u
#define DUP_THRESH 3u
#define PEER_DELACK_PLAIN_NS (40 * PL_NS_PER_MS)

void pl_recovery_reset(pl_stream *s, uint64_t now) {
  s->srtt_ns = s->rttvar_ns = 0;
  s->min_rtt_now_ns = s->min_rtt_prev_ns = 0;
  s->min_rtt_since_ns = now;
  s->rack_rtt_ns = 0;
  s->reo_mult = 1;
  s->reo_recoveries = 0;
  s->fast_cwnd = PL_FAST_CWND;
  s->reordering = false;
  s->in_recovery = s->rto_recovery = s->force_rtx = s->tlp_out = false;
  s->undo_valid = false;
  s->rto_count = 0;
  s->rto_base_ns = now;
}

uint64_t pl_min_rtt(const pl_stream *s) {
  if (!s->min_rtt_prev_ns) return s->min_rtt_now_ns;
  return s->min_rtt_now_ns ? pl_min64(s->min_rtt_now_ns, s->min_rtt_prev_ns) : s->min_rtt_prev_ns;
}

void pl_rtt_sample(pl_stream *s, uint64_t rtt, uint64_t now) {
  if (!rtt) rtt = 1;
  if (!s->srtt_ns) {
    s->srtt_ns = rtt;
    s->rttvar_ns = rtt / 2;
  } else {
    uint64_t diff = rtt > s->srtt_ns ? rtt - s->srtt_ns : s->srtt_ns - rtt;
    s->rttvar_ns = (3 * s->rttvar_ns + diff) / 4;
    s->srtt_ns = (7 * s->srtt_ns + rtt) / 8;
    if (!s->srtt_ns) s->srtt_ns = 1;
  }
  if (now - s->min_rtt_since_ns >= MIN_RTT_BUCKET_NS) {
    s->min_rtt_prev_ns = now - s->min_rtt_since_ns >= 2 * MIN_RTT_BUCKET_NS ? 0 : s->min_rtt_now_ns;
    s->min_rtt_now_ns = 0;
    s->min_rtt_since_ns = now;
  }
  if (!s->min_rtt_now_ns || rtt < s->min_rtt_now_ns) s->min_rtt_now_ns = rtt;
}

static uint64_t rto_unbacked(const pl_stream *s) {
  if (!s->srtt_ns) return PL_RTO_INITIAL_NS;
  uint64_t rto = s->srtt_ns + pl_max64(10 * PL_NS_PER_MS, 4 * s->rttvar_ns);
  return pl_min64(pl_max64(rto, PL_RTO_MIN_NS), PL_RTO_MAX_NS);
}

uint64_t pl_rto(const pl_stream *s) {
  unsigned shift = s->rto_count < 8 ? s->rto_count : 8;
  return pl_min64(rto_unbacked(s) << shift, PL_RTO_MAX_NS);
}

/* ---- losing segments ---- */

static void enter_recovery(pl_stream *s, uint64_t now) {
  if (s->in_recovery) return;
  s->in_recovery = true;
  s->force_rtx = true;
  s->recovery_end = s->nxt;
  s->undo_count = 0;
  s->undo_valid = true;
  s->n_fast_retx++;
  s->fast_cwnd = s->fast_cwnd / 2 > PL_FAST_CWND_MIN ? s->fast_cwnd / 2 : PL_FAST_CWND_MIN;
  s->cc.ops->on_congestion(&s->cc, s->in_flight, now);
}

static uint32_t mark_lost(pl_stream *s, uint32_t number) {
  pl_seg *seg = pl_seg_at(s, number);
  pl_seg_unlink(s, &s->flight, number);
  s->in_flight -= seg->len;
  s->lost_bytes += seg->len;
  seg->state = PL_SEG_LOST;
  /* Marked in order of transmission, resent in order of position as far as that comes for free. */
  bool front = s->lost.head != PL_SEG_NONE && ((s->lost.head - number) & PL_SEG_MASK) < PL_SEG_MASK / 2;
  pl_seg_push(s, &s->lost, number, front);
  return seg->len;
}

static bool sent_before(uint64_t a_sent, uint64_t a_end, uint64_t b_sent, uint64_t b_end) {
  return a_sent < b_sent || (a_sent == b_sent && a_end < b_end);
}

static uint64_t reorder_window(const pl_stream *s) {
  if (!s->reordering && (s->in_recovery || s->sacked_segs >= DUP_THRESH)) return 0;
  return pl_min64(s->reo_mult * (pl_min_rtt(s) / 4), s->srtt_ns);
}

static void widen_window(pl_stream *s) {
  s->reordering = true;
  if (s->reo_mult < REO_MULT_MAX) s->reo_mult++;
  s->reo_recoveries = REO_KEEP_RECOVERIES;
}

void pl_rack_on_ack(pl_stream *s, const pl_latest *l, uint64_t now) {
  if (!l->any) return;
  uint64_t rtt = now - l->sent_ns;
  if (l->original_after_loss && !s->rto_recovery) widen_window(s);
  if (l->sends == 1) {
    if (l->end < s->rack_fack) s->reordering = true;
  } else if (rtt < pl_min_rtt(s) / 4 * 3) {
    return; /* the original was acknowledged: says nothing about this transmission */
  }
  if (l->end > s->rack_fack) s->rack_fack = l->end;
  if (!s->rack_rtt_ns || !sent_before(l->sent_ns, l->end, s->rack_sent_ns, s->rack_end)) {
    s->rack_sent_ns = l->sent_ns;
    s->rack_end = l->end;
    s->rack_rtt_ns = rtt ? rtt : 1;
  }
}

uint64_t pl_rack_detect(pl_stream *s, uint64_t now) {
  s->at[PL_T_REORDER] = PL_NEVER;
  if (!s->rack_rtt_ns) return 0;
  uint64_t lost = 0, window = reorder_window(s);
  for (uint32_t i = s->flight.head, next; i != PL_SEG_NONE; i = next) {
    pl_seg *seg = pl_seg_at(s, i);
    next = seg->next;
    if (!sent_before(seg->sent_ns, seg->off + seg->len, s->rack_sent_ns, s->rack_end)) break;
    uint64_t due = seg->sent_ns + s->rack_rtt_ns + window;
    if (due > now) {
      s->at[PL_T_REORDER] = due;
      break;
    }
    lost += mark_lost(s, i);
  }
  if (lost) enter_recovery(s, now);
  return lost;
}

void pl_rack_mark_head(pl_stream *s, uint64_t now) {
  if (s->seg_head == s->seg_tail || pl_seg_at(s, s->seg_head)->state != PL_SEG_FLIGHT) return;
  s->lost_unreported += mark_lost(s, s->seg_head);
  enter_recovery(s, now);
}

/* After a timeout that was none (the path only paused): what was given up is in flight after all. */
void pl_recovery_restore(pl_stream *s) {
  while (s->lost.tail != PL_SEG_NONE) {
    uint32_t i = s->lost.tail;
    pl_seg *seg = pl_seg_at(s, i);
    pl_seg_unlink(s, &s->lost, i);
    s->lost_bytes -= seg->len;
    s->in_flight += seg->len;
    seg->state = PL_SEG_FLIGHT;
    pl_seg_push(s, &s->flight, i, true);
  }
}

/* ---- tail loss probe and retransmission timeout ---- */

void pl_rtx_arm(pl_stream *s, uint64_t now) {
  if (s->seg_head == s->seg_tail) {
    s->at[PL_T_RTX] = PL_NEVER;
    return;
  }
  s->rtx_is_tlp = false;
  s->at[PL_T_RTX] = s->rto_base_ns + pl_rto(s);
  if (s->srtt_ns && !s->tlp_out && !s->in_recovery && !s->rto_count && s->flight.head != PL_SEG_NONE) {
    uint64_t pto = 2 * s->srtt_ns;
    if (s->flight.head == s->flight.tail) pto += s->options ? PL_DELACK_NS : PEER_DELACK_PLAIN_NS;
    uint64_t at = now + pl_max64(pto, TLP_MIN_NS);
    if (at < s->at[PL_T_RTX]) {
      s->at[PL_T_RTX] = at;
      s->rtx_is_tlp = true;
    }
  }
}

unsigned pl_rtx_fire(pl_stream *s, uint64_t now) {
  if (s->seg_head == s->seg_tail) return 0;
  if (s->rtx_is_tlp) {
    s->tlp_due = s->tlp_out = true;
    s->tlp_end = s->nxt;
    s->rto_base_ns = now;
    pl_rtx_arm(s, now);
    return 0;
  }
  if (s->rto_count >= PL_RTO_GIVE_UP) return pl_stream_die(s, true, PL_SEV_RESET);
  s->rto_count++;
  s->n_timeouts++;
  if (s->dialer == false && !s->confirmed) s->synack_due = true; /* the dialer drops data until it has it */
  /* A SACKed segment at the front: the receiver has thrown away what it had reported, so the marks mean nothing. */
  bool reneged = pl_seg_at(s, s->seg_head)->state == PL_SEG_SACKED;
  s->lost.head = s->lost.tail = s->flight.head = s->flight.tail = PL_SEG_NONE;
  s->in_flight = s->lost_bytes = 0;
  if (reneged) s->sacked_segs = 0;
  for (uint32_t i = s->seg_head; i != s->seg_tail; i = pl_seg_after(i)) {
    pl_seg *seg = pl_seg_at(s, i);
    if (seg->state == PL_SEG_SACKED && !reneged) continue;
    seg->state = PL_SEG_LOST;
    s->lost_bytes += seg->len;
    pl_seg_push(s, &s->lost, i, false);
  }
  s->at[PL_T_REORDER] = PL_NEVER;
  s->in_recovery = s->rto_recovery = true;
  s->force_rtx = true;
  s->recovery_end = s->nxt;
  s->undo_valid = s->rto_count == 1;
  s->undo_count = 0;
  s->tlp_out = s->tlp_due = false;
  s->cc.ops->on_timeout(&s->cc, now);
  s->rto_base_ns = now;
  pl_send_update_pacing(s);
  pl_rtx_arm(s, now);
  return 0;
}

/* ---- rate samples ---- */

void pl_rate_on_send(pl_stream *s, pl_seg *seg, uint64_t now) {
  if (!s->in_flight) s->first_tx_ns = s->delivered_ns = now;
  seg->first_tx_ns = s->first_tx_ns;
  seg->delivered = s->delivered;
  seg->delivered_ns = s->delivered_ns;
  seg->app_limited = s->app_limited_until != 0;
}
