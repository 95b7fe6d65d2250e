/* A relay without sockets: datagrams in as text or bytes, what it sends as a flat list. */
#ifndef PL_TEST_RELAY_NET_H
#define PL_TEST_RELAY_NET_H

#include <arpa/inet.h>

#include "check.h"
#include "relay.h"

#define A "203.0.113.10:40001"
#define B "203.0.113.20:40002"
#define C "203.0.113.30:40003"
#define V6 "[2001:db8::10]:40006"
#define DEMO "50494c5364656d6f2d7061796c6f6164"

typedef struct sent {
  pl_addr to, from;
  const uint8_t *p;
  size_t len;
  unsigned run; /* datagrams with the same number leave in one system call */
} sent;

typedef struct net {
  pl_relay *r;
  uint64_t now;
  pl_addr local; /* the beacon's address that datagrams are sent to */
  pl_rx rx[PL_UDP_BATCH];
  unsigned n_rx;
  sent *out;
  unsigned n_out;
} net;

/* "203.0.113.10:40001" or "[2001:db8::10]:40006" */
static inline pl_addr addr(const char *text) {
  pl_addr a;
  memset(&a, 0, sizeof a);
  char host[64];
  const char *colon = strrchr(text, ':');
  CHECK(colon && (size_t)(colon - text) < sizeof host);
  bool v6 = text[0] == '[';
  size_t n = (size_t)(colon - text) - (v6 ? 2 : 0);
  memcpy(host, text + (v6 ? 1 : 0), n);
  host[n] = 0;
  a.family = v6 ? 6 : 4;
  a.port = (uint16_t)atoi(colon + 1);
  CHECK(inet_pton(v6 ? AF_INET6 : AF_INET, host, a.ip) == 1);
  return a;
}

static inline pl_relay_cfg usual(void) {
  pl_relay_cfg cfg;
  pl_relay_cfg_default(&cfg);
  return cfg;
}

static inline net net_new(const pl_relay_cfg *cfg) {
  pl_relay_cfg plain = usual();
  net t = {.now = 1000 * PL_NS_PER_S, .local = addr("203.0.113.1:9001")};
  t.r = pl_relay_new(cfg ? cfg : &plain, t.now);
  CHECK(t.r);
  t.out = calloc(2 * PL_RELAY_BATCH, sizeof *t.out);
  CHECK(t.out);
  return t;
}

static inline void net_clear(net *t) {
  for (unsigned i = 0; i < t->n_rx; i++) free(t->rx[i].data);
  t->n_rx = 0;
}

static inline void net_free(net *t) {
  net_clear(t);
  pl_relay_free(t->r);
  free(t->out);
}

/* One buffer of the next batch, in memory of exactly its size. `seg` as in pl_rx. */
static inline uint8_t *net_add(net *t, const pl_addr *from, const void *p, size_t len, uint32_t seg) {
  CHECK(t->n_rx < PL_UDP_BATCH);
  pl_rx *rx = &t->rx[t->n_rx++];
  *rx = (pl_rx){.data = check_copy(p, len), .len = (uint32_t)len, .seg = seg, .from = *from, .local = t->local};
  return rx->data;
}

static inline unsigned net_run(net *t) {
  pl_relay_input(t->r, t->rx, t->n_rx, t->now);
  const pl_relay_send *s;
  unsigned n = pl_relay_sends(t->r, &s);
  t->n_out = 0;
  for (unsigned i = 0; i < n; i++) {
    CHECK(s[i].n_iov >= 1 && s[i].n_iov <= PL_TX_RUN_SEGS && (s[i].seg != 0) == (s[i].n_iov > 1));
    size_t bytes = 0;
    for (unsigned k = 0; k < s[i].n_iov; k++) {
      size_t len = s[i].iov[k].iov_len;
      if (s[i].seg) CHECK(k + 1 < s[i].n_iov ? len == s[i].seg : len <= s[i].seg);
      bytes += len;
      t->out[t->n_out++] = (sent){s[i].to, s[i].from, s[i].iov[k].iov_base, len, i};
    }
    if (s[i].n_iov > 1) CHECK(bytes <= PL_TX_RUN_BYTES);
  }
  return t->n_out;
}

/* One datagram in, everything that leaves. Earlier outputs are gone then. */
static inline unsigned net_send(net *t, const char *from, const void *p, size_t len) {
  net_clear(t);
  pl_addr a = addr(from);
  net_add(t, &a, p, len, 0);
  return net_run(t);
}

static inline unsigned net_hex(net *t, const char *from, const char *hex) {
  size_t n;
  uint8_t *p = check_hex(hex, &n);
  unsigned out = net_send(t, from, p, n);
  free(p);
  return out;
}

static inline bool is_hex(const sent *s, const char *to, const char *hex) {
  size_t n;
  uint8_t *p = check_hex(hex, &n);
  pl_addr a = addr(to);
  bool same = s->len == n && memcmp(s->p, p, n) == 0 && pl_addr_eq(&s->to, &a);
  if (!same) {
    fprintf(stderr, "expected %s to %s, got port %u: ", hex, to, s->to.port);
    for (size_t i = 0; i < s->len && i < 40; i++) fprintf(stderr, "%02x", s->p[i]);
    fprintf(stderr, "\n");
  }
  free(p);
  return same;
}

static inline void head(uint8_t *p, uint8_t type, uint32_t a, uint32_t b) {
  p[0] = type;
  pl_put32(p + 1, a);
  pl_put32(p + 5, b);
}

static inline unsigned net_discover(net *t, const char *from, uint32_t node) {
  uint8_t p[9];
  head(p, 0x01, node, 0);
  return net_send(t, from, p, 5);
}

static inline void register_three(net *t) {
  net_discover(t, A, 100);
  net_discover(t, B, 200);
  net_discover(t, V6, 300);
}

static inline unsigned net_relay(net *t, const char *from, uint32_t sender, uint32_t dest) {
  uint8_t p[13] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 'P', 'I', 'L', 'S'};
  head(p, 0x05, sender, dest);
  return net_send(t, from, p, sizeof p);
}

static inline unsigned net_punch(net *t, const char *from, uint32_t node, uint32_t target) {
  uint8_t p[9];
  head(p, 0x03, node, target);
  return net_send(t, from, p, sizeof p);
}

static inline unsigned net_sync(net *t, const char *from, const uint32_t *ids, uint16_t n) {
  uint8_t p[7 + 4 * 64];
  CHECK(n <= 64);
  p[0] = 0x07;
  pl_put32(p + 1, 77);
  pl_put16(p + 5, n);
  for (uint16_t i = 0; i < n; i++) pl_put32(p + 7 + 4 * i, ids[i]);
  return net_send(t, from, p, 7 + 4 * (size_t)n);
}

static inline pl_relay_stats net_stats(const net *t) {
  pl_relay_stats st;
  pl_relay_get_stats(t->r, &st);
  return st;
}

#endif
