/* Replay windows: no counter is ever accepted twice, none inside the window is refused, prefixes retire for good. */
#include "check.h"
#include "replay.h"

static int take(pl_replay_window **w, uint64_t c) {
  int r = pl_replay_window_check(*w, c);
  if (r == PL_OK) CHECK(pl_replay_window_commit(w, c) == PL_OK);
  return r;
}

/* The recorded sequence of a 256-counter window, less the three verdicts that only hold there (44 and 744 too old, and what follows
 * from them): ours keeps 8192. */
static void recorded(void) {
  static const struct {
    uint64_t counter;
    bool accept;
  } seq[] = {{1, true},   {2, true},    {2, false},   {5, true},    {3, true},  {5, false},   {4, true},   {300, true},
             {45, true},  {300, false}, {299, true},  {299, false}, {1000, true}, {745, true}, {1001, true}, {1001, false}};
  pl_replay_window *w = pl_replay_window_new();
  for (unsigned i = 0; i < sizeof seq / sizeof *seq; i++) CHECK((take(&w, seq[i].counter) == PL_OK) == seq[i].accept);
  free(w);
}

static void edges(void) {
  pl_replay_window *w = pl_replay_window_new();
  CHECK(take(&w, 0) == PL_EREPLAY);
  CHECK(take(&w, 1) == PL_OK && take(&w, 0) == PL_EREPLAY);
  uint64_t top = 1 + PL_REPLAY_WINDOW;
  CHECK(take(&w, top) == PL_OK);
  CHECK(take(&w, 1) == PL_EREPLAY);   /* just outside */
  CHECK(take(&w, 2) == PL_OK && take(&w, 2) == PL_EREPLAY); /* the last one inside */
  CHECK(take(&w, UINT64_MAX) == PL_OK && take(&w, UINT64_MAX) == PL_EREPLAY);
  CHECK(take(&w, UINT64_MAX - PL_REPLAY_WINDOW + 1) == PL_OK);
  CHECK(take(&w, UINT64_MAX - PL_REPLAY_WINDOW) == PL_EREPLAY && take(&w, top + 1) == PL_EREPLAY);
  size_t size = sizeof *w + w->blocks * sizeof w->bits[0];
  pl_replay_window *before = malloc(size);
  memcpy(before, w, size);
  CHECK(pl_replay_window_commit(&w, 5) == PL_OK); /* refused by check: no effect */
  CHECK(pl_replay_window_commit(&w, 0) == PL_OK);
  CHECK(!memcmp(before, w, size));
  CHECK(pl_replay_window_check(w, 77) == PL_EREPLAY && !memcmp(before, w, size));
  free(before);
  free(w);
}

#define SPAN 60000u

/* rests: now and then all but the last counters count as seen. */
static void against_naive(uint64_t seed, bool rests) {
  static bool seen[SPAN];
  for (unsigned round = 0; round < 40; round++) {
    memset(seen, 0, sizeof seen);
    pl_replay r;
    pl_replay_init(&r);
    uint64_t max = 0, floor = 0, base = check_u64(&seed) % 3 ? 0 : check_u64(&seed) >> 1;
    for (unsigned i = 0; i < 12000; i++) {
      uint64_t dice = check_u64(&seed), off;
      switch (dice % 8) {
        case 0: off = max + 1 + (dice >> 8) % 900; break;                                   /* jump */
        case 1: off = (dice >> 8) % (max + 1); break;                                       /* anything old */
        case 2: off = max > PL_REPLAY_WINDOW ? max - PL_REPLAY_WINDOW + (dice >> 8) % 3 : 1; break; /* the lower edge */
        default: off = max > 300 ? max - 300 + (dice >> 8) % 302 : max + 1;
      }
      if (off >= SPAN) break;
      uint64_t c = base + off;
      bool expect = c != 0 && !seen[off] && (off > max || (max - off < PL_REPLAY_WINDOW && c >= floor));
      CHECK((pl_replay_check(&r, 1, c) == PL_OK) == expect);
      CHECK(pl_replay_commit(&r, 1, c) == PL_OK && pl_replay_check(&r, 1, c) == PL_EREPLAY);
      if (expect) {
        seen[off] = true;
        if (off > max) max = off;
      }
      if (!rests || !r.newest || (dice >> 32) % 500) continue;
      pl_replay_rest(&r);
      CHECK(r.newest->blocks == 2);
      uint64_t top = (base + max) >> 6;
      floor = pl_max64(floor, (top ? top - 1 : 0) << 6);
    }
    pl_replay_free(&r);
  }
}

/* What it costs: as many blocks as were used, and no more than the window. */
static void size(void) {
  pl_replay_window *w = pl_replay_window_new();
  for (uint64_t c = 1; c < 256; c++) CHECK(take(&w, c) == PL_OK);
  CHECK(w->blocks == 4);
  CHECK(take(&w, 256) == PL_OK && w->blocks == 8);
  for (uint64_t c = 1; c <= 256; c++) CHECK(take(&w, c) == PL_EREPLAY);
  for (uint64_t c = 257; c < 4 * PL_REPLAY_WINDOW; c += 1 + c % 3) CHECK(take(&w, c) == PL_OK && take(&w, c) == PL_EREPLAY);
  CHECK(w->blocks == PL_REPLAY_WINDOW / 64 + 1);
  free(w);
  w = pl_replay_window_new();
  CHECK(take(&w, 200) == PL_OK && take(&w, 70000) == PL_OK && w->blocks == PL_REPLAY_WINDOW / 64 + 1);
  CHECK(take(&w, 200) == PL_EREPLAY && take(&w, 69999) == PL_OK);
  free(w);
}

/* A session that rests is small again; what was refused stays refused, what follows is taken in any order. */
static void rest(void) {
  pl_replay r;
  pl_replay_init(&r);
  pl_replay_rest(&r);
  for (uint64_t c = 1; c <= 100000; c += 2)
    for (uint32_t p = 0; p < 3; p++) CHECK(pl_replay_commit(&r, p, c) == PL_OK);
  CHECK(r.newest->blocks == PL_REPLAY_WINDOW / 64 + 1 && pl_replay_check(&r, 0, 99990 - 64) == PL_OK);
  pl_replay_rest(&r);
  for (const pl_replay_window *w = r.newest; w; w = w->older) CHECK(w->blocks == 2);
  for (uint32_t p = 0; p < 3; p++) {
    for (uint64_t c = 99999 - 64; c <= 99999; c++) CHECK((pl_replay_check(&r, p, c) == PL_OK) == (c % 2 == 0));
    for (uint64_t c = 1; c < 99999 - 128; c++) CHECK(pl_replay_check(&r, p, c) == PL_EREPLAY);
    CHECK(pl_replay_commit(&r, p, 100000 + PL_REPLAY_WINDOW) == PL_OK);
    for (uint64_t c = 100000 + PL_REPLAY_WINDOW - 1; c > 100000; c--) {
      CHECK(pl_replay_check(&r, p, c) == PL_OK && pl_replay_commit(&r, p, c) == PL_OK);
      CHECK(pl_replay_check(&r, p, c) == PL_EREPLAY);
    }
  }
  pl_replay_free(&r);
}

static void prefixes(void) {
  pl_replay r;
  pl_replay_init(&r);
  CHECK(pl_replay_check(&r, 7, 0) == PL_EREPLAY);
  for (uint32_t p = 0; p < PL_REPLAY_PREFIXES; p++) {
    uint32_t prefix = p * 0x01000193u;
    CHECK(pl_replay_check(&r, prefix, 9) == PL_OK);
    CHECK(r.n_live + r.n_retired == p); /* checking takes no room: anybody can send an unauthentic frame */
    CHECK(pl_replay_commit(&r, prefix, 9) == PL_OK);
    CHECK(r.newest->prefix == prefix);
    CHECK(pl_replay_check(&r, prefix, 9) == PL_EREPLAY && pl_replay_check(&r, prefix, 8) == PL_OK);
    CHECK(r.n_live == (p < PL_REPLAY_LIVE ? p + 1 : PL_REPLAY_LIVE));
  }
  CHECK(pl_replay_check(&r, 5, 1) == PL_ELIMIT);
  CHECK(pl_replay_commit(&r, 5, 1) == PL_OK && pl_replay_check(&r, 5, 1) == PL_ELIMIT); /* no way round the limit */
  for (uint32_t p = 0; p < PL_REPLAY_PREFIXES; p++) {
    bool live = p >= PL_REPLAY_PREFIXES - PL_REPLAY_LIVE;
    CHECK((pl_replay_check(&r, p * 0x01000193u, 10) == PL_OK) == live); /* retired: refused for good */
    CHECK(pl_replay_check(&r, p * 0x01000193u, 9) == PL_EREPLAY);
  }
  CHECK(pl_replay_commit(&r, (PL_REPLAY_PREFIXES - 3) * 0x01000193u, 10) == PL_OK);
  CHECK(pl_replay_check(&r, (PL_REPLAY_PREFIXES - 3) * 0x01000193u, 10) == PL_EREPLAY);
  pl_replay_free(&r);
  CHECK(r.n_live == 0);
  pl_replay_free(&r);
}

int main(void) {
  recorded();
  edges();
  uint64_t seed = check_seed("test_replay", 1);
  against_naive(seed, false);
  against_naive(seed, true);
  size();
  rest();
  prefixes();
  printf("test_replay: ok\n");
  return 0;
}
