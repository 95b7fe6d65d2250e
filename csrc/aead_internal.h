/* The implementations behind aead.h. pl_aead_new takes the best that the processor has; tests ask for each by name. */
#ifndef PL_AEAD_INTERNAL_H
#define PL_AEAD_INTERNAL_H

#include "aead.h"

enum pl_aead_variant {
  PL_AEAD_EVP = 0, /* libcrypto: everywhere */
  PL_AEAD_VAES,    /* aead_vaes.c: x86-64 with AVX-512, VAES and VPCLMULQDQ */
  PL_AEAD_VARIANTS
};

bool pl_aead_has(enum pl_aead_variant v);
pl_aead *pl_aead_new_variant(const uint8_t key[32], enum pl_aead_variant v); /* NULL also if the processor lacks it */

#if defined(__x86_64__) && !defined(PL_NO_VAES)
#define PL_HAVE_VAES 1
#else
#define PL_HAVE_VAES 0
#endif

/* aead_vaes.c, where PL_HAVE_VAES. Keys are wiped on free. Tags are compared in constant time; open leaves wiping to its caller. */
typedef struct pl_vaes pl_vaes;
bool pl_vaes_supported(void);
pl_vaes *pl_vaes_new(const uint8_t key[32]);
void pl_vaes_free(pl_vaes *v);
void pl_vaes_seal(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len);
int pl_vaes_open(const pl_vaes *v, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len);

#endif
