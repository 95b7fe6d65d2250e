/* AES-256-GCM of PILS frames; the key schedule is reused, only the nonce set per frame
 * (transport.md 3.5). Not thread safe. Keys are wiped on free. */
#ifndef PL_AEAD_H
#define PL_AEAD_H

#include "pl.h"

typedef struct pl_aead pl_aead;

/* NULL without memory or if libcrypto refuses. PILOT_AEAD=openssl in the environment switches the vector code off. */
pl_aead *pl_aead_new(const uint8_t key[32]);
void pl_aead_free(pl_aead *a);

/* Seals `len` bytes at `data` in place and writes the 16-byte tag right behind them. */
int pl_aead_seal(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                 uint8_t *data, size_t len);

/* Opens `len` bytes (ciphertext without tag, the tag follows) in place. On PL_EAUTH the plaintext is
 * wiped before returning. */
int pl_aead_open(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len,
                 uint8_t *data, size_t len);

/* Wipes memory in a way the compiler does not remove. */
void pl_wipe(void *p, size_t len);

#endif
