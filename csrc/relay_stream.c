/* Deliveries to attached nodes (relay.h): they wait in one of two buffers until the owner takes them, a batch at a time. */
#include "relay_internal.h"

#define RECORD_HEAD 8u

void pl_relay_stream_addr(pl_addr *out, uint32_t node) {
  memset(out, 0, sizeof *out);
  out->family = PL_ADDR_STREAM;
  pl_put32(out->ip, node);
}

void pl_relay_hand(pl_relay *r, pl_relay_node *n, const uint8_t *p, uint32_t len) {
  uint32_t need = RECORD_HEAD + len;
  if (n->hand_turn != r->hand_turn) {
    n->hand_turn = r->hand_turn;
    n->hand_bytes = 0;
  }
  /* One flooded reader leaves room for the others. */
  if (need > PL_RELAY_HAND_BYTES - r->hand_len || n->hand_bytes + need > PL_RELAY_HAND_BYTES / 4) {
    r->st.hand_full++;
    return;
  }
  uint8_t *to = r->hand[r->hand_turn & 1] + r->hand_len;
  memcpy(to, &n->id, 4);
  memcpy(to + 4, &len, 4);
  memcpy(to + RECORD_HEAD, p, len);
  r->hand_len += need;
  n->hand_bytes += need;
  r->st.handed++;
}

bool pl_relay_waiting(const pl_relay *r) { return r->hand_len > 0; }

size_t pl_relay_take(pl_relay *r, const uint8_t **out) {
  size_t len = r->hand_len;
  *out = r->hand[r->hand_turn & 1];
  r->hand_turn++;
  r->hand_len = 0;
  return len;
}
