/* A receiver as strict as the other implementations are (transport.md 4.3, 4.5, 4.10), for tests of the plain sender: exact
 * segment boundaries, 128 out-of-order segments, 512 slots, SACK look-alikes swallowed, empty packets unanswered, every
 * FIN-flagged packet echoed. */
#ifndef PL_STREAM_UPSTREAM_H
#define PL_STREAM_UPSTREAM_H

#include "stream_sim.h"

#define UPS_SLOTS 512u
#define UPS_OOO 128u

typedef struct ups {
  uint32_t nxt;          /* next sequence number expected */
  uint32_t slots_used;   /* delivered and unread segments */
  struct {
    uint32_t seq;
    uint16_t len;
    uint8_t *data;
  } ooo[UPS_OOO];
  unsigned n_ooo, unacked, max_used;
  uint64_t ack_at;
  uint8_t *got;          /* all bytes delivered */
  size_t n_got, cap_got;
  uint32_t fin_echoes;
  bool no_sack, renege;  /* variants: never reports blocks; forgets held segments now and then */
  bool lowest;           /* which four of many ranges are reported */
  unsigned reneged;
  bool opened, closed;
} ups;

typedef struct ups_reply {
  pl_packet h;
  uint8_t body[64];
} ups_reply;

static inline void ups_free(ups *u) {
  for (unsigned i = 0; i < u->n_ooo; i++) free(u->ooo[i].data);
  free(u->got);
}

static inline void ups_take(ups *u, const uint8_t *p, uint16_t n) {
  if (u->n_got + n > u->cap_got) {
    u->cap_got = 2 * (u->n_got + n) + 4096;
    u->got = realloc(u->got, u->cap_got);
  }
  memcpy(u->got + u->n_got, p, n);
  u->n_got += n;
  u->nxt += n;
  u->slots_used++;
  CHECK(u->slots_used <= UPS_SLOTS); /* a real one would block its whole packet loop here */
  if (u->slots_used > u->max_used) u->max_used = u->slots_used;
}

static inline void ups_ack(ups *u, ups_reply *r, bool sack) {
  memset(r, 0, sizeof *r);
  r->h.flags = PL_FLAG_ACK;
  r->h.seq = 1;
  r->h.ack = u->nxt;
  r->h.window = (uint16_t)(UPS_SLOTS - u->slots_used);
  u->unacked = 0;
  u->ack_at = PL_NEVER;
  if (!sack || !u->n_ooo || u->no_sack) return;
  pl_sack_block all[UPS_OOO];
  unsigned n = 0;
  uint32_t last = u->nxt;
  for (unsigned k = 0; k < u->n_ooo; k++) { /* ascending, merged */
    unsigned best = UPS_OOO;
    for (unsigned i = 0; i < u->n_ooo; i++)
      if (pl_seq_cmp(u->ooo[i].seq, last) >= 0 && (best == UPS_OOO || pl_seq_cmp(u->ooo[i].seq, u->ooo[best].seq) < 0)) best = i;
    if (best == UPS_OOO) break;
    uint32_t left = u->ooo[best].seq, right = left + u->ooo[best].len;
    if (n && all[n - 1].right == left)
      all[n - 1].right = right;
    else
      all[n++] = (pl_sack_block){left, right};
    last = right;
  }
  unsigned from = n > 4 && !u->lowest ? n - 4 : 0, count = n > 4 ? 4 : n;
  r->h.len = (uint16_t)pl_sack_write(r->body, all + from, count);
}

/* Takes a packet; returns 1 with *r filled when an answer leaves at once. */
static inline int ups_recv(ups *u, const pl_packet *p, uint64_t now, ups_reply *r) {
  if ((p->flags & (PL_FLAG_SYN | PL_FLAG_ACK)) == PL_FLAG_SYN) {
    if (!u->opened) u->nxt = p->seq + 1, u->opened = true, u->ack_at = PL_NEVER;
    memset(r, 0, sizeof *r);
    r->h.flags = PL_FLAG_SYN | PL_FLAG_ACK;
    r->h.ack = p->seq + 1;
    r->h.window = (uint16_t)(UPS_SLOTS - u->slots_used);
    return 1;
  }
  if (p->flags & PL_FLAG_FIN) {
    memset(r, 0, sizeof *r);
    r->h.flags = PL_FLAG_FIN | PL_FLAG_ACK;
    r->h.seq = 1;
    r->h.ack = p->seq + 1;
    u->closed = true;
    u->fin_echoes++;
    return 1;
  }
  if (u->closed || !(p->flags & PL_FLAG_ACK) || !p->len) return 0;
  pl_sack_block b[4];
  if (pl_sack_parse(p->payload, p->payload + p->len, 4, b)) return 0; /* swallowed */
  CHECK(p->len <= 4096);
  if (pl_seq_cmp(p->seq, u->nxt) > 0) {
    unsigned i = 0;
    while (i < u->n_ooo && u->ooo[i].seq != p->seq) i++;
    if (i == u->n_ooo && u->n_ooo < UPS_OOO) {
      u->ooo[i].seq = p->seq;
      u->ooo[i].len = p->len;
      u->ooo[i].data = malloc(p->len);
      memcpy(u->ooo[i].data, p->payload, p->len);
      u->n_ooo++;
    }
  } else if (p->seq == u->nxt) {
    ups_take(u, p->payload, p->len);
    for (unsigned i = 0; i < u->n_ooo;) {
      bool next = u->ooo[i].seq == u->nxt, old = pl_seq_cmp(u->ooo[i].seq, u->nxt) < 0;
      if (!next && !old) {
        i++;
        continue;
      }
      if (next) ups_take(u, u->ooo[i].data, u->ooo[i].len);
      free(u->ooo[i].data);
      u->ooo[i] = u->ooo[--u->n_ooo];
      i = 0;
    }
  }
  if (u->renege && u->n_ooo > 8 && u->reneged < 3) {
    for (unsigned i = 0; i < u->n_ooo; i++) free(u->ooo[i].data);
    u->n_ooo = 0;
    u->reneged++;
  }
  if (u->n_ooo) {
    ups_ack(u, r, true);
    return 1;
  }
  if (++u->unacked >= 2) {
    ups_ack(u, r, false);
    return 1;
  }
  if (u->ack_at == PL_NEVER) u->ack_at = now + 40 * PL_NS_PER_MS;
  return 0;
}

#endif
