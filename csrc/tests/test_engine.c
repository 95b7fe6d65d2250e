/* What a node does with traffic: whom it answers, whom it ignores, what survives replays, forgeries and lost sessions. */
#include "engine_internal.h"
#include "engine_pair.h"

static const pl_caps own_kind = {.features = PL_CAP_NOCRC | PL_CAP_STREAM_OPTS, .max_segment = 8192, .reorder_segments = 65536};

static void transfer(pair *p, uint32_t from_conn, uint32_t to_conn, size_t total) {
  uint8_t chunk[5000];
  size_t sent = 0, got = 0;
  uint64_t limit = p->now + 60 * S;
  while (got < total) {
    while (sent < total) {
      size_t n = total - sent < sizeof chunk ? total - sent : sizeof chunk;
      for (size_t i = 0; i < n; i++) chunk[i] = (uint8_t)((sent + i) * 131 >> 3);
      int64_t w = pl_engine_write(p->n[0].e, from_conn, chunk, n, p->now);
      CHECK(w >= 0);
      sent += (size_t)w;
      if ((size_t)w < n) break;
    }
    pair_run(p, MS);
    CHECK(p->now < limit);
    int64_t r;
    while ((r = pl_engine_read(p->n[1].e, to_conn, chunk, sizeof chunk, p->now)) > 0) {
      for (size_t i = 0; i < (size_t)r; i++) CHECK(chunk[i] == (uint8_t)((got + i) * 131 >> 3));
      got += (size_t)r;
    }
    CHECK(r == PL_EAGAIN);
  }
  CHECK(got == total);
}

/* Dial, accept, bytes, orderly end; toward our own kind and toward others, direct and relayed. */
static void streams(bool own, bool relay) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_APP, 0, false) == PL_OK);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_APP, 0, false) == PL_EEXIST);
  int64_t id = pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 42, 30 * S, p.now); /* before there is a session: it waits */
  CHECK(id > 0);
  pair_run(&p, 10 * MS);
  CHECK(pair_count(&p, 0, PL_EV_PEER_WANTED) == 1 && pair_last(&p, 0, PL_EV_PEER_WANTED)->node == p.n[1].node && pair_stats(&p, 0).pkts_sent == 0);
  pair_join(&p, own ? &own_kind : NULL, 3);
  if (relay)
    for (unsigned i = 0; i < 2; i++) CHECK(pl_engine_set_path(p.n[i].e, p.n[!i].node, &p.beacon, true, p.now) == PL_OK);
  pair_run(&p, 50 * MS);
  const pl_event *open = pair_last(&p, 0, PL_EV_CONN_OPEN), *accept = pair_last(&p, 1, PL_EV_ACCEPT);
  CHECK(open->conn == id && open->client == 42 && open->node == p.n[1].node && open->remote_port == 1000);
  CHECK(accept->node == p.n[0].node && accept->local_port == 1000 && accept->remote_port == open->local_port);
  uint32_t in = accept->conn;
  CHECK(pl_engine_own(p.n[0].e, (uint32_t)id, PL_OWNER_APP, 0, p.now) == PL_OK && pl_engine_own(p.n[1].e, in, PL_OWNER_APP, 0, p.now) == PL_OK);
  CHECK(pair_count(&p, 0, PL_EV_SESSION_PROVED) == 1 && pair_last(&p, 1, PL_EV_SESSION_PROVED)->a == 1);
  transfer(&p, (uint32_t)id, in, 3000000);
  CHECK((p.to_beacon > 100) == relay);
  pl_conn_info info;
  CHECK(pl_engine_conn_info(p.n[0].e, (uint32_t)id, &info) == PL_OK && info.s.options == own && info.s.state == PL_ST_ESTABLISHED);
  CHECK(pair_peer(&p, 0).own_kind == own && pair_peer(&p, 0).mss >= PL_SEGMENT_BASE && pair_peer(&p, 0).conns == 1);
  CHECK(pl_engine_write(p.n[0].e, (uint32_t)id, (const uint8_t *)"end", 3, p.now) == 3);
  CHECK(pl_engine_close(p.n[0].e, (uint32_t)id, p.now) == PL_OK);
  CHECK(pl_engine_write(p.n[0].e, (uint32_t)id, (const uint8_t *)"x", 1, p.now) == PL_ESTATE);
  pair_run(&p, 100 * MS);
  uint8_t buf[8];
  CHECK(pl_engine_read(p.n[1].e, in, buf, sizeof buf, p.now) == 3 && !memcmp(buf, "end", 3));
  CHECK(pl_engine_read(p.n[1].e, in, buf, sizeof buf, p.now) == 0);
  CHECK(pl_engine_close(p.n[1].e, in, p.now) == PL_OK);
  pair_run(&p, 15 * S);
  CHECK(pair_count(&p, 0, PL_EV_CONN_CLOSED) == 1 && pair_count(&p, 1, PL_EV_CONN_CLOSED) == 1 && pair_last(&p, 1, PL_EV_CONN_CLOSED)->a == 0);
  CHECK(pair_stats(&p, 0).conns == 0 && pair_stats(&p, 1).conns == 0 && pair_peer(&p, 1).conns == 0);
  CHECK(pl_engine_read(p.n[1].e, in, buf, sizeof buf, p.now) == PL_ENOENT);
  pl_engine_stats st = pair_stats(&p, 1);
  CHECK(st.drop_packet == 0 && st.drop_auth == 0 && st.drop_source == 0 && st.opened_fail == 0);
  pair_free(&p);
}

/* Echo inside the engine: no event, no Python. */
static void echo(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, &own_kind, 3);
  CHECK(pl_engine_listen(p.n[1].e, 7, PL_OWNER_ECHO, 0, false) == PL_OK);
  int64_t id = pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 7, 0, 5 * S, p.now);
  pair_run(&p, 30 * MS);
  CHECK(pair_count(&p, 0, PL_EV_CONN_OPEN) == 1 && pair_count(&p, 1, PL_EV_ACCEPT) == 0);
  CHECK(pl_engine_own(p.n[0].e, (uint32_t)id, PL_OWNER_APP, 0, p.now) == PL_OK);
  CHECK(pl_engine_write(p.n[0].e, (uint32_t)id, (const uint8_t *)"over there", 10, p.now) == 10);
  pair_run(&p, 50 * MS);
  uint8_t buf[16];
  CHECK(pair_count(&p, 0, PL_EV_READABLE) == 1);
  CHECK(pl_engine_read(p.n[0].e, (uint32_t)id, buf, sizeof buf, p.now) == 10 && !memcmp(buf, "over there", 10));
  CHECK(pl_engine_close(p.n[0].e, (uint32_t)id, p.now) == PL_OK);
  pair_run(&p, 15 * S);
  CHECK(pair_stats(&p, 1).conns == 0);
  pair_free(&p);
}

/* Refused, silent, keyless: each dial ends with its own reason, at its own time. */
static void dials(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  CHECK(pl_engine_dial(p.n[0].e, 0, 0, p.n[0].node, 1, 0, S, p.now) == PL_ENOENT); /* oneself */
  CHECK(pl_engine_dial(p.n[0].e, 0, 0, 0, 1, 0, S, p.now) == PL_ENOENT);
  int64_t id = pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 0, S, p.now);
  pair_run(&p, S + MS);
  CHECK(pair_last(&p, 0, PL_EV_CONN_FAILED)->conn == id && pair_last(&p, 0, PL_EV_CONN_FAILED)->a == PL_DIAL_NO_KEY);
  pair_join(&p, NULL, 3);
  pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 0, S, p.now);
  pair_run(&p, 20 * MS);
  CHECK(pair_last(&p, 0, PL_EV_CONN_FAILED)->a == PL_DIAL_REFUSED && pair_stats(&p, 1).syn_refused == 1);
  CHECK(pl_engine_set_trusted(p.n[1].e, p.n[0].node, false) == PL_OK);
  pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 0, S, p.now);
  pair_run(&p, 2 * S);
  CHECK(pair_last(&p, 0, PL_EV_CONN_FAILED)->a == PL_DIAL_TIMEOUT && pair_stats(&p, 1).drop_untrusted > 0);
  CHECK(pair_count(&p, 0, PL_EV_CONN_FAILED) == 3 && pair_stats(&p, 0).conns == 0);
  pl_engine_set_node(p.n[0].e, 0);
  CHECK(pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 0, S, p.now) == PL_ESTATE);
  pair_free(&p);
}

/* A dial that is given up tells the acceptor, which would otherwise keep a dead entry in its accept queue. */
static bool lose_from_acceptor(pair *p, const pair_gram *g) { return pl_addr_eq(&g->from, &p->n[1].addr); }

static void given_up(unsigned how) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_APP, 0, false) == PL_OK);
  p.drop = lose_from_acceptor;
  int64_t id = pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 0, S, p.now);
  pair_run(&p, 100 * MS);
  CHECK(pair_stats(&p, 1).conns == 1);
  if (how == 0) CHECK(pl_engine_close(p.n[0].e, (uint32_t)id, p.now) == PL_OK);
  if (how == 1) CHECK(pl_engine_abort(p.n[0].e, (uint32_t)id, p.now) == PL_OK);
  pair_run(&p, 2 * S); /* how == 2: the timeout ends it */
  CHECK(pair_stats(&p, 0).conns == 0 && pair_stats(&p, 1).conns == 0);
  pair_free(&p);
}

/* Strangers learn nothing of a private node; the dialled may answer; public nodes and open ports take anybody with a session. */
static void trust_gate(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  pl_engine *b = p.n[1].e;
  static const uint16_t ports[] = {444, 1000, 1001, 2000};
  for (unsigned i = 0; i < 4; i++) CHECK(pl_engine_listen(b, ports[i], PL_OWNER_APP, 0, ports[i] == 2000) == PL_OK);
  uint64_t n = 1;
#define SYN(port) pair_inject(&p, 1, 7, n, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_SYN, (uint16_t)(50000 + n), port)), n++
#define DGRAM(port)                                                                       \
  do {                                                                                    \
    pl_packet d = pair_packet(&p, 1, PL_PROTO_DATAGRAM, 0, (uint16_t)(50000 + n), port);  \
    d.payload = (const uint8_t *)"hi";                                                    \
    d.len = 2;                                                                            \
    pair_inject(&p, 1, 7, n++, d);                                                        \
  } while (0)
  for (unsigned i = 0; i < 3; i++) SYN(ports[i]);
  SYN(9); /* an unbound port answers as little as a bound one */
  DGRAM(1000);
  CHECK(pair_stats(&p, 1).conns == 0 && pair_stats(&p, 1).drop_untrusted == 5 && pair_stats(&p, 1).syn_refused == 0);
  SYN(2000);
  CHECK(pair_stats(&p, 1).conns == 1);
  DGRAM(2000);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 1 && pair_last(&p, 1, PL_EV_DATAGRAM)->len == 2);
  pl_engine_set_public(b, true);
  SYN(1000);
  CHECK(pair_stats(&p, 1).conns == 2);
  pl_engine_set_public(b, false);
  CHECK(pl_engine_dial(b, 0, 0, p.n[0].node, 1001, 0, 30 * S, p.now) > 0); /* we dialled: five minutes on 444 and 1001 */
  p.now += MS;
  SYN(444);
  SYN(1001);
  SYN(1000);
  CHECK(pair_stats(&p, 1).conns == 2 + 1 + 2 && pair_stats(&p, 1).drop_untrusted == 6);
  p.now += 301 * S;
  SYN(1001);
  CHECK(pair_stats(&p, 1).drop_untrusted == 7);
  CHECK(pl_engine_set_trusted(b, p.n[0].node, true) == PL_OK);
  SYN(1000);
  CHECK(pair_stats(&p, 1).drop_untrusted == 7 && pair_count(&p, 1, PL_EV_ACCEPT) == 5);
  pair_free(&p);
}

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

/* A peer with very many connections is forgotten at once: the daemon does not stand still over it. */
static void many(void) {
  enum { DIALS = 40000 };
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 3);
  for (unsigned i = 0; i < DIALS; i++)
    CHECK(pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, (uint16_t)(1 + i / 1000), 0, 30 * S, p.now) > 0);
  CHECK(pair_stats(&p, 0).conns == DIALS);
  CHECK(pl_engine_forget_peer(p.n[0].e, p.n[1].node, p.now) == PL_OK && pair_stats(&p, 0).conns == 0);
  CHECK(pair_count(&p, 0, PL_EV_CONN_FAILED) == DIALS);
  pair_run(&p, S);
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

/* SYN floods, full ports, full accept queues. */
static void syn_limits(void) {
  pl_engine_cfg c = pair_cfg();
  c.accept_queue = 9; /* 8 for one peer */
  c.max_conns_port = 14; /* 12 */
  pair p;
  pair_init(&p, &c);
  pair_join(&p, NULL, 0);
  CHECK(pl_engine_listen(p.n[1].e, 2000, PL_OWNER_APP, 0, true) == PL_OK && pl_engine_listen(p.n[1].e, 7, PL_OWNER_ECHO, 0, true) == PL_OK);
  uint64_t n = 1;
  for (unsigned i = 0; i < 100; i++, n++) pair_inject(&p, 1, 7, n, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_SYN, (uint16_t)(50000 + i), 2000));
  pl_engine_stats st = pair_stats(&p, 1);
  CHECK(st.conns == 8 && st.accept_queue_drops == 56 && st.syn_rate_limited == 36 && st.syn_refused == 56);
  pair_inject(&p, 1, 7, n++, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_SYN, 50000, 2000)); /* a repeated SYN is no new one */
  CHECK(pair_stats(&p, 1).syn_rate_limited == 36 && pair_stats(&p, 1).conns == 8);
  p.now += S; /* ten more tokens */
  for (unsigned i = 0; i < 20; i++, n++) pair_inject(&p, 1, 7, n, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_SYN, (uint16_t)(51000 + i), 7));
  st = pair_stats(&p, 1);
  CHECK(st.conns == 18 && st.syn_rate_limited == 46);
  p.now += S;
  for (unsigned i = 0; i < 5; i++, n++) pair_inject(&p, 1, 7, n, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_SYN, (uint16_t)(52000 + i), 7));
  CHECK(pair_stats(&p, 1).conns == 20 && pair_stats(&p, 1).syn_refused == 59); /* 12 on the port */
  pl_engine_own(p.n[1].e, pair_last(&p, 1, PL_EV_ACCEPT)->conn, PL_OWNER_APP, 0, p.now); /* taken: its place is free */
  p.now += S;
  pair_inject(&p, 1, 7, n++, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_SYN, 53000, 2000));
  CHECK(pair_stats(&p, 1).conns == 21);
  pair_inject(&p, 1, 7, n++, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_RST, 53000, 2000));
  CHECK(pair_stats(&p, 1).conns == 20 && pair_last(&p, 1, PL_EV_CONN_CLOSED)->a == 1);
  pair_inject(&p, 1, 7, n++, pair_packet(&p, 1, PL_PROTO_STREAM, PL_FLAG_ACK, 53001, 2000)); /* of no connection: silence */
  CHECK(pair_stats(&p, 1).drop_no_conn == 1);
  CHECK(pl_engine_forget_peer(p.n[1].e, p.n[0].node, p.now) == PL_OK && pair_stats(&p, 1).conns == 0 && pair_stats(&p, 1).peers == 0);
  CHECK(pl_engine_forget_peer(p.n[1].e, p.n[0].node, p.now) == PL_ENOENT);
  CHECK(pl_engine_unlisten(p.n[1].e, 7) == PL_OK && pl_engine_unlisten(p.n[1].e, 7) == PL_ENOENT);
  pair_free(&p);
}

static unsigned fanned;
static void fan(void *ctx, const pl_packet *pkt) {
  CHECK(ctx == &fanned && pkt->len > 0);
  fanned++;
}

static void datagrams(void) {
  pl_engine_cfg c = pair_cfg();
  c.datagram_queue = 4;
  pair p;
  pair_init(&p, &c);
  pl_engine *a = p.n[0].e;
  static uint8_t big[65500];
  CHECK(pl_engine_send_datagram(a, 0, 0, 0, p.n[1].node, 5000, big, 0, p.now) == PL_EFORMAT);
  CHECK(pl_engine_send_datagram(a, 0, 0, 0, p.n[1].node, 5000, big, 65429, p.now) == PL_ELIMIT);
  CHECK(pl_engine_send_datagram(a, 0, 0, 0, p.n[0].node, 5000, big, 1, p.now) == PL_ENOENT);
  for (unsigned i = 0; i < 4; i++) CHECK(pl_engine_send_datagram(a, 3, 0, 3, p.n[1].node, 5000, (const uint8_t *)"wait", 4, p.now) == PL_OK);
  CHECK(pl_engine_send_datagram(a, 0, 0, 0, p.n[1].node, 5000, (const uint8_t *)"full", 4, p.now) == PL_ELIMIT);
  CHECK(pair_count(&p, 0, PL_EV_PEER_WANTED) == 1);
  CHECK(pl_engine_listen(p.n[1].e, 5000, PL_OWNER_APP, 0, false) == PL_OK);
  fanned = 0;
  pl_engine_on_datagram(p.n[1].e, fan, &fanned);
  pair_join(&p, NULL, 3);
  pair_run(&p, 10 * MS);
  const pl_event *ev = pair_last(&p, 1, PL_EV_DATAGRAM);
  CHECK(pair_count(&p, 1, PL_EV_DATAGRAM) == 4 && fanned == 4 && ev->len == 4 && !memcmp(ev->data, "wait", 4));
  CHECK(ev->node == p.n[0].node && ev->remote_net == 3 && ev->local_net == 3 && ev->local_port == 5000 && ev->remote_port >= 49152);
  CHECK(pl_engine_send_datagram(a, 0, 77, 0, p.n[1].node, 5000, big, 65428, p.now) == PL_OK); /* the largest there is */
  CHECK(pl_engine_send_datagram(a, 0, 77, 0, p.n[1].node, 5001, big, 10, p.now) == PL_OK);    /* nobody in Python, but clients */
  pair_run(&p, 10 * MS);
  CHECK(fanned == 6 && pair_count(&p, 1, PL_EV_DATAGRAM) == 5 && pair_last(&p, 1, PL_EV_DATAGRAM)->len == 65428);
  CHECK(pair_last(&p, 1, PL_EV_DATAGRAM)->remote_port == 77);
  /* Python does not look: the memory that a peer can take is bounded, and a key exchange still gets through. */
  for (unsigned i = 0; i < 200; i++) CHECK(pl_engine_send_datagram(a, 0, 77, 0, p.n[1].node, 5000, big, 65428, p.now) == PL_OK);
  pair_run(&p, 10 * MS);
  uint64_t dropped = pair_stats(&p, 1).drop_event;
  CHECK(dropped >= 200 - (5u << 20) / 65428 && dropped < 200 && fanned == 206);
  uint8_t pila[150] = "PILA";
  pair_input(&p, 1, pila, sizeof pila, p.n[0].addr);
  CHECK(pair_count(&p, 1, PL_EV_FRAME) == 1 && pair_stats(&p, 1).drop_event == dropped);
  CHECK(pl_engine_send_datagram(a, 0, 77, 0, p.n[1].node, 5000, big, 10, p.now) == PL_OK); /* read, so there is room again */
  pair_run(&p, 10 * MS);
  CHECK(pair_stats(&p, 1).drop_event == dropped && pair_last(&p, 1, PL_EV_DATAGRAM)->len == 10);
  pair_free(&p);
}

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

/* Local clients: what their shell is told, and what happens when one goes away. */
static void clients(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  pair_join(&p, &own_kind, 3);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_CLIENT, 5, false) == PL_OK);
  uint32_t out[3], in[3];
  for (unsigned i = 0; i < 3; i++) {
    out[i] = (uint32_t)pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 9, 5 * S, p.now);
    pair_run(&p, 30 * MS);
    in[i] = pair_last(&p, 1, PL_EV_ACCEPT)->conn;
    CHECK(pair_last(&p, 1, PL_EV_ACCEPT)->client == 5 && pl_engine_next_ready(p.n[1].e) == 0);
    CHECK(pl_engine_write(p.n[0].e, out[i], (const uint8_t *)"hello", 5, p.now) == 5);
    pair_run(&p, 30 * MS);
  }
  CHECK(pl_engine_own(p.n[1].e, in[0], PL_OWNER_CLIENT, 5, p.now) == PL_OK);
  CHECK(pl_engine_next_ready(p.n[1].e) == in[0] && pl_engine_next_ready(p.n[1].e) == 0);
  pl_client_conn k;
  CHECK(!pl_engine_client_conn(p.n[1].e, in[1], &k)); /* still parked */
  CHECK(pl_engine_client_conn(p.n[1].e, in[0], &k) && k.client == 5 && !k.dead && pl_stream_readable(k.s) == 5);
  pl_stream_consume(k.s, 5, p.now);
  pl_engine_touch(p.n[1].e, in[0]);
  CHECK(pl_engine_abort(p.n[0].e, out[0], p.now) == PL_OK); /* reset: the shell hears of it and lets go */
  pair_run(&p, 30 * MS);
  CHECK(pl_engine_next_ready(p.n[1].e) == in[0] && pl_engine_client_conn(p.n[1].e, in[0], &k) && k.dead);
  CHECK(pl_engine_close(p.n[1].e, in[0], p.now) == PL_OK && !pl_engine_client_conn(p.n[1].e, in[0], &k));
  CHECK(pl_engine_own(p.n[1].e, in[1], PL_OWNER_CLIENT, 5, p.now) == PL_OK);
  pl_engine_client_gone(p.n[1].e, 5, p.now); /* one taken, one parked: both end in order */
  pair_run(&p, 100 * MS);
  uint8_t buf[4];
  CHECK(pl_engine_read(p.n[0].e, out[1], buf, 4, p.now) == 0 && pl_engine_read(p.n[0].e, out[2], buf, 4, p.now) == 0);
  pair_run(&p, 30 * S);
  CHECK(pair_stats(&p, 1).conns == 0 && pl_engine_next_ready(p.n[1].e) == 0);
  pl_event head = {.type = PL_EV_CLIENT_FRAME, .client = 5, .a = 3};
  CHECK(pl_engine_post(p.n[1].e, &head, (const uint8_t *)"abc", 3) == PL_OK);
  CHECK(pair_last(&p, 1, PL_EV_CLIENT_FRAME)->client == 5 && pair_last(&p, 1, PL_EV_CLIENT_FRAME)->len == 3);
  pair_free(&p);
}

/* Path MTU: a path that carries less than Ethernet gets smaller segments, and one that stops carrying large ones falls back. */
static uint32_t path_mtu;
static bool too_large(pair *p, const pair_gram *g) {
  (void)p;
  return g->len > path_mtu;
}

static void path_mtus(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  p.drop = too_large;
  path_mtu = 1452;
  pair_join(&p, &own_kind, 3);
  pl_packet ping = pair_packet(&p, 0, PL_PROTO_CONTROL, 0, 1, 0);
  pair_inject(&p, 0, 7, 1, ping);
  pair_run(&p, 3 * S);
  CHECK(pair_peer(&p, 0).mss == 1452 - 70 && pair_last(&p, 0, PL_EV_PMTU)->a == 1452 - 70);
  CHECK(pl_engine_listen(p.n[1].e, 1000, PL_OWNER_APP, 0, false) == PL_OK);
  int64_t id = pl_engine_dial(p.n[0].e, 0, 0, p.n[1].node, 1000, 0, 5 * S, p.now);
  pair_run(&p, 100 * MS);
  uint32_t in = pair_last(&p, 1, PL_EV_ACCEPT)->conn;
  path_mtu = 1300;
  transfer(&p, (uint32_t)id, in, 300000);
  CHECK(pair_peer(&p, 0).mss == PL_SEGMENT_BASE);
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
  for (unsigned i = 0; i < 4; i++) streams(i & 1, i & 2);
  echo();
  dials();
  for (unsigned i = 0; i < 3; i++) given_up(i);
  trust_gate();
  replays_and_forgeries();
  checksums();
  prefixes();
  no_session();
  keys();
  dropped_keys();
  foretold();
  many();
  frames_sent();
  syn_limits();
  datagrams();
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
  clients();
  path_mtus();
  printf("test_engine: ok\n");
  return 0;
}
