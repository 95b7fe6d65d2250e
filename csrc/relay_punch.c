/* Introductions (beacon.md 3.3, docs/wire-extensions.md 7.2): two nodes of this beacon, or one of ours and one of a peer's.
 *
 * Requests are limited per node and per address, and only those who were known before at the address they ask from are introduced: otherwise one
 * datagram with a forged source would make us send two, larger ones. Each node hears of the other from its own beacon, from the address it knows. */
#include "relay_internal.h"

#include "wire.h"

#define INTRODUCE_HEAD 10u /* type, step, requester, target; an endpoint follows */
enum { STEP_ASK = 0, STEP_DONE = 1 };

bool pl_relay_allow(pl_relay_bucket *table, uint64_t key, double rate, uint64_t now_ns) {
  /* Direct-mapped: a collision refills the slot, so strangers can at worst reset limits, never grow the table. */
  pl_relay_bucket *b = &table[key % PL_RELAY_BUCKETS];
  if (b->key != key || b->at_ns == 0) *b = (pl_relay_bucket){.key = key, .tokens = 2 * rate, .at_ns = now_ns};
  if (now_ns > b->at_ns) {
    b->tokens += (double)(now_ns - b->at_ns) * rate / 1e9;
    if (b->tokens > 2 * rate) b->tokens = 2 * rate;
    b->at_ns = now_ns;
  }
  if (b->tokens < 1) return false;
  b->tokens -= 1;
  return true;
}

static bool punch_allowed(pl_relay *r, const pl_addr *from, uint32_t node) {
  pl_addr ip = *from;
  ip.port = 0;
  if (!pl_relay_allow(r->punch_node, pl_relay_hash(r, &ip, (uint64_t)node << 8 | 1), r->cfg.punch_rate, r->now_ns)) return false;
  if (ip.family == 6) memset(ip.ip + 8, 0, 8); /* a host owns a whole /64 */
  return pl_relay_allow(r->punch_ip, pl_relay_hash(r, &ip, 2), (double)r->cfg.punch_rate * PL_PUNCH_IP_FACTOR, r->now_ns);
}

static void introduce(pl_relay *r, pl_relay_peer *peer, uint8_t step, uint32_t requester, uint32_t target, const pl_addr *endpoint) {
  uint8_t *p = r->replies + PL_RELAY_REPLY_SIZE * (size_t)r->n_replies;
  int len = pl_beacon_write_addr(p + INTRODUCE_HEAD, endpoint);
  if (len < 0) return;
  p[0] = PL_BEACON_INTRODUCE;
  p[1] = step;
  pl_put32(p + 2, requester);
  pl_put32(p + 6, target);
  r->n_replies++;
  pl_relay_emit_peer(r, peer, p, INTRODUCE_HEAD + (uint32_t)len);
}

void pl_relay_on_punch(pl_relay *r, const pl_rx *rx, const uint8_t *p) {
  uint32_t requester = pl_get32(p + 1), target = pl_get32(p + 5);
  if (requester == 0 || requester == target || rx->from.family == PL_ADDR_STREAM) {
    r->st.bad++;
    return;
  }
  if (!punch_allowed(r, &rx->from, requester)) {
    r->st.limited++;
    return;
  }
  bool known = pl_relay_known_at(r, requester, &rx->from);
  if (!pl_relay_bind(r, requester, &rx->from, &rx->local, false)) return;
  const pl_relay_node *t = pl_relay_find(r, target);
  pl_relay_peer *peer = pl_relay_elsewhere(r, target, t);
  if (!known || !(peer || (t && t->addr.family != PL_ADDR_STREAM))) {
    r->st.not_found++;
    return;
  }
  if (peer) {
    introduce(r, peer, STEP_ASK, requester, target, &rx->from);
    return;
  }
  r->st.punches++;
  pl_relay_emit_endpoint(r, &rx->from, &rx->local, PL_BEACON_PUNCH_COMMAND, &t->addr);
  pl_relay_emit_endpoint(r, &t->addr, &t->local, PL_BEACON_PUNCH_COMMAND, &rx->from);
}

void pl_relay_on_introduce(pl_relay *r, pl_relay_peer *via, const uint8_t *p, uint32_t len) {
  pl_addr endpoint;
  if (len < INTRODUCE_HEAD || p[1] > STEP_DONE || pl_beacon_read_addr(p + INTRODUCE_HEAD, p + len, &endpoint) < 0) {
    r->st.bad++;
    return;
  }
  uint32_t requester = pl_get32(p + 2), target = pl_get32(p + 6);
  const pl_relay_node *n = pl_relay_find(r, p[1] == STEP_ASK ? target : requester);
  if (!n || n->addr.family == PL_ADDR_STREAM) {
    r->st.not_found++;
    return;
  }
  if (p[1] == STEP_ASK) introduce(r, via, STEP_DONE, requester, target, &n->addr);
  r->st.introduced++;
  pl_relay_emit_endpoint(r, &n->addr, &n->local, PL_BEACON_PUNCH_COMMAND, &endpoint);
}
