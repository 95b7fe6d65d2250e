/* Two loops on loopback with real sockets, a control thread beside each, and client programs. */
#ifndef PL_LOOP_WORLD_H
#define PL_LOOP_WORLD_H

#include "check.h"
#include "local.h"
#include "loop.h"
#include "wire.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BIND = 1, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK };
#define LIMIT_S 60

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * PL_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- a node: loop, socket path, control thread ---- */

typedef struct node {
  pl_loop *loop;
  uint32_t number;
  char path[64];
  pl_addr addr;
  pthread_t control;
  bool controlled;
  atomic_bool stop;
  atomic_uint opens, closes, failed, conn_closed, resets, readable;
} node;

static inline void node_reply(node *n, uint32_t client, uint8_t cmd, const uint8_t *p, uint32_t len, uint32_t attach) {
  uint64_t now;
  pl_loop_lock(n->loop, &now);
  pl_loop_client_send(n->loop, client, cmd, p, len);
  if (attach) pl_loop_attach(n->loop, attach, client);
  pl_loop_unlock(n->loop);
}

static inline void node_event(node *n, const pl_event *ev) {
  uint8_t b[16];
  uint64_t now;
  pl_engine *e;
  switch (ev->type) {
    case PL_EV_CLIENT_OPEN:
      n->opens++;
      break;
    case PL_EV_CLIENT_CLOSED:
      n->closes++;
      break;
    case PL_EV_CLIENT_FRAME:
      e = pl_loop_lock(n->loop, &now);
      if (ev->a == DIAL && ev->len == 8)
        pl_engine_dial(e, 0, 0, pl_get32(ev->data + 2), pl_get16(ev->data + 6), ev->client, 20 * PL_NS_PER_S, now);
      if (ev->a == BIND && ev->len == 2) {
        pl_engine_listen(e, pl_get16(ev->data), PL_OWNER_CLIENT, ev->client, false);
        pl_loop_client_send(n->loop, ev->client, BIND_OK, ev->data, 2);
      }
      pl_loop_unlock(n->loop);
      break;
    case PL_EV_CONN_OPEN:
      if (!ev->client) break;
      pl_put32(b, ev->conn);
      node_reply(n, ev->client, DIAL_OK, b, 4, ev->conn);
      break;
    case PL_EV_ACCEPT:
      if (!ev->client) break;
      pl_put16(b, ev->local_port);
      pl_put32(b + 2, ev->conn);
      pl_put16(b + 6, ev->remote_net);
      pl_put32(b + 8, ev->node);
      pl_put16(b + 12, ev->remote_port);
      node_reply(n, ev->client, ACCEPT, b, 14, ev->conn);
      break;
    case PL_EV_CONN_FAILED:
      n->failed++;
      break;
    case PL_EV_READABLE:
      n->readable++;
      break;
    case PL_EV_CONN_CLOSED:
      n->conn_closed++;
      if (ev->a) n->resets++;
      break;
    default:
      break;
  }
}

static inline void *node_control(void *arg) {
  node *n = arg;
  struct pollfd p = {.fd = pl_loop_event_fd(n->loop), .events = POLLIN};
  while (!n->stop) {
    uint64_t count, now;
    if (poll(&p, 1, 20) <= 0) continue;
    if (read(p.fd, &count, sizeof count) < 0) continue;
    for (;;) {
      pl_event *ev = pl_engine_event(pl_loop_lock(n->loop, &now));
      pl_loop_unlock(n->loop);
      if (!ev) break;
      node_event(n, ev);
      pl_event_free(ev);
    }
  }
  return NULL;
}

static inline void node_init(node *n, uint32_t number, const char *dir, const pl_loop_cfg *with) {
  memset(n, 0, sizeof *n);
  n->number = number;
  pl_loop_cfg cfg = *with;
  cfg.bind = (pl_addr){.family = 4, .ip = {127, 0, 0, 1}};
  CHECK(pl_loop_new(&cfg, &n->loop) == PL_OK);
  pl_loop_local_addr(n->loop, &n->addr);
  CHECK(n->addr.port != 0);
  snprintf(n->path, sizeof n->path, "%s/%u", dir, number);
  struct sockaddr_un sa = {.sun_family = AF_UNIX};
  snprintf(sa.sun_path, sizeof sa.sun_path, "%s", n->path);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, 128) == 0);
  CHECK(pl_loop_serve(n->loop, fd) == PL_OK);
  CHECK(pl_loop_serve(n->loop, dup(1)) == PL_EEXIST);
  uint64_t now;
  pl_engine_set_node(pl_loop_lock(n->loop, &now), number);
  pl_loop_unlock(n->loop);
  CHECK(pl_loop_start(n->loop) == PL_OK && pl_loop_start(n->loop) == PL_ESTATE);
}

static inline void node_controlled(node *n) {
  CHECK(pthread_create(&n->control, NULL, node_control, n) == 0);
  n->controlled = true;
}

static inline void node_free(node *n) {
  n->stop = true;
  if (n->controlled) pthread_join(n->control, NULL);
  pl_loop_stop(n->loop);
  pl_loop_stop(n->loop);
  uint64_t now;
  pl_engine *e = pl_loop_lock(n->loop, &now); /* late commands find a quiet engine */
  CHECK(pl_engine_send_raw(e, &n->addr, (const uint8_t *)"late", 4) == PL_OK);
  pl_loop_unlock(n->loop);
  CHECK(pl_loop_serve(n->loop, dup(1)) == PL_ESTATE && pl_loop_start(n->loop) == PL_ESTATE);
  pl_loop_free(n->loop);
  unlink(n->path);
}

typedef struct world {
  char dir[32];
  node a, b;
} world;

static inline void world_init(world *w, const pl_loop_cfg *cfg, bool controlled) {
  snprintf(w->dir, sizeof w->dir, "/tmp/pl-loop-XXXXXX");
  CHECK(mkdtemp(w->dir));
  node_init(&w->a, 1, w->dir, cfg);
  node_init(&w->b, 2, w->dir, cfg);
  uint8_t key[32];
  memset(key, 0x42, sizeof key);
  pl_caps caps = {.features = PL_CAP_NOCRC | PL_CAP_STREAM_OPTS, .max_segment = 8192, .reorder_segments = 65536};
  node *n[2] = {&w->a, &w->b};
  for (int i = 0; i < 2; i++) {
    uint64_t now;
    node *peer = n[1 - i];
    pl_engine *e = pl_loop_lock(n[i]->loop, &now);
    CHECK(pl_engine_set_trusted(e, peer->number, true) == PL_OK);
    CHECK(pl_engine_install_key(e, peer->number, key, 5, &caps, now) == PL_OK);
    CHECK(pl_engine_set_path(e, peer->number, &peer->addr, false, now) == PL_OK);
    pl_loop_unlock(n[i]->loop);
    if (controlled) node_controlled(n[i]);
  }
}

static inline void world_free(world *w) {
  node_free(&w->a);
  node_free(&w->b);
  rmdir(w->dir);
}

static inline pl_loop_cfg world_cfg(void) {
  pl_loop_cfg cfg;
  pl_loop_cfg_default(&cfg);
  cfg.socket_buffer = 4u << 20;
  return cfg;
}

#define WAIT(condition)                                             \
  do {                                                              \
    uint64_t end_ns = now_ns() + LIMIT_S * PL_NS_PER_S;             \
    while (!(condition)) {                                          \
      if (now_ns() > end_ns) fprintf(stderr, "never: %s\n", #condition); \
      CHECK(now_ns() <= end_ns);                                    \
      usleep(500);                                                  \
    }                                                               \
  } while (0)

/* ---- a client program: blocking ---- */

static inline int client_open(const node *n) {
  struct sockaddr_un sa = {.sun_family = AF_UNIX};
  snprintf(sa.sun_path, sizeof sa.sun_path, "%s", n->path);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  struct timeval limit = {LIMIT_S, 0};
  CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
  CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
  CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
  return fd;
}

static inline void put(int fd, const void *p, size_t n) {
  for (const uint8_t *b = p; n;) {
    ssize_t r = send(fd, b, n, MSG_NOSIGNAL);
    CHECK(r > 0);
    b += r;
    n -= (size_t)r;
  }
}

static inline bool get(int fd, void *p, size_t n) {
  for (uint8_t *b = p; n;) {
    ssize_t r = read(fd, b, n);
    if (r == 0) return false;
    CHECK(r > 0);
    b += r;
    n -= (size_t)r;
  }
  return true;
}

static inline void put_frame(int fd, uint8_t cmd, const void *p, uint32_t n) {
  uint8_t head[5];
  pl_put32(head, n + 1);
  head[4] = cmd;
  put(fd, head, 5);
  put(fd, p, n);
}

/* One frame into `buf`; its length without cmd. 0 and cmd 0 at the end of input. */
static inline uint32_t get_frame(int fd, uint8_t *cmd, uint8_t *buf, size_t cap) {
  uint8_t head[5];
  *cmd = 0;
  if (!get(fd, head, 5)) return 0;
  uint32_t n = pl_get32(head) - 1;
  CHECK(n <= cap);
  CHECK(get(fd, buf, n));
  *cmd = head[4];
  return n;
}

static inline void expect(int fd, uint8_t want, uint8_t *buf, size_t cap) {
  uint8_t cmd;
  get_frame(fd, &cmd, buf, cap);
  CHECK(cmd == want);
}

static inline void bind_port(int fd, uint16_t port) {
  uint8_t b[16];
  pl_put16(b, port);
  put_frame(fd, BIND, b, 2);
  expect(fd, BIND_OK, b, sizeof b);
}

static inline void ask_dial(int fd, uint32_t to, uint16_t port) {
  uint8_t b[8] = {0};
  pl_put32(b + 2, to);
  pl_put16(b + 6, port);
  put_frame(fd, DIAL, b, 8);
}

static inline uint32_t dial(int fd, uint32_t to, uint16_t port) {
  uint8_t b[16];
  ask_dial(fd, to, port);
  expect(fd, DIAL_OK, b, sizeof b);
  return pl_get32(b);
}

static inline uint32_t accept_conn(int fd) {
  uint8_t b[16];
  expect(fd, ACCEPT, b, sizeof b);
  return pl_get32(b + 2);
}

#endif
