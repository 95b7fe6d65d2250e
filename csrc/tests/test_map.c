/* The map against an array, and under keys that a stranger would choose. */
#include "check.h"
#include "map.h"

#define KEYS 3000u

static void property(uint64_t seed) {
  static void *want[KEYS];
  static int values[KEYS];
  memset(want, 0, sizeof want);
  pl_map m;
  pl_map_init(&m, check_u64(&seed));
  size_t used = 0;
  unsigned span = 1 + (unsigned)(check_u64(&seed) % KEYS);
  uint64_t stride = check_u64(&seed) % 3 ? 1 : 1ull << 32;
  CHECK(!pl_map_get(&m, 1) && !pl_map_del(&m, 1));
  for (unsigned step = 0; step < 20000; step++) {
    unsigned i = (unsigned)(check_u64(&seed) % span);
    uint64_t key = i * stride;
    switch (check_u64(&seed) % 3) {
      case 0:
        CHECK(pl_map_put(&m, key, &values[check_u64(&seed) % KEYS]) == PL_OK);
        if (!want[i]) used++;
        want[i] = pl_map_get(&m, key);
        CHECK(want[i] != NULL);
        break;
      case 1:
        CHECK(pl_map_del(&m, key) == want[i]);
        if (want[i]) used--;
        want[i] = NULL;
        break;
      default:
        CHECK(pl_map_get(&m, key) == want[i]);
    }
    CHECK(m.used == used);
  }
  size_t it = 0, n = 0;
  uint64_t key = 0;
  for (void *v; (v = pl_map_next(&m, &it, &key)); n++) CHECK(key / stride < span && want[key / stride] == v);
  CHECK(n == used);
  for (unsigned i = 0; i < span; i++) CHECK(pl_map_get(&m, i * stride) == want[i]);
  it = 0;
  if (used) CHECK(pl_map_next(&m, &it, NULL) != NULL);
  pl_map_free(&m);
  CHECK(!pl_map_get(&m, 1) && m.used == 0);
  CHECK(pl_map_put(&m, 1, values) == PL_OK && pl_map_get(&m, 1) == values); /* usable again */
  pl_map_free(&m);
}

/* Longest run of occupied slots: what a lookup may have to walk. */
static size_t longest_run(const pl_map *m) {
  size_t best = 0, run = 0;
  for (size_t i = 0; i < 2 * m->cap; i++) {
    run = m->slots[i & (m->cap - 1)].value ? run + 1 : 0;
    if (run > best) best = run;
  }
  return best;
}

/* Keys in steps, in rows, mirrored: none may crowd into one place, whatever the seed. */
static void chosen_keys(uint64_t seed) {
  static int value;
  for (unsigned shift = 0; shift < 64; shift += 4) {
    pl_map m;
    pl_map_init(&m, check_u64(&seed));
    for (uint64_t i = 0; i < 12000; i++) CHECK(pl_map_put(&m, i << shift | (shift ? i >> (64 - shift) : 0), &value) == PL_OK);
    CHECK(m.used * 4 <= m.cap * 3);
    if (longest_run(&m) > 400) fprintf(stderr, "shift %u: %zu\n", shift, longest_run(&m));
    CHECK(longest_run(&m) <= 400);
    pl_map_free(&m);
  }
}

int main(void) {
  uint64_t seed = check_seed("test_map", 1);
  for (unsigned i = 0; i < 20; i++) property(seed + i);
  chosen_keys(seed);
  printf("test_map: ok\n");
  return 0;
}
