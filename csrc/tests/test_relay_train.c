/* Trains through the beacon: whole and in order, whatever happens inside of one. */
#include "relay_net.h"
#include "wire.h"

/* One GRO buffer of 40 datagrams with a short last one, two destinations in turns, odd sizes: order and trains survive. */
static void trains_stay_whole_and_in_order(void) {
  net t = net_new(NULL);
  register_three(&t);
  enum { SEG = 1409, N = 40 };
  static uint8_t train[SEG * N];
  for (unsigned i = 0; i < N; i++) {
    head(train + i * SEG, 0x05, 100, 200);
    train[i * SEG + 9] = (uint8_t)i;
  }
  pl_addr a = addr(A);
  net_clear(&t);
  net_add(&t, &a, train, sizeof train - 1000, SEG);
  CHECK(net_run(&t) == N);
  for (unsigned i = 0; i < N; i++) CHECK(t.out[i].run == 0 && t.out[i].p[5] == i && t.out[i].len == (i + 1 < N ? SEG - 4 : SEG - 1004));

  net_clear(&t); /* three buffers: 120 equal datagrams leave as full trains of at most 64000 bytes */
  for (int k = 0; k < 3; k++) net_add(&t, &a, train, sizeof train, SEG);
  CHECK(net_run(&t) == 3 * N && t.out[44].run == 0 && t.out[45].run == 1 && t.out[89].run == 1 && t.out[119].run == 2);

  for (unsigned i = 0; i < N; i++) head(train + i * SEG, 0x05, 100, i % 2 ? 200 : 300); /* alternating destinations */
  net_clear(&t);
  net_add(&t, &a, train, sizeof train, SEG);
  CHECK(net_run(&t) == N && t.out[N - 1].run == 1);
  for (unsigned i = 0; i < N; i++) CHECK(t.out[i].run == i / 20 && t.out[i].p[5] == (i % 20) * 2 + i / 20);

  uint64_t seed = check_seed("trains", 7); /* any mix of sizes: within a destination the order of arrival */
  for (int round = 0; round < 200; round++) {
    net_clear(&t);
    unsigned n = 1 + (unsigned)(check_u64(&seed) % PL_UDP_BATCH);
    for (unsigned i = 0; i < n; i++) {
      uint8_t p[64];
      head(p, 0x05, 100, check_u64(&seed) % 2 ? 200 : 300);
      p[9] = (uint8_t)i;
      net_add(&t, &a, p, 10 + (size_t)(check_u64(&seed) % 3), 0);
    }
    CHECK(net_run(&t) == n);
    int last[2] = {-1, -1};
    for (unsigned i = 0; i < n; i++) {
      int *l = &last[t.out[i].to.family == 6];
      CHECK(t.out[i].p[5] > *l);
      *l = t.out[i].p[5];
    }
  }
  net_free(&t);
}

static void a_move_inside_a_batch_splits_the_train(void) {
  net t = net_new(NULL);
  register_three(&t);
  uint8_t p[10], d[5];
  head(p, 0x05, 100, 200);
  p[9] = 0;
  memcpy(d, "\x01\x00\x00\x00\xc8", 5);
  pl_addr a = addr(A), moved = addr("203.0.113.20:50000");
  net_clear(&t);
  net_add(&t, &a, p, sizeof p, 0);
  net_add(&t, &moved, d, sizeof d, 0);
  net_add(&t, &a, p, sizeof p, 0);
  CHECK(net_run(&t) == 3);
  unsigned at_old = 0, at_new = 0;
  for (unsigned i = 0; i < 3; i++) {
    at_old += t.out[i].p[0] == 0x06 && t.out[i].to.port == 40002;
    at_new += t.out[i].p[0] == 0x06 && t.out[i].to.port == 50000;
  }
  CHECK(at_old == 1 && at_new == 1);
  net_free(&t);
}

static void a_node_evicted_inside_a_train(void) {
  pl_relay_cfg cfg = usual();
  cfg.max_nodes = 2;
  net t = net_new(&cfg);
  net_discover(&t, B, 200);
  net_discover(&t, A, 100);
  pl_addr a = addr(A);
  CHECK(pl_relay_vouch(t.r, 500, &a, t.now) == PL_OK);
  uint8_t train[27]; /* frame for 200; the registered 500 takes the place of 200; the same frame again */
  head(train, 0x05, 100, 200);
  head(train + 9, 0x01, 500, 0);
  head(train + 18, 0x05, 100, 200);
  net_clear(&t);
  net_add(&t, &a, train, sizeof train, 9);
  CHECK(net_run(&t) == 2 && t.out[0].p[0] == 0x06 && t.out[1].p[0] == 0x02 && net_stats(&t).not_found == 1);
  net_free(&t);
}

static void more_datagrams_than_a_batch_holds(void) {
  net t = net_new(NULL);
  register_three(&t);
  static uint8_t train[9 * 7000];
  for (size_t i = 0; i < 7000; i++) head(train + 9 * i, 0x05, 100, 200);
  pl_addr a = addr(A);
  net_clear(&t);
  net_add(&t, &a, train, sizeof train, 9);
  net_add(&t, &a, train, sizeof train, 9);
  unsigned n = net_run(&t);
  CHECK(n <= 2 * PL_RELAY_BATCH && n >= PL_RELAY_BATCH && n + net_stats(&t).limited == 14000);
  net_free(&t);
}

int main(void) {
  trains_stay_whole_and_in_order();
  a_move_inside_a_batch_splits_the_train();
  a_node_evicted_inside_a_train();
  more_datagrams_than_a_batch_holds();
  puts("ok");
  return 0;
}
