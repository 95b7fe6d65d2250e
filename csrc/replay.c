/* Replay windows (transport.md 3.5.3): RFC 6479's ring of blocks, one per nonce prefix. */
#include "replay.h"

#include <stdlib.h>

#define BLOCKS (PL_REPLAY_WINDOW / 64 + 1) /* one more than the window: the block being filled costs no old counters */

#define BLOCKS_MIN 4u

/* Short of its full size a window starts at counter 0, where block number and place are the same. */
static size_t place(uint64_t counter) { return (size_t)((counter >> 6) % BLOCKS); }

pl_replay_window *pl_replay_window_new(void) {
  pl_replay_window *w = calloc(1, sizeof *w + BLOCKS_MIN * sizeof w->bits[0]);
  if (w) w->blocks = BLOCKS_MIN;
  return w;
}

int pl_replay_window_check(const pl_replay_window *w, uint64_t counter) {
  if (counter == 0) return PL_EREPLAY;
  if (counter > w->highest) return PL_OK;
  if (w->highest - counter >= PL_REPLAY_WINDOW) return PL_EREPLAY;
  return w->bits[place(counter)] >> (counter & 63) & 1 ? PL_EREPLAY : PL_OK;
}

static int grow(pl_replay_window **at, uint64_t counter) {
  pl_replay_window *w = *at;
  uint64_t need = (counter >> 6) + 1;
  if (w->blocks == BLOCKS || need <= w->blocks) return PL_OK;
  uint32_t blocks = (uint32_t)pl_min64(BLOCKS, pl_max64(need, 2 * w->blocks));
  w = realloc(w, sizeof *w + blocks * sizeof w->bits[0]);
  if (!w) return PL_ENOMEM;
  memset(w->bits + w->blocks, 0, (blocks - w->blocks) * sizeof w->bits[0]);
  w->blocks = blocks;
  *at = w;
  return PL_OK;
}

int pl_replay_window_commit(pl_replay_window **at, uint64_t counter) {
  if (pl_replay_window_check(*at, counter) < 0) return PL_OK;
  int err = grow(at, counter);
  if (err < 0) return err;
  pl_replay_window *w = *at;
  if (counter > w->highest) {
    uint64_t from = w->highest >> 6, to = counter >> 6;
    uint64_t steps = pl_min64(to - from, BLOCKS);
    for (uint64_t i = 1; i <= steps; i++) w->bits[(from + i) % BLOCKS] = 0;
    w->highest = counter;
  }
  w->bits[place(counter)] |= 1ull << (counter & 63);
  return PL_OK;
}

void pl_replay_init(pl_replay *r) { memset(r, 0, sizeof *r); }

void pl_replay_free(pl_replay *r) {
  for (unsigned i = 0; i < PL_REPLAY_LIVE; i++) free(r->live[i]);
  free(r->retired);
  memset(r, 0, sizeof *r);
}

static unsigned find(const pl_replay *r, uint32_t prefix) {
  unsigned i = 0;
  while (i < r->n_live && r->live_prefix[i] != prefix) i++;
  return i; /* n_live: not there */
}

int pl_replay_check(const pl_replay *r, uint32_t prefix, uint64_t counter) {
  unsigned at = find(r, prefix);
  if (at < r->n_live) return pl_replay_window_check(r->live[at], counter);
  if (counter == 0) return PL_EREPLAY;
  for (unsigned i = 0; i < r->n_retired; i++)
    if (r->retired[i] == prefix) return PL_EREPLAY;
  return r->n_live + r->n_retired < PL_REPLAY_PREFIXES ? PL_OK : PL_ELIMIT;
}

int pl_replay_commit(pl_replay *r, uint32_t prefix, uint64_t counter, uint64_t now_ns) {
  unsigned at = find(r, prefix);
  if (at < r->n_live) return pl_replay_window_commit(&r->live[at], counter);
  if (pl_replay_check(r, prefix, counter) < 0) return PL_OK;
  pl_replay_window *w = pl_replay_window_new();
  if (w && pl_replay_window_commit(&w, counter) < 0) {
    free(w);
    w = NULL;
  }
  if (w && r->n_live == PL_REPLAY_LIVE && !r->retired) r->retired = malloc(PL_REPLAY_PREFIXES * sizeof r->retired[0]);
  if (!w || (r->n_live == PL_REPLAY_LIVE && !r->retired)) {
    free(w);
    return PL_ENOMEM;
  }
  if (r->n_live == PL_REPLAY_LIVE) { /* the oldest gives up its window */
    free(r->live[--r->n_live]);
    r->retired[r->n_retired++] = r->live_prefix[r->n_live];
  }
  memmove(r->live + 1, r->live, r->n_live * sizeof r->live[0]);
  memmove(r->live_prefix + 1, r->live_prefix, r->n_live * sizeof r->live_prefix[0]);
  r->live[0] = w;
  r->live_prefix[0] = prefix;
  r->n_live++;
  r->newest_at_ns = now_ns;
  return PL_OK;
}
