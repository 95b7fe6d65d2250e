/* The beacon without a socket: recorded datagrams of a published beacon, forged senders, moves, full tables, trains. */
#include "relay_net.h"
#include "wire.h"

#define A "203.0.113.10:40001"
#define B "203.0.113.20:40002"
#define C "203.0.113.30:40003"
#define V6 "[2001:db8::10]:40006"
#define LARGEST (PL_UDP_MAX - PL_RELAY_HEAD)
#define DEMO "50494c5364656d6f2d7061796c6f6164"

static pl_relay_cfg usual(void) {
  pl_relay_cfg cfg;
  pl_relay_cfg_default(&cfg);
  return cfg;
}

static void register_three(net *t) {
  net_discover(t, A, 100);
  net_discover(t, B, 200);
  net_discover(t, V6, 300);
}

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

/* What a published beacon answered, where ours answers the same. Other answers are ours on purpose: see the tests below. */
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

static void number_zero_is_never_stored(void) {
  net t = net_new(NULL);
  register_three(&t);
  CHECK(net_discover(&t, C, 0) == 1);
  CHECK(net_relay(&t, A, 100, 0) == 0 && net_stats(&t).not_found == 1);
  CHECK(net_relay(&t, C, 0, 100) == 0 && net_punch(&t, C, 0, 100) == 0);
  uint32_t ids[8];
  CHECK(pl_relay_nodes(t.r, ids, NULL, 8) == 3 && net_stats(&t).nodes == 3);
  CHECK(pl_relay_vouch(t.r, 0, &(pl_addr){.family = 4}, t.now) == PL_EFORMAT);
  net_free(&t);
}

/* When gossip cannot name all, those that the registry vouches for are named. */
static void gossip_names_the_vouched_first(void) {
  net t = net_new(NULL);
  for (unsigned i = 1; i <= 20; i++) net_discover(&t, A, i);
  pl_addr at = addr(B);
  for (unsigned i = 30; i < 34; i++) CHECK(pl_relay_vouch(t.r, i, &at, t.now) == PL_OK && net_discover(&t, B, i) == 1);
  for (unsigned i = 40; i <= 60; i++) net_discover(&t, A, i);
  uint32_t ids[6];
  CHECK(pl_relay_nodes(t.r, ids, NULL, 6) == 6);
  for (unsigned i = 0; i < 4; i++) CHECK(ids[i] == 33 - i);
  CHECK(ids[4] == 60 && ids[5] == 59);
  net_free(&t);
}

static void nobody_speaks_for_another(void) {
  net t = net_new(NULL);
  register_three(&t);
  CHECK(net_relay(&t, C, 100, 200) == 0 && net_stats(&t).spoofed == 1);                  /* another host */
  CHECK(net_relay(&t, "203.0.113.10:40009", 100, 200) == 0 && net_stats(&t).spoofed == 2); /* another port of it */
  CHECK(net_relay(&t, V6, 100, 200) == 0 && net_stats(&t).spoofed == 3);
  /* In one batch the right sender and a forger: only his pass. */
  uint8_t p[10];
  head(p, 0x05, 100, 200);
  p[9] = 1;
  pl_addr a = addr(A), c = addr(C);
  net_clear(&t);
  net_add(&t, &a, p, sizeof p, 0);
  net_add(&t, &c, p, sizeof p, 0);
  net_add(&t, &a, p, sizeof p, 0);
  CHECK(net_run(&t) == 2 && net_stats(&t).spoofed == 4);
  net_free(&t);
}

static void a_fresh_binding_cannot_be_taken_over(void) {
  net t = net_new(NULL);
  register_three(&t);
  pl_addr at;
  CHECK(net_discover(&t, C, 100) == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43")); /* the question is answered all the same */
  CHECK(pl_relay_lookup(t.r, 100, &at) && pl_addr_eq(&at, &(pl_addr){.family = 4, .port = 40001, .ip = {203, 0, 113, 10}}));
  CHECK(net_punch(&t, C, 100, 200) == 0);
  CHECK(net_stats(&t).spoofed == 2);
  CHECK(net_relay(&t, B, 200, 100) == 1 && is_hex(&t.out[0], A, "06000000c850494c53"));

  /* Two missed keep-alives of 60 s, and it is free. */
  t.now += 129 * PL_NS_PER_S;
  net_discover(&t, C, 100);
  net_discover(&t, B, 200);
  CHECK(net_relay(&t, B, 200, 100) == 1 && is_hex(&t.out[0], A, "06000000c850494c53"));
  t.now += 2 * PL_NS_PER_S;
  net_discover(&t, C, 100);
  CHECK(net_relay(&t, B, 200, 100) == 1 && is_hex(&t.out[0], C, "06000000c850494c53"));
  net_free(&t);
}

static void a_nat_may_change_ports_at_once(void) {
  net t = net_new(NULL);
  register_three(&t);
  net_discover(&t, "203.0.113.10:50000", 100);
  CHECK(net_relay(&t, B, 200, 100) == 1 && t.out[0].to.port == 50000);
  net_punch(&t, "203.0.113.10:50001", 100, 200);
  CHECK(t.n_out == 2 && net_relay(&t, B, 200, 100) == 1 && t.out[0].to.port == 50001);
  net_discover(&t, "[2001:db8::99]:7", 300); /* the same /64: temporary addresses */
  CHECK(net_relay(&t, B, 200, 300) == 1 && t.out[0].to.port == 7);
  net_discover(&t, "[2001:db8:1::99]:8", 300);
  CHECK(net_relay(&t, B, 200, 300) == 1 && t.out[0].to.port == 7);
  net_free(&t);
}

static void the_registry_is_believed(void) {
  net t = net_new(NULL);
  register_three(&t);
  pl_addr c = addr("203.0.113.30:1"), none = {0};
  CHECK(pl_relay_vouch(t.r, 100, &c, t.now) == PL_OK);
  CHECK(net_stats(&t).nodes == 3);
  net_discover(&t, C, 100);
  CHECK(net_relay(&t, B, 200, 100) == 1 && is_hex(&t.out[0], C, "06000000c850494c53"));
  net_discover(&t, A, 100); /* the former address is now a stranger's */
  CHECK(net_relay(&t, B, 200, 100) == 1 && is_hex(&t.out[0], C, "06000000c850494c53"));
  CHECK(pl_relay_vouch(t.r, 100, &none, t.now) == PL_OK && pl_relay_vouch(t.r, 4711, &none, t.now) == PL_OK);
  net_discover(&t, A, 100);
  CHECK(net_relay(&t, B, 200, 100) == 1 && t.out[0].to.port == 40003); /* word taken back, binding still fresh */
  CHECK(net_punch(&t, "203.0.113.77:1", 777, 200) == 0);
  pl_addr d = addr("203.0.113.78:0");
  CHECK(pl_relay_vouch(t.r, 778, &d, t.now) == PL_OK);
  CHECK(net_punch(&t, "203.0.113.78:1", 778, 200) == 2); /* vouched for: no first contact */
  net_free(&t);
}

static void a_full_table_still_answers(void) {
  pl_relay_cfg cfg = usual();
  cfg.max_nodes = 2;
  net t = net_new(&cfg);
  net_discover(&t, A, 100);
  net_discover(&t, B, 200);
  CHECK(net_discover(&t, C, 400) == 1 && is_hex(&t.out[0], C, "0204cb00711e9c43"));
  CHECK(net_stats(&t).nodes == 2 && net_stats(&t).limited == 1 && net_relay(&t, A, 100, 400) == 0);
  pl_addr v = addr("203.0.113.50:0");
  CHECK(pl_relay_vouch(t.r, 500, &v, t.now) == PL_OK); /* a registered node takes the place of the oldest unknown one */
  net_discover(&t, "203.0.113.50:5", 500);
  CHECK(net_stats(&t).nodes == 2 && net_relay(&t, B, 200, 500) == 1 && net_relay(&t, A, 100, 200) == 0);
  CHECK(pl_relay_vouch(t.r, 501, &v, t.now) == PL_OK && pl_relay_vouch(t.r, 502, &v, t.now) == PL_ELIMIT);
  t.now += 131 * PL_NS_PER_S; /* the silent give way to anybody */
  net_discover(&t, C, 400);
  CHECK(net_stats(&t).nodes == 2 && pl_relay_lookup(t.r, 400, &v) && !pl_relay_lookup(t.r, 200, &v));
  net_free(&t);
}

static void one_address_holds_no_more_ids_than_its_share(void) {
  pl_relay_cfg cfg = usual();
  cfg.max_nodes_per_ip = 10;
  net t = net_new(&cfg);
  pl_addr a = addr(A), where;
  for (uint32_t i = 1; i <= 50; i++) CHECK(net_discover(&t, A, i) == 1); /* answered all the same */
  CHECK(net_stats(&t).nodes == 10 && net_stats(&t).limited == 40);
  CHECK(pl_relay_lookup(t.r, 10, &where) && !pl_relay_lookup(t.r, 11, &where));
  for (uint32_t i = 1; i <= 10; i++) net_discover(&t, "203.0.113.10:5", i); /* a NAT may change ports */
  CHECK(net_stats(&t).limited == 40);
  CHECK(net_discover(&t, B, 11) == 1 && net_stats(&t).nodes == 11); /* others have their own share */
  pl_relay_vouch(t.r, 60, &a, t.now); /* whom the registry knows there does not count */
  net_discover(&t, A, 60);
  CHECK(pl_relay_lookup(t.r, 60, &where) && net_stats(&t).nodes == 12);
  pl_relay_vouch(t.r, 1, &a, t.now);
  net_discover(&t, A, 1); /* vouched for by now: its place is free */
  net_discover(&t, A, 61);
  net_discover(&t, A, 62);
  CHECK(pl_relay_lookup(t.r, 61, &where) && !pl_relay_lookup(t.r, 62, &where));
  for (uint32_t i = 100; i < 150; i++) {
    char text[64];
    snprintf(text, sizeof text, "[2001:db8:0:%x::1]:9", (unsigned)i); /* networks of one /48 */
    net_discover(&t, text, i);
  }
  CHECK(net_stats(&t).nodes == 13 + 10);
  t.now += 601 * PL_NS_PER_S; /* all silent: all places are free */
  pl_relay_expire(t.r, t.now);
  CHECK(net_stats(&t).nodes == 0);
  for (uint32_t i = 200; i < 250; i++) net_discover(&t, A, i);
  CHECK(net_stats(&t).nodes == 10);
  net_free(&t);
}

static void silent_nodes_are_forgotten(void) {
  net t = net_new(NULL);
  register_three(&t);
  t.now += 400 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  uint32_t ids[4];
  CHECK(pl_relay_nodes(t.r, ids, NULL, 4) == 1 && ids[0] == 100); /* gossip names only those heard lately */
  CHECK(net_relay(&t, A, 100, 200) == 1);                   /* still there: the registry may be restarting */
  t.now += 201 * PL_NS_PER_S;
  pl_relay_expire(t.r, t.now);
  CHECK(net_stats(&t).nodes == 1 && net_relay(&t, A, 100, 200) == 0 && net_relay(&t, A, 100, 100) == 1);
  net_free(&t);

  pl_relay_cfg cfg = usual();
  cfg.node_ttl_ns = 1; /* daemons speak every 60 s at most: a shorter memory than 180 s would lose them */
  t = net_new(&cfg);
  net_discover(&t, A, 100);
  t.now += 179 * PL_NS_PER_S;
  pl_relay_expire(t.r, t.now);
  CHECK(net_stats(&t).nodes == 1);
  t.now += 1 * PL_NS_PER_S;
  pl_relay_expire(t.r, t.now);
  CHECK(net_stats(&t).nodes == 0);
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

/* ---- peer beacons ---- */

#define PEER "203.0.113.40:9011"
#define PEER2 "203.0.113.41:9011"

static void gossip_routes(void) {
  net t = net_new(NULL);
  register_three(&t);
  pl_addr peers[2] = {addr(PEER), addr(PEER2)};
  pl_relay_set_peers(t.r, peers, 2);
  CHECK(net_hex(&t, PEER, "070000004d0003000013890000138a000000c8") == 0 && net_stats(&t).sync == 1);
  CHECK(net_hex(&t, A, "050000006400001389" DEMO) == 1 && is_hex(&t.out[0], PEER, "050000006400001389" DEMO));
  CHECK(net_relay(&t, A, 100, 200) == 1 && t.out[0].to.port == 40002); /* the local entry wins */
  CHECK(net_hex(&t, PEER, "070000004d00010000138a") == 0);              /* replaces the list */
  CHECK(net_relay(&t, A, 100, 5001) == 0 && net_relay(&t, A, 100, 5002) == 1);
  CHECK(net_hex(&t, PEER, "070000004d000300001771") == 0); /* truncated: ignored whole */
  CHECK(net_relay(&t, A, 100, 6001) == 0 && net_relay(&t, A, 100, 5002) == 1);
  CHECK(net_hex(&t, PEER, "070000004d00010000138aaabb") == 0); /* bytes behind the list */
  CHECK(net_stats(&t).routes == 1 && net_relay(&t, A, 100, 5002) == 1);
  CHECK(net_hex(&t, PEER, "070000004d0000") == 0); /* empty: withdraws */
  CHECK(net_stats(&t).routes == 0 && net_relay(&t, A, 100, 5002) == 0);
  uint64_t spoofed = net_stats(&t).spoofed;
  CHECK(net_hex(&t, C, "070000004d000100001b59") == 0); /* a stranger */
  CHECK(net_hex(&t, "203.0.113.40:9012", "070000004d000100001b59") == 0);
  CHECK(net_stats(&t).spoofed == spoofed + 2 && net_relay(&t, A, 100, 7001) == 0);

  uint32_t ids[3] = {5001, 0, 5001}; /* zero and doubles */
  net_sync(&t, PEER, ids, 3);
  net_sync(&t, PEER2, ids, 1); /* it moved: heard last wins */
  CHECK(net_stats(&t).routes == 1 && net_relay(&t, A, 100, 5001) == 1 && is_hex(&t.out[0], PEER2, "05000000640000138950494c53"));
  CHECK(net_relay(&t, A, 100, 0) == 0);
  net_sync(&t, PEER, ids, 0); /* the former owner's withdrawal does not hurt the new route */
  CHECK(net_relay(&t, A, 100, 5001) == 1);

  pl_relay_set_peers(t.r, peers + 1, 1); /* routes of a peer that stays are kept */
  CHECK(net_relay(&t, A, 100, 5001) == 1);
  t.now += 91 * PL_NS_PER_S; /* a peer that went silent loses them */
  net_discover(&t, A, 100);
  pl_relay_expire(t.r, t.now);
  CHECK(net_stats(&t).routes == 0 && net_relay(&t, A, 100, 5001) == 0);
  net_sync(&t, PEER2, ids, 1);
  pl_relay_set_peers(t.r, NULL, 0);
  CHECK(net_stats(&t).routes == 0 && net_relay(&t, A, 100, 5001) == 0);
  net_free(&t);
}

static void what_came_from_a_beacon_goes_to_a_node_or_nowhere(void) {
  net t = net_new(NULL);
  register_three(&t);
  pl_addr peers[2] = {addr(PEER), addr(PEER2)};
  pl_relay_set_peers(t.r, peers, 2);
  uint32_t remote = 5001;
  net_sync(&t, PEER2, &remote, 1);
  CHECK(net_relay(&t, PEER, 8888, 200) == 1 && is_hex(&t.out[0], B, "06000022b850494c53")); /* its sender is the peer's to check */
  CHECK(net_relay(&t, PEER, 8888, 5001) == 0 && net_stats(&t).not_found == 1);
  CHECK(net_stats(&t).forwarded == 0);
  net_free(&t);
}

static void two_beacons_that_both_point_at_each_other(void) {
  net x = net_new(NULL), y = net_new(NULL);
  pl_addr ax = addr("203.0.113.1:9001"), ay = addr("203.0.113.2:9001");
  pl_relay_set_peers(x.r, &ay, 1);
  pl_relay_set_peers(y.r, &ax, 1);
  uint32_t ghost = 5001;
  net_sync(&x, "203.0.113.2:9001", &ghost, 1);
  net_sync(&y, "203.0.113.1:9001", &ghost, 1);
  net_discover(&x, A, 100);
  CHECK(net_relay(&x, A, 100, ghost) == 1 && pl_addr_eq(&x.out[0].to, &ay));
  CHECK(net_send(&y, "203.0.113.1:9001", x.out[0].p, x.out[0].len) == 0); /* ends here */
  net_free(&x);
  net_free(&y);
}

static void a_node_that_moved_to_another_beacon(void) {
  net t = net_new(NULL);
  register_three(&t);
  pl_addr peer = addr(PEER);
  pl_relay_set_peers(t.r, &peer, 1);
  uint32_t moved = 200;
  net_sync(&t, PEER, &moved, 1);
  CHECK(net_relay(&t, A, 100, 200) == 1 && t.out[0].p[0] == 0x06);
  t.now += 131 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  net_sync(&t, PEER, &moved, 1);
  CHECK(net_relay(&t, A, 100, 200) == 1 && t.out[0].p[0] == 0x05 && pl_addr_eq(&t.out[0].to, &peer));
  CHECK(net_relay(&t, PEER, 1, 200) == 1 && t.out[0].p[0] == 0x06); /* from the beacon it can only be meant for our own entry */
  net_free(&t);
}

static void more_peers_and_routes_than_fit(void) {
  pl_relay_cfg cfg = usual();
  cfg.max_nodes = 3;
  net t = net_new(&cfg);
  static pl_addr peers[PL_RELAY_PEERS + 20];
  for (unsigned i = 0; i < PL_RELAY_PEERS + 20; i++) peers[i] = (pl_addr){.family = 4, .port = (uint16_t)(1000 + i), .ip = {203, 0, 113, 9}};
  pl_relay_set_peers(t.r, peers, PL_RELAY_PEERS + 20);
  uint32_t ids[5] = {1, 2, 3, 4, 5};
  net_sync(&t, "203.0.113.9:1000", ids, 5);
  CHECK(net_stats(&t).routes == 3 && net_stats(&t).limited == 2);
  net_sync(&t, "203.0.113.9:1270", ids, 5); /* beyond the limit: a stranger */
  CHECK(net_stats(&t).spoofed == 1);
  net_free(&t);
}

/* ---- anything ---- */

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
  recorded_datagrams();
  pace_follows_the_population();
  big_payloads_pass_uncopied();
  replies_leave_from_the_address_that_was_asked();
  number_zero_is_never_stored();
  gossip_names_the_vouched_first();
  nobody_speaks_for_another();
  a_fresh_binding_cannot_be_taken_over();
  a_nat_may_change_ports_at_once();
  the_registry_is_believed();
  a_full_table_still_answers();
  one_address_holds_no_more_ids_than_its_share();
  silent_nodes_are_forgotten();
  punching_introduces_only_the_known_and_has_a_rate();
  trains_stay_whole_and_in_order();
  a_move_inside_a_batch_splits_the_train();
  a_node_evicted_inside_a_train();
  deliveries_name_the_destination_when_asked();
  a_budget_limits_one_sender_only();
  gossip_routes();
  what_came_from_a_beacon_goes_to_a_node_or_nowhere();
  two_beacons_that_both_point_at_each_other();
  a_node_that_moved_to_another_beacon();
  more_peers_and_routes_than_fit();
  random_input_does_no_harm();
  more_datagrams_than_a_batch_holds();
  puts("ok");
  return 0;
}
