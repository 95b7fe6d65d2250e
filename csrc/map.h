/* Hash map from u64 to pointer: open addressing, power-of-two sizes, keyed hash so that a stranger who
 * chooses keys cannot make it slow. Insert may allocate; find and remove never do. */
#ifndef PL_MAP_H
#define PL_MAP_H

#include "pl.h"

typedef struct pl_map_slot {
  uint64_t key;
  void *value; /* NULL = empty */
} pl_map_slot;

typedef struct pl_map {
  pl_map_slot *slots;
  size_t cap, used;
  uint64_t seed;
} pl_map;

void pl_map_init(pl_map *m, uint64_t seed);
void pl_map_free(pl_map *m);
void *pl_map_get(const pl_map *m, uint64_t key);
/* Replaces an existing value. `value` is not NULL. PL_OK or PL_ENOMEM. */
int pl_map_put(pl_map *m, uint64_t key, void *value);
/* Returns the removed value or NULL. */
void *pl_map_del(pl_map *m, uint64_t key);
/* Iterate: *it = 0 to start; returns NULL at the end. Deleting during iteration is not allowed. */
void *pl_map_next(const pl_map *m, size_t *it, uint64_t *key);

#endif
