/* Replay windows (transport.md 3.5.3): RFC 6479's ring of blocks, one per nonce prefix. */
#include "replay.h"

#include <stdlib.h>

#define BLOCKS (PL_REPLAY_WINDOW / 64 + 1) /* one more than the window: the block being filled costs no old counters */

static uint64_t *block_of(pl_replay_window *w, uint64_t counter) { return &w->bits[(counter >> 6) % BLOCKS]; }

void pl_replay_window_init(pl_replay_window *w) { memset(w, 0, sizeof *w); }

int pl_replay_window_check(const pl_replay_window *w, uint64_t counter) {
  if (counter == 0) return PL_EREPLAY;
  if (counter > w->highest) return PL_OK;
  if (w->highest - counter >= PL_REPLAY_WINDOW) return PL_EREPLAY;
  return w->bits[(counter >> 6) % BLOCKS] >> (counter & 63) & 1 ? PL_EREPLAY : PL_OK;
}

void pl_replay_window_commit(pl_replay_window *w, uint64_t counter) {
  if (pl_replay_window_check(w, counter) < 0) return;
  if (counter > w->highest) {
    uint64_t from = w->highest >> 6, to = counter >> 6;
    uint64_t steps = pl_min64(to - from, BLOCKS);
    for (uint64_t i = 1; i <= steps; i++) w->bits[(from + i) % BLOCKS] = 0;
    w->highest = counter;
  }
  *block_of(w, counter) |= 1ull << (counter & 63);
}

void pl_replay_init(pl_replay *r) { memset(r, 0, sizeof *r); }

void pl_replay_free(pl_replay *r) {
  for (unsigned i = 0; i < PL_REPLAY_LIVE; i++) free(r->live[i]);
  memset(r, 0, sizeof *r);
}

static pl_replay_window *find(const pl_replay *r, uint32_t prefix) {
  for (unsigned i = 0; i < r->n_live; i++)
    if (r->live_prefix[i] == prefix) return r->live[i];
  return NULL;
}

int pl_replay_check(const pl_replay *r, uint32_t prefix, uint64_t counter) {
  const pl_replay_window *w = find(r, prefix);
  if (w) return pl_replay_window_check(w, counter);
  if (counter == 0) return PL_EREPLAY;
  for (unsigned i = 0; i < r->n_retired; i++)
    if (r->retired[i] == prefix) return PL_EREPLAY;
  return r->n_live + r->n_retired < PL_REPLAY_PREFIXES ? PL_OK : PL_ELIMIT;
}

int pl_replay_commit(pl_replay *r, uint32_t prefix, uint64_t counter, uint64_t now_ns) {
  pl_replay_window *w = find(r, prefix);
  if (w) {
    pl_replay_window_commit(w, counter);
    return PL_OK;
  }
  if (pl_replay_check(r, prefix, counter) < 0) return PL_OK;
  if (r->n_live == PL_REPLAY_LIVE) { /* the oldest gives up its window */
    w = r->live[--r->n_live];
    r->retired[r->n_retired++] = r->live_prefix[r->n_live];
  } else {
    w = malloc(sizeof *w);
    if (!w) return PL_ENOMEM;
  }
  memmove(r->live + 1, r->live, r->n_live * sizeof r->live[0]);
  memmove(r->live_prefix + 1, r->live_prefix, r->n_live * sizeof r->live_prefix[0]);
  r->live[0] = w;
  r->live_prefix[0] = prefix;
  r->n_live++;
  r->newest_at_ns = now_ns;
  pl_replay_window_init(w);
  pl_replay_window_commit(w, counter);
  return PL_OK;
}
