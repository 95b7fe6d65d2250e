/* Commands on ports and connections, the local clients' shell, inspection: the half of engine.h that its callers drive. */
#include "engine_internal.h"

#include <stdlib.h>

static pl_conn *find(const pl_engine *e, uint32_t id) { return pl_map_get(&e->conns, id); }

/* ---- ports ---- */

int pl_engine_listen(pl_engine *e, uint16_t port, enum pl_owner owner, uint32_t client, bool open_port) {
  if (pl_map_get(&e->ports, port)) return PL_EEXIST;
  pl_port *x = calloc(1, sizeof *x);
  if (!x) return PL_ENOMEM;
  x->port = port;
  x->owner = owner;
  x->client = client;
  x->open_port = open_port;
  x->first_conn = e->next_conn;
  if (pl_map_put(&e->ports, port, x) < 0) {
    free(x);
    return PL_ENOMEM;
  }
  return PL_OK;
}

int pl_engine_unlisten(pl_engine *e, uint16_t port) {
  pl_port *x = pl_map_del(&e->ports, port);
  if (!x) return PL_ENOENT;
  free(x);
  return PL_OK;
}

/* ---- streams ---- */

int pl_engine_own(pl_engine *e, uint32_t conn, enum pl_owner owner, uint32_t client, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  if (c->dialing) return PL_ESTATE;
  pl_conn_unpark(e, c);
  if (c->owner != owner || c->client != client) pl_conn_let_go(e, c);
  c->owner = owner;
  c->client = client;
  c->served = owner == PL_OWNER_CLIENT || owner == PL_OWNER_ECHO;
  c->armed = true;
  if (c->dead && owner != PL_OWNER_CLIENT) {
    pl_conn_kill(e, c, true);
    return PL_OK;
  }
  pl_conn_tell_readable(e, c);
  return PL_OK;
}

int64_t pl_engine_write(pl_engine *e, uint32_t conn, const uint8_t *data, size_t len, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  if (c->dead || c->closing || !c->s) return PL_ESTATE;
  int64_t n = pl_stream_write(c->s, data, len);
  if (n >= 0 && (size_t)n < len) c->want_write = true;
  pl_peer_active(e, c->peer);
  if (n > 0) pl_conn_activate(e, c);
  return n;
}

int64_t pl_engine_read(pl_engine *e, uint32_t conn, uint8_t *buf, size_t cap, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  if (c->closing) return PL_ESTATE;
  if (!c->s) return PL_EAGAIN;
  const uint8_t *p[2];
  size_t n[2], done = 0;
  unsigned spans = pl_stream_peek(c->s, p, n);
  for (unsigned i = 0; i < spans && done < cap; i++) {
    size_t k = n[i] < cap - done ? n[i] : cap - done;
    memcpy(buf + done, p[i], k);
    done += k;
  }
  if (done) {
    pl_stream_consume(c->s, done, e->now_ns);
    pl_conn_activate(e, c);
    return (int64_t)done;
  }
  if (pl_stream_eof(c->s)) return 0;
  c->armed = true;
  return PL_EAGAIN;
}

int pl_engine_close(pl_engine *e, uint32_t conn, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  if (c->dialing || !c->s || c->dead) {
    if (c->dialing) pl_conn_send_reset(e, c);
    c->dialing = false; /* the closer does not need to hear of it */
    pl_conn_kill(e, c, c->dead);
    return PL_OK;
  }
  pl_conn_unpark(e, c);
  pl_conn_let_go(e, c);
  pl_conn_unlink_ready(e, c);
  c->owner = PL_OWNER_NONE;
  c->closing = true;
  pl_conn_wake(e, c, PL_WAIT_READ);
  pl_conn_wake(e, c, PL_WAIT_WRITE);
  pl_stream_close(c->s, e->now_ns);
  pl_conn_discard(e, c);
  pl_conn_activate(e, c);
  return PL_OK;
}

int pl_engine_abort(pl_engine *e, uint32_t conn, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  pl_conn_send_reset(e, c);
  c->dialing = false;
  pl_conn_kill(e, c, true);
  return PL_OK;
}

int64_t pl_engine_reset_streams(pl_engine *e, uint32_t node, uint64_t key_id, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  pl_peer *p = pl_peer_find(e, node);
  if (!p) return PL_ENOENT;
  const pl_key *keys[] = {p->cur, p->next, p->prev}, *key = NULL;
  for (unsigned i = 0; i < 3; i++)
    if (key_id && keys[i] && keys[i]->id == key_id) key = keys[i];
  if (key_id && !key) return PL_ENOENT;
  int64_t n = 0;
  for (pl_conn *c = p->conns, *next; c; c = next) {
    next = c->peer_next;
    if (c->dialing || c->dead || !c->s) continue;
    if (key && (int32_t)(c->id - key->first_conn) >= 0) continue;
    pl_conn_send_reset(e, c); /* in case it hears us all the same */
    pl_conn_events(e, c, PL_SEV_RESET);
    n++;
  }
  return n;
}

int64_t pl_engine_unacked(const pl_engine *e, uint32_t conn) {
  const pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  return c->s ? (int64_t)pl_stream_unacked(c->s) : 0;
}

/* ---- for the shell that lets threads wait ---- */

int pl_engine_wait(pl_engine *e, uint32_t conn, enum pl_wait what, void *waiter) {
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  if (c->closing) return PL_ESTATE;
  if (c->waiter[what]) return PL_EEXIST;
  c->waiter[what] = waiter;
  return PL_OK;
}

void pl_engine_unwait(pl_engine *e, uint32_t conn, enum pl_wait what, const void *waiter) {
  pl_conn *c = find(e, conn);
  if (c && c->waiter[what] == waiter) c->waiter[what] = NULL;
}

void pl_engine_on_wake(pl_engine *e, void (*fn)(void *, void *), void *ctx) {
  e->wake_fn = fn;
  e->wake_ctx = ctx;
}

/* ---- for the shell of local clients ---- */

uint32_t pl_engine_next_ready(pl_engine *e) {
  pl_conn *c = e->ready_head;
  if (!c) return 0;
  pl_conn_unlink_ready(e, c);
  return c->id;
}

bool pl_engine_has_ready(const pl_engine *e) { return e->ready_head != NULL; }

bool pl_engine_client_conn(const pl_engine *e, uint32_t conn, pl_client_conn *out) {
  pl_conn *c = find(e, conn);
  if (!c || c->owner != PL_OWNER_CLIENT) return false;
  *out = (pl_client_conn){.s = c->s, .client = c->client, .accepted = c->claimed && c->inbound, .dead = c->dead, .tag = &c->tag};
  return true;
}

void pl_engine_on_release(pl_engine *e, void (*fn)(void *, uint32_t, pl_stream *, void *), void *ctx) {
  e->release_fn = fn;
  e->release_ctx = ctx;
}

int pl_engine_claim_dial(pl_engine *e, uint32_t conn) {
  pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  if (!c->dialing) return PL_ESTATE;
  c->claimed = true;
  return PL_OK;
}

void pl_engine_claim_accepts(pl_engine *e, bool claim) { e->claim_accepts = claim; }

void pl_engine_on_dial_failed(pl_engine *e, void (*fn)(void *, uint32_t, uint32_t), void *ctx) {
  e->dial_failed_fn = fn;
  e->dial_failed_ctx = ctx;
}

void pl_engine_on_taken(pl_engine *e, void (*fn)(void *, uint32_t, uint32_t), void *ctx) {
  e->taken_fn = fn;
  e->taken_ctx = ctx;
}

void pl_engine_touch(pl_engine *e, uint32_t conn) {
  pl_conn *c = find(e, conn);
  if (!c) return;
  pl_peer_active(e, c->peer);
  pl_conn_activate(e, c);
}

void pl_engine_client_gone(pl_engine *e, uint32_t client, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  size_t it = 0;
  uint32_t *ids = NULL;
  size_t n = 0, cap = 0;
  pl_conn *c;
  while ((c = pl_map_next(&e->conns, &it, NULL))) {
    bool theirs = c->client == client && (c->owner == PL_OWNER_CLIENT || c->dialing || c->parked || c->owner == PL_OWNER_NONE);
    if (!theirs || c->closing) continue;
    if (n == cap) { /* closing may free entries, so collect first */
      size_t grown = cap ? cap * 2 : 64;
      uint32_t *more = realloc(ids, grown * sizeof *ids);
      if (!more) break;
      ids = more;
      cap = grown;
    }
    ids[n++] = c->id;
  }
  for (size_t i = 0; i < n; i++) pl_engine_close(e, ids[i], e->now_ns);
  free(ids);
}

/* ---- inspection ---- */

static void fill_info(const pl_conn *c, pl_conn_info *out) {
  memset(out, 0, sizeof *out);
  out->id = c->id;
  out->node = c->peer->node;
  out->local_net = c->local_net;
  out->local_port = c->local_port;
  out->remote_net = c->remote_net;
  out->remote_port = c->remote_port;
  out->owner = c->owner;
  out->client = c->client;
  if (c->s)
    pl_stream_get_info(c->s, &out->s);
  else
    out->s.state = PL_ST_SYN_SENT;
}

int pl_engine_conn_info(const pl_engine *e, uint32_t conn, pl_conn_info *out) {
  const pl_conn *c = find(e, conn);
  if (!c) return PL_ENOENT;
  fill_info(c, out);
  return PL_OK;
}

bool pl_engine_next_conn(const pl_engine *e, size_t *it, pl_conn_info *out) {
  const pl_conn *c = pl_map_next(&e->conns, it, NULL);
  if (!c) return false;
  fill_info(c, out);
  return true;
}
