/* AES-256-GCM (see aead.h): vector instructions where the processor has them (aead_vaes.c), libcrypto's EVP everywhere else. The key
 * schedules are set up once; a frame costs one nonce, one pass and one tag. */
#include "aead_internal.h"

#include <limits.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>

enum { TAG_SIZE = 16 };

struct pl_aead {
  EVP_CIPHER_CTX *seal, *open; /* NULL where `vaes` does the work */
#if PL_HAVE_VAES
  pl_vaes *vaes;
#endif
};

static bool variants[PL_AEAD_VARIANTS];
static enum pl_aead_variant best;

__attribute__((constructor)) static void choose(void) {
  variants[PL_AEAD_EVP] = true;
#if PL_HAVE_VAES
  variants[PL_AEAD_VAES] = pl_vaes_supported();
  const char *wish = getenv("PILOT_AEAD");
  if (variants[PL_AEAD_VAES] && !(wish && !strcmp(wish, "openssl"))) best = PL_AEAD_VAES;
#endif
}

bool pl_aead_has(enum pl_aead_variant v) { return variants[v]; }

pl_aead *pl_aead_new(const uint8_t key[32]) { return pl_aead_new_variant(key, best); }

pl_aead *pl_aead_new_variant(const uint8_t key[32], enum pl_aead_variant v) {
  pl_aead *a = pl_aead_has(v) ? calloc(1, sizeof *a) : NULL;
  if (!a) return NULL;
#if PL_HAVE_VAES
  if (v == PL_AEAD_VAES) {
    a->vaes = pl_vaes_new(key);
    if (a->vaes) return a;
    free(a);
    return NULL;
  }
#endif
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
#if PL_HAVE_VAES
  pl_vaes_free(a->vaes);
#endif
  EVP_CIPHER_CTX_free(a->seal); /* wipes the schedules */
  EVP_CIPHER_CTX_free(a->open);
  free(a);
}

/* EVP takes lengths as int, one nonce must not count past 2^32 blocks; frames are far below either. */
static bool fits(size_t aad_len, size_t len) { return aad_len <= INT_MAX && len <= INT_MAX - TAG_SIZE; }

int pl_aead_seal(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  if (!fits(aad_len, len)) return PL_ELIMIT;
#if PL_HAVE_VAES
  if (a->vaes) {
    pl_vaes_seal(a->vaes, nonce, aad, aad_len, data, len);
    return PL_OK;
  }
#endif
  int n = 0;
  uint8_t none[1];
  if (EVP_EncryptInit_ex(a->seal, NULL, NULL, NULL, nonce) != 1 ||
      (aad_len && EVP_EncryptUpdate(a->seal, NULL, &n, aad, (int)aad_len) != 1) ||
      (len && EVP_EncryptUpdate(a->seal, data, &n, data, (int)len) != 1) || EVP_EncryptFinal_ex(a->seal, none, &n) != 1 ||
      EVP_CIPHER_CTX_ctrl(a->seal, EVP_CTRL_AEAD_GET_TAG, TAG_SIZE, data + len) != 1)
    return PL_ESTATE;
  return PL_OK;
}

static bool open_evp(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  int n = 0;
  uint8_t none[1];
  return EVP_DecryptInit_ex(a->open, NULL, NULL, NULL, nonce) == 1 &&
         EVP_CIPHER_CTX_ctrl(a->open, EVP_CTRL_AEAD_SET_TAG, TAG_SIZE, data + len) == 1 &&
         (!aad_len || EVP_DecryptUpdate(a->open, NULL, &n, aad, (int)aad_len) == 1) &&
         (!len || EVP_DecryptUpdate(a->open, data, &n, data, (int)len) == 1) && EVP_DecryptFinal_ex(a->open, none, &n) == 1;
}

int pl_aead_open(pl_aead *a, const uint8_t nonce[12], const uint8_t *aad, size_t aad_len, uint8_t *data, size_t len) {
  if (!fits(aad_len, len)) return PL_ELIMIT;
#if PL_HAVE_VAES
  bool ok = a->vaes ? pl_vaes_open(a->vaes, nonce, aad, aad_len, data, len) == PL_OK : open_evp(a, nonce, aad, aad_len, data, len);
#else
  bool ok = open_evp(a, nonce, aad, aad_len, data, len);
#endif
  if (ok) return PL_OK;
  pl_wipe(data, len);
  return PL_EAUTH;
}

void pl_wipe(void *p, size_t len) {
  if (len) OPENSSL_cleanse(p, len);
}
