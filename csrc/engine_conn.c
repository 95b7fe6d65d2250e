/* Connections: table, dial and accept, owners, sending in trains (transport.md 4.2, 2.3). Commands are in engine_command.c.
 *
 * A connection is found by (local port, remote port, remote node): the network half of an address differs between
 * implementations in replies, the node never does. */
#include "engine_internal.h"

#include <stdlib.h>

static uint64_t tuple_key(uint16_t local, uint16_t remote, uint32_t node) {
  return (uint64_t)local << 48 | (uint64_t)remote << 32 | node;
}

/* ---- lists ---- */

void pl_conn_activate(pl_engine *e, pl_conn *c) {
  if (c->in_active) return;
  c->in_active = true;
  c->active_next = NULL;
  c->active_prev = e->active_tail;
  if (e->active_tail)
    e->active_tail->active_next = c;
  else
    e->active_head = c;
  e->active_tail = c;
}

static void mark_ready(pl_engine *e, pl_conn *c) {
  if (c->in_ready) return;
  c->in_ready = true;
  c->ready_next = NULL;
  c->ready_prev = e->ready_tail;
  if (e->ready_tail)
    e->ready_tail->ready_next = c;
  else
    e->ready_head = c;
  e->ready_tail = c;
}

static void unlink_active(pl_engine *e, pl_conn *c) {
  if (!c->in_active) return;
  if (c->active_prev)
    c->active_prev->active_next = c->active_next;
  else
    e->active_head = c->active_next;
  if (c->active_next)
    c->active_next->active_prev = c->active_prev;
  else
    e->active_tail = c->active_prev;
  c->in_active = false;
}

void pl_conn_unlink_ready(pl_engine *e, pl_conn *c) {
  if (!c->in_ready) return;
  if (c->ready_prev)
    c->ready_prev->ready_next = c->ready_next;
  else
    e->ready_head = c->ready_next;
  if (c->ready_next)
    c->ready_next->ready_prev = c->ready_prev;
  else
    e->ready_tail = c->ready_prev;
  c->in_ready = false;
}

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

/* ---- creation and end ---- */

static pl_conn *conn_new(pl_engine *e, pl_peer *p, uint16_t local_net, uint16_t local_port, uint16_t remote_net,
                         uint16_t remote_port) {
  pl_conn *c = calloc(1, sizeof *c);
  if (!c) return NULL;
  do {
    c->id = e->next_conn++;
    if (e->next_conn == 0) e->next_conn = 1;
  } while (c->id == 0 || pl_map_get(&e->conns, c->id));
  c->peer = p;
  c->local_net = local_net;
  c->local_port = local_port;
  c->remote_net = remote_net;
  c->remote_port = remote_port;
  c->timer.conn = c;
  c->dial_deadline_ns = PL_NEVER;
  c->armed = true;
  if (pl_map_put(&e->conns, c->id, c) < 0) {
    free(c);
    return NULL;
  }
  if (pl_map_put(&e->tuples, tuple_key(local_port, remote_port, p->node), c) < 0) {
    pl_map_del(&e->conns, c->id);
    free(c);
    return NULL;
  }
  c->peer_next = p->conns;
  if (p->conns) p->conns->peer_prev = c;
  p->conns = c;
  p->n_conns++;
  return c;
}

static pl_event *conn_event(pl_engine *e, const pl_conn *c, uint32_t type) {
  pl_event *ev = pl_event_push(e, type, NULL, 0, false);
  if (!ev) return NULL;
  ev->conn = c->id;
  ev->client = c->client;
  ev->node = c->peer->node;
  ev->local_net = c->local_net;
  ev->local_port = c->local_port;
  ev->remote_net = c->remote_net;
  ev->remote_port = c->remote_port;
  return ev;
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

/* The local client that owned it, if one did, hears of it before anything is thrown away. */
void pl_conn_let_go(pl_engine *e, pl_conn *c) {
  if (!c->tag) return;
  void *tag = c->tag;
  c->tag = NULL;
  if (e->release_fn) e->release_fn(e->release_ctx, c->id, c->s, tag);
}

void pl_conn_wake(pl_engine *e, pl_conn *c, enum pl_wait what) {
  void *waiter = c->waiter[what];
  c->waiter[what] = NULL;
  if (waiter && e->wake_fn) e->wake_fn(e->wake_ctx, waiter);
}

static void conn_free(pl_engine *e, pl_conn *c) {
  pl_conn_wake(e, c, PL_WAIT_READ);
  pl_conn_wake(e, c, PL_WAIT_WRITE);
  pl_conn_let_go(e, c);
  pl_conn_unpark(e, c);
  if (c->inbound) {
    pl_port *port = port_of(e, c);
    if (port) port->n_conns--;
    set_places(e, c->peer, c->local_port, places(e, c->peer, c->local_port) - 1);
  }
  unlink_active(e, c);
  pl_conn_unlink_ready(e, c);
  pl_wheel_cancel(e->wheel, &c->timer.t);
  pl_map_del(&e->conns, c->id);
  uint64_t key = tuple_key(c->local_port, c->remote_port, c->peer->node);
  if (pl_map_get(&e->tuples, key) == c) pl_map_del(&e->tuples, key);
  pl_peer *p = c->peer;
  if (c->peer_prev)
    c->peer_prev->peer_next = c->peer_next;
  else
    p->conns = c->peer_next;
  if (c->peer_next) c->peer_next->peer_prev = c->peer_prev;
  p->n_conns--;
  if (p->n_conns == 0) {
    p->last_app_ns = pl_max64(p->last_app_ns, e->now_ns);
    pl_peer_schedule(e, p);
  }
  pl_stream_free(c->s);
  free(c);
}

static bool send_train(pl_engine *e, pl_conn *c, size_t *bytes);

/* The peer may have accepted what is given up here: without a word it would keep the entry until its idle timeout. */
void pl_conn_send_reset(pl_engine *e, pl_conn *c) {
  if (!c->s || c->dead) return;
  size_t bytes = 0;
  pl_stream_abort(c->s, e->now_ns);
  send_train(e, c, &bytes);
}

static void dial_failed(pl_engine *e, pl_conn *c, uint64_t reason) {
  if (c->claimed) {
    if (e->dial_failed_fn) e->dial_failed_fn(e->dial_failed_ctx, c->id, c->client);
  } else {
    pl_event *ev = conn_event(e, c, PL_EV_CONN_FAILED);
    if (ev) ev->a = reason;
  }
  conn_free(e, c);
}

void pl_conn_kill(pl_engine *e, pl_conn *c, bool reset) {
  if (c->dialing) {
    dial_failed(e, c, PL_DIAL_TIMEOUT);
    return;
  }
  pl_event *ev = conn_event(e, c, PL_EV_CONN_CLOSED);
  if (ev) ev->a = reset;
  if (c->served) pl_event_hush(e, ev);
  conn_free(e, c);
}

/* ---- dial ---- */

uint16_t pl_conn_ephemeral(pl_engine *e, uint32_t node, uint16_t remote_port) {
  for (unsigned i = 0; i < 16384; i++) {
    uint16_t port = e->next_port;
    e->next_port = port == 65535 ? 49152 : (uint16_t)(port + 1);
    if (!pl_map_get(&e->tuples, tuple_key(port, remote_port, node)) && !pl_map_get(&e->ports, port) &&
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
  pl_conn *c = conn_new(e, p, local_net, local_port, remote_net, port);
  if (!c) return PL_ENOMEM;
  c->client = client;
  c->dialing = true;
  c->held = true;
  c->dial_deadline_ns = e->now_ns + timeout_ns;
  p->last_dial_ns = e->now_ns;
  pl_peer_active(e, p);
  if (pl_peer_usable(p)) {
    size_t bytes = 0;
    pl_conn_release(e, c);
    send_train(e, c, &bytes); /* the SYN, at once: see on_syn */
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
static void unknown(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  e->st.drop_no_conn++;
  if (pkt->flags & PL_FLAG_RST || !speaks_options(p) || !(p->trusted || e->is_public)) return;
  reset(e, p, pkt);
}

static void on_syn(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
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
  pl_conn *c = conn_new(e, p, pkt->dst_net, pkt->dst_port, pkt->src_net, pkt->src_port);
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
    conn_free(e, c);
    return;
  }
  c->client = port->client;
  if (port->owner == PL_OWNER_ECHO) {
    c->owner = PL_OWNER_ECHO;
    c->served = true;
  } else if (port->owner == PL_OWNER_CLIENT && e->claim_accepts) {
    c->owner = PL_OWNER_CLIENT;
    c->claimed = c->served = true;
    pl_event *ev = conn_event(e, c, PL_EV_CLIENT_CONN);
    if (ev) ev->a = 1;
    pl_event_hush(e, ev);
    mark_ready(e, c);
  } else {
    c->parked = true;
    p->n_parked++;
    port->parked++;
    conn_event(e, c, PL_EV_ACCEPT);
  }
  size_t bytes = 0;
  send_train(e, c, &bytes); /* at once: who is told of the stream wakes up, and would be in the way of the answer */
  pl_conn_activate(e, c);
}

void pl_conn_on_packet(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  pl_conn *c = pl_map_get(&e->tuples, tuple_key(pkt->dst_port, pkt->src_port, p->node));
  bool syn = (pkt->flags & (PL_FLAG_SYN | PL_FLAG_ACK)) == PL_FLAG_SYN;
  if (c && c->s && syn) {
    pl_stream_info info;
    pl_stream_get_info(c->s, &info);
    if (info.state == PL_ST_TIME_WAIT || info.state == PL_ST_CLOSED) { /* the peer's port came round again */
      if (pl_stream_readable(c->s) && !c->closing) { /* its reader is not done with the old one: the peer tries again */
        e->st.drop_no_conn++;
        return;
      }
      pl_conn_kill(e, c, false);
      c = NULL;
    }
  }
  if (!c) {
    if (syn)
      on_syn(e, p, pkt);
    else
      unknown(e, p, pkt);
    return;
  }
  if (!c->s || c->dead) return;
  unsigned ev = pl_stream_recv(c->s, pkt, e->now_ns);
  pl_conn_activate(e, c); /* an acknowledgement may be due */
  if (ev) pl_conn_events(e, c, ev);
}

/* ---- owners ---- */

static void echo_pump(pl_engine *e, pl_conn *c) {
  const uint8_t *p[2];
  size_t n[2];
  for (;;) {
    unsigned spans = pl_stream_peek(c->s, p, n);
    size_t moved = 0;
    for (unsigned i = 0; i < spans; i++) {
      int64_t w = pl_stream_write(c->s, p[i], n[i]);
      if (w <= 0) break;
      moved += (size_t)w;
      if ((size_t)w < n[i]) break;
    }
    if (!moved) break;
    pl_stream_consume(c->s, moved, e->now_ns);
  }
  if (pl_stream_eof(c->s) && !c->closing) {
    c->closing = true;
    pl_stream_close(c->s, e->now_ns);
  }
  pl_conn_activate(e, c);
}

void pl_conn_discard(pl_engine *e, pl_conn *c) {
  size_t n;
  while ((n = pl_stream_readable(c->s)) > 0) pl_stream_consume(c->s, n, e->now_ns);
}

void pl_conn_tell_readable(pl_engine *e, pl_conn *c) {
  if (c->closing) {
    pl_conn_discard(e, c);
    return;
  }
  switch (c->owner) {
    case PL_OWNER_ECHO:
      echo_pump(e, c);
      break;
    case PL_OWNER_CLIENT:
      mark_ready(e, c);
      break;
    case PL_OWNER_APP:
      if (c->armed && (pl_stream_readable(c->s) || pl_stream_eof(c->s))) {
        c->armed = false;
        if (c->waiter[PL_WAIT_READ])
          pl_conn_wake(e, c, PL_WAIT_READ);
        else
          conn_event(e, c, PL_EV_READABLE);
      }
      break;
    default:
      break;
  }
}

static void tell_writable(pl_engine *e, pl_conn *c) {
  if (c->closing) return;
  switch (c->owner) {
    case PL_OWNER_ECHO:
      echo_pump(e, c);
      break;
    case PL_OWNER_CLIENT:
      mark_ready(e, c);
      break;
    case PL_OWNER_APP:
      if (c->want_write) {
        c->want_write = false;
        if (c->waiter[PL_WAIT_WRITE])
          pl_conn_wake(e, c, PL_WAIT_WRITE);
        else
          conn_event(e, c, PL_EV_WRITABLE);
      }
      break;
    default:
      break;
  }
}

/* May free `c`. */
void pl_conn_events(pl_engine *e, pl_conn *c, unsigned ev) {
  if (c->dialing) {
    if (ev & PL_SEV_REFUSED) {
      dial_failed(e, c, PL_DIAL_REFUSED);
      return;
    }
    if (ev & (PL_SEV_TIMEOUT | PL_SEV_RESET)) {
      dial_failed(e, c, PL_DIAL_TIMEOUT);
      return;
    }
    if (ev & PL_SEV_OPENED) {
      c->dialing = false;
      c->parked = false;
      c->dial_deadline_ns = PL_NEVER;
      pl_event *opened = conn_event(e, c, c->claimed ? PL_EV_CLIENT_CONN : PL_EV_CONN_OPEN);
      if (c->claimed) {
        pl_event_hush(e, opened);
        c->owner = PL_OWNER_CLIENT;
        c->served = true;
        mark_ready(e, c);
      }
    }
  }
  if (ev & (PL_SEV_READABLE | PL_SEV_EOF)) pl_conn_tell_readable(e, c);
  if (ev & PL_SEV_WRITABLE) tell_writable(e, c);
  if (ev & PL_SEV_RESET) {
    if (c->owner == PL_OWNER_CLIENT && !c->closing) {
      c->dead = true; /* its shell hands over what is buffered, then lets go */
      mark_ready(e, c);
      return;
    }
    pl_conn_kill(e, c, true);
    return;
  }
  if (ev & PL_SEV_CLOSED) {
    if (c->owner == PL_OWNER_CLIENT && !c->closing) {
      c->dead = true;
      mark_ready(e, c);
      return;
    }
    pl_conn_kill(e, c, false);
  }
}

void pl_conn_on_timer(pl_engine *e, pl_conn *c) {
  if (c->dialing && e->now_ns >= c->dial_deadline_ns) {
    pl_conn_send_reset(e, c);
    dial_failed(e, c, c->peer->cur ? PL_DIAL_TIMEOUT : PL_DIAL_NO_KEY);
    return;
  }
  if (!c->s) {
    pl_wheel_set(e->wheel, &c->timer.t, c->dial_deadline_ns);
    return;
  }
  if (c->dead) return;
  unsigned ev = pl_stream_tick(c->s, e->now_ns);
  pl_stream_info info;
  pl_stream_get_info(c->s, &info);
  if (info.bytes_sent != c->sent_seen || !info.unacked_segs) { /* it moves: lost segments, but no black hole */
    c->sent_seen = info.bytes_sent;
    c->timeouts_seen = info.timeouts;
  } else if (info.timeouts >= c->timeouts_seen + 2) {
    c->timeouts_seen = info.timeouts;
    pl_pmtu_blackhole(e, c->peer);
  }
  pl_conn_activate(e, c);
  if (ev) pl_conn_events(e, c, ev);
}

/* ---- sending ---- */

/* One visit: up to a train of packets of one stream. True if it has more to send now. */
static bool send_train(pl_engine *e, pl_conn *c, size_t *bytes) {
  pl_peer *p = c->peer;
  if (!c->s || c->dead || !pl_peer_usable(p)) return false;
  pl_stream_out out;
  for (unsigned i = 0; i < PL_TRAIN_PACKETS; i++) {
    if (!pl_stream_next(c->s, e->now_ns, &out)) return false;
    pl_packet pkt = {.flags = out.flags, .proto = PL_PROTO_STREAM, .src_net = c->local_net, .src_node = e->node,
                     .dst_net = c->remote_net, .dst_node = p->node, .src_port = c->local_port, .dst_port = c->remote_port,
                     .seq = out.seq, .ack = out.ack, .window = out.window, .len = (uint16_t)(out.n1 + out.n2)};
    pl_session_send(e, p, p->cur, &p->path, p->relay, &pkt, out.p1, out.n1, out.p2, out.n2);
    *bytes += out.n1 + out.n2 + PL_HDR_SIZE + PL_PILS_OVERHEAD;
  }
  return true;
}

void pl_conn_send_all(pl_engine *e) {
  size_t bytes = 0;
  while (e->active_head && bytes < PL_FLUSH_BYTES) {
    pl_conn *c = e->active_head;
    unlink_active(e, c);
    if (send_train(e, c, &bytes)) {
      pl_conn_activate(e, c); /* to the end of the line: streams take turns by trains */
      continue;
    }
    uint64_t at = c->s && !c->dead ? pl_stream_deadline(c->s) : PL_NEVER;
    if (c->dialing) at = pl_min64(at, c->dial_deadline_ns);
    pl_wheel_set(e->wheel, &c->timer.t, at);
  }
}
