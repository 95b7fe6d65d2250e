/* Signatures and key agreement (see keys.h). libcrypto does the work, the same copy that seals frames: a second one, in a library of
 * its own, would cost each process 7 MB. */
#include "keys.h"

#include <openssl/evp.h>
#include <stdint.h>

static int id_of(enum pl_curve curve) { return curve == PL_ED25519 ? EVP_PKEY_ED25519 : EVP_PKEY_X25519; }

/* A pl_secret is an EVP_PKEY under another name, so that no header of libcrypto shows. */
static EVP_PKEY *pkey(const pl_secret *s) { return (EVP_PKEY *)(uintptr_t)s; }

pl_secret *pl_secret_new(enum pl_curve curve, const uint8_t raw[PL_KEY_SIZE]) {
  return (pl_secret *)EVP_PKEY_new_raw_private_key(id_of(curve), NULL, raw, PL_KEY_SIZE);
}

void pl_secret_free(pl_secret *s) { EVP_PKEY_free(pkey(s)); }

int pl_secret_raw(const pl_secret *s, uint8_t out[PL_KEY_SIZE]) {
  size_t n = PL_KEY_SIZE;
  return EVP_PKEY_get_raw_private_key(pkey(s), out, &n) == 1 && n == PL_KEY_SIZE ? PL_OK : PL_ESTATE;
}

int pl_secret_public(const pl_secret *s, uint8_t out[PL_KEY_SIZE]) {
  size_t n = PL_KEY_SIZE;
  return EVP_PKEY_get_raw_public_key(pkey(s), out, &n) == 1 && n == PL_KEY_SIZE ? PL_OK : PL_ESTATE;
}

int pl_secret_sign(const pl_secret *s, const uint8_t *message, size_t len, uint8_t out[PL_SIGNATURE_SIZE]) {
  EVP_MD_CTX *ctx = EVP_MD_CTX_new();
  size_t n = PL_SIGNATURE_SIZE;
  bool ok = ctx && EVP_DigestSignInit(ctx, NULL, NULL, NULL, pkey(s)) == 1 && EVP_DigestSign(ctx, out, &n, message, len) == 1;
  EVP_MD_CTX_free(ctx);
  return ok && n == PL_SIGNATURE_SIZE ? PL_OK : PL_ESTATE;
}

int pl_secret_agree(const pl_secret *s, const uint8_t peer[PL_KEY_SIZE], uint8_t out[PL_KEY_SIZE]) {
  EVP_PKEY *theirs = EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, peer, PL_KEY_SIZE);
  EVP_PKEY_CTX *ctx = theirs ? EVP_PKEY_CTX_new(pkey(s), NULL) : NULL;
  size_t n = PL_KEY_SIZE;
  bool ready = ctx && EVP_PKEY_derive_init(ctx) == 1 && EVP_PKEY_derive_set_peer(ctx, theirs) == 1;
  bool ok = ready && EVP_PKEY_derive(ctx, out, &n) == 1 && n == PL_KEY_SIZE; /* refuses a shared secret of zeros */
  EVP_PKEY_CTX_free(ctx);
  EVP_PKEY_free(theirs);
  return ok ? PL_OK : ready ? PL_EFORMAT : PL_ESTATE;
}

int pl_verify(const uint8_t key[PL_KEY_SIZE], const uint8_t signature[PL_SIGNATURE_SIZE], const uint8_t *message, size_t len) {
  EVP_PKEY *theirs = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, PL_KEY_SIZE);
  EVP_MD_CTX *ctx = theirs ? EVP_MD_CTX_new() : NULL;
  bool ok = ctx && EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, theirs) == 1 &&
            EVP_DigestVerify(ctx, signature, PL_SIGNATURE_SIZE, message, len) == 1;
  EVP_MD_CTX_free(ctx);
  EVP_PKEY_free(theirs);
  return ok ? PL_OK : PL_EAUTH;
}
