/* The scoreboard: what an acknowledgement means for the segments that are out. transport.md 4.3, 4.5; RFC 2018, RFC 8985.
 *
 * Work is proportional to what is newly acknowledged: cumulative acknowledgement pops segments, a SACK block finds its first
 * segment by bisection and jumps over runs that are marked already (skip pointers with path halving). */
#include "stream_internal.h"

#include <stdlib.h>

/* ---- segments ---- */

pl_seg *pl_seg_append(pl_stream *s) {
  uint32_t count = pl_seg_count(s);
  if (!s->segs || count > s->seg_mask) {
    uint32_t places = s->segs ? (s->seg_mask + 1) * 2 : 16;
    pl_seg *grown = malloc(places * sizeof *grown);
    if (!grown) return NULL;
    for (uint32_t i = s->seg_head; i != s->seg_tail; i = pl_seg_after(i)) grown[i & (places - 1)] = *pl_seg_at(s, i);
    pl_budget_take(s->cfg.budget, (places - (s->segs ? s->seg_mask + 1 : 0)) * sizeof *grown);
    free(s->segs);
    s->segs = grown;
    s->seg_mask = places - 1;
  }
  uint32_t number = s->seg_tail;
  s->seg_tail = pl_seg_after(number);
  pl_seg *seg = pl_seg_at(s, number);
  memset(seg, 0, sizeof *seg);
  seg->next = seg->prev = PL_SEG_NONE;
  return seg;
}

void pl_seg_push(pl_stream *s, pl_seg_list *l, uint32_t number, bool front) {
  pl_seg *seg = pl_seg_at(s, number);
  seg->prev = front ? PL_SEG_NONE : l->tail;
  seg->next = front ? l->head : PL_SEG_NONE;
  if (seg->prev != PL_SEG_NONE)
    pl_seg_at(s, seg->prev)->next = number;
  else
    l->head = number;
  if (seg->next != PL_SEG_NONE)
    pl_seg_at(s, seg->next)->prev = number;
  else
    l->tail = number;
}

void pl_seg_unlink(pl_stream *s, pl_seg_list *l, uint32_t number) {
  pl_seg *seg = pl_seg_at(s, number);
  if (seg->prev != PL_SEG_NONE)
    pl_seg_at(s, seg->prev)->next = seg->next;
  else
    l->head = seg->next;
  if (seg->next != PL_SEG_NONE)
    pl_seg_at(s, seg->next)->prev = seg->prev;
  else
    l->tail = seg->prev;
  seg->next = seg->prev = PL_SEG_NONE;
}

/* First segment at or after `number` that is not SACKed, or seg_tail. */
static uint32_t skip_sacked(const pl_stream *s, uint32_t number) {
  uint32_t count = pl_seg_count(s);
  while (number != s->seg_tail) {
    pl_seg *seg = pl_seg_at(s, number);
    if (seg->state != PL_SEG_SACKED) return number;
    uint32_t to = seg->skip;
    if (((to - s->seg_head) & PL_SEG_MASK) >= count) return s->seg_tail;
    pl_seg *mid = pl_seg_at(s, to);
    if (mid->state == PL_SEG_SACKED) seg->skip = mid->skip;
    number = to;
  }
  return number;
}

/* First segment that starts at or after `off`, or seg_tail. */
static uint32_t find_from(const pl_stream *s, uint64_t off) {
  uint32_t lo = 0, hi = pl_seg_count(s);
  while (lo < hi) {
    uint32_t mid = lo + (hi - lo) / 2;
    if (pl_seg_at(s, (s->seg_head + mid) & PL_SEG_MASK)->off < off)
      lo = mid + 1;
    else
      hi = mid;
  }
  return (s->seg_head + lo) & PL_SEG_MASK;
}

/* ---- delivery ---- */

typedef struct ack_news {
  pl_latest latest;
  uint64_t acked;
  bool undo; /* every retransmission of the episode is proved needless */
} ack_news;

/* `seg` (not SACKed before) has arrived: takes it off its list and the books. */
static void deliver(pl_stream *s, pl_seg *seg, uint32_t number, ack_news *n, uint64_t now) {
  n->acked += seg->len;
  pl_latest *l = &n->latest;
  if (seg->state == PL_SEG_FLIGHT) {
    pl_seg_unlink(s, &s->flight, number);
    s->in_flight -= seg->len;
  } else {
    pl_seg_unlink(s, &s->lost, number);
    s->lost_bytes -= seg->len;
    if (seg->sends == 1) l->original_after_loss = true;
  }
  uint64_t end = seg->off + seg->len;
  if (seg->sends > 1 && s->undo_valid && s->undo_count && now - seg->sent_ns < pl_min_rtt(s) / 4 * 3) {
    if (!--s->undo_count) n->undo = true;
  }
  if (!l->any || seg->sent_ns > l->sent_ns || (seg->sent_ns == l->sent_ns && end > l->end)) {
    l->any = true;
    l->sent_ns = seg->sent_ns;
    l->end = end;
    l->first_tx_ns = seg->first_tx_ns;
    l->delivered = seg->delivered;
    l->delivered_ns = seg->delivered_ns;
    l->app_limited = seg->app_limited;
    l->sends = seg->sends;
  }
}

static void take_cumulative(pl_stream *s, uint64_t ack, ack_news *n, uint64_t now) {
  uint64_t to = s->una;
  while (s->seg_head != s->seg_tail) {
    pl_seg *seg = pl_seg_at(s, s->seg_head);
    if (seg->off + seg->len > ack) {
      /* Our own kind may acknowledge part of a segment; boundaries toward others are frozen, so there the whole stays. */
      if (s->options && ack > seg->off) {
        uint32_t part = (uint32_t)(ack - seg->off);
        seg->off = ack;
        seg->len -= part;
        n->acked += part;
        if (seg->state == PL_SEG_FLIGHT) s->in_flight -= part;
        if (seg->state == PL_SEG_LOST) s->lost_bytes -= part;
        if (s->cut_seg == s->seg_head) s->cut_seg = PL_SEG_NONE;
        to = ack;
      }
      break;
    }
    if (seg->state == PL_SEG_SACKED)
      s->sacked_segs--;
    else
      deliver(s, seg, s->seg_head, n, now);
    to = seg->off + seg->len;
    if (s->cut_seg == s->seg_head) s->cut_seg = PL_SEG_NONE;
    s->seg_head = pl_seg_after(s->seg_head);
  }
  if (to > s->una) {
    s->last_byte = pl_byte_ring_at(&s->snd, to - 1);
    s->una = to;
    s->dup_run = 0;
    pl_send_count(s);
    if (s->una == s->end) {
      s->snd.base = s->end;
      pl_stream_trim_later(s, now);
    }
  }
}

static void take_sack(pl_stream *s, const pl_sack_block *b, ack_news *n, uint64_t now) {
  uint32_t base = pl_snd_seq(s, s->una);
  int32_t l = pl_seq_cmp(b->left, base), r = pl_seq_cmp(b->right, base);
  if (r <= 0 || l >= r) return;
  uint64_t left = l < 0 ? s->una : s->una + (uint32_t)l;
  uint64_t right = pl_min64(s->una + (uint32_t)r, s->nxt);
  if (left >= right) return;
  for (uint32_t i = skip_sacked(s, find_from(s, left)); i != s->seg_tail; i = skip_sacked(s, pl_seg_after(i))) {
    pl_seg *seg = pl_seg_at(s, i);
    if (seg->off + seg->len > right) break;
    deliver(s, seg, i, n, now);
    seg->state = PL_SEG_SACKED;
    seg->skip = pl_seg_after(i);
    s->sacked_segs++;
  }
}

/* ---- windows ---- */

void pl_ack_first_window(pl_stream *s, uint16_t window, bool scaled) {
  s->peer_slots = window;
  s->peer_edge = scaled ? (uint64_t)window << s->peer_opt.window_shift : (uint64_t)window * PL_PLAIN_SLOT;
  s->window_ack = 0;
}

/* `ack` is not older than the last one processed. */
static void take_window(pl_stream *s, uint16_t window, uint64_t ack, bool empty) {
  if (s->options) {
    uint64_t edge = ack + ((uint64_t)window << s->peer_opt.window_shift);
    if (edge > s->peer_edge) s->peer_edge = edge; /* our own kind never takes back what it promised */
  } else {
    /* Free slots cannot vanish while nothing is sent: a window of 0 then is the keepalive of the older releases, which
     * also read 0 as "no limit" themselves. */
    if (!window && empty && ack == s->window_ack && s->peer_slots && s->seg_head == s->seg_tail) {
      s->peer_zero_open = true;
      return;
    }
    s->peer_slots = window;
    s->window_ack = ack;
  }
  bool closed = s->options ? s->peer_edge <= s->nxt : !s->peer_slots;
  if (!closed) {
    s->at[PL_T_PROBE] = PL_NEVER;
    s->probe_interval_ns = 0;
    s->probe_due = false;
  }
}

/* ---- the whole ---- */

static void report(pl_stream *s, const ack_news *n, uint64_t lost, uint64_t prior, uint64_t rtt, uint64_t now) {
  const pl_latest *l = &n->latest;
  pl_cc_ack a = {.now_ns = now, .acked = n->acked, .lost = lost + s->lost_unreported, .in_flight = s->in_flight,
                 .prior_in_flight = prior, .rtt_ns = rtt, .min_rtt_ns = pl_min_rtt(s), .srtt_ns = s->srtt_ns};
  s->lost_unreported = 0;
  if (l->any) {
    if (l->delivered >= s->next_round) {
      s->next_round = s->delivered;
      a.round_start = true;
      if (!s->in_recovery && s->fast_cwnd < PL_FAST_CWND) s->fast_cwnd += s->fast_cwnd / 256;
    }
    a.app_limited = l->app_limited;
    uint64_t interval = pl_max64(l->sent_ns - l->first_tx_ns, now - l->delivered_ns);
    s->first_tx_ns = l->sent_ns;
    /* An interval shorter than a round trip comes from compressed acknowledgements and overstates the rate. */
    if (interval && interval >= a.min_rtt_ns)
      a.delivery_rate = (uint64_t)((double)(s->delivered - l->delivered) * (double)PL_NS_PER_S / (double)interval);
  }
  s->cc.ops->on_ack(&s->cc, &a);
  pl_send_update_pacing(s);
}

static void leave_recovery(pl_stream *s, uint64_t now) {
  s->in_recovery = s->rto_recovery = s->force_rtx = false;
  s->undo_valid = false;
  if (s->reo_recoveries && !--s->reo_recoveries) s->reo_mult = 1;
  s->cc.ops->on_recovered(&s->cc, now);
}

static void undo(pl_stream *s, uint64_t now) {
  s->cc.ops->on_spurious(&s->cc, now);
  s->reordering = true;
  if (s->reo_mult < 16) s->reo_mult++;
  s->reo_recoveries = 16;
  leave_recovery(s, now);
}

unsigned pl_ack_process(pl_stream *s, const pl_packet *pkt, const pl_sack_block *blocks, unsigned nb, bool empty, uint64_t now) {
  int32_t d = pl_seq_cmp(pkt->ack, pl_snd_seq(s, s->una));
  uint64_t limit = s->nxt + (s->fin_sent ? 1 : 0);
  if (d > 0 && s->una + (uint32_t)d > limit) return 0; /* acknowledges what was never sent */
  bool old = d < 0;
  uint64_t ack = old ? s->una : s->una + (uint32_t)d, prior = s->in_flight;
  if (!old && s->fin_sent && ack == s->fin_off + 1) {
    pl_stream_fin_acked(s, now);
    ack--;
  }
  ack_news n = {0};
  uint64_t una_before = s->una;
  if (!old) take_cumulative(s, ack, &n, now);
  if (nb) s->n_sack_recv++;
  for (unsigned i = 0; i < nb; i++) take_sack(s, &blocks[i], &n, now);

  if (!old && s->una == una_before && s->seg_head != s->seg_tail && (empty || nb)) {
    s->n_dup_acks++;
    /* A receiver without SACK can only repeat itself (RFC 5681). Window updates are not repetitions. */
    if (empty && !s->options && pkt->window == s->peer_slots && !s->sacked_segs && ++s->dup_run == 3 && !s->in_recovery)
      pl_rack_mark_head(s, now);
  }
  if (!old && !(pkt->flags & PL_FLAG_FIN)) take_window(s, pkt->window, ack, empty);

  if (n.acked) {
    s->delivered += n.acked;
    s->delivered_ns = now;
    if (s->app_limited_until && s->delivered > s->app_limited_until) s->app_limited_until = 0;
    s->rto_base_ns = now;
    bool spurious_rto = s->rto_recovery && s->undo_valid && n.latest.original_after_loss;
    s->rto_count = 0;
    uint64_t rtt = 0;
    if (n.latest.any && n.latest.sends == 1) {
      rtt = now - n.latest.sent_ns;
      if (!rtt) rtt = 1;
      pl_rtt_sample(s, rtt, now);
    }
    if (s->tlp_out && s->una >= s->tlp_end) s->tlp_out = false;
    if (spurious_rto) {
      pl_recovery_restore(s);
      undo(s, now);
    } else if (n.undo && s->in_recovery) {
      undo(s, now);
    }
    if (s->in_recovery && s->una >= s->recovery_end) leave_recovery(s, now);
    pl_rack_on_ack(s, &n.latest, now);
    uint64_t lost = pl_rack_detect(s, now);
    /* Without SACK a partial acknowledgement names the next hole (RFC 6582). */
    if (s->in_recovery && !s->rto_recovery && !s->options && !s->sacked_segs && s->una > una_before && s->lost.head == PL_SEG_NONE &&
        s->una < s->recovery_end && s->seg_head != s->seg_tail && pl_seg_at(s, s->seg_head)->sends == 1)
      pl_rack_mark_head(s, now);
    report(s, &n, lost, prior, rtt, now);
    pl_rtx_arm(s, now);
  } else if (nb) {
    pl_rack_detect(s, now);
  }
  if (s->una > una_before) {
    s->short_held = false;
    if (s->closing) pl_stream_try_fin(s, now);
    if (s->want_write && pl_stream_writable(s) >= pl_send_limit(s) / 4) {
      s->want_write = false;
      return PL_SEV_WRITABLE;
    }
  }
  return 0;
}
