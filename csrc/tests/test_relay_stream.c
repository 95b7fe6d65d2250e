/* Nodes attached over a stream: preferred over their UDP endpoint, speaking for themselves alone, handed over within limits. */
#include "relay_net.h"
#include "wire.h"

static unsigned inject(net *t, uint32_t node, const char *hex) {
  net_clear(t);
  size_t n;
  uint8_t *p = check_hex(hex, &n);
  pl_addr from;
  pl_relay_stream_addr(&from, node);
  net_add(t, &from, p, n, 0);
  free(p);
  return net_run(t);
}

/* The only record that waits is `hex` for `node`; "" = nothing waits. */
static bool taken(net *t, uint32_t node, const char *hex) {
  const uint8_t *p;
  size_t want, len = pl_relay_take(t->r, &p);
  uint8_t *w = check_hex(hex, &want);
  bool same = want == 0 ? len == 0 : len == 8 + want && memcmp(p, &node, 4) == 0 && memcmp(p + 8, w, want) == 0;
  free(w);
  return same;
}

static pl_relay_stats stats(net *t) {
  pl_relay_stats st;
  pl_relay_get_stats(t->r, &st);
  return st;
}

static void it_sends_and_receives(void) {
  net t = net_new(NULL);
  net_discover(&t, A, 100);
  CHECK(pl_relay_attach(t.r, 0, t.now) == PL_EFORMAT && pl_relay_attach(t.r, 200, t.now) == PL_OK);
  CHECK(pl_relay_attach(t.r, 300, t.now) == PL_OK && stats(&t).attached == 2 && stats(&t).nodes == 3);
  CHECK(inject(&t, 200, "05000000c800000064aabbccdd") == 1 && is_hex(&t.out[0], A, "06000000c8aabbccdd"));
  CHECK(net_hex(&t, A, "0500000064000000c8aabbccdd") == 0 && pl_relay_waiting(t.r) && taken(&t, 200, "0600000064aabbccdd"));
  CHECK(!pl_relay_waiting(t.r) && taken(&t, 0, ""));
  CHECK(inject(&t, 200, "05000000c80000012c01") == 0 && taken(&t, 300, "06000000c801"));
  uint32_t ids[4];
  CHECK(pl_relay_nodes(t.r, ids, NULL, 4) == 3); /* gossip tells the peers */
  pl_relay_detach(t.r, 200);
  pl_relay_detach(t.r, 200);
  pl_relay_detach(t.r, 100); /* not attached: stays */
  CHECK(net_hex(&t, A, "0500000064000000c8aa") == 0 && taken(&t, 0, "") && stats(&t).not_found == 1 && stats(&t).nodes == 2);
  net_free(&t);
}

static void it_speaks_for_itself_alone(void) {
  net t = net_new(NULL);
  net_discover(&t, A, 100);
  CHECK(pl_relay_attach(t.r, 200, t.now) == PL_OK && pl_relay_attach(t.r, 300, t.now) == PL_OK);
  CHECK(inject(&t, 200, "050000006400000064aa") == 0 && inject(&t, 200, "050000012c00000064aa") == 0);
  CHECK(inject(&t, 200, "0100000064") == 0 && inject(&t, 200, "070000000100010000000064") == 0);
  CHECK(stats(&t).spoofed == 4);
  CHECK(inject(&t, 200, "03000000c800000064") == 0 && net_hex(&t, A, "0300000064000000c8") == 0); /* nothing to punch */
  CHECK(inject(&t, 200, "01000000c8") == 0 && inject(&t, 200, "08000000c8") == 0); /* alive, without a reply */
  CHECK(net_hex(&t, A, "0500000064000000c8aabbccdd") == 0 && taken(&t, 200, "0600000064aabbccdd")); /* always 0x06 */
  pl_relay_detach(t.r, 200);
  CHECK(inject(&t, 200, "05000000c800000064aa") == 0 && stats(&t).spoofed == 5);
  net_free(&t);
}

static void it_wins_over_udp(void) {
  net t = net_new(NULL);
  net_discover(&t, A, 100);
  net_discover(&t, B, 200);
  CHECK(pl_relay_attach(t.r, 200, t.now) == PL_OK);
  pl_addr at;
  CHECK(!pl_relay_lookup(t.r, 200, &at));
  CHECK(net_hex(&t, A, "0500000064000000c8aa") == 0 && taken(&t, 200, "0600000064aa"));
  CHECK(net_hex(&t, B, "01000000c8") == 1 && !pl_relay_lookup(t.r, 200, &at)); /* answered, but not believed */
  CHECK(net_hex(&t, B, "05000000c800000064aa") == 0);
  t.now += 200 * PL_NS_PER_S; /* not even when the stream is silent */
  CHECK(net_hex(&t, B, "01000000c8") == 1 && !pl_relay_lookup(t.r, 200, &at));
  /* Back to UDP: known by the registry, it may announce itself before the stream ends, and loses nothing. */
  pl_addr b = addr(B);
  CHECK(pl_relay_vouch(t.r, 200, &b, t.now) == PL_OK);
  net_discover(&t, A, 100);
  CHECK(net_hex(&t, B, "01000000c8") == 1 && pl_relay_lookup(t.r, 200, &at) && pl_addr_eq(&at, &b));
  CHECK(net_hex(&t, A, "0500000064000000c8aa") == 0 && taken(&t, 200, "0600000064aa"));
  CHECK(net_hex(&t, B, "05000000c800000064aa") == 1 && inject(&t, 200, "05000000c800000064aa") == 1);
  pl_relay_detach(t.r, 200);
  CHECK(net_hex(&t, A, "0500000064000000c8aa") == 1 && is_hex(&t.out[0], B, "0600000064aa"));
  net_free(&t);
}

static void one_reader_leaves_room_for_others(void) {
  net t = net_new(NULL);
  net_discover(&t, A, 100);
  CHECK(pl_relay_attach(t.r, 200, t.now) == PL_OK && pl_relay_attach(t.r, 300, t.now) == PL_OK);
  static uint8_t big[9 + 60000];
  big[0] = 0x05;
  pl_put32(big + 1, 100);
  pl_put32(big + 5, 200);
  for (int i = 0; i < 100; i++) CHECK(net_send(&t, A, big, sizeof big) == 0);
  CHECK(stats(&t).hand_full == 92 && stats(&t).handed == 8); /* a quarter of 2 MiB */
  CHECK(net_hex(&t, A, "05000000640000012caa") == 0);
  const uint8_t *p;
  CHECK(pl_relay_take(t.r, &p) == 8 * (8 + 60005) + 8 + 6 && stats(&t).hand_full == 92);
  CHECK(net_send(&t, A, big, sizeof big) == 0 && pl_relay_take(t.r, &p) == 8 + 60005); /* the next turn is its own again */
  net_free(&t);
}

static void a_full_table_takes_the_authenticated(void) {
  pl_relay_cfg cfg;
  pl_relay_cfg_default(&cfg);
  cfg.max_nodes = 2;
  net t = net_new(&cfg);
  net_discover(&t, A, 100);
  net_discover(&t, B, 200);
  CHECK(pl_relay_attach(t.r, 300, t.now) == PL_OK && pl_relay_attach(t.r, 400, t.now) == PL_OK);
  CHECK(pl_relay_attach(t.r, 500, t.now) == PL_ELIMIT && stats(&t).attached == 2);
  t.now += 700 * PL_NS_PER_S;
  pl_relay_expire(t.r, t.now);
  CHECK(stats(&t).attached == 0 && stats(&t).nodes == 0);
  CHECK(inject(&t, 300, "010000012c") == 0 && stats(&t).attached == 1); /* its connection still stands */
  net_free(&t);
}

int main(void) {
  it_sends_and_receives();
  it_speaks_for_itself_alone();
  it_wins_over_udp();
  one_reader_leaves_room_for_others();
  a_full_table_takes_the_authenticated();
  puts("ok");
  return 0;
}
