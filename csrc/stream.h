/* One reliable byte stream: connection state machine, send and receive buffers, SACK scoreboard, RACK-TLP
 * loss detection, congestion control and pacing, flow control in slots, keepalive, close.
 * Specification: transport.md section 4; RFC 8985 (RACK-TLP), RFC 6298 (RTO), RFC 9438 (CUBIC),
 * RFC 9406 (HyStart++).
 *
 * Sans-I/O. The engine hands in parsed packets and time and takes out packets to send:
 *
 *     for each received packet:   ev |= pl_stream_recv(s, pkt, now)
 *     after the batch:            while (pl_stream_next(s, now, &out)) seal and send out
 *     when the deadline passes:   ev |= pl_stream_tick(s, now); then pl_stream_next as above
 *     after write/consume/close:  pl_stream_next as above
 *
 * The stream knows nothing of nodes, ports, keys or paths. */
#ifndef PL_STREAM_H
#define PL_STREAM_H

#include "pl.h"
#include "wire.h"

typedef struct pl_stream pl_stream;

/* Buffers of the smallest size, kept for the next stream: their pages are there and warm, which fresh memory has to be made, page by page,
 * and short streams that leave a record behind would scatter them. */
#define PL_SPARES 64u
typedef struct pl_spares {
  unsigned n;
  uint8_t *p[PL_SPARES];
} pl_spares;
void pl_spares_free(pl_spares *k);

/* Memory shared by the streams of a peer, and through `parent` by those of all peers. Streams add what their buffers hold; advertised
 * windows shrink as `used` nears `limit`, so that peers cannot make the process grow without bound. */
typedef struct pl_budget {
  uint64_t used, limit;
  struct pl_budget *parent; /* what is used here counts there too; NULL = none */
  uint32_t senders;         /* of the streams: have bytes that are not acknowledged */
} pl_budget;
static inline void pl_budget_take(pl_budget *b, uint64_t bytes) {
  for (; b; b = b->parent) b->used += bytes;
}
static inline void pl_budget_give(pl_budget *b, uint64_t bytes) {
  for (; b; b = b->parent) b->used -= bytes;
}
/* UINT64_MAX without a budget. */
static inline uint64_t pl_budget_left(const pl_budget *b) {
  uint64_t left = UINT64_MAX;
  for (; b; b = b->parent) left = pl_min64(left, b->used < b->limit ? b->limit - b->used : 0);
  return left;
}

typedef struct pl_stream_cfg {
  const char *congestion;     /* "bbr" or "cubic" */
  uint32_t send_buffer;       /* most unacknowledged + unsent bytes held; less while the congestion window needs less */
  uint32_t recv_buffer;       /* most received bytes held toward our own kind; less while the reader takes less in a round trip */
  uint32_t recv_buffer_plain; /* same toward other implementations: 2 MiB = 512 slots of 4096 */
  uint64_t keepalive_ns;      /* empty ACK on an idle stream; 25 s */
  uint64_t idle_timeout_ns;   /* silence after which the stream is closed; 120 s */
  uint64_t time_wait_ns;      /* 10 s */
  uint64_t linger_ns;         /* longest wait for acknowledgement before FIN goes out anyway; 60 s */
  uint64_t syn_timer_ns;      /* first SYN retransmission; 250 ms, doubling to 8 s */
  uint64_t dial_timeout_ns;   /* 30 s */
  pl_budget *budget;
  pl_spares *spares; /* NULL = none are kept */
} pl_stream_cfg;

/* What happened, as bits. READABLE / WRITABLE are level hints: query pl_stream_readable / _writable. */
enum {
  PL_SEV_OPENED = 1,    /* SYN+ACK arrived (dialer) */
  PL_SEV_REFUSED = 2,   /* RST in SYN_SENT */
  PL_SEV_TIMEOUT = 4,   /* dial timeout */
  PL_SEV_READABLE = 8,
  PL_SEV_WRITABLE = 16, /* room again after a write that did not take everything */
  PL_SEV_EOF = 32,      /* peer's FIN reached: after the buffered bytes no more come */
  PL_SEV_RESET = 64,    /* RST received, retransmissions used up, or idle timeout: the stream is dead */
  PL_SEV_CLOSED = 128,  /* both sides done and TIME_WAIT over (or dead): the engine may free it */
};

enum pl_stream_state {
  PL_ST_CLOSED = 0,
  PL_ST_SYN_SENT,
  PL_ST_ESTABLISHED,
  PL_ST_FIN_WAIT,   /* our FIN is out, unanswered */
  PL_ST_TIME_WAIT,
};

/* A packet to send. Payload = span 1 then span 2 (either may be empty), valid until the next call on the stream. */
typedef struct pl_stream_out {
  uint8_t flags;
  uint32_t seq, ack;
  uint16_t window;
  const uint8_t *p1, *p2;
  uint32_t n1, n2;
} pl_stream_out;

/* `isn` random. Dialer: `offer` (may be NULL) goes into the SYN as option payload. */
pl_stream *pl_stream_dial(const pl_stream_cfg *cfg, uint32_t isn, uint32_t mss, const pl_synopt *offer, uint64_t now_ns);
/* Acceptor: `syn` is the received SYN; when it carries options and `offer` is not NULL, options are in force
 * and `offer` is answered in SYN+ACK. */
pl_stream *pl_stream_accept(const pl_stream_cfg *cfg, uint32_t isn, uint32_t mss, const pl_synopt *offer,
                            const pl_packet *syn, uint64_t now_ns);
void pl_stream_free(pl_stream *s); /* gives its memory back to the budget */

/* Takes one packet of this stream (any flags; a duplicate SYN is answered by the original SYN+ACK). Returns PL_SEV bits. */
unsigned pl_stream_recv(pl_stream *s, const pl_packet *pkt, uint64_t now_ns);
/* Next packet to send now; 1 with *out filled, or 0. */
int pl_stream_next(pl_stream *s, uint64_t now_ns, pl_stream_out *out);
uint64_t pl_stream_deadline(const pl_stream *s); /* PL_NEVER if none */
unsigned pl_stream_tick(pl_stream *s, uint64_t now_ns);

/* Until released, a dialer sends no SYN and its dial timeout does not run out before dial_timeout_ns (the
 * engine holds it while the peer has no key). pl_stream_dial starts held. */
void pl_stream_release(pl_stream *s, uint64_t now_ns);
/* The SYN goes out once more at once, if it is out: the peer could not read the former one. */
void pl_stream_dial_again(pl_stream *s);

/* Copies in up to `len` bytes, returns how many fitted (0 when full; PL_ESTATE after close or before ESTABLISHED
 * is not an error for a dialer: bytes wait). */
int64_t pl_stream_write(pl_stream *s, const uint8_t *data, size_t len);
/* Contiguous free space in the send buffer for reading into directly; then commit what was written. */
size_t pl_stream_reserve(pl_stream *s, size_t want, uint8_t **p);
void pl_stream_commit(pl_stream *s, size_t len);
size_t pl_stream_writable(const pl_stream *s);
size_t pl_stream_unacked(const pl_stream *s); /* bytes written and not yet acknowledged, sent or not */
/* In-order bytes waiting, as up to two spans. */
size_t pl_stream_readable(const pl_stream *s);
unsigned pl_stream_peek(const pl_stream *s, const uint8_t *p[2], size_t n[2]);
void pl_stream_consume(pl_stream *s, size_t n, uint64_t now_ns); /* may make a window update due */
bool pl_stream_eof(const pl_stream *s);                          /* FIN reached and nothing left to read */

/* Orderly close: FIN once everything written is acknowledged (or linger ends). Reading goes on until the peer's FIN. */
void pl_stream_close(pl_stream *s, uint64_t now_ns);
/* Hard close: one RST, then CLOSED. */
void pl_stream_abort(pl_stream *s, uint64_t now_ns);

/* One acknowledgement without need: a peer that does not know the stream any more may say so. */
void pl_stream_ask(pl_stream *s);
/* The path changed: new largest segment, round-trip estimate and congestion state start afresh; with options in force
 * lost segments may be cut anew, otherwise boundaries stay. */
void pl_stream_path_changed(pl_stream *s, uint32_t mss, uint64_t now_ns);
/* Same path, larger or smaller segments from now on (path MTU discovery). */
void pl_stream_set_mss(pl_stream *s, uint32_t mss);

typedef struct pl_stream_info {
  enum pl_stream_state state;
  bool options;          /* own-kind options in force */
  uint32_t mss;
  uint64_t cwnd, ssthresh, in_flight; /* bytes */
  uint64_t pacing_rate;  /* bytes per second, 0 = unpaced */
  uint64_t srtt_ns, rttvar_ns, min_rtt_ns;
  uint32_t unacked_segs, ooo_segs;
  uint32_t peer_window, local_window; /* slots as last received / advertised */
  bool in_recovery;
  uint64_t bytes_sent, bytes_recv;    /* payload, first transmissions / delivered in order */
  uint64_t segs_sent, segs_recv, retransmits, fast_retx, sack_recv, sack_sent, dup_acks, timeouts;
} pl_stream_info;
void pl_stream_get_info(const pl_stream *s, pl_stream_info *out);

#endif
