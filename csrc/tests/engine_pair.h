/* Two engines joined in memory on virtual time, for the engine tests. Every datagram travels in memory of exactly its size. A third
 * party seals whatever it likes with the shared key, as a hostile or older peer would. */
#ifndef PL_ENGINE_PAIR_H
#define PL_ENGINE_PAIR_H

#include "aead.h"
#include "check.h"
#include "engine.h"

#define MS PL_NS_PER_MS
#define S PL_NS_PER_S

typedef struct pair_gram {
  struct pair_gram *next;
  pl_addr from, to;
  uint64_t at;
  uint32_t len;
  uint8_t data[];
} pair_gram;

typedef struct pair_end {
  pl_engine *e;
  pl_tx tx;
  pl_addr addr;
  uint32_t node;
  struct pair *net;
  unsigned count[32]; /* events by type */
  pl_event *last[32]; /* the last of each */
} pair_end;

typedef struct pair {
  uint64_t now, delay;
  pair_end n[2];
  pair_gram *head, *tail;
  pl_addr beacon;
  unsigned to_beacon, elsewhere; /* datagrams that left for neither end */
  pair_gram *last_elsewhere;
  bool (*drop)(struct pair *p, const pair_gram *g);
  uint32_t dropped;
  uint8_t key[32];
} pair;

static inline pl_addr pair_addr(uint8_t last, uint16_t port) { return (pl_addr){.family = 4, .port = port, .ip = {192, 0, 2, last}}; }

static inline void pair_flush(pl_tx *tx, void *ctx) {
  pair_end *end = ctx;
  pair *p = end->net;
  for (unsigned i = 0; i < tx->n_runs; i++) {
    const pl_run *r = &tx->runs[i];
    for (uint32_t off = 0; off < r->len; off += r->seg) {
      uint32_t len = r->len - off < r->seg ? r->len - off : r->seg;
      pair_gram *g = malloc(sizeof *g + len);
      CHECK(g != NULL);
      *g = (pair_gram){.from = end->addr, .to = r->to, .at = p->now + p->delay, .len = len};
      memcpy(g->data, tx->arena + r->off + off, len);
      if (p->drop && p->drop(p, g)) {
        p->dropped++;
        free(g);
        continue;
      }
      if (p->tail)
        p->tail->next = g;
      else
        p->head = g;
      p->tail = g;
    }
  }
  pl_tx_reset(tx);
}

/* One datagram into an engine; a copy, so that a read past its end is seen. */
static inline void pair_input(pair *p, unsigned to, const void *data, size_t len, pl_addr from) {
  uint8_t *copy = check_copy(data, len);
  pl_engine_input(p->n[to].e, copy, len, 0, &from, p->now);
  free(copy);
}

static inline void pair_events(pair_end *end) {
  for (pl_event *ev; (ev = pl_engine_event(end->e));) {
    CHECK(ev->type < 32);
    end->count[ev->type]++;
    pl_event_free(end->last[ev->type]);
    end->last[ev->type] = ev;
  }
}

static inline unsigned pair_count(pair *p, unsigned i, unsigned type) {
  pair_events(&p->n[i]);
  return p->n[i].count[type];
}

static inline const pl_event *pair_last(pair *p, unsigned i, unsigned type) {
  pair_events(&p->n[i]);
  CHECK(p->n[i].last[type] != NULL);
  return p->n[i].last[type];
}

static inline void pair_deliver(pair *p, pair_gram *g) {
  for (unsigned i = 0; i < 2; i++) {
    if (!pl_addr_eq(&g->to, &p->n[i].addr)) continue;
    pair_input(p, i, g->data, g->len, g->from);
    free(g);
    return;
  }
  if (pl_addr_eq(&g->to, &p->beacon) && g->len >= PL_RELAY_HEAD && g->data[0] == PL_BEACON_RELAY) { /* a beacon that relays */
    p->to_beacon++;
    for (unsigned i = 0; i < 2; i++)
      if (pl_get32(g->data + 5) == p->n[i].node) {
        memmove(g->data + 5, g->data + PL_RELAY_HEAD, g->len - PL_RELAY_HEAD);
        g->data[0] = PL_BEACON_DELIVER;
        pair_input(p, i, g->data, g->len - 4, p->beacon);
      }
    free(g);
    return;
  }
  p->elsewhere++;
  free(p->last_elsewhere);
  p->last_elsewhere = g;
}

static inline void pair_run(pair *p, uint64_t ns) {
  uint64_t end = p->now + ns;
  for (;;) {
    for (unsigned i = 0; i < 2; i++) pl_engine_flush(p->n[i].e, p->now);
    while (p->head && p->head->at <= p->now) {
      pair_gram *g = p->head;
      p->head = g->next;
      if (!p->head) p->tail = NULL;
      pair_deliver(p, g);
      if (!p->head || p->head->at > p->now)
        for (unsigned i = 0; i < 2; i++) pl_engine_flush(p->n[i].e, p->now);
    }
    uint64_t next = p->head ? p->head->at : PL_NEVER;
    for (unsigned i = 0; i < 2; i++) next = pl_min64(next, pl_engine_deadline(p->n[i].e));
    if (next > end) break;
    p->now = pl_max64(next, p->now + 1);
  }
  p->now = end;
}

static inline void pair_add(pair *p, unsigned i, const pl_engine_cfg *cfg) {
  pair_end *end = &p->n[i];
  end->net = p;
  end->node = i ? 0xb0000002 : 0xa001;
  end->addr = pair_addr((uint8_t)(i + 1), (uint16_t)(4001 + i));
  CHECK(pl_tx_init(&end->tx, pair_flush, end) == PL_OK);
  pl_engine_cfg c = *cfg;
  c.entropy[0] = (uint8_t)(i + 1);
  end->e = pl_engine_new(&c, &end->tx, p->now);
  CHECK(end->e != NULL);
  pl_engine_set_node(end->e, end->node);
  pl_engine_set_beacons(end->e, &p->beacon, 1);
}

static inline pl_engine_cfg pair_cfg(void) {
  pl_engine_cfg c;
  pl_engine_cfg_default(&c);
  return c;
}

/* Both ends there; no keys, no paths. */
static inline void pair_init(pair *p, const pl_engine_cfg *cfg) {
  memset(p, 0, sizeof *p);
  p->now = 100 * S;
  p->delay = 5 * MS;
  p->beacon = pair_addr(99, 9001);
  for (unsigned i = 0; i < 32; i++) p->key[i] = (uint8_t)(i * 7 + 1);
  pair_add(p, 0, cfg);
  pair_add(p, 1, cfg);
}

/* Keys on both sides, paths, trust as given (bit i: end i trusts the other). */
static inline void pair_join(pair *p, const pl_caps *caps, unsigned trust) {
  for (unsigned i = 0; i < 2; i++) {
    pair_end *me = &p->n[i], *peer = &p->n[!i];
    if (trust >> i & 1) CHECK(pl_engine_set_trusted(me->e, peer->node, true) == PL_OK);
    CHECK(pl_engine_install_key(me->e, peer->node, p->key, 1, caps, p->now) == PL_OK);
    CHECK(pl_engine_set_path(me->e, peer->node, &peer->addr, false, p->now) == PL_OK);
  }
}

static inline void pair_free(pair *p) {
  while (p->head) {
    pair_gram *g = p->head;
    p->head = g->next;
    free(g);
  }
  free(p->last_elsewhere);
  for (unsigned i = 0; i < 2; i++) {
    pl_engine_free(p->n[i].e);
    pl_tx_free(&p->n[i].tx);
    for (unsigned k = 0; k < 32; k++) pl_event_free(p->n[i].last[k]);
  }
}

static inline pl_engine_stats pair_stats(const pair *p, unsigned i) {
  pl_engine_stats s;
  pl_engine_get_stats(p->n[i].e, &s);
  return s;
}

static inline pl_peer_info pair_peer(const pair *p, unsigned i) {
  pl_peer_info info;
  CHECK(pl_engine_peer_info(p->n[i].e, p->n[!i].node, &info) == PL_OK);
  return info;
}

/* A sealed frame made outside of any engine; free it. */
static inline uint8_t *pair_seal(const uint8_t key[32], uint32_t node, uint32_t prefix, uint64_t counter, const uint8_t *inner, size_t n,
                                 size_t *len) {
  *len = PL_PILS_OVERHEAD + n;
  uint8_t *f = malloc(*len);
  CHECK(f != NULL);
  pl_pils_write_head(f, node, prefix, counter);
  if (n) memcpy(f + PL_PILS_HEAD, inner, n);
  pl_aead *a = pl_aead_new(key);
  CHECK(a && pl_aead_seal(a, f + 8, f + 4, 4, f + PL_PILS_HEAD, n) == PL_OK);
  pl_aead_free(a);
  return f;
}

/* Sends `pkt`, sealed by the peer of end `to`, into end `to`. */
static inline void pair_inject(pair *p, unsigned to, uint32_t prefix, uint64_t counter, pl_packet pkt) {
  uint8_t inner[4096];
  CHECK(pkt.len <= sizeof inner - PL_HDR_SIZE);
  pl_packet_write_header(inner, &pkt);
  if (pkt.len) memcpy(inner + PL_HDR_SIZE, pkt.payload, pkt.len);
  pl_packet_write_crc(inner, PL_HDR_SIZE + (size_t)pkt.len);
  size_t len;
  uint8_t *f = pair_seal(p->key, p->n[!to].node, prefix, counter, inner, PL_HDR_SIZE + (size_t)pkt.len, &len);
  pair_input(p, to, f, len, p->n[!to].addr);
  free(f);
}

static inline pl_packet pair_packet(const pair *p, unsigned to, uint8_t proto, uint8_t flags, uint16_t src, uint16_t dst) {
  return (pl_packet){.proto = proto, .flags = flags, .src_node = p->n[!to].node, .dst_node = p->n[to].node, .src_port = src, .dst_port = dst};
}

#endif
