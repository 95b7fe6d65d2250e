/* Hash map with linear probing (see map.h). Deleting moves followers back instead of leaving marks, so lookups stay short for ever.
 * The hash is SipHash-1-3 (Aumasson and Bernstein, 2012) of the one word; all keys have one length, so none is hashed. */
#include "map.h"

#include <stdlib.h>

#define MIN_CAP 16u

static inline uint64_t rotl(uint64_t x, unsigned n) { return x << n | x >> (64 - n); }

static inline void sip_round(uint64_t v[4]) {
  v[0] += v[1];
  v[2] += v[3];
  v[1] = rotl(v[1], 13) ^ v[0];
  v[3] = rotl(v[3], 16) ^ v[2];
  v[0] = rotl(v[0], 32);
  v[2] += v[1];
  v[0] += v[3];
  v[1] = rotl(v[1], 17) ^ v[2];
  v[3] = rotl(v[3], 21) ^ v[0];
  v[2] = rotl(v[2], 32);
}

static size_t home(const pl_map *m, uint64_t key) {
  uint64_t k0 = m->seed, k1 = rotl(m->seed, 29) ^ 0x9e3779b97f4a7c15u;
  uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du, k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
  v[3] ^= key;
  sip_round(v);
  v[0] ^= key;
  v[2] ^= 0xff;
  sip_round(v);
  sip_round(v);
  sip_round(v);
  return (size_t)(v[0] ^ v[1] ^ v[2] ^ v[3]) & (m->cap - 1);
}

/* The slot of `key`, or the empty one where it belongs. The table is never full. */
static size_t seek(const pl_map *m, uint64_t key) {
  size_t i = home(m, key);
  while (m->slots[i].value && m->slots[i].key != key) i = (i + 1) & (m->cap - 1);
  return i;
}

void pl_map_init(pl_map *m, uint64_t seed) { *m = (pl_map){.seed = seed}; }

void pl_map_free(pl_map *m) {
  free(m->slots);
  pl_map_init(m, m->seed);
}

void *pl_map_get(const pl_map *m, uint64_t key) { return m->used ? m->slots[seek(m, key)].value : NULL; }

static int grow(pl_map *m) {
  pl_map bigger = {.cap = m->cap ? m->cap * 2 : MIN_CAP, .used = m->used, .seed = m->seed};
  bigger.slots = calloc(bigger.cap, sizeof *bigger.slots);
  if (!bigger.slots) return PL_ENOMEM;
  for (size_t i = 0; i < m->cap; i++)
    if (m->slots[i].value) bigger.slots[seek(&bigger, m->slots[i].key)] = m->slots[i];
  free(m->slots);
  *m = bigger;
  return PL_OK;
}

int pl_map_put(pl_map *m, uint64_t key, void *value) {
  if (m->used) {
    size_t i = seek(m, key);
    if (m->slots[i].value) {
      m->slots[i].value = value;
      return PL_OK;
    }
  }
  if (m->used + 1 > m->cap / 4 * 3) {
    int r = grow(m);
    if (r < 0) return r;
  }
  m->slots[seek(m, key)] = (pl_map_slot){key, value};
  m->used++;
  return PL_OK;
}

void *pl_map_del(pl_map *m, uint64_t key) {
  if (!m->used) return NULL;
  size_t mask = m->cap - 1, hole = seek(m, key);
  void *value = m->slots[hole].value;
  if (!value) return NULL;
  for (size_t i = (hole + 1) & mask; m->slots[i].value; i = (i + 1) & mask) {
    size_t h = home(m, m->slots[i].key);
    if (((i - h) & mask) < ((i - hole) & mask)) continue; /* its home lies behind the hole: it stays */
    m->slots[hole] = m->slots[i];
    hole = i;
  }
  m->slots[hole] = (pl_map_slot){0};
  m->used--;
  return value;
}

void *pl_map_next(const pl_map *m, size_t *it, uint64_t *key) {
  while (*it < m->cap) {
    const pl_map_slot *s = &m->slots[(*it)++];
    if (!s->value) continue;
    if (key) *key = s->key;
    return s->value;
  }
  return NULL;
}
