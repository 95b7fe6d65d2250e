/* AES-256-GCM through libcrypto's EVP (see aead.h). The key schedule of each direction is set up once; a frame costs one nonce, one
 * pass and one tag. libcrypto wipes the schedules when a context is freed. */
#include "aead.h"

#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>

enum { TAG_SIZE = 16 };

struct pl_aead {
  EVP_CIPHER_CTX *seal, *open;
};

pl_aead *pl_aead_new(const uint8_t key[32]) {
  pl_aead *a = calloc(1, sizeof *a);
  if (!a) return NULL;
  a->seal = EVP_CIPHER_CTX_new();
  a->open = EVP_CIPHER_CTX_new();
  if (!a->seal || !a->open || EVP_EncryptInit_ex(a->seal, EVP_aes_256_gcm(), NULL, key, NULL) != 1 ||
      EVP_DecryptInit_ex(a->open, EVP_aes_256_gcm(), NULL, key, NULL) != 1) {
    pl_aead_free(a);
    return NULL;
  }
  return a;
}

void pl_aead_free(pl_aead *a) {
  if (!a) return;
  EVP_CIPHER_CTX_free(a->seal);
  EVP_CIPHER_CTX_free(a->open);
  free(a);
}

/* EVP takes lengths as int; frames are far below. */
static bool fits(size_t aad_len, size_t len) { return aad_len <= INT_MAX && len <= INT_MAX - TAG_SIZE; }

int pl_aead_seal(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  if (!fits(aad_len, len)) return PL_ELIMIT;
  int n = 0;
  uint8_t none[1];
  if (EVP_EncryptInit_ex(a->seal, NULL, NULL, NULL, nonce) != 1 ||
      (aad_len && EVP_EncryptUpdate(a->seal, NULL, &n, aad, (int)aad_len) != 1) ||
      (len && EVP_EncryptUpdate(a->seal, data, &n, data, (int)len) != 1) || EVP_EncryptFinal_ex(a->seal, none, &n) != 1 ||
      EVP_CIPHER_CTX_ctrl(a->seal, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, data + len) != 1)
    return PL_ESTATE;
  return PL_OK;
}

int pl_aead_open(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  if (!fits(aad_len, len)) return PL_ELIMIT;
  int n = 0;
  uint8_t none[1];
  if (EVP_DecryptInit_ex(a->open, NULL, NULL, NULL, nonce) != 1 ||
      EVP_CIPHER_CTX_ctrl(a->open, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, data + len) != 1 ||
      (aad_len && EVP_DecryptUpdate(a->open, NULL, &n, aad, (int)aad_len) != 1) ||
      (len && EVP_DecryptUpdate(a->open, data, &n, data, (int)len) != 1) || EVP_DecryptFinal_ex(a->open, none, &n) != 1) {
    pl_wipe(data, len);
    return PL_EAUTH;
  }
  return PL_OK;
}

void pl_wipe(void *p, size_t len) {
  if (len) OPENSSL_cleanse(p, len);
}
