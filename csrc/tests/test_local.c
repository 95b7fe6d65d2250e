/* Local clients: what a program on the Unix socket sees, rule by rule (ipc.md 1 and 2). */
#include "local_world.h"

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
  size_t total = 2u << 20;
  uint8_t *data = make(total);
  for (size_t at = 0; at < total; at += 1u << 17) client_data(&w, &a, ca, data + at, 1u << 17);
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
  uint8_t *data = make(200000);
  client_data(&w, &a, ca, data, 100000);
  client_data(&w, &b, cb, data, 5000); /* what it never reads makes its socket end with an error */
  steps(&w, 1);
  w.lossy = true; /* its stream is full and stays so for a while */
  client_data(&w, &a, ca, data + 100000, 100000);
  client_close(&a);
  steps(&w, 20);
  struct epoll_event ev;
  CHECK(stats(&w.n[0]).clients == 2 && epoll_wait(w.n[0].ep, &ev, 1, 0) == 0); /* nothing spins meanwhile */
  w.lossy = false;
  receive(&w, &b, cb, 0, 200000);
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

/* A program that takes nothing any more, but goes on sending: what it sends arrives, and its dead streams are let go. */
static void test_shut_for_reading(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb, ca2, cb2;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  ca2 = client_dial(&w, &a, 2, 1000);
  cb2 = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2);
  CHECK(shutdown(a.fd, SHUT_RD) == 0);
  uint8_t *data = make(50000);
  client_data(&w, &b, cb, data, 50000);
  client_conn(&w, &b, CLOSE, cb2);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb2);
  steps(&w, 20);
  pl_conn_info info;
  CHECK(pl_engine_conn_info(w.n[0].e, ca2, &info) == PL_ENOENT || info.owner == PL_OWNER_NONE);
  client_data(&w, &a, ca, data, 50000);
  receive(&w, &b, cb, 0, 50000);
  struct epoll_event ev;
  CHECK(epoll_wait(w.n[0].ep, &ev, 1, 0) == 0); /* nothing spins */
  free(data);
  client_close(&a);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  client_close(&b);
  world_free(&w);
}

/* The daemon hangs up: what it said before still arrives. */
static void test_hang_up(void) {
  pl_engine_cfg cfg = world_cfg();
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb, len;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  CHECK(pl_local_send(w.n[0].l, w.n[0].last_client, INFO + 1, (const uint8_t *)"last", 4) == PL_OK);
  CHECK(pl_local_send(w.n[0].l, w.n[0].last_client, INFO, NULL, PL_IPC_MAX) == PL_EFORMAT);
  CHECK(pl_local_close(w.n[0].l, w.n[0].last_client, w.now) == PL_OK);
  CHECK(pl_local_close(w.n[0].l, w.n[0].last_client, w.now) == PL_ENOENT);
  CHECK(pl_local_attach(w.n[0].l, ca, w.n[0].last_client, w.now) == PL_ENOENT);
  const uint8_t *p = client_expect(&w, &a, INFO + 1, &len);
  CHECK(len == 4 && memcmp(p, "last", 4) == 0);
  gone(&w, &a);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb && w.n[0].closes == 1);
  client_close(&a);
  client_close(&b);
  world_free(&w);
}

/* A stream that ends by time alone is reported without anything else happening. */
static void test_ends_by_timer(void) {
  pl_engine_cfg cfg = world_cfg();
  cfg.stream.idle_timeout_ns = 2 * PL_NS_PER_S;
  world w;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  w.lossy = true;
  for (unsigned i = 0; i < 100 && pl_local_deadline(w.n[0].l) > 0; i++) { /* as the loop does it: pump, flush, sleep till the deadline */
    w.now = pl_engine_deadline(w.n[0].e);
    CHECK(w.now < 100 * PL_NS_PER_S);
    settle(&w.n[0]);
  }
  CHECK(pl_local_deadline(w.n[0].l) == 0);
  settle(&w.n[0]);
  uint8_t cmd;
  const uint8_t *p;
  uint32_t len;
  CHECK(client_next(&a, &cmd, &p, &len) && cmd == CLOSE_OK && pl_get32(p) == ca);
  client_close(&a);
  client_close(&b);
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

  CHECK(pl_engine_listen(w.n[1].e, 8, PL_OWNER_APP, 0, false) == PL_OK);
  ca = client_dial(&w, &a, 2, 8);
  uint32_t service = info.id + 1;
  CHECK(pl_engine_own(w.n[1].e, service, PL_OWNER_APP, 0, w.now) == PL_OK);
  client_conn(&w, &admin, CLOSE, service);
  CHECK(pl_get32(client_expect(&w, &admin, CLOSE_OK, NULL)) == service);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca);

  CHECK(pl_engine_dial(w.n[1].e, 0, 0, 77, 1, 0, 5 * PL_NS_PER_S, w.now) == (int64_t)service + 1);
  client_conn(&w, &admin, CLOSE, service + 1);
  CHECK(pl_get32(client_expect(&w, &admin, CLOSE_OK, NULL)) == service + 1);
  CHECK(pl_engine_conn_info(w.n[1].e, service + 1, &info) == PL_OK);
  client_close(&a);
  client_close(&admin);
  world_free(&w);
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
               {"blocked by a dead stream", test_blocked_by_dead_stream},
               {"stream vanishes in mid frame", test_stream_vanishes_in_mid_frame},
               {"killed client", test_killed_client},
               {"shut for reading", test_shut_for_reading},
               {"hang up", test_hang_up},
               {"ends by timer", test_ends_by_timer},
               {"close of a service", test_close_of_a_service}};
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    printf("%s\n", tests[i].name);
    tests[i].run();
  }
  return 0;
}
