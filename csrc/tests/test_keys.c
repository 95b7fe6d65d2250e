/* Known answers of RFC 8032 7.1 and RFC 7748 6.1, and what must be refused. */
#include "check.h"
#include "keys.h"

static void hex(uint8_t *out, const char *text) {
  size_t n;
  uint8_t *bytes = check_hex(text, &n);
  if (n) memcpy(out, bytes, n);
  free(bytes);
}

static void signatures(void) {
  static const struct { const char *seed, *public, *message, *signature; } known[] = {
    {"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"},
    {"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"},
    {"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"},
  };
  for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
    uint8_t seed[32], public[32], message[2], signature[64], out[64];
    size_t len = strlen(known[i].message) / 2;
    hex(seed, known[i].seed);
    hex(public, known[i].public);
    hex(message, known[i].message);
    hex(signature, known[i].signature);
    pl_secret *s = pl_secret_new(PL_ED25519, seed);
    CHECK(s && pl_secret_public(s, out) == PL_OK && !memcmp(out, public, 32));
    CHECK(pl_secret_raw(s, out) == PL_OK && !memcmp(out, seed, 32));
    CHECK(pl_secret_sign(s, message, len, out) == PL_OK && !memcmp(out, signature, 64));
    CHECK(pl_verify(public, signature, message, len) == PL_OK);
    for (unsigned bit = 0; bit < 512; bit += 7) {
      signature[bit / 8] ^= (uint8_t)(1u << bit % 8);
      CHECK(pl_verify(public, signature, message, len) == PL_EAUTH);
      signature[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    public[0] ^= 1;
    CHECK(pl_verify(public, signature, message, len) == PL_EAUTH);
    memset(public, 0xff, 32); /* no point */
    CHECK(pl_verify(public, signature, message, len) == PL_EAUTH);
    CHECK(pl_secret_agree(s, public, out) < 0); /* of the wrong curve */
    pl_secret_free(s);
  }
}

static void agreement(void) {
  uint8_t scalar[32], u[32], expected[32], out[32], signature[64];
  hex(scalar, "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
  hex(u, "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
  hex(expected, "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
  pl_secret *s = pl_secret_new(PL_X25519, scalar);
  CHECK(s && pl_secret_agree(s, u, out) == PL_OK && !memcmp(out, expected, 32));
  CHECK(pl_secret_sign(s, u, 32, signature) == PL_ESTATE);
  static const char *const low[] = {
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  };
  for (size_t i = 0; i < sizeof low / sizeof low[0]; i++) {
    hex(u, low[i]);
    CHECK(pl_secret_agree(s, u, out) == PL_EFORMAT);
  }
  pl_secret_free(s);
  uint64_t rng = check_seed("test_keys", 1);
  for (unsigned i = 0; i < 20; i++) { /* both ends get the same */
    uint8_t raw[2][32], public[2][32], shared[2][32];
    pl_secret *end[2];
    for (unsigned k = 0; k < 2; k++) {
      check_fill(&rng, raw[k], 32);
      end[k] = pl_secret_new(PL_X25519, raw[k]);
      CHECK(end[k] && pl_secret_public(end[k], public[k]) == PL_OK);
    }
    for (unsigned k = 0; k < 2; k++) {
      CHECK(pl_secret_agree(end[k], public[!k], shared[k]) == PL_OK);
    }
    CHECK(!memcmp(shared[0], shared[1], 32));
    for (unsigned k = 0; k < 2; k++) pl_secret_free(end[k]);
  }
  pl_secret_free(NULL);
}

int main(void) {
  signatures();
  agreement();
  printf("test_keys: ok\n");
  return 0;
}
