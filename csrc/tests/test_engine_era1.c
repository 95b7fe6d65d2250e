/* Peers of era 1 (transport.md 3.4): understood when the switch is on and they spoke first; nobody is talked down to that era, and what that
 * era leaves unbound is not believed. End 1 is the node under test, the test seals for its peer, end 0. */
#include "engine_internal.h"
#include "engine_pair.h"

static const char *const ERA1_KEY = "878581f7ac4432d5fa707b3970f8ac781f1801b028401ee28258ddf8588408e7";
static const char *const ERA2_KEY = "56e4043d48fabcdc890933bce65910d1acb7fd2640eb309aed7a85a08c68751f";
/* transport.json, pils_baseline: a SYN to port 7, then "hello". */
static const char *const RECORDED[] = {
    "50494c530000a001aabbccdd000000000000000121c9d0645220404f8b682f9641f2e68d63c2167c21cb604cff81ad2b8ac3c5eb2211591f40fac25144142477d01bb939b81c",
    "50494c530000a001aabbccdd00000000000000025dfd0ee2239d0a9855703023876b1373761794646aab3891a9ee508b2de0cbaf2eddc7ce034cb9b3036675a8ba4a2a041596"
    "bcb99ea1e3"};
static const pl_caps own_kind = {.features = PL_CAP_NOCRC | PL_CAP_STREAM_OPTS, .max_segment = 8192, .reorder_segments = 65536};

static uint8_t era1_key[32];

/* What end 1 sent, opened in whichever era it was sealed. */
static struct {
  unsigned era1, era2;
  uint64_t counter;
  uint32_t prefix;
  pl_packet last;
  uint8_t body[16384];
  uint8_t frame[16384]; /* the last one of era 1 */
  size_t frame_len;
} sent;

static bool opens(const uint8_t key[32], const pair_gram *g, const pl_pils *h, size_t aad) {
  memcpy(sent.body, h->body, h->body_len);
  pl_aead *a = pl_aead_new(key);
  int r = pl_aead_open(a, h->nonce, g->data + 4, aad, sent.body, h->body_len - PL_TAG_SIZE);
  pl_aead_free(a);
  return r == PL_OK;
}

static bool watch(pair *p, const pair_gram *g) {
  if (!pl_addr_eq(&g->from, &p->n[1].addr)) return false;
  pl_pils h;
  CHECK(pl_pils_parse(g->data, g->data + g->len, &h) == PL_OK && h.node == p->n[1].node && h.body_len <= sizeof sent.body);
  CHECK(h.prefix != sent.prefix || h.counter > sent.counter); /* one counter for both */
  sent.prefix = h.prefix;
  sent.counter = h.counter;
  if (opens(p->key, g, &h, 4)) {
    sent.era2++;
  } else {
    CHECK(opens(era1_key, g, &h, 0));
    sent.era1++;
    memcpy(sent.frame, g->data, sent.frame_len = g->len);
  }
  CHECK(pl_packet_parse(sent.body, sent.body + h.body_len - PL_TAG_SIZE, false, &sent.last) == PL_OK && sent.last.src_node == h.node);
  return true;
}

/* A node with one peer, whose key may be of either era. */
static void begin(pair *p, bool accept, const pl_caps *caps) {
  pl_engine_cfg c = pair_cfg();
  c.accept_era1 = accept;
  pair_init(p, &c);
  memset(&sent, 0, sizeof sent);
  p->drop = watch;
  size_t n;
  uint8_t *one = check_hex(ERA1_KEY, &n), *two = check_hex(ERA2_KEY, &n);
  memcpy(era1_key, one, 32);
  memcpy(p->key, two, 32);
  free(one);
  free(two);
  pl_engine *e = p->n[1].e;
  CHECK(pl_engine_set_trusted(e, p->n[0].node, true) == PL_OK);
  CHECK(pl_engine_install_keys(e, p->n[0].node, p->key, era1_key, 1, caps, false, p->now) == PL_OK);
  CHECK(pl_engine_set_path(e, p->n[0].node, &p->n[0].addr, false, p->now) == PL_OK);
  CHECK(pl_engine_listen(e, 7, PL_OWNER_APP, 0, false) == PL_OK);
}

static void seal_era1(pair *p, uint32_t prefix, uint64_t counter, pl_packet pkt, bool crc) {
  uint8_t f[PL_PILS_OVERHEAD + PL_HDR_SIZE + 64];
  size_t n = PL_HDR_SIZE + (size_t)pkt.len;
  CHECK(n <= PL_HDR_SIZE + 64);
  pl_pils_write_head(f, p->n[0].node, prefix, counter);
  pl_packet_write_header(f + PL_PILS_HEAD, &pkt);
  if (pkt.len) memcpy(f + PL_PILS_HEAD + PL_HDR_SIZE, pkt.payload, pkt.len);
  if (crc) pl_packet_write_crc(f + PL_PILS_HEAD, n);
  pl_aead *a = pl_aead_new(era1_key);
  CHECK(a && pl_aead_seal(a, f + 8, NULL, 0, f + PL_PILS_HEAD, n) == PL_OK);
  pl_aead_free(a);
  pair_input(p, 1, f, PL_PILS_OVERHEAD + n, p->n[0].addr);
}

static pl_packet ping_of(const pair *p) { return pair_packet(p, 1, PL_PROTO_CONTROL, 0, 40000, 0); }

static void inject_era1(pair *p, uint32_t prefix, uint64_t counter) { seal_era1(p, prefix, counter, ping_of(p), true); }

/* Frames as that era's release sealed them: the stream opens, and the answers are of that era. */
static void recorded(bool accept) {
  pair p;
  begin(&p, accept, NULL);
  for (unsigned i = 0; i < 2; i++) {
    size_t n;
    uint8_t *f = check_hex(RECORDED[i], &n);
    pair_input(&p, 1, f, n, p.n[0].addr);
    free(f);
    pair_run(&p, 100 * MS);
  }
  pl_engine_stats st = pair_stats(&p, 1);
  pl_peer_info info = pair_peer(&p, 1);
  if (accept) {
    CHECK(st.opened_ok == 2 && st.opened_era1 == 2 && st.opened_fail == 0 && info.proved && info.era == 1);
    CHECK(pair_last(&p, 1, PL_EV_SESSION_PROVED)->b == 1 && pair_count(&p, 1, PL_EV_ACCEPT) == 1);
    CHECK(sent.era1 >= 2 && sent.era2 == 0);
    uint32_t conn = pair_last(&p, 1, PL_EV_ACCEPT)->conn;
    uint8_t buf[16];
    CHECK(pl_engine_read(p.n[1].e, conn, buf, sizeof buf, p.now) == 5 && !memcmp(buf, "hello", 5));
  } else {
    CHECK(st.opened_ok == 0 && st.drop_auth == 2 && st.opened_fail == 2 && !info.proved && info.era == 0);
    CHECK(pair_count(&p, 1, PL_EV_SESSION_PROVED) == 0 && pair_count(&p, 1, PL_EV_ACCEPT) == 0 && sent.era1 + sent.era2 == 0);
    CHECK(pl_peer_find(p.n[1].e, p.n[0].node)->cur->era == PL_ERA_2);
  }
  pair_free(&p);
}

/* Ours are of era 2 until the peer has spoken, and then of its era; a second context exists only while such frames come. */
static void answers_in_kind(void) {
  pair p;
  begin(&p, true, NULL);
  pl_engine *e = p.n[1].e;
  const pl_key *k = pl_peer_find(e, p.n[0].node)->cur;
  for (unsigned i = 0; i < 3; i++) CHECK(pl_engine_send_datagram(e, 0, 1, 0, p.n[0].node, 5, (const uint8_t *)"x", 1, p.now) == PL_OK);
  pair_run(&p, 10 * MS);
  CHECK(sent.era2 == 3 && sent.era1 == 0 && k->era1->aead == NULL);
  inject_era1(&p, 7, 1);
  pair_run(&p, 10 * MS);
  CHECK(sent.era2 == 3 && sent.era1 >= 1 && sent.counter >= 4 && k->aead == NULL && k->era1->aead != NULL);
  unsigned before = sent.era1;
  CHECK(pl_engine_probe(e, p.n[0].node, &p.n[0].addr, false, 9, p.now) == PL_OK);
  CHECK(pl_engine_send_datagram(e, 0, 1, 0, p.n[0].node, 5, (const uint8_t *)"x", 1, p.now) == PL_OK);
  pair_run(&p, 10 * MS);
  CHECK(sent.era1 == before + 2 && sent.era2 == 3);
  p.now += S;
  pair_inject(&p, 1, 7, 2, ping_of(&p)); /* settled: era 2 is not tried any more */
  CHECK(pair_stats(&p, 1).drop_auth == 1);
  pair_run(&p, 2 * S); /* pings under another peer's key let this one grow cold */
  pl_engine_install_key(e, 4711, era1_key, 2, NULL, p.now);
  CHECK(k->aead == NULL && k->era1->aead == NULL);
  inject_era1(&p, 7, 3);
  CHECK(pair_stats(&p, 1).opened_era1 == 2);
  pair_free(&p);
}

/* Nothing opens in era 1 after the peer was heard in era 2: not under this key, not under another, not after the session was lost. */
static void no_way_down(void) {
  pair p;
  begin(&p, true, NULL);
  pl_engine *e = p.n[1].e;
  uint32_t a = p.n[0].node;
  pair_inject(&p, 1, 7, 1, ping_of(&p));
  CHECK(pair_peer(&p, 1).era == 2 && pair_last(&p, 1, PL_EV_SESSION_PROVED)->b == 2);
  inject_era1(&p, 7, 2);
  CHECK(pair_stats(&p, 1).drop_auth == 1 && pair_stats(&p, 1).opened_era1 == 0);
  uint8_t second[32] = {2};
  CHECK(pl_engine_install_keys(e, a, second, era1_key, 2, NULL, false, p.now) == PL_OK); /* beside the live one */
  inject_era1(&p, 8, 1);
  CHECK(pair_stats(&p, 1).drop_auth == 2 && pair_peer(&p, 1).key_id == 1);
  CHECK(pl_engine_drop_session(e, a) == PL_OK && pl_engine_install_keys(e, a, p.key, era1_key, 3, NULL, false, p.now) == PL_OK);
  inject_era1(&p, 9, 1);
  CHECK(pair_stats(&p, 1).drop_auth == 3 && !pair_peer(&p, 1).proved);
  CHECK(pl_engine_probe(e, a, &p.n[0].addr, false, 9, p.now) == PL_OK);
  pair_run(&p, 10 * MS);
  CHECK(sent.era1 == 0 && sent.era2 == 2);
  pair_free(&p);

  /* A peer that was heard in era 1 and restarts as a later release goes up; its late frames of before do not bring it down. */
  begin(&p, true, NULL);
  e = p.n[1].e;
  inject_era1(&p, 7, 1);
  uint8_t old[32], old_era1[32];
  memcpy(old, p.key, 32);
  memcpy(old_era1, era1_key, 32);
  p.key[0] ^= 1;
  uint8_t other[32] = {3};
  CHECK(pl_engine_install_keys(e, a, p.key, other, 2, NULL, false, p.now) == PL_OK);
  pair_inject(&p, 1, 8, 1, ping_of(&p));
  CHECK(pair_peer(&p, 1).era == 2 && pair_peer(&p, 1).key_id == 2);
  inject_era1(&p, 7, 2); /* under the replaced key, for ten seconds */
  CHECK(pair_peer(&p, 1).era == 2 && pair_peer(&p, 1).key_id == 2);
  memcpy(era1_key, other, 32);
  inject_era1(&p, 8, 2);
  CHECK(pair_stats(&p, 1).opened_era1 == 2 && pair_stats(&p, 1).drop_auth == 1);
  pair_free(&p);
}

/* What our own kind announces in its PILA rules era 1 out for that key, at once or later; for others only its frames do. */
static void announced(void) {
  pair p;
  begin(&p, true, &own_kind);
  inject_era1(&p, 7, 1);
  CHECK(pair_stats(&p, 1).drop_auth == 1);
  uint8_t second[32] = {2}; /* an old announcement must not shut out a peer that went back to a release of era 1 */
  CHECK(pl_engine_install_keys(p.n[1].e, p.n[0].node, second, era1_key, 2, NULL, false, p.now) == PL_OK);
  inject_era1(&p, 7, 2);
  CHECK(pair_stats(&p, 1).opened_era1 == 1 && pair_peer(&p, 1).key_id == 2);
  pair_free(&p);

  begin(&p, true, NULL);
  CHECK(pl_engine_install_keys(p.n[1].e, p.n[0].node, p.key, NULL, 1, NULL, false, p.now) == PL_OK); /* a repeated frame says nothing new */
  inject_era1(&p, 7, 1);
  CHECK(pair_stats(&p, 1).opened_era1 == 1);
  CHECK(pl_engine_install_keys(p.n[1].e, p.n[0].node, p.key, NULL, 1, &own_kind, false, p.now) == PL_OK);
  inject_era1(&p, 7, 2);
  CHECK(pair_stats(&p, 1).opened_era1 == 1 && pair_stats(&p, 1).drop_auth == 1);
  pair_inject(&p, 1, 7, 3, ping_of(&p));
  CHECK(pair_stats(&p, 1).opened_ok == 2 && pair_peer(&p, 1).era == 2);
  pair_free(&p);
}

/* One window for both eras: a counter that was used in one is used. */
static void replays(void) {
  pair p;
  begin(&p, true, NULL);
  inject_era1(&p, 7, 1);
  inject_era1(&p, 7, 1);
  pair_inject(&p, 1, 7, 1, ping_of(&p));
  pair_run(&p, MS);
  CHECK(pair_stats(&p, 1).opened_ok == 1 && pair_stats(&p, 1).drop_replay == 2 && pair_stats(&p, 1).drop_auth == 0);
  /* The session is lost and comes back under the same keys, whose counters are remembered; the era is open again. */
  pl_engine *e = p.n[1].e;
  CHECK(pl_engine_drop_session(e, p.n[0].node) == PL_OK);
  CHECK(pl_engine_install_keys(e, p.n[0].node, p.key, era1_key, 1, NULL, false, p.now) == PL_OK);
  inject_era1(&p, 7, 1);
  pair_inject(&p, 1, 7, 1, ping_of(&p));
  CHECK(pair_stats(&p, 1).opened_ok == 1 && pair_stats(&p, 1).drop_replay == 4 && !pair_peer(&p, 1).proved);
  unsigned era1 = sent.era1, era2 = sent.era2;
  for (unsigned i = 0; i < 4; i++) CHECK(pl_engine_probe(e, p.n[0].node, &p.n[0].addr, false, i, p.now) == PL_OK);
  pair_run(&p, MS); /* by turns, for the peer may have started anew as either; `watch` sees that no counter comes twice */
  CHECK(sent.era1 == era1 + 2 && sent.era2 == era2 + 2);
  inject_era1(&p, 7, 2);
  CHECK(pair_stats(&p, 1).opened_ok == 2 && pair_peer(&p, 1).era == 1);
  pair_free(&p);
}

/* Frames that carry another node inside than the one they are sent for open nothing and use nothing up. */
static void forged_sources(void) {
  pair p;
  begin(&p, true, NULL);
  pl_packet evil = ping_of(&p);
  evil.src_node = 4711; /* a peer whose X25519 key this one has announced as its own */
  seal_era1(&p, 7, 1, evil, true);
  evil.src_node = 0; /* the nameless keepalive, which era 2 lets pass */
  evil.src_port = 0;
  seal_era1(&p, 7, 1, evil, true);
  evil.src_node = p.n[1].node;
  seal_era1(&p, 7, 1, evil, true);
  seal_era1(&p, 7, 1, ping_of(&p), false); /* no checksum */
  pl_peer_info info = pair_peer(&p, 1);
  CHECK(pair_stats(&p, 1).drop_era1 == 4 && pair_stats(&p, 1).opened_ok == 0 && !info.proved && info.last_recv_ns == 0 && info.pkts_recv == 0);
  CHECK(pair_count(&p, 1, PL_EV_SESSION_PROVED) == 0 && pair_count(&p, 1, PL_EV_PATH_SEEN) == 0);
  inject_era1(&p, 7, 1); /* the counter is still good */
  CHECK(pair_stats(&p, 1).opened_ok == 1 && pair_peer(&p, 1).era == 1);
  pair_run(&p, 10 * MS);
  CHECK(sent.era1 >= 1);
  for (unsigned i = 0; i < 100; i++) { /* our own frames, turned round: from as many addresses as the attacker likes */
    pl_put32(sent.frame + 4, p.n[0].node);
    pair_input(&p, 1, sent.frame, sent.frame_len, pair_addr((uint8_t)(10 + i), 5));
  }
  info = pair_peer(&p, 1);
  CHECK(pair_stats(&p, 1).drop_era1 == 104 && info.pkts_recv == 1 && pl_addr_eq(&info.path, &p.n[0].addr));
  CHECK(pair_count(&p, 1, PL_EV_SESSION_BROKEN) == 0);
  for (unsigned i = 2; i < 5; i++) inject_era1(&p, 7, i);
  CHECK(pair_stats(&p, 1).opened_ok == 4);
  pair_free(&p);
}

/* A node of era 1 that starts anew, and one of our rotations: the pings that ask for the proof are of both eras until one is answered. */
static void new_keys(void) {
  pair p;
  begin(&p, true, NULL);
  pl_engine *e = p.n[1].e;
  uint32_t a = p.n[0].node;
  inject_era1(&p, 7, 1);
  pair_run(&p, S);
  p.key[3] ^= 1;
  era1_key[3] ^= 1;
  CHECK(pl_engine_install_keys(e, a, p.key, era1_key, 2, NULL, false, p.now) == PL_OK);
  sent.era1 = sent.era2 = 0;
  for (unsigned i = 0; i < 4; i++) CHECK(pl_engine_probe(e, a, &p.n[0].addr, false, i, p.now) == PL_OK);
  pair_run(&p, MS);
  CHECK(sent.era1 == 2 && sent.era2 == 2 && pair_peer(&p, 1).key_id == 1);
  pl_packet pong = pair_packet(&p, 1, PL_PROTO_CONTROL, PL_FLAG_ACK, 0, sent.last.src_port);
  pong.seq = sent.last.seq;
  seal_era1(&p, 9, 1, pong, true);
  CHECK(pair_peer(&p, 1).key_id == 2 && pair_peer(&p, 1).era == 1 && pair_count(&p, 1, PL_EV_PONG) == 1);
  pair_free(&p);
}

/* Two nodes of ours that both would accept era 1 never speak it. */
static void both_ours(void) {
  pl_engine_cfg c = pair_cfg();
  c.accept_era1 = true;
  pair p;
  pair_init(&p, &c);
  for (unsigned i = 0; i < 2; i++) {
    pair_end *me = &p.n[i], *peer = &p.n[!i];
    CHECK(pl_engine_set_trusted(me->e, peer->node, true) == PL_OK);
    CHECK(pl_engine_install_keys(me->e, peer->node, p.key, era1_key, 1, NULL, false, p.now) == PL_OK); /* the announcements were cut off */
    CHECK(pl_engine_set_path(me->e, peer->node, &peer->addr, false, p.now) == PL_OK);
  }
  CHECK(pl_engine_listen(p.n[1].e, 7, PL_OWNER_ECHO, 0, false) == PL_OK);
  CHECK(pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 7, 0, 5 * S, p.now) > 0);
  pair_run(&p, 100 * MS);
  CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 1);
  for (unsigned i = 0; i < 2; i++) CHECK(pair_peer(&p, i).era == 2 && pair_stats(&p, i).opened_era1 == 0 && pair_stats(&p, i).opened_fail == 0);
  pair_free(&p);
}

int main(void) {
  recorded(true);
  recorded(false);
  answers_in_kind();
  no_way_down();
  announced();
  replays();
  forged_sources();
  new_keys();
  both_ours();
  printf("test_engine_era1: ok\n");
  return 0;
}
