/* Nanoseconds to seal and to open one frame, by variant and size.
 *
 *   cc -O3 -D_GNU_SOURCE -Icsrc bench/micro/aead.c csrc/aead*.c -lcrypto -o /tmp/aead && /tmp/aead */
#include "aead_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROUNDS = 7, FRAMES = 20000 };

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * PL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

int main(void) {
  static const char *const names[PL_AEAD_VARIANTS] = {"libcrypto", "vaes"};
  static const size_t sizes[] = {64, 256, 1152, 1400, 4096, 8192};
  uint8_t key[32] = {1}, nonce[12] = {0}, aad[4] = {0};
  uint8_t *data = calloc(1, 8192 + 16);
  if (!data) return 1;
  printf("%-10s %6s %10s %10s\n", "variant", "bytes", "seal ns", "open ns");
  for (unsigned v = 0; v < PL_AEAD_VARIANTS; v++) {
    pl_aead *a = pl_aead_new_variant(key, (enum pl_aead_variant)v);
    if (!a) continue;
    for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
      double seal[ROUNDS], open[ROUNDS];
      for (unsigned r = 0; r < ROUNDS; r++) {
        uint64_t sealing = 0, opening = 0;
        for (unsigned i = 0; i < FRAMES / 16; i++) {
          uint64_t t0 = now_ns();
          for (unsigned k = 0; k < 16; k++) pl_aead_seal(a, nonce, aad, 4, data, sizes[s]);
          sealing += now_ns() - t0;
        }
        uint8_t *copies = malloc(16 * (sizes[s] + 16));
        if (!copies) return 1;
        for (unsigned i = 0; i < FRAMES / 16; i++) {
          for (unsigned k = 0; k < 16; k++) memcpy(copies + k * (sizes[s] + 16), data, sizes[s] + 16);
          uint64_t t0 = now_ns();
          for (unsigned k = 0; k < 16; k++)
            if (pl_aead_open(a, nonce, aad, 4, copies + k * (sizes[s] + 16), sizes[s]) != PL_OK) return 1;
          opening += now_ns() - t0;
        }
        free(copies);
        seal[r] = (double)sealing / FRAMES;
        open[r] = (double)opening / FRAMES;
      }
      qsort(seal, ROUNDS, sizeof *seal, by_value);
      qsort(open, ROUNDS, sizeof *open, by_value);
      printf("%-10s %6zu %10.0f %10.0f\n", names[v], sizes[s], seal[ROUNDS / 2], open[ROUNDS / 2]);
    }
    pl_aead_free(a);
  }
  free(data);
  return 0;
}
