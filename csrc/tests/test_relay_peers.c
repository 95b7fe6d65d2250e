/* Peer beacons: what their gossip says, and which way a datagram goes then. */
#include "relay_net.h"
#include "wire.h"

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

int main(void) {
  gossip_routes();
  what_came_from_a_beacon_goes_to_a_node_or_nowhere();
  two_beacons_that_both_point_at_each_other();
  a_node_that_moved_to_another_beacon();
  more_peers_and_routes_than_fit();
  puts("ok");
  return 0;
}
