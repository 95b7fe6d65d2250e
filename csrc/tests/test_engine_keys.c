/* Sessions of the engine: keys, forgeries, replays, what is sent under which key. */
#include "engine_internal.h"
#include "engine_pair.h"

/* A session takes each frame once, from its own node, for this node, and only under its key. */
static void replays_and_forgeries(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_APP, 0, false) == PL_OK);
  pl_packet d = pair_packet(&p, 1, PL_PROTO_DATAGRAM, 0, 50000, 1000);
  d.payload = (const uint8_t *)"once";
  d.len = 4;
  pair_inject(&p, 1, 7, 1, d);
  pair_inject(&p, 1, 7, 1, d);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 1 && pair_stats(&p, 1).drop_replay == 1);
  pair_inject(&p, 1, 7, 0, d); /* counter 0 never */
  pair_inject(&p, 1, 7, 10000, d);
  pair_inject(&p, 1, 7, 10000 - 8192, d);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 2 && pair_stats(&p, 1).drop_replay == 3);
  pl_packet spoof = d; /* the inner source is another's */
  spoof.src_node = 4711;
  pair_inject(&p, 1, 7, 10001, spoof);
  spoof.src_node = 0;
  pair_inject(&p, 1, 7, 10002, spoof);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 2 && pair_stats(&p, 1).drop_source == 2);
  pl_packet old = {.proto = PL_PROTO_CONTROL}; /* the one exception, without effect */
  pair_inject(&p, 1, 7, 10003, old);
  CHECK(pair_stats(&p, 1).drop_source == 2);
  pl_packet not_ours = d;
  not_ours.dst_node = 4711;
  pair_inject(&p, 1, 7, 10004, not_ours);
  not_ours = d;
  not_ours.proto = 9;
  pair_inject(&p, 1, 7, 10005, not_ours);
  pl_packet empty = d;
  empty.len = 0;
  pair_inject(&p, 1, 7, 10006, empty);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 2 && pair_stats(&p, 1).drop_packet == 3);
  uint8_t inner[PL_HDR_SIZE] = {0x10, 2, [PL_HDR_SIZE - 1] = 1}, key[32];
  size_t len;
  uint8_t *f = pair_seal(p.key, p.n[0].node, 7, 10007, inner, sizeof inner, &len); /* a wrong checksum */
  pair_input(&p, 1, f, len, p.n[0].addr);
  free(f);
  f = pair_seal(p.key, p.n[0].node, 7, 10008, inner, 3, &len); /* not even a header */
  pair_input(&p, 1, f, len, p.n[0].addr);
  free(f);
  CHECK(pair_stats(&p, 1).drop_packet == 5);
  memcpy(key, p.key, 32);
  key[0] ^= 1;
  p.now += 10 * S;
  pl_peer_info before = pair_peer(&p, 1);
  for (unsigned i = 0; i < 20; i++) { /* forged under another key, then with the node number changed: the session does not care */
    f = pair_seal(i & 1 ? p.key : key, p.n[0].node, 8, 1 + i, inner, sizeof inner, &len);
    if (i & 1) f[len - 1] ^= 0x80;
    pair_input(&p, 1, f, len, pair_addr(66, 666));
    free(f);
  }
  CHECK(pair_stats(&p, 1).drop_auth == 20 && pair_peer(&p, 1).last_recv_ns == before.last_recv_ns && pair_peer(&p, 1).open_failures == 23);
  CHECK(pair_count(&p, 1, PL_EV_SESSION_BROKEN) == 1 && pair_count(&p, 1, PL_EV_PATH_SEEN) == 0);
  CHECK((int64_t)pair_last(&p, 1, PL_EV_SESSION_BROKEN)->a == PL_EAUTH);
  pair_inject(&p, 1, 7, 10009, d);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 3 && pair_peer(&p, 1).session);
  for (unsigned i = 0; i < 100; i++) pair_inject(&p, 1, 7, 10009, d); /* repeated while real ones open: no complaint */
  CHECK(pair_count(&p, 1, PL_EV_SESSION_BROKEN) == 1);
  p.now += 4 * S;
  for (unsigned i = 0; i < 4; i++) pair_inject(&p, 1, 7, 10009, d);
  CHECK(pair_count(&p, 1, PL_EV_SESSION_BROKEN) == 2 && (int64_t)pair_last(&p, 1, PL_EV_SESSION_BROKEN)->a == PL_EREPLAY);
  pair_input(&p, 1, "PILT....", 8, p.n[0].addr);
  pair_input(&p, 1, "PILS....", 8, p.n[0].addr);
  pair_input(&p, 1, "GET /", 5, p.n[0].addr);
  pl_engine_stats st = pair_stats(&p, 1);
  CHECK(st.drop_plaintext == 1 && st.drop_short == 1 && st.drop_unknown == 1);
  pair_free(&p);
}

/* docs/wire-extensions.md 2: we announced that a zero checksum will do; the peer may know that though its own trailer did not get here. */
static void checksums(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_APP, 0, false) == PL_OK);
  pl_packet d = pair_packet(&p, 1, PL_PROTO_DATAGRAM, 0, 50000, 1000);
  d.len = 4;
  uint8_t inner[PL_HDR_SIZE + 4];
  for (uint32_t crc = 0; crc < 2; crc++) { /* zero is none; one is wrong */
    pl_packet_write_header(inner, &d);
    memcpy(inner + PL_HDR_SIZE, "zero", 4);
    pl_put32(inner + 30, crc);
    size_t len;
    uint8_t *f = pair_seal(p.key, p.n[0].node, 7, 1 + crc, inner, sizeof inner, &len);
    pair_input(&p, 1, f, len, p.n[0].addr);
    free(f);
    CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 1 && pair_stats(&p, 1).drop_packet == crc);
  }
  pair_free(&p);
}

/* New nonce prefixes are what a peer draws when it derives anew; their number is bounded. */
static void prefixes(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  for (uint32_t i = 0; i < 100; i++) pair_inject(&p, 1, 1000 + i, 1, ping);
  CHECK(pair_stats(&p, 1).opened_ok == 64 && pair_stats(&p, 1).drop_replay == 36);
  p.now += 5 * S;
  for (uint32_t i = 0; i < 6; i++) pair_inject(&p, 1, 2000 + i, 1, ping);
  CHECK((int64_t)pair_last(&p, 1, PL_EV_SESSION_BROKEN)->a == PL_ELIMIT);
  pair_free(&p);
}

/* PILS without a session: one event per node and 3 s, however many come. */
static void no_session(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  for (uint32_t i = 0; i < 50; i++) pair_inject(&p, 1, 1, i + 1, ping);
  CHECK(pair_count(&p, 1, PL_EV_NO_SESSION) == 1 && pair_last(&p, 1, PL_EV_NO_SESSION)->node == p.n[0].node);
  CHECK(pl_addr_eq(&pair_last(&p, 1, PL_EV_NO_SESSION)->addr, &p.n[0].addr) && pair_stats(&p, 1).drop_no_session == 50);
  CHECK(pair_stats(&p, 1).peers == 0); /* a stranger takes no table space */
  p.now += 3 * S + MS;
  pair_inject(&p, 1, 1, 99, ping);
  CHECK(pair_count(&p, 1, PL_EV_NO_SESSION) == 2);
  CHECK(pl_engine_drop_session(p.n[1].e, p.n[0].node) == PL_ENOENT);
  pair_join(&p, NULL, 3);
  CHECK(pl_engine_drop_session(p.n[1].e, p.n[0].node) == PL_OK && pair_stats(&p, 1).sessions == 0);
  pl_engine_set_node(p.n[1].e, 0);
  p.now += 10 * S;
  pair_inject(&p, 1, 1, 100, ping);
  CHECK(pair_count(&p, 1, PL_EV_NO_SESSION) == 2);
  pair_free(&p);
}

/* Frames that come a moment before their key open when it is there: the last few short ones of each peer. */
static void early(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pl_engine *a = p.n[0].e, *b = p.n[1].e;
  uint32_t number = p.n[1].node;
  CHECK(pl_engine_listen(b, 80, PL_OWNER_APP, 0, true) == PL_OK);
  CHECK(pl_engine_set_path(a, number, &p.n[1].addr, false, p.now) == PL_OK);
  CHECK(pl_engine_dial(a, 0, 0, number, 80, 0, 20 * S, p.now) > 0);
  CHECK(pl_engine_install_keys(a, number, p.key, NULL, 1, NULL, true, p.now) == PL_OK);
  pair_run(&p, 40 * MS);
  CHECK(pair_stats(&p, 1).drop_no_session == 1 && pair_count(&p, 1, PL_EV_NO_SESSION) == 1);
  uint8_t junk[40] = {0};
  for (uint32_t i = 0; i < 64; i++) { /* strangers have places of their own, for the most part */
    size_t len;
    uint8_t *f = pair_seal(p.key, 0xc0000000 + i, 1, 1, junk, sizeof junk, &len);
    pair_input(&p, 1, f, len, pair_addr(77, 7));
    free(f);
  }
  CHECK(pl_engine_install_key(b, p.n[0].node, p.key, 1, NULL, p.now) == PL_OK);
  CHECK(pair_stats(&p, 1).opened_early == 1 && pair_count(&p, 1, PL_EV_SESSION_PROVED) == 1);
  pair_run(&p, 40 * MS); /* sooner than the SYN is repeated */
  CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 1 && pair_peer(&p, 0).proved && pair_stats(&p, 1).drop_no_session == 65);
  pair_free(&p);

  pair_init(&p, &c);
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  for (uint32_t i = 0; i < 7; i++) {
    pair_inject(&p, 1, 1, i + 1, ping);
    p.now += MS;
  }
  uint8_t much[600] = {1};
  ping.payload = much;
  ping.len = sizeof much;
  pair_inject(&p, 1, 1, 8, ping); /* long */
  p.key[0] ^= 1;
  pair_inject(&p, 1, 1, 9, pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0)); /* forged */
  p.key[0] ^= 1;
  CHECK(pl_engine_install_key(p.n[1].e, p.n[0].node, p.key, 1, NULL, p.now) == PL_OK);
  pair_run(&p, 40 * MS);
  CHECK(pair_stats(&p, 1).opened_early == 3 && pair_stats(&p, 1).drop_auth == 1);
  CHECK(pl_engine_drop_session(p.n[1].e, p.n[0].node) == PL_OK);
  pair_inject(&p, 1, 1, 10, pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0));
  p.now += S + MS;
  CHECK(pl_engine_install_key(p.n[1].e, p.n[0].node, p.key, 2, NULL, p.now) == PL_OK);
  CHECK(pair_stats(&p, 1).opened_early == 3 && pair_stats(&p, 1).drop_auth == 1); /* too old */
  pair_free(&p);
}

/* Rekeying: the pending key only receives until the peer has proved it; the old one goes on receiving for ten seconds. */
static void keys(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  uint8_t first[32], second[32];
  memcpy(first, p.key, 32);
  memcpy(second, p.key, 32);
  second[5] ^= 0x55;
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  pl_engine *b = p.n[1].e;
  CHECK(!pair_peer(&p, 1).proved);
  pair_inject(&p, 1, 7, 1, ping);
  CHECK(pair_peer(&p, 1).proved && pair_count(&p, 1, PL_EV_SESSION_PROVED) == 1);
  CHECK(pl_engine_install_key(b, p.n[0].node, first, 1, NULL, p.now) == PL_OK); /* the same: nothing restarts */
  pair_inject(&p, 1, 7, 1, ping);
  CHECK(pair_stats(&p, 1).drop_replay == 1);
  CHECK(pl_engine_install_key(b, p.n[0].node, second, 2, NULL, p.now) == PL_OK);
  CHECK(pair_peer(&p, 1).key_id == 1 && pair_stats(&p, 1).sessions == 1);
  pair_inject(&p, 1, 7, 2, ping); /* the old key still serves */
  CHECK(pair_count(&p, 1, PL_EV_SESSION_PROVED) == 1 && pair_peer(&p, 1).key_id == 1);
  memcpy(p.key, second, 32);
  pair_inject(&p, 1, 9, 1, ping);
  CHECK(pair_peer(&p, 1).key_id == 2 && pair_last(&p, 1, PL_EV_SESSION_PROVED)->a == 2 && pair_count(&p, 1, PL_EV_SESSION_PROVED) == 2);
  memcpy(p.key, first, 32);
  pair_inject(&p, 1, 7, 3, ping); /* late frames under the old one, no way back to it */
  CHECK(pair_stats(&p, 1).opened_ok == 4 && pair_peer(&p, 1).key_id == 2 && pair_count(&p, 1, PL_EV_SESSION_PROVED) == 2);
  CHECK(pl_engine_install_key(b, p.n[0].node, first, 1, NULL, p.now) == PL_OK && pair_peer(&p, 1).key_id == 2); /* a late PILA */
  pair_run(&p, 11 * S);
  uint64_t opened = pair_stats(&p, 1).opened_ok;
  pair_inject(&p, 1, 7, 1000, ping);
  CHECK(pair_stats(&p, 1).opened_ok == opened && pair_stats(&p, 1).drop_auth == 1);
  CHECK(pl_engine_install_key(b, p.n[0].node, first, 3, NULL, p.now) == PL_OK); /* pending, then withdrawn */
  CHECK(pl_engine_install_key(b, p.n[0].node, second, 2, NULL, p.now) == PL_OK);
  pair_inject(&p, 1, 7, 1001, ping);
  CHECK(pair_stats(&p, 1).opened_ok == opened && pair_peer(&p, 1).key_id == 2);
  pair_free(&p);

  /* A key that was replaced before anything opened under it is not announced as the sending key when a late frame does. */
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  memcpy(first, p.key, 32);
  CHECK(pl_engine_install_key(p.n[1].e, p.n[0].node, second, 2, NULL, p.now) == PL_OK);
  memcpy(p.key, second, 32);
  pair_inject(&p, 1, 9, 1, ping);
  CHECK(pair_count(&p, 1, PL_EV_SESSION_PROVED) == 1);
  memcpy(p.key, first, 32);
  pair_inject(&p, 1, 7, 1, ping);
  CHECK(pair_stats(&p, 1).opened_ok == 2 && pair_count(&p, 1, PL_EV_SESSION_PROVED) == 1 && pair_peer(&p, 1).key_id == 2);
  pair_free(&p);
}

/* A key that is only foretold: dials go under it at once and again when the peer says it, or says another; datagrams wait. */
static unsigned n_dropped;
static bool drop_first(pair *p, const pair_gram *g) {
  (void)p;
  (void)g;
  return n_dropped-- > 0 ? true : (n_dropped = 0, false);
}

static void foretold(void) {
  pl_engine_cfg c = pair_cfg();
  for (unsigned stale = 0; stale < 2; stale++) {
    pair p;
    pair_init(&p, &c);
    pl_engine *a = p.n[0].e, *b = p.n[1].e;
    uint32_t number = p.n[1].node;
    CHECK(pl_engine_install_key(b, p.n[0].node, p.key, 1, NULL, p.now) == PL_OK);
    CHECK(pl_engine_listen(b, 80, PL_OWNER_APP, 0, false) == PL_OK && pl_engine_listen(b, 90, PL_OWNER_APP, 0, false) == PL_OK);
    pl_engine_set_trusted(b, p.n[0].node, true);
    uint8_t key[32];
    memcpy(key, p.key, 32);
    if (stale) key[3] ^= 1;
    CHECK(pl_engine_set_path(a, number, &p.n[1].addr, false, p.now) == PL_OK);
    CHECK(pl_engine_dial(a, 0, 0, number, 80, 0, 20 * S, p.now) > 0);
    CHECK(pl_engine_send_datagram(a, 0, 7, 0, number, 90, (const uint8_t *)"once", 4, p.now) == PL_OK);
    pair_run(&p, 10 * MS);
    CHECK(pair_stats(&p, 0).pkts_sent == 0);
    n_dropped = stale ? 0 : 1; /* the peer has our key a moment too late */
    p.drop = drop_first;
    CHECK(pl_engine_install_keys(a, number, key, NULL, 1, NULL, true, p.now) == PL_OK);
    pair_run(&p, 100 * MS);
    CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 0 && pair_count(&p, 1, PL_EV_DATAGRAM) == 0);
    CHECK(pair_stats(&p, 0).pkts_sent >= 1 && pair_stats(&p, 1).drop_auth == stale);
    if (stale) {
      CHECK(pl_engine_drop_session(a, number) == PL_OK && pl_engine_install_key(a, number, p.key, 2, NULL, p.now) == PL_OK);
    } else {
      CHECK(pl_engine_install_key(a, number, p.key, 1, NULL, p.now) == PL_OK);
    }
    pair_run(&p, 100 * MS); /* sooner than the SYN is repeated by itself */
    CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 1 && pair_count(&p, 1, PL_EV_DATAGRAM) == 1);
    pair_free(&p);
  }
  /* The peer's own frame under it is as good as its word. */
  pair p;
  pair_init(&p, &c);
  pl_engine *a = p.n[0].e;
  uint32_t number = p.n[1].node;
  CHECK(pl_engine_install_key(p.n[1].e, p.n[0].node, p.key, 1, NULL, p.now) == PL_OK);
  CHECK(pl_engine_listen(p.n[1].e, 90, PL_OWNER_APP, 0, true) == PL_OK && pl_engine_listen(p.n[1].e, 80, PL_OWNER_APP, 0, true) == PL_OK);
  CHECK(pl_engine_set_path(a, number, &p.n[1].addr, false, p.now) == PL_OK);
  CHECK(pl_engine_send_datagram(a, 0, 7, 0, number, 90, (const uint8_t *)"once", 4, p.now) == PL_OK);
  int64_t conn = pl_engine_dial(a, 0, 0, number, 80, 0, 20 * S, p.now);
  CHECK(conn > 0 && pl_engine_install_keys(a, number, p.key, NULL, 1, NULL, true, p.now) == PL_OK);
  pair_run(&p, 100 * MS);
  pl_conn_info opened;
  CHECK(pl_engine_conn_info(a, (uint32_t)conn, &opened) == PL_OK && opened.s.srtt_ns); /* one SYN: its answer is a sample */
  CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 1 && pair_count(&p, 1, PL_EV_DATAGRAM) == 1 && pair_peer(&p, 0).proved);
  pair_free(&p);
}

/* Sent frames: our node outside and inside, counters from 1 without gaps, a prefix per derivation that differs between the ends. */
typedef struct seen_frames {
  unsigned n;
  uint32_t prefix[2];
  uint64_t counter[2];
} seen_frames;
static seen_frames seen;

static bool watch_frames(pair *p, const pair_gram *g) {
  unsigned from = pl_addr_eq(&g->from, &p->n[1].addr);
  pl_pils h;
  CHECK(pl_pils_parse(g->data, g->data + g->len, &h) == PL_OK && h.node == p->n[from].node);
  if (!seen.counter[from]) seen.prefix[from] = h.prefix;
  CHECK(h.prefix == seen.prefix[from] && h.counter == seen.counter[from] + 1);
  seen.counter[from] = h.counter;
  uint8_t *body = check_copy(h.body, h.body_len);
  pl_aead *a = pl_aead_new(p->key);
  CHECK(pl_aead_open(a, h.nonce, g->data + 4, 4, body, h.body_len - 16) == PL_OK);
  pl_packet k;
  CHECK(pl_packet_parse(body, body + h.body_len - 16, false, &k) == PL_OK && k.src_node == p->n[from].node);
  pl_aead_free(a);
  free(body);
  seen.n++;
  return false;
}

/* A dropped session comes back under the same key when somebody replays the PILA: recorded frames must not open again, and our counters
 * must not start again. A peer that lost its keys often still gets in. */
static void dropped_keys(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  pl_engine *b = p.n[1].e;
  uint32_t a = p.n[0].node;
  pl_packet ping = pair_packet(&p, 1, PL_PROTO_CONTROL, 0, 1, 0);
  for (uint32_t i = 1; i <= 3; i++) pair_inject(&p, 1, 7, i, ping);
  CHECK(pair_stats(&p, 1).opened_ok == 3);
  CHECK(pl_engine_drop_session(b, a) == PL_OK && pl_engine_install_key(b, a, p.key, 1, NULL, p.now) == PL_OK);
  pair_inject(&p, 1, 7, 2, ping);
  CHECK(pair_stats(&p, 1).opened_ok == 3 && pair_stats(&p, 1).drop_replay == 1 && !pair_peer(&p, 1).proved);
  pair_inject(&p, 1, 7, 4, ping); /* the peer itself goes on */
  CHECK(pair_stats(&p, 1).opened_ok == 4 && pair_peer(&p, 1).proved);
  CHECK(pl_engine_forget_peer(b, a, p.now) == PL_OK && pl_engine_install_key(b, a, p.key, 1, NULL, p.now) == PL_OK);
  pair_inject(&p, 1, 7, 4, ping);
  CHECK(pair_stats(&p, 1).opened_ok == 4);
  for (uint32_t i = 0; i < 200; i++) { /* each time with a new prefix, as other implementations do */
    pair_inject(&p, 1, 1000 + i, 1, ping);
    CHECK(pair_stats(&p, 1).opened_ok == 5 + i);
    CHECK(pl_engine_drop_session(b, a) == PL_OK && pl_engine_install_key(b, a, p.key, 1, NULL, p.now) == PL_OK);
  }
  pair_free(&p);

  pair_init(&p, &c); /* what we send ourselves goes on under the same prefix */
  pair_join(&p, NULL, 0);
  memset(&seen, 0, sizeof seen);
  p.drop = watch_frames;
  for (unsigned i = 0; i < 3; i++) {
    pair_inject(&p, 1, 7, i + 1, ping);
    pair_run(&p, 10 * MS);
    CHECK(seen.n >= i + 1);
    CHECK(pl_engine_drop_session(p.n[1].e, a) == PL_OK && pl_engine_install_key(p.n[1].e, a, p.key, 1, NULL, p.now) == PL_OK);
  }
  pair_free(&p);
}

static void frames_sent(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  memset(&seen, 0, sizeof seen);
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  p.drop = watch_frames;
  CHECK(pl_engine_listen(p.n[1].e, 7, PL_OWNER_ECHO, 0, false) == PL_OK);
  int64_t id = pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 7, 0, 5 * S, p.now);
  pair_run(&p, 100 * MS);
  CHECK(pl_engine_own(p.n[0].e, (uint32_t)id, PL_OWNER_APP, 0, p.now) == PL_OK);
  uint8_t data[3000] = {1};
  CHECK(pl_engine_write(p.n[0].e, (uint32_t)id, data, sizeof data, p.now) == sizeof data);
  pair_run(&p, 90 * S); /* pings, keepalives too */
  CHECK(seen.n > 20 && seen.prefix[0] != seen.prefix[1] && seen.counter[0] > 5 && seen.counter[1] > 5);
  CHECK(pair_stats(&p, 1).drop_packet == 0 && pair_stats(&p, 1).drop_source == 0);
  pair_free(&p);
}

int main(void) {
  replays_and_forgeries();
  checksums();
  prefixes();
  no_session();
  keys();
  dropped_keys();
  foretold();
  early();
  frames_sent();
  printf("test_engine_keys: ok\n");
  return 0;
}
