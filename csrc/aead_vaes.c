/* AES-256-GCM with 512-bit vector instructions (NIST SP 800-38D): four AES blocks an instruction, one pass over the data.
 *
 * CTR: sixteen counter blocks in four registers a step. GHASH: sixteen blocks are multiplied by H^16 .. H^1 and summed before one
 * reduction (Gueron and Kounavis, "Intel carry-less multiplication and its usage for computing the GCM mode", 2010). Blocks are
 * kept byte-reversed; the powers of H are kept times x^-1, which takes the place of the one-bit shift of every product.
 *
 * No branch and no address depends on key, plaintext or tag. Proven in tests against libcrypto and known answers; switched off by the
 * build option PILOT_VAES=OFF or the environment variable PILOT_AEAD=openssl. */
#include "aead_internal.h"

#if PL_HAVE_VAES

#include <cpuid.h>
#include <immintrin.h>
#include <stdlib.h>

#define VAES __attribute__((target("avx512f,avx512bw,avx512vl,vaes,vpclmulqdq,aes,pclmul,ssse3,sse4.1")))
#define VAES_INLINE VAES __attribute__((always_inline)) static inline

enum { ROUNDS = 14, POWERS = 16, STEP = 16 * POWERS };

struct pl_vaes {
  __m128i rk[ROUNDS + 1];
  __m128i h[POWERS + 3]; /* H^16 .. H^1, then zeros: blocks behind the last one are multiplied by nothing */
};

bool pl_vaes_supported(void) {
  unsigned a, b, basic, d, extended;
  __builtin_cpu_init(); /* knows whether the system saves the wide registers; not every compiler knows the names of the rest */
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __get_cpuid(1, &a, &b, &basic, &d) && basic & bit_AES && basic & bit_PCLMUL &&
         __get_cpuid_count(7, 0, &a, &b, &extended, &d) && extended & bit_VAES && extended & bit_VPCLMULQDQ;
}

/* ---- GHASH ---- */

VAES_INLINE __m128i reversed128(__m128i x) {
  return _mm_shuffle_epi8(x, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

VAES_INLINE __m512i reversed512(__m512i x) {
  return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
}

/* The three parts of a 256-bit product to its residue modulo x^128 + x^127 + x^126 + x^121 + 1 (bit-reversed). */
VAES_INLINE __m128i reduce(__m128i lo, __m128i mid, __m128i hi) {
  const __m128i p = _mm_set_epi64x((long long)0xc200000000000000ull, 1);
  mid = _mm_xor_si128(mid, _mm_xor_si128(_mm_clmulepi64_si128(p, lo, 0x01), _mm_shuffle_epi32(lo, 0x4e)));
  return _mm_xor_si128(hi, _mm_xor_si128(_mm_clmulepi64_si128(p, mid, 0x01), _mm_shuffle_epi32(mid, 0x4e)));
}

VAES_INLINE __m128i multiply(__m128i a, __m128i h) {
  return reduce(_mm_clmulepi64_si128(a, h, 0x00), _mm_xor_si128(_mm_clmulepi64_si128(a, h, 0x01), _mm_clmulepi64_si128(a, h, 0x10)),
                _mm_clmulepi64_si128(a, h, 0x11));
}

typedef struct product {
  __m512i lo, mid, hi;
} product;

VAES_INLINE void add_product(product *p, __m512i a, __m512i h) {
  p->lo = _mm512_xor_si512(p->lo, _mm512_clmulepi64_epi128(a, h, 0x00));
  p->hi = _mm512_xor_si512(p->hi, _mm512_clmulepi64_epi128(a, h, 0x11));
  p->mid = _mm512_ternarylogic_epi64(p->mid, _mm512_clmulepi64_epi128(a, h, 0x01), _mm512_clmulepi64_epi128(a, h, 0x10), 0x96);
}

VAES_INLINE __m128i folded(__m512i x) {
  __m256i y = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  return _mm_xor_si128(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

VAES_INLINE __m128i residue(const product *p) { return reduce(folded(p->lo), folded(p->mid), folded(p->hi)); }

/* ---- key ---- */

VAES_INLINE __m128i expand(__m128i key, __m128i assist) {
  key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
  return _mm_xor_si128(key, assist);
}

#define EXPAND_EVEN(i, rcon) rk[i] = expand(rk[(i) - 2], _mm_shuffle_epi32(_mm_aeskeygenassist_si128(rk[(i) - 1], rcon), 0xff))
#define EXPAND_ODD(i) rk[i] = expand(rk[(i) - 2], _mm_shuffle_epi32(_mm_aeskeygenassist_si128(rk[(i) - 1], 0), 0xaa))

VAES static void expand_key(__m128i rk[ROUNDS + 1], const uint8_t key[32]) {
  rk[0] = _mm_loadu_si128((const __m128i *)(const void *)key);
  rk[1] = _mm_loadu_si128((const __m128i *)(const void *)(key + 16));
  EXPAND_EVEN(2, 0x01);
  EXPAND_ODD(3);
  EXPAND_EVEN(4, 0x02);
  EXPAND_ODD(5);
  EXPAND_EVEN(6, 0x04);
  EXPAND_ODD(7);
  EXPAND_EVEN(8, 0x08);
  EXPAND_ODD(9);
  EXPAND_EVEN(10, 0x10);
  EXPAND_ODD(11);
  EXPAND_EVEN(12, 0x20);
  EXPAND_ODD(13);
  EXPAND_EVEN(14, 0x40);
}

VAES_INLINE __m128i encrypt_block(const __m128i rk[ROUNDS + 1], __m128i x) {
  x = _mm_xor_si128(x, rk[0]);
  for (int i = 1; i < ROUNDS; i++) x = _mm_aesenc_si128(x, rk[i]);
  return _mm_aesenclast_si128(x, rk[ROUNDS]);
}

/* Times x^-1: a shift to the left in the reversed order, folded back by the polynomial. */
VAES static __m128i prepared(__m128i h) {
  uint64_t lo = (uint64_t)_mm_extract_epi64(h, 0), hi = (uint64_t)_mm_extract_epi64(h, 1);
  uint64_t carry = 0 - (hi >> 63);
  hi = hi << 1 | lo >> 63;
  lo <<= 1;
  hi ^= carry & 0xc200000000000000ull;
  lo ^= carry & 1;
  return _mm_set_epi64x((long long)hi, (long long)lo);
}

VAES static void set_key(pl_vaes *v, const uint8_t key[32]) {
  expand_key(v->rk, key);
  __m128i h1 = prepared(reversed128(encrypt_block(v->rk, _mm_setzero_si128()))), h = h1;
  for (int i = POWERS - 1; i >= 0; i--) {
    v->h[i] = h;
    h = multiply(h, h1);
  }
  for (int i = POWERS; i < POWERS + 3; i++) v->h[i] = _mm_setzero_si128();
}

pl_vaes *pl_vaes_new(const uint8_t key[32]) {
  pl_vaes *v = aligned_alloc(64, (sizeof *v + 63) & ~(size_t)63);
  if (v) set_key(v, key);
  return v;
}

void pl_vaes_free(pl_vaes *v) {
  if (!v) return;
  pl_wipe(v, sizeof *v);
  free(v);
}

/* ---- data ---- */

VAES_INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }
VAES_INLINE __m512i round_key(const pl_vaes *v, int i) { return _mm512_broadcast_i32x4(v->rk[i]); }

/* Key stream of 4 * n counter blocks. `ctr`: the next four counters, byte-reversed; moves on. */
VAES_INLINE void key_stream(const pl_vaes *v, __m512i *ctr, __m512i out[], int n) {
  const __m512i four = _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4);
  __m512i k = round_key(v, 0);
  for (int j = 0; j < n; j++) {
    out[j] = _mm512_xor_si512(reversed512(*ctr), k);
    *ctr = _mm512_add_epi32(*ctr, four);
  }
  for (int i = 1; i < ROUNDS; i++) {
    k = round_key(v, i);
    for (int j = 0; j < n; j++) out[j] = _mm512_aesenc_epi128(out[j], k);
  }
  k = round_key(v, ROUNDS);
  for (int j = 0; j < n; j++) out[j] = _mm512_aesenclast_epi128(out[j], k);
}

VAES_INLINE __m128i hash_short(const pl_vaes *v, const uint8_t *p, size_t len) {
  __m128i acc = _mm_setzero_si128();
  while (len) {
    size_t n = len < 16 ? len : 16;
    __m128i x = _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p);
    acc = multiply(_mm_xor_si128(acc, reversed128(x)), v->h[POWERS - 1]);
    p += n;
    len -= n;
  }
  return acc;
}

VAES_INLINE __m128i hash_step(const pl_vaes *v, __m128i acc, const __m512i c[4]) {
  product p = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  add_product(&p, _mm512_xor_si512(c[0], _mm512_zextsi128_si512(acc)), load512(&v->h[0]));
  for (int j = 1; j < 4; j++) add_product(&p, c[j], load512(&v->h[4 * j]));
  return residue(&p);
}

/* Encrypts or decrypts `len` bytes in place and returns the tag. */
VAES_INLINE __m128i crypt_in_place(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data,
                                   size_t len, const bool seal) {
  __m128i acc = hash_short(v, aad, aad_len);
  __m128i j0 = _mm_insert_epi32(_mm_maskz_loadu_epi8(0x0fff, nonce), 0x01000000, 3);
  __m512i ctr = _mm512_add_epi32(_mm512_broadcast_i32x4(reversed128(j0)),
                                 _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1));
  const __m512i zero = _mm512_setzero_si512();
  size_t left = len;
  __m512i s[4], c[4];
  bool waiting = false; /* sealing: the ciphertext of one step is hashed beside the rounds of the next */
  for (; left >= STEP; left -= STEP, data += STEP) {
    key_stream(v, &ctr, s, 4);
    if (waiting) acc = hash_step(v, acc, c);
    for (int j = 0; j < 4; j++) {
      __m512i in = load512(data + 64 * j), out = _mm512_xor_si512(in, s[j]);
      _mm512_storeu_si512(data + 64 * j, out);
      c[j] = reversed512(seal ? out : in);
    }
    waiting = seal;
    if (!seal) acc = hash_step(v, acc, c);
  }
  if (waiting) acc = hash_step(v, acc, c);
  if (left) {
    /* The last blocks meet the lowest powers: the table is entered as far in as blocks are missing. */
    const __m128i *h = &v->h[POWERS - (left + 15) / 16];
    product p = {zero, zero, zero};
    __m512i carry = _mm512_zextsi128_si512(acc);
    for (; left; h += 4) {
      size_t n = left < 64 ? left : 64;
      __mmask64 m = ~0ull >> (64 - n);
      key_stream(v, &ctr, s, 1);
      __m512i in = _mm512_maskz_loadu_epi8(m, data), out = _mm512_maskz_mov_epi8(m, _mm512_xor_si512(in, s[0]));
      _mm512_mask_storeu_epi8(data, m, out);
      add_product(&p, _mm512_xor_si512(reversed512(seal ? out : in), carry), load512(h));
      carry = zero;
      data += n;
      left -= n;
    }
    acc = residue(&p);
  }
  __m128i lengths = _mm_set_epi64x((long long)(aad_len * 8), (long long)(len * 8));
  acc = multiply(_mm_xor_si128(acc, lengths), v->h[POWERS - 1]);
  return _mm_xor_si128(reversed128(acc), encrypt_block(v->rk, j0));
}

VAES void pl_vaes_seal(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  __m128i tag = crypt_in_place(v, nonce, aad, aad_len, data, len, true);
  _mm_storeu_si128((__m128i *)(void *)(data + len), tag);
}

VAES int pl_vaes_open(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  __m128i sent = _mm_loadu_si128((const __m128i *)(const void *)(data + len));
  __m128i diff = _mm_xor_si128(sent, crypt_in_place(v, nonce, aad, aad_len, data, len, false));
  return _mm_test_all_zeros(diff, diff) ? PL_OK : PL_EAUTH;
}

#endif
