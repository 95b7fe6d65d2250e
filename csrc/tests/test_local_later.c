/* In a conversation, what nobody waits for goes with what comes next, and not much later if nothing comes. */
#include "local_world.h"

#define TICK_NS (10 * PL_NS_PER_US)

static void tick(world *w, unsigned i) {
  w->now += TICK_NS;
  step_node(&w->n[i]);
}

static bool heard(client *c, uint8_t want) {
  uint8_t cmd;
  const uint8_t *p;
  uint32_t len;
  if (!client_next(c, &cmd, &p, &len)) return false;
  CHECK(cmd == want);
  return true;
}

static void dial(world *w, client *c, uint16_t port) {
  uint8_t b[8] = {0};
  pl_put32(b + 2, 2);
  pl_put16(b + 6, port);
  client_send(w, c, DIAL, b, 8);
}

static void brisk(world *w, bool on) {
  for (unsigned i = 0; i < 2; i++) pl_local_brisk(w->n[i].l, on);
}

/* A connection of `a` to `b`, in a conversation; nothing else is under way. */
static void begin(world *w, client *a, client *b, uint32_t *ca) {
  uint32_t cb;
  pl_engine_cfg cfg = world_cfg();
  world_init(w, &cfg);
  *a = client_open(&w->n[0]);
  *b = client_open(&w->n[1]);
  for (unsigned i = 0; i < 2; i++) pl_local_serve_streams(w->n[i].l, 0);
  connect_clients(w, a, b, 1000, ca, &cb);
  steps(w, 1000);
  brisk(w, true);
}

static void end(world *w, client *a, client *b) {
  brisk(w, false);
  client_close(a);
  client_close(b);
  steps(w, 50);
  world_free(w);
}

/* The end of one stream and the dial of the next are one train, one turn of the peer, and one word to each client. */
static void test_close_and_dial(void) {
  world w;
  client a, b;
  uint32_t ca;
  begin(&w, &a, &b, &ca);
  client_conn(&w, &a, CLOSE, ca);
  tick(&w, 0);
  CHECK(w.n[1].tx.n_runs == 0 && pl_local_deadline(w.n[0].l) > w.now && pl_local_deadline(w.n[0].l) <= w.now + 30 * PL_NS_PER_US);
  dial(&w, &a, 1000);
  tick(&w, 0);
  CHECK(!heard(&a, CLOSE_OK) && !heard(&b, CLOSE_OK));
  tick(&w, 1);
  CHECK(heard(&b, ACCEPT) && heard(&b, CLOSE_OK));
  tick(&w, 0);
  CHECK(heard(&a, CLOSE_OK) && heard(&a, DIAL_OK));
  end(&w, &a, &b);
}

/* Nothing comes: the peer hears of the end a moment later, the client a little after. Outside a conversation both are at once. */
static void test_alone(void) {
  world w;
  client a, b;
  uint32_t ca;
  begin(&w, &a, &b, &ca);
  client_conn(&w, &a, CLOSE, ca);
  for (uint64_t until = w.now + 30 * PL_NS_PER_US; w.now < until;) {
    tick(&w, 0);
    tick(&w, 1);
    CHECK(!heard(&b, CLOSE_OK));
  }
  uint64_t at = pl_local_deadline(w.n[0].l);
  CHECK(at <= w.now + TICK_NS);
  tick(&w, 0);
  tick(&w, 1);
  CHECK(heard(&b, CLOSE_OK) && !heard(&a, CLOSE_OK));
  at = pl_local_deadline(w.n[0].l);
  CHECK(at > w.now && at <= w.now + 200 * PL_NS_PER_US);
  w.now = at - 1;
  step_node(&w.n[0]);
  CHECK(!heard(&a, CLOSE_OK));
  tick(&w, 0);
  CHECK(heard(&a, CLOSE_OK) && pl_local_deadline(w.n[0].l) == PL_NEVER);
  brisk(&w, false);
  dial(&w, &a, 1000);
  client_expect(&w, &b, ACCEPT, NULL);
  ca = pl_get32(client_expect(&w, &a, DIAL_OK, NULL));
  steps(&w, 1000);
  client_conn(&w, &a, CLOSE, ca);
  tick(&w, 0);
  tick(&w, 1);
  CHECK(heard(&a, CLOSE_OK) && heard(&b, CLOSE_OK));
  end(&w, &a, &b);
}

/* A client whose last word is the end of somebody's stream, and who then goes or says no more. */
static void test_last_word(void) {
  for (unsigned how = 0; how < 3; how++) {
    world w;
    client a, b;
    uint32_t ca;
    begin(&w, &a, &b, &ca);
    client x = client_open(&w.n[0]);
    tick(&w, 0);
    client_conn(&w, &x, CLOSE, ca);
    if (how) tick(&w, 0);
    if (how == 2)
      CHECK(shutdown(x.fd, SHUT_WR) == 0);
    else
      client_close(&x);
    CHECK(!heard(&a, CLOSE_OK));
    tick(&w, 0);
    tick(&w, 0);
    CHECK(heard(&a, CLOSE_OK));
    tick(&w, 1);
    CHECK(heard(&b, CLOSE_OK));
    client_close(&x);
    end(&w, &a, &b);
  }
}

/* One at a time is held back: two clients end their streams together, and each hears of it, before what follows. */
static void test_two(void) {
  world w;
  client a, b;
  uint32_t ca, cx;
  begin(&w, &a, &b, &ca);
  client x = client_open(&w.n[0]);
  dial(&w, &x, 1000);
  client_expect(&w, &b, ACCEPT, NULL);
  cx = pl_get32(client_expect(&w, &x, DIAL_OK, NULL));
  steps(&w, 1000);
  client_conn(&w, &a, CLOSE, ca);
  client_conn(&w, &x, CLOSE, cx);
  tick(&w, 0);
  tick(&w, 1);
  CHECK(heard(&b, CLOSE_OK) && !heard(&b, CLOSE_OK)); /* of the second */
  for (unsigned i = 0; i < 60; i++) tick(&w, i % 2);
  CHECK(heard(&b, CLOSE_OK) && heard(&a, CLOSE_OK) && heard(&x, CLOSE_OK));
  client_conn(&w, &a, CLOSE, 12345); /* unknown numbers are answered like others */
  client_conn(&w, &a, CLOSE, 12346);
  for (unsigned i = 0; i < 60; i++) tick(&w, 0);
  CHECK(heard(&a, CLOSE_OK) && heard(&a, CLOSE_OK) && !heard(&a, CLOSE_OK));
  CHECK(pl_local_deadline(w.n[0].l) == PL_NEVER);
  client_close(&x);
  end(&w, &a, &b);
}

/* A client goes while its word, or one to it, is held back. */
static void test_gone(void) {
  for (unsigned later = 0; later < 2; later++) {
    world w;
    client a, b;
    uint32_t ca;
    begin(&w, &a, &b, &ca);
    client_conn(&w, &a, CLOSE, ca);
    tick(&w, 0);
    if (later) {
      w.now += 30 * PL_NS_PER_US;
      step_node(&w.n[0]);
    }
    CHECK(pl_local_deadline(w.n[0].l) != PL_NEVER);
    client_close(&a);
    tick(&w, 0);
    CHECK(pl_local_deadline(w.n[0].l) == PL_NEVER);
    tick(&w, 1);
    CHECK(heard(&b, CLOSE_OK));
    end(&w, &a, &b);
  }
}

int main(void) {
  test_close_and_dial();
  test_alone();
  test_last_word();
  test_two();
  test_gone();
  printf("test_local_later: ok\n");
  return 0;
}
