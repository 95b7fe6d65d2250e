/* How a connection begins: dialled, accepted or refused, and what part of the places a peer may have (transport.md 4.2). */
#include "engine_internal.h"

/* ---- shares ----
 *
 * What all peers share is not one peer's: the more it has, the more has to be left for it to get more (dynamic thresholds, Choudhury and Hahne
 * 1998). Alone it gets nearly all, 1002 of 1024; several come to equal parts, and a newcomer finds a place. */

static bool may_have(uint32_t has, uint64_t used, uint64_t limit) {
  uint64_t left = used < limit ? pl_min64(limit - used, 1u << 20) : 0;
  return has < 2 * left * left;
}

static uint64_t place_key(const pl_peer *p, uint16_t port) { return (uint64_t)port << 32 | p->node; }

/* Inbound streams of the peer on the port. */
static uint32_t places(const pl_engine *e, const pl_peer *p, uint16_t port) {
  return (uint32_t)(uintptr_t)pl_map_get(&e->places, place_key(p, port));
}

static int set_places(pl_engine *e, const pl_peer *p, uint16_t port, uint32_t n) {
  if (n) return pl_map_put(&e->places, place_key(p, port), (void *)(uintptr_t)n);
  pl_map_del(&e->places, place_key(p, port));
  return PL_OK;
}

/* The port that accepted it, if that is still bound: another program may have the number now. */
static pl_port *port_of(const pl_engine *e, const pl_conn *c) {
  pl_port *port = pl_map_get(&e->ports, c->local_port);
  return port && (int32_t)(c->id - port->first_conn) >= 0 ? port : NULL;
}

void pl_conn_unpark(pl_engine *e, pl_conn *c) {
  if (!c->parked) return;
  c->parked = false;
  c->peer->n_parked--;
  pl_port *port = port_of(e, c);
  if (port) port->parked--;
}

void pl_conn_vacate(pl_engine *e, const pl_conn *c) {
  if (!c->inbound) return;
  pl_port *port = port_of(e, c);
  if (port) port->n_conns--;
  set_places(e, c->peer, c->local_port, places(e, c->peer, c->local_port) - 1);
}

#define SYN_TURN_NS (10 * PL_NS_PER_S) /* so long after another peer's SYN the common rate is shared */

/* Trusted bulk dialers are many streams from one node: the burst is wide, the sustained rate is the specified one. While peers share the common
 * rate, who asks for more than a tenth of it, and every stranger, leaves the lower half of the bucket to the others. */
static bool take_syn(pl_engine *e, pl_peer *p) {
  double rate = e->cfg.syn_rate, share = rate / 10, keep = e->cfg.syn_rate / 2;
  if (!pl_token_take(&p->syn_tokens, &p->syn_at_ns, p->trusted ? rate : 10, p->trusted && rate > 64 ? rate : 64, 0, e->now_ns)) return false;
  double burst = share > PL_SYN_SHARE_BURST ? share : PL_SYN_SHARE_BURST;
  bool modest = pl_token_take(&p->share_tokens, &p->share_at_ns, share, burst, 0, e->now_ns) && p->trusted;
  if (e->syn_node != p->node) {
    if (e->syn_node) e->syn_turn_ns = e->now_ns;
    e->syn_node = p->node;
  }
  bool alone = !e->syn_turn_ns || e->now_ns - e->syn_turn_ns >= SYN_TURN_NS;
  return pl_token_take(&e->syn_tokens, &e->syn_at_ns, rate, rate, alone || modest ? 0 : keep, e->now_ns);
}

/* ---- dial ---- */

uint16_t pl_conn_ephemeral(pl_engine *e, uint32_t node, uint16_t remote_port) {
  for (unsigned i = 0; i < 16384; i++) {
    uint16_t port = e->next_port;
    e->next_port = port == 65535 ? 49152 : (uint16_t)(port + 1);
    if (!pl_map_get(&e->tuples, pl_tuple_key(port, remote_port, node)) && !pl_map_get(&e->ports, port) &&
        port != PL_PROBE_PORT)
      return port;
  }
  return 0;
}

static pl_synopt our_synopt(const pl_engine *e) {
  /* The window field counts KiB: 64 MiB at most in 16 bits. */
  return (pl_synopt){.window_shift = 10, .max_sack = PL_SACK_MAX, .max_segment = (uint16_t)e->cfg.max_segment,
                     .reorder_segments = 65536};
}

static pl_stream_cfg stream_cfg(const pl_engine *e, pl_peer *p) {
  pl_stream_cfg cfg = e->cfg.stream;
  cfg.budget = &p->budget;
  return cfg;
}

static bool speaks_options(const pl_peer *p) { return p->cur && p->cur->caps.features & PL_CAP_STREAM_OPTS; }

int64_t pl_engine_dial(pl_engine *e, uint16_t local_net, uint16_t remote_net, uint32_t node, uint16_t port, uint32_t client,
                       uint64_t timeout_ns, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  if (!e->node) return PL_ESTATE;
  if (e->conns.used >= e->cfg.max_conns) return PL_ELIMIT;
  pl_peer *p = pl_peer_get(e, node);
  if (!p) return node == 0 || node == e->node ? PL_ENOENT : PL_ELIMIT;
  uint16_t local_port = pl_conn_ephemeral(e, node, port);
  if (!local_port) return PL_ELIMIT;
  pl_conn *c = pl_conn_new(e, p, local_net, local_port, remote_net, port);
  if (!c) return PL_ENOMEM;
  c->client = client;
  c->dialing = true;
  c->held = true;
  c->dial_deadline_ns = e->now_ns + timeout_ns;
  p->last_dial_ns = e->now_ns;
  pl_peer_active(e, p);
  if (pl_peer_usable(p)) {
    pl_conn_release(e, c);
    pl_conn_send_now(e, c); /* the SYN, at once: see pl_conn_on_syn */
  } else {
    pl_peer_want(e, p);
    pl_wheel_set(e->wheel, &c->timer.t, c->dial_deadline_ns);
  }
  return c->s || c->held ? (int64_t)c->id : PL_ENOMEM;
}

/* Key and path are there: the stream begins. Only now is it known whether the peer understands options. */
void pl_conn_release(pl_engine *e, pl_conn *c) {
  pl_synopt offer = our_synopt(e);
  pl_stream_cfg cfg = stream_cfg(e, c->peer);
  pl_stream *s = pl_stream_dial(&cfg, (uint32_t)pl_engine_random(e), pl_peer_mss(e, c->peer),
                                speaks_options(c->peer) ? &offer : NULL, e->now_ns);
  if (!s) return; /* out of memory: the dial deadline answers */
  c->held = false;
  c->s = s;
  pl_stream_release(s, e->now_ns);
  pl_conn_activate(e, c);
}

void pl_conn_dial_again(pl_engine *e, pl_peer *p) {
  for (pl_conn *c = p->conns; c; c = c->peer_next) {
    if (!c->dialing || !c->s) continue;
    pl_stream_dial_again(c->s);
    pl_conn_activate(e, c);
  }
}

/* ---- accept ---- */

static void reset(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  pl_packet rst = {.flags = PL_FLAG_RST, .proto = PL_PROTO_STREAM, .src_net = pkt->dst_net, .src_node = e->node,
                   .dst_net = pkt->src_net, .dst_node = pkt->src_node, .src_port = pkt->dst_port, .dst_port = pkt->src_port};
  pl_session_send_active(e, p, &rst, NULL, 0);
}

static void refuse(pl_engine *e, pl_peer *p, const pl_packet *syn) {
  e->st.syn_refused++;
  reset(e, p, syn);
}

/* A packet of a stream that does not exist. After a restart the peer's streams are known to the peer alone; one of our own kind is told,
 * or it would go on for a minute. Others expect silence (transport.md 4.3). */
void pl_conn_on_unknown(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  e->st.drop_no_conn++;
  if (pkt->flags & PL_FLAG_RST || !speaks_options(p) || !(p->trusted || e->is_public)) return;
  reset(e, p, pkt);
}

void pl_conn_on_syn(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  pl_port *port = pl_map_get(&e->ports, pkt->dst_port);
  if (!pl_trust_gate(e, p, pkt->dst_port, port && port->open_port)) {
    e->st.drop_untrusted++; /* silence: a stranger learns nothing of our ports */
    return;
  }
  if (!port) {
    refuse(e, p, pkt);
    return;
  }
  if (!take_syn(e, p)) {
    e->st.syn_rate_limited++;
    return;
  }
  uint32_t has = places(e, p, pkt->dst_port);
  if (!may_have(p->n_conns, e->conns.used, e->cfg.max_conns) || !may_have(has, port->n_conns, e->cfg.max_conns_port)) {
    refuse(e, p, pkt);
    return;
  }
  if (port->owner != PL_OWNER_ECHO && !may_have(p->n_parked, port->parked, e->cfg.accept_queue)) {
    e->st.accept_queue_drops++;
    refuse(e, p, pkt);
    return;
  }
  if (set_places(e, p, pkt->dst_port, has + 1) < 0) return;
  pl_conn *c = pl_conn_new(e, p, pkt->dst_net, pkt->dst_port, pkt->src_net, pkt->src_port);
  if (!c) {
    set_places(e, p, pkt->dst_port, has);
    return;
  }
  pl_synopt offer = our_synopt(e);
  pl_stream_cfg cfg = stream_cfg(e, p);
  c->s = pl_stream_accept(&cfg, (uint32_t)pl_engine_random(e), pl_peer_mss(e, p),
                          speaks_options(p) ? &offer : NULL, pkt, e->now_ns);
  c->inbound = true;
  port->n_conns++;
  if (!c->s) {
    pl_conn_free(e, c);
    return;
  }
  c->client = port->client;
  if (port->owner == PL_OWNER_ECHO) {
    c->owner = PL_OWNER_ECHO;
    c->served = true;
  } else if (port->owner == PL_OWNER_CLIENT && e->claim_accepts) {
    c->owner = PL_OWNER_CLIENT;
    c->claimed = c->served = true;
    pl_event *ev = pl_conn_event(e, c, PL_EV_CLIENT_CONN);
    if (ev) ev->a = 1;
    pl_event_hush(e, ev);
    pl_conn_mark_ready(e, c);
  } else {
    c->parked = true;
    p->n_parked++;
    port->parked++;
    pl_conn_event(e, c, PL_EV_ACCEPT);
  }
  pl_conn_send_now(e, c); /* at once: who is told of the stream wakes up, and would be in the way of the answer */
  pl_conn_activate(e, c);
}
