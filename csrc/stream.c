/* A stream's life: opening, closing, timers, dispatch of packets. transport.md 4.1, 4.2, 4.9, 4.10.
 *
 *   state        event                                   -> state        packet
 *   SYN_SENT     SYN+ACK with the right ack              -> ESTABLISHED  ACK
 *   SYN_SENT     RST | dial timeout                      -> CLOSED
 *   (none)       SYN                                     -> ESTABLISHED  SYN+ACK
 *   ESTABLISHED  close, all data acknowledged | linger   -> FIN_WAIT     FIN
 *   ESTABLISHED  FIN reached, plain                      -> TIME_WAIT    FIN+ACK (what was unsent is void: the peer takes no more)
 *   ESTABLISHED  FIN reached, own kind                   -> (closing)    ACK; after the rest of our data: FIN+ACK, FIN_WAIT
 *   FIN_WAIT     plain: FIN+ACK | FIN | ACK of the FIN   -> TIME_WAIT    FIN: FIN+ACK once. FIN+ACK: nothing
 *   FIN_WAIT     own kind: FIN reached and ours acked    -> TIME_WAIT    ACK
 *   FIN_WAIT     FIN unanswered 6 times                  -> CLOSED
 *   TIME_WAIT    10 s                                    -> CLOSED
 *   any          RST | idle | retransmissions used up    -> CLOSED       the latter two: RST
 *
 * A FIN+ACK is never answered by a FIN-flagged packet, nor is any FIN in TIME_WAIT by a plain stream: the first release would
 * echo it for ever. */
#include "stream_internal.h"

#include <stdlib.h>

#define SYN_INTERVAL_MAX_NS (8 * PL_NS_PER_S)
#define CONFIRM_NS (300 * PL_NS_PER_MS)
#define FIN_INTERVAL_MIN_NS (250 * PL_NS_PER_MS)
#define RST_SLACK 65536u

static uint64_t later(uint64_t now, uint64_t ns) { return ns >= PL_NEVER - now ? PL_NEVER : now + ns; }

/* ---- construction ---- */

static pl_stream *stream_new(const pl_stream_cfg *cfg, uint32_t isn, uint32_t mss, uint64_t now) {
  pl_stream *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->cfg = *cfg;
  pl_budget_take(s->cfg.budget, sizeof *s);
  for (unsigned i = 0; i < PL_T_COUNT; i++) s->at[i] = PL_NEVER;
  s->isn = isn;
  s->mss = mss < 64 ? 64 : mss;
  s->flight.head = s->flight.tail = s->lost.head = s->lost.tail = PL_SEG_NONE;
  s->cut_seg = PL_SEG_NONE;
  s->quick_acks = PL_QUICK_ACKS;
  s->rcv_window = pl_recv_window_start(s);
  s->cc.ops = pl_cc_find(cfg->congestion);
  if (!s->cc.ops) s->cc.ops = &pl_cc_cubic;
  s->cc.ops->init(&s->cc, pl_send_mss(s), now);
  pl_recovery_reset(s, now);
  return s;
}

static void clamp_peer_options(pl_stream *s) {
  pl_synopt *o = &s->peer_opt;
  if (o->window_shift > 16) o->window_shift = 16;
  if (o->max_sack < PL_SACK_PLAIN_MAX) o->max_sack = PL_SACK_PLAIN_MAX;
  if (o->max_sack > PL_SACK_MAX) o->max_sack = PL_SACK_MAX;
  if (o->max_segment < 256) o->max_segment = 256;
  if (o->reorder_segments < PL_PLAIN_UNACKED) o->reorder_segments = PL_PLAIN_UNACKED;
  if (o->reorder_segments > PL_OWN_UNACKED_MAX) o->reorder_segments = PL_OWN_UNACKED_MAX;
}

static void take_offer(pl_stream *s, const pl_synopt *offer) {
  if (!offer) return;
  s->offered = true;
  s->local_opt = *offer;
  if (s->local_opt.window_shift > 16) s->local_opt.window_shift = 16;
  if (s->local_opt.max_sack > PL_SACK_MAX) s->local_opt.max_sack = PL_SACK_MAX;
}

static void start_congestion(pl_stream *s, uint64_t now) {
  s->cc.ops->init(&s->cc, pl_send_mss(s), now);
  if (s->options) s->cc.cwnd = pl_max64(s->cc.cwnd, 65536);
  pl_send_update_pacing(s);
}

static void establish(pl_stream *s, uint64_t now) {
  s->state = PL_ST_ESTABLISHED;
  s->at[PL_T_SYN] = s->at[PL_T_DIAL] = PL_NEVER;
  s->at[PL_T_IDLE] = later(now, s->cfg.idle_timeout_ns);
  s->at[PL_T_KEEP] = later(now, s->cfg.keepalive_ns);
  start_congestion(s, now);
}

pl_stream *pl_stream_dial(const pl_stream_cfg *cfg, uint32_t isn, uint32_t mss, const pl_synopt *offer, uint64_t now) {
  pl_stream *s = stream_new(cfg, isn, mss, now);
  if (!s) return NULL;
  take_offer(s, offer);
  s->dialer = s->held = true;
  s->state = PL_ST_SYN_SENT;
  s->at[PL_T_DIAL] = later(now, cfg->dial_timeout_ns);
  return s;
}

void pl_stream_release(pl_stream *s, uint64_t now) {
  if (!s->held) return;
  s->held = false;
  if (s->state != PL_ST_SYN_SENT) return;
  s->syn_due = true;
  s->syn_interval_ns = s->cfg.syn_timer_ns;
  s->at[PL_T_SYN] = later(now, s->syn_interval_ns);
}

void pl_stream_dial_again(pl_stream *s) {
  if (s->state == PL_ST_SYN_SENT && !s->held) s->syn_due = true;
}

pl_stream *pl_stream_accept(const pl_stream_cfg *cfg, uint32_t isn, uint32_t mss, const pl_synopt *offer, const pl_packet *syn,
                            uint64_t now) {
  pl_stream *s = stream_new(cfg, isn, mss, now);
  if (!s) return NULL;
  take_offer(s, offer);
  s->peer_isn = syn->seq;
  s->options = s->offered && syn->len && pl_synopt_parse(syn->payload, syn->payload + syn->len, &s->peer_opt);
  if (s->options) clamp_peer_options(s);
  pl_ack_first_window(s, syn->window, false);
  establish(s, now);
  s->synack_due = true;
  s->syn_sent_ns = now;
  return s;
}

void pl_stream_free(pl_stream *s) {
  if (!s) return;
  pl_send_drop_all(s);
  pl_send_trim(s);
  s->rcv_read = s->rcv_nxt;
  s->n_ranges = 0;
  pl_recv_trim(s);
  pl_budget_give(s->cfg.budget, sizeof *s);
  free(s);
}

unsigned pl_stream_die(pl_stream *s, bool rst, unsigned ev) {
  if (s->state == PL_ST_CLOSED) return 0;
  s->state = PL_ST_CLOSED;
  s->rst_due = rst;
  s->closing = true;
  for (unsigned i = 0; i < PL_T_COUNT; i++) s->at[i] = PL_NEVER;
  pl_send_drop_all(s);
  return ev | PL_SEV_CLOSED;
}

/* ---- closing ---- */

static void enter_time_wait(pl_stream *s, uint64_t now) {
  s->state = PL_ST_TIME_WAIT;
  pl_send_drop_all(s);
  for (unsigned i = 0; i < PL_T_COUNT; i++)
    if (i != PL_T_TRIM) s->at[i] = PL_NEVER;
  s->at[PL_T_WAIT] = later(now, s->cfg.time_wait_ns);
  s->fin_due = false;
  pl_send_trim(s);
  pl_recv_trim(s);
  pl_stream_trim_later(s, now); /* what is still to be read */
}

void pl_stream_try_fin(pl_stream *s, uint64_t now) {
  if (!s->closing || s->fin_sent || s->state != PL_ST_ESTABLISHED || s->una != s->end) return;
  s->fin_sent = s->fin_due = true;
  s->fin_off = s->nxt;
  s->state = PL_ST_FIN_WAIT;
  s->fin_interval_ns = pl_max64(pl_rto(s), FIN_INTERVAL_MIN_NS);
  s->at[PL_T_FIN] = later(now, s->fin_interval_ns);
  s->at[PL_T_LINGER] = PL_NEVER;
}

/* The wait for acknowledgements is over: what was never sent is given up, FIN follows what was. */
static void linger_over(pl_stream *s, uint64_t now) {
  s->end = s->nxt;
  pl_send_count(s);
  if (s->fin_sent || s->state != PL_ST_ESTABLISHED) return;
  s->fin_sent = s->fin_due = true;
  s->fin_off = s->nxt;
  s->state = PL_ST_FIN_WAIT;
  s->fin_interval_ns = pl_max64(pl_rto(s), FIN_INTERVAL_MIN_NS);
  s->at[PL_T_FIN] = later(now, s->fin_interval_ns);
}

static void begin_close(pl_stream *s, uint64_t now) {
  if (s->closing) return;
  s->closing = true;
  s->want_write = false;
  s->at[PL_T_LINGER] = later(now, s->cfg.linger_ns);
  pl_stream_try_fin(s, now);
}

void pl_stream_close(pl_stream *s, uint64_t now) {
  s->app_closed = true;
  if (s->wait_over) s->at[PL_T_WAIT] = now;
  if (s->state == PL_ST_SYN_SENT) {
    /* Nothing was opened: a SYN that is under way gets an RST after it. */
    s->events |= pl_stream_die(s, s->syn_sends > 0, 0);
    return;
  }
  if (s->state == PL_ST_ESTABLISHED) begin_close(s, now);
}

void pl_stream_abort(pl_stream *s, uint64_t now) {
  (void)now;
  s->app_closed = true;
  bool rst = s->state == PL_ST_ESTABLISHED || s->state == PL_ST_FIN_WAIT || (s->state == PL_ST_SYN_SENT && s->syn_sends);
  s->events |= pl_stream_die(s, rst, 0);
}

void pl_stream_fin_acked(pl_stream *s, uint64_t now) {
  if (s->fin_acked) return;
  s->fin_acked = true;
  s->fin_due = false;
  s->at[PL_T_FIN] = PL_NEVER;
  if (s->state != PL_ST_FIN_WAIT) return;
  if (s->fin_done) enter_time_wait(s, now);
}

unsigned pl_stream_fin_reached(pl_stream *s, uint64_t now) {
  s->fin_done = true;
  s->at[PL_T_HOLD] = PL_NEVER;
  s->ack_due = true;
  if (s->options) {
    if (s->state == PL_ST_ESTABLISHED) begin_close(s, now);
    if (s->state == PL_ST_FIN_WAIT && s->fin_acked) {
      enter_time_wait(s, now);
      s->ack_due = true;
    }
    return PL_SEV_EOF;
  }
  /* Plain: one FIN+ACK answers one FIN, and nothing answers a FIN+ACK. */
  s->finack_due = !s->fin_had_ack;
  s->ack_due = false;
  s->closing = true;
  enter_time_wait(s, now);
  return PL_SEV_EOF;
}

static unsigned on_fin(pl_stream *s, const pl_packet *pkt, uint64_t now) {
  bool has_ack = (pkt->flags & PL_FLAG_ACK) != 0;
  if (s->state == PL_ST_SYN_SENT) return 0;
  if (s->fin_done) { /* again: the answer was lost */
    if (s->options) {
      if (has_ack) pl_ack_process(s, pkt, NULL, 0, false, now);
      if (s->fin_sent && !s->fin_acked && !has_ack) s->fin_due = true;
      s->ack_due = true;
    } else if (!has_ack) {
      s->ack_due = true;
    }
    return 0;
  }
  unsigned ev = 0;
  if (has_ack) ev |= pl_ack_process(s, pkt, NULL, 0, false, now);
  int32_t d = pl_seq_cmp(pkt->seq, pl_rcv_seq(s, s->rcv_nxt));
  if (d < 0) return ev; /* in front of what it already sent: not plausible */
  s->fin_had_ack = has_ack;
  if (!s->fin_seen) {
    s->fin_seen = true;
    s->peer_fin_off = s->rcv_nxt + (uint32_t)d;
    s->at[PL_T_HOLD] = later(now, s->cfg.linger_ns);
  }
  if (s->rcv_nxt == s->peer_fin_off)
    ev |= pl_stream_fin_reached(s, now);
  else
    s->ack_due = true; /* tells the peer what is missing */
  return ev;
}

static unsigned on_rst(pl_stream *s, const pl_packet *pkt) {
  if (s->state == PL_ST_SYN_SENT) {
    if (!s->syn_sends || (pkt->ack && pkt->ack != s->isn + 1)) return 0;
    return pl_stream_die(s, false, PL_SEV_REFUSED);
  }
  /* Other implementations send RST with all fields zero; otherwise it must fit the stream. */
  int32_t seq = pl_seq_cmp(pkt->seq, pl_rcv_seq(s, s->rcv_nxt)), ack = pl_seq_cmp(pkt->ack, pl_snd_seq(s, s->una));
  bool zero = !pkt->seq && !pkt->ack;
  bool fits = (seq >= -(int32_t)RST_SLACK && seq <= (int32_t)(1u << 28)) ||
              (pkt->ack && ack >= 0 && (uint32_t)ack <= s->nxt - s->una + 1);
  if (!zero && !fits) return 0;
  if (s->state == PL_ST_TIME_WAIT) return pl_stream_die(s, false, 0);
  return pl_stream_die(s, false, PL_SEV_RESET);
}

/* ---- opening ---- */

static unsigned on_syn(pl_stream *s, const pl_packet *pkt) {
  if (s->state == PL_ST_TIME_WAIT) return pl_stream_die(s, false, 0); /* the peer's port has come round again */
  if (s->dialer) return 0;
  if (pkt->seq == s->peer_isn) {
    s->synack_due = true;
    return 0;
  }
  return pl_stream_die(s, false, PL_SEV_RESET); /* the peer started anew and knows nothing of this stream */
}

static unsigned on_synack(pl_stream *s, const pl_packet *pkt, uint64_t now) {
  if (!s->dialer) return 0;
  if (s->state != PL_ST_SYN_SENT) {
    if (pkt->seq == s->peer_isn && s->state == PL_ST_ESTABLISHED) s->ack_due = true;
    return 0;
  }
  if (!s->syn_sends || pkt->ack != s->isn + 1) return 0;
  s->peer_isn = pkt->seq;
  s->options = s->offered && pkt->len && pl_synopt_parse(pkt->payload, pkt->payload + pkt->len, &s->peer_opt);
  if (s->options) {
    clamp_peer_options(s);
    s->adv_edge = (uint64_t)s->adv_window * PL_PLAIN_SLOT;
  }
  pl_ack_first_window(s, pkt->window, s->options);
  if (s->syn_sends == 1) pl_rtt_sample(s, now - s->syn_sent_ns, now);
  establish(s, now);
  s->ack_due = s->confirmed = true;
  if (!s->options) s->at[PL_T_CONFIRM] = now + CONFIRM_NS;
  return PL_SEV_OPENED | (s->want_write ? PL_SEV_WRITABLE : 0u);
}

static unsigned on_ack(pl_stream *s, const pl_packet *pkt, uint64_t now) {
  if (s->state == PL_ST_SYN_SENT || s->state == PL_ST_CLOSED) return 0;
  if (!s->confirmed) {
    s->confirmed = true;
    s->synack_due = false;
    if (s->syn_sends == 1) pl_rtt_sample(s, now - s->syn_sent_ns, now);
  }
  if (s->state == PL_ST_TIME_WAIT) return 0;
  s->at[PL_T_CONFIRM] = PL_NEVER;
  pl_sack_block blocks[PL_SACK_MAX];
  unsigned n = pkt->len ? pl_sack_parse(pkt->payload, pkt->payload + pkt->len, s->options ? PL_SACK_MAX : PL_SACK_PLAIN_MAX, blocks) : 0;
  unsigned ev = pl_ack_process(s, pkt, blocks, n, !pkt->len, now);
  if (s->state == PL_ST_FIN_WAIT && !s->options && s->fin_acked && !s->fin_seen) {
    /* A peer in TIME_WAIT says no more than this. */
    s->fin_done = true;
    s->fin_had_ack = true;
    enter_time_wait(s, now);
    return ev | PL_SEV_EOF;
  }
  if (pkt->len && !n && !s->fin_done && s->state != PL_ST_CLOSED && s->state != PL_ST_TIME_WAIT) ev |= pl_recv_data(s, pkt, now);
  return ev;
}

unsigned pl_stream_recv(pl_stream *s, const pl_packet *pkt, uint64_t now) {
  unsigned ev = s->events, f = pkt->flags;
  s->events = 0;
  if (s->state == PL_ST_CLOSED) return ev;
  if (s->state != PL_ST_SYN_SENT && s->state != PL_ST_TIME_WAIT) s->at[PL_T_IDLE] = later(now, s->cfg.idle_timeout_ns);
  if ((f & (PL_FLAG_SYN | PL_FLAG_ACK)) == PL_FLAG_SYN) return ev | on_syn(s, pkt);
  if (f & PL_FLAG_SYN) return ev | on_synack(s, pkt, now);
  if (f & PL_FLAG_FIN) return ev | on_fin(s, pkt, now);
  if (f & PL_FLAG_RST) return ev | on_rst(s, pkt);
  if (f & PL_FLAG_ACK) return ev | on_ack(s, pkt, now);
  return ev;
}

/* ---- packets ---- */

void pl_stream_fill(pl_stream *s, pl_stream_out *out, uint8_t flags, uint64_t off, uint64_t now) {
  *out = (pl_stream_out){.flags = flags, .seq = pl_snd_seq(s, off)};
  s->at[PL_T_KEEP] = later(now, s->cfg.keepalive_ns);
  if (!(flags & PL_FLAG_ACK)) return;
  out->ack = pl_rcv_seq(s, pl_recv_fin_ack(s));
  s->ack_due = false;
  s->acks_owed = 0;
  s->pending_segs = 0;
  s->at[PL_T_ACK] = PL_NEVER;
  if (flags & PL_FLAG_FIN) return; /* window 0, as everybody sends it */
  out->window = pl_recv_window(s);
}

static void next_syn(pl_stream *s, uint64_t now, pl_stream_out *out) {
  bool answer = !s->dialer;
  *out = (pl_stream_out){.flags = answer ? PL_FLAG_SYN | PL_FLAG_ACK : PL_FLAG_SYN, .seq = s->isn};
  if (answer) {
    out->ack = s->peer_isn + 1;
    out->window = pl_recv_window(s);
    s->at[PL_T_KEEP] = later(now, s->cfg.keepalive_ns);
    s->synack_due = false;
  } else {
    uint32_t slots = pl_recv_window(s);
    /* A SYN counts in slots; should options come into force, the promise must fit their buffer too. */
    if (s->offered && slots > s->rcv_window / PL_PLAIN_SLOT) slots = (uint32_t)(s->rcv_window / PL_PLAIN_SLOT);
    s->adv_window = slots ? slots : 1;
    out->window = (uint16_t)s->adv_window;
    s->syn_due = false;
  }
  if (answer ? s->options : s->offered) {
    pl_synopt_write(s->scratch, &s->local_opt);
    out->p1 = s->scratch;
    out->n1 = PL_SYNOPT_SIZE;
  }
  if (!s->syn_sends) s->syn_sent_ns = now;
  if (s->syn_sends < UINT8_MAX) s->syn_sends++;
}

static void next_fin(pl_stream *s, uint64_t now, pl_stream_out *out) {
  s->fin_due = false;
  s->fin_sends++;
  if (s->options && s->fin_done) {
    pl_stream_fill(s, out, PL_FLAG_FIN | PL_FLAG_ACK, s->fin_off, now);
    return;
  }
  pl_stream_fill(s, out, PL_FLAG_FIN, s->fin_off, now);
}

int pl_stream_next(pl_stream *s, uint64_t now, pl_stream_out *out) {
  if (s->state == PL_ST_CLOSED) {
    if (!s->rst_due) return 0;
    s->rst_due = false;
    *out = (pl_stream_out){.flags = PL_FLAG_RST, .seq = pl_snd_seq(s, s->nxt), .ack = pl_rcv_seq(s, pl_recv_fin_ack(s))};
    return 1;
  }
  if (s->state == PL_ST_SYN_SENT) {
    if (!s->syn_due) return 0;
    next_syn(s, now, out);
    return 1;
  }
  if (s->synack_due) {
    next_syn(s, now, out);
    return 1;
  }
  if (s->state == PL_ST_TIME_WAIT) {
    if (s->finack_due) {
      s->finack_due = false;
      pl_stream_fill(s, out, PL_FLAG_FIN | PL_FLAG_ACK, s->nxt, now);
      s->at[PL_T_KEEP] = PL_NEVER;
      return 1;
    }
    if (!s->ack_due) return 0;
    pl_stream_fill(s, out, PL_FLAG_ACK, s->nxt + (s->fin_sent ? 1 : 0), now);
    s->at[PL_T_KEEP] = PL_NEVER;
    return 1;
  }
  if (s->closing && !s->fin_sent) pl_stream_try_fin(s, now);
  if (pl_recv_next_ack(s, now, true, out)) return 1;
  if (pl_send_next(s, now, out)) return 1;
  if (s->fin_due) {
    next_fin(s, now, out);
    return 1;
  }
  return pl_recv_next_ack(s, now, false, out);
}

/* ---- time ---- */

uint64_t pl_stream_deadline(const pl_stream *s) {
  if (s->events) return 0;
  uint64_t at = PL_NEVER;
  for (unsigned i = 0; i < PL_T_COUNT; i++)
    if (s->at[i] < at) at = s->at[i];
  return at;
}

static unsigned fin_again(pl_stream *s, uint64_t now) {
  if (s->state != PL_ST_FIN_WAIT || s->fin_acked) return 0;
  if (s->fin_sends >= PL_FIN_TRIES) {
    /* Nobody is there any more. Everything of ours had been acknowledged: that is an end, not an error. */
    bool clean = s->una == s->fin_off;
    s->fin_done = true;
    return pl_stream_die(s, false, clean ? PL_SEV_EOF : PL_SEV_RESET);
  }
  s->fin_due = true;
  s->fin_interval_ns = pl_min64(2 * s->fin_interval_ns, PL_RTO_MAX_NS);
  s->at[PL_T_FIN] = later(now, s->fin_interval_ns);
  return 0;
}

static void trim(pl_stream *s, uint64_t now) {
  /* Busy within the last second (a keepalive or a packet would have moved these deadlines)? Then look again later. */
  bool sent = s->at[PL_T_KEEP] != PL_NEVER && s->at[PL_T_KEEP] > later(now - PL_IDLE_TRIM_NS, s->cfg.keepalive_ns);
  bool received = s->at[PL_T_IDLE] != PL_NEVER && s->at[PL_T_IDLE] > later(now - PL_IDLE_TRIM_NS, s->cfg.idle_timeout_ns);
  if (sent || received) {
    pl_stream_trim_later(s, now);
    return;
  }
  pl_send_trim(s);
  pl_recv_trim(s);
}

static unsigned fire(pl_stream *s, enum pl_stream_timer t, uint64_t now) {
  switch (t) {
    case PL_T_SYN:
      s->syn_due = true;
      s->syn_interval_ns = pl_min64(2 * s->syn_interval_ns, SYN_INTERVAL_MAX_NS);
      s->at[PL_T_SYN] = later(now, s->syn_interval_ns);
      return 0;
    case PL_T_DIAL:
      return pl_stream_die(s, false, PL_SEV_TIMEOUT);
    case PL_T_ACK:
    case PL_T_KEEP:
    case PL_T_CONFIRM:
      s->ack_due = true;
      return 0;
    case PL_T_REORDER:
      s->lost_unreported += pl_rack_detect(s, now);
      return 0;
    case PL_T_RTX:
      return pl_rtx_fire(s, now);
    case PL_T_PROBE:
      s->probe_due = true;
      return 0;
    case PL_T_FIN:
      return fin_again(s, now);
    case PL_T_LINGER:
      linger_over(s, now);
      return 0;
    case PL_T_WAIT:
      /* The reader is still at it: the memory stays until it is done. */
      s->wait_over = true;
      if (pl_stream_readable(s) && !s->app_closed) return 0;
      return pl_stream_die(s, false, 0);
    case PL_T_HOLD:
      return pl_stream_die(s, true, PL_SEV_RESET); /* truncated: that is no orderly end */
    case PL_T_IDLE:
      return pl_stream_die(s, true, PL_SEV_RESET);
    case PL_T_TRIM:
      trim(s, now);
      return 0;
    default: /* PL_T_PACE: pl_stream_next looks at the clock itself */
      return 0;
  }
}

unsigned pl_stream_tick(pl_stream *s, uint64_t now) {
  unsigned ev = s->events;
  s->events = 0;
  for (unsigned i = 0; i < PL_T_COUNT; i++) {
    if (s->at[i] > now) continue;
    s->at[i] = PL_NEVER;
    ev |= fire(s, (enum pl_stream_timer)i, now);
  }
  return ev;
}

void pl_stream_ask(pl_stream *s) {
  if (s->state == PL_ST_ESTABLISHED || s->state == PL_ST_FIN_WAIT) s->ack_due = true;
}

/* ---- path ---- */

void pl_stream_set_mss(pl_stream *s, uint32_t mss) {
  s->mss = mss < 64 ? 64 : mss;
  s->cc.mss = pl_send_mss(s);
}

void pl_stream_path_changed(pl_stream *s, uint32_t mss, uint64_t now) {
  s->mss = mss < 64 ? 64 : mss;
  pl_stream_dial_again(s);
  if (s->state != PL_ST_ESTABLISHED && s->state != PL_ST_FIN_WAIT) return;
  pl_recovery_reset(s, now);
  s->app_limited_until = 0;
  s->next_round = s->delivered;
  s->pace_next_ns = 0;
  s->pace_wait = false;
  start_congestion(s, now);
  s->at[PL_T_REORDER] = PL_NEVER;
  /* What was out on the old path may be gone: one segment over the new one finds out in a round trip. */
  s->tlp_due = s->flight.head != PL_SEG_NONE;
  s->tlp_out = s->tlp_due;
  s->tlp_end = s->nxt;
  pl_rtx_arm(s, now);
  s->ack_due = true; /* the peer learns the path too */
  if (!s->confirmed) s->synack_due = true; /* the first one went the old way */
}

/* ---- information ---- */

void pl_stream_get_info(const pl_stream *s, pl_stream_info *out) {
  *out = (pl_stream_info){
      .state = s->state,
      .options = s->options,
      .mss = pl_send_mss(s),
      .cwnd = s->cc.cwnd,
      .ssthresh = s->cc.ssthresh,
      .in_flight = s->in_flight,
      .pacing_rate = s->pace_rate,
      .srtt_ns = s->srtt_ns,
      .rttvar_ns = s->rttvar_ns,
      .min_rtt_ns = pl_min_rtt(s),
      .unacked_segs = pl_seg_count(s),
      .ooo_segs = s->n_ranges,
      .peer_window = s->peer_slots,
      .local_window = s->adv_window,
      .in_recovery = s->in_recovery,
      .bytes_sent = s->n_bytes_sent,
      .bytes_recv = s->rcv_nxt,
      .segs_sent = s->n_segs_sent,
      .segs_recv = s->n_segs_recv,
      .retransmits = s->n_retransmits,
      .fast_retx = s->n_fast_retx,
      .sack_recv = s->n_sack_recv,
      .sack_sent = s->n_sack_sent,
      .dup_acks = s->n_dup_acks,
      .timeouts = s->n_timeouts,
  };
}
