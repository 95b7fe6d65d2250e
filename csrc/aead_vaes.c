/* AES-256-GCM by VAES (NIST SP 800-38D). Constant time: no branch and no address depends on key or data.
 *
 * Sixteen blocks at a time: eight registers of two counters each through the rounds, then sixteen products with the powers of H, reduced
 * once (Gueron and Kounavis, "Intel carry-less multiplication and its usage for computing the GCM mode", 2010). GHASH works on
 * byte-reflected blocks; the powers carry a factor of 1/x for its reversed bit order, so that products need no shift. */
#include "aead_vaes.h"

#if defined(__x86_64__) && !defined(PILOT_NO_VAES)
#include <immintrin.h>
#include <stdlib.h>

#include "aead.h"

enum { ROUNDS = 14, WIDE = 16, WIDE_BYTES = 16 * WIDE };

struct pl_vaes {
  uint8_t rk[ROUNDS + 1][32]; /* round keys, each twice */
  uint8_t power[WIDE][16];    /* H^16 first, H^1 last */
};

#define VAES __attribute__((target("avx2,aes,pclmul,vaes,vpclmulqdq")))
#define INLINE VAES static inline __attribute__((always_inline))

INLINE __m128i load(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
INLINE void store(void *p, __m128i x) { _mm_storeu_si128((__m128i *)p, x); }
INLINE __m256i load2(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE void store2(void *p, __m256i x) { _mm256_storeu_si256((__m256i *)p, x); }
INLINE __m128i reflect(__m128i x) { return _mm_shuffle_epi8(x, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)); }
INLINE __m256i reflect2(__m256i x) {
  return _mm256_shuffle_epi8(x, _mm256_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                                                11, 12, 13, 14, 15));
}
INLINE __m128i gf_poly(void) { return _mm_set_epi64x((long long)0xc200000000000000u, 1); }

/* ---- GHASH ---- */

typedef struct product { /* not yet reduced: lo + mid * x^64 + hi * x^128 */
  __m128i lo, mid, hi;
} product;

INLINE product multiply(__m128i a, __m128i b) {
  return (product){_mm_clmulepi64_si128(a, b, 0x00), _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10)),
                   _mm_clmulepi64_si128(a, b, 0x11)};
}

INLINE product add(product a, product b) {
  return (product){_mm_xor_si128(a.lo, b.lo), _mm_xor_si128(a.mid, b.mid), _mm_xor_si128(a.hi, b.hi)};
}

INLINE __m128i fold(__m128i low, __m128i high) {
  __m128i t = _mm_clmulepi64_si128(gf_poly(), low, 0x01);
  return _mm_xor_si128(high, _mm_xor_si128(t, _mm_shuffle_epi32(low, 0x4e)));
}

INLINE __m128i reduce(product p) { return fold(fold(p.lo, p.mid), p.hi); }

/* `acc` and the following `n` (1 to 16) blocks at `p`; a last one of fewer bytes is padded with zeros. */
INLINE __m128i hash_some(const pl_vaes *v, __m128i acc, const uint8_t *p, size_t len) {
  size_t n = (len + 15) / 16;
  product sum = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
  for (size_t i = 0; i < n; i++, p += 16, len -= 16) {
    __m128i block;
    if (len >= 16) {
      block = load(p);
    } else {
      uint8_t last[16] = {0};
      memcpy(last, p, len);
      block = load(last);
      len = 16;
    }
    block = reflect(block);
    if (i == 0) block = _mm_xor_si128(block, acc);
    sum = add(sum, multiply(block, load(v->power[WIDE - n + i])));
  }
  return n ? reduce(sum) : acc;
}

/* Sixteen whole blocks. */
INLINE __m128i hash_wide(const pl_vaes *v, __m128i acc, const __m256i c[8]) {
  __m256i lo = _mm256_setzero_si256(), mid = lo, hi = lo;
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    __m256i x = reflect2(c[i]), h = load2(v->power[2 * i]);
    if (i == 0) x = _mm256_xor_si256(x, _mm256_inserti128_si256(_mm256_setzero_si256(), acc, 0));
    lo = _mm256_xor_si256(lo, _mm256_clmulepi64_epi128(x, h, 0x00));
    mid = _mm256_xor_si256(mid, _mm256_xor_si256(_mm256_clmulepi64_epi128(x, h, 0x01), _mm256_clmulepi64_epi128(x, h, 0x10)));
    hi = _mm256_xor_si256(hi, _mm256_clmulepi64_epi128(x, h, 0x11));
  }
  product low = {_mm256_castsi256_si128(lo), _mm256_castsi256_si128(mid), _mm256_castsi256_si128(hi)};
  product high = {_mm256_extracti128_si256(lo, 1), _mm256_extracti128_si256(mid, 1), _mm256_extracti128_si256(hi, 1)};
  return reduce(add(low, high));
}

INLINE __m128i hash_aad(const pl_vaes *v, const uint8_t *aad, size_t len) {
  __m128i acc = _mm_setzero_si128();
  for (; len > WIDE_BYTES; aad += WIDE_BYTES, len -= WIDE_BYTES) acc = hash_some(v, acc, aad, WIDE_BYTES);
  return hash_some(v, acc, aad, len);
}

/* ---- AES in counter mode ---- */

INLINE __m128i encrypt_block(const pl_vaes *v, __m128i x) {
  x = _mm_xor_si128(x, load(v->rk[0]));
  for (int r = 1; r < ROUNDS; r++) x = _mm_aesenc_si128(x, load(v->rk[r]));
  return _mm_aesenclast_si128(x, load(v->rk[ROUNDS]));
}

/* Two counters, byte-reflected so that the 32-bit counter is the lowest word: as GCM counts, it wraps without a carry. */
INLINE __m256i first_counters(const uint8_t nonce[12]) {
  uint8_t block[16] = {[15] = 2};
  memcpy(block, nonce, 12);
  return _mm256_add_epi32(_mm256_broadcastsi128_si256(reflect(load(block))), _mm256_set_epi32(0, 0, 0, 1, 0, 0, 0, 0));
}

INLINE __m256i key_stream(const pl_vaes *v, __m256i counters, __m256i ks[8]) {
  const __m256i two = _mm256_set_epi32(0, 0, 0, 2, 0, 0, 0, 2);
  __m256i k = load2(v->rk[0]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    ks[i] = _mm256_xor_si256(reflect2(counters), k);
    counters = _mm256_add_epi32(counters, two);
  }
#pragma GCC unroll 13
  for (int r = 1; r < ROUNDS; r++) {
    k = load2(v->rk[r]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) ks[i] = _mm256_aesenc_epi128(ks[i], k);
  }
  k = load2(v->rk[ROUNDS]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) ks[i] = _mm256_aesenclast_epi128(ks[i], k);
  return counters;
}

INLINE void crypt_rest(const pl_vaes *v, __m256i counters, uint8_t *p, size_t len) {
  if (!len) return;
  __m256i ks[8];
  uint8_t bytes[WIDE_BYTES];
  key_stream(v, counters, ks);
  for (int i = 0; i < 8; i++) store2(bytes + 32 * i, ks[i]);
  size_t i = 0;
  for (; i + 16 <= len; i += 16) store(p + i, _mm_xor_si128(load(p + i), load(bytes + i)));
  for (; i < len; i++) p[i] ^= bytes[i];
  pl_wipe(bytes, sizeof bytes);
}

INLINE __m128i tag(const pl_vaes *v, __m128i acc, const uint8_t nonce[12], size_t aad_len, size_t len) {
  __m128i bits = _mm_set_epi64x((long long)((uint64_t)aad_len * 8), (long long)((uint64_t)len * 8));
  acc = reduce(multiply(_mm_xor_si128(acc, bits), load(v->power[WIDE - 1])));
  uint8_t block[16] = {[15] = 1};
  memcpy(block, nonce, 12);
  return _mm_xor_si128(reflect(acc), encrypt_block(v, load(block)));
}

VAES void pl_vaes_seal(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  __m128i acc = hash_aad(v, aad, aad_len);
  __m256i counters = first_counters(nonce), ks[8];
  uint8_t *p = data;
  size_t left = len;
  for (; left >= WIDE_BYTES; p += WIDE_BYTES, left -= WIDE_BYTES) {
    counters = key_stream(v, counters, ks);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      ks[i] = _mm256_xor_si256(ks[i], load2(p + 32 * i));
      store2(p + 32 * i, ks[i]);
    }
    acc = hash_wide(v, acc, ks);
  }
  crypt_rest(v, counters, p, left);
  acc = hash_some(v, acc, p, left);
  store(data + len, tag(v, acc, nonce, aad_len, len));
}

VAES int pl_vaes_open(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  __m128i acc = hash_aad(v, aad, aad_len);
  __m256i c[8];
  uint8_t *p = data;
  size_t left = len;
  for (; left >= WIDE_BYTES; p += WIDE_BYTES, left -= WIDE_BYTES) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) c[i] = load2(p + 32 * i);
    acc = hash_wide(v, acc, c);
  }
  acc = hash_some(v, acc, p, left);
  __m128i diff = _mm_xor_si128(tag(v, acc, nonce, aad_len, len), load(data + len));
  if (!_mm_testz_si128(diff, diff)) {
    pl_wipe(data, len);
    return PL_EAUTH;
  }
  __m256i counters = first_counters(nonce);
  for (p = data, left = len; left >= WIDE_BYTES; p += WIDE_BYTES, left -= WIDE_BYTES) {
    counters = key_stream(v, counters, c);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) store2(p + 32 * i, _mm256_xor_si256(c[i], load2(p + 32 * i)));
  }
  crypt_rest(v, counters, p, left);
  return PL_OK;
}

/* ---- keys ---- */

INLINE __m128i spread(__m128i x) { /* each word becomes the xor of itself and all lower ones */
  x = _mm_xor_si128(x, _mm_slli_si128(x, 4));
  return _mm_xor_si128(x, _mm_slli_si128(x, 8));
}

VAES static void expand(pl_vaes *v, const uint8_t key[32]) {
  __m128i k[ROUNDS + 1];
  k[0] = load(key);
  k[1] = load(key + 16);
#define EVEN(i, rcon) k[i] = _mm_xor_si128(spread(k[(i)-2]), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k[(i)-1], rcon), 0xff))
#define ODD(i) k[i] = _mm_xor_si128(spread(k[(i)-2]), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(k[(i)-1], 0), 0xaa))
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
  for (int r = 0; r <= ROUNDS; r++) {
    store(v->rk[r], k[r]);
    store(v->rk[r] + 16, k[r]);
  }
  pl_wipe(k, sizeof k);
}

VAES static void set_powers(pl_vaes *v) {
  __m128i h = reflect(encrypt_block(v, _mm_setzero_si128()));
  /* Times x in the natural order of bits: a shift by one over both halves, and the polynomial if a bit fell out. */
  __m128i carry = _mm_and_si128(_mm_srai_epi32(_mm_shuffle_epi32(h, 0xd3), 31), _mm_set_epi32((int)0xc2000000u, 1, 0, 1));
  h = _mm_xor_si128(_mm_add_epi64(h, h), carry);
  __m128i power = h;
  for (int i = WIDE - 1; i >= 0; i--) {
    store(v->power[i], power);
    power = reduce(multiply(power, h));
  }
}

bool pl_vaes_supported(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul") &&
         __builtin_cpu_supports("vaes") && __builtin_cpu_supports("vpclmulqdq");
}

pl_vaes *pl_vaes_new(const uint8_t key[32]) {
  if (!pl_vaes_supported()) return NULL;
  pl_vaes *v = malloc(sizeof *v);
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

#else

bool pl_vaes_supported(void) { return false; }
pl_vaes *pl_vaes_new(const uint8_t key[32]) {
  (void)key;
  return NULL;
}
void pl_vaes_free(pl_vaes *v) { (void)v; }
void pl_vaes_seal(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  (void)v, (void)nonce, (void)aad, (void)aad_len, (void)data, (void)len;
}
int pl_vaes_open(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  (void)v, (void)nonce, (void)aad, (void)aad_len, (void)data, (void)len;
  return PL_EAUTH;
}

#endif
