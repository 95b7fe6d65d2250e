/* Replay windows (transport.md 3.5.3): RFC 6479's ring of blocks, one per nonce prefix. */
#include "replay.h"

#include <stdlib.h>

#define BLOCKS (PL_REPLAY_WINDOW / 64 + 1) /* one more than the window: the block being filled costs no old counters */

#define BLOCKS_MIN 2u

static size_t place(const pl_replay_window *w, uint64_t block) { return (size_t)(block % w->blocks); }

static pl_replay_window *window_new(uint16_t blocks) {
  pl_replay_window *w = calloc(1, sizeof *w + blocks * sizeof w->bits[0]);
  if (!w) return NULL;
  w->blocks = blocks;
  w->held = 1;
  return w;
}

pl_replay_window *pl_replay_window_new(void) { return window_new(BLOCKS_MIN); }

int pl_replay_window_check(const pl_replay_window *w, uint64_t counter) {
  if (counter == 0) return PL_EREPLAY;
  if (counter > w->highest) return PL_OK;
  if (w->highest - counter >= PL_REPLAY_WINDOW || (w->highest >> 6) - (counter >> 6) >= w->held) return PL_EREPLAY;
  return w->bits[place(w, counter >> 6)] >> (counter & 63) & 1 ? PL_EREPLAY : PL_OK;
}

/* Gives the window another size, not below `held`. */
static int resize(pl_replay_window **at, uint16_t blocks) {
  pl_replay_window *old = *at, *w = window_new(blocks);
  if (!w) return PL_ENOMEM;
  w->older = old->older;
  w->prefix = old->prefix;
  w->highest = old->highest;
  w->held = old->held;
  for (uint64_t i = 0, top = old->highest >> 6; i < old->held; i++) w->bits[place(w, top - i)] = old->bits[place(old, top - i)];
  free(old);
  *at = w;
  return PL_OK;
}

int pl_replay_window_commit(pl_replay_window **at, uint64_t counter) {
  pl_replay_window *w = *at;
  if (pl_replay_window_check(w, counter) < 0) return PL_OK;
  if (counter > w->highest) {
    uint64_t from = w->highest >> 6, steps = (counter >> 6) - from;
    uint16_t held = (uint16_t)pl_min64(w->held + steps, BLOCKS);
    if (held > w->blocks) {
      int err = resize(at, (uint16_t)pl_min64(BLOCKS, pl_max64(held, 2u * w->blocks)));
      if (err < 0) return err;
      w = *at;
    }
    for (uint64_t i = 1; i <= pl_min64(steps, w->blocks); i++) w->bits[place(w, from + i)] = 0;
    w->highest = counter;
    w->held = held;
  }
  w->bits[place(w, counter >> 6)] |= 1ull << (counter & 63);
  return PL_OK;
}

void pl_replay_init(pl_replay *r) { memset(r, 0, sizeof *r); }

void pl_replay_free(pl_replay *r) {
  while (r->newest) {
    pl_replay_window *older = r->newest->older;
    free(r->newest);
    r->newest = older;
  }
  free(r->retired);
  memset(r, 0, sizeof *r);
}

int pl_replay_check(const pl_replay *r, uint32_t prefix, uint64_t counter) {
  for (const pl_replay_window *w = r->newest; w; w = w->older)
    if (w->prefix == prefix) return pl_replay_window_check(w, counter);
  if (counter == 0) return PL_EREPLAY;
  for (unsigned i = 0; i < r->n_retired; i++)
    if (r->retired[i] == prefix) return PL_EREPLAY;
  return r->n_live + r->n_retired < PL_REPLAY_PREFIXES ? PL_OK : PL_ELIMIT;
}

/* The oldest gives up its window. */
static void retire_oldest(pl_replay *r) {
  pl_replay_window **at = &r->newest;
  while ((*at)->older) at = &(*at)->older;
  r->retired[r->n_retired++] = (*at)->prefix;
  r->n_live--;
  free(*at);
  *at = NULL;
}

int pl_replay_commit(pl_replay *r, uint32_t prefix, uint64_t counter) {
  for (pl_replay_window **at = &r->newest; *at; at = &(*at)->older)
    if ((*at)->prefix == prefix) return pl_replay_window_commit(at, counter);
  if (pl_replay_check(r, prefix, counter) < 0) return PL_OK;
  if (r->n_live == PL_REPLAY_LIVE && !r->retired) {
    r->retired = malloc(PL_REPLAY_PREFIXES * sizeof r->retired[0]);
    if (!r->retired) return PL_ENOMEM;
  }
  pl_replay_window *w = pl_replay_window_new();
  if (!w || pl_replay_window_commit(&w, counter) < 0) {
    free(w);
    return PL_ENOMEM;
  }
  if (r->n_live == PL_REPLAY_LIVE) retire_oldest(r);
  w->prefix = prefix;
  w->older = r->newest;
  r->newest = w;
  r->n_live++;
  return PL_OK;
}

void pl_replay_rest(pl_replay *r) {
  for (pl_replay_window **at = &r->newest; *at; at = &(*at)->older) {
    if ((*at)->held > BLOCKS_MIN) (*at)->held = BLOCKS_MIN;
    if ((*at)->blocks > BLOCKS_MIN) (void)resize(at, BLOCKS_MIN); /* without memory for the smaller one the larger will do */
  }
}
