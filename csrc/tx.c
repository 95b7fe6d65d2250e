/* Collects outgoing datagrams into GSO runs (see tx.h). The last run always ends where the arena is used up to. */
#include "tx.h"

#include <stdlib.h>

enum { DATAGRAM_MAX = 65507 };

int pl_tx_init(pl_tx *tx, void (*flush)(pl_tx *, void *), void *ctx) {
  memset(tx, 0, sizeof *tx);
  tx->arena = malloc(PL_TX_ARENA);
  if (!tx->arena) return PL_ENOMEM;
  tx->flush = flush;
  tx->ctx = ctx;
  return PL_OK;
}

void pl_tx_free(pl_tx *tx) {
  free(tx->arena);
  memset(tx, 0, sizeof *tx);
}

void pl_tx_reset(pl_tx *tx) {
  tx->used = 0;
  tx->n_runs = 0;
  tx->closed = false;
}

static bool extends(const pl_tx *tx, const pl_addr *to, uint32_t len) {
  if (tx->n_runs == 0 || tx->closed) return false;
  const pl_run *r = &tx->runs[tx->n_runs - 1];
  return len <= r->seg && r->count < PL_TX_RUN_SEGS && r->len + len <= PL_TX_RUN_BYTES && pl_addr_eq(&r->to, to);
}

uint8_t *pl_tx_datagram(pl_tx *tx, const pl_addr *to, uint32_t len) {
  if (len == 0 || len > DATAGRAM_MAX) return NULL;
  bool more = extends(tx, to, len);
  if (tx->used + len > PL_TX_ARENA || (!more && tx->n_runs == PL_TX_RUNS)) {
    pl_addr keep = *to; /* `to` may point into a run */
    tx->flush(tx, tx->ctx);
    pl_tx_reset(tx);
    return pl_tx_datagram(tx, &keep, len);
  }
  uint8_t *at = tx->arena + tx->used;
  if (more) {
    pl_run *r = &tx->runs[tx->n_runs - 1];
    r->len += len;
    r->count++;
    tx->closed = len < r->seg;
  } else {
    tx->runs[tx->n_runs++] = (pl_run){.to = *to, .off = tx->used, .len = len, .seg = len, .count = 1};
    tx->closed = false;
  }
  tx->used += len;
  return at;
}

void pl_tx_undo(pl_tx *tx) {
  if (tx->n_runs == 0) return;
  pl_run *r = &tx->runs[tx->n_runs - 1];
  uint32_t last = r->len - (r->count - 1) * r->seg;
  tx->used -= last;
  r->len -= last;
  r->count--;
  if (r->count == 0) {
    tx->n_runs--;
    if (tx->n_runs == 0) {
      tx->closed = false;
      return;
    }
    r--;
  }
  tx->closed = r->len != r->count * r->seg;
}
