/* Outgoing datagrams of one batch: one contiguous arena, cut into runs of equal-sized datagrams to one
 * destination (the last of a run may be shorter), which is exactly what one sendmsg with UDP_SEGMENT
 * takes. The engine fills it; a shell sends it. */
#ifndef PL_TX_H
#define PL_TX_H

#include "pl.h"

#define PL_TX_ARENA (512u * 1024u)
#define PL_TX_RUNS 256u
#define PL_TX_RUN_BYTES 64000u  /* below the 65507 a UDP_SEGMENT send may carry */
#define PL_TX_RUN_SEGS 64u      /* kernel limit (UDP_MAX_SEGMENTS before 6.9) */

typedef struct pl_run {
  pl_addr to;
  uint32_t off;   /* into arena */
  uint32_t len;   /* bytes of the run */
  uint32_t seg;   /* datagram size; the last may be shorter */
  uint32_t count; /* datagrams */
} pl_run;

typedef struct pl_tx {
  uint8_t *arena;
  uint32_t used;
  unsigned n_runs;
  bool closed; /* the last run takes no more (a shorter datagram ended it) */
  pl_run runs[PL_TX_RUNS];
  void (*flush)(struct pl_tx *tx, void *ctx); /* sends everything, then calls pl_tx_reset */
  void *ctx;
} pl_tx;

int pl_tx_init(pl_tx *tx, void (*flush)(pl_tx *, void *), void *ctx);
void pl_tx_free(pl_tx *tx);
void pl_tx_reset(pl_tx *tx);
/* Room for one datagram of exactly `len` bytes (1..65507) to `to`; flushes when the arena is full. The
 * pointer is good until the next call. Never NULL for a len in range. */
uint8_t *pl_tx_datagram(pl_tx *tx, const pl_addr *to, uint32_t len);
/* Takes back the datagram just reserved (sealing failed). */
void pl_tx_undo(pl_tx *tx);

#endif
