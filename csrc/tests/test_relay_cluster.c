/* What our beacons do beyond the published ones: NAT probes, introductions across two beacons, a restart that flows survive. */
#include "relay_net.h"
#include "wire.h"

#define PEER "198.51.100.7:9001"

static void probe(net *t, const char *from, size_t len, uint8_t nonce, uint8_t reserved) {
  uint8_t p[PL_PROBE_SIZE + 60] = {PL_BEACON_PROBE, reserved};
  memset(p + 2, nonce, 8);
  net_send(t, from, p, len);
}

static bool is_answer(const pl_relay_reply *a, enum pl_relay_socket socket, const char *to, const char *from, const char *hex) {
  sent s = {.to = a->to, .p = a->data, .len = a->len};
  pl_addr f = addr(from);
  return a->socket == socket && a->from.family == f.family && memcmp(a->from.ip, f.ip, 16) == 0 && is_hex(&s, to, hex);
}

static void probes_are_answered_from_all_sides(void) {
  net t = net_new(NULL);
  pl_addr alt = addr("203.0.113.2:7001");
  const pl_relay_reply *a;
  probe(&t, A, PL_PROBE_SIZE, 0xab, 0);
  CHECK(pl_relay_replies(t.r, &a) == 0 && net_stats(&t).bad == 1); /* nobody observes: not our job */
  pl_relay_set_probe(t.r, 7000, &alt);
  probe(&t, A, PL_PROBE_SIZE, 0xab, 0);
  CHECK(t.n_out == 0 && pl_relay_replies(t.r, &a) == 3);
#define ANSWER(what) "0c" what "abababababababab" "04cb00710a9c41" "1b58" "04cb0071021b59"
  CHECK(is_answer(&a[0], PL_SOCK_QUIET, A, "203.0.113.1:0", ANSWER("01")));
  CHECK(is_answer(&a[1], PL_SOCK_QUIET_ALT, A, "203.0.113.2:0", ANSWER("02")));
  CHECK(is_answer(&a[2], PL_SOCK_MAIN, A, "203.0.113.1:0", ANSWER("00")));
  size_t bytes = 3 * 28;
  for (int i = 0; i < 3; i++) bytes += a[i].len;
  CHECK(bytes <= PL_PROBE_SIZE + 28);

  /* An address of the other family is no help: no third answer, none is named. */
  probe(&t, V6, PL_PROBE_SIZE + 60, 1, 0);
  CHECK(pl_relay_replies(t.r, &a) == 2 && a[1].socket == PL_SOCK_MAIN);
  sent s = {.to = a[1].to, .p = a[1].data, .len = a[1].len};
  CHECK(is_hex(&s, V6, "0c00" "0101010101010101" "1020010db80000000000000000000000109c46" "1b58" "00"));

  alt = addr("[2001:db8::2]:7001");
  pl_relay_set_probe(t.r, 7000, &alt);
  t.local = addr("[2001:db8::1]:9001");
  probe(&t, V6, PL_PROBE_SIZE, 1, 0);
  CHECK(pl_relay_replies(t.r, &a) == 3 && a[0].len == PL_PROBE_REPLY_MAX);
  CHECK(3 * (PL_PROBE_REPLY_MAX + 48) <= PL_PROBE_SIZE + 48);
  net_free(&t);
}

static void an_observer_answers_alone(void) {
  net t = net_new(NULL);
  pl_addr alt = addr("203.0.113.2:7001"), from = addr(B);
  pl_relay_set_probe(t.r, 7000, &alt);
  uint8_t p[PL_PROBE_SIZE] = {PL_BEACON_PROBE};
  memset(p + 2, 7, 8);
  t.local = addr("203.0.113.2:7001");
  net_add(&t, &from, p, sizeof p, 0);
  net_add(&t, &from, "\x01\0\0\0\x05", 5, 0); /* registers nobody here */
  const pl_relay_reply *a;
  pl_relay_observe(t.r, PL_SOCK_OBSERVER_ALT, t.rx, t.n_rx, t.now);
  CHECK(pl_relay_replies(t.r, &a) == 1 && net_stats(&t).bad == 1 && net_stats(&t).nodes == 0);
  CHECK(is_answer(&a[0], PL_SOCK_OBSERVER_ALT, B, "203.0.113.2:0", "0c00" "0707070707070707" "04cb0071149c42" "1b58" "00"));
  CHECK(net_discover(&t, A, 100) == 1 && pl_relay_replies(t.r, &a) == 0);
  net_free(&t);
}

static void small_odd_and_many_probes_get_nothing(void) {
  net t = net_new(NULL);
  pl_relay_set_probe(t.r, 7000, &(pl_addr){.family = 0});
  const pl_relay_reply *a;
  for (size_t len = 1; len < PL_PROBE_SIZE; len += 17) {
    probe(&t, A, len, 1, 0);
    CHECK(pl_relay_replies(t.r, &a) == 0);
  }
  probe(&t, A, PL_PROBE_SIZE, 1, 1); /* another version */
  CHECK(pl_relay_replies(t.r, &a) == 0 && net_stats(&t).probes == 0);
  unsigned answered = 0;
  for (int i = 0; i < 100; i++) {
    probe(&t, i % 2 ? A : "203.0.113.10:5", PL_PROBE_SIZE, 1, 0); /* one host, whatever the port */
    answered += pl_relay_replies(t.r, &a) > 0;
  }
  CHECK(answered == 40 && net_stats(&t).limited == 60);
  probe(&t, B, PL_PROBE_SIZE, 1, 0);
  CHECK(pl_relay_replies(t.r, &a) == 2); /* others are not concerned */
  t.now += PL_NS_PER_S;
  probe(&t, A, PL_PROBE_SIZE, 1, 0);
  CHECK(pl_relay_replies(t.r, &a) == 2);
  net_free(&t);
}

static void cross_beacon_punch(void) {
  net x = net_new(NULL), y = net_new(NULL);
  const char *xa = "198.51.100.1:9001", *ya = "198.51.100.2:9001";
  x.local = addr(xa);
  y.local = addr(ya);
  pl_addr ax = addr(xa), ay = addr(ya);
  pl_relay_set_peers(x.r, &ay, 1);
  pl_relay_set_peers(y.r, &ax, 1);
  net_discover(&x, A, 100);
  net_discover(&y, B, 200);
  uint32_t at_y = 200, at_x = 100;
  net_sync(&x, ya, &at_y, 1);
  net_sync(&y, xa, &at_x, 1);

  uint8_t p[64];
  CHECK(net_punch(&x, A, 100, 200) == 1 && is_hex(&x.out[0], ya, "0d00" "00000064" "000000c8" "04cb00710a9c41"));
  size_t len = x.out[0].len;
  memcpy(p, x.out[0].p, len);
  CHECK(net_send(&y, xa, p, len) == 2);
  CHECK(is_hex(&y.out[0], xa, "0d01" "00000064" "000000c8" "04cb0071149c42"));
  CHECK(is_hex(&y.out[1], B, "0404cb00710a9c41") && pl_addr_eq(&y.out[1].from, &y.local)); /* from its own beacon */
  len = y.out[0].len;
  memcpy(p, y.out[0].p, len);
  CHECK(net_send(&x, ya, p, len) == 1 && is_hex(&x.out[0], A, "0404cb0071149c42") && pl_addr_eq(&x.out[0].from, &x.local));
  CHECK(net_stats(&x).introduced == 1 && net_stats(&y).introduced == 1);

  /* Nobody but a peer may ask; who is not there is not introduced; a stranger at first contact is not either. */
  CHECK(net_hex(&y, C, "0d00" "00000064" "000000c8" "04cb00710a9c41") == 0 && net_stats(&y).spoofed == 1);
  CHECK(net_hex(&y, xa, "0d00" "00000064" "000000c9" "04cb00710a9c41") == 0 && net_stats(&y).not_found == 1);
  CHECK(net_punch(&x, C, 101, 200) == 0 && net_stats(&x).not_found == 1);
  static const char *const bad[] = {"0d", "0d00", "0d000000006400000", "0d0000000064000000c8", "0d0000000064000000c804cb00710a9c",
                                    "0d0200000064000000c804cb00710a9c41", "0d0000000064000000c805cb00710a9c4100"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    char even[64];
    snprintf(even, sizeof even, "%s", bad[i]);
    if (strlen(even) % 2) even[strlen(even) - 1] = 0;
    CHECK(net_hex(&y, xa, even) == 0);
  }
  CHECK(net_stats(&y).bad == sizeof bad / sizeof *bad);
  unsigned asked = 0;
  for (int i = 0; i < 100; i++) asked += net_punch(&x, A, 100, 200);
  CHECK(asked == 9); /* one of the burst of ten is gone */
  net_free(&x);
  net_free(&y);
}

static void a_relayed_flow_survives_a_restart(void) {
  net t = net_new(NULL);
  net_discover(&t, A, 100);
  net_discover(&t, B, 200);
  net_free(&t);
  t = net_new(NULL); /* an empty table */
  CHECK(net_relay(&t, A, 100, 200) == 0 && net_stats(&t).not_found == 1);
  CHECK(net_relay(&t, B, 200, 100) == 1 && is_hex(&t.out[0], A, "06000000c850494c53"));
  CHECK(net_relay(&t, A, 100, 200) == 1 && is_hex(&t.out[0], B, "060000006450494c53"));
  /* What is held stays held. */
  CHECK(net_relay(&t, C, 100, 200) == 0 && net_stats(&t).spoofed == 1);
  CHECK(net_relay(&t, C, 0, 200) == 0 && net_stats(&t).spoofed == 2 && net_stats(&t).nodes == 2);
  net_free(&t);
}

static void news(void) {
  net t = net_new(NULL);
  pl_addr peer = addr(PEER);
  pl_relay_set_peers(t.r, &peer, 1);
  CHECK(!pl_relay_take_news(t.r));
  net_discover(&t, A, 100);
  CHECK(pl_relay_take_news(t.r) && !pl_relay_take_news(t.r));
  net_discover(&t, A, 100); /* a keep-alive is none */
  net_discover(&t, C, 0);
  CHECK(!pl_relay_take_news(t.r));
  net_relay(&t, B, 200, 100);
  CHECK(pl_relay_take_news(t.r));
  t.now += 140 * PL_NS_PER_S; /* it had been silent, and was left out of the gossip */
  net_discover(&t, A, 100);
  CHECK(pl_relay_take_news(t.r));

  net_hex(&t, PEER, "07000000010001000003e7"); /* a published beacon */
  net_hex(&t, PEER, "07000000010001000003e7505801");
  net_hex(&t, PEER, "07000000010001000003e750580100");
  net_hex(&t, PEER, "07000000010001000003e750580201");
  net_hex(&t, C, "07000000010001000003e750580101"); /* a stranger */
  CHECK(!pl_relay_take_news(t.r));
  net_hex(&t, PEER, "07000000010001000003e750580101");
  CHECK(pl_relay_take_news(t.r) && net_stats(&t).routes == 1 && net_stats(&t).sync == 5);
  net_free(&t);
}

/* One node in a list of the peer. `age`: its byte in the trailer, -1 = a beacon that tells none. */
static void claims(net *t, const char *peer, uint32_t node, int age) {
  uint8_t p[16] = {0x07, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0, 'P', 'X', 1, PL_SYNC_AGES, (uint8_t)age};
  pl_put32(p + 7, node);
  CHECK(net_send(t, peer, p, age < 0 ? 11 : 16) == 0);
}

#define PEER2 "198.51.100.8:9001"
static bool goes_to(net *t, const char *to) {
  pl_addr a = addr(to);
  return net_relay(t, A, 100, 200) == 1 && pl_addr_eq(&t->out[0].to, &a);
}

static net claimed_net(void) {
  net t = net_new(NULL);
  pl_addr peers[2] = {addr(PEER), addr(PEER2)};
  pl_relay_set_peers(t.r, peers, 2);
  net_discover(&t, A, 100);
  net_discover(&t, B, 200);
  t.now += 3 * PL_NS_PER_S;
  return t;
}

static void a_stream_elsewhere_wins_over_udp_here(void) {
  net t = claimed_net();
  claims(&t, PEER, 200, 0); /* heard there by UDP too: the way with one beacon stays */
  CHECK(goes_to(&t, B));
  claims(&t, PEER, 200, PL_AGE_STREAM);
  CHECK(goes_to(&t, PEER));
  net_discover(&t, B, 200); /* anybody can send that */
  CHECK(goes_to(&t, PEER));
  uint8_t back[13] = {5, 0, 0, 0, 100, 0, 0, 0, 200, 'P', 'I', 'L', 'S'};
  CHECK(net_send(&t, PEER, back, sizeof back) == 1 && t.out[0].to.port == 40002); /* what a peer forwards ends here */
  CHECK(net_punch(&t, A, 100, 200) == 1 && t.out[0].p[0] == 0x0d);

  t.now += 10 * PL_NS_PER_S;
  CHECK(goes_to(&t, PEER));
  t.now += 16 * PL_NS_PER_S; /* the peer is gone, and with it the stream; the node was heard here meanwhile */
  net_discover(&t, B, 200);
  CHECK(goes_to(&t, B));
  claims(&t, PEER, 200, PL_AGE_STREAM | 26);
  CHECK(goes_to(&t, PEER));
  net_sync(&t, PEER, NULL, 0); /* the stream ended */
  CHECK(goes_to(&t, B));
  net_free(&t);
}

static void the_youngest_stream_wins(void) {
  net t = claimed_net();
  CHECK(pl_relay_attach(t.r, 200, t.now) == PL_OK && pl_relay_take_news(t.r));
  uint32_t ids[4];
  uint8_t ages[4];
  t.now += 60 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  CHECK(pl_relay_nodes(t.r, ids, ages, 4) == 2);
  CHECK(ids[0] == 200 && ages[0] == (PL_AGE_STREAM | 60) && ids[1] == 100 && ages[1] == 0);
  claims(&t, PEER, 200, 0);
  CHECK(net_relay(&t, A, 100, 200) == 0 && pl_relay_waiting(t.r)); /* UDP there is no better */
  claims(&t, PEER, 200, PL_AGE_STREAM | 100);
  CHECK(net_relay(&t, A, 100, 200) == 0);
  claims(&t, PEER, 200, PL_AGE_STREAM | 5); /* the one here is dead, we have not noticed */
  CHECK(goes_to(&t, PEER));
  claims(&t, PEER2, 200, PL_AGE_STREAM | 1);
  CHECK(goes_to(&t, PEER2));
  CHECK(pl_relay_attach(t.r, 200, t.now) == PL_OK); /* anew */
  CHECK(net_relay(&t, A, 100, 200) == 0);
  t.now += 200 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  CHECK(pl_relay_attach(t.r, 300, t.now) == PL_OK);
  pl_relay_take_news(t.r);
  pl_relay_detach(t.r, 300);
  CHECK(pl_relay_take_news(t.r));
  net_free(&t);
}

static void of_several_beacons_the_one_that_heard_it_last(void) {
  net t = claimed_net();
  t.now += 40 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  claims(&t, PEER, 200, 30); /* 13 s after us: it asks both */
  CHECK(goes_to(&t, B));
  claims(&t, PEER, 200, 3);
  CHECK(goes_to(&t, PEER));
  claims(&t, PEER2, 200, 0); /* both hear it: no change of ways */
  CHECK(goes_to(&t, PEER) && net_stats(&t).routes == 1);
  claims(&t, PEER, 200, 27);
  claims(&t, PEER2, 200, 0);
  CHECK(goes_to(&t, PEER2));
  net_sync(&t, PEER2, NULL, 0); /* the second claim takes its place at once */
  CHECK(goes_to(&t, B));        /* which is 16 s better than ours only */
  claims(&t, PEER, 200, PL_AGE_STREAM);
  claims(&t, PEER2, 200, 0);
  CHECK(goes_to(&t, PEER));
  pl_relay_set_peers(t.r, NULL, 0);
  CHECK(goes_to(&t, B) && net_stats(&t).routes == 0);
  net_free(&t);
}

static void lists_without_ages(void) {
  net t = claimed_net();
  t.now += 100 * PL_NS_PER_S;
  net_discover(&t, A, 100);
  claims(&t, PEER, 200, -1);
  CHECK(goes_to(&t, B));
  claims(&t, PEER2, 200, 10); /* one that knows better */
  CHECK(goes_to(&t, PEER2));
  claims(&t, PEER, 200, -1);
  CHECK(goes_to(&t, PEER2));
  net_sync(&t, PEER2, NULL, 0);
  CHECK(goes_to(&t, B));
  t.now += 28 * PL_NS_PER_S; /* ours is too old to count */
  net_discover(&t, A, 100);
  CHECK(goes_to(&t, PEER));
  net_free(&t);
}

int main(void) {
  a_stream_elsewhere_wins_over_udp_here();
  the_youngest_stream_wins();
  of_several_beacons_the_one_that_heard_it_last();
  lists_without_ages();
  probes_are_answered_from_all_sides();
  an_observer_answers_alone();
  small_odd_and_many_probes_get_nothing();
  cross_beacon_punch();
  a_relayed_flow_survives_a_restart();
  news();
  puts("ok");
  return 0;
}
