/* Connections: table, packets in, owners, sending in trains (transport.md 4.2, 2.3). How they begin is in engine_open.c, commands are in
 * engine_command.c.
 *
 * A connection is found by (local port, remote port, remote node): the network half of an address differs between
 * implementations in replies, the node never does. */
#include "engine_internal.h"

#include <stdlib.h>

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

void pl_conn_mark_ready(pl_engine *e, pl_conn *c) {
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

/* ---- creation and end ---- */

pl_conn *pl_conn_new(pl_engine *e, pl_peer *p, uint16_t local_net, uint16_t local_port, uint16_t remote_net, uint16_t remote_port) {
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
  if (pl_map_put(&e->tuples, pl_tuple_key(local_port, remote_port, p->node), c) < 0) {
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

pl_event *pl_conn_event(pl_engine *e, const pl_conn *c, uint32_t type) {
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

void pl_conn_free(pl_engine *e, pl_conn *c) {
  pl_conn_wake(e, c, PL_WAIT_READ);
  pl_conn_wake(e, c, PL_WAIT_WRITE);
  pl_conn_let_go(e, c);
  pl_conn_unpark(e, c);
  pl_conn_vacate(e, c);
  unlink_active(e, c);
  pl_conn_unlink_ready(e, c);
  pl_wheel_cancel(e->wheel, &c->timer.t);
  pl_map_del(&e->conns, c->id);
  uint64_t key = pl_tuple_key(c->local_port, c->remote_port, c->peer->node);
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

/* The peer may have accepted what is given up here: without a word it would keep the entry until its idle timeout. */
void pl_conn_send_reset(pl_engine *e, pl_conn *c) {
  if (!c->s || c->dead) return;
  pl_stream_abort(c->s, e->now_ns);
  pl_conn_send_now(e, c);
}

static void dial_failed(pl_engine *e, pl_conn *c, uint64_t reason) {
  if (c->claimed) {
    if (e->dial_failed_fn) e->dial_failed_fn(e->dial_failed_ctx, c->id, c->client);
  } else {
    pl_event *ev = pl_conn_event(e, c, PL_EV_CONN_FAILED);
    if (ev) ev->a = reason;
  }
  pl_conn_free(e, c);
}

void pl_conn_kill(pl_engine *e, pl_conn *c, bool reset) {
  if (c->dialing) {
    dial_failed(e, c, PL_DIAL_TIMEOUT);
    return;
  }
  pl_event *ev = pl_conn_event(e, c, PL_EV_CONN_CLOSED);
  if (ev) ev->a = reset;
  if (c->served) pl_event_hush(e, ev);
  pl_conn_free(e, c);
}

/* ---- packets ---- */

void pl_conn_on_packet(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  pl_conn *c = pl_map_get(&e->tuples, pl_tuple_key(pkt->dst_port, pkt->src_port, p->node));
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
      pl_conn_on_syn(e, p, pkt);
    else
      pl_conn_on_unknown(e, p, pkt);
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
      pl_conn_mark_ready(e, c);
      break;
    case PL_OWNER_APP:
      if (c->armed && (pl_stream_readable(c->s) || pl_stream_eof(c->s))) {
        c->armed = false;
        if (c->waiter[PL_WAIT_READ])
          pl_conn_wake(e, c, PL_WAIT_READ);
        else
          pl_conn_event(e, c, PL_EV_READABLE);
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
      pl_conn_mark_ready(e, c);
      break;
    case PL_OWNER_APP:
      if (c->want_write) {
        c->want_write = false;
        if (c->waiter[PL_WAIT_WRITE])
          pl_conn_wake(e, c, PL_WAIT_WRITE);
        else
          pl_conn_event(e, c, PL_EV_WRITABLE);
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
      pl_event *opened = pl_conn_event(e, c, c->claimed ? PL_EV_CLIENT_CONN : PL_EV_CONN_OPEN);
      if (c->claimed) {
        pl_event_hush(e, opened);
        c->owner = PL_OWNER_CLIENT;
        c->served = true;
        pl_conn_mark_ready(e, c);
      }
    }
  }
  if (ev & (PL_SEV_READABLE | PL_SEV_EOF)) pl_conn_tell_readable(e, c);
  if (ev & PL_SEV_WRITABLE) tell_writable(e, c);
  if (ev & PL_SEV_RESET) {
    if (c->owner == PL_OWNER_CLIENT && !c->closing) {
      c->dead = true; /* its shell hands over what is buffered, then lets go */
      pl_conn_mark_ready(e, c);
      return;
    }
    pl_conn_kill(e, c, true);
    return;
  }
  if (ev & PL_SEV_CLOSED) {
    if (c->owner == PL_OWNER_CLIENT && !c->closing) {
      c->dead = true;
      pl_conn_mark_ready(e, c);
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

void pl_conn_send_now(pl_engine *e, pl_conn *c) {
  size_t bytes = 0;
  send_train(e, c, &bytes);
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
