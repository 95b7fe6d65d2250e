/* What all peers share: one of them, however greedy, leaves something for the others. */
#include "engine_pair.h"

#include <stdio.h>
#include <stdlib.h>

enum { ECHO = 7, PROGRAM = 2000, GREEDY = 0x1000, SECOND = 0x2000, THIRD = 0x3000, STRANGER = 0x9000 };

typedef struct crowd {
  pair p;
  pl_engine *e; /* the one that they all talk to */
  uint64_t counter;
  uint32_t port;
} crowd;

static void join(crowd *w, uint32_t node, bool trusted) {
  if (trusted) CHECK(pl_engine_set_trusted(w->e, node, true) == PL_OK);
  CHECK(pl_engine_install_key(w->e, node, w->p.key, 1, NULL, w->p.now) == PL_OK);
  pl_addr at = pair_addr(200, (uint16_t)(node >> 4 | 1));
  CHECK(pl_engine_set_path(w->e, node, &at, false, w->p.now) == PL_OK);
}

static void begin(crowd *w, const pl_engine_cfg *cfg) {
  memset(w, 0, sizeof *w);
  pair_init(&w->p, cfg);
  w->e = w->p.n[1].e;
  CHECK(pl_engine_listen(w->e, ECHO, PL_OWNER_ECHO, 0, true) == PL_OK && pl_engine_listen(w->e, PROGRAM, PL_OWNER_APP, 0, false) == PL_OK);
  join(w, GREEDY, true);
  join(w, SECOND, true);
  join(w, THIRD, true);
}

/* One packet of a stream of `node`, from the port `src`. */
static void packet(crowd *w, uint32_t node, uint8_t flags, uint16_t src, uint16_t dst) {
  pl_packet pkt = {.proto = PL_PROTO_STREAM, .flags = flags, .src_node = node, .dst_node = w->p.n[1].node, .src_port = src, .dst_port = dst};
  uint8_t inner[PL_HDR_SIZE];
  pl_packet_write_header(inner, &pkt);
  pl_packet_write_crc(inner, sizeof inner);
  size_t len;
  uint8_t *f = pair_seal(w->p.key, node, node, ++w->counter, inner, sizeof inner, &len);
  pair_input(&w->p, 1, f, len, pair_addr(200, (uint16_t)(node >> 4 | 1)));
  free(f);
}

static unsigned streams(const crowd *w, uint32_t node) {
  pl_conn_info info;
  unsigned n = 0;
  for (size_t it = 0; pl_engine_next_conn(w->e, &it, &info);) n += info.node == node;
  return n;
}

/* A stream more, asked for once. */
static bool open_stream(crowd *w, uint32_t node, uint16_t dst) {
  pl_engine_stats before = pair_stats(&w->p, 1);
  packet(w, node, PL_FLAG_SYN, (uint16_t)(1024 + w->port++ % 60000), dst);
  return pair_stats(&w->p, 1).conns > before.conns;
}

static void open_many(crowd *w, uint32_t node, uint16_t dst, unsigned n) {
  while (n--) {
    w->p.now += MS / 10;
    open_stream(w, node, dst);
  }
}

static pl_engine_cfg roomy(void) {
  pl_engine_cfg c = pair_cfg();
  c.max_conns_port = c.accept_queue = 60000;
  return c;
}

/* One peer alone has the whole rate; as soon as another asks, that one is served at once whatever the first does. */
static void test_rate_between_peers(void) {
  pl_engine_cfg c = roomy();
  crowd w;
  begin(&w, &c);
  for (unsigned i = 0; i < 300; i++) open_stream(&w, GREEDY, ECHO);
  w.p.now += S;
  for (unsigned i = 0; i < 300; i++) open_stream(&w, GREEDY, ECHO);
  CHECK(streams(&w, GREEDY) == 64 + 100 && pair_stats(&w.p, 1).syn_rate_limited == 600 - 164);
  CHECK(!open_stream(&w, SECOND, ECHO)); /* there was nothing left; the repetition finds something */
  unsigned served = 0;
  for (unsigned ms = 0; ms < 20000; ms += 10) {
    w.p.now += 10 * MS;
    for (unsigned i = 0; i < 5; i++) open_stream(&w, GREEDY, ECHO);
    if (ms % 200 == 0 && ms >= 1000) served += open_stream(&w, SECOND, ECHO);
  }
  CHECK(served == 95);
  CHECK(streams(&w, GREEDY) > 1900 && streams(&w, GREEDY) + streams(&w, SECOND) <= 100 + 2100);
  unsigned alone = streams(&w, GREEDY); /* and alone again */
  w.p.now += 11 * S;
  for (unsigned i = 0; i < 300; i++) open_stream(&w, GREEDY, ECHO);
  CHECK(streams(&w, GREEDY) == alone + 100);
  pair_free(&w.p);
}

/* A crowd of strangers at an open port does not keep a trusted peer out. */
static void test_rate_and_strangers(void) {
  pl_engine_cfg c = roomy();
  crowd w;
  begin(&w, &c);
  for (uint32_t i = 0; i < 40; i++) join(&w, STRANGER + 16 * i, false);
  unsigned served = 0, asked = 0;
  for (unsigned ms = 0; ms < 10000; ms += 10) {
    w.p.now += 10 * MS;
    for (uint32_t i = 0; i < 40; i++) open_stream(&w, STRANGER + 16 * i, ECHO);
    if (ms % 200 || ms < 1000) continue;
    asked++;
    served += open_stream(&w, SECOND, PROGRAM);
  }
  CHECK(asked == served && pair_stats(&w.p, 1).syn_rate_limited > 30000);
  CHECK(pair_stats(&w.p, 1).conns > 900); /* and they have what is left */
  pair_free(&w.p);
}

/* The places of a port and of its accept queue. */
static void test_places(void) {
  pl_engine_cfg c = pair_cfg();
  c.syn_rate = 1000000;
  crowd w;
  begin(&w, &c);
  open_many(&w, GREEDY, ECHO, 1200);
  CHECK(streams(&w, GREEDY) == 1002);
  open_many(&w, SECOND, ECHO, 1200);
  CHECK(streams(&w, SECOND) == 19);
  CHECK(open_stream(&w, THIRD, ECHO));
  for (unsigned i = 0; i < 200; i++) packet(&w, GREEDY, PL_FLAG_RST, (uint16_t)(1024 + i), ECHO); /* its places are for those who have fewer */
  CHECK(streams(&w, GREEDY) == 802);
  for (unsigned i = 0; i < 1200; i++) {
    open_many(&w, GREEDY, ECHO, 1);
    open_many(&w, SECOND, ECHO, 1);
    open_many(&w, THIRD, ECHO, 1);
  }
  CHECK(streams(&w, GREEDY) < 900 && streams(&w, SECOND) > 60 && streams(&w, THIRD) > 50);
  open_many(&w, GREEDY, PROGRAM, 100); /* nobody takes them: the queue is full */
  unsigned drops = (unsigned)pair_stats(&w.p, 1).accept_queue_drops;
  CHECK(drops == 100 - 59);
  CHECK(open_stream(&w, SECOND, PROGRAM) && open_stream(&w, THIRD, PROGRAM));
  pair_free(&w.p);
}

/* Streams of a program that is gone take no places of the next one on its port, and give none back. */
static void test_port_changes_hands(void) {
  pl_engine_cfg c = pair_cfg();
  c.max_conns_port = 8;
  crowd w;
  begin(&w, &c);
  for (unsigned i = 0; i < 3; i++) CHECK(open_stream(&w, GREEDY, PROGRAM));
  CHECK(pl_engine_unlisten(w.e, PROGRAM) == PL_OK && pl_engine_listen(w.e, PROGRAM, PL_OWNER_APP, 0, false) == PL_OK);
  for (unsigned i = 0; i < 6; i++) CHECK(open_stream(&w, GREEDY, PROGRAM));
  for (unsigned i = 0; i < 3; i++) packet(&w, GREEDY, PL_FLAG_RST, (uint16_t)(1024 + i), PROGRAM);
  CHECK(streams(&w, GREEDY) == 6 && open_stream(&w, GREEDY, PROGRAM) && !open_stream(&w, GREEDY, PROGRAM));
  CHECK(open_stream(&w, SECOND, PROGRAM) && !open_stream(&w, SECOND, PROGRAM));
  pair_free(&w.p);
}

/* Datagrams to peers that do not answer: a program cannot fill the memory with them. */
static void test_waiting_datagrams(void) {
  pl_engine_cfg c = pair_cfg();
  pair p;
  pair_init(&p, &c);
  static uint8_t big[60000];
  unsigned n = 0;
  while (n < 10000 && pl_engine_send_datagram(p.n[0].e, 0, 0, 0, 0x5000 + n / 8, 9, big, sizeof big, p.now) == PL_OK) n++;
  CHECK(n > (30u << 20) / sizeof big && n < (34u << 20) / sizeof big);
  for (uint32_t i = 0; i < 100; i++) pl_engine_forget_peer(p.n[0].e, 0x5000 + i, p.now);
  CHECK(pl_engine_send_datagram(p.n[0].e, 0, 0, 0, 0x5000, 9, big, sizeof big, p.now) == PL_OK);
  pair_free(&p);
}

int main(void) {
  static const struct {
    const char *name;
    void (*run)(void);
  } tests[] = {{"rate between peers", test_rate_between_peers},
               {"rate and strangers", test_rate_and_strangers},
               {"places", test_places},
               {"port changes hands", test_port_changes_hands},
               {"waiting datagrams", test_waiting_datagrams}};
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    printf("%s\n", tests[i].name);
    fflush(stdout);
    tests[i].run();
  }
  return 0;
}
