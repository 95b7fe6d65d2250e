/* The data thread on real sockets: two loops on loopback, a control thread beside each, client programs in threads of their own. */
#include "loop_world.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

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

int main(void) {
  setvbuf(stdout, NULL, _IONBF, 0);
  static const struct {
    const char *name;
    void (*run)(void);
  } tests[] = {{"life", test_life},
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
