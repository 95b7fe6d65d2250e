/* Local clients that are slow, many, strangers, or talk nonsense: what they can cost the daemon and the others. */
#include "local_world.h"

#include <sys/resource.h>
#include <sys/wait.h>

/* A reader that rests stops the sender; memory stays within the buffers, and in the end nothing is missing. */
static void test_slow_reader(void) {
  pl_engine_cfg cfg = world_cfg();
  cfg.stream.send_buffer = 256u << 10;
  cfg.stream.recv_buffer = 512u << 10;
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  size_t total = 12u << 20, sent = 0, frame = 9 + 65536;
  uint8_t *data = malloc(frame);
  CHECK(data);
  size_t at = frame; /* of the present frame */
  for (unsigned idle = 0; idle < 400;) { /* until nothing moves any more */
    if (at == frame) {
      pl_put32(data, 65536 + 5);
      data[4] = SEND;
      pl_put32(data + 5, ca);
      for (size_t i = 0; i < 65536; i++) data[9 + i] = pattern(sent + i);
      at = 0;
    }
    ssize_t r = write(a.fd, data + at, frame - at);
    if (r > 0) {
      at += (size_t)r;
      if (at == frame) sent += 65536;
      idle = 0;
    } else {
      idle++;
    }
    step(&w);
  }
  pl_conn_info info;
  CHECK(pl_engine_conn_info(w.n[0].e, ca, &info) == PL_OK);
  CHECK(sent < 5u << 20); /* send buffer, receive buffer, two socket buffers */
  CHECK(sent < total);
  uint64_t got = 0;
  while (got < total) {
    uint32_t len;
    const uint8_t *p = client_expect(&w, &b, RECV, &len);
    for (uint32_t i = 0; i < len - 4; i++) CHECK(p[4 + i] == pattern(got + i));
    got += len - 4;
    while (sent < total) {
      if (at == frame) {
        for (size_t i = 0; i < 65536; i++) data[9 + i] = pattern(sent + i);
        at = 0;
      }
      ssize_t r = write(a.fd, data + at, frame - at);
      if (r <= 0) break;
      at += (size_t)r;
      if (at == frame) sent += 65536;
    }
  }
  free(data);
  client_close(&a);
  client_close(&b);
  world_free(&w);
}

/* A program that does not read for ten seconds while something waits for it is disconnected; one that has nothing to read is not. */
static void test_deaf_client(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client idle = client_open(&w.n[0]);
  steps(&w, 2);
  client a = client_open(&w.n[0]);
  steps(&w, 2);
  uint8_t chunk[30000] = {0};
  for (unsigned n = 0; n < 100; n++) {
    CHECK(pl_local_send(w.n[0].l, w.n[0].last_client, INFO + 1, chunk, sizeof chunk) == PL_OK);
    pl_local_pump(w.n[0].l, w.now);
  }
  CHECK(pl_local_deadline(w.n[0].l) > w.now && pl_local_deadline(w.n[0].l) <= w.now + 11 * PL_NS_PER_S);
  w.now += 9 * PL_NS_PER_S;
  steps(&w, 3);
  CHECK(stats(&w.n[0]).clients == 2);
  w.now += 2 * PL_NS_PER_S;
  steps(&w, 3);
  CHECK(stats(&w.n[0]).clients == 1 && stats(&w.n[0]).slow == 1 && w.n[0].closes == 1);
  gone(&w, &a);
  client_send(&w, &idle, INFO, "", 0);
  steps(&w, 3);
  CHECK(w.n[0].infos == 1);
  client_close(&a);
  client_close(&idle);
  world_free(&w);
}

/* Clients know replies by their order alone: one whose replies find no room any more is disconnected, none is left out. */
static void test_too_many_replies(void) {
  pl_engine_cfg cfg = world_cfg();
  for (unsigned large = 0; large < 2; large++) {
    world w;
    world_init(&w, &cfg);
    client a = client_open(&w.n[0]);
    steps(&w, 2);
    uint8_t chunk[30000] = {0};
    uint32_t size = large ? sizeof chunk : 4;
    unsigned n = 0;
    while (n < 200000 && pl_local_send(w.n[0].l, w.n[0].last_client, INFO + 1, chunk, size) == PL_OK) {
      pl_put32(chunk, ++n);
      if (large) pl_local_pump(w.n[0].l, w.now);
    }
    CHECK(large ? n > 100 && n < 300 : n == 2048);
    CHECK(pl_local_send(w.n[0].l, w.n[0].last_client, INFO + 1, chunk, size) == PL_ELIMIT);
    steps(&w, 3);
    CHECK(stats(&w.n[0]).clients == 0 && stats(&w.n[0]).slow == 1 && w.n[0].closes == 1);
    uint8_t cmd;
    const uint8_t *p;
    uint32_t len, next = 0;
    while (client_next(&a, &cmd, &p, &len)) CHECK(cmd == INFO + 1 && len == size && pl_get32(p) == next++);
    CHECK(a.eof);
    client_close(&a);
    world_free(&w);
  }
}

/* Requests wait in bounded number: while the control plane is busy the client is not read, and nothing is lost. */
static void test_busy_control_plane(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]);
  steps(&w, 2);
  w.n[0].hold_events = true;
  unsigned sent = 0;
  uint8_t frame[5 + 1000] = {0, 0, 3, 0xe9, INFO};
  for (unsigned i = 0; i < 3000; i++) {
    if (write(a.fd, frame, sizeof frame) == (ssize_t)sizeof frame) sent++;
    if (i % 16 == 0) step(&w);
  }
  CHECK(sent > 64 && stats(&w.n[0]).frames == 64);
  w.n[0].hold_events = false;
  for (unsigned i = 0; i < 5000 && w.n[0].infos < sent; i++) step(&w);
  CHECK(w.n[0].infos == sent);
  client_close(&a);
  world_free(&w);
}

/* Datagrams go to every client; one whose queue is full misses some, the others none. */
static void test_datagrams(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]), sleeper = client_open(&w.n[1]);
  uint8_t msg[8 + 1000] = {0};
  pl_put32(msg + 2, 2);
  pl_put16(msg + 6, 5000);
  for (unsigned i = 0; i < 1500; i++) {
    pl_put32(msg + 8, i);
    client_send(&w, &a, SEND_TO, msg, sizeof msg);
    uint32_t len;
    const uint8_t *p = client_expect(&w, &b, RECV_FROM, &len);
    CHECK(len == 10 + 1000 && pl_get16(p) == 0 && pl_get32(p + 2) == 1 && pl_get16(p + 8) == 5000 && pl_get32(p + 10) == i);
    CHECK(pl_get16(p + 6) >= 49152);
  }
  CHECK(stats(&w.n[1]).datagram_drops > 0 && stats(&w.n[1]).datagram_drops < 1500);
  pl_put32(msg + 2, 0); /* nobody */
  client_send(&w, &a, SEND_TO, msg, sizeof msg);
  pl_put32(msg + 2, 0xffffffff); /* everybody: Python knows who that is */
  client_send(&w, &a, SEND_TO, msg, sizeof msg);
  steps(&w, 5);
  CHECK(stats(&w.n[0]).send_drops == 1 && w.n[0].infos == 1);
  uint32_t len, next = 0;
  const uint8_t *p = client_expect(&w, &sleeper, RECV_FROM, &len);
  CHECK(pl_get32(p + 10) == next);
  client_close(&a);
  client_close(&b);
  client_close(&sleeper);
  world_free(&w);
}

/* Only so many at once, and only of the same user or root. */
static void test_admission(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client c[MAX_CLIENTS + 1];
  for (unsigned i = 0; i <= MAX_CLIENTS; i++) c[i] = client_open(&w.n[0]);
  gone(&w, &c[MAX_CLIENTS]);
  CHECK(stats(&w.n[0]).clients == MAX_CLIENTS && stats(&w.n[0]).refused == 1);
  client_close(&c[MAX_CLIENTS]);
  client_close(&c[0]);
  steps(&w, 3);
  c[0] = client_open(&w.n[0]);
  steps(&w, 3);
  CHECK(stats(&w.n[0]).clients == MAX_CLIENTS && !c[0].eof);
  for (unsigned i = 0; i < MAX_CLIENTS; i++) client_close(&c[i]);
  steps(&w, 3);
  if (geteuid() == 0) {
    CHECK(chmod(w.dir, 0755) == 0 && chmod(w.n[0].path, 0777) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      if (setgid(65534) || setuid(65534)) _exit(2);
      client stranger = client_open(&w.n[0]);
      (void)fcntl(stranger.fd, F_SETFL, 0);
      uint8_t byte;
      _exit(read(stranger.fd, &byte, 1) == 0 ? 0 : 1);
    }
    int status = -1;
    for (unsigned i = 0; i < 20000; i++) {
      step(&w);
      if (waitpid(child, &status, WNOHANG) == child) break;
      status = -1;
      usleep(500);
    }
    CHECK(status == 0 && stats(&w.n[0]).refused == 2 && stats(&w.n[0]).clients == 0);
  } else {
    printf("not root: the other user's connection is left out\n");
  }
  world_free(&w);
}

/* Descriptors run out: the connection waits in the backlog, nothing spins, and it is served once there are some again. */
static void test_no_descriptors(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]);
  struct rlimit old, few;
  CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
  few = old;
  few.rlim_cur = (rlim_t)a.fd + 1;
  CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
  steps(&w, 3);
  CHECK(stats(&w.n[0]).clients == 0 && pl_local_deadline(w.n[0].l) > w.now);
  struct epoll_event ev;
  CHECK(epoll_wait(w.n[0].ep, &ev, 1, 0) == 0);
  CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
  w.now += 100 * PL_NS_PER_MS;
  steps(&w, 3);
  CHECK(stats(&w.n[0]).clients == 1);
  client_close(&a);
  world_free(&w);
}

/* Many connections of one client share its socket: a large one does not hold up the small ones. */
static void test_turns(void) {
  enum { N = 20 };
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca[N], cb[N], len;
  connect_clients(&w, &a, &b, 1000, &ca[0], &cb[0]);
  for (unsigned i = 1; i < N; i++) {
    ca[i] = client_dial(&w, &a, 2, 1000);
    cb[i] = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2);
  }
  uint8_t *data = make(1u << 20);
  for (unsigned i = 0; i < 8; i++) client_data(&w, &a, ca[0], data, 1u << 17);
  for (unsigned i = 1; i < N; i++) client_data(&w, &a, ca[i], data, i);
  steps(&w, 200);
  CHECK(pl_engine_abort(w.n[0].e, ca[7], w.now) == PL_OK); /* one in the middle of the line goes */
  settle(&w.n[0]);
  unsigned small = 0, ended = 0;
  size_t large = 0;
  while (small < N - 1 || !ended) {
    uint8_t cmd;
    const uint8_t *p;
    if (!client_next(&b, &cmd, &p, &len)) {
      step(&w);
      CHECK(w.now < 100 * PL_NS_PER_S);
      continue;
    }
    if (cmd == CLOSE_OK) {
      CHECK(pl_get32(p) == cb[7] && ++ended == 1);
    } else if (pl_get32(p) == cb[0]) {
      large += len - 4;
    } else {
      CHECK(cmd == RECV && ++small < N);
    }
  }
  while (large < 8u << 17) {
    (void)client_expect(&w, &b, RECV, &len);
    large += len - 4;
  }
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca[7]);
  free(data);
  client_close(&a);
  client_close(&b);
  world_free(&w);
}

/* Seeded noise on the socket: the daemon may hang up, and nothing else. */
static void test_noise(void) {
  uint64_t seed = check_seed("noise", 20260201);
  for (unsigned round = 0; round < 60; round++) {
    pl_engine_cfg cfg = world_cfg();
    world w;
    world_init(&w, &cfg);
    client a = client_open(&w.n[0]), b = client_open(&w.n[1]), noisy = client_open(&w.n[0]);
    uint32_t ca, cb;
    connect_clients(&w, &a, &b, 1000, &ca, &cb);
    for (unsigned i = 0; i < 200; i++) {
      uint8_t junk[300];
      size_t n = 1 + check_u64(&seed) % sizeof junk;
      check_fill(&seed, junk, n);
      if (check_u64(&seed) % 8) { /* plausible lengths, so that frames get through */
        pl_put32(junk, (uint32_t)(check_u64(&seed) % 60));
        junk[4] = (uint8_t)(SEND + check_u64(&seed) % 12);
        if (junk[4] == ACCEPT || n < 5) n = n < 5 ? n : 5;
      }
      if (write(noisy.fd, junk, n) < 0 && errno != EAGAIN) break;
      if (i % 8 == 0) {
        step(&w);
        client_read(&noisy);
        if (noisy.eof) break;
      }
    }
    client_close(&noisy);
    uint8_t data[1000];
    for (unsigned i = 0; i < sizeof data; i++) data[i] = pattern(i);
    client_data(&w, &a, ca, data, sizeof data);
    receive(&w, &b, cb, 0, sizeof data);
    client_close(&a);
    client_close(&b);
    world_free(&w);
  }
}

int main(void) {
  setvbuf(stdout, NULL, _IONBF, 0);
  static const struct {
    const char *name;
    void (*run)(void);
  } tests[] = {{"slow reader", test_slow_reader},
               {"deaf client", test_deaf_client},
               {"too many replies", test_too_many_replies},
               {"busy control plane", test_busy_control_plane},
               {"datagrams", test_datagrams},
               {"admission", test_admission},
               {"no descriptors", test_no_descriptors},
               {"turns", test_turns},
               {"noise", test_noise}};
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    printf("%s\n", tests[i].name);
    tests[i].run();
  }
  return 0;
}
