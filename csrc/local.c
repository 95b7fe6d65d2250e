/* Local clients: the listening socket, clients and their connections coming and going, and the pump that serves them. */
#include "local_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPT_BATCH 32u
#define ACCEPT_RETRY_NS (100 * PL_NS_PER_MS) /* descriptors ran out */
#define SOCKET_BUFFER (512 << 10)
#define PUMP_PASSES 4u

static pl_client *find(const pl_local *l, uint32_t id) { return pl_map_get(&l->clients, id); }

/* ---- work list ---- */

void pl_local_work(pl_local *l, pl_client *c, bool readable) {
  if (readable) c->readable = true;
  if (c->in_work) return;
  c->in_work = true;
  c->work_next = NULL;
  c->work_prev = l->work_tail;
  if (l->work_tail)
    l->work_tail->work_next = c;
  else
    l->work_head = c;
  l->work_tail = c;
}

static void unlink_work(pl_local *l, pl_client *c) {
  if (!c->in_work) return;
  if (c->work_prev)
    c->work_prev->work_next = c->work_next;
  else
    l->work_head = c->work_next;
  if (c->work_next)
    c->work_next->work_prev = c->work_prev;
  else
    l->work_tail = c->work_prev;
  c->in_work = false;
}

static pl_client *next_work(pl_local *l) {
  pl_client *c = l->work_head;
  if (c) unlink_work(l, c);
  return c;
}

/* ---- connections ---- */

static pl_lconn *lconn_new(pl_client *c, uint32_t id) {
  pl_lconn *lc = calloc(1, sizeof *lc);
  if (!lc) return NULL;
  lc->id = id;
  lc->client = c;
  lc->all_next = c->conns;
  if (c->conns) c->conns->all_prev = lc;
  c->conns = lc;
  c->n_conns++;
  return lc;
}

static void lconn_free(pl_lconn *lc) {
  if (lc->all_prev)
    lc->all_prev->all_next = lc->all_next;
  else
    lc->client->conns = lc->all_next;
  if (lc->all_next) lc->all_next->all_prev = lc->all_prev;
  lc->client->n_conns--;
  free(lc);
}

static void queue_close_ok(pl_local *l, pl_client *c, uint32_t conn) {
  uint8_t id[4];
  pl_put32(id, conn);
  /* Beyond the bounds, because it must not be lost: there are at most as many as connections and requests that were read. */
  if (pl_client_queue(l, c, PL_IPC_CLOSE_OK, id, 4, NULL, 0, true) == PL_ENOMEM) c->broken = true;
}

static void on_release(void *ctx, uint32_t conn, pl_stream *s, void *tag) {
  pl_local *l = ctx;
  pl_lconn *lc = tag;
  pl_client *c = lc->client;
  pl_client_detach(lc, s);
  if (!c->leaving && lc->waiting) {
    pl_client_dial_lost(l, c, conn);
  } else if (!c->leaving) {
    queue_close_ok(l, c, conn);
    if (c->blocked && c->send_conn == conn) c->blocked = false; /* the rest of the frame is discarded */
    pl_local_work(l, c, true);
  }
  lconn_free(lc);
}

static void on_dial_failed(void *ctx, uint32_t conn, uint32_t client) {
  pl_local *l = ctx;
  pl_client *c = find(l, client);
  if (c) pl_client_dial_lost(l, c, conn);
}

static void on_taken(void *ctx, uint32_t client, uint32_t len) {
  pl_local *l = ctx;
  pl_client *c = find(l, client);
  if (!c) return;
  c->taken--;
  c->taken_bytes -= len;
  if (c->stopped && !pl_client_paused(c)) pl_local_work(l, c, true);
}

/* RecvFrom goes to everybody; nobody's slowness holds up the others. */
static void on_datagram(void *ctx, const pl_packet *pkt) {
  pl_local *l = ctx;
  uint8_t head[10];
  pl_put16(head, pkt->src_net);
  pl_put32(head + 2, pkt->src_node);
  pl_put16(head + 6, pkt->src_port);
  pl_put16(head + 8, pkt->dst_port);
  for (pl_client *c = l->head; c; c = c->next) {
    if (c->out_tail - c->out_head > PL_OUT_DATAGRAM_BYTES ||
        pl_client_queue(l, c, PL_IPC_RECV_FROM, head, sizeof head, pkt->payload, pkt->len, false) < 0)
      l->st.datagram_drops++;
  }
}

/* Tells the client of an inbound stream. False if it cannot take it. */
static bool announce(pl_local *l, const pl_lconn *lc) {
  pl_conn_info info;
  uint8_t b[14];
  if (lc->client->n_conns > PL_DIALS || pl_engine_conn_info(l->e, lc->id, &info) < 0) return false;
  pl_put16(b, info.local_port);
  pl_put32(b + 2, lc->id);
  pl_put16(b + 6, info.remote_net);
  pl_put32(b + 8, info.node);
  pl_put16(b + 12, info.remote_port);
  /* Beyond the bounds, as the connections have one: a program that is slow to take streams would else refuse them. */
  return pl_client_queue(l, lc->client, PL_IPC_ACCEPT, b, sizeof b, NULL, 0, true) == PL_OK;
}

/* The connection belongs to a client: finds or makes the record. NULL if the client is gone (the connection is then closed). */
static pl_lconn *adopt(pl_local *l, uint32_t conn, const pl_client_conn *cc) {
  if (*cc->tag) return *cc->tag;
  pl_client *c = find(l, cc->client);
  pl_lconn *lc = c && !c->leaving ? lconn_new(c, conn) : NULL;
  if (!lc) {
    pl_engine_close(l->e, conn, l->now_ns);
    return NULL;
  }
  if (cc->accepted && !announce(l, lc)) {
    lconn_free(lc);
    pl_engine_abort(l->e, conn, l->now_ns);
    return NULL;
  }
  *cc->tag = lc;
  return lc;
}

/* Takes over what the engine reports: bytes or an end to push, room to send into. */
static void route_ready(pl_local *l) {
  uint32_t id;
  while ((id = pl_engine_next_ready(l->e))) {
    pl_client_conn cc;
    if (!pl_engine_client_conn(l->e, id, &cc)) continue;
    pl_lconn *lc = adopt(l, id, &cc);
    if (!lc) continue;
    pl_client *c = lc->client;
    if (c->blocked && c->send_conn == id) { /* also while the answer to its dial waits: a client may have guessed the number */
      c->blocked = false;
      pl_local_work(l, c, true);
    }
    if (!lc->waiting && pl_client_dialed(l, lc)) continue;
    if (lc->waiting) continue;
    if (cc.dead || pl_stream_readable(cc.s) || pl_stream_eof(cc.s)) pl_client_push(l, lc);
  }
}

static void close_request(pl_local *l, pl_client *c, uint32_t conn) {
  pl_client_conn cc;
  pl_conn_info info;
  if (pl_engine_client_conn(l->e, conn, &cc)) {
    bool told = cc.client == c->id && *cc.tag; /* by the release hook */
    pl_engine_close(l->e, conn, l->now_ns);
    if (told) return;
  } else if (pl_engine_conn_info(l->e, conn, &info) == PL_OK && info.s.state != PL_ST_SYN_SENT) {
    /* `disconnect` of a connection that a service holds: the service sees a reset. Dials in progress are their dialer's. */
    if (info.owner == PL_OWNER_APP)
      pl_engine_abort(l->e, conn, l->now_ns);
    else
      pl_engine_close(l->e, conn, l->now_ns);
  }
  queue_close_ok(l, c, conn);
}

void pl_client_close_request(pl_local *l, pl_client *c, uint32_t conn) {
  bool later = pl_client_may_wait(l, c);
  close_request(l, c, conn);
  if (later) pl_client_wait(l, c);
}

/* ---- clients ---- */

/* Asks epoll for what the client can make use of. A hung-up socket reports itself whatever it is asked: it is taken out while
 * there is nothing to be done with it. */
static void arm(pl_local *l, pl_client *c) {
  uint32_t want = (pl_client_paused(c) ? 0u : (uint32_t)EPOLLIN) | (c->full && pl_client_has_output(c) ? (uint32_t)EPOLLOUT : 0u);
  bool keep = want || !c->hup;
  if (keep == c->registered && want == c->armed) return;
  struct epoll_event ev = {.events = want, .data.u64 = (uint64_t)PL_LOCAL_CLIENT << 32 | c->id};
  int op = !keep ? EPOLL_CTL_DEL : c->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (keep || c->registered)
    if (epoll_ctl(l->epoll_fd, op, c->fd, &ev) < 0) c->broken = true;
  c->registered = keep;
  c->armed = want;
}

static void client_free(pl_local *l, pl_client *c) {
  c->leaving = true;
  while (c->conns) {
    uint32_t id = c->conns->id;
    if (pl_engine_close(l->e, id, l->now_ns) < 0) break;
  }
  pl_engine_client_gone(l->e, c->id, l->now_ns); /* dials, and what was accepted but not attached */
  pl_client_unstall(l, c);
  unlink_work(l, c);
  pl_client_no_hold(l, c);
  pl_client_no_wait(l, c);
  if (c->prev)
    c->prev->next = c->next;
  else
    l->head = c->next;
  if (c->next) c->next->prev = c->prev;
  pl_map_del(&l->clients, c->id);
  pl_event ev = {.type = PL_EV_CLIENT_CLOSED, .client = c->id};
  pl_engine_post(l->e, &ev, NULL, 0);
  close(c->fd); /* epoll forgets it with that */
  l->st.clients--;
  pl_client_free_dials(c);
  free(c->in);
  free(c->out);
  free(c->rest);
  free(c);
}

static bool may_connect(int fd, uint64_t *pid) {
  struct ucred cred;
  socklen_t len = sizeof cred;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || len != sizeof cred) return false;
  *pid = (uint64_t)cred.pid;
  return cred.uid == geteuid() || cred.uid == 0;
}

static void client_new(pl_local *l, int fd) {
  uint64_t pid;
  pl_client *c = NULL;
  if (!may_connect(fd, &pid) || l->st.clients >= l->max_clients) {
    l->st.refused++;
    goto fail;
  }
  c = calloc(1, sizeof *c);
  if (!c) goto fail;
  do {
    c->id = l->next_id++;
  } while (c->id == 0 || find(l, c->id));
  c->fd = fd;
  int size = SOCKET_BUFFER;
  (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  if (pl_map_put(&l->clients, c->id, c) < 0) goto fail;
  struct epoll_event ev = {.events = EPOLLIN, .data.u64 = (uint64_t)PL_LOCAL_CLIENT << 32 | c->id};
  pl_event open = {.type = PL_EV_CLIENT_OPEN, .client = c->id, .a = pid};
  if (epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 || pl_engine_post(l->e, &open, NULL, 0) < 0) {
    pl_map_del(&l->clients, c->id);
    goto fail;
  }
  c->registered = true;
  c->armed = EPOLLIN;
  c->next = l->head;
  if (l->head) l->head->prev = c;
  l->head = c;
  l->st.clients++;
  return;
fail:
  free(c);
  close(fd);
}

/* ---- listening socket ---- */

static void listen_events(pl_local *l, uint32_t events) {
  struct epoll_event ev = {.events = events, .data.u64 = (uint64_t)PL_LOCAL_LISTEN << 32};
  epoll_ctl(l->epoll_fd, EPOLL_CTL_MOD, l->listen_fd, &ev);
}

int pl_local_serve(pl_local *l, int listen_fd) {
  struct epoll_event ev = {.events = EPOLLIN, .data.u64 = (uint64_t)PL_LOCAL_LISTEN << 32};
  int flags = fcntl(listen_fd, F_GETFL);
  int r = PL_OK;
  if (l->listen_fd >= 0)
    r = PL_EEXIST;
  else if (flags < 0 || fcntl(listen_fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(listen_fd, F_SETFD, FD_CLOEXEC) < 0 ||
           epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, listen_fd, &ev) < 0)
    r = PL_EIO;
  if (r < 0) {
    int why = errno;
    if (listen_fd >= 0) close(listen_fd);
    errno = why;
    return r;
  }
  l->listen_fd = listen_fd;
  return PL_OK;
}

void pl_local_on_accept(pl_local *l, uint64_t now_ns) {
  l->now_ns = now_ns;
  for (unsigned i = 0; i < ACCEPT_BATCH; i++) {
    int fd = accept4(l->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      client_new(l, fd);
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return;
    listen_events(l, 0); /* it would report itself for ever */
    l->accept_at_ns = now_ns + ACCEPT_RETRY_NS;
    return;
  }
}

/* ---- serving ---- */

void pl_local_on_client(pl_local *l, uint32_t client, uint32_t epoll_events, uint64_t now_ns) {
  pl_client *c = find(l, client);
  if (!c) return; /* left earlier in this batch */
  l->now_ns = now_ns;
  if (epoll_events & (EPOLLHUP | EPOLLERR)) {
    c->hup = true;
    c->full = false; /* the next write says why */
  }
  if (epoll_events & EPOLLOUT) c->full = false;
  pl_local_work(l, c, (epoll_events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0);
}

static void serve(pl_local *l, pl_client *c) {
  if (c->dials) pl_client_advance_dials(l, c);
  if (c->readable) {
    c->readable = false;
    if (!pl_client_paused(c)) pl_client_read(l, c);
  }
  pl_engine_send_made(l->e); /* a client that is written to wakes up, perhaps on this processor */
  pl_client_write(l, c);
  if (pl_client_paused(c)) {
    c->stopped = true;
  } else if (c->stopped) {
    c->stopped = false;
    pl_local_work(l, c, true); /* the stage may hold frames that no event announces */
  }
  if (!c->broken) arm(l, c);
  if (c->broken) client_free(l, c);
}

bool pl_local_pump(pl_local *l, uint64_t now_ns) {
  uint64_t heard = l->st.frames;
  l->told = false;
  l->now_ns = now_ns;
  pl_local_now_or_later(l);
  if (now_ns >= l->accept_at_ns) {
    l->accept_at_ns = PL_NEVER;
    listen_events(l, EPOLLIN);
  }
  while (l->stall_head && now_ns >= l->stall_head->stalled_ns + PL_SLOW_NS) {
    pl_client *c = l->stall_head;
    l->st.slow++;
    pl_client_unstall(l, c);
    c->broken = true;
    pl_local_work(l, c, false);
  }
  l->pump_left = PL_PUMP_BYTES;
  for (unsigned pass = 0; pass < PUMP_PASSES; pass++) {
    route_ready(l);
    pl_client *last = l->work_tail, *c;
    if (!last) break;
    bool end = false;
    while (!end && l->pump_left && (c = next_work(l))) { /* whoever is left is first the next time */
      end = c == last;
      serve(l, c);
    }
  }
  return l->told && l->st.frames == heard;
}

uint64_t pl_local_deadline(const pl_local *l) {
  if (l->work_head || pl_engine_has_ready(l->e)) return 0; /* a timer may have ended a stream since the pump */
  uint64_t at = l->accept_at_ns;
  if (l->stall_head) at = pl_min64(at, l->stall_head->stalled_ns + PL_SLOW_NS);
  return pl_min64(at, pl_local_later_ns(l));
}

/* ---- life ---- */

pl_local *pl_local_new(pl_engine *e, int epoll_fd, uint32_t max_clients, uint64_t hash_seed) {
  pl_local *l = calloc(1, sizeof *l);
  if (!l) return NULL;
  l->e = e;
  l->epoll_fd = epoll_fd;
  l->listen_fd = -1;
  l->accept_at_ns = PL_NEVER;
  l->max_clients = max_clients;
  l->next_id = 1;
  l->dial_net = -1;
  pl_map_init(&l->clients, hash_seed);
  pl_engine_on_datagram(e, on_datagram, l);
  pl_engine_on_release(e, on_release, l);
  pl_engine_on_taken(e, on_taken, l);
  pl_engine_on_dial_failed(e, on_dial_failed, l);
  return l;
}

void pl_local_free(pl_local *l, uint64_t now_ns) {
  if (!l) return;
  l->now_ns = now_ns;
  while (l->head) client_free(l, l->head);
  if (l->listen_fd >= 0) close(l->listen_fd);
  pl_engine_on_datagram(l->e, NULL, NULL);
  pl_engine_on_release(l->e, NULL, NULL);
  pl_engine_on_taken(l->e, NULL, NULL);
  pl_engine_on_dial_failed(l->e, NULL, NULL);
  pl_map_free(&l->clients);
  free(l);
}

/* ---- commands ---- */

int pl_local_send(pl_local *l, uint32_t client, uint8_t cmd, const uint8_t *payload, uint32_t len) {
  pl_client *c = find(l, client);
  if (!c) return PL_ENOENT;
  if (len >= PL_IPC_MAX) return PL_EFORMAT;
  if (cmd == PL_IPC_ACCEPT) return pl_client_queue(l, c, cmd, payload, len, NULL, 0, false);
  if (c->out_frames < PL_REPLY_FRAMES && c->out_tail - c->out_head <= PL_OUT_BYTES)
    return pl_client_queue(l, c, cmd, payload, len, NULL, 0, true);
  /* Clients tell replies apart by their order: without this one it would take the next for it. */
  if (!c->broken) l->st.slow++;
  c->broken = true;
  pl_local_work(l, c, false);
  return PL_ELIMIT;
}

int pl_local_close(pl_local *l, uint32_t client, uint64_t now_ns) {
  pl_client *c = find(l, client);
  if (!c) return PL_ENOENT;
  l->now_ns = now_ns;
  pl_client_no_wait(l, c);
  pl_client_write(l, c); /* the last words, as far as they fit */
  client_free(l, c);
  return PL_OK;
}

int pl_local_attach(pl_local *l, uint32_t conn, uint32_t client, uint64_t now_ns) {
  l->now_ns = now_ns;
  if (!find(l, client)) return PL_ENOENT;
  int r = pl_engine_own(l->e, conn, PL_OWNER_CLIENT, client, now_ns);
  if (r < 0) return r;
  pl_client_conn cc;
  if (!pl_engine_client_conn(l->e, conn, &cc)) return PL_ENOENT;
  return adopt(l, conn, &cc) ? PL_OK : PL_ENOMEM;
}

void pl_local_serve_streams(pl_local *l, int32_t net) {
  l->dial_net = net;
  pl_engine_claim_accepts(l->e, net >= 0);
}

int pl_local_dial_answered(pl_local *l, uint32_t client, uint64_t now_ns) {
  pl_client *c = find(l, client);
  if (!c) return PL_ENOENT;
  l->now_ns = now_ns;
  pl_client_dial_answered(l, c);
  return PL_OK;
}

void pl_local_get_stats(const pl_local *l, pl_local_stats *out) { *out = l->st; }
