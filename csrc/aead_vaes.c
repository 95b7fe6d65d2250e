/* AES-256-GCM by 512-bit VAES and VPCLMULQDQ (NIST SP 800-38D). Constant time: no branch and no address depends on key or data.
 *
 * Thirty-two blocks at a time: eight registers of four counters each through the rounds, and thirty-two products with the powers of H,
 * reduced once (Gueron and Kounavis, "Intel carry-less multiplication and its usage for computing the GCM mode", 2010). The last,
 * shorter step is the same with byte masks. GHASH works on byte-reflected blocks; the powers carry a factor of 1/x for its reversed
 * order of bits, so that products need no shift. */
#include "aead_internal.h"

#if PL_HAVE_VAES
#include <cpuid.h>
#include <immintrin.h>
#include <stdlib.h>

enum { ROUNDS = 14, STEP_BLOCKS = 32, STEP = 16 * STEP_BLOCKS };

struct pl_vaes {
  uint8_t rk[ROUNDS + 1][16];
  uint8_t power[2 * STEP_BLOCKS][16]; /* H^32 to H^1, then zeros: blocks that are not there count nothing */
};

#define VAES __attribute__((target("avx512f,avx512bw,avx2,aes,pclmul,vaes,vpclmulqdq")))
#define INLINE VAES static inline __attribute__((always_inline))

INLINE __m128i load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE void store(void *p, __m128i x) { _mm_storeu_si128((__m128i *)p, x); }
INLINE __m128i reversal(void) { return _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
INLINE __m128i reflect(__m128i x) { return _mm_shuffle_epi8(x, reversal()); }
INLINE __m512i reflect4(__m512i x) { return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(reversal())); }

/* ---- GHASH ---- */

typedef struct product { /* not yet reduced: lo + mid * x^64 + hi * x^128 */
  __m128i lo, mid, hi;
} product;

INLINE product multiply(__m128i a, __m128i b) {
  return (product){_mm_clmulepi64_si128(a, b, 0x00), _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10)),
                   _mm_clmulepi64_si128(a, b, 0x11)};
}

INLINE __m128i fold(__m128i low, __m128i high) {
  const __m128i poly = _mm_set_epi64x((long long)0xc200000000000000u, 1);
  __m128i t = _mm_clmulepi64_si128(poly, low, 0x01);
  return _mm_xor_si128(high, _mm_xor_si128(t, _mm_shuffle_epi32(low, 0x4e)));
}

INLINE __m128i reduce(product p) { return fold(fold(p.lo, p.mid), p.hi); }

INLINE __m128i lanes_sum(__m512i x) {
  __m256i y = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  return _mm_xor_si128(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

/* `n` blocks (1 to 4 * width) in `c`, zero behind them. */
INLINE __m128i hash(const pl_vaes *v, __m128i acc, const __m512i *c, size_t n, const int width) {
  __m512i lo = _mm512_setzero_si512(), mid = lo, hi = lo;
  const uint8_t(*power)[16] = v->power + (STEP_BLOCKS - n);
#pragma GCC unroll 8
  for (int i = 0; i < width; i++) {
    __m512i x = reflect4(c[i]), h = _mm512_loadu_si512(power[4 * i]);
    if (i == 0) x = _mm512_xor_si512(x, _mm512_zextsi128_si512(acc));
    lo = _mm512_xor_si512(lo, _mm512_clmulepi64_epi128(x, h, 0x00));
    __m512i cross = _mm512_clmulepi64_epi128(x, h, 0x01);
    mid = _mm512_ternarylogic_epi64(mid, cross, _mm512_clmulepi64_epi128(x, h, 0x10), 0x96);
    hi = _mm512_xor_si512(hi, _mm512_clmulepi64_epi128(x, h, 0x11));
  }
  return reduce((product){lanes_sum(lo), lanes_sum(mid), lanes_sum(hi)});
}

/* ---- bytes in and out: all of them, or the first `len` ---- */

INLINE __mmask64 mask_at(size_t len, int i) {
  size_t at = 64 * (size_t)i;
  if (len >= at + 64) return ~(__mmask64)0;
  return len > at ? ~(__mmask64)0 >> (64 - (len - at)) : 0;
}

INLINE void load_step(__m512i *x, const uint8_t *p, size_t len, const bool whole, const int width) {
#pragma GCC unroll 8
  for (int i = 0; i < width; i++) x[i] = whole ? _mm512_loadu_si512(p + 64 * i) : _mm512_maskz_loadu_epi8(mask_at(len, i), p + 64 * i);
}

INLINE __m128i hash_aad(const pl_vaes *v, const uint8_t *aad, size_t len) {
  __m128i acc = _mm_setzero_si128();
  __m512i x[8];
  for (; len > 256; aad += 256, len -= 256) {
    load_step(x, aad, 256, true, 4);
    acc = hash(v, acc, x, 16, 4);
  }
  if (!len) return acc;
  load_step(x, aad, len, false, 4);
  return hash(v, acc, x, (len + 15) / 16, 4);
}

/* ---- AES in counter mode ---- */

INLINE __m128i encrypt_block(const pl_vaes *v, __m128i x) {
  x = _mm_xor_si128(x, load(v->rk[0]));
  for (int r = 1; r < ROUNDS; r++) x = _mm_aesenc_si128(x, load(v->rk[r]));
  return _mm_aesenclast_si128(x, load(v->rk[ROUNDS]));
}

INLINE __m128i counter_block(const uint8_t nonce[12], uint8_t count) {
  uint8_t block[16] = {[15] = count};
  memcpy(block, nonce, 12);
  return load(block);
}

/* Four counters, byte-reflected so that the 32-bit counter is the lowest word: as GCM counts, it wraps without a carry. */
INLINE __m512i first_counters(const uint8_t nonce[12]) {
  __m512i two = _mm512_broadcast_i32x4(reflect(counter_block(nonce, 2)));
  return _mm512_add_epi32(two, _mm512_set_epi32(0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0));
}

INLINE __m512i key_stream(const pl_vaes *v, __m512i counters, __m512i *ks, const int width) {
  const __m512i four = _mm512_broadcast_i32x4(_mm_set_epi32(0, 0, 0, 4));
  __m512i k = _mm512_broadcast_i32x4(load(v->rk[0]));
#pragma GCC unroll 8
  for (int i = 0; i < width; i++) {
    ks[i] = _mm512_xor_si512(reflect4(counters), k);
    counters = _mm512_add_epi32(counters, four);
  }
#pragma GCC unroll 13
  for (int r = 1; r < ROUNDS; r++) {
    k = _mm512_broadcast_i32x4(load(v->rk[r]));
#pragma GCC unroll 8
    for (int i = 0; i < width; i++) ks[i] = _mm512_aesenc_epi128(ks[i], k);
  }
  k = _mm512_broadcast_i32x4(load(v->rk[ROUNDS]));
#pragma GCC unroll 8
  for (int i = 0; i < width; i++) ks[i] = _mm512_aesenclast_epi128(ks[i], k);
  return counters;
}

/* One step: `len` bytes, all of 64 * width if `whole`. */
INLINE __m128i step(const pl_vaes *v, __m128i acc, __m512i *counters, uint8_t *p, size_t len, const bool open, const bool whole,
                    const int width) {
  __m512i in[8], x[8];
  *counters = key_stream(v, *counters, x, width);
  load_step(in, p, len, whole, width);
#pragma GCC unroll 8
  for (int i = 0; i < width; i++) {
    x[i] = _mm512_xor_si512(x[i], in[i]);
    if (whole) {
      _mm512_storeu_si512(p + 64 * i, x[i]);
    } else {
      _mm512_mask_storeu_epi8(p + 64 * i, mask_at(len, i), x[i]);
      x[i] = _mm512_maskz_mov_epi8(mask_at(len, i), x[i]);
    }
  }
  return hash(v, acc, open ? in : x, (len + 15) / 16, width);
}

INLINE __m128i run(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *p, size_t len, const bool open) {
  __m128i bits = _mm_set_epi64x((long long)((uint64_t)aad_len * 8), (long long)((uint64_t)len * 8));
  __m128i acc = hash_aad(v, aad, aad_len);
  __m512i counters = first_counters(nonce);
  for (; len >= STEP; p += STEP, len -= STEP) acc = step(v, acc, &counters, p, STEP, open, true, 8);
  if (len > STEP / 2)
    acc = step(v, acc, &counters, p, len, open, false, 8);
  else if (len)
    acc = step(v, acc, &counters, p, len, open, false, 4);
  acc = reduce(multiply(_mm_xor_si128(acc, bits), load(v->power[STEP_BLOCKS - 1])));
  return _mm_xor_si128(reflect(acc), encrypt_block(v, counter_block(nonce, 1)));
}

VAES void pl_vaes_seal(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  store(data + len, run(v, nonce, aad, aad_len, data, len, false));
}

VAES int pl_vaes_open(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  __m128i diff = _mm_xor_si128(run(v, nonce, aad, aad_len, data, len, true), load(data + len));
  return _mm_testz_si128(diff, diff) ? PL_OK : PL_EAUTH;
}

/* ---- keys ---- */

INLINE __m128i spread(__m128i x) { /* each word becomes the xor of itself and all lower ones */
  x = _mm_xor_si128(x, _mm_slli_si128(x, 4));
  return _mm_xor_si128(x, _mm_slli_si128(x, 8));
}

VAES static void expand(pl_vaes *v, const uint8_t key[32]) {
  __m128i even = load(key), odd = load(key + 16);
  store(v->rk[0], even);
  store(v->rk[1], odd);
#define EVEN(i, rcon) \
  even = _mm_xor_si128(spread(even), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(odd, rcon), 0xff)), store(v->rk[i], even)
#define ODD(i) odd = _mm_xor_si128(spread(odd), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(even, 0), 0xaa)), store(v->rk[i], odd)
  EVEN(2, 0x01);
  ODD(3);
  EVEN(4, 0x02);
  ODD(5);
  EVEN(6, 0x04);
  ODD(7);
  EVEN(8, 0x08);
  ODD(9);
  EVEN(10, 0x10);
  ODD(11);
  EVEN(12, 0x20);
  ODD(13);
  EVEN(14, 0x40);
}

VAES static void set_powers(pl_vaes *v) {
  __m128i h = reflect(encrypt_block(v, _mm_setzero_si128()));
  /* Times x in the natural order of bits: a shift by one over both halves, and the polynomial if a bit fell out. */
  __m128i carry = _mm_and_si128(_mm_srai_epi32(_mm_shuffle_epi32(h, 0xd3), 31), _mm_set_epi32((int)0xc2000000u, 1, 0, 1));
  h = _mm_xor_si128(_mm_add_epi64(h, h), carry);
  __m128i power = h;
  for (int i = STEP_BLOCKS - 1; i >= 0; i--) {
    store(v->power[i], power);
    power = reduce(multiply(power, h));
  }
}

bool pl_vaes_supported(void) {
  unsigned eax, ebx, ecx = 0, edx; /* not every compiler's __builtin_cpu_supports knows the last two features */
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx2") ||
      !__builtin_cpu_supports("pclmul"))
    return false;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && ecx & 1u << 9 && ecx & 1u << 10; /* VAES, VPCLMULQDQ */
}

pl_vaes *pl_vaes_new(const uint8_t key[32]) {
  pl_vaes *v = calloc(1, sizeof *v);
  if (!v) return NULL;
  expand(v, key);
  set_powers(v);
  return v;
}

void pl_vaes_free(pl_vaes *v) {
  if (!v) return;
  pl_wipe(v, sizeof *v);
  free(v);
}

#endif
