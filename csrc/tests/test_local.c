/* Local clients: what a program on the Unix socket sees, rule by rule (ipc.md 1 and 2). */
#include "local_world.h"

#include <sys/wait.h>

static uint8_t pattern(uint64_t i) { return (uint8_t)(i * 131 + (i >> 8) * 7 + (i >> 16)); }

static uint8_t *make(size_t n) {
  uint8_t *p = malloc(n);
  CHECK(p);
  for (size_t i = 0; i < n; i++) p[i] = pattern(i);
  return p;
}

/* Takes Recv frames of a connection until `n` bytes have come, comparing each; `from` is the stream offset. */
static void receive(world *w, client *c, uint32_t conn, uint64_t from, size_t n) {
  uint32_t len;
  while (n) {
    const uint8_t *p = client_expect(w, c, RECV, &len);
    CHECK(pl_get32(p) == conn && len > 4 && len - 4 <= n);
    for (uint32_t i = 0; i < len - 4; i++) CHECK(p[4 + i] == pattern(from + i));
    from += len - 4;
    n -= len - 4;
  }
}

static void gone(world *w, client *c) {
  for (unsigned i = 0; i < 2000 && !c->eof; i++) {
    step(w);
    client_read(c);
  }
  CHECK(c->eof);
}

static pl_local_stats stats(const node *n) {
  pl_local_stats s;
  pl_local_get_stats(n->l, &s);
  return s;
}

/* Bytes of any frame size arrive whole and in order; Close lets the last of them through, then says CloseOK. */
static void test_bytes(void) {
  static const size_t sizes[] = {1, 9, 4096, 16383, 16384, 70000, 300000, PL_IPC_MAX - 5};
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  uint8_t *data = make(4u << 20);
  uint64_t at = 0, got = 0;
  for (unsigned round = 0; round < 3; round++) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      for (size_t k = 0; k < sizes[i]; k++) data[k] = pattern(at + k);
      client_data(&w, &a, ca, data, sizes[i]);
      at += sizes[i];
      if (i % 2) {
        receive(&w, &b, cb, got, (size_t)(at - got));
        got = at;
      }
    }
  }
  client_data(&w, &b, cb, "", 0); /* a Send of nothing is nothing */
  for (size_t k = 0; k < 100000; k++) data[k] = pattern(at + k);
  client_data(&w, &a, ca, data, 100000);
  client_conn(&w, &a, CLOSE, ca);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca);
  receive(&w, &b, cb, got, (size_t)(at - got) + 100000);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  free(data);
  client_close(&a);
  client_close(&b);
  steps(&w, 20);
  CHECK(w.n[0].closes == 1 && w.n[1].closes == 1 && stats(&w.n[0]).clients == 0);
  world_free(&w);
}

/* Frames that arrive byte by byte mean the same. */
static void test_dribble(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  uint8_t frame[64] = {0, 0, 0, 0, 0, 0, 0, 25, SEND};
  pl_put32(frame + 9, ca);
  for (unsigned i = 0; i < 20; i++) frame[13 + i] = pattern(i);
  for (unsigned i = 0; i < 33; i++) {
    client_raw(&w, &a, frame + i, 1);
    step(&w);
  }
  receive(&w, &b, cb, 0, 20);
  client_close(&a);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb); /* the program is gone, so is its connection */
  client_close(&b);
  world_free(&w);
}

/* Length 0 is ignored, 1 MiB passes, more is fatal without a word; what is malformed never reaches a stream. */
static void test_frames(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), other = client_open(&w.n[0]);
  uint8_t zero[12] = {0}, *big = make(PL_IPC_MAX);
  client_raw(&w, &a, zero, sizeof zero);
  client_send(&w, &a, INFO, big, PL_IPC_MAX - 1);
  for (unsigned i = 0; i < 2000 && !w.n[0].infos; i++) step(&w);
  CHECK(w.n[0].infos == 1 && w.n[0].last_frame_len == PL_IPC_MAX - 1);
  client_raw(&w, &a, zero, 4);

  client_conn(&w, &a, CLOSE, 12345); /* unknown: answered all the same */
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == 12345);
  client_send(&w, &a, CLOSE, "\0\0", 2);
  uint32_t len;
  const uint8_t *p = client_expect(&w, &a, ERROR, &len);
  CHECK(len == 2 + 22 && pl_get16(p) == 1 && memcmp(p + 2, "close: missing conn_id", 22) == 0);

  client_data(&w, &a, 999, big, 200000); /* unknown connection: silence */
  client_data(&w, &a, 0, big, 10);
  client_send(&w, &a, SEND, "\0\0\1", 3);
  client_send(&w, &a, SEND, "", 0);
  client_send(&w, &a, SEND_TO, "\0\0\0\0", 4);
  client_conn(&w, &a, CLOSE, 777);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == 777);
  CHECK(stats(&w.n[0]).send_drops >= 2 && stats(&w.n[0]).bad_frames == 4);

  uint8_t head[5];
  pl_put32(head, PL_IPC_MAX + 1);
  head[4] = SEND;
  client_raw(&w, &a, head, 4);
  gone(&w, &a);
  CHECK(a.at == a.len); /* no error frame */
  client_send(&w, &other, INFO, "", 0);
  steps(&w, 5);
  CHECK(w.n[0].infos == 2 && !other.eof); /* nobody else suffers */
  free(big);
  client_close(&a);
  client_close(&other);
  world_free(&w);
}

/* Bytes for somebody else's connection are dropped; Close of it works, as `disconnect` needs. */
static void test_foreign(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]), thief = client_open(&w.n[0]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  client_data(&w, &thief, ca, "stolen", 6);
  steps(&w, 20);
  uint8_t byte = pattern(0);
  client_data(&w, &a, ca, &byte, 1);
  receive(&w, &b, cb, 0, 1);
  client_conn(&w, &thief, CLOSE, ca);
  CHECK(pl_get32(client_expect(&w, &thief, CLOSE_OK, NULL)) == ca);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  client_close(&a);
  client_close(&b);
  client_close(&thief);
  world_free(&w);
}

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
  int r = PL_OK;
  unsigned n = 0;
  while (n < 2000 && (r = pl_local_send(w.n[0].l, w.n[0].last_client, INFO + 1, chunk, sizeof chunk)) == PL_OK) {
    n++;
    pl_local_pump(w.n[0].l, w.now);
  }
  CHECK(r == PL_ELIMIT && n < 300);
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

/* A blocked Send waits for its own stream only until that stream dies; then the client goes on. */
static void test_blocked_by_dead_stream(void) {
  pl_engine_cfg cfg = world_cfg();
  cfg.stream.send_buffer = 64u << 10;
  cfg.stream.recv_buffer = 128u << 10;
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb, ca2, cb2;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  ca2 = client_dial(&w, &a, 2, 1000);
  cb2 = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2);
  w.lossy = true; /* so that nothing is acknowledged and the stream fills up */
  uint8_t *data = make(200000), head[9];
  pl_put32(head, 200005);
  head[4] = SEND;
  pl_put32(head + 5, ca);
  client_raw(&w, &a, head, 9);
  size_t at = 0;
  for (unsigned i = 0; i < 200; i++) {
    ssize_t r = write(a.fd, data + at, 200000 - at);
    if (r > 0) at += (size_t)r;
    step(&w);
  }
  pl_conn_info info;
  CHECK(pl_engine_conn_info(w.n[0].e, ca, &info) == PL_OK && info.s.state == PL_ST_ESTABLISHED);
  w.lossy = false;
  CHECK(pl_engine_abort(w.n[1].e, cb, w.now) == PL_OK);
  settle(&w.n[1]);
  client_raw(&w, &a, data + at, 200000 - at);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca);
  client_data(&w, &a, ca2, data, 5000);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  receive(&w, &b, cb2, 0, 5000);
  free(data);
  client_close(&a);
  client_close(&b);
  world_free(&w);
}

/* The peer is forgotten while half a Recv frame is on the socket: the frame is finished, CloseOK follows. */
static void test_stream_vanishes_in_mid_frame(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  size_t total = 6u << 20;
  uint8_t *data = make(total);
  for (size_t at = 0; at < total; at += 1u << 19) client_data(&w, &a, ca, data + at, 1u << 19);
  steps(&w, 2000); /* b's socket is full by now */
  CHECK(pl_engine_forget_peer(w.n[1].e, 1, w.now) == PL_OK);
  uint64_t got = 0;
  for (;;) {
    uint8_t cmd;
    const uint8_t *p;
    uint32_t len;
    if (!client_next(&b, &cmd, &p, &len)) {
      step(&w);
      CHECK(w.now < 100 * PL_NS_PER_S && !b.eof);
      continue;
    }
    if (cmd == CLOSE_OK) {
      CHECK(pl_get32(p) == cb);
      break;
    }
    CHECK(cmd == RECV && pl_get32(p) == cb);
    for (uint32_t i = 0; i < len - 4; i++) CHECK(p[4 + i] == pattern(got + i));
    got += len - 4;
  }
  CHECK(got > 0 && got < total);
  client_bind(&w, &b, 1001); /* the socket is still in step */
  free(data);
  client_close(&a);
  client_close(&b);
  world_free(&w);
}

/* A program that is killed with unsent bytes in its socket: they still arrive, then the end. */
static void test_killed_client(void) {
  pl_engine_cfg cfg = world_cfg();
  cfg.stream.send_buffer = 64u << 10;
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]), other = client_open(&w.n[0]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  uint8_t *data = make(100000);
  client_data(&w, &a, ca, data, 100000);
  client_data(&w, &b, cb, data, 5000); /* what it never reads makes its socket end with an error */
  steps(&w, 1);
  client_close(&a);
  receive(&w, &b, cb, 0, 100000);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  steps(&w, 20);
  CHECK(stats(&w.n[0]).clients == 1);
  uint32_t again = client_dial(&w, &other, 2, 1000);
  CHECK(again && pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2));
  free(data);
  client_close(&b);
  client_close(&other);
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

/* A stream that a service holds can be disconnected by a client; a dial in progress cannot be disturbed. */
static void test_close_of_a_service(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  CHECK(pl_engine_listen(w.n[1].e, 7, PL_OWNER_ECHO, 0, false) == PL_OK);
  client a = client_open(&w.n[0]), admin = client_open(&w.n[1]);
  uint32_t ca = client_dial(&w, &a, 2, 7), len;
  client_data(&w, &a, ca, "echo", 4);
  const uint8_t *p = client_expect(&w, &a, RECV, &len);
  CHECK(len == 8 && memcmp(p + 4, "echo", 4) == 0);
  size_t it = 0;
  pl_conn_info info;
  CHECK(pl_engine_next_conn(w.n[1].e, &it, &info) && info.owner == PL_OWNER_ECHO);
  client_conn(&w, &admin, CLOSE, info.id);
  CHECK(pl_get32(client_expect(&w, &admin, CLOSE_OK, NULL)) == info.id);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca);
  client_close(&a);
  client_close(&admin);
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
  } tests[] = {{"bytes", test_bytes},
               {"dribble", test_dribble},
               {"frames", test_frames},
               {"foreign", test_foreign},
               {"slow reader", test_slow_reader},
               {"deaf client", test_deaf_client},
               {"busy control plane", test_busy_control_plane},
               {"blocked by a dead stream", test_blocked_by_dead_stream},
               {"stream vanishes in mid frame", test_stream_vanishes_in_mid_frame},
               {"killed client", test_killed_client},
               {"datagrams", test_datagrams},
               {"admission", test_admission},
               {"close of a service", test_close_of_a_service},
               {"noise", test_noise}};
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    printf("%s\n", tests[i].name);
    tests[i].run();
  }
  return 0;
}
