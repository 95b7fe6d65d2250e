/* The beacon's forwarder: any datagrams from any senders, any order of policy calls. Input: a sequence of operations, one byte each
 * with its arguments. Checked: sends are within the received buffers and shaped as one system call takes them, payloads pass
 * unchanged, tables keep their bounds. */
#include "fuzz.h"
#include "relay.h"
#include "wire.h"

#define BATCH 8u
#define MAX_NODES 16u

static pl_addr address(uint8_t which) {
  pl_addr a = {.family = which & 0x40 ? 6 : 4, .port = (uint16_t)(1 + (which & 3)), .ip = {[0] = 10, [3] = (uint8_t)(which >> 2 & 15)}};
  if (which & 0x80) pl_relay_stream_addr(&a, which & 15);
  return a;
}

static void check_sends(pl_relay *r) {
  const pl_relay_send *s;
  unsigned n = pl_relay_sends(r, &s);
  for (unsigned i = 0; i < n; i++) {
    FUZZ_CHECK(s[i].n_iov >= 1 && s[i].n_iov <= PL_TX_RUN_SEGS && (s[i].to.family == 4 || s[i].to.family == 6));
    for (unsigned k = 0; k < s[i].n_iov; k++) {
      const uint8_t *p = s[i].iov[k].iov_base;
      size_t len = s[i].iov[k].iov_len;
      FUZZ_CHECK(len >= 1 && len <= PL_UDP_MAX);
      if (s[i].n_iov > 1) FUZZ_CHECK(k + 1 < s[i].n_iov ? len == s[i].seg : len <= s[i].seg);
      FUZZ_CHECK(p[0] == PL_BEACON_DISCOVER_REPLY || p[0] == PL_BEACON_PUNCH_COMMAND || p[0] == PL_BEACON_DELIVER ||
                 p[0] == PL_BEACON_RELAY || p[0] == PL_BEACON_DELIVER_DST || p[0] == PL_BEACON_INTRODUCE || p[0] == PL_BEACON_SEALED);
      if (p[0] == PL_BEACON_SEALED) {
        FUZZ_CHECK(len > PL_SEALED_HEAD + PL_SEALED_TAG && p[1] == PL_SEALED_DATA);
        fuzz_touch(p, len);
        continue;
      }
      fuzz_touch(p, len);
      if (p[0] == PL_BEACON_INTRODUCE) {
        pl_addr a;
        FUZZ_CHECK(pl_beacon_read_addr(p + 10, p + len, &a) == (int)len - 10);
        continue;
      }
      pl_beacon_msg m;
      FUZZ_CHECK(pl_beacon_parse(p, p + len, &m) == PL_OK);
    }
  }
}

/* Answers to probes go to somebody who asked in this batch, and are no larger than the question. */
static void check_replies(pl_relay *r, const pl_rx *rx, unsigned n) {
  const pl_relay_reply *a;
  unsigned count = pl_relay_replies(r, &a);
  size_t bytes = 0, asked = 0;
  for (unsigned i = 0; i < n; i++) asked += rx[i].len;
  for (unsigned i = 0; i < count; i++) {
    bool known = false;
    for (unsigned k = 0; k < n; k++) known = known || pl_addr_eq(&a[i].to, &rx[k].from);
    FUZZ_CHECK(known && a[i].data[0] == PL_BEACON_PROBE_REPLY && a[i].len <= PL_PROBE_REPLY_MAX);
    bytes += a[i].len;
  }
  FUZZ_CHECK(bytes <= asked);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_in in = {data, data + size};
  pl_relay_cfg cfg;
  pl_relay_cfg_default(&cfg);
  cfg.max_nodes = MAX_NODES;
  cfg.hash_seed = 1;
  uint64_t now = 1000 * PL_NS_PER_S;
  pl_relay *r = pl_relay_new(&cfg, now);
  FUZZ_CHECK(r != NULL);
  pl_addr local = {.family = 4, .port = 9001, .ip = {10, 9, 9, 9}};
  pl_addr alt = {.family = 4, .port = 7001, .ip = {10, 9, 9, 8}};
  pl_relay_set_probe(r, 7000, &alt);
  for (unsigned steps = 0; in.p < in.end && steps < 400; steps++) {
    uint8_t op = fuzz_u8(&in);
    switch (op & 7) {
      default: { /* a batch */
        pl_rx rx[BATCH];
        unsigned n = 1 + (op >> 3) % BATCH;
        for (unsigned i = 0; i < n; i++) {
          memset(&rx[i], 0, sizeof rx[i]);
          rx[i].from = address(fuzz_u8(&in));
          rx[i].local = local;
          uint8_t head = fuzz_u8(&in);
          size_t len;
          if (head & 0x80) { /* a well-formed beginning, small node numbers, a payload of equal datagrams */
            uint8_t *tail = fuzz_bytes(&in, fuzz_u8(&in) & 0x3f, &len);
            static const uint8_t types[] = {PL_BEACON_DISCOVER, PL_BEACON_PUNCH_REQUEST, PL_BEACON_RELAY, PL_BEACON_PROBE,
                                            PL_BEACON_DISCOVER_DST, PL_BEACON_RELAY, PL_BEACON_SYNC, PL_BEACON_INTRODUCE};
            size_t one = PL_RELAY_HEAD + len, copies = 1 + (head >> 3 & 3);
            rx[i].data = malloc(one * copies);
            FUZZ_CHECK(rx[i].data != NULL);
            uint8_t nodes = fuzz_u8(&in);
            for (size_t k = 0; k < copies; k++) {
              uint8_t *d = rx[i].data + k * one;
              d[0] = types[head & 7];
              pl_put32(d + 1, nodes >> 4);
              pl_put32(d + 5, nodes & 15);
              if (d[0] == PL_BEACON_SYNC) pl_put16(d + 5, (uint16_t)(len / 4));
              if (len) memcpy(d + PL_RELAY_HEAD, tail, len);
            }
            free(tail);
            rx[i].len = (uint32_t)(one * copies);
            if (types[head & 7] == PL_BEACON_PROBE) { /* the least size, or one byte less */
              rx[i].len = PL_PROBE_SIZE - (nodes & 1);
              free(rx[i].data);
              rx[i].data = calloc(1, rx[i].len);
              FUZZ_CHECK(rx[i].data != NULL);
              rx[i].data[0] = PL_BEACON_PROBE;
              copies = 1;
            }
            if (copies > 1) rx[i].seg = (uint32_t)one;
          } else {
            rx[i].data = fuzz_bytes(&in, head, &len);
            rx[i].len = (uint32_t)len;
            uint8_t seg = fuzz_u8(&in);
            if (seg & 1 && seg / 2u && seg / 2u < len) rx[i].seg = seg / 2u;
          }
        }
        if (op & 0x40)
          pl_relay_observe(r, PL_SOCK_OBSERVER, rx, n, now);
        else
          pl_relay_input(r, rx, n, now);
        if (!(op & 0x40)) check_sends(r);
        check_replies(r, rx, n);
        pl_relay_take_news(r);
        for (unsigned i = 0; i < n; i++) free(rx[i].data);
        break;
      }
      case 3: {
        pl_addr peers[4];
        unsigned n = op >> 3 & 3;
        for (unsigned i = 0; i < n; i++) peers[i] = address(fuzz_u8(&in) & 0x7f);
        pl_relay_set_peers(r, peers, n);
        break;
      }
      case 4: {
        pl_addr a = address(fuzz_u8(&in) & 0x7f);
        if (op & 8) a.family = 0;
        uint32_t node = fuzz_u8(&in) & 31;
        int e = pl_relay_vouch(r, node, &a, now);
        FUZZ_CHECK(e == PL_OK || e == PL_ELIMIT || (e == PL_EFORMAT && node == 0));
        break;
      }
      case 7: { /* a secret; a peer whose datagrams are sealed with a known key, or with one nearly known */
        static const uint8_t secret[32] = {1};
        uint8_t key[32] = {2}, inner[64] = {PL_BEACON_RELAY};
        const uint8_t *sealed;
        pl_addr peer = address(fuzz_u8(&in) & 0x7f);
        size_t len;
        if (op & 8) FUZZ_CHECK(pl_relay_set_secret(r, secret) == PL_OK);
        if (op & 16) pl_relay_add_open_key(r, &peer, op >> 5, key);
        key[0] = (uint8_t)(2 + (fuzz_u8(&in) == 0));
        pl_relay_set_seal_key(r, &peer, op >> 5, key);
        uint8_t *raw = fuzz_bytes(&in, 40, &len);
        if (len) memcpy(inner, raw, len);
        free(raw);
        int n = pl_relay_for_peer(r, &peer, inner, len ? (uint32_t)len : 9, &sealed);
        if (n > 0) {
          pl_rx rx = {.data = malloc((size_t)n), .len = (uint32_t)n, .from = peer, .local = local};
          FUZZ_CHECK(rx.data != NULL);
          memcpy(rx.data, sealed, (size_t)n);
          pl_relay_input(r, &rx, 1, now);
          check_sends(r);
          free(rx.data);
        }
        pl_relay_letter letters[PL_RELAY_LETTERS];
        FUZZ_CHECK(pl_relay_take_letters(r, letters) <= PL_RELAY_LETTERS);
        break;
      }
      case 5:
        now += (uint64_t)fuzz_u16(&in) << (op >> 3);
        pl_relay_expire(r, now);
        break;
      case 6: {
        uint32_t ids[MAX_NODES];
        pl_addr a;
        FUZZ_CHECK(pl_relay_nodes(r, ids, NULL, MAX_NODES) <= MAX_NODES);
        if (op & 8) pl_relay_attach(r, op >> 4, now);
        if (op & 16) pl_relay_detach(r, op >> 5);
        const uint8_t *handed;
        size_t n_handed = pl_relay_take(r, &handed);
        FUZZ_CHECK(n_handed <= PL_RELAY_HAND_BYTES);
        if (n_handed) fuzz_touch(handed, n_handed);
        pl_relay_lookup(r, op >> 3, &a);
        pl_relay_lookup_local(r, op >> 3, &a);
        break;
      }
    }
    pl_relay_stats st;
    pl_relay_get_stats(r, &st);
    FUZZ_CHECK(st.nodes <= MAX_NODES && st.routes <= MAX_NODES);
  }
  pl_relay_free(r);
  return 0;
}
