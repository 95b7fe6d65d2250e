/* Ed25519 signatures (RFC 8032) and X25519 key agreement (RFC 7748), by libcrypto. */
#ifndef PL_KEYS_H
#define PL_KEYS_H

#include "pl.h"

enum { PL_KEY_SIZE = 32, PL_SIGNATURE_SIZE = 64 };
enum pl_curve { PL_ED25519, PL_X25519 };

typedef struct pl_secret pl_secret; /* a private key and what libcrypto makes of it; wiped when freed */

/* From the 32 bytes that are the private key. NULL without memory or if libcrypto refuses. */
pl_secret *pl_secret_new(enum pl_curve curve, const uint8_t raw[PL_KEY_SIZE]);
void pl_secret_free(pl_secret *s);
int pl_secret_raw(const pl_secret *s, uint8_t out[PL_KEY_SIZE]);
int pl_secret_public(const pl_secret *s, uint8_t out[PL_KEY_SIZE]);
/* Plain Ed25519. PL_OK, PL_ESTATE if libcrypto refuses (an X25519 key). */
int pl_secret_sign(const pl_secret *s, const uint8_t *message, size_t len, uint8_t out[PL_SIGNATURE_SIZE]);
/* X25519. PL_OK; PL_EFORMAT for a point of low order, whose shared secret everybody knows. */
int pl_secret_agree(const pl_secret *s, const uint8_t peer[PL_KEY_SIZE], uint8_t out[PL_KEY_SIZE]);
/* Plain Ed25519. PL_OK or PL_EAUTH. */
int pl_verify(const uint8_t key[PL_KEY_SIZE], const uint8_t signature[PL_SIGNATURE_SIZE], const uint8_t *message, size_t len);

#endif
