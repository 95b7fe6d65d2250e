/* The beacon without a socket: recorded datagrams of a published beacon, introductions, budgets, anything at all. */
#include "relay_net.h"
#include "wire.h"

#define LARGEST (PL_UDP_MAX - PL_RELAY_HEAD)
#define PEER "203.0.113.40:9011"
#define PEER2 "203.0.113.41:9011"

/* Nodes are told how often to ask: often while there are few. The answer is never larger than the question. */
static void pace_follows_the_population(void) {
  pl_relay_cfg cfg = usual();
  cfg.pace_rate = 4;
  net t = net_new(&cfg);
  CHECK(net_hex(&t, C, "010000000050580100000000") == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43" "50580103"));
  for (unsigned i = 1; i <= 20; i++) net_discover(&t, A, i);
  CHECK(net_hex(&t, C, "010000000050580100000000") == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43" "50580105"));
  for (unsigned i = 21; i <= 200; i++) net_discover(&t, A, i);
  CHECK(net_hex(&t, C, "010000000050580100000000") == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43" "50580114"));
  CHECK(net_hex(&t, C, "0100000000505801000000") == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43")); /* shorter than the answer */
  CHECK(net_hex(&t, C, "010000000050580200000000") == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43"));
  CHECK(net_hex(&t, V6, "010000000050580100000000") == 1 && t.out[0].len == 20);
  CHECK(net_hex(&t, V6, "0100000000505801" "00000000000000000000000000000000") == 1 && t.out[0].len == 24);
  CHECK(net_hex(&t, C, "0100000000505801" "0000000000000000000000000000000000000000000000000000000000") == 1 && t.out[0].len == 8); /* a key */
  /* A nonce comes back, to a question that is as long as the answer. */
  CHECK(net_hex(&t, C, "0100000000505801" "1122334455667788" "00000000") == 1);
  CHECK(is_hex(&t.out[0], C, "0204cb00711e9c43" "50580114" "1122334455667788"));
  CHECK(net_hex(&t, C, "0100000000505801" "1122334455667788" "000000") == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43" "50580114"));
  CHECK(net_hex(&t, V6, "0100000000505801" "1122334455667788" "00000000000000000000000000000000") == 1 && t.out[0].len == 32);
  CHECK(net_hex(&t, V6, "0100000000505801" "1122334455667788" "0000000000000000000000000000") == 1 && t.out[0].len == 24);
  net_free(&t);
}

/* What a published beacon answered, where ours answers the same. Other answers are ours on purpose: see the other tests. */
static void recorded_datagrams(void) {
  static const struct {
    const char *from, *in, *to1, *out1, *to2, *out2;
  } vectors[] = {
      {A, "0100000064", A, "0204cb00710a9c41", NULL, NULL},
      {B, "01000000c8", B, "0204cb0071149c42", NULL, NULL},
      {V6, "010000012c", V6, "021020010db80000000000000000000000109c46", NULL, NULL},
      {C, "0100000000", C, "0204cb00711e9c43", NULL, NULL},
      {C, "01ffffffff", C, "0204cb00711e9c43", NULL, NULL},
      {C, "01000001900000000000000000000000000000000000000000000000000000000000000000", C, "0204cb00711e9c43", NULL, NULL},
      {C, "01000001", NULL, NULL, NULL, NULL},
      {C, "01", NULL, NULL, NULL, NULL},
      {C, "0000000001", NULL, NULL, NULL, NULL},
      {C, "0204010203040001", NULL, NULL, NULL, NULL},
      {A, "0300000064000000c8", A, "0404cb0071149c42", B, "0404cb00710a9c41"},
      {V6, "030000012c000000c8", V6, "0404cb0071149c42", B, "041020010db80000000000000000000000109c46"},
      {A, "0300000064000003e7", NULL, NULL, NULL, NULL},
      {A, "0300000064000000", NULL, NULL, NULL, NULL},
      {A, "0500000064000000c8" DEMO, B, "0600000064" DEMO, NULL, NULL},
      {A, "05000000640000012c" DEMO, V6, "0600000064" DEMO, NULL, NULL},
      {A, "0500000064000000c8", B, "0600000064", NULL, NULL},
      {A, "050000006400000064" DEMO, A, "0600000064" DEMO, NULL, NULL},
      {A, "0500000064000003e7" DEMO, NULL, NULL, NULL, NULL},
      {A, "0500000064000000", NULL, NULL, NULL, NULL},
      {A, "0600000064" DEMO, NULL, NULL, NULL, NULL},
  };
  net t = net_new(NULL);
  for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
    unsigned n = net_hex(&t, vectors[i].from, vectors[i].in), want = vectors[i].to2 ? 2 : vectors[i].to1 ? 1 : 0;
    if (n != want) fprintf(stderr, "%s: %u datagrams instead of %u\n", vectors[i].in, n, want);
    CHECK(n == want);
    if (n > 0) CHECK(is_hex(&t.out[0], vectors[i].to1, vectors[i].out1));
    if (n > 1) CHECK(is_hex(&t.out[1], vectors[i].to2, vectors[i].out2));
  }
  net_free(&t);
}

static void big_payloads_pass_uncopied(void) {
  net t = net_new(NULL);
  register_three(&t);
  static const size_t sizes[] = {1400, 8000, LARGEST};
  for (size_t k = 0; k < 3; k++) {
    size_t len = 9 + sizes[k];
    uint8_t *p = malloc(len);
    CHECK(p);
    head(p, 0x05, 100, 200);
    for (size_t i = 0; i < sizes[k]; i++) p[9 + i] = (uint8_t)(i % 251);
    net_clear(&t);
    pl_addr a = addr(A);
    uint8_t *in = net_add(&t, &a, p, len, 0);
    CHECK(net_run(&t) == 1 && t.out[0].len == 5 + sizes[k]);
    CHECK(t.out[0].p == in + 4 && t.out[0].p[0] == 0x06 && pl_get32(t.out[0].p + 1) == 100);
    for (size_t i = 0; i < sizes[k]; i++) CHECK(t.out[0].p[5 + i] == i % 251);
    free(p);
  }
  CHECK(net_stats(&t).relayed == 3 && net_stats(&t).relayed_bytes == 1400 + 8000 + LARGEST);
  net_free(&t);
}

static void replies_leave_from_the_address_that_was_asked(void) {
  net t = net_new(NULL);
  t.local = addr("198.51.100.1:9001");
  CHECK(net_discover(&t, A, 100) == 1 && pl_addr_eq(&t.out[0].from, &t.local));
  pl_addr first = t.local;
  t.local = addr("198.51.100.2:9001");
  CHECK(net_discover(&t, B, 200) == 1 && pl_addr_eq(&t.out[0].from, &t.local));
  CHECK(net_punch(&t, B, 200, 100) == 2);
  CHECK(pl_addr_eq(&t.out[0].from, &t.local) && pl_addr_eq(&t.out[1].from, &first)); /* each from the address it knows */
  CHECK(net_relay(&t, B, 200, 100) == 1 && pl_addr_eq(&t.out[0].from, &first));
  pl_addr known;
  CHECK(pl_relay_lookup_local(t.r, 100, &known) && pl_addr_eq(&known, &first) && !pl_relay_lookup_local(t.r, 5, &known));
  net_free(&t);
}

static void punching_introduces_only_the_known_and_has_a_rate(void) {
  net t = net_new(NULL);
  register_three(&t);
  CHECK(net_punch(&t, C, 400, 200) == 0 && net_stats(&t).not_found == 1); /* first contact: nothing leaves */
  CHECK(net_punch(&t, C, 400, 200) == 2);                                  /* registered by it */
  CHECK(net_punch(&t, C, 400, 400) == 0 && net_stats(&t).bad == 1);
  unsigned ok = 0;
  for (int i = 0; i < 50; i++) ok += net_punch(&t, A, 100, 200) == 2;
  CHECK(ok == 10 && net_stats(&t).limited == 40);
  CHECK(net_punch(&t, B, 200, 100) == 2); /* another node is not concerned */
  t.now += PL_NS_PER_S;
  for (ok = 0; net_punch(&t, A, 100, 200) == 2;) ok++;
  CHECK(ok == 5);
  /* Many numbers behind one address: a fleet behind one NAT fits, a flood of invented numbers does not. */
  t.now += 10 * PL_NS_PER_S;
  uint64_t before = net_stats(&t).limited;
  for (uint32_t id = 1000; id < 2000; id++) net_punch(&t, "203.0.113.60:1", id, 200);
  CHECK(net_stats(&t).limited - before == 600);
  net_free(&t);
}

static void deliveries_name_the_destination_when_asked(void) {
  net t = net_new(NULL);
  register_three(&t);
  CHECK(net_hex(&t, B, "08000000c8") == 1 && is_hex(&t.out[0], B, "0204cb0071149c42"));
  CHECK(net_hex(&t, A, "0500000064000000c8" DEMO) == 1 && is_hex(&t.out[0], B, "0900000064000000c8" DEMO));
  net_discover(&t, B, 200); /* a plain keep-alive of the same endpoint does not take it back */
  CHECK(net_relay(&t, A, 100, 200) == 1 && t.out[0].p[0] == 0x09);
  t.now += 131 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  net_discover(&t, C, 200); /* another host has not asked */
  CHECK(net_relay(&t, A, 100, 200) == 1 && t.out[0].p[0] == 0x06);
  net_free(&t);
}

static void a_budget_limits_one_sender_only(void) {
  pl_relay_cfg cfg = usual();
  cfg.relay_bytes_per_s = 100000;
  net t = net_new(&cfg);
  register_three(&t);
  static uint8_t p[10000];
  head(p, 0x05, 100, 200);
  unsigned ok = 0;
  for (int i = 0; i < 20; i++) ok += net_send(&t, A, p, sizeof p);
  CHECK(ok == 10 && net_stats(&t).limited == 10);
  head(p, 0x05, 200, 100);
  CHECK(net_send(&t, B, p, sizeof p) == 1);
  t.now += PL_NS_PER_S / 2;
  head(p, 0x05, 100, 200);
  for (ok = 0; net_send(&t, A, p, sizeof p);) ok++;
  CHECK(ok == 5);
  net_free(&t);

  cfg.relay_bytes_per_s = 1; /* even a tiny budget lets a whole datagram out at first */
  t = net_new(&cfg);
  register_three(&t);
  CHECK(net_send(&t, A, p, sizeof p) == 1);
  net_free(&t);
}

static void random_input_does_no_harm(void) {
  uint64_t seed = check_seed("random", 20);
  pl_relay_cfg cfg = usual();
  cfg.max_nodes = 20;
  cfg.relay_bytes_per_s = 1 << 20;
  net t = net_new(&cfg);
  pl_addr peers[2] = {addr(PEER), addr(PEER2)};
  pl_relay_set_peers(t.r, peers, 2);
  static uint8_t p[4096];
  for (int round = 0; round < 20000; round++) {
    net_clear(&t);
    for (unsigned i = 0, n = (unsigned)(check_u64(&seed) % 8); i < n; i++) {
      uint64_t dice = check_u64(&seed);
      pl_addr from = dice % 5 == 0 ? peers[dice >> 8 & 1] : (pl_addr){.family = 4, .port = (uint16_t)(1 + (dice >> 16 & 3)), .ip = {10, 0, 0, (uint8_t)(dice >> 24 & 15)}};
      size_t len = 1 + (size_t)(dice >> 32 & (dice & 64 ? 63 : 2047));
      check_fill(&seed, p, len);
      uint32_t seg = dice & 32 ? 1 + (uint32_t)(check_u64(&seed) % len) : 0;
      for (size_t off = 0; off < len; off += seg ? seg : len) { /* mostly plausible: known types, few numbers */
        if (check_u64(&seed) % 8) p[off] &= 0x0f;
        for (size_t k = 1; k < 9 && off + k < len; k++) p[off + k] &= k % 4 == 0 ? 31 : 0;
      }
      net_add(&t, &from, p, len, seg);
    }
    net_run(&t);
    for (unsigned i = 0; i < t.n_out; i++) {
      const sent *s = &t.out[i];
      CHECK(s->len >= 5 && (s->p[0] == 2 || s->p[0] == 4 || s->p[0] == 5 || s->p[0] == 6 || s->p[0] == 9) && s->to.family);
    }
    CHECK(net_stats(&t).nodes <= 20 && net_stats(&t).routes <= 20);
    if (round % 50 == 0) t.now += check_u64(&seed) % (200 * PL_NS_PER_S);
    if (round % 97 == 0) pl_relay_expire(t.r, t.now);
    if (round % 31 == 0) pl_relay_vouch(t.r, (uint32_t)(check_u64(&seed) % 32), &(pl_addr){.family = (uint8_t)(check_u64(&seed) % 2 * 4), .ip = {10, 0, 0, 3}}, t.now);
    if (round % 501 == 0) pl_relay_set_peers(t.r, peers + (check_u64(&seed) & 1), 1);
    if (round % 503 == 0) pl_relay_set_peers(t.r, peers, 2);
  }
  net_free(&t);
}

int main(void) {
  recorded_datagrams();
  pace_follows_the_population();
  big_payloads_pass_uncopied();
  replies_leave_from_the_address_that_was_asked();
  punching_introduces_only_the_known_and_has_a_rate();
  deliveries_name_the_destination_when_asked();
  a_budget_limits_one_sender_only();
  random_input_does_no_harm();
  puts("ok");
  return 0;
}
