/* Beacon messages in, sends out: discover, relay, sync (beacon.md sections 3, 6, 7). relay_table.c knows who is where, relay_punch.c
 * introduces, relay_probe.c answers NAT probes.
 *
 * A relayed datagram is never copied: its 9-byte head becomes a 5-byte one in place, and its iovec starts 4 bytes later. Datagrams for
 * one destination that agree in size are collected into runs, which leave as one UDP_SEGMENT send each.
 * Hardening beyond the published beacons: id 0 is never stored; the sender of a 0x05 must be at its table entry; a 0x05 from a peer beacon is
 * never forwarded again; 0x07 only from peers. An id that nobody holds is taken by a 0x05 as by a discover: after a restart of the beacon
 * its relayed flows go on with the next datagram of either side, not with the next keep-alive. */
#include "relay_internal.h"

#include <stdlib.h>

#include "wire.h"

#define DISCOVER_NONCE 8

void pl_relay_cfg_default(pl_relay_cfg *cfg) {
  memset(cfg, 0, sizeof *cfg);
  cfg->max_nodes = 500000;
  cfg->max_nodes_per_ip = 4096;
  cfg->node_ttl_ns = 600 * PL_NS_PER_S;
  cfg->claim_ttl_ns = 130 * PL_NS_PER_S;
  cfg->punch_rate = 5;
  cfg->probe_rate = 20;
  cfg->pace_rate = 20000;
  cfg->relay_bytes_per_s = 1250000000; /* 10 Gbit/s */
}

pl_relay *pl_relay_new(const pl_relay_cfg *cfg, uint64_t now_ns) {
  pl_relay *r = calloc(1, sizeof *r);
  if (!r) return NULL;
  r->cfg = *cfg;
  if (r->cfg.max_nodes == 0) r->cfg.max_nodes = 1;
  /* Daemons of the published kind refresh their entry every 60 s, and only while they reach their registry. */
  if (r->cfg.node_ttl_ns < 180 * PL_NS_PER_S) r->cfg.node_ttl_ns = 180 * PL_NS_PER_S;
  r->now_ns = now_ns;
  pl_map_init(&r->nodes, cfg->hash_seed);
  pl_map_init(&r->peers, cfg->hash_seed + 1);
  pl_map_init(&r->routes, cfg->hash_seed + 2);
  r->punch_node = calloc(PL_RELAY_BUCKETS, sizeof *r->punch_node);
  r->punch_ip = calloc(PL_RELAY_BUCKETS, sizeof *r->punch_ip);
  r->probe_ip = calloc(PL_RELAY_BUCKETS, sizeof *r->probe_ip);
  r->held = calloc(PL_RELAY_HOLDERS, sizeof *r->held);
  r->out = malloc(PL_RELAY_OUT * sizeof *r->out);
  r->runs = malloc(PL_RELAY_OUT * sizeof *r->runs);
  r->iov = malloc(PL_RELAY_OUT * sizeof *r->iov);
  r->sends = malloc(PL_RELAY_OUT * sizeof *r->sends);
  r->replies = malloc(PL_RELAY_OUT * PL_RELAY_REPLY_SIZE);
  r->answers = malloc(PL_PROBE_SENDS * sizeof *r->answers);
  if (!r->held || !r->punch_node || !r->punch_ip || !r->probe_ip || !r->out || !r->runs || !r->iov || !r->sends || !r->replies || !r->answers) {
    pl_relay_free(r);
    return NULL;
  }
  return r;
}

void pl_relay_free(pl_relay *r) {
  if (!r) return;
  pl_relay_table_free(r);
  free(r->held);
  free(r->punch_node);
  free(r->punch_ip);
  free(r->probe_ip);
  free(r->out);
  free(r->runs);
  free(r->iov);
  free(r->sends);
  free(r->replies);
  free(r->answers);
  free(r->hand[0]);
  free(r->hand[1]);
  free(r->arena);
  pl_wipe(r->secret, sizeof r->secret);
  free(r);
}

/* ---- output ---- */

void pl_relay_emit(pl_relay *r, const pl_addr *to, const pl_addr *from, pl_relay_slot *slot, uint8_t *p, uint32_t len) {
  uint32_t at = r->n_runs;
  if (slot && slot->batch == r->batch) {
    pl_relay_run *run = &r->runs[slot->run];
    if (!run->closed && len <= run->seg && run->n < PL_TX_RUN_SEGS && run->bytes + len <= PL_TX_RUN_BYTES) at = slot->run;
  }
  if (at == r->n_runs) {
    r->runs[r->n_runs++] = (pl_relay_run){.to = *to, .from = *from, .seg = len};
    if (slot) *slot = (pl_relay_slot){at, r->batch};
  }
  pl_relay_run *run = &r->runs[at];
  run->n++;
  run->bytes += len;
  if (len < run->seg) run->closed = true;
  r->out[r->n_out++] = (pl_relay_out){.iov = {p, len}, .run = at};
}

/* pace, nonce: 0 and NULL = none. */
static void emit_endpoint(pl_relay *r, const pl_addr *to, const pl_addr *from, uint8_t type, const pl_addr *endpoint, uint8_t pace,
                          const uint8_t *nonce) {
  uint8_t *p = r->replies + PL_RELAY_REPLY_SIZE * (size_t)r->n_replies;
  int len = pl_beacon_write_endpoint(p, type, endpoint);
  if (len < 0) return;
  if (pace) {
    memcpy(p + len, "PX\1", 3);
    p[len + 3] = pace;
    len += 4;
    if (nonce) {
      memcpy(p + len, nonce, DISCOVER_NONCE);
      len += DISCOVER_NONCE;
    }
  }
  r->n_replies++;
  pl_relay_emit(r, to, from, NULL, p, (uint32_t)len);
}

void pl_relay_emit_endpoint(pl_relay *r, const pl_addr *to, const pl_addr *from, uint8_t type, const pl_addr *endpoint) {
  emit_endpoint(r, to, from, type, endpoint, 0, NULL);
}

/* Gives each run its stretch of the iovec array. */
static void finish(pl_relay *r) {
  unsigned at = 0;
  for (unsigned i = 0; i < r->n_runs; i++) {
    const pl_relay_run *run = &r->runs[i];
    r->sends[i] = (pl_relay_send){.to = run->to, .from = run->from, .iov = r->iov + at, .seg = run->n > 1 ? run->seg : 0};
    at += run->n;
  }
  for (unsigned i = 0; i < r->n_out; i++) {
    pl_relay_send *s = &r->sends[r->out[i].run];
    s->iov[s->n_iov++] = r->out[i].iov;
  }
  r->n_sends = r->n_runs;
}

unsigned pl_relay_sends(pl_relay *r, const pl_relay_send **out) {
  *out = r->sends;
  return r->n_sends;
}

/* ---- discover ---- */

/* Seconds after which a node shall ask again: few nodes are asked to come often, so that a restart costs them little. */
static uint8_t pace(const pl_relay *r) {
  uint32_t s = r->n_bound / (r->cfg.pace_rate ? r->cfg.pace_rate : 1);
  return (uint8_t)(s < PL_PACE_MIN_S ? PL_PACE_MIN_S : s > PL_PACE_MAX_S ? PL_PACE_MAX_S : s);
}

/* Whether the question asks for the pace, and is no smaller than the reply with it. 37 bytes and more hold a key instead. */
static bool asks_pace(const pl_rx *rx, const uint8_t *p, uint32_t len) {
  return len < 37 && len >= (rx->from.family == 6 ? 24 : 12) && memcmp(p + 5, "PX\1", 3) == 0;
}

/* The same for the nonce that the reply repeats: an answer that somebody else makes up does not know it. */
static const uint8_t *nonce_of(const pl_rx *rx, const uint8_t *p, uint32_t len) {
  return len == (rx->from.family == 6 ? 32 : 20) && asks_pace(rx, p, len) ? p + 8 : NULL;
}

static void on_discover(pl_relay *r, const pl_rx *rx, const uint8_t *p, uint32_t len) {
  uint32_t node = pl_get32(p + 1);
  /* Id 0 is the start-up probe of a daemon that has no number yet. The reply never depends on the table. */
  if (rx->from.family == PL_ADDR_STREAM) { /* no reply: there is no endpoint to tell */
    if (node == pl_get32(rx->from.ip))
      pl_relay_alive(r, node);
    else
      r->st.spoofed++;
    return;
  }
  if (node) pl_relay_bind(r, node, &rx->from, &rx->local, p[0] == PL_BEACON_DISCOVER_DST);
  r->st.discovers++;
  emit_endpoint(r, &rx->from, &rx->local, PL_BEACON_DISCOVER_REPLY, &rx->from, asks_pace(rx, p, len) ? pace(r) : 0, nonce_of(rx, p, len));
}

/* ---- relay ---- */

static bool sent_by(const pl_relay_node *n, const pl_addr *from) {
  if (from->family == PL_ADDR_STREAM) return n->attached && n->id == pl_get32(from->ip);
  return pl_addr_eq(&n->addr, from);
}

/* Fills the memo for a head. False: dropped and counted. */
static bool route(pl_relay *r, const pl_rx *rx, const pl_relay_peer *via, const uint8_t *p) {
  pl_relay_memo *m = &r->memo;
  m->valid = false;
  m->sender = NULL;
  m->peer = NULL;
  uint32_t dest = pl_get32(p + 5);
  if (!via) {
    uint32_t sender = pl_get32(p + 1);
    m->sender = pl_relay_find(r, sender);
    if (!m->sender && sender && rx->from.family != PL_ADDR_STREAM) {
      m->sender = pl_relay_bind(r, sender, &rx->from, &rx->local, false);
      if (!m->sender) return false;
    }
    if (!m->sender || !sent_by(m->sender, &rx->from)) {
      r->st.spoofed++;
      return false;
    }
  }
  m->node = pl_relay_find(r, dest);
  if (!via && (m->peer = pl_relay_elsewhere(r, dest, m->node))) m->node = NULL;
  memcpy(m->head, p, sizeof m->head);
  m->valid = true;
  return true;
}

static bool within_budget(const pl_relay *r, pl_relay_node *n, uint32_t len) {
  if (r->cfg.relay_bytes_per_s == 0) return true;
  double burst = pl_relay_burst(r);
  n->tokens += (double)(r->now_ns - n->tokens_ns) * (double)r->cfg.relay_bytes_per_s / 1e9;
  if (n->tokens > burst) n->tokens = burst;
  n->tokens_ns = r->now_ns;
  if (n->tokens < len) return false;
  n->tokens -= len;
  return true;
}

static void on_relay(pl_relay *r, const pl_rx *rx, const pl_relay_peer *via, uint8_t *p, uint32_t len) {
  pl_relay_memo *m = &r->memo;
  if (!(m->valid && memcmp(m->head, p, sizeof m->head) == 0) && !route(r, rx, via, p)) return;
  if (!m->node && !m->peer) {
    r->st.not_found++;
    return;
  }
  if (m->sender && !within_budget(r, m->sender, len)) {
    r->st.limited++;
    return;
  }
  if (m->peer) {
    r->st.forwarded++;
    pl_relay_emit_peer(r, m->peer, p, len);
    return;
  }
  r->st.relayed++;
  r->st.relayed_bytes += len - PL_RELAY_HEAD;
  pl_relay_node *n = m->node;
  if (n->wants_dst && !n->attached) {
    p[0] = PL_BEACON_DELIVER_DST;
    pl_relay_emit(r, &n->addr, &n->local, &n->slot, p, len);
    return;
  }
  uint8_t sender[4];
  memcpy(sender, p + 1, 4);
  p += PL_RELAY_HEAD - PL_DELIVER_HEAD;
  p[0] = PL_BEACON_DELIVER;
  memcpy(p + 1, sender, 4);
  if (n->attached) {
    pl_relay_hand(r, n, p, len - (PL_RELAY_HEAD - PL_DELIVER_HEAD));
    return;
  }
  pl_relay_emit(r, &n->addr, &n->local, &n->slot, p, len - (PL_RELAY_HEAD - PL_DELIVER_HEAD));
}

/* ---- input ---- */

static bool is_of_beacons(uint8_t type) { return type == PL_BEACON_RELAY || type == PL_BEACON_SYNC || type == PL_BEACON_INTRODUCE; }

static void on_datagram(pl_relay *r, const pl_rx *rx, pl_relay_peer *via, uint8_t *p, uint32_t len) {
  if (via && r->sealed) {
    bool sealed = p[0] == PL_BEACON_SEALED;
    if (sealed && !(p = pl_relay_on_sealed(r, via, p, &len))) return;
    if (sealed != is_of_beacons(p[0])) { /* unsealed from a peer's address, or sealed what beacons do not say to each other */
      r->st.forged++;
      return;
    }
  }
  switch (p[0]) {
    case PL_BEACON_RELAY:
      if (len < PL_RELAY_HEAD) break;
      on_relay(r, rx, via, p, len);
      return;
    case PL_BEACON_DISCOVER:
    case PL_BEACON_DISCOVER_DST:
      if (len < 5) break;
      on_discover(r, rx, p, len);
      return;
    case PL_BEACON_PUNCH_REQUEST:
      if (len < 9) break;
      pl_relay_on_punch(r, rx, p);
      return;
    case PL_BEACON_SYNC: {
      if (len < 7) break;
      uint32_t count = pl_get16(p + 5);
      if (len < 7 + 4 * count) break;
      if (!via) {
        r->st.spoofed++;
        return;
      }
      const uint8_t *trailer = p + 7 + 4 * (size_t)count;
      uint32_t rest = len - 7 - 4 * count, n_ages = 0;
      if (rest >= 4 && memcmp(trailer, "PX\1", 3) == 0) {
        if (trailer[3] & PL_SYNC_ASKS) r->news = true;
        if (trailer[3] & PL_SYNC_AGES) n_ages = rest - 4 < count ? rest - 4 : count;
      }
      pl_relay_sync(r, via, p + 7, count, n_ages ? trailer + 4 : NULL, n_ages);
      return;
    }
    case PL_BEACON_INTRODUCE:
      if (!via) {
        r->st.spoofed++;
        return;
      }
      pl_relay_on_introduce(r, via, p, len);
      return;
    case PL_BEACON_PROBE:
      pl_relay_on_probe(r, rx, p, len);
      return;
    default:
      break;
  }
  r->st.bad++;
}

void pl_relay_input(pl_relay *r, pl_rx *batch, unsigned n, uint64_t now_ns) {
  if (now_ns > r->now_ns) r->now_ns = now_ns;
  r->batch++;
  r->n_out = r->n_runs = r->n_replies = r->n_answers = r->arena_used = 0;
  for (unsigned i = 0; i < n; i++) {
    const pl_rx *rx = &batch[i];
    pl_relay_peer *via = pl_relay_find_peer(r, &rx->from);
    r->memo.valid = false;
    uint32_t seg = rx->seg ? rx->seg : rx->len;
    for (uint32_t off = 0; off < rx->len; off += seg) {
      uint32_t left = rx->len - off;
      if (r->n_out + 2 > PL_RELAY_OUT) {
        r->st.limited += (left + seg - 1) / seg;
        break;
      }
      on_datagram(r, rx, via, rx->data + off, left < seg ? left : seg);
    }
  }
  finish(r);
}

void pl_relay_get_stats(const pl_relay *r, pl_relay_stats *out) {
  *out = r->st;
  out->nodes = r->n_bound;
  out->routes = (uint32_t)r->routes.used;
  out->attached = r->n_attached;
}
