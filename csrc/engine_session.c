/* Sessions: keys in force, PILS in and out (transport.md 3.4, 3.5, 3.7).
 *
 * A peer has up to three keys: `cur` seals and opens; `next` opens only, until the peer proves it by a frame, then takes
 * the place of cur; `prev` opens for 10 s more. Frames that do not open never change state: anybody can send those.
 *
 * A key may have a twin of era 1 (cfg.accept_era1): frames are then tried in both eras until one opens. In era 1 nothing binds the sender
 * outside of a frame to what is sealed, so a frame counts only if the packet inside names the same node: anybody could turn our own frames
 * round, or send us those of one peer as another's that has announced its public key. */
#include "engine_internal.h"

#include <stdlib.h>

/* With many prefixes it is not remembered: the limit on them would shut out a peer that has lost its session often. */
static void bury(pl_engine *e, pl_key *k) {
  if (k->replay.n_live == 0 || k->replay.n_live + k->replay.n_retired > PL_REPLAY_PREFIXES / 2) return;
  pl_grave *g = &e->graves[e->next_grave++ % PL_GRAVES];
  pl_replay_free(&g->replay);
  *g = (pl_grave){.id = k->id, .prefix = k->prefix, .counter = k->counter, .replay = k->replay};
  pl_replay_init(&k->replay);
}

static void exhume(pl_engine *e, pl_key *k) {
  for (unsigned i = 0; i < PL_GRAVES; i++) {
    pl_grave *g = &e->graves[i];
    if (g->id != k->id || g->replay.n_live == 0) continue;
    k->prefix = g->prefix;
    k->counter = g->counter;
    k->replay = g->replay;
    memset(g, 0, sizeof *g);
    return;
  }
}

/* ---- cipher contexts ----
 *
 * A context takes several times the memory of everything else about an idle session, and half a microsecond to set up. So it exists
 * while it is used and a moment longer. */

static void unlink_warm(pl_engine *e, pl_key *k) {
  if (k->warmer)
    k->warmer->colder = k->colder;
  else
    e->warmest = k->colder;
  if (k->colder)
    k->colder->warmer = k->warmer;
  else
    e->coldest = k->warmer;
  k->warmer = k->colder = NULL;
}

static bool is_warm(const pl_key *k) { return k->aead || (k->era != PL_ERA_2 && k->era1->aead); }

static void cool(pl_engine *e, pl_key *k) {
  if (!is_warm(k)) return;
  unlink_warm(e, k);
  pl_aead_free(k->aead);
  k->aead = NULL;
  if (k->era == PL_ERA_2) return;
  pl_aead_free(k->era1->aead);
  k->era1->aead = NULL;
}

/* The context of a key, NULL without memory. Good until the next call. */
static pl_aead *warm(pl_engine *e, pl_key *k, bool era1) {
  pl_aead **at = era1 ? &k->era1->aead : &k->aead;
  if (*at && e->now_ns - k->warmed_ns < PL_KEY_WARM_NS / 2) return *at;
  bool listed = is_warm(k);
  if (!*at && !(*at = pl_aead_new(era1 ? k->era1->secret : k->secret))) return NULL;
  if (listed) unlink_warm(e, k);
  k->warmed_ns = e->now_ns;
  k->colder = e->warmest;
  if (e->warmest)
    e->warmest->warmer = k;
  else
    e->coldest = k;
  e->warmest = k;
  for (unsigned i = 0; i < 2 && e->now_ns - e->coldest->warmed_ns >= PL_KEY_WARM_NS; i++) cool(e, e->coldest); /* never k itself */
  return *at;
}

/* ---- eras ---- */

static void end_era1(pl_engine *e, pl_key *k) {
  if (k->era == PL_ERA_2) return;
  if (k->era1->aead && !k->aead) unlink_warm(e, k);
  pl_aead_free(k->era1->aead);
  pl_wipe(k->era1, sizeof *k->era1);
  k->era = PL_ERA_2;
}

/* The first frame under the key has opened. */
static void settle_era(pl_engine *e, pl_peer *p, pl_key *k, bool era1) {
  p->spoke_era1 = era1;
  if (era1) {
    k->era = PL_ERA_1;
    pl_aead_free(k->aead); /* it stays among the warm ones by the other */
    k->aead = NULL;
    return;
  }
  p->era2 = true;
  pl_key *keys[] = {p->cur, p->next, p->prev};
  for (unsigned i = 0; i < 3; i++)
    if (keys[i] && keys[i]->era == PL_ERA_OPEN) end_era1(e, keys[i]);
}

/* A peer that has spoken era 1 may have restarted as a later release; one of that kind ends its session over five frames that it cannot
 * open, and pings and the first packets of a stream are repeated. */
static bool sends_era1(const pl_peer *p, const pl_key *k) {
  return k->era == PL_ERA_1 || (k->era == PL_ERA_OPEN && p->spoke_era1 && k->counter & 1);
}

void pl_key_free(pl_engine *e, pl_key *k) {
  if (!k) return;
  bury(e, k);
  cool(e, k);
  end_era1(e, k);
  pl_replay_free(&k->replay);
  pl_wipe(k->secret, sizeof k->secret);
  free(k);
}

/* Both directions share one key, so no two derivations may draw the same prefix: the top bit tells the two ends apart (toward our
 * own kind for certain, toward others it halves the chance), the rest counts up from a random start for the life of the process. */
static uint32_t next_prefix(pl_engine *e, uint32_t peer) {
  return (e->next_prefix++ & 0x7fffffffu) | (e->node > peer ? 0x80000000u : 0);
}

static pl_key *key_new(pl_engine *e, uint32_t peer, const uint8_t key[32], const uint8_t *era1, uint64_t id, const pl_caps *caps,
                       uint64_t now_ns) {
  pl_key *k = calloc(1, sizeof *k + (era1 ? sizeof *k->era1 : 0));
  if (!k) return NULL;
  memcpy(k->secret, key, sizeof k->secret);
  if (era1) {
    k->era = PL_ERA_OPEN;
    memcpy(k->era1->secret, era1, sizeof k->era1->secret);
  }
  if (!warm(e, k, false)) {
    end_era1(e, k);
    pl_wipe(k->secret, sizeof k->secret);
    free(k);
    return NULL;
  }
  pl_replay_init(&k->replay);
  k->id = id;
  k->prefix = next_prefix(e, peer);
  k->installed_ns = now_ns;
  k->first_conn = e->next_conn;
  if (caps) k->caps = *caps;
  exhume(e, k);
  return k;
}

/* The peer has said a key that was foretold. It could not open what went out before, unless it has ours already. */
static void confirmed(pl_engine *e, pl_peer *p) {
  p->cur->foretold = false;
  if (!p->cur->proved) pl_conn_dial_again(e, p);
  pl_peer_ready(e, p);
}

/* Only our own kind announces features, and speaks era 2: after that there is nothing left to find out. Whether the peer is of that kind
 * for good the frames say, not the announcement, which somebody may have kept. */
static bool announces(const pl_caps *caps) { return caps && caps->features; }

int pl_engine_install_key(pl_engine *e, uint32_t node, const uint8_t key[32], uint64_t key_id, const pl_caps *caps, uint64_t now_ns) {
  return pl_engine_install_keys(e, node, key, NULL, key_id, caps, false, now_ns);
}

int pl_engine_install_keys(pl_engine *e, uint32_t node, const uint8_t key[32], const uint8_t *era1, uint64_t key_id, const pl_caps *caps,
                           bool foretold, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_peer *p = pl_peer_get(e, node);
  if (!p) return PL_ELIMIT;
  pl_key *same = p->cur && p->cur->id == key_id ? p->cur : p->next && p->next->id == key_id ? p->next : NULL;
  if (same) {
    if (caps) same->caps = *caps;
    if (announces(caps)) end_era1(e, same);
    if (same == p->cur) {
      pl_key_free(e, p->next); /* or probes would go on under a key that nobody proved */
      p->next = NULL;
      pl_peer_apply_mss(e, p);
      if (same->foretold && !foretold) confirmed(e, p);
    }
    return PL_OK;
  }
  if (p->prev && p->prev->id == key_id) return PL_OK; /* a late copy of the exchange before the last */
  if (!e->cfg.accept_era1 || p->era2 || announces(caps)) era1 = NULL;
  pl_key *k = key_new(e, node, key, era1, key_id, caps, e->now_ns);
  if (!k) return PL_ENOMEM;
  if (!p->cur) {
    p->cur = k;
    k->foretold = foretold;
    e->n_sessions++;
    p->failures = 0;
    pl_conn_dial_again(e, p);
    pl_peer_ready(e, p); /* after it: the dials that begin here need no second SYN */
    pl_early_open(e, p);
  } else {
    pl_key_free(e, p->next);
    p->next = k;
  }
  pl_peer_schedule(e, p);
  return PL_OK;
}

int pl_engine_drop_session(pl_engine *e, uint32_t node) {
  pl_peer *p = pl_peer_find(e, node);
  if (!p || !p->cur) return PL_ENOENT;
  pl_key_free(e, p->cur);
  pl_key_free(e, p->next);
  pl_key_free(e, p->prev);
  p->cur = p->next = p->prev = NULL;
  e->n_sessions--;
  return PL_OK;
}

int pl_session_send(pl_engine *e, pl_peer *p, pl_key *k, const pl_addr *to, bool relay, const pl_packet *pkt,
                    const uint8_t *p1, size_t n1, const uint8_t *p2, size_t n2) {
  size_t inner = PL_HDR_SIZE + n1 + n2;
  size_t head = relay ? PL_RELAY_HEAD : 0;
  size_t total = head + PL_PILS_HEAD + inner + PL_TAG_SIZE;
  if (total > PL_UDP_MAX) return PL_ELIMIT;
  uint8_t *d = pl_tx_datagram(e->tx, to, (uint32_t)total);
  if (relay) {
    d[0] = PL_BEACON_RELAY;
    pl_put32(d + 1, e->node);
    pl_put32(d + 5, p->node);
    d += head;
  }
  k->counter++;
  pl_pils_write_head(d, e->node, k->prefix, k->counter);
  uint8_t *in = d + PL_PILS_HEAD;
  pl_packet_write_header(in, pkt);
  if (n1) memcpy(in + PL_HDR_SIZE, p1, n1);
  if (n2) memcpy(in + PL_HDR_SIZE + n1, p2, n2);
  if (!(k->caps.features & PL_CAP_NOCRC)) pl_packet_write_crc(in, inner);
  bool era1 = k->era != PL_ERA_2 && sends_era1(p, k);
  pl_aead *aead = warm(e, k, era1);
  if (!aead || pl_aead_seal(aead, d + 8, d + 4, era1 ? 0 : 4, in, inner) < 0) {
    pl_tx_undo(e->tx); /* the counter stays used: a nonce is never given out twice */
    return PL_EIO;
  }
  if (p->rest_until_ns && pkt->proto != PL_PROTO_CONTROL) pl_peer_stir(e, p, true);
  p->pkts_sent++;
  p->bytes_sent += total;
  p->last_send_ns = e->now_ns;
  e->st.pkts_sent++;
  e->st.bytes_sent += total;
  return PL_OK;
}

int pl_session_send_active(pl_engine *e, pl_peer *p, const pl_packet *pkt, const uint8_t *data, size_t len) {
  if (!pl_peer_usable(p)) return PL_ESTATE;
  return pl_session_send(e, p, p->cur, &p->path, p->relay, pkt, data, len, NULL, 0);
}

/* ---- receive ---- */

static void no_session(pl_engine *e, uint32_t node, const pl_addr *from, bool relayed) {
  e->st.drop_no_session++;
  if (!pl_bucket_take(e->session_buckets, node ^ e->rng[3], 1e9 / PL_NO_SESSION_NS, 1, e->now_ns)) return;
  pl_event *ev = pl_event_push(e, PL_EV_NO_SESSION, NULL, 0, true);
  if (!ev) return;
  ev->node = node;
  ev->addr = *from;
  ev->relayed = relayed;
}

static void on_failure(pl_engine *e, pl_peer *p, int reason) {
  p->open_failures++;
  p->failures++;
  p->failure_reason = reason;
  e->st.opened_fail++;
  if (reason == PL_EAUTH)
    e->st.drop_auth++;
  else
    e->st.drop_replay++;
  /* A hint, not a verdict: forged frames cost the session nothing while real ones still open. */
  if (p->failures < PL_BROKEN_FAILURES || e->now_ns - p->last_recv_ns < PL_NS_PER_S ||
      e->now_ns - p->cur->installed_ns < PL_NO_SESSION_NS)
    return;
  if (p->broken_ns && e->now_ns - p->broken_ns < PL_NO_SESSION_NS) return;
  p->broken_ns = e->now_ns;
  pl_event *ev = pl_event_push(e, PL_EV_SESSION_BROKEN, NULL, 0, false);
  if (!ev) return;
  ev->node = p->node;
  ev->a = (uint64_t)(int64_t)reason;
}

static void proved(pl_engine *e, pl_peer *p, pl_key *k, bool era1) {
  k->proved = true;
  settle_era(e, p, k, era1);
  if (k == p->cur && k->foretold) confirmed(e, p);
  if (k == p->prev) return; /* replaced before its first frame came: there is no way back to it */
  if (k == p->next) {
    pl_key_free(e, p->prev);
    p->prev = p->cur;
    p->prev->retire_ns = e->now_ns + PL_KEY_RETIRE_NS;
    p->cur = k;
    p->next = NULL;
    p->moved = true;
    pl_peer_apply_mss(e, p);
  }
  /* A peer that has started anew answers what belongs to no stream of its own with an RST; otherwise nothing comes of it. */
  for (pl_conn *c = p->conns; c; c = c->peer_next) {
    if (!c->s) continue;
    pl_stream_ask(c->s);
    pl_conn_activate(e, c);
  }
  pl_peer_schedule(e, p);
  pl_event *ev = pl_event_push(e, PL_EV_SESSION_PROVED, NULL, 0, false);
  if (!ev) return;
  ev->node = p->node;
  ev->a = k->id;
  ev->b = era1 ? 1 : 2;
}

static void note_path(pl_engine *e, pl_peer *p, const pl_key *k, const pl_addr *from, bool relayed) {
  if (!relayed) p->last_direct_recv_ns = e->now_ns;
  bool moves = false;
  if (!p->has_path) { /* authenticated: better than having nowhere to answer to */
    pl_engine_set_path(e, p->node, from, relayed, e->now_ns);
  } else if (p->relay == relayed && pl_addr_eq(&p->path, from)) {
    if (k == p->cur) p->moved = false;
    return;
  } else if (p->moved && k == p->cur && !p->relay) {
    /* A restarted peer speaks from its new address or through a beacon, and the old address would swallow what it asks for until probes
     * find out. Only the peer can seal under the new key; whether this address answers is checked afterwards. */
    p->moved = false;
    moves = true;
    pl_engine_set_path(e, p->node, from, relayed, e->now_ns);
  }
  unsigned slot = 0;
  for (unsigned i = 0; i < 2; i++) {
    if (p->seen[i].at_ns && p->seen[i].relay == relayed && pl_addr_eq(&p->seen[i].addr, from)) {
      if (e->now_ns - p->seen[i].at_ns < PL_NS_PER_S && !moves) return;
      slot = i;
      break;
    }
    if (p->seen[i].at_ns < p->seen[slot].at_ns) slot = i;
  }
  /* Both places taken within the second: a peer, or somebody on the way, could otherwise make an event of every frame. */
  if (p->seen[slot].at_ns && e->now_ns - p->seen[slot].at_ns < PL_NS_PER_S && !moves) return;
  p->seen[slot].addr = *from;
  p->seen[slot].relay = relayed;
  p->seen[slot].at_ns = e->now_ns;
  pl_event *ev = pl_event_push(e, PL_EV_PATH_SEEN, NULL, 0, false);
  if (!ev) return;
  ev->node = p->node;
  ev->addr = *from;
  ev->relayed = relayed;
  ev->a = moves;
}

static void on_control(pl_engine *e, pl_peer *p, pl_key *k, const pl_packet *pkt, const pl_addr *from, bool relayed) {
  if (pkt->flags & PL_FLAG_ACK) {
    if (pkt->dst_port == PL_PROBE_PORT) pl_peer_on_pong(e, p, pkt, from, relayed);
    return; /* never answered: two nodes would echo for ever */
  }
  if (pkt->dst_port != 0) return;
  if (pkt->len == 0 && pkt->src_port == 0 && pkt->seq == 0) return; /* tunnel keepalive */
  pl_packet pong = {.flags = PL_FLAG_ACK,
                    .proto = PL_PROTO_CONTROL,
                    .src_net = pkt->dst_net,
                    .src_node = e->node,
                    .dst_net = pkt->src_net,
                    .dst_node = pkt->src_node,
                    .dst_port = pkt->src_port,
                    .seq = pkt->seq,
                    .ack = pkt->seq + 1,
                    .len = pkt->len};
  /* Answered the way it came, under the key it came with: that is what a path or key probe asks about. */
  pl_session_send(e, p, k, from, relayed, &pong, pkt->payload, pkt->len, NULL, 0);
}

static void on_packet(pl_engine *e, pl_peer *p, pl_key *k, const pl_packet *pkt, const pl_addr *from, bool relayed) {
  bool addressed = pkt->dst_node == e->node;
  switch (pkt->proto) {
    case PL_PROTO_STREAM:
      if (addressed) {
        pl_peer_active(e, p);
        pl_conn_on_packet(e, p, pkt);
        return;
      }
      break;
    case PL_PROTO_DATAGRAM:
      if (addressed) {
        pl_peer_active(e, p);
        pl_datagram_on_packet(e, p, pkt);
        return;
      }
      break;
    case PL_PROTO_CONTROL:
      if (addressed || pkt->dst_node == 0) {
        on_control(e, p, k, pkt, from, relayed);
        return;
      }
      break;
    default:
      break;
  }
  e->st.drop_packet++;
}

static int try_open(pl_engine *e, pl_key *k, bool era1, const pl_pils *h, const uint8_t sender[4], uint8_t *body) {
  pl_aead *aead = warm(e, k, era1);
  return aead ? pl_aead_open(aead, h->nonce, sender, era1 ? 0 : 4, body, h->body_len - PL_TAG_SIZE) : PL_ENOMEM;
}

/* Of the peer that the frame names, and whole. Before the counter is recorded: a frame that somebody has turned round must not use it up. */
static bool era1_genuine(pl_engine *e, const pl_peer *p, const uint8_t *body, size_t len) {
  pl_packet pkt;
  int r = pl_packet_parse(body, body + len, false, &pkt);
  if (r == PL_OK && pkt.src_node == p->node) {
    e->st.opened_era1++;
    return true;
  }
  e->st.drop_era1++;
  return false;
}

void pl_session_on_pils(pl_engine *e, uint8_t *p, size_t len, const pl_addr *from, bool relayed) {
  pl_pils h;
  if (pl_pils_parse(p, p + len, &h) < 0) {
    e->st.drop_short++;
    return;
  }
  pl_peer *peer = e->node ? pl_peer_find(e, h.node) : NULL;
  if (!peer || !peer->cur) {
    if (!e->node) return;
    pl_early_keep(e, h.node, p, len, from, relayed);
    no_session(e, h.node, from, relayed);
    return;
  }
  pl_key *keys[3] = {peer->cur, peer->next, peer->prev};
  unsigned n = 1;
  if (peer->next) keys[n++] = peer->next;
  if (peer->prev) keys[n++] = peer->prev;
  uint8_t *body = p + (h.body - p);
  size_t inner = h.body_len - PL_TAG_SIZE;
  pl_key *opened = NULL;
  bool era1 = false;
  int err = PL_EAUTH;
  if (n > 1 || peer->cur->era == PL_ERA_OPEN) memcpy(e->scratch, body, h.body_len); /* opening in place destroys it, and another key may fit */
  for (unsigned i = 0; i < n; i++) {
    int r = pl_replay_check(&keys[i]->replay, h.prefix, h.counter);
    if (r < 0) {
      err = r;
      continue;
    }
    era1 = keys[i]->era == PL_ERA_1;
    r = try_open(e, keys[i], era1, &h, p + 4, body);
    if (r == PL_EAUTH && keys[i]->era == PL_ERA_OPEN) {
      memcpy(body, e->scratch, h.body_len);
      era1 = true;
      r = try_open(e, keys[i], true, &h, p + 4, body);
    }
    if (r == PL_OK) {
      opened = keys[i];
      break;
    }
    if (err == PL_EAUTH) err = r;
    if (i + 1 < n) memcpy(body, e->scratch, h.body_len);
  }
  if (!opened) {
    on_failure(e, peer, err);
    return;
  }
  if (era1 && !era1_genuine(e, peer, body, inner)) return;
  if (pl_replay_commit(&opened->replay, h.prefix, h.counter) < 0) return;
  e->st.opened_ok++;
  peer->failures = 0;
  peer->last_recv_ns = e->now_ns;
  peer->pkts_recv++;
  peer->bytes_recv += len;
  pl_packet pkt;
  /* We announce NOCRC to everybody, so a zero is taken from everybody: from a peer whose own announcement was cut off on the way too. */
  int r = pl_packet_parse(body, body + inner, true, &pkt);
  if (r < 0) {
    e->st.drop_packet++;
    return;
  }
  if (pkt.src_node != peer->node) {
    /* The one exception: the keepalive of releases before 1.12.1 carries no source. */
    if (!(pkt.src_node == 0 && pkt.proto == PL_PROTO_CONTROL && pkt.dst_port == 0 && pkt.len == 0)) {
      e->st.drop_source++;
      return;
    }
    pkt.src_port = 0;
    pkt.seq = 0;
  }
  if (!opened->proved || opened == peer->next) proved(e, peer, opened, era1);
  note_path(e, peer, opened, from, relayed);
  on_packet(e, peer, opened, &pkt, from, relayed);
}
