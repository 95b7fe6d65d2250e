/* What a node does with traffic: streams, dials, trust, limits, datagrams, local clients, path MTU. */
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

int main(void) {
  for (unsigned i = 0; i < 4; i++) streams(i & 1, i & 2);
  echo();
  dials();
  for (unsigned i = 0; i < 3; i++) given_up(i);
  trust_gate();
  many();
  syn_limits();
  datagrams();
  clients();
  path_mtus();
  printf("test_engine: ok\n");
  return 0;
}
