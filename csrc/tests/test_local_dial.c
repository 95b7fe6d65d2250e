/* Streams that the data plane gives to clients by itself, inbound and dialled, and dials that it leaves to Python. */
#include "local_world.h"

static void ask(world *w, client *c, uint32_t node_number, uint16_t port) {
  uint8_t b[8] = {0};
  pl_put32(b + 2, node_number);
  pl_put16(b + 6, port);
  client_send(w, c, DIAL, b, 8);
}

/* Two clients; the session is proved by a first dial, which Python made. */
static void begin_with(world *w, const pl_engine_cfg *cfg, client *a, client *b) {
  world_init(w, cfg);
  *a = client_open(&w->n[0]);
  *b = client_open(&w->n[1]);
  for (unsigned i = 0; i < 2; i++) pl_local_serve_streams(w->n[i].l, 0);
  uint32_t ca, cb;
  connect_clients(w, a, b, 1000, &ca, &cb);
  CHECK(w->n[0].dials == 1 && stats(&w->n[0]).dials == 0);
}

static void begin(world *w, client *a, client *b) {
  pl_engine_cfg cfg = world_cfg();
  begin_with(w, &cfg, a, b);
}

static void end(world *w, client *a, client *b) {
  client_close(a);
  client_close(b);
  steps(w, 50);
  pl_engine_stats st;
  pl_engine_get_stats(w->n[0].e, &st);
  pl_conn_info info;
  for (size_t it = 0; pl_engine_next_conn(w->n[0].e, &it, &info);) CHECK(info.s.state != PL_ST_SYN_SENT);
  world_free(w);
}

/* Answered while Python is busy; bytes of the peer come behind the answer. */
static void test_alone(void) {
  world w;
  client a, b;
  begin(&w, &a, &b);
  w.n[0].hold_events = w.n[1].hold_events = true;
  uint32_t ca = client_dial(&w, &a, 2, 1000), cb = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2);
  CHECK(w.n[0].dials == 1 && stats(&w.n[0]).dials == 1);
  uint8_t *data = make(100000);
  client_data(&w, &b, cb, data, 100000);
  receive(&w, &a, ca, 0, 100000);
  client_data(&w, &a, ca, data, 100000);
  receive(&w, &b, cb, 0, 100000);
  client_conn(&w, &a, CLOSE, ca);
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == ca);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  w.n[0].hold_events = w.n[1].hold_events = false;
  free(data);
  end(&w, &a, &b);
}

/* The answer to a dial leaves before the program that it is for is woken up, and no event presses Python. */
static void test_answer_first(void) {
  world w;
  client a, b;
  begin(&w, &a, &b);
  steps(&w, 20);
  uint8_t cmd;
  const uint8_t *p;
  uint32_t len;
  while (client_next(&a, &cmd, &p, &len) || client_next(&b, &cmd, &p, &len)) continue;
  w.n[0].hold_events = w.n[1].hold_events = true;
  ask(&w, &a, 2, 1000);
  w.now += STEP_NS;
  step_node(&w.n[0]); /* the SYN is there */
  CHECK(w.n[1].tx.n_runs == 1 && !client_next(&b, &cmd, &p, &len));
  step_node(&w.n[1]);
  uint32_t cb = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2), ca = pl_get32(client_expect(&w, &a, DIAL_OK, NULL));
  client_conn(&w, &a, CLOSE, ca);
  CHECK(pl_get32(client_expect(&w, &b, CLOSE_OK, NULL)) == cb);
  client_expect(&w, &a, CLOSE_OK, NULL);
  steps(&w, 20);
  for (unsigned i = 0; i < 2; i++) {
    CHECK(pl_engine_has_events(w.n[i].e) && !pl_engine_has_pressing_events(w.n[i].e));
    w.n[i].hold_events = false;
  }
  steps(&w, 5);
  CHECK(!pl_engine_has_events(w.n[0].e) && !pl_engine_has_events(w.n[1].e));
  end(&w, &a, &b);
}

/* Refused, to strangers, to another network, malformed: Python's. */
static void test_left_to_python(void) {
  world w;
  client a, b;
  begin(&w, &a, &b);
  ask(&w, &a, 2, 4444); /* nobody listens */
  client_expect(&w, &a, ERROR, NULL);
  CHECK(w.n[0].dials == 2);
  ask(&w, &a, 99, 1000); /* nobody there */
  client_expect(&w, &a, ERROR, NULL);
  CHECK(w.n[0].dials == 3);
  uint8_t other[8] = {0, 7, 0, 0, 0, 2, 1000 >> 8, 1000 & 255};
  client_send(&w, &a, DIAL, other, 8);
  client_expect(&w, &a, DIAL_OK, NULL);
  CHECK(w.n[0].dials == 4 && stats(&w.n[0]).dials == 0);
  client_send(&w, &a, DIAL, other, 5);
  steps(&w, 20);
  CHECK(w.n[0].infos == 1);
  end(&w, &a, &b);
}

/* An answer waits for those before it, whoever gives them. */
static void test_order(void) {
  world w;
  client a, b;
  begin(&w, &a, &b);
  for (unsigned round = 0; round < 3; round++) {
    ask(&w, &a, 99, 1000); /* Python's, for a second */
    ask(&w, &a, 2, 1000);
    ask(&w, &a, 2, 4444); /* refused: then Python's */
    ask(&w, &a, 2, 1000);
    uint32_t conns[2], got[2];
    for (unsigned i = 0; i < 2; i++) {
      got[i] = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2);
      uint8_t mark = pattern(i);
      client_data(&w, &b, got[i], &mark, 1); /* early bytes are no answer */
    }
    steps(&w, 200);
    uint8_t cmd;
    const uint8_t *p;
    uint32_t len;
    CHECK(!client_next(&a, &cmd, &p, &len));
    client_expect(&w, &a, ERROR, NULL);
    conns[0] = pl_get32(client_expect(&w, &a, DIAL_OK, NULL));
    receive(&w, &a, conns[0], 0, 1);
    client_expect(&w, &a, ERROR, NULL);
    conns[1] = pl_get32(client_expect(&w, &a, DIAL_OK, NULL));
    receive(&w, &a, conns[1], 1, 1);
    CHECK(conns[0] != conns[1]);
  }
  end(&w, &a, &b);
}

/* A connection that is reset while its answer waits is handed over with its end; one whose peer is forgotten is Python's to dial again. */
static void test_lost_before_the_answer(void) {
  for (unsigned forget = 0; forget < 2; forget++) {
    world w;
    client a, b;
    begin(&w, &a, &b);
    ask(&w, &a, 99, 1000);
    ask(&w, &a, 2, 1000);
    client_expect(&w, &b, ACCEPT, NULL);
    steps(&w, 20);
    CHECK((forget ? pl_engine_forget_peer(w.n[0].e, 2, w.now) : (int)pl_engine_reset_streams(w.n[0].e, 2, 0, w.now)) >= 0);
    client_expect(&w, &a, CLOSE_OK, NULL); /* of the stream that stood */
    CHECK(pl_engine_forget_peer(w.n[0].e, 99, w.now) == PL_OK);
    client_expect(&w, &a, ERROR, NULL);
    if (forget) {
      client_expect(&w, &a, ERROR, NULL);
      CHECK(w.n[0].dials == 3);
    } else {
      uint32_t conn = pl_get32(client_expect(&w, &a, DIAL_OK, NULL));
      CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == conn);
      CHECK(w.n[0].dials == 2);
    }
    end(&w, &a, &b);
  }
}

/* A client that guesses the number of a connection and sends before it is told of it waits no longer than the stream does. */
static void test_sends_before_the_answer(void) {
  pl_engine_cfg cfg = world_cfg();
  cfg.stream.send_buffer = cfg.stream.recv_buffer = 128u << 10;
  world w;
  client a, b;
  begin_with(&w, &cfg, &a, &b);
  ask(&w, &a, 99, 1000);
  ask(&w, &a, 2, 1000);
  uint32_t at_b = pl_get32(client_expect(&w, &b, ACCEPT, NULL) + 2), at_a = 0;
  pl_conn_info info;
  for (size_t it = 0; pl_engine_next_conn(w.n[0].e, &it, &info);)
    if (info.node == 2 && info.id > at_a) at_a = info.id;
  enum { BODY = 1 << 19, FRAMES = 6, N = FRAMES * (9 + BODY) };
  uint8_t *data = malloc(N);
  CHECK(data);
  for (unsigned i = 0; i < FRAMES; i++) {
    uint8_t *f = data + (size_t)i * (9 + BODY);
    pl_put32(f, BODY + 5);
    f[4] = SEND;
    pl_put32(f + 5, at_a);
    for (size_t k = 0; k < BODY; k++) f[9 + k] = pattern((uint64_t)i * BODY + k);
  }
  size_t sent = 0;
  for (unsigned idle = 0; idle < 500 && sent < N;) { /* until the stream is full */
    ssize_t r = write(a.fd, data + sent, N - sent);
    sent += r > 0 ? (size_t)r : 0;
    idle = r > 0 ? 0 : idle + 1;
    step(&w);
  }
  CHECK(sent < N);
  uint8_t cmd;
  const uint8_t *p;
  uint32_t len;
  CHECK(!client_next(&a, &cmd, &p, &len));
  uint64_t got = 0; /* the peer reads while the first dial is still not answered */
  for (unsigned i = 0; i < 20000 && got < FRAMES * BODY; i++) {
    ssize_t r = sent < N ? write(a.fd, data + sent, N - sent) : 0;
    sent += r > 0 ? (size_t)r : 0;
    while (client_next(&b, &cmd, &p, &len)) {
      CHECK(cmd == RECV && pl_get32(p) == at_b);
      for (uint32_t k = 0; k < len - 4; k++) CHECK(p[4 + k] == pattern(got + k));
      got += len - 4;
    }
    step(&w);
  }
  CHECK(got == FRAMES * BODY);
  client_expect(&w, &a, ERROR, NULL);
  CHECK(pl_get32(client_expect(&w, &a, DIAL_OK, NULL)) == at_a);
  free(data);
  end(&w, &a, &b);
}

/* Whoever leaves takes what it asked for along. */
static void test_gone(void) {
  world w;
  client a, b;
  begin(&w, &a, &b);
  w.lossy = true;
  ask(&w, &a, 2, 1000);
  ask(&w, &a, 99, 1000);
  steps(&w, 5);
  client_close(&a);
  steps(&w, 50);
  CHECK(stats(&w.n[0]).clients == 0);
  w.lossy = false;
  a = client_open(&w.n[0]);
  end(&w, &a, &b);
}

/* A program that left its port bound behind: the stream ends, nothing stays. */
static void test_nobody_takes_it(void) {
  world w;
  client a, b;
  begin(&w, &a, &b);
  client_close(&b);
  steps(&w, 20);
  client_expect(&w, &a, CLOSE_OK, NULL);
  ask(&w, &a, 2, 1000); /* the tests' control plane does not free ports */
  uint32_t conn = pl_get32(client_expect(&w, &a, DIAL_OK, NULL));
  CHECK(pl_get32(client_expect(&w, &a, CLOSE_OK, NULL)) == conn);
  b = client_open(&w.n[1]);
  end(&w, &a, &b);
}

/* A program that is slow to take the streams of its port refuses none. */
static void test_slow_to_accept(void) {
  enum { N = 3000 };
  world w;
  pl_engine_cfg cfg = world_cfg();
  cfg.syn_rate = 1e6;
  cfg.max_conns_port = 2 * N;
  world_init(&w, &cfg);
  client a = client_open(&w.n[0]), b = client_open(&w.n[1]);
  for (unsigned i = 0; i < 2; i++) pl_local_serve_streams(w.n[i].l, 0);
  uint32_t ca, cb;
  connect_clients(&w, &a, &b, 1000, &ca, &cb);
  for (unsigned i = 0; i < N; i++) client_dial(&w, &a, 2, 1000);
  for (unsigned i = 0; i < N; i++) client_expect(&w, &b, ACCEPT, NULL);
  CHECK(stats(&w.n[1]).slow == 0);
  end(&w, &a, &b);
}

/* Too many unanswered dials: the client is not read until some are answered, and nothing is lost. */
static void test_many(void) {
  enum { N = 5000 };
  world w;
  client a, b;
  begin(&w, &a, &b);
  w.n[0].hold_events = true;
  for (unsigned i = 0; i < N; i++) {
    uint8_t frame[13] = {0, 0, 0, 9, DIAL, 0, 0, 0, 0, 0, 99, 0, 1};
    ssize_t r = write(a.fd, frame, sizeof frame);
    CHECK(r == (ssize_t)sizeof frame || (r < 0 && errno == EAGAIN));
    if (r < 0) break;
    step(&w);
  }
  steps(&w, 100);
  CHECK(stats(&w.n[0]).frames < N);
  end(&w, &a, &b);
}

int main(void) {
  static const struct {
    const char *name;
    void (*run)(void);
  } tests[] = {{"alone", test_alone},
               {"answer first", test_answer_first},
               {"left to python", test_left_to_python},
               {"order", test_order},
               {"lost before the answer", test_lost_before_the_answer},
               {"sends before the answer", test_sends_before_the_answer},
               {"gone", test_gone},
               {"nobody takes it", test_nobody_takes_it},
               {"slow to accept", test_slow_to_accept},
               {"many", test_many}};
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    printf("%s\n", tests[i].name);
    fflush(stdout);
    tests[i].run();
  }
  return 0;
}
