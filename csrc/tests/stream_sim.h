/* Two streams, two links and a clock: a virtual network for the stream tests. Everything follows from one seed.
 *
 * A link delays, serializes at a rate behind a bounded queue, loses, duplicates and reorders. An endpoint writes a known
 * byte sequence and checks what it reads against the sequence of the other side, so a byte lost, doubled or moved is seen at once. */
#ifndef PL_STREAM_SIM_H
#define PL_STREAM_SIM_H

#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "stream.h"

typedef struct sim_rng {
  uint64_t s;
} sim_rng;
static inline uint64_t sim_u64(sim_rng *r) { /* splitmix64 */
  uint64_t z = (r->s += 0x9e3779b97f4a7c15ull);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}
static inline double sim_unit(sim_rng *r) { return (double)(sim_u64(r) >> 11) / 9007199254740992.0; }

typedef struct sim_pkt {
  uint64_t at, order;
  pl_packet h;
  uint8_t *data;
} sim_pkt;

typedef struct sim_link {
  uint64_t delay_ns, jitter_ns; /* jitter reorders */
  uint64_t rate;                /* bytes per second, 0 = infinite */
  uint64_t queue;               /* bytes that may wait for the rate; 0 = unbounded */
  double loss, dup;
  bool down;
  uint64_t busy_own, *busy_until; /* until when the wire is taken; may be shared by links that share a bottleneck */
  sim_pkt *heap;
  size_t n, cap;
  uint64_t sent, dropped, bytes, max_queue_ns;
  bool (*filter)(void *ctx, const pl_packet *p); /* false drops */
  void *filter_ctx;
} sim_link;

typedef struct sim_end {
  pl_stream *s;
  bool held;             /* application does not read now */
  uint64_t to_send, written, read;
  uint64_t salt, peer_salt;
  uint64_t read_rate;    /* bytes per second, 0 = all at once */
  uint64_t read_credit_at;
  double read_credit;
  bool close_when_done, closed_called, close_on_eof;
  unsigned events;       /* all seen */
  bool eof;
  uint64_t done_at;      /* everything expected was read */
  uint64_t expect;
  uint64_t acked;        /* offset, highest acknowledgement delivered to this end */
  uint16_t *seg_len;     /* by offset: length of the segment first sent there; boundary check when not NULL */
  uint64_t seg_cap;
  uint32_t isn;
  uint32_t max_segs_out, max_seg;
  uint64_t fins, finacks, rsts, pure_acks, sack_acks;
  const uint8_t *text;   /* what is written, instead of the pattern */
} sim_end;

typedef struct sim {
  uint64_t seed, now, order;
  sim_rng rng;
  sim_end e[2];
  sim_link l[2]; /* l[i]: from end i to the other */
  pl_budget budget;
  pl_stream_cfg cfg[2];
  uint64_t steps;
} sim;

static inline uint8_t sim_byte(uint64_t salt, uint64_t off) {
  uint64_t z = (off >> 3) * 0x9e3779b97f4a7c15ull + salt;
  z = (z ^ z >> 29) * 0xbf58476d1ce4e5b9ull;
  return (uint8_t)(z >> 8 * (off & 7));
}

static inline pl_stream_cfg sim_cfg(const char *cc) {
  return (pl_stream_cfg){.congestion = cc, .send_buffer = 4u << 20, .recv_buffer = 16u << 20, .recv_buffer_plain = 2u << 20,
                         .keepalive_ns = 25 * PL_NS_PER_S, .idle_timeout_ns = 120 * PL_NS_PER_S, .time_wait_ns = 10 * PL_NS_PER_S,
                         .linger_ns = 60 * PL_NS_PER_S, .syn_timer_ns = 250 * PL_NS_PER_MS, .dial_timeout_ns = 30 * PL_NS_PER_S};
}

static inline pl_synopt sim_opt(void) {
  return (pl_synopt){.window_shift = 9, .max_sack = 32, .max_segment = 8192, .reorder_segments = 32768};
}

static inline void sim_push(sim_link *l, sim_pkt p) {
  if (l->n == l->cap) {
    l->cap = l->cap ? 2 * l->cap : 64;
    l->heap = realloc(l->heap, l->cap * sizeof *l->heap);
  }
  size_t i = l->n++;
  while (i) {
    size_t up = (i - 1) / 2;
    if (l->heap[up].at < p.at || (l->heap[up].at == p.at && l->heap[up].order < p.order)) break;
    l->heap[i] = l->heap[up];
    i = up;
  }
  l->heap[i] = p;
}

static inline sim_pkt sim_pop(sim_link *l) {
  sim_pkt top = l->heap[0], p = l->heap[--l->n];
  size_t i = 0;
  for (;;) {
    size_t c = 2 * i + 1;
    if (c >= l->n) break;
    if (c + 1 < l->n && (l->heap[c + 1].at < l->heap[c].at ||
                         (l->heap[c + 1].at == l->heap[c].at && l->heap[c + 1].order < l->heap[c].order)))
      c++;
    if (p.at < l->heap[c].at || (p.at == l->heap[c].at && p.order < l->heap[c].order)) break;
    l->heap[i] = l->heap[c];
    i = c;
  }
  if (l->n) l->heap[i] = p;
  return top;
}

static inline void sim_transmit(sim *m, sim_link *l, const pl_packet *h, const uint8_t *data) {
  l->sent++;
  if (l->down || (l->filter && !l->filter(l->filter_ctx, h)) || sim_unit(&m->rng) < l->loss) {
    l->dropped++;
    return;
  }
  uint64_t at = m->now, size = h->len + 70u;
  if (l->rate) {
    uint64_t *busy = l->busy_until ? l->busy_until : &l->busy_own;
    uint64_t start = pl_max64(*busy, m->now), wait = start - m->now;
    if (l->queue && (double)wait * (double)l->rate / 1e9 > (double)l->queue) {
      l->dropped++;
      return;
    }
    if (wait > l->max_queue_ns) l->max_queue_ns = wait;
    *busy = start + size * PL_NS_PER_S / l->rate;
    at = *busy;
  }
  l->bytes += h->len;
  unsigned copies = sim_unit(&m->rng) < l->dup ? 2 : 1;
  while (copies--) {
    sim_pkt p = {.at = at + l->delay_ns + (l->jitter_ns ? sim_u64(&m->rng) % l->jitter_ns : 0), .order = m->order++, .h = *h};
    p.data = malloc(h->len + 1u);
    if (h->len) memcpy(p.data, data, h->len);
    p.h.payload = p.data;
    sim_push(l, p);
  }
}

/* Watches what end `i` sends: segment size, unacknowledged segments, frozen boundaries. */
static inline void sim_watch(sim *m, unsigned i, const pl_packet *h, const uint8_t *data) {
  sim_end *e = &m->e[i];
  if (h->flags & PL_FLAG_RST) e->rsts++;
  if (h->flags & PL_FLAG_FIN) {
    if (h->flags & PL_FLAG_ACK)
      e->finacks++;
    else
      e->fins++;
  }
  if (h->flags != PL_FLAG_ACK) return;
  pl_sack_block b[PL_SACK_MAX];
  if (!h->len) {
    e->pure_acks++;
    return;
  }
  if (pl_sack_parse(data, data + h->len, PL_SACK_MAX, b)) {
    e->sack_acks++;
    return;
  }
  if (h->len > e->max_seg) e->max_seg = h->len;
  if (!e->seg_len) return;
  uint64_t off = (uint32_t)(h->seq - e->isn - 1);
  CHECK(off + h->len <= e->seg_cap);
  if (h->len == 1 && off + 1 == e->acked) return; /* probe of a closed window */
  if (!e->seg_len[off]) {
    for (uint32_t k = 1; k < h->len; k++) CHECK(!e->seg_len[off + k]);
    e->seg_len[off] = h->len;
    uint32_t out = 0;
    for (uint64_t at = e->acked; at < off + h->len && e->seg_len[at]; at += e->seg_len[at]) out++;
    if (out > e->max_segs_out) e->max_segs_out = out;
  } else if (e->seg_len[off] != h->len) {
    fprintf(stderr, "seed %llu: boundary at %llu was %u, now %u\n", (unsigned long long)m->seed, (unsigned long long)off,
            e->seg_len[off], h->len);
    CHECK(e->seg_len[off] == h->len);
  }
}

static inline void sim_flush(sim *m, unsigned i) {
  pl_stream_out o;
  uint8_t *buf = NULL;
  for (unsigned guard = 0; pl_stream_next(m->e[i].s, m->now, &o); guard++) {
    CHECK(guard < 100000);
    pl_packet h = {.flags = o.flags, .proto = PL_PROTO_STREAM, .seq = o.seq, .ack = o.ack, .window = o.window,
                   .len = (uint16_t)(o.n1 + o.n2)};
    buf = realloc(buf, h.len + 1u);
    if (o.n1) memcpy(buf, o.p1, o.n1);
    if (o.n2) memcpy(buf + o.n1, o.p2, o.n2);
    h.payload = buf;
    sim_watch(m, i, &h, buf);
    sim_transmit(m, &m->l[i], &h, buf);
  }
  free(buf);
}

static inline void sim_app(sim *m, unsigned i) {
  sim_end *e = &m->e[i];
  const uint8_t *p[2];
  size_t n[2];
  if (!e->held) {
    uint64_t may = UINT64_MAX;
    if (e->read_rate) {
      e->read_credit += (double)(m->now - e->read_credit_at) * (double)e->read_rate / 1e9;
      e->read_credit_at = m->now;
      may = (uint64_t)e->read_credit;
    }
    unsigned spans = pl_stream_peek(e->s, p, n);
    uint64_t took = 0;
    for (unsigned k = 0; k < spans; k++) {
      for (size_t j = 0; j < n[k] && took < may; j++, took++) {
        if (p[k][j] != sim_byte(e->peer_salt, e->read)) {
          fprintf(stderr, "seed %llu: wrong byte at %llu\n", (unsigned long long)m->seed, (unsigned long long)e->read);
          CHECK(!"bytes arrive exactly once and in order");
        }
        e->read++;
      }
    }
    if (took) pl_stream_consume(e->s, took, m->now);
    if (e->read_rate) e->read_credit -= (double)took;
    if (e->read >= e->expect && !e->done_at) e->done_at = m->now;
    if (pl_stream_eof(e->s)) {
      e->eof = true;
      if (e->close_on_eof && !e->closed_called) {
        e->closed_called = true;
        pl_stream_close(e->s, m->now);
      }
    }
  }
  uint8_t buf[16384];
  while (e->written < e->to_send) {
    size_t want = e->to_send - e->written < sizeof buf ? (size_t)(e->to_send - e->written) : sizeof buf, room = pl_stream_writable(e->s);
    if (!room) break;
    if (want > room) want = room + 1 < sizeof buf ? room + 1 : room; /* one too many now and then: a short write */
    if (want > e->to_send - e->written) want = (size_t)(e->to_send - e->written);
    for (size_t j = 0; j < want; j++) buf[j] = e->text ? e->text[e->written + j] : sim_byte(e->salt, e->written + j);
    int64_t w = pl_stream_write(e->s, buf, want);
    if (w <= 0) break;
    e->written += (uint64_t)w;
    if ((size_t)w < want) break;
  }
  if (e->written == e->to_send && e->close_when_done && !e->closed_called) {
    e->closed_called = true;
    pl_stream_close(e->s, m->now);
  }
}

static inline void sim_deliver(sim *m, unsigned to, sim_pkt *p, const pl_synopt *offer, uint32_t isn, uint32_t mss) {
  sim_end *e = &m->e[to];
  if (!e->s) {
    if (p->h.flags == PL_FLAG_SYN) {
      e->s = pl_stream_accept(&m->cfg[to], isn, mss, offer, &p->h, m->now);
      e->isn = isn;
    }
    return;
  }
  if (p->h.flags & PL_FLAG_ACK) {
    uint64_t off = (uint32_t)(p->h.ack - e->isn - 1);
    if (off > e->acked && off < 1ull << 31) e->acked = off;
  }
  e->events |= pl_stream_recv(e->s, &p->h, m->now);
}

typedef struct sim_opts {
  bool own[2];
  const char *cc[2];
  uint32_t mss[2], isn[2];
  bool watch; /* check frozen boundaries of plain senders */
} sim_opts;

static pl_synopt sim_offer_store;

static inline void sim_init(sim *m, uint64_t seed) {
  memset(m, 0, sizeof *m);
  m->seed = seed;
  m->rng.s = seed;
  m->budget.limit = 512u << 20;
  m->now = PL_NS_PER_S;
  for (unsigned i = 0; i < 2; i++) {
    m->cfg[i] = sim_cfg("cubic");
    m->cfg[i].budget = &m->budget;
    m->e[i].salt = sim_u64(&m->rng);
    m->l[i].delay_ns = 10 * PL_NS_PER_MS;
  }
  m->e[0].peer_salt = m->e[1].salt;
  m->e[1].peer_salt = m->e[0].salt;
}

static inline void sim_watch_bounds(sim *m, unsigned i) {
  m->e[i].seg_cap = m->e[i].to_send;
  m->e[i].seg_len = calloc(m->e[i].to_send + 2, sizeof *m->e[i].seg_len);
}

/* Runs until `until`, or both ends have read all they expect (when `stop_done`). Returns false when nothing can happen any more. */
static inline bool sim_run(sim *m, const sim_opts *o, uint64_t until, bool stop_done) {
  sim_offer_store = sim_opt();
  for (unsigned i = 0; i < 2; i++) m->e[i].expect = m->e[!i].to_send;
  if (!m->e[0].s) {
    m->cfg[0].congestion = o->cc[0];
    m->cfg[1].congestion = o->cc[1];
    m->e[0].s = pl_stream_dial(&m->cfg[0], o->isn[0], o->mss[0], o->own[0] ? &sim_offer_store : NULL, m->now);
    m->e[0].isn = o->isn[0];
    pl_stream_release(m->e[0].s, m->now);
  }
  for (;;) {
    for (unsigned i = 0; i < 2; i++) {
      if (!m->e[i].s) continue;
      if (pl_stream_deadline(m->e[i].s) <= m->now) m->e[i].events |= pl_stream_tick(m->e[i].s, m->now);
      sim_app(m, i);
      sim_flush(m, i);
    }
    if (stop_done && m->e[0].done_at && m->e[1].done_at) return true;
    uint64_t next = until;
    for (unsigned i = 0; i < 2; i++) {
      if (m->l[i].n) next = pl_min64(next, m->l[i].heap[0].at);
      if (!m->e[i].s) continue;
      next = pl_min64(next, pl_stream_deadline(m->e[i].s));
      if (m->e[i].read_rate && pl_stream_readable(m->e[i].s)) next = pl_min64(next, m->now + PL_NS_PER_MS);
    }
    if (next <= m->now) next = m->now + 1; /* deadlines in the past were served above; time must go on */
    if (next >= until) {
      m->now = until;
      return false;
    }
    if (++m->steps > 20000000) {
      fprintf(stderr, "seed %llu: endless\n", (unsigned long long)m->seed);
      CHECK(!"the simulation makes progress");
    }
    m->now = next;
    for (unsigned i = 0; i < 2; i++)
      while (m->l[i].n && m->l[i].heap[0].at <= m->now) {
        sim_pkt p = sim_pop(&m->l[i]);
        sim_deliver(m, !i, &p, o->own[1] ? &sim_offer_store : NULL, o->isn[1], o->mss[1]);
        free(p.data);
      }
  }
}

static inline void sim_free(sim *m) {
  for (unsigned i = 0; i < 2; i++) {
    pl_stream_free(m->e[i].s);
    free(m->e[i].seg_len);
    while (m->l[i].n) {
      sim_pkt p = sim_pop(&m->l[i]);
      free(p.data);
    }
    free(m->l[i].heap);
  }
  CHECK(m->budget.used == 0);
}

#endif
