/* Engine: construction, event queue, input dispatch, flush and deadline. */
#include "engine_internal.h"

#include <stdlib.h>

void pl_engine_cfg_default(pl_engine_cfg *cfg) {
  memset(cfg, 0, sizeof *cfg);
  cfg->stream.congestion = "bbr";
  cfg->stream.send_buffer = 64u << 20;
  cfg->stream.recv_buffer = 64u << 20;
  cfg->stream.recv_buffer_plain = 2u << 20;
  cfg->stream.keepalive_ns = 25 * PL_NS_PER_S;
  cfg->stream.idle_timeout_ns = 120 * PL_NS_PER_S;
  cfg->stream.time_wait_ns = 10 * PL_NS_PER_S;
  cfg->stream.linger_ns = 60 * PL_NS_PER_S;
  cfg->stream.syn_timer_ns = 250 * PL_NS_PER_MS;
  cfg->stream.dial_timeout_ns = 300 * PL_NS_PER_S; /* the engine's own timer ends a dial */
  cfg->max_conns = 65536;
  cfg->max_conns_port = 1024;
  cfg->max_peers = 65536;
  cfg->syn_rate = 100;
  cfg->accept_queue = 64;
  cfg->max_segment = 8192;
  cfg->datagram_queue = 64;
  cfg->peer_keepalive_ns = 20 * PL_NS_PER_S;
}

/* xoshiro256**: sequence numbers, prefixes and hash seeds need uniqueness, not secrecy; both travel in clear or
 * inside the tunnel. Keys never come from here. */
uint64_t pl_engine_random(pl_engine *e) {
  uint64_t *s = e->rng;
  uint64_t r = s[1] * 5;
  r = (r << 7 | r >> 57) * 9;
  uint64_t t = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = s[3] << 45 | s[3] >> 19;
  return r;
}

pl_engine *pl_engine_new(const pl_engine_cfg *cfg, pl_tx *tx, uint64_t now_ns) {
  pl_engine *e = calloc(1, sizeof *e);
  if (!e) return NULL;
  e->cfg = *cfg;
  if (e->cfg.max_segment < PL_SEGMENT_BASE) e->cfg.max_segment = PL_SEGMENT_BASE;
  if (e->cfg.max_segment > 65000) e->cfg.max_segment = 65000;
  e->budget.limit = PL_MEMORY;
  e->cfg.stream.spares = &e->spares;
  if (!e->cfg.stream.budget) e->cfg.stream.budget = &e->budget;
  e->tx = tx;
  e->now_ns = now_ns;
  memcpy(e->rng, cfg->entropy, sizeof e->rng);
  e->rng[0] |= 1; /* the all-zero state is a fixed point */
  for (int i = 0; i < 16; i++) pl_engine_random(e);
  e->next_conn = 1;
  e->next_port = (uint16_t)(49152 + pl_engine_random(e) % 16384);
  e->next_prefix = (uint32_t)pl_engine_random(e);
  e->syn_tokens = cfg->syn_rate;
  e->syn_at_ns = now_ns;
  pl_map_init(&e->peers, pl_engine_random(e));
  pl_map_init(&e->conns, pl_engine_random(e));
  pl_map_init(&e->tuples, pl_engine_random(e));
  pl_map_init(&e->ports, pl_engine_random(e));
  pl_map_init(&e->places, pl_engine_random(e));
  e->wheel = pl_wheel_new(now_ns);
  e->frame_buckets = calloc(PL_BUCKETS, sizeof *e->frame_buckets);
  e->session_buckets = calloc(PL_BUCKETS, sizeof *e->session_buckets);
  e->scratch = malloc(65536);
  e->probe_cipher = pl_aead_new(cfg->probe_secret);
  pl_wipe(e->cfg.probe_secret, sizeof e->cfg.probe_secret);
  e->graves = calloc(PL_GRAVES, sizeof *e->graves);
  e->early = calloc(PL_EARLY, sizeof *e->early);
  if (!e->graves || !e->early || !e->wheel || !e->frame_buckets || !e->session_buckets || !e->scratch || !e->probe_cipher) {
    pl_engine_free(e);
    return NULL;
  }
  return e;
}

void pl_engine_free(pl_engine *e) {
  if (!e) return;
  size_t it = 0;
  void *v;
  while ((v = pl_map_next(&e->conns, &it, NULL))) {
    pl_conn *c = v;
    pl_stream_free(c->s);
    free(c);
  }
  it = 0;
  while ((v = pl_map_next(&e->peers, &it, NULL))) {
    pl_peer *p = v;
    pl_key_free(e, p->cur);
    pl_key_free(e, p->next);
    pl_key_free(e, p->prev);
    pl_datagram_drop_all(e, p);
    free(p->probes);
    free(p);
  }
  it = 0;
  while ((v = pl_map_next(&e->ports, &it, NULL))) free(v);
  pl_map_free(&e->conns);
  pl_map_free(&e->peers);
  pl_map_free(&e->tuples);
  pl_map_free(&e->ports);
  pl_map_free(&e->places);
  if (e->wheel) pl_wheel_free(e->wheel);
  while (e->ev_head) {
    pl_event *next = e->ev_head->next;
    free(e->ev_head);
    e->ev_head = next;
  }
  for (unsigned i = 0; e->graves && i < PL_GRAVES; i++) pl_replay_free(&e->graves[i].replay);
  pl_spares_free(&e->spares);
  free(e->graves);
  free(e->early);
  free(e->frame_buckets);
  free(e->session_buckets);
  free(e->scratch);
  pl_aead_free(e->probe_cipher);
  free(e);
}

/* ---- events ---- */

pl_event *pl_event_push(pl_engine *e, uint32_t type, const uint8_t *data, size_t len, bool stranger) {
  if (stranger && e->n_stranger_events >= PL_EVENT_LIMIT) {
    e->st.drop_event++;
    return NULL;
  }
  pl_event *ev = malloc(sizeof *ev + len);
  if (!ev) {
    e->st.drop_event++;
    return NULL;
  }
  memset(ev, 0, sizeof *ev);
  ev->type = type;
  ev->len = (uint32_t)len;
  if (len) memcpy(ev->data, data, len);
  if (stranger) e->n_stranger_events++;
  if (e->ev_tail)
    e->ev_tail->next = ev;
  else
    e->ev_head = ev;
  e->ev_tail = ev;
  e->n_events++;
  return ev;
}

void pl_event_hush(pl_engine *e, pl_event *ev) {
  if (!ev || ev->quiet) return;
  ev->quiet = true;
  e->n_quiet_events++;
}

static bool is_stranger_event(uint32_t type) {
  return type == PL_EV_FRAME || type == PL_EV_BEACON || type == PL_EV_NO_SESSION;
}

pl_event *pl_engine_event(pl_engine *e) {
  pl_event *ev = e->ev_head;
  if (!ev) return NULL;
  e->ev_head = ev->next;
  if (!e->ev_head) e->ev_tail = NULL;
  e->n_events--;
  if (ev->quiet) e->n_quiet_events--;
  if (is_stranger_event(ev->type)) e->n_stranger_events--;
  if (ev->type == PL_EV_DATAGRAM) e->dgram_event_bytes -= sizeof *ev + ev->len;
  if (ev->type == PL_EV_CLIENT_FRAME && e->taken_fn) e->taken_fn(e->taken_ctx, ev->client, ev->len);
  ev->next = NULL;
  return ev;
}

void pl_event_free(pl_event *ev) { free(ev); }

bool pl_engine_has_events(const pl_engine *e) { return e->ev_head != NULL; }
bool pl_engine_has_pressing_events(const pl_engine *e) { return e->n_events > e->n_quiet_events; }

int pl_engine_post(pl_engine *e, const pl_event *head, const uint8_t *data, uint32_t len) {
  pl_event *ev = pl_event_push(e, head->type, data, len, false);
  if (!ev) return PL_ENOMEM;
  ev->node = head->node;
  ev->conn = head->conn;
  ev->client = head->client;
  ev->local_port = head->local_port;
  ev->a = head->a;
  ev->b = head->b;
  return PL_OK;
}

/* ---- rate limits ---- */

bool pl_token_take(double *tokens, uint64_t *at_ns, double rate, double burst, double keep, uint64_t now_ns) {
  if (now_ns > *at_ns) {
    *tokens += (double)(now_ns - *at_ns) * rate / 1e9;
    if (*tokens > burst) *tokens = burst;
    *at_ns = now_ns;
  }
  if (*tokens < keep + 1) return false;
  *tokens -= 1;
  return true;
}

/* Direct-mapped: a colliding key takes the slot over with a full bucket, so an attacker can at worst reset limits, never
 * make the table grow or lock a key out for good. */
bool pl_bucket_take(pl_bucket *table, uint64_t key, double rate, double burst, uint64_t now_ns) {
  uint64_t h = key * 0x9e3779b97f4a7c15ull;
  pl_bucket *b = &table[(h >> 40) % PL_BUCKETS];
  if (b->key != key || b->at_ns == 0) {
    b->key = key;
    b->tokens = burst;
    b->at_ns = now_ns;
  }
  return pl_token_take(&b->tokens, &b->at_ns, rate, burst, 0, now_ns);
}

/* ---- identity and policy ---- */

void pl_engine_set_node(pl_engine *e, uint32_t node) { e->node = node; }
void pl_engine_set_public(pl_engine *e, bool is_public) { e->is_public = is_public; }

void pl_engine_set_beacons(pl_engine *e, const pl_addr *beacons, unsigned n) {
  e->n_beacons = n > 16 ? 16 : n;
  if (e->n_beacons) memcpy(e->beacons, beacons, e->n_beacons * sizeof *beacons);
}

/* ---- input ---- */

static bool from_beacon(const pl_engine *e, const pl_addr *from) {
  for (unsigned i = 0; i < e->n_beacons; i++)
    if (pl_addr_eq(&e->beacons[i], from)) return true;
  return false;
}

static void on_key_exchange(pl_engine *e, const uint8_t *p, size_t len, const pl_addr *from, bool relayed, uint32_t source) {
  uint64_t key = relayed ? (uint64_t)source << 16 | 1 : pl_get64(from->ip) ^ pl_get64(from->ip + 8) ^ (uint64_t)from->family << 56;
  /* The exchange machine has its own finer limits; this one keeps a flood from reaching Python at all. */
  if (!pl_bucket_take(e->frame_buckets, key ^ e->rng[3], 50, 100, e->now_ns)) {
    e->st.drop_limit++;
    return;
  }
  if (len > 2048) len = 2048; /* PILA with the largest trailer we read */
  pl_event *ev = pl_event_push(e, PL_EV_FRAME, p, len, true);
  if (!ev) return;
  ev->addr = *from;
  ev->relayed = relayed;
  ev->node = source;
}

static void on_frame(pl_engine *e, uint8_t *p, size_t len, const pl_addr *from, bool relayed, uint32_t source);

/* An answer to a NAT probe is meant to come from where nobody was asked (docs/wire-extensions.md 7.1). Its nonce is checked by who asked; a
 * flood of others does not get that far. */
static bool may_answer_probe(pl_engine *e, const uint8_t *p, const pl_addr *from) {
  uint64_t ip = pl_get64(from->ip) ^ pl_get64(from->ip + 8);
  return p[0] == PL_BEACON_PROBE_REPLY && pl_bucket_take(e->frame_buckets, ip ^ e->rng[2], 20, 40, e->now_ns);
}

static void on_beacon(pl_engine *e, uint8_t *p, size_t len, const pl_addr *from) {
  if (!from_beacon(e, from) && !may_answer_probe(e, p, from)) {
    e->st.drop_beacon_source++;
    return;
  }
  pl_beacon_msg m;
  if ((p[0] == PL_BEACON_DELIVER || p[0] == PL_BEACON_DELIVER_DST)) {
    if (pl_beacon_parse(p, p + len, &m) < 0 || m.body_len < 4) {
      e->st.drop_short++;
      return;
    }
    if (m.body[0] < 0x10) { /* nothing of a beacon's own travels inside a relayed frame */
      e->st.drop_unknown++;
      return;
    }
    on_frame(e, p + (m.body - p), m.body_len, from, true, m.node);
    return;
  }
  if (len > 2048) len = 2048;
  pl_event *ev = pl_event_push(e, PL_EV_BEACON, p, len, true);
  if (ev) ev->addr = *from;
}

static void on_frame(pl_engine *e, uint8_t *p, size_t len, const pl_addr *from, bool relayed, uint32_t source) {
  switch (pl_frame_classify(p, p + len)) {
    case PL_FRAME_PILS:
      pl_session_on_pils(e, p, len, from, relayed);
      break;
    case PL_FRAME_PILA:
    case PL_FRAME_PILK:
      on_key_exchange(e, p, len, from, relayed, source);
      break;
    case PL_FRAME_PILP:
      if (!relayed) on_key_exchange(e, p, 4, from, false, 0);
      break;
    case PL_FRAME_PILT:
      e->st.drop_plaintext++;
      break;
    case PL_FRAME_BEACON:
      on_beacon(e, p, len, from);
      break;
    default:
      e->st.drop_unknown++;
  }
}

void pl_engine_input(pl_engine *e, uint8_t *data, size_t len, size_t seg, const pl_addr *from, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  if (seg == 0 || seg > len) seg = len;
  while (len > 0) {
    size_t n = len < seg ? len : seg;
    e->st.pkts_recv++;
    e->st.bytes_recv += n;
    if (n > PL_UDP_MAX) { /* no socket delivers that; what follows counts on it */
      e->st.drop_unknown++;
      return;
    }
    on_frame(e, data, n, from, false, 0);
    data += n;
    len -= n;
  }
}

/* ---- flush ---- */

void pl_engine_flush(pl_engine *e, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_timer *t;
  while ((t = pl_wheel_expire(e->wheel, e->now_ns))) {
    pl_owned_timer *o = (pl_owned_timer *)t;
    if (o->peer)
      pl_peer_on_timer(e, o->peer);
    else
      pl_conn_on_timer(e, o->conn);
  }
  pl_conn_send_all(e);
  pl_engine_send_made(e);
}

void pl_engine_send_made(pl_engine *e) {
  if (e->tx->n_runs) e->tx->flush(e->tx, e->tx->ctx);
}

uint64_t pl_engine_deadline(const pl_engine *e) {
  if (e->active_head) return e->now_ns;
  return pl_wheel_deadline(e->wheel);
}

int pl_engine_send_raw(pl_engine *e, const pl_addr *to, const uint8_t *data, size_t len) {
  if (len == 0 || len > PL_UDP_MAX || to->family == 0) return PL_EFORMAT;
  memcpy(pl_tx_datagram(e->tx, to, (uint32_t)len), data, len);
  e->st.pkts_sent++;
  e->st.bytes_sent += len;
  return PL_OK;
}

uint64_t pl_engine_opened(const pl_engine *e) { return e->st.opened_ok; }

void pl_engine_get_stats(const pl_engine *e, pl_engine_stats *out) {
  *out = e->st;
  out->peers = (uint32_t)e->peers.used;
  out->sessions = e->n_sessions;
  out->conns = (uint32_t)e->conns.used;
  out->ports = (uint32_t)e->ports.used;
}
