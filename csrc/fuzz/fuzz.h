/* What the fuzz targets share: reading decisions from the input, memory of exactly the size of what lies in it, checks. */
#ifndef PL_FUZZ_H
#define PL_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

#include "pl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(cond)                                                   \
  do {                                                                     \
    if (!(cond)) {                                                         \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); \
      abort();                                                             \
    }                                                                      \
  } while (0)

typedef struct fuzz_in {
  const uint8_t *p, *end;
} fuzz_in;

/* Past the end everything reads as zero, so that any input means something. */
static inline uint8_t fuzz_u8(fuzz_in *in) { return in->p < in->end ? *in->p++ : 0; }
static inline uint16_t fuzz_u16(fuzz_in *in) {
  unsigned high = fuzz_u8(in);
  return (uint16_t)(high << 8 | fuzz_u8(in));
}
static inline uint32_t fuzz_u32(fuzz_in *in) {
  uint32_t high = fuzz_u16(in);
  return high << 16 | fuzz_u16(in);
}

/* Up to `want` bytes in a block of exactly their number; the caller frees it. */
static inline uint8_t *fuzz_bytes(fuzz_in *in, size_t want, size_t *n) {
  size_t left = (size_t)(in->end - in->p);
  *n = want < left ? want : left;
  uint8_t *out = malloc(*n ? *n : 1);
  FUZZ_CHECK(out != NULL);
  if (*n) memcpy(out, in->p, *n);
  in->p += *n;
  return out;
}

/* Reads every byte, so that a span that leaves its memory is seen. */
static inline void fuzz_touch(const uint8_t *p, size_t n) {
  static volatile uint8_t sink;
  uint8_t x = 0;
  for (size_t i = 0; i < n; i++) x ^= p[i];
  sink = x;
  (void)sink;
}

#endif
