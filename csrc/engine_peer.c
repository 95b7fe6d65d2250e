/* Peers: table, paths, keepalive, pings. */
#include "engine_internal.h"

#include <stdlib.h>

#define PROBE_NS (10 * PL_NS_PER_S) /* a ping answered later than this tells nothing */

pl_peer *pl_peer_find(const pl_engine *e, uint32_t node) { return pl_map_get(&e->peers, node); }

pl_peer *pl_peer_get(pl_engine *e, uint32_t node) {
  pl_peer *p = pl_map_get(&e->peers, node);
  if (p) return p;
  if (node == 0 || node == e->node || e->peers.used >= e->cfg.max_peers) return NULL;
  p = calloc(1, sizeof *p);
  if (!p) return NULL;
  p->node = node;
  p->created_ns = e->now_ns;
  p->timer.peer = p;
  p->budget = (pl_budget){.limit = PL_PEER_MEMORY, .parent = e->cfg.stream.budget};
  p->pmtu.confirmed = PL_PMTU_BASE;
  p->syn_tokens = 64;
  p->share_tokens = PL_SYN_SHARE_BURST;
  p->syn_at_ns = p->share_at_ns = e->now_ns;
  if (pl_map_put(&e->peers, node, p) < 0) {
    free(p);
    return NULL;
  }
  pl_peer_schedule(e, p);
  return p;
}

bool pl_peer_usable(const pl_peer *p) { return p->cur && p->has_path; }

bool pl_peer_certain(const pl_peer *p) { return pl_peer_usable(p) && !p->cur->foretold; }

void pl_peer_free(pl_engine *e, pl_peer *p) {
  if (p->rest_until_ns) pl_peer_stir(e, p, false);
  while (p->conns) pl_conn_kill(e, p->conns, true);
  pl_wheel_cancel(e->wheel, &p->timer.t);
  pl_map_del(&e->peers, p->node);
  if (p->cur) e->n_sessions--;
  pl_key_free(e, p->cur);
  pl_key_free(e, p->next);
  pl_key_free(e, p->prev);
  pl_datagram_drop_all(e, p);
  free(p->probes);
  free(p);
}

int pl_engine_set_trusted(pl_engine *e, uint32_t node, bool trusted) {
  pl_peer *p = trusted ? pl_peer_get(e, node) : pl_peer_find(e, node);
  if (!p) return trusted ? PL_ELIMIT : PL_OK;
  p->trusted = trusted;
  pl_peer_schedule(e, p);
  return PL_OK;
}

int pl_engine_forget_peer(pl_engine *e, uint32_t node, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_peer *p = pl_peer_find(e, node);
  if (!p) return PL_ENOENT;
  pl_peer_free(e, p);
  return PL_OK;
}

/* ---- traffic waits / may go ---- */

void pl_peer_want(pl_engine *e, pl_peer *p) {
  if (p->wanted_ns && e->now_ns - p->wanted_ns < PL_NS_PER_S) return;
  p->wanted_ns = e->now_ns ? e->now_ns : 1;
  pl_event *ev = pl_event_push(e, PL_EV_PEER_WANTED, NULL, 0, false);
  if (ev) ev->node = p->node;
}

void pl_peer_ready(pl_engine *e, pl_peer *p) {
  if (!pl_peer_usable(p)) return;
  p->wanted_ns = 0;
  if (pl_peer_certain(p)) pl_datagram_flush(e, p);
  for (pl_conn *c = p->conns; c; c = c->peer_next)
    if (c->held) pl_conn_release(e, c);
  if (p->pmtu.round == 0) pl_pmtu_start(e, p);
}

/* ---- paths ---- */

/* Largest segment for the active path: what discovery confirmed, what the peer takes, what we are configured for. */
uint32_t pl_peer_mss(const pl_engine *e, const pl_peer *p) {
  if (p->pmtu.confirmed <= PL_PMTU_BASE) return PL_SEGMENT_BASE;
  uint32_t room = p->pmtu.confirmed - PL_PILS_OVERHEAD - PL_HDR_SIZE - (p->relay ? PL_RELAY_HEAD : 0u);
  const pl_caps *caps = p->cur ? &p->cur->caps : NULL;
  uint32_t takes = caps && caps->max_segment >= PL_SEGMENT_BASE ? caps->max_segment : PL_SEGMENT_PLAIN_MAX;
  if (room > takes) room = takes;
  if (room > e->cfg.max_segment) room = e->cfg.max_segment;
  return room < PL_SEGMENT_BASE ? PL_SEGMENT_BASE : room;
}

void pl_peer_apply_mss(pl_engine *e, pl_peer *p) {
  uint32_t mss = pl_peer_mss(e, p);
  for (pl_conn *c = p->conns; c; c = c->peer_next)
    if (c->s) pl_stream_set_mss(c->s, mss); /* a held dial has no stream yet */
}

int pl_engine_set_path(pl_engine *e, uint32_t node, const pl_addr *to, bool relay, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  if (to->family != 4 && to->family != 6) return PL_EFORMAT;
  pl_peer *p = pl_peer_get(e, node);
  if (!p) return PL_ELIMIT;
  if (p->has_path && p->relay == relay && pl_addr_eq(&p->path, to)) return PL_OK;
  bool changed = p->has_path;
  p->has_path = true;
  p->path = *to;
  p->relay = relay;
  p->pmtu.confirmed = PL_PMTU_BASE;
  p->pmtu.round = 0;
  if (changed) {
    uint32_t mss = pl_peer_mss(e, p);
    for (pl_conn *c = p->conns; c; c = c->peer_next) {
      if (!c->s) continue;
      pl_stream_path_changed(c->s, mss, e->now_ns);
      pl_conn_activate(e, c);
    }
  }
  pl_peer_ready(e, p);
  pl_peer_schedule(e, p);
  return PL_OK;
}

/* ---- pings ---- */

/* Random to the peer, so that it cannot confirm probes that it did not receive: it would send our traffic to somebody else's address.
 * The engine's own generator gives its state away to who sees some numbers of it. */
static uint32_t probe_seq(pl_engine *e) {
  uint8_t nonce[12] = {0}, out[8 + PL_TAG_SIZE] = {0};
  pl_put32(nonce + 4, (uint32_t)(++e->n_probes >> 32));
  pl_put32(nonce + 8, (uint32_t)e->n_probes);
  uint32_t base = (uint32_t)pl_engine_random(e);
  return pl_aead_seal(e->probe_cipher, nonce, NULL, 0, out, 8) == PL_OK ? base ^ pl_get32(out) : base;
}

/* Place for one more: a free one, that of one too old to be answered, a new one, or that of the oldest. */
static pl_probe *probe_slot(pl_peer *p, uint64_t now_ns) {
  pl_probe *oldest = NULL;
  for (unsigned i = 0; i < p->max_probes; i++)
    if (!oldest || p->probes[i].sent_ns < oldest->sent_ns) oldest = &p->probes[i];
  if (oldest && (p->max_probes == PL_PROBES || oldest->sent_ns + PROBE_NS < now_ns || oldest->sent_ns == 0)) return oldest;
  unsigned room = p->max_probes ? 2u * p->max_probes : PL_PROBES_MIN;
  pl_probe *grown = realloc(p->probes, room * sizeof *grown);
  if (!grown) return oldest;
  memset(grown + p->max_probes, 0, (room - p->max_probes) * sizeof *grown);
  pl_probe *slot = &grown[p->max_probes];
  p->probes = grown;
  p->max_probes = room;
  return slot;
}

int pl_peer_ping(pl_engine *e, pl_peer *p, pl_key *k, const pl_addr *to, bool relay, uint64_t token, uint32_t size) {
  pl_probe *slot = probe_slot(p, e->now_ns);
  if (!slot) return PL_ENOMEM;
  *slot = (pl_probe){.seq = probe_seq(e), .size = size, .token = token, .sent_ns = e->now_ns | 1,
                     .relay = relay, .to = *to};
  uint32_t overhead = PL_PILS_OVERHEAD + PL_HDR_SIZE + (relay ? PL_RELAY_HEAD : 0u);
  uint16_t len = size > overhead + 8 ? (uint16_t)(size - overhead) : 8;
  uint8_t *payload = e->scratch;
  memset(payload, 0, len);
  pl_put32(payload, slot->seq);
  pl_packet ping = {.proto = PL_PROTO_CONTROL, .src_node = e->node, .dst_node = p->node, .src_port = PL_PROBE_PORT,
                    .seq = slot->seq, .len = len};
  return pl_session_send(e, p, k, to, relay, &ping, payload, len, NULL, 0);
}

int pl_engine_probe(pl_engine *e, uint32_t node, const pl_addr *to, bool relay, uint64_t token, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_peer *p = pl_peer_find(e, node);
  if (!p || !p->cur) return PL_ENOENT;
  if (to->family != 4 && to->family != 6) return PL_EFORMAT;
  return pl_peer_ping(e, p, p->next ? p->next : p->cur, to, relay, token, 0);
}

/* Frees the table of pings when all in it were sent before `before_ns`: an idle peer has none most of the time. */
static void probes_expire(pl_peer *p, uint64_t before_ns) {
  for (unsigned i = 0; i < p->max_probes; i++)
    if (p->probes[i].sent_ns >= pl_max64(before_ns, 1)) return;
  free(p->probes);
  p->probes = NULL;
  p->max_probes = 0;
}

/* Those that may still be answered, in no more room than they need: the table has been large while the path was found out. */
static void probes_pack(pl_peer *p, uint64_t now_ns) {
  unsigned n = 0, room = PL_PROBES_MIN;
  for (unsigned i = 0; i < p->max_probes; i++)
    if (p->probes[i].sent_ns && p->probes[i].sent_ns + PROBE_NS >= now_ns) p->probes[n++] = p->probes[i];
  while (room < n) room *= 2;
  if (p->max_probes) memset(p->probes + n, 0, (p->max_probes - n) * sizeof *p->probes);
  if (n == 0) {
    probes_expire(p, 0);
  } else if (room < p->max_probes) {
    pl_probe *packed = malloc(room * sizeof *packed); /* realloc would leave it where it is, among what is freed */
    if (!packed) return;
    memcpy(packed, p->probes, room * sizeof *packed);
    free(p->probes);
    p->probes = packed;
    p->max_probes = room;
  }
}

void pl_peer_on_pong(pl_engine *e, pl_peer *p, const pl_packet *pkt, const pl_addr *from, bool relayed) {
  for (unsigned i = 0; i < p->max_probes; i++) {
    pl_probe *b = &p->probes[i];
    if (!b->sent_ns || b->seq != pkt->seq) continue;
    uint64_t rtt = e->now_ns > b->sent_ns ? e->now_ns - b->sent_ns : 0; /* sent_ns is odd, so one more than its time */
    pl_probe done = *b;
    memset(b, 0, sizeof *b);
    probes_expire(p, e->now_ns > PROBE_NS ? e->now_ns - PROBE_NS : 0);
    if (done.size) {
      if (p->has_path && p->relay == done.relay && pl_addr_eq(&p->path, &done.to)) pl_pmtu_on_pong(e, p, done.size);
      return;
    }
    pl_event *ev = pl_event_push(e, PL_EV_PONG, NULL, 0, false);
    if (!ev) return;
    ev->node = p->node;
    ev->addr = *from;
    ev->relayed = relayed;
    ev->a = done.token;
    ev->b = rtt;
    return;
  }
}

/* ---- timer: keepalive, retired keys, path MTU, forgetting strangers ---- */

static bool keeps_alive(const pl_engine *e, const pl_peer *p) {
  return pl_peer_usable(p) && p->cur->proved &&
         (p->trusted || p->n_conns || e->now_ns - p->last_app_ns < 120 * PL_NS_PER_S);
}

/* One that rests is pinged by whoever looks after its path; what this file sends is for the case that nobody does. */
static uint64_t keepalive_ns(const pl_engine *e, const pl_peer *p) {
  uint64_t period = e->cfg.peer_keepalive_ns;
  return p->rest_until_ns ? period + period / 4 : period;
}

void pl_peer_active(pl_engine *e, pl_peer *p) {
  p->last_app_ns = e->now_ns;
  if (p->rest_until_ns) pl_peer_stir(e, p, true);
  if (!p->keeping) pl_peer_schedule(e, p);
}

void pl_peer_schedule(pl_engine *e, pl_peer *p) {
  uint64_t at = PL_NEVER;
  p->keeping = keeps_alive(e, p);
  if (p->keeping) at = p->last_send_ns + keepalive_ns(e, p);
  if (p->rest_until_ns) at = pl_min64(at, p->rest_until_ns);
  if (p->prev) at = pl_min64(at, p->prev->retire_ns);
  if (pl_peer_usable(p)) at = pl_min64(at, p->pmtu.next_ns);
  if (!p->trusted && !p->n_conns)
    at = pl_min64(at, pl_max64(pl_max64(p->last_recv_ns, p->last_app_ns), p->created_ns) + PL_PEER_IDLE_NS);
  pl_wheel_set(e->wheel, &p->timer.t, at);
}

void pl_peer_on_timer(pl_engine *e, pl_peer *p) {
  uint64_t now = e->now_ns;
  if (p->prev && p->prev->retire_ns <= now) {
    pl_key_free(e, p->prev);
    p->prev = NULL;
  }
  if (!p->trusted && !p->n_conns &&
      now >= pl_max64(pl_max64(p->last_recv_ns, p->last_app_ns), p->created_ns) + PL_PEER_IDLE_NS) {
    pl_peer_free(e, p);
    return;
  }
  if (p->rest_until_ns && p->rest_until_ns <= now) pl_peer_stir(e, p, false);
  if (now > PROBE_NS) probes_expire(p, now - PROBE_NS);
  if (pl_peer_usable(p) && p->pmtu.next_ns <= now) pl_pmtu_round(e, p);
  if (keeps_alive(e, p) && now >= p->last_send_ns + keepalive_ns(e, p)) {
    pl_packet keepalive = {.proto = PL_PROTO_CONTROL, .src_node = e->node};
    if (pl_session_send_active(e, p, &keepalive, NULL, 0) < 0) p->last_send_ns = now; /* retry a period later */
  }
  pl_peer_schedule(e, p);
}

/* ---- inspection ---- */

static void fill_info(const pl_engine *e, const pl_peer *p, pl_peer_info *out) {
  memset(out, 0, sizeof *out);
  out->node = p->node;
  out->trusted = p->trusted;
  out->session = p->cur != NULL;
  out->proved = p->cur && p->cur->proved;
  out->has_path = p->has_path;
  out->relay = p->relay;
  out->own_kind = p->cur && p->cur->caps.features & PL_CAP_STREAM_OPTS;
  out->path = p->path;
  out->mss = pl_peer_mss(e, p);
  out->era = !out->proved ? 0 : p->cur->era == PL_ERA_1 ? 1 : 2;
  out->key_id = p->cur ? p->cur->id : 0;
  out->last_recv_ns = p->last_recv_ns;
  out->last_send_ns = p->last_send_ns;
  out->last_direct_recv_ns = p->last_direct_recv_ns;
  out->bytes_sent = p->bytes_sent;
  out->bytes_recv = p->bytes_recv;
  out->pkts_sent = p->pkts_sent;
  out->pkts_recv = p->pkts_recv;
  out->open_failures = p->open_failures;
  out->conns = p->n_conns;
}

int pl_engine_peer_info(const pl_engine *e, uint32_t node, pl_peer_info *out) {
  const pl_peer *p = pl_peer_find(e, node);
  if (!p) return PL_ENOENT;
  fill_info(e, p, out);
  return PL_OK;
}

bool pl_engine_next_peer(const pl_engine *e, size_t *it, uint64_t since_ns, pl_peer_info *out) {
  const pl_peer *p;
  while ((p = pl_map_next(&e->peers, it, NULL))) {
    if (since_ns && (p->rest_until_ns || (p->last_recv_ns < since_ns && p->last_send_ns < since_ns))) continue;
    fill_info(e, p, out);
    return true;
  }
  return false;
}

/* ---- rest ---- */

#define REST_STEP_NS (1ull << 26) /* 67 ms: those of many peers end together, and the process wakes once for them */
#define REST_SHORT_NS PL_NS_PER_S

void pl_peer_stir(pl_engine *e, pl_peer *p, bool traffic) {
  pl_event *ev = pl_event_push(e, PL_EV_PEER_STIRRED, NULL, 0, false);
  p->rest_until_ns = ev ? 0 : e->now_ns + PL_NS_PER_S; /* without memory it is tried again: somebody waits for this event */
  if (!ev) return;
  ev->node = p->node;
  ev->a = traffic;
}

int pl_engine_rest(pl_engine *e, uint32_t node, uint64_t until_ns, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_peer *p = pl_peer_find(e, node);
  if (!p) return PL_ENOENT;
  if (until_ns > e->now_ns + REST_SHORT_NS && until_ns < PL_NEVER - REST_STEP_NS)
    until_ns = (until_ns + REST_STEP_NS - 1) & ~(REST_STEP_NS - 1);
  p->rest_until_ns = until_ns;
  if (until_ns) {
    pl_key *keys[] = {p->cur, p->next, p->prev};
    for (unsigned i = 0; i < 3; i++)
      if (keys[i]) pl_replay_rest(&keys[i]->replay);
    probes_pack(p, e->now_ns);
  }
  pl_peer_schedule(e, p);
  return PL_OK;
}
