/* Who is where: forged senders, moves, the registry's word, full tables, silence. */
#include "relay_net.h"
#include "wire.h"

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

int main(void) {
  number_zero_is_never_stored();
  gossip_names_the_vouched_first();
  nobody_speaks_for_another();
  a_fresh_binding_cannot_be_taken_over();
  a_nat_may_change_ports_at_once();
  the_registry_is_believed();
  a_full_table_still_answers();
  one_address_holds_no_more_ids_than_its_share();
  silent_nodes_are_forgotten();
  puts("ok");
  return 0;
}
