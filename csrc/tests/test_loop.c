/* The data thread on real sockets: two loops on loopback, a control thread beside each, client programs in threads of their own. */
#include "check.h"
#include "local.h"
#include "loop_internal.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BIND = 1, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK };
#define LIMIT_S 60

static uint64_t now_ns(void) {
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

static void node_reply(node *n, uint32_t client, uint8_t cmd, const uint8_t *p, uint32_t len, uint32_t attach) {
  uint64_t now;
  pl_loop_lock(n->loop, &now);
  pl_loop_client_send(n->loop, client, cmd, p, len);
  if (attach) pl_loop_attach(n->loop, attach, client);
  pl_loop_unlock(n->loop);
}

static void node_event(node *n, const pl_event *ev) {
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

static void *node_control(void *arg) {
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

static void node_init(node *n, uint32_t number, const char *dir, const pl_loop_cfg *with) {
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

static void node_controlled(node *n) {
  CHECK(pthread_create(&n->control, NULL, node_control, n) == 0);
  n->controlled = true;
}

static void node_free(node *n) {
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

static void world_init(world *w, const pl_loop_cfg *cfg, bool controlled) {
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

static void world_free(world *w) {
  node_free(&w->a);
  node_free(&w->b);
  rmdir(w->dir);
}

static pl_loop_cfg world_cfg(void) {
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

static int client_open(const node *n) {
  struct sockaddr_un sa = {.sun_family = AF_UNIX};
  snprintf(sa.sun_path, sizeof sa.sun_path, "%s", n->path);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  struct timeval limit = {LIMIT_S, 0};
  CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof sa) == 0);
  CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
  CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
  return fd;
}

static void put(int fd, const void *p, size_t n) {
  for (const uint8_t *b = p; n;) {
    ssize_t r = send(fd, b, n, MSG_NOSIGNAL);
    CHECK(r > 0);
    b += r;
    n -= (size_t)r;
  }
}

static bool get(int fd, void *p, size_t n) {
  for (uint8_t *b = p; n;) {
    ssize_t r = read(fd, b, n);
    if (r == 0) return false;
    CHECK(r > 0);
    b += r;
    n -= (size_t)r;
  }
  return true;
}

static void put_frame(int fd, uint8_t cmd, const void *p, uint32_t n) {
  uint8_t head[5];
  pl_put32(head, n + 1);
  head[4] = cmd;
  put(fd, head, 5);
  put(fd, p, n);
}

/* One frame into `buf`; its length without cmd. 0 and cmd 0 at the end of input. */
static uint32_t get_frame(int fd, uint8_t *cmd, uint8_t *buf, size_t cap) {
  uint8_t head[5];
  *cmd = 0;
  if (!get(fd, head, 5)) return 0;
  uint32_t n = pl_get32(head) - 1;
  CHECK(n <= cap);
  CHECK(get(fd, buf, n));
  *cmd = head[4];
  return n;
}

static void expect(int fd, uint8_t want, uint8_t *buf, size_t cap) {
  uint8_t cmd;
  get_frame(fd, &cmd, buf, cap);
  CHECK(cmd == want);
}

static void bind_port(int fd, uint16_t port) {
  uint8_t b[16];
  pl_put16(b, port);
  put_frame(fd, BIND, b, 2);
  expect(fd, BIND_OK, b, sizeof b);
}

static void ask_dial(int fd, uint32_t to, uint16_t port) {
  uint8_t b[8] = {0};
  pl_put32(b + 2, to);
  pl_put16(b + 6, port);
  put_frame(fd, DIAL, b, 8);
}

static uint32_t dial(int fd, uint32_t to, uint16_t port) {
  uint8_t b[16];
  ask_dial(fd, to, port);
  expect(fd, DIAL_OK, b, sizeof b);
  return pl_get32(b);
}

static uint32_t accept_conn(int fd) {
  uint8_t b[16];
  expect(fd, ACCEPT, b, sizeof b);
  return pl_get32(b + 2);
}

static uint64_t mix(uint64_t sum, const uint8_t *p, size_t n) { /* order matters */
  for (size_t i = 0; i < n; i++) sum = (sum ^ p[i]) * 0x100000001b3ull;
  return sum;
}

/* ---- bulk, both ways at once ---- */

typedef struct flow {
  int fd;
  uint32_t conn;
  uint64_t seed, bytes, sum;
} flow;

static void *write_flow(void *arg) {
  flow *f = arg;
  static const uint32_t sizes[] = {1000, 65536, 262144, 100, 16384, 1048000};
  uint8_t *buf = malloc(9 + 1048576);
  CHECK(buf);
  uint64_t left = f->bytes, state = f->seed;
  for (unsigned i = 0; left; i++) {
    uint32_t n = sizes[i % 6] < left ? sizes[i % 6] : (uint32_t)left;
    pl_put32(buf, n + 5);
    buf[4] = SEND;
    pl_put32(buf + 5, f->conn);
    for (uint32_t k = 0; k < n; k += 8) {
      uint64_t r = check_u64(&state);
      memcpy(buf + 9 + k, &r, 8);
    }
    f->sum = mix(f->sum, buf + 9, n);
    put(f->fd, buf, 9 + n);
    left -= n;
  }
  free(buf);
  return NULL;
}

static void *read_flow(void *arg) {
  flow *f = arg;
  uint8_t *buf = malloc(PL_IPC_MAX), cmd;
  CHECK(buf);
  for (uint64_t left = f->bytes; left;) {
    uint32_t n = get_frame(f->fd, &cmd, buf, PL_IPC_MAX);
    CHECK(cmd == RECV && n > 4 && n - 4 <= left && pl_get32(buf) == f->conn);
    f->sum = mix(f->sum, buf + 4, n - 4);
    left -= n - 4;
  }
  free(buf);
  return NULL;
}

static void bulk(bool gso, bool gro, const char *congestion) {
  pl_loop_cfg cfg = world_cfg();
  cfg.use_gso = gso;
  cfg.use_gro = gro;
  cfg.engine.stream.congestion = congestion;
  world w;
  world_init(&w, &cfg, true);
  int a = client_open(&w.a), b = client_open(&w.b);
  bind_port(b, 1000);
  uint32_t ca = dial(a, 2, 1000), cb = accept_conn(b);
  uint64_t n = gso ? 64u << 20 : 16u << 20;
  flow f[4] = {{a, ca, 1, n, 1, }, {b, cb, 0, n, 1}, {b, cb, 2, n, 1}, {a, ca, 0, n, 1}};
  pthread_t t[4];
  for (int i = 0; i < 4; i++) CHECK(pthread_create(&t[i], NULL, i % 2 ? read_flow : write_flow, &f[i]) == 0);
  /* Commands are served meanwhile: the data thread does not keep the lock to itself. */
  uint64_t worst = 0;
  for (int i = 0; i < 200; i++) {
    uint64_t start = now_ns(), now;
    pl_conn_info info;
    CHECK(pl_engine_conn_info(pl_loop_lock(w.a.loop, &now), ca, &info) == PL_OK);
    pl_loop_unlock(w.a.loop);
    worst = pl_max64(worst, now_ns() - start);
    usleep(200);
  }
  CHECK(worst < 5 * PL_NS_PER_S);
  for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
  CHECK(f[0].sum == f[1].sum && f[2].sum == f[3].sum);
  uint8_t buf[16];
  pl_put32(buf, ca);
  put_frame(a, CLOSE, buf, 4);
  expect(a, CLOSE_OK, buf, sizeof buf);
  expect(b, CLOSE_OK, buf, sizeof buf);
  CHECK(pl_get32(buf) == cb);
  pl_loop_stats st;
  pl_loop_get_stats(w.a.loop, &st);
  CHECK(st.clients == 1 && st.send_datagrams > 1000 && st.recv_datagrams > 1000 && st.gso == gso);
  close(a);
  close(b);
  WAIT(w.a.closes == 1 && w.b.closes == 1);
  world_free(&w);
}

static void test_bulk(void) { bulk(true, true, "bbr"); }
static void test_bulk_without_offload(void) { bulk(false, false, "cubic"); }

/* ---- many connections ---- */

static void test_thousand_connections(void) {
  enum { N = 1000 };
  pl_loop_cfg cfg = world_cfg();
  cfg.engine.syn_rate = 100000;
  cfg.engine.accept_queue = N;
  world w;
  world_init(&w, &cfg, true);
  int a = client_open(&w.a), b = client_open(&w.b);
  bind_port(b, 1000);
  static uint32_t at_a[N], at_b[N];
  static uint8_t buf[PL_IPC_MAX];
  for (unsigned i = 0; i < N; i++) {
    at_a[i] = dial(a, 2, 1000);
    at_b[i] = accept_conn(b);
  }
  for (unsigned i = 0; i < N; i++) { /* each says which one it is */
    pl_put32(buf, at_a[i]);
    pl_put32(buf + 4, i);
    put_frame(a, SEND, buf, 8);
  }
  for (unsigned i = 0; i < N; i++) {
    uint8_t cmd;
    uint32_t n = get_frame(b, &cmd, buf, sizeof buf);
    CHECK(cmd == RECV && n == 8 && pl_get32(buf + 4) < N && at_b[pl_get32(buf + 4)] == pl_get32(buf));
    at_b[pl_get32(buf + 4)] = 0; /* once each */
  }
  close(a); /* all of them end, and b hears of every one */
  for (unsigned i = 0; i < N; i++) expect(b, CLOSE_OK, buf, sizeof buf);
  close(b);
  WAIT(w.a.closes == 1 && w.b.closes == 1);
  world_free(&w);
}

/* ---- a program that is killed ---- */

static void test_killed_program(void) {
  pl_loop_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg, true);
  int b = client_open(&w.b), other = client_open(&w.a);
  bind_port(b, 1000);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) { /* sends for ever */
    int fd = client_open(&w.a);
    uint8_t frame[9 + 60000] = {0};
    pl_put32(frame, 60005);
    frame[4] = SEND;
    pl_put32(frame + 5, dial(fd, 2, 1000));
    for (;;) put(fd, frame, sizeof frame);
  }
  static uint8_t buf[PL_IPC_MAX];
  uint32_t conn = accept_conn(b);
  uint64_t got = 0;
  uint8_t cmd;
  while (got < 5u << 20) {
    uint32_t n = get_frame(b, &cmd, buf, sizeof buf);
    CHECK(cmd == RECV && n > 4);
    got += n - 4;
  }
  CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
  do get_frame(b, &cmd, buf, sizeof buf);
  while (cmd == RECV);
  CHECK(cmd == CLOSE_OK && pl_get32(buf) == conn);
  WAIT(w.a.closes == 1);
  CHECK(dial(other, 2, 1000) && accept_conn(b));
  close(b);
  close(other);
  world_free(&w);
}

/* ---- wake-ups and the end ---- */

/* A sleeping data thread is woken by a command whose deadline is earlier than its own, and keeps that deadline. */
static void test_deadlines(void) {
  pl_loop_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg, true);
  usleep(50000);
  uint64_t now, start = now_ns();
  pl_engine *e = pl_loop_lock(w.a.loop, &now);
  CHECK(pl_engine_dial(e, 0, 0, 77, 1, 0, 30 * PL_NS_PER_MS, now) > 0); /* nobody has a key for 77 */
  pl_loop_unlock(w.a.loop);
  WAIT(w.a.failed == 1);
  CHECK(now_ns() - start >= 30 * PL_NS_PER_MS);
  pl_loop_stats before, after; /* and an idle thread sleeps */
  usleep(100000);
  pl_loop_get_stats(w.a.loop, &before);
  usleep(300000);
  pl_loop_get_stats(w.a.loop, &after);
  CHECK(after.wakeups - before.wakeups < 100);
  world_free(&w);
}

/* Stopping tells the peers: an end where everything had arrived, a reset where not. */
static void test_stop(void) {
  pl_loop_cfg cfg = world_cfg();
  cfg.engine.stream.recv_buffer = 256u << 10;
  world w;
  world_init(&w, &cfg, true);
  uint64_t now;
  pl_engine *e = pl_loop_lock(w.b.loop, &now);
  CHECK(pl_engine_listen(e, 80, PL_OWNER_APP, 0, false) == PL_OK);
  pl_loop_unlock(w.b.loop);
  uint32_t conn[2];
  for (int i = 0; i < 2; i++) {
    e = pl_loop_lock(w.a.loop, &now);
    conn[i] = (uint32_t)pl_engine_dial(e, 0, 0, 2, 80, 0, PL_NS_PER_S, now);
    pl_loop_unlock(w.a.loop);
  }
  pl_conn_info info[2];
  for (int i = 0; i < 2; i++) {
    do {
      e = pl_loop_lock(w.a.loop, &now);
      CHECK(pl_engine_conn_info(e, conn[i], &info[i]) == PL_OK);
      pl_loop_unlock(w.a.loop);
    } while (info[i].s.state != PL_ST_ESTABLISHED);
  }
  static uint8_t big[1u << 20];
  e = pl_loop_lock(w.a.loop, &now);
  CHECK(pl_engine_own(e, conn[0], PL_OWNER_APP, 0, now) == PL_OK && pl_engine_own(e, conn[1], PL_OWNER_APP, 0, now) == PL_OK);
  CHECK(pl_engine_write(e, conn[0], big, 5, now) == 5);
  CHECK(pl_engine_write(e, conn[1], big, sizeof big, now) > 0); /* more than the reader's buffer */
  pl_loop_unlock(w.a.loop);
  int64_t unacked;
  do {
    e = pl_loop_lock(w.a.loop, &now);
    unacked = pl_engine_unacked(e, conn[0]);
    pl_loop_unlock(w.a.loop);
  } while (unacked);
  pl_loop_stop(w.a.loop);
  WAIT(w.b.resets == 1);
  size_t it = 0;
  pl_conn_info end;
  int64_t n;
  uint8_t byte[16];
  e = pl_loop_lock(w.b.loop, &now);
  CHECK(pl_engine_next_conn(e, &it, &end)); /* the other one is still readable, up to its end */
  CHECK(pl_engine_own(e, end.id, PL_OWNER_APP, 0, now) == PL_OK);
  CHECK(pl_engine_read(e, end.id, byte, sizeof byte, now) == 5);
  pl_loop_unlock(w.b.loop);
  do {
    e = pl_loop_lock(w.b.loop, &now);
    n = pl_engine_read(e, end.id, byte, sizeof byte, now);
    pl_loop_unlock(w.b.loop);
  } while (n == PL_EAGAIN);
  CHECK(n == 0);
  world_free(&w);
}

/* A loop that is never started, and one whose address is taken. */
static void test_life(void) {
  pl_loop_cfg cfg = world_cfg();
  cfg.bind = (pl_addr){.family = 4, .ip = {127, 0, 0, 1}};
  pl_loop *l, *second;
  CHECK(pl_loop_new(&cfg, &l) == PL_OK);
  pl_loop_local_addr(l, &cfg.bind);
  CHECK(pl_loop_new(&cfg, &second) == PL_EIO && errno == EADDRINUSE);
  CHECK(pl_loop_serve(l, -1) == PL_EIO);
  uint64_t now;
  pl_loop_lock(l, &now);
  pl_loop_unlock(l);
  pl_loop_free(l);
  CHECK(pl_loop_new(&cfg, &l) == PL_OK);
  pl_loop_stop(l);
  pl_loop_free(l);
}

/* Two that wait awake on one processor: neither does so to the end, for each would keep the other from it. */
static void *spin_in_vain(void *arg) {
  int *fds = arg;
  pl_spin_on(fds[0], now_ns() + LIMIT_S * PL_NS_PER_S);
  return NULL;
}

static void test_crowded(void) {
  cpu_set_t old, one;
  CHECK(sched_getaffinity(0, sizeof old, &old) == 0);
  CPU_ZERO(&one);
  for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
    if (CPU_ISSET(i, &old)) CPU_SET(i, &one);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  int fds[2];
  CHECK(pipe(fds) == 0);
  uint64_t start = now_ns();
  pthread_t other;
  CHECK(pthread_create(&other, NULL, spin_in_vain, fds) == 0);
  spin_in_vain(fds);
  CHECK(now_ns() - start < LIMIT_S * PL_NS_PER_S);
  CHECK(write(fds[1], "x", 1) == 1); /* the other is alone now */
  CHECK(pthread_join(other, NULL) == 0 && sched_setaffinity(0, sizeof old, &old) == 0);
  close(fds[0]);
  close(fds[1]);
}

/* What makes a conversation, and what ends it. */
static void test_spin(void) {
  pl_loop *l = calloc(1, sizeof *l);
  CHECK(l);
  const uint64_t limit = 200 * PL_NS_PER_US, short_wait = limit / 10;
  pl_spin s = {0};
  l->spin_ns = limit;
  for (int i = 0; i < 3; i++) {
    CHECK(pl_spin_limit(l, &s) == 0);
    l->moved += 200;
    pl_spin_note(l, &s, short_wait, true);
  }
  CHECK(pl_spin_limit(l, &s) == limit);
  pl_spin_note(l, &s, short_wait, false); /* a deadline */
  CHECK(pl_spin_limit(l, &s) == limit);
  pl_spin_note(l, &s, limit, false); /* in vain */
  CHECK(pl_spin_limit(l, &s) == 0);
  for (int i = 0; i < 9; i++) { /* a paced stream */
    l->moved += 1400;
    pl_spin_note(l, &s, short_wait, true);
    CHECK(pl_spin_limit(l, &s) == 0);
  }
  for (int i = 0; i < 9; i++) { /* a stranger's datagrams */
    l->moved += 60;
    l->junk++;
    pl_spin_note(l, &s, short_wait, true);
    CHECK(pl_spin_limit(l, &s) == 0);
  }
  for (int i = 0; i < 9; i++) pl_spin_note(l, &s, limit, true); /* answers that come late */
  CHECK(pl_spin_limit(l, &s) == 0);
  l->spin_ns = 0;
  for (int i = 0; i < 9; i++) pl_spin_note(l, &s, 0, true);
  CHECK(pl_spin_limit(l, &s) == 0);
  free(l);

  int fds[2];
  CHECK(pipe(fds) == 0);
  uint64_t start = now_ns();
  pl_spin_on(fds[0], start + PL_NS_PER_MS);
  CHECK(now_ns() - start >= PL_NS_PER_MS);
  CHECK(write(fds[1], "x", 1) == 1);
  pl_spin_on(fds[0], PL_NEVER);
  close(fds[0]);
  close(fds[1]);
}

int main(void) {
  setvbuf(stdout, NULL, _IONBF, 0);
  static const struct {
    const char *name;
    void (*run)(void);
  } tests[] = {{"life", test_life},
               {"spin", test_spin},
               {"crowded", test_crowded},
               {"deadlines", test_deadlines},
               {"stop", test_stop},
               {"thousand connections", test_thousand_connections},
               {"killed program", test_killed_program},
               {"bulk", test_bulk},
               {"bulk without offload", test_bulk_without_offload}};
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    uint64_t start = now_ns();
    tests[i].run();
    printf("%-24s %5.2f s\n", tests[i].name, (double)(now_ns() - start) / 1e9);
  }
  return 0;
}
