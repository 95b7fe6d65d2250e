/* Every variant of the checksum against a bitwise one, all short lengths and alignments, in pieces, and at buffer ends. */
#include "check.h"
#include "crc32.h"
#include "wire.h"

static uint32_t oracle(uint32_t crc, const uint8_t *p, size_t n) {
  crc = ~crc;
  while (n--) {
    crc ^= *p++;
    for (int i = 0; i < 8; i++) crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
  }
  return ~crc;
}

static void vectors(pl_crc32_fn f) {
  static const struct {
    const char *hex;
    uint32_t crc;
  } v[] = {
      {"", 0},
      {"313233343536373839", 0xcbf43926},
      {"68656c6c6f", 0x3610a686},
      {"00000000000000000000000000000000000000000000000000000000000000000000", 0x41716c2a},
      {"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", 0x8cd04c73},
  };
  for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
    size_t n;
    uint8_t *p = check_hex(v[i].hex, &n);
    CHECK(f(0, p, n) == v[i].crc);
    free(p);
  }
}

int main(void) {
  uint64_t seed = check_seed("test_crc32", 1);
  unsigned found = 0;
  for (unsigned k = 0; k < PL_CRC32_VARIANTS; k++) {
    pl_crc32_fn f = pl_crc32_variant(k);
    if (!f) {
      printf("variant %u: not on this processor\n", k);
      continue;
    }
    found++;
    vectors(f);
    for (size_t n = 0; n <= 1300; n++) {
      uint8_t *p = malloc(n + 1); /* shifted by n mod 2; ends where the memory ends */
      check_fill(&seed, p, n + 1);
      uint32_t start = (uint32_t)check_u64(&seed);
      CHECK(f(0, p + 1, n) == oracle(0, p + 1, n));
      CHECK(f(start, p + 1, n) == oracle(start, p + 1, n));
      free(p);
    }
    for (unsigned round = 0; round < 300; round++) {
      size_t n = check_u64(&seed) % 70000, cut = n ? check_u64(&seed) % n : 0, shift = check_u64(&seed) % 64;
      uint8_t *p = malloc(n + shift + 1);
      check_fill(&seed, p + shift, n);
      uint32_t whole = f(7, p + shift, n);
      CHECK(f(f(7, p + shift, cut), p + shift + cut, n - cut) == whole);
      if (round % 20 == 0) CHECK(whole == oracle(7, p + shift, n));
      free(p);
    }
  }
  CHECK(found >= 1 && !pl_crc32_variant(PL_CRC32_VARIANTS));
  uint8_t zero[64] = {0};
  CHECK(pl_crc32(0, zero, sizeof zero) == oracle(0, zero, sizeof zero));
  printf("test_crc32: %u variants ok\n", found);
  return 0;
}
