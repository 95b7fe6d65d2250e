/* Two engines with local clients in one thread and on the test's own clock: datagrams are carried by hand, Unix sockets are real. */
#ifndef PL_LOCAL_WORLD_H
#define PL_LOCAL_WORLD_H

#include "check.h"
#include "local.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BIND = 1, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK, ERROR, SEND_TO, RECV_FROM, INFO };
#define MAX_CLIENTS 8u
#define STEP_NS (50 * PL_NS_PER_US)

typedef struct node {
  uint32_t number;
  pl_engine *e;
  pl_tx tx;
  pl_local *l;
  int ep;
  char path[64];
  pl_addr addr;
  struct world *w;
  bool hold_events;       /* the control plane is busy */
  unsigned opens, closes; /* CLIENT_OPEN, CLIENT_CLOSED */
  unsigned infos;         /* Info frames handed to Python */
  unsigned dials;         /* Dial frames handed to it */
  uint32_t last_frame_len, last_client;
} node;

typedef struct world {
  node n[2];
  uint64_t now;
  char dir[32];
  bool lossy; /* nothing arrives */
} world;

static inline void carry(pl_tx *tx, void *ctx) {
  node *from = ctx;
  node *to = &from->w->n[from == &from->w->n[0] ? 1 : 0];
  static uint8_t buf[PL_TX_RUN_BYTES + 65536];
  pl_run runs[PL_TX_RUNS];
  unsigned n = tx->n_runs;
  memcpy(runs, tx->runs, n * sizeof *runs);
  for (unsigned i = 0; i < n && !from->w->lossy; i++) {
    memcpy(buf, tx->arena + runs[i].off, runs[i].len);
    pl_engine_input(to->e, buf, runs[i].len, runs[i].seg, &from->addr, from->w->now);
  }
  pl_tx_reset(tx);
}

static inline int listen_at(const char *path) {
  struct sockaddr_un sa = {.sun_family = AF_UNIX};
  snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, 128) == 0);
  return fd;
}

static inline void reply(node *n, uint32_t client, uint8_t cmd, const uint8_t *p, uint32_t len) {
  int r = pl_local_send(n->l, client, cmd, p, len);
  CHECK(r == PL_OK || r == PL_ENOENT);
}

/* The smallest control plane: Dial, Bind, Accept. */
static inline void control(node *n) {
  pl_event *ev;
  uint8_t b[16];
  while (!n->hold_events && (ev = pl_engine_event(n->e))) {
    switch (ev->type) {
      case PL_EV_CLIENT_OPEN:
        n->opens++;
        n->last_client = ev->client;
        break;
      case PL_EV_CLIENT_CLOSED:
        n->closes++;
        break;
      case PL_EV_CLIENT_FRAME:
        n->last_frame_len = ev->len;
        if (ev->a == DIAL && ev->len == 8) {
          n->dials++;
          pl_engine_dial(n->e, 0, 0, pl_get32(ev->data + 2), pl_get16(ev->data + 6), ev->client, PL_NS_PER_S / 2, n->w->now);
        } else if (ev->a == BIND && ev->len == 2) {
          pl_engine_listen(n->e, pl_get16(ev->data), PL_OWNER_CLIENT, ev->client, false);
          reply(n, ev->client, BIND_OK, ev->data, 2);
        } else {
          n->infos++;
        }
        break;
      case PL_EV_CONN_OPEN:
        pl_put32(b, ev->conn);
        reply(n, ev->client, DIAL_OK, b, 4);
        pl_local_attach(n->l, ev->conn, ev->client, n->w->now);
        pl_local_dial_answered(n->l, ev->client, n->w->now);
        break;
      case PL_EV_CONN_FAILED:
        reply(n, ev->client, ERROR, (const uint8_t *)"\0\1refused", 9);
        pl_local_dial_answered(n->l, ev->client, n->w->now);
        break;
      case PL_EV_ACCEPT:
        pl_put16(b, ev->local_port);
        pl_put32(b + 2, ev->conn);
        pl_put16(b + 6, ev->remote_net);
        pl_put32(b + 8, ev->node);
        pl_put16(b + 12, ev->remote_port);
        reply(n, ev->client, ACCEPT, b, 14);
        pl_local_attach(n->l, ev->conn, ev->client, n->w->now);
        break;
      default:
        break;
    }
    pl_event_free(ev);
  }
}

static inline void settle(node *n) {
  pl_local_pump(n->l, n->w->now);
  pl_engine_flush(n->e, n->w->now);
}

static inline void step_node(node *n) {
  struct epoll_event ev[32];
  int k = epoll_wait(n->ep, ev, 32, 0);
  CHECK(k >= 0);
  for (int i = 0; i < k; i++) {
    if (ev[i].data.u64 >> 32 == PL_LOCAL_LISTEN)
      pl_local_on_accept(n->l, n->w->now);
    else
      pl_local_on_client(n->l, (uint32_t)ev[i].data.u64, ev[i].events, n->w->now);
  }
  settle(n);
  control(n);
  settle(n);
}

static inline void step(world *w) {
  w->now += STEP_NS;
  step_node(&w->n[0]);
  step_node(&w->n[1]);
}

static inline void steps(world *w, unsigned n) {
  while (n--) step(w);
}

static inline void node_init(world *w, unsigned i, const pl_engine_cfg *cfg) {
  node *n = &w->n[i];
  n->w = w;
  n->number = i + 1;
  n->addr = (pl_addr){.family = 4, .port = 4000, .ip = {10, 0, 0, (uint8_t)(i + 1)}};
  pl_engine_cfg c = *cfg;
  memset(c.entropy, (int)(i + 1), sizeof c.entropy);
  CHECK(pl_tx_init(&n->tx, carry, n) == PL_OK);
  n->e = pl_engine_new(&c, &n->tx, w->now);
  CHECK(n->e);
  n->ep = epoll_create1(EPOLL_CLOEXEC);
  n->l = pl_local_new(n->e, n->ep, MAX_CLIENTS, 7);
  CHECK(n->l);
  snprintf(n->path, sizeof n->path, "%s/%u", w->dir, i);
  CHECK(pl_local_serve(n->l, listen_at(n->path)) == PL_OK);
  pl_engine_set_node(n->e, n->number);
}

static inline pl_engine_cfg world_cfg(void) {
  pl_engine_cfg c;
  pl_engine_cfg_default(&c);
  return c;
}

static inline void world_init(world *w, const pl_engine_cfg *cfg) {
  memset(w, 0, sizeof *w);
  w->now = PL_NS_PER_S;
  snprintf(w->dir, sizeof w->dir, "/tmp/pl-local-XXXXXX");
  CHECK(mkdtemp(w->dir));
  node_init(w, 0, cfg);
  node_init(w, 1, cfg);
  uint8_t key[32];
  memset(key, 0x42, sizeof key);
  pl_caps caps = {.features = PL_CAP_NOCRC | PL_CAP_STREAM_OPTS, .max_segment = 8192, .reorder_segments = 65536};
  for (unsigned i = 0; i < 2; i++) {
    node *x = &w->n[i], *y = &w->n[1 - i];
    CHECK(pl_engine_set_trusted(x->e, y->number, true) == PL_OK);
    CHECK(pl_engine_install_key(x->e, y->number, key, 5, &caps, w->now) == PL_OK);
    CHECK(pl_engine_set_path(x->e, y->number, &y->addr, false, w->now) == PL_OK);
  }
}

static inline void world_free(world *w) {
  for (unsigned i = 0; i < 2; i++) {
    node *n = &w->n[i];
    pl_local_free(n->l, w->now);
    pl_engine_free(n->e);
    pl_tx_free(&n->tx);
    close(n->ep);
    unlink(n->path);
  }
  rmdir(w->dir);
}

/* ---- a client program ---- */

typedef struct client {
  int fd;
  uint8_t *buf;
  size_t len, cap, at; /* received and not yet taken as frames: [at, len) */
  bool eof;
} client;

static inline client client_open(const node *n) {
  struct sockaddr_un sa = {.sun_family = AF_UNIX};
  snprintf(sa.sun_path, sizeof sa.sun_path, "%s", n->path);
  client c = {.fd = socket(AF_UNIX, SOCK_STREAM, 0)};
  CHECK(c.fd >= 0 && connect(c.fd, (struct sockaddr *)&sa, sizeof sa) == 0);
  CHECK(fcntl(c.fd, F_SETFL, O_NONBLOCK) == 0);
  return c;
}

static inline void client_close(client *c) {
  if (c->fd >= 0) close(c->fd);
  free(c->buf);
  memset(c, 0, sizeof *c);
  c->fd = -1;
}

/* Reads what is there. */
static inline void client_read(client *c) {
  while (!c->eof) {
    if (c->at && c->at == c->len) c->at = c->len = 0;
    if (c->cap - c->len < 65536) {
      c->cap = c->cap ? c->cap * 2 : 1u << 18;
      c->buf = realloc(c->buf, c->cap);
      CHECK(c->buf);
    }
    ssize_t r = read(c->fd, c->buf + c->len, c->cap - c->len);
    if (r > 0) {
      c->len += (size_t)r;
      continue;
    }
    if (r == 0 || (errno != EAGAIN && errno != EINTR)) c->eof = true;
    if (r < 0 && errno == EINTR) continue;
    return;
  }
}

/* The next frame received so far; false if none is complete. */
static inline bool client_next(client *c, uint8_t *cmd, const uint8_t **p, uint32_t *len) {
  client_read(c);
  size_t size;
  if (pl_ipc_parse(c->buf + c->at, c->buf + c->len, cmd, p, len, &size) != 1) return false;
  c->at += size;
  return true;
}

/* Waits for a frame of this kind; anything else is a failure. */
static inline const uint8_t *client_expect(world *w, client *c, uint8_t want, uint32_t *len) {
  uint8_t cmd;
  const uint8_t *p;
  uint32_t n;
  for (unsigned i = 0; i < 20000; i++) {
    if (client_next(c, &cmd, &p, &n)) {
      if (cmd != want) fprintf(stderr, "frame 0x%02x, expected 0x%02x\n", cmd, want);
      CHECK(cmd == want);
      if (len) *len = n;
      return p;
    }
    step(w);
  }
  fprintf(stderr, "no frame 0x%02x\n", want);
  CHECK(!"frame");
  return NULL;
}

static inline void client_raw(world *w, client *c, const void *p, size_t n) {
  const uint8_t *b = p;
  for (unsigned idle = 0; n;) {
    ssize_t r = write(c->fd, b, n);
    if (r > 0) {
      b += r;
      n -= (size_t)r;
      idle = 0;
      continue;
    }
    CHECK(r < 0 && errno == EAGAIN && idle++ < 20000);
    step(w);
  }
}

static inline void client_send(world *w, client *c, uint8_t cmd, const void *p, size_t n) {
  uint8_t head[5];
  pl_put32(head, (uint32_t)n + 1);
  head[4] = cmd;
  client_raw(w, c, head, 5);
  client_raw(w, c, p, n);
}

static inline void client_data(world *w, client *c, uint32_t conn, const void *p, size_t n) {
  uint8_t head[9];
  pl_put32(head, (uint32_t)n + 5);
  head[4] = SEND;
  pl_put32(head + 5, conn);
  client_raw(w, c, head, 9);
  client_raw(w, c, p, n);
}

static inline void client_conn(world *w, client *c, uint8_t cmd, uint32_t conn) {
  uint8_t b[4];
  pl_put32(b, conn);
  client_send(w, c, cmd, b, 4);
}

static inline void client_bind(world *w, client *c, uint16_t port) {
  uint8_t b[2];
  pl_put16(b, port);
  client_send(w, c, BIND, b, 2);
  CHECK(pl_get16(client_expect(w, c, BIND_OK, NULL)) == port);
}

static inline uint32_t client_dial(world *w, client *c, uint32_t node_number, uint16_t port) {
  uint8_t b[8] = {0};
  pl_put32(b + 2, node_number);
  pl_put16(b + 6, port);
  client_send(w, c, DIAL, b, 8);
  return pl_get32(client_expect(w, c, DIAL_OK, NULL));
}

/* A connection between a client of each node; the ids at both ends. */
static inline void connect_clients(world *w, client *a, client *b, uint16_t port, uint32_t *at_a, uint32_t *at_b) {
  client_bind(w, b, port);
  *at_a = client_dial(w, a, w->n[1].number, port);
  *at_b = pl_get32(client_expect(w, b, ACCEPT, NULL) + 2);
}

/* ---- what tests look at ---- */

static inline uint8_t pattern(uint64_t i) { return (uint8_t)(i * 131 + (i >> 8) * 7 + (i >> 16)); }

static inline uint8_t *make(size_t n) {
  uint8_t *p = malloc(n);
  CHECK(p);
  for (size_t i = 0; i < n; i++) p[i] = pattern(i);
  return p;
}

/* Takes Recv frames of a connection until `n` bytes have come, comparing each; `from` is the stream offset. */
static inline void receive(world *w, client *c, uint32_t conn, uint64_t from, size_t n) {
  uint32_t len;
  while (n) {
    const uint8_t *p = client_expect(w, c, RECV, &len);
    CHECK(pl_get32(p) == conn && len > 4 && len - 4 <= n);
    for (uint32_t i = 0; i < len - 4; i++) CHECK(p[4 + i] == pattern(from + i));
    from += len - 4;
    n -= len - 4;
  }
}

static inline void gone(world *w, client *c) {
  for (unsigned i = 0; i < 2000 && !c->eof; i++) {
    step(w);
    client_read(c);
  }
  CHECK(c->eof);
}

static inline pl_local_stats stats(const node *n) {
  pl_local_stats s;
  pl_local_get_stats(n->l, &s);
  return s;
}

#endif
