/* Datagrams come out as they went in, in order, and every run is one that the kernel takes as a GSO train. */
#include "check.h"
#include "tx.h"

#define MAX_OUT 4000u

typedef struct sent {
  uint32_t len, stamp;
  uint16_t port;
} sent;

typedef struct log {
  sent out[MAX_OUT];
  unsigned n, flushes, runs;
} log;

static void flush(pl_tx *tx, void *ctx) {
  log *l = ctx;
  uint32_t end = 0;
  l->flushes++;
  for (unsigned i = 0; i < tx->n_runs; i++) {
    const pl_run *r = &tx->runs[i];
    CHECK(r->off == end && r->count >= 1 && r->count <= PL_TX_RUN_SEGS);
    CHECK(r->count == 1 ? r->len == r->seg : r->len <= PL_TX_RUN_BYTES);
    CHECK(r->len <= r->seg * r->count && r->len > r->seg * (r->count - 1)); /* only the last may be shorter */
    for (uint32_t k = 0; k < r->count; k++) {
      uint32_t n = k + 1 < r->count ? r->seg : r->len - k * r->seg;
      sent *s = &l->out[l->n++];
      CHECK(l->n <= MAX_OUT);
      *s = (sent){.len = n, .port = r->to.port};
      memcpy(&s->stamp, tx->arena + r->off + k * r->seg, n < 4 ? n : 4);
    }
    end += r->len;
    l->runs++;
  }
  CHECK(end == tx->used && end <= PL_TX_ARENA);
  pl_tx_reset(tx);
}

static pl_addr port(uint16_t p) { return (pl_addr){.family = 4, .port = p, .ip = {127, 0, 0, 1}}; }

static void put(pl_tx *tx, uint16_t p, uint32_t len, uint32_t stamp) {
  pl_addr to = port(p);
  uint8_t *at = pl_tx_datagram(tx, &to, len);
  CHECK(at != NULL && at >= tx->arena && at + len <= tx->arena + PL_TX_ARENA);
  memset(at, 0xee, len);
  memcpy(at, &stamp, len < 4 ? len : 4);
}

static void property(uint64_t seed) {
  static log l;
  static sent want[MAX_OUT];
  memset(&l, 0, sizeof l);
  pl_tx tx;
  CHECK(pl_tx_init(&tx, flush, &l) == PL_OK);
  unsigned n = 0;
  uint32_t usual = 1 + (uint32_t)(check_u64(&seed) % 3000);
  while (n < 2000) {
    uint64_t r = check_u64(&seed);
    uint32_t len = r % 10 < 7 ? usual : r % 10 < 9 ? 1 + (uint32_t)(r >> 8) % usual : 1 + (uint32_t)((r >> 8) % 65507);
    uint16_t p = r >> 60 ? 1 : 2;
    uint32_t mask = len < 4 ? (1u << 8 * len) - 1 : UINT32_MAX;
    put(&tx, p, len, n);
    if (r >> 40 & 7) {
      want[n] = (sent){.len = len, .port = p, .stamp = n & mask};
      n++;
    } else {
      pl_tx_undo(&tx);
    }
    if (check_u64(&seed) % 300 == 0) tx.flush(&tx, tx.ctx);
  }
  if (tx.n_runs) tx.flush(&tx, tx.ctx);
  CHECK(l.n == n && !memcmp(l.out, want, n * sizeof *want));
  CHECK(l.runs < n); /* trains did form */
  pl_tx_free(&tx);
}

static void cases(void) {
  static log l;
  pl_tx tx;
  pl_addr to = port(1);
  CHECK(pl_tx_init(&tx, flush, &l) == PL_OK);
  CHECK(!pl_tx_datagram(&tx, &to, 0) && !pl_tx_datagram(&tx, &to, 65508));
  pl_tx_undo(&tx); /* nothing there */
  for (unsigned i = 0; i < 3; i++) put(&tx, 1, 1000, i);
  put(&tx, 1, 500, 3); /* ends the run */
  CHECK(tx.n_runs == 1 && tx.runs[0].count == 4 && tx.closed);
  pl_tx_undo(&tx); /* and gives it back */
  put(&tx, 1, 1000, 3);
  CHECK(tx.n_runs == 1 && tx.runs[0].count == 4 && !tx.closed);
  put(&tx, 1, 400, 4);
  put(&tx, 1, 400, 5); /* closed: a new run */
  CHECK(tx.n_runs == 2);
  pl_tx_undo(&tx);
  CHECK(tx.n_runs == 1 && tx.closed && tx.used == 4400);
  put(&tx, 2, 400, 5);
  put(&tx, 2, 401, 6); /* longer than the run's: a new one */
  CHECK(tx.n_runs == 3);
  pl_tx_reset(&tx);
  for (unsigned i = 0; i < PL_TX_RUN_SEGS + 1; i++) put(&tx, 1, 100, i);
  CHECK(tx.n_runs == 2 && tx.runs[0].count == PL_TX_RUN_SEGS);
  pl_tx_reset(&tx);
  for (unsigned i = 0; i < 3; i++) put(&tx, 1, 30000, i);
  CHECK(tx.n_runs == 2 && tx.runs[0].len == 60000);
  pl_tx_reset(&tx);
  l.flushes = 0;
  for (unsigned i = 0; i < PL_TX_RUNS + 1; i++) put(&tx, (uint16_t)i, 10, i);
  CHECK(l.flushes == 1 && tx.n_runs == 1); /* out of runs */
  pl_tx_reset(&tx);
  for (unsigned i = 0; i < 9; i++) put(&tx, 1, 65507, i);
  CHECK(l.flushes == 2 && tx.n_runs == 1); /* out of arena */
  pl_tx_reset(&tx);
  put(&tx, 1, 100, 0);
  for (unsigned i = 1; tx.n_runs; i++) { /* the destination may lie in the batch that is sent meanwhile */
    CHECK(pl_tx_datagram(&tx, &tx.runs[0].to, 60000) != NULL);
    CHECK(tx.runs[0].to.port == 1);
    if (i == 20) break;
  }
  pl_tx_free(&tx);
}

int main(void) {
  cases();
  uint64_t seed = check_seed("test_tx", 1);
  for (unsigned i = 0; i < 20; i++) property(seed + i);
  printf("test_tx: ok\n");
  return 0;
}
