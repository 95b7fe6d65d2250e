/* CRC-32/IEEE (transport.md 2.1): eight bytes a step by tables everywhere, by carry-less multiplication on x86-64.
 *
 * Folding: Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel 2009. A block of the message moved
 * D bits toward the end is its two halves times x^(D+32) and x^(D-32) mod P; the constants below are those remainders, bit-reflected
 * and shifted left by one. The variant is chosen once, when the library is loaded. */
#include "crc32.h"

#include "wire.h"

#define POLY_REFLECTED 0xedb88320u

static uint32_t table[8][256];
static pl_crc32_fn variants[PL_CRC32_VARIANTS];
static pl_crc32_fn best;

/* All of these work on the inverted register: the public functions below invert before and after. */

static inline uint32_t load32le(const uint8_t *p) {
  return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static uint32_t by_table(uint32_t c, const uint8_t *p, size_t len) {
  for (; len >= 8; p += 8, len -= 8) {
    uint32_t a = load32le(p) ^ c, b = load32le(p + 4);
    c = table[7][a & 0xff] ^ table[6][a >> 8 & 0xff] ^ table[5][a >> 16 & 0xff] ^ table[4][a >> 24] ^ table[3][b & 0xff] ^
        table[2][b >> 8 & 0xff] ^ table[1][b >> 16 & 0xff] ^ table[0][b >> 24];
  }
  while (len--) c = c >> 8 ^ table[0][(c ^ *p++) & 0xff];
  return c;
}

static uint32_t crc_table(uint32_t crc, const uint8_t *p, size_t len) { return ~by_table(~crc, p, len); }

#if defined(__x86_64__)
#include <immintrin.h>

#define CLMUL128 __attribute__((target("pclmul,sse4.1")))
#define CLMUL256 __attribute__((target("avx2,pclmul,vpclmulqdq")))
#define MIN128 64u  /* below, tables win */
#define MIN256 256u

CLMUL128 static inline __m128i load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }

CLMUL128 static inline __m128i fold(__m128i x, __m128i k, __m128i next) {
  __m128i lo = _mm_clmulepi64_si128(x, k, 0x00), hi = _mm_clmulepi64_si128(x, k, 0x11);
  return _mm_xor_si128(_mm_xor_si128(lo, hi), next);
}

/* Four lanes, 64 bytes of the message each step apart, into one, then the whole 16-byte blocks that remain, then the register.
 * Bytes after the last whole block are left to the caller. */
CLMUL128 static uint32_t reduce(__m128i x0, __m128i x1, __m128i x2, __m128i x3, const uint8_t *p, size_t blocks) {
  const __m128i k128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
  x0 = fold(fold(fold(x0, k128, x1), k128, x2), k128, x3);
  for (; blocks; blocks--, p += 16) x0 = fold(x0, k128, load(p));

  /* 128 -> 64 bits, then Barrett. */
  const __m128i mask32 = _mm_set_epi32(0, 0, 0, -1);
  x1 = _mm_clmulepi64_si128(x0, k128, 0x10);
  x0 = _mm_xor_si128(_mm_srli_si128(x0, 8), x1);
  const __m128i k64 = _mm_set_epi64x(0, 0x163cd6124);
  x1 = _mm_srli_si128(x0, 4);
  x0 = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(x0, mask32), k64, 0x00), x1);
  const __m128i barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641); /* floor(x^64 / P), P */
  x1 = _mm_clmulepi64_si128(_mm_and_si128(x0, mask32), barrett, 0x10);
  x1 = _mm_clmulepi64_si128(_mm_and_si128(x1, mask32), barrett, 0x00);
  return (uint32_t)_mm_extract_epi32(_mm_xor_si128(x0, x1), 1);
}

CLMUL128 static uint32_t crc_clmul128(uint32_t crc, const uint8_t *p, size_t len) {
  if (len < MIN128) return crc_table(crc, p, len);
  const __m128i k512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
  __m128i x0 = _mm_xor_si128(load(p), _mm_cvtsi32_si128((int)~crc));
  __m128i x1 = load(p + 16), x2 = load(p + 32), x3 = load(p + 48);
  for (p += 64, len -= 64; len >= 64; p += 64, len -= 64) {
    x0 = fold(x0, k512, load(p));
    x1 = fold(x1, k512, load(p + 16));
    x2 = fold(x2, k512, load(p + 32));
    x3 = fold(x3, k512, load(p + 48));
  }
  uint32_t c = reduce(x0, x1, x2, x3, p, len / 16);
  return ~by_table(c, p + (len & ~(size_t)15), len & 15);
}

CLMUL256 static inline __m256i load256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

CLMUL256 static inline __m256i fold256(__m256i x, __m256i k, __m256i next) {
  __m256i lo = _mm256_clmulepi64_epi128(x, k, 0x00), hi = _mm256_clmulepi64_epi128(x, k, 0x11);
  return _mm256_xor_si256(_mm256_xor_si256(lo, hi), next);
}

CLMUL256 static uint32_t crc_clmul256(uint32_t crc, const uint8_t *p, size_t len) {
  if (len < MIN256) return crc_clmul128(crc, p, len);
  const __m256i k1024 = _mm256_set_epi64x(0x14a7fe880, 0x1e88ef372, 0x14a7fe880, 0x1e88ef372);
  const __m256i k512 = _mm256_set_epi64x(0x1c6e41596, 0x154442bd4, 0x1c6e41596, 0x154442bd4);
  __m256i y0 = _mm256_xor_si256(load256(p), _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, (int)~crc));
  __m256i y1 = load256(p + 32), y2 = load256(p + 64), y3 = load256(p + 96);
  for (p += 128, len -= 128; len >= 128; p += 128, len -= 128) {
    y0 = fold256(y0, k1024, load256(p));
    y1 = fold256(y1, k1024, load256(p + 32));
    y2 = fold256(y2, k1024, load256(p + 64));
    y3 = fold256(y3, k1024, load256(p + 96));
  }
  y2 = fold256(y0, k512, y2);
  y3 = fold256(y1, k512, y3);
  uint32_t c = reduce(_mm256_castsi256_si128(y2), _mm256_extracti128_si256(y2, 1), _mm256_castsi256_si128(y3),
                      _mm256_extracti128_si256(y3, 1), p, len / 16);
  return ~by_table(c, p + (len & ~(size_t)15), len & 15);
}

static void choose(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) variants[PL_CRC32_CLMUL128] = crc_clmul128;
  if (variants[PL_CRC32_CLMUL128] && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq"))
    variants[PL_CRC32_CLMUL256] = crc_clmul256;
}
#else
static void choose(void) {}
#endif

__attribute__((constructor)) static void init(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ POLY_REFLECTED : c >> 1;
    table[0][i] = c;
  }
  for (unsigned i = 0; i < 256; i++)
    for (unsigned t = 1; t < 8; t++) table[t][i] = table[t - 1][i] >> 8 ^ table[0][table[t - 1][i] & 0xff];
  variants[PL_CRC32_TABLE] = crc_table;
  choose();
  for (unsigned v = 0; v < PL_CRC32_VARIANTS; v++)
    if (variants[v]) best = variants[v];
}

pl_crc32_fn pl_crc32_variant(unsigned variant) { return variant < PL_CRC32_VARIANTS ? variants[variant] : NULL; }

uint32_t pl_crc32(uint32_t crc, const uint8_t *p, size_t len) { return best(crc, p, len); }
