/* What the parts of the stream engine share: the stream itself, its segments, its timers.
 *
 *   stream.c       states, opening, closing, timers, dispatch
 *   stream_send.c  send buffer, segmentation, pacing, what pl_stream_next sends next
 *   stream_ack.c   scoreboard: what an acknowledgement means for the segments
 *   stream_recv.c  receive buffer, out-of-order ranges, acknowledgements, windows
 *   recovery.c     RTT, RACK-TLP, retransmission timer, rate samples
 *
 * Positions in a stream are 64-bit offsets of payload bytes from 0; the 32-bit sequence numbers of the wire appear only where
 * packets are read and written. Segments of the send side have 31-bit numbers that count up and wrap; `number & mask` is the
 * place in the ring array. */
#ifndef PL_STREAM_INTERNAL_H
#define PL_STREAM_INTERNAL_H

#include "cc.h"
#include "stream.h"
#include "stream_ring.h"

#define PL_PLAIN_UNACKED 128u          /* reorder buffer of other implementations, segments (transport.md 4.3) */
#define PL_PLAIN_SLOT 4096u            /* bytes behind one advertised slot toward other implementations */
#define PL_OWN_UNACKED_MAX 65536u
#define PL_RANGES_OWN 1024u            /* out-of-order ranges held */
#define PL_RANGES_PLAIN 256u
#define PL_DELACK_NS (5 * PL_NS_PER_MS)
#define PL_QUICK_ACKS 16u              /* first segments are acknowledged at once: the peer is in slow start */
#define PL_RTO_MIN_NS (200 * PL_NS_PER_MS)
#define PL_RTO_MAX_NS (10 * PL_NS_PER_S)
#define PL_RTO_INITIAL_NS (1 * PL_NS_PER_S)
#define PL_RTO_GIVE_UP 8u
#define PL_FIN_TRIES 6u
#define PL_FAST_RTT_NS PL_NS_PER_MS    /* below it: no pacing, and cwnd not under PL_FAST_CWND */
#define PL_FAST_CWND (1024u * 1024u)   /* of all streams of a peer together, shared evenly */
#define PL_FAST_CWND_MIN (32u * 1024u)
#define PL_FAST_TOTAL (8u << 20)       /* what a socket holds: that minimum is less where the streams are so many that they would overflow it */
#define PL_IDLE_TRIM_NS PL_NS_PER_S

#define PL_SEG_NONE UINT32_MAX
#define PL_SEG_MASK 0x7fffffffu

enum pl_seg_state { PL_SEG_FLIGHT, PL_SEG_SACKED, PL_SEG_LOST };

/* One transmitted segment. Boundaries are frozen once chosen; toward our own kind an acknowledgement may trim the front. */
typedef struct pl_seg {
  uint64_t off;
  uint64_t sent_ns;                              /* last transmission */
  uint64_t first_tx_ns, delivered, delivered_ns; /* rate sample: connection state at that transmission */
  uint32_t len;
  uint32_t next, prev; /* neighbours in `flight` or `lost`, by number */
  uint32_t skip;       /* SACKED: a number behind which the next unSACKed segment is to be sought */
  uint8_t state;
  uint8_t sends;       /* transmissions, saturating */
  bool app_limited;
} pl_seg;

typedef struct pl_seg_list {
  uint32_t head, tail;
} pl_seg_list;

typedef struct pl_range {
  uint64_t start, end;
} pl_range;

enum pl_stream_timer {
  PL_T_SYN,     /* SYN again */
  PL_T_DIAL,    /* dial timeout */
  PL_T_ACK,     /* delayed acknowledgement */
  PL_T_REORDER, /* RACK: the next segment becomes lost */
  PL_T_RTX,     /* tail loss probe or retransmission timeout */
  PL_T_PACE,    /* next train */
  PL_T_PROBE,   /* peer's window is closed */
  PL_T_FIN,     /* FIN again */
  PL_T_LINGER,  /* FIN goes out although data is unacknowledged */
  PL_T_WAIT,    /* end of TIME_WAIT */
  PL_T_HOLD,    /* bytes in front of the peer's FIN did not come */
  PL_T_CONFIRM, /* the third packet of the handshake once more */
  PL_T_IDLE,
  PL_T_KEEP,    /* keepalive */
  PL_T_TRIM,    /* give idle buffers back */
  PL_T_COUNT
};

struct pl_stream {
  pl_stream_cfg cfg;
  uint64_t at[PL_T_COUNT]; /* PL_NEVER = off */

  /* connection */
  enum pl_stream_state state;
  unsigned events;         /* to be returned by the next recv or tick */
  bool dialer, held;
  bool offered, options;   /* options sent / in force */
  bool confirmed;          /* acceptor: the dialer has our SYN+ACK */
  bool app_closed;         /* pl_stream_close was called */
  bool closing;            /* no more writes: FIN follows the data */
  bool fin_sent, fin_acked;
  bool fin_seen, fin_had_ack, fin_done; /* peer's FIN: arrived / had ACK set / everything before it has arrived */
  bool wait_over;
  bool syn_due, synack_due, fin_due, finack_due, rst_due, probe_due, tlp_due;
  uint8_t syn_sends, fin_sends;
  pl_synopt local_opt, peer_opt;
  uint32_t isn, peer_isn;
  uint64_t syn_interval_ns, fin_interval_ns, syn_sent_ns;

  /* send side: [una, nxt) sent, [nxt, end) waiting */
  pl_byte_ring snd;
  uint64_t una, nxt, end;
  uint64_t fin_off;        /* offset our FIN stands at, when fin_sent */
  uint8_t last_byte;       /* the one before una: resent to probe a closed window */
  bool want_write;
  uint32_t fast_cwnd;      /* all senders' share of a short path: PL_FAST_CWND, halved by each loss episode and slowly regained */
  bool sending;            /* counted among the senders of the budget */
  bool short_held;         /* a short tail waits for acknowledgements */
  uint32_t mss;            /* of the path; the peer's limits apply on top */
  pl_seg *segs;
  uint32_t seg_mask;       /* places - 1; meaningful when segs != NULL */
  uint32_t seg_head, seg_tail;
  pl_seg_list flight, lost; /* by time of transmission; to be sent again */
  uint32_t cut_seg, cut_len; /* own kind: so many bytes of that lost segment are resent already, in smaller pieces */
  uint64_t in_flight, lost_bytes;
  uint32_t sacked_segs;
  uint32_t peer_slots;     /* plain: window as last received */
  uint64_t peer_edge;      /* own kind: first offset the peer does not take yet */
  uint64_t window_ack;     /* acknowledgement that the window came with */
  uint64_t probe_interval_ns;
  uint32_t dup_run;        /* plain: empty repeated acknowledgements in a row */

  /* recovery */
  uint64_t srtt_ns, rttvar_ns;
  uint64_t min_rtt_now_ns, min_rtt_prev_ns, min_rtt_since_ns; /* minimum over the present and the previous half minute */
  uint64_t rack_sent_ns, rack_end, rack_rtt_ns, rack_fack;
  uint32_t reo_mult, reo_recoveries;
  bool reordering;
  bool in_recovery, rto_recovery, force_rtx, tlp_out, rtx_is_tlp;
  uint64_t recovery_end, tlp_end;
  uint32_t undo_count;     /* retransmissions of this episode not yet proved needless */
  bool undo_valid;
  uint32_t rto_count;
  uint64_t rto_base_ns;
  uint64_t lost_unreported; /* marked by a timer, for the next pl_cc_ack */

  /* rate samples (draft-cheng-iccrg-delivery-rate-estimation) */
  uint64_t delivered, delivered_ns, first_tx_ns, app_limited_until, next_round;

  /* congestion control and pacing */
  pl_cc cc;
  uint64_t pace_rate, pace_next_ns, train_ns;
  bool pace_wait;

  /* receive side: [rcv_read, rcv_nxt) readable */
  pl_byte_ring rcv;
  uint64_t rcv_read, rcv_nxt;
  uint64_t peer_fin_off;
  pl_range *ranges;        /* out of order, ascending, disjoint and not touching */
  uint32_t n_ranges, ranges_cap;
  uint64_t recent;         /* an offset in the range that changed last */
  uint32_t sack_cursor;
  bool ack_due;
  uint8_t acks_owed;       /* plain: one SACK acknowledgement per out-of-order segment */
  uint8_t empties_owed;    /* plain: bare duplicates, the only kind the first release counts */
  uint8_t episode_segs;    /* plain: out-of-order segments since rcv_nxt last moved */
  uint32_t pending_segs;   /* in order and not yet acknowledged */
  uint32_t quick_acks;
  uint64_t adv_edge;       /* highest offset ever allowed to the peer */
  uint32_t adv_window;     /* field as last sent */
  uint64_t rcv_window;     /* own kind: unread bytes to be promised, as far as memory allows */
  uint64_t rcv_round_ns, rcv_round_read; /* begin of the present round of the reader */
  bool peer_zero_open;     /* the peer takes window 0 for "no limit" (its own keepalives carry it) */

  uint64_t n_bytes_sent, n_segs_sent, n_segs_recv, n_retransmits, n_fast_retx, n_sack_recv, n_sack_sent, n_dup_acks, n_timeouts;
  uint8_t scratch[5 + 8 * PL_SACK_MAX]; /* SACK or option payload of the packet last returned */
};

/* ---- stream.c ---- */
/* The stream is dead: no packets but, if `rst`, one RST. `ev` is added to PL_SEV_CLOSED. */
unsigned pl_stream_die(pl_stream *s, bool rst, unsigned ev);
void pl_stream_try_fin(pl_stream *s, uint64_t now); /* FIN if it is its turn */
/* The peer's FIN has been reached by the data in front of it. Returns events. */
unsigned pl_stream_fin_reached(pl_stream *s, uint64_t now);
/* Our FIN is acknowledged. */
void pl_stream_fin_acked(pl_stream *s, uint64_t now);
/* Fills *out: sequence number, and with PL_FLAG_ACK acknowledgement and window; whatever acknowledgement was due is thereby sent. */
void pl_stream_fill(pl_stream *s, pl_stream_out *out, uint8_t flags, uint64_t off, uint64_t now);
static inline uint32_t pl_snd_seq(const pl_stream *s, uint64_t off) { return s->isn + 1 + (uint32_t)off; }
static inline uint32_t pl_rcv_seq(const pl_stream *s, uint64_t off) { return s->peer_isn + 1 + (uint32_t)off; }
static inline void pl_stream_trim_later(pl_stream *s, uint64_t now) {
  if (s->at[PL_T_TRIM] == PL_NEVER && (s->snd.cap || s->rcv.cap || s->segs || s->ranges)) s->at[PL_T_TRIM] = now + PL_IDLE_TRIM_NS;
}

/* ---- stream_send.c ---- */
/* Next data packet: lost segment, tail loss probe, new segment, window probe. 1 or 0. */
int pl_send_next(pl_stream *s, uint64_t now, pl_stream_out *out);
uint32_t pl_send_mss(const pl_stream *s); /* largest segment to form now */
uint32_t pl_send_unacked_max(const pl_stream *s);
uint64_t pl_send_limit(const pl_stream *s); /* bytes that may be held now, unacknowledged and unsent */
void pl_send_drop_all(pl_stream *s); /* forgets everything unacknowledged and unsent */
void pl_send_count(pl_stream *s);    /* after una or end has moved */
void pl_send_trim(pl_stream *s);     /* frees buffers of an idle send side */
void pl_send_update_pacing(pl_stream *s);

/* ---- stream_ack.c ---- */
typedef struct pl_latest { /* the most recently sent of the segments that an acknowledgement delivers */
  uint64_t sent_ns, end, first_tx_ns, delivered, delivered_ns;
  uint8_t sends;
  bool app_limited, any;
  bool original_after_loss; /* a segment given up as lost, and not sent again, has arrived */
} pl_latest;
/* Acknowledgement number and SACK blocks of a received packet; `window` is taken when `has_window`. Returns events. */
unsigned pl_ack_process(pl_stream *s, const pl_packet *pkt, const pl_sack_block *blocks, unsigned n, bool empty, uint64_t now);
/* Sets the peer's window from SYN or SYN+ACK. `scaled`: the field counts 1 << shift bytes. */
void pl_ack_first_window(pl_stream *s, uint16_t window, bool scaled);
static inline pl_seg *pl_seg_at(const pl_stream *s, uint32_t number) { return &s->segs[number & s->seg_mask]; }
static inline uint32_t pl_seg_count(const pl_stream *s) { return (s->seg_tail - s->seg_head) & PL_SEG_MASK; }
static inline uint32_t pl_seg_after(uint32_t number) { return (number + 1) & PL_SEG_MASK; }
pl_seg *pl_seg_append(pl_stream *s); /* NULL when out of memory; `seg_tail` is its number before the call */
void pl_seg_push(pl_stream *s, pl_seg_list *l, uint32_t number, bool front);
void pl_seg_unlink(pl_stream *s, pl_seg_list *l, uint32_t number);

/* ---- recovery.c ---- */
void pl_recovery_reset(pl_stream *s, uint64_t now); /* new path */
void pl_rtt_sample(pl_stream *s, uint64_t rtt, uint64_t now);
uint64_t pl_min_rtt(const pl_stream *s); /* 0 = no sample */
uint64_t pl_rto(const pl_stream *s);
void pl_rack_on_ack(pl_stream *s, const pl_latest *l, uint64_t now);
uint64_t pl_rack_detect(pl_stream *s, uint64_t now); /* marks lost segments, arms PL_T_REORDER; bytes marked */
void pl_rack_mark_head(pl_stream *s, uint64_t now);  /* duplicate acknowledgements without SACK */
void pl_recovery_restore(pl_stream *s);              /* lost segments turned out to be in flight */
void pl_rtx_arm(pl_stream *s, uint64_t now);
unsigned pl_rtx_fire(pl_stream *s, uint64_t now);
void pl_rate_on_send(pl_stream *s, pl_seg *seg, uint64_t now);

/* ---- stream_recv.c ---- */
unsigned pl_recv_data(pl_stream *s, const pl_packet *pkt, uint64_t now);
uint16_t pl_recv_window(pl_stream *s); /* field to send now; remembers it as promised */
/* An acknowledgement packet of its own, if one is due: 1 with *out filled. `first`: only what must go before data (SACK). */
int pl_recv_next_ack(pl_stream *s, uint64_t now, bool first, pl_stream_out *out);
uint64_t pl_recv_fin_ack(const pl_stream *s); /* offset to acknowledge: rcv_nxt, one more once the FIN is reached */
void pl_recv_trim(pl_stream *s);
uint64_t pl_recv_window_start(const pl_stream *s);

#endif
