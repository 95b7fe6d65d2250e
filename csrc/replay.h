/* Replay protection: a sliding window of 8192 counters per nonce prefix, a bounded set of prefixes per
 * session (transport.md 3.5.3). Call check before opening the frame and commit after its tag verified. */
#ifndef PL_REPLAY_H
#define PL_REPLAY_H

#include "pl.h"

#define PL_REPLAY_WINDOW 8192u
#define PL_REPLAY_LIVE 5u       /* newest prefix and four earlier ones keep a window */
#define PL_REPLAY_PREFIXES 64u  /* prefixes accepted per session; beyond: PL_ELIMIT */

/* Of the counters of one prefix. It is as large as what came asks for, at most PL_REPLAY_WINDOW counters. */
typedef struct pl_replay_window {
  struct pl_replay_window *older; /* of the same pl_replay */
  uint64_t highest; /* 0 = nothing seen */
  uint32_t prefix;  /* in a pl_replay */
  uint16_t blocks;  /* of 64 counters: room */
  uint16_t held;    /* the last so many blocks tell which counters came; all before them counts as seen */
  uint64_t bits[];  /* ring of blocks, RFC 6479 */
} pl_replay_window;

pl_replay_window *pl_replay_window_new(void); /* NULL without memory; free() it */
/* PL_OK or PL_EREPLAY. Counter 0 is always refused. */
int pl_replay_window_check(const pl_replay_window *w, uint64_t counter);
/* PL_OK, also for a counter that check refuses, which changes nothing; PL_ENOMEM. May move the window. */
int pl_replay_window_commit(pl_replay_window **w, uint64_t counter);

typedef struct pl_replay {
  pl_replay_window *newest;
  uint32_t *retired; /* PL_REPLAY_PREFIXES entries, allocated on first use */
  uint32_t n_live, n_retired;
} pl_replay;

void pl_replay_init(pl_replay *r);
void pl_replay_free(pl_replay *r);
/* PL_OK, PL_EREPLAY (seen, too old, or a retired prefix), PL_ELIMIT (too many prefixes). */
int pl_replay_check(const pl_replay *r, uint32_t prefix, uint64_t counter);
/* Records an authenticated frame; a new prefix opens a window. PL_OK or PL_ENOMEM. */
int pl_replay_commit(pl_replay *r, uint32_t prefix, uint64_t counter);
/* Nothing is on its way but what was sent last: all but the newest 64 counters and a few more counts as seen from now on, which
 * gives the memory back. What was refused stays refused. */
void pl_replay_rest(pl_replay *r);

#endif
