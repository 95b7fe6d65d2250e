/* Peers of the engine: pings, paths, restarts, rest. */
#include "engine_internal.h"
#include "engine_pair.h"

/* Pings are answered, answers are not; probes measure, over the path asked about. */
static void pings(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  CHECK(pl_engine_probe(p.n[0].e, p.n[1].node, &p.n[1].addr, false, 77, p.now) == PL_OK);
  CHECK(pl_engine_probe(p.n[0].e, p.n[1].node, &p.beacon, true, 78, p.now) == PL_OK);
  CHECK(pl_engine_probe(p.n[0].e, 4711, &p.beacon, true, 78, p.now) == PL_ENOENT);
  pair_run(&p, 50 * MS);
  CHECK(pair_count(&p, 0, PL_EV_PONG) == 2 && pair_last(&p, 0, PL_EV_PONG)->b + 1 >= 10 * MS && pair_last(&p, 0, PL_EV_PONG)->b < 25 * MS);
  CHECK(pair_count(&p, 1, PL_EV_PATH_SEEN) == 1 && pair_last(&p, 1, PL_EV_PATH_SEEN)->relayed); /* the beacon is not its active path */
  uint64_t sent = pair_stats(&p, 1).pkts_sent, n = 1;
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 0, 0);
  ping.payload = (const uint8_t *)"pathprobe.v1";
  ping.len = 12;
  pair_inject(&p, 1, 7, n++, ping);
  CHECK(pair_stats(&p, 1).pkts_sent == sent + 1);
  ping.flags = PL_FLAG_ACK;
  pair_inject(&p, 1, 7, n++, ping);
  pl_packet keepalive = {.proto = PL_PROTO_CONTROL, .src_node = p.n[0].node};
  pair_inject(&p, 1, 7, n++, keepalive);
  ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 5, 6); /* no such service */
  pair_inject(&p, 1, 7, n++, ping);
  CHECK(pair_stats(&p, 1).pkts_sent == sent + 1);
  pl_packet pong = pair_packet(&p, 0, PL_PROTO_CONTROL, PL_FLAG_ACK, 0, 0xfffe); /* guessed: no such probe is out */
  pair_inject(&p, 0, 7, 1, pong);
  CHECK(pair_count(&p, 0, PL_EV_PONG) == 2);
  pair_free(&p);
}

/* Beacon messages count only from the beacon; key exchange is rated before anybody has to look at it. */
static void outside(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  static const uint8_t punch[] = {0x04, 4, 203, 0, 113, 9, 0x9c, 0x40};
  pair_input(&p, 1, punch, sizeof punch, p.n[0].addr);
  pl_addr port = p.beacon, ip = p.beacon;
  port.port++;
  ip.ip[3]++;
  pair_input(&p, 1, punch, sizeof punch, port);
  pair_input(&p, 1, punch, sizeof punch, ip);
  CHECK(pair_count(&p, 1, PL_EV_BEACON) == 0 && pair_stats(&p, 1).drop_beacon_source == 3);
  pair_input(&p, 1, punch, sizeof punch, p.beacon);
  CHECK(pair_count(&p, 1, PL_EV_BEACON) == 1 && pair_last(&p, 1, PL_EV_BEACON)->len == sizeof punch);
  uint8_t pila[2 + 5 + 3000] = {0x06, 0, 0, 0xa0, 0x01, 'P', 'I', 'L', 'A'};
  pair_input(&p, 1, pila, sizeof pila, p.n[0].addr); /* relayed, but not by a beacon */
  CHECK(pair_count(&p, 1, PL_EV_FRAME) == 0);
  pair_input(&p, 1, pila, sizeof pila, p.beacon);
  const pl_event *ev = pair_last(&p, 1, PL_EV_FRAME);
  CHECK(ev->relayed && ev->node == 0xa001 && ev->len == 2048 && !memcmp(ev->data, "PILA", 4));
  pila[5] = 0x06; /* a relayed relay message */
  pair_input(&p, 1, pila, 40, p.beacon);
  pair_input(&p, 1, pila, 8, p.beacon);
  CHECK(pair_count(&p, 1, PL_EV_FRAME) == 1 && pair_stats(&p, 1).drop_unknown == 1 && pair_stats(&p, 1).drop_short == 1);
  for (unsigned i = 0; i < 300; i++) pair_input(&p, 1, "PILKxxxx", 8, pair_addr(66, 1));
  CHECK(pair_count(&p, 1, PL_EV_FRAME) == 101 && pair_stats(&p, 1).drop_limit == 200); /* one host's flood */
  pair_input(&p, 1, "PILP", 4, pair_addr(67, 1));
  CHECK(pair_count(&p, 1, PL_EV_FRAME) == 102 && pair_last(&p, 1, PL_EV_FRAME)->len == 4); /* another still gets through */
  CHECK(pl_engine_send_raw(p.n[1].e, &ip, punch, 0) == PL_EFORMAT && pl_engine_send_raw(p.n[1].e, &ip, punch, 8) == PL_OK);
  pair_run(&p, 10 * MS);
  CHECK(p.elsewhere == 1 && p.last_elsewhere->len == 8);
  pl_addr nowhere = {0};
  CHECK(pl_engine_set_path(p.n[1].e, p.n[0].node, &nowhere, false, p.now) == PL_EFORMAT && pl_engine_send_raw(p.n[1].e, &nowhere, punch, 8) == PL_EFORMAT);
  pair_free(&p);
}

static bool path_is(const pair *p, unsigned i, pl_addr a) {
  pl_peer_info info = pair_peer(p, i);
  return pl_addr_eq(&info.path, &a);
}

/* An authenticated frame from elsewhere is news, not an order: the path stays, and the news is rationed. */
static void paths(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  CHECK(pl_engine_install_key(p.n[1].e, p.n[0].node, p.key, 1, NULL, p.now) == PL_OK);
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  uint64_t n = 1;
  pair_inject(&p, 1, 7, n++, ping); /* nowhere to answer to yet: taken */
  pl_addr home = p.n[0].addr;
  CHECK(pair_peer(&p, 1).has_path && path_is(&p, 1, home) && pair_count(&p, 1, PL_EV_PATH_SEEN) == 1);
  for (unsigned i = 0; i < 600; i++) { /* from a different address each time */
    p.n[0].addr = pair_addr((uint8_t)(100 + i % 100), 5);
    pair_inject(&p, 1, 7, n++, ping);
  }
  CHECK(path_is(&p, 1, home));
  CHECK(pair_count(&p, 1, PL_EV_PATH_SEEN) <= 3);
  p.now += 2 * S;
  pair_inject(&p, 1, 7, n++, ping);
  CHECK(pair_count(&p, 1, PL_EV_PATH_SEEN) >= 2 && pl_addr_eq(&pair_last(&p, 1, PL_EV_PATH_SEEN)->addr, &p.n[0].addr));
  pair_free(&p);
}

/* A peer that replaces its key and is heard at another address instead of its path has restarted there: the first answer goes there.
 * Under the same key, or when it is heard on its path first, an address moves nothing. */
static void restarted_elsewhere(bool heard_first) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  pl_addr home = p.n[0].addr, away = pair_addr(77, 7);
  pair_inject(&p, 1, 7, 1, ping);
  CHECK(path_is(&p, 1, home));
  uint8_t old[32];
  memcpy(old, p.key, 32);
  p.key[5] ^= 0x55;
  CHECK(pl_engine_install_key(p.n[1].e, p.n[0].node, p.key, 2, NULL, p.now) == PL_OK);
  if (heard_first) pair_inject(&p, 1, 9, 1, ping);
  p.n[0].addr = away;
  pair_inject(&p, 1, 9, 2, ping);
  CHECK(path_is(&p, 1, heard_first ? home : away));
  CHECK(pair_last(&p, 1, PL_EV_PATH_SEEN)->a == !heard_first && pl_addr_eq(&pair_last(&p, 1, PL_EV_PATH_SEEN)->addr, &away));
  p.n[0].addr = pair_addr(78, 8); /* once for each key */
  pair_inject(&p, 1, 9, 3, ping);
  memcpy(p.key, old, 32);
  pair_inject(&p, 1, 7, 4, ping); /* a late frame under the old key */
  CHECK(path_is(&p, 1, heard_first ? home : away));
  p.n[0].addr = home;
  pair_free(&p);
}

static bool former_address(pair *p, const pair_gram *g) {
  return pl_addr_eq(&g->to, &p->n[0].addr) && pl_addr_eq(&g->from, &p->n[1].addr);
}

/* The same when it is heard through a beacon first: a dial of a restarted peer is answered there, not where nobody is any more. */
static void restarted_behind_a_relay(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  pl_engine *a = p.n[0].e, *b = p.n[1].e;
  CHECK(pl_engine_listen(b, 80, PL_OWNER_APP, 0, false) == PL_OK);
  pair_inject(&p, 1, 7, 1, pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0));
  p.key[5] ^= 0x55;
  CHECK(pl_engine_install_key(b, p.n[0].node, p.key, 2, NULL, p.now) == PL_OK);
  CHECK(pl_engine_drop_session(a, p.n[1].node) == PL_OK);
  CHECK(pl_engine_install_key(a, p.n[1].node, p.key, 2, NULL, p.now) == PL_OK);
  CHECK(pl_engine_set_path(a, p.n[1].node, &p.beacon, true, p.now) == PL_OK);
  p.drop = former_address;
  CHECK(pl_engine_dial(a, 0, 0, p.n[1].node, 80, 0, 20 * S, p.now) > 0);
  pair_run(&p, 100 * MS);
  CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 1 && path_is(&p, 1, p.beacon));
  CHECK(pair_last(&p, 1, PL_EV_PATH_SEEN)->a && pair_last(&p, 1, PL_EV_PATH_SEEN)->relayed);
  pair_free(&p);
}

/* Something goes to an active peer at least every 25 s, whenever it became active; a stranger is forgotten. */
static void keepalive(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  pair_inject(&p, 1, 7, 1, ping);
  pair_run(&p, 200 * S); /* idle and not trusted: after two minutes nothing more is said */
  uint64_t before = pair_stats(&p, 1).pkts_sent;
  pair_run(&p, 50 * S);
  CHECK(pair_stats(&p, 1).pkts_sent == before);
  CHECK(pl_engine_set_trusted(p.n[1].e, p.n[0].node, true) == PL_OK);
  pair_run(&p, 25 * S);
  CHECK(pair_stats(&p, 1).pkts_sent > before); /* at once a peer worth keeping */
  pair_run(&p, 100 * S);
  CHECK(pair_stats(&p, 1).pkts_sent >= before + 5 && p.now - pair_peer(&p, 1).last_send_ns <= 25 * S);
  pair_inject(&p, 1, 7, 2, ping);
  CHECK(pl_engine_set_trusted(p.n[1].e, p.n[0].node, false) == PL_OK);
  pair_run(&p, 200 * S);
  before = pair_stats(&p, 1).pkts_sent;
  CHECK(pl_engine_send_datagram(p.n[1].e, 0, 0, 0, p.n[0].node, 5, (const uint8_t *)"x", 1, p.now) == PL_OK);
  pair_run(&p, 60 * S); /* traffic makes it active again */
  CHECK(pair_stats(&p, 1).pkts_sent >= before + 3);
  pair_run(&p, 800 * S);
  CHECK(pair_stats(&p, 1).peers == 0 && pair_stats(&p, 1).sessions == 0);
  pair_free(&p);
}

static unsigned listed(pair *p, unsigned i, uint64_t since_ns) {
  size_t it = 0;
  unsigned n = 0;
  pl_peer_info info;
  while (pl_engine_next_peer(p->n[i].e, &it, since_ns, &info)) n++;
  return n;
}

/* Of a peer that rests one hears only when there is something to hear; a key that was long unused works as before. */
static void resting(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  for (unsigned i = 0; i < 2; i++) CHECK(pl_engine_set_trusted(p.n[i].e, p.n[!i].node, true) == PL_OK);
  CHECK(pl_engine_rest(p.n[0].e, 4711, PL_NEVER, p.now) == PL_ENOENT);
  pl_engine_probe(p.n[0].e, p.n[1].node, &p.n[1].addr, false, 1, p.now);
  pair_run(&p, 30 * S);
  uint64_t since = p.now;
  pair_run(&p, 30 * S);
  CHECK(listed(&p, 0, since) == 1 && listed(&p, 0, p.now + 1) == 0 && listed(&p, 0, 0) == 1);
  CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, p.now + 22 * S, p.now) == PL_OK);
  uint64_t sent = pair_peer(&p, 0).pkts_sent;
  pl_engine_probe(p.n[0].e, p.n[1].node, &p.n[1].addr, false, 2, p.now);
  pair_run(&p, 21 * S);
  CHECK(pair_peer(&p, 0).last_recv_ns > since && listed(&p, 0, since) == 0 && listed(&p, 0, 0) == 1);
  CHECK(pair_peer(&p, 0).pkts_sent == sent + 1); /* whoever lets it rest pings it in time */
  CHECK(pair_count(&p, 0, PL_EV_PEER_STIRRED) == 0);
  pair_run(&p, S + S / 10);
  CHECK(pair_count(&p, 0, PL_EV_PEER_STIRRED) == 1 && pair_last(&p, 0, PL_EV_PEER_STIRRED)->a == 0);
  CHECK(listed(&p, 0, since) == 1);
  for (unsigned way = 0; way < 2; way++) { /* a datagram from it, one to it */
    CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, PL_NEVER, p.now) == PL_OK);
    CHECK(pl_engine_send_datagram(p.n[!way].e, 0, 0, 0, p.n[way].node, 5, (const uint8_t *)"x", 1, p.now) == PL_OK);
    pair_run(&p, S);
    CHECK(pair_count(&p, 0, PL_EV_PEER_STIRRED) == 2 + way && pair_last(&p, 0, PL_EV_PEER_STIRRED)->a == 1);
    CHECK(pair_last(&p, 0, PL_EV_PEER_STIRRED)->node == p.n[1].node && listed(&p, 0, since) == 1);
  }
  CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, PL_NEVER, p.now) == PL_OK);
  CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, 0, p.now) == PL_OK && listed(&p, 0, since) == 1);
  pair_run(&p, 60 * S);
  CHECK(pair_count(&p, 0, PL_EV_PEER_STIRRED) == 3);
  CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, PL_NEVER, p.now) == PL_OK);
  CHECK(pl_engine_forget_peer(p.n[0].e, p.n[1].node, p.now) == PL_OK);
  pair_run(&p, S);
  CHECK(pair_count(&p, 0, PL_EV_PEER_STIRRED) == 4);
  pair_free(&p);
}

/* The table of pings is as large as what waits for an answer, and goes when nothing does. */
static void ping_table(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  pl_peer *peer = pl_peer_find(p.n[0].e, p.n[1].node);
  pair_run(&p, 100 * S);
  pl_addr nowhere = p.n[1].addr;
  nowhere.port++;
  unsigned pongs = pair_count(&p, 0, PL_EV_PONG);
  CHECK(peer->probes == NULL);
  for (unsigned i = 1; i <= 40; i++) {
    CHECK(pl_engine_probe(p.n[0].e, p.n[1].node, &nowhere, false, i, p.now) == PL_OK);
    CHECK(peer->max_probes == (i <= 1 ? 1 : i <= 2 ? 2 : i <= 4 ? 4 : i <= 8 ? 8 : PL_PROBES));
    pair_run(&p, MS);
  }
  for (unsigned i = 0; i < PL_PROBES; i++) CHECK(peer->probes[i].token > 40 - PL_PROBES); /* the oldest gave way */
  CHECK(pair_count(&p, 0, PL_EV_PONG) == pongs);
  pair_run(&p, 12 * S);
  CHECK(pl_engine_probe(p.n[0].e, p.n[1].node, &p.n[1].addr, false, 99, p.now) == PL_OK);
  pair_run(&p, S);
  CHECK(pair_last(&p, 0, PL_EV_PONG)->a == 99 && peer->probes == NULL && peer->max_probes == 0);
  pongs = pair_count(&p, 0, PL_EV_PONG);
  for (unsigned i = 0; i < PL_PROBES; i++)
    CHECK(pl_engine_probe(p.n[0].e, p.n[1].node, i % 6 ? &p.n[1].addr : &nowhere, false, 200 + i, p.now) == PL_OK);
  pair_run(&p, S / 10);
  CHECK(pair_count(&p, 0, PL_EV_PONG) == pongs + 13 && peer->max_probes == PL_PROBES);
  CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, PL_NEVER, p.now) == PL_OK && peer->max_probes == 4); /* what may be answered is kept */
  for (unsigned i = 0; i < 3; i++) CHECK(peer->probes[i].token == 200 + 6 * i && peer->probes[i].sent_ns);
  CHECK(pl_engine_rest(p.n[0].e, p.n[1].node, PL_NEVER, p.now + 11 * S) == PL_OK && peer->probes == NULL);
  pair_free(&p);
}

/* Frames that were recorded are refused after a rest too, and the session goes on. */
static void rest_keeps_the_window(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  for (unsigned i = 0; i < 2; i++) CHECK(pl_engine_set_trusted(p.n[i].e, p.n[!i].node, true) == PL_OK);
  for (unsigned i = 0; i < 500; i++) {
    CHECK(pl_engine_send_datagram(p.n[0].e, 0, 0, 0, p.n[1].node, 5, (const uint8_t *)"x", 1, p.now) == PL_OK);
    pair_run(&p, MS);
  }
  uint64_t opened = pair_stats(&p, 1).opened_ok, failed = pair_stats(&p, 1).opened_fail;
  CHECK(opened >= 500 && pl_engine_rest(p.n[1].e, p.n[0].node, PL_NEVER, p.now) == PL_OK);
  pl_peer *peer = pl_peer_find(p.n[1].e, p.n[0].node);
  CHECK(peer->cur->replay.newest->blocks == 2 && peer->cur->replay.n_live == 1);
  uint64_t highest = peer->cur->replay.newest->highest;
  for (uint64_t at = 1; at <= highest; at++) CHECK(pl_replay_check(&peer->cur->replay, peer->cur->replay.newest->prefix, at) == PL_EREPLAY);
  CHECK(pl_engine_send_datagram(p.n[0].e, 0, 0, 0, p.n[1].node, 5, (const uint8_t *)"x", 1, p.now) == PL_OK);
  pair_run(&p, MS * 100);
  CHECK(pair_stats(&p, 1).opened_ok > opened && pair_stats(&p, 1).opened_fail == failed);
  pair_free(&p);
}

/* A peer sees many numbers of the engine's generator. They must not tell it those of pings to other addresses. */
static void ping_numbers(void) {
  uint32_t seq[2][3];
  for (unsigned k = 0; k < 2; k++) {
    pl_engine_cfg c = pair_cfg();
    c.probe_secret[5] = (uint8_t)k;
    pair p;
    pair_init(&p, &c);
    pair_join(&p, NULL, 0);
    pair_run(&p, 20 * PL_NS_PER_S); /* what the start made is answered or lost */
    for (unsigned i = 0; i < 3; i++) {
      CHECK(pl_engine_probe(p.n[0].e, p.n[1].node, &p.n[1].addr, false, 900 + i, p.now) == PL_OK);
      const pl_peer *peer = pl_peer_find(p.n[0].e, p.n[1].node);
      for (unsigned j = 0; j < peer->max_probes; j++)
        if (peer->probes[j].token == 900 + i) seq[k][i] = peer->probes[j].seq;
    }
    pair_free(&p);
  }
  for (unsigned i = 0; i < 3; i++) CHECK(seq[0][i] != seq[1][i]);
  CHECK(seq[0][0] != seq[0][1] && seq[0][1] != seq[0][2]);
}

int main(void) {
  pings();
  ping_numbers();
  outside();
  paths();
  restarted_elsewhere(false);
  restarted_elsewhere(true);
  restarted_behind_a_relay();
  keepalive();
  resting();
  ping_table();
  rest_keeps_the_window();
  printf("test_engine_peers: ok\n");
  return 0;
}
