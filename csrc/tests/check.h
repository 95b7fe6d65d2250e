/* What the C tests share: a check that says where it failed, reproducible random numbers, hex. */
#ifndef PL_CHECK_H
#define PL_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Not assert: it stays in release builds. */
#define CHECK(cond)                                                          \
  do {                                                                       \
    if (!(cond)) {                                                           \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond);   \
      exit(1);                                                               \
    }                                                                        \
  } while (0)

/* The seed of a property test, printed so that a failure can be run again with PL_SEED. */
static inline uint64_t check_seed(const char *test, uint64_t usual) {
  const char *s = getenv("PL_SEED");
  uint64_t seed = s ? strtoull(s, NULL, 10) : usual;
  printf("%s: PL_SEED=%llu\n", test, (unsigned long long)seed);
  fflush(stdout);
  return seed;
}

static inline uint64_t check_u64(uint64_t *state) { /* splitmix64 */
  uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

static inline void check_fill(uint64_t *state, uint8_t *p, size_t n) {
  for (size_t i = 0; i < n; i++) p[i] = (uint8_t)check_u64(state);
}

/* Decodes into memory of exactly that size, so that a sanitizer sees a read past the end; the caller frees it. */
static inline uint8_t *check_hex(const char *hex, size_t *n) {
  *n = strlen(hex) / 2;
  uint8_t *out = malloc(*n ? *n : 1);
  CHECK(out != NULL);
  for (size_t i = 0; i < *n; i++) {
    unsigned v = 0;
    CHECK(sscanf(hex + 2 * i, "%2x", &v) == 1);
    out[i] = (uint8_t)v;
  }
  return out;
}

/* The same for bytes at hand. */
static inline uint8_t *check_copy(const void *p, size_t n) {
  uint8_t *out = malloc(n ? n : 1);
  CHECK(out != NULL);
  if (n) memcpy(out, p, n);
  return out;
}

#endif
