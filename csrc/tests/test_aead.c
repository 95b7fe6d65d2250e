/* AES-256-GCM: known answers (the GCM specification's AES-256 cases, frames of another implementation), forgeries of every kind,
 * and nothing of the plaintext left when a tag fails. */
#include "aead_internal.h"
#include "check.h"

typedef struct vector {
  const char *name, *key, *nonce, *aad, *plain, *sealed; /* sealed: ciphertext, tag */
} vector;

#define ZERO32 "0000000000000000000000000000000000000000000000000000000000000000"
#define GCM_KEY "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"
#define TUNNEL_KEY "56e4043d48fabcdc890933bce65910d1acb7fd2640eb309aed7a85a08c68751f"

static const vector vectors[] = {
    {"GCM 13", ZERO32, "000000000000000000000000", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
    {"GCM 14", ZERO32, "000000000000000000000000", "", "00000000000000000000000000000000",
     "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"},
    {"GCM 15", GCM_KEY, "cafebabefacedbaddecaf888", "",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
     "b094dac5d93471bdec1a502270e3cc6c"},
    {"GCM 16", GCM_KEY, "cafebabefacedbaddecaf888", "feedfacedeadbeeffeedfacedeadbeefabaddad2",
     "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
     "76fc6ece0f4e1768cddf8853bb2d551b"},
    {"tunnel a 1", TUNNEL_KEY, "aabbccdd0000000000000001", "0000a001",
     "1101000000000000a0010000b0000002c000000700000000000000000200d632fbb8",
     "dae623f9b01d1e6eb6cef307e644647f1b6f2bb09deaa4eaffa4f864ef36d5d0d79eff9a1715cf846d27c5d3c5345ddfb8d9"},
    {"tunnel a 2", TUNNEL_KEY, "aabbccdd0000000000000002", "0000a001",
     "1201000500000000a0010000b0000002c000000700000001000000010200fc3b6a9568656c6c6f",
     "3c5a9aa10254133efd2e795b5d28557e40736401f3e429c699869681e7d112ad7a533d36fa09ec92a0a4af95eb49f83b6daad3fc934c33"},
    {"tunnel b 1", TUNNEL_KEY, "010203040000000000000001", "b0000002",
     "1003000000000000000000000000000000000000000000000000000000003fd0c49c",
     "a0b9be9a6fde87809173df0949967cf333f81ffc6bfd646a59cd5a4512cdde43da66de4aadc0f2b1f35473755a6ce4afe2fb"},
};

static void expect_refused(pl_aead *a, const uint8_t *nonce, const uint8_t *aad, size_t aad_len, const uint8_t *sealed, size_t n) {
  uint8_t *data = check_copy(sealed, n);
  CHECK(pl_aead_open(a, nonce, aad, aad_len, data, n - 16) == PL_EAUTH);
  for (size_t i = 0; i + 16 < n; i++) CHECK(data[i] == 0);
  free(data);
}

static enum pl_aead_variant variant; /* the one under test */
static pl_aead *new_aead(const uint8_t *key) { return pl_aead_new_variant(key, variant); }

static void known(const vector *v) {
  size_t nk, nn, na, np, ns;
  uint8_t *key = check_hex(v->key, &nk), *nonce = check_hex(v->nonce, &nn), *aad = check_hex(v->aad, &na);
  uint8_t *plain = check_hex(v->plain, &np), *sealed = check_hex(v->sealed, &ns);
  CHECK(nk == 32 && nn == 12 && ns == np + 16);
  pl_aead *a = new_aead(key);
  CHECK(a != NULL);
  for (unsigned round = 0; round < 3; round++) { /* the context carries nothing over from frame to frame */
    uint8_t *data = malloc(ns);
    memcpy(data, plain, np);
    CHECK(pl_aead_seal(a, nonce, aad, na, data, np) == PL_OK);
    if (memcmp(data, sealed, ns)) fprintf(stderr, "%s\n", v->name);
    CHECK(!memcmp(data, sealed, ns));
    for (size_t bit = 0; bit < ns * 8; bit++) { /* one bit anywhere in ciphertext or tag */
      sealed[bit / 8] ^= (uint8_t)(1u << bit % 8);
      if (round == 1 || bit % 17 == 0) expect_refused(a, nonce, aad, na, sealed, ns);
      sealed[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK(pl_aead_open(a, nonce, aad, na, data, np) == PL_OK);
    CHECK(!memcmp(data, plain, np));
    free(data);
  }
  static const uint8_t fills[] = {0x00, 0xff, 0x80, 0x7f}; /* tags that a lazy comparison lets pass */
  for (unsigned i = 0; i < 4; i++) {
    uint8_t *forged = check_copy(sealed, ns);
    memset(forged + np, fills[i], 16);
    expect_refused(a, nonce, aad, na, forged, ns);
    free(forged);
  }
  for (size_t bit = 0; bit < 96; bit++) {
    nonce[bit / 8] ^= (uint8_t)(1u << bit % 8);
    expect_refused(a, nonce, aad, na, sealed, ns);
    nonce[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  for (size_t bit = 0; bit < na * 8; bit++) {
    aad[bit / 8] ^= (uint8_t)(1u << bit % 8);
    expect_refused(a, nonce, aad, na, sealed, ns);
    aad[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  if (na) expect_refused(a, nonce, aad, na - 1, sealed, ns);
  if (np) { /* cut by a byte: the tag is read from elsewhere */
    expect_refused(a, nonce, aad, na, sealed, ns - 1);
    expect_refused(a, nonce, aad, na, sealed + 1, ns - 1);
  }
  pl_aead_free(a);
  key[31] ^= 1;
  a = new_aead(key);
  expect_refused(a, nonce, aad, na, sealed, ns);
  pl_aead_free(a);
  free(key);
  free(nonce);
  free(aad);
  free(plain);
  free(sealed);
}

/* Both directions of one context in turn, all lengths around the block size: what one end seals the other opens. */
static void round_trips(uint64_t seed) {
  uint8_t key[32], nonce[12], aad[20];
  check_fill(&seed, key, sizeof key);
  pl_aead *a = new_aead(key), *b = new_aead(key);
  CHECK(a && b);
  for (size_t n = 0; n < 400; n++) {
    size_t na = n % 21;
    check_fill(&seed, nonce, sizeof nonce);
    check_fill(&seed, aad, sizeof aad);
    uint8_t *plain = malloc(n + 1), *data = malloc(n + 16);
    check_fill(&seed, plain, n);
    memcpy(data, plain, n);
    CHECK(pl_aead_seal(a, nonce, aad, na, data, n) == PL_OK);
    if (n >= 16) CHECK(memcmp(data, plain, n));
    if (n % 3 == 0) expect_refused(b, nonce, aad, na == 0 ? 1 : na - 1, data, n + 16);
    CHECK(pl_aead_open(b, nonce, aad, na, data, n) == PL_OK);
    CHECK(!memcmp(data, plain, n));
    pl_aead *swap = a;
    a = b;
    b = swap;
    free(plain);
    free(data);
  }
  pl_aead_free(a);
  pl_aead_free(b);
  pl_aead_free(NULL);
}

/* Every variant gives the same bytes as libcrypto: every length up to several steps of the widest code, then some large ones, at odd
 * addresses; what lies around the data is not touched. */
static void same_as_libcrypto(uint64_t seed) {
  enum { AROUND = 64, LARGE = 65536 };
  uint8_t key[32], nonce[12], aad[700];
  uint8_t *plain = malloc(LARGE), *one = malloc(LARGE + 16), *other = malloc(LARGE + 16 + 2 * AROUND);
  CHECK(plain && one && other);
  for (unsigned i = 0; i < 1400; i++) {
    size_t n = i < 1300 ? i : 1300 + (size_t)i * 2749 % (LARGE - 1300), na = i % 9 ? i % 41 : i % 700, shift = i % 7;
    check_fill(&seed, key, sizeof key);
    check_fill(&seed, nonce, sizeof nonce);
    check_fill(&seed, aad, sizeof aad);
    check_fill(&seed, plain, n);
    pl_aead *a = pl_aead_new_variant(key, PL_AEAD_EVP), *b = new_aead(key);
    CHECK(a && b);
    memcpy(one, plain, n);
    memset(other, 0xa5, n + 16 + 2 * AROUND);
    uint8_t *data = other + AROUND / 2 + shift;
    memcpy(data, plain, n);
    CHECK(pl_aead_seal(a, nonce, aad, na, one, n) == PL_OK);
    CHECK(pl_aead_seal(b, nonce, aad, na, data, n) == PL_OK);
    if (memcmp(one, data, n + 16)) fprintf(stderr, "length %zu, additional data %zu\n", n, na);
    CHECK(!memcmp(one, data, n + 16));
    if (i % 5 == 0) {
      one[(size_t)i * 31 % (n + 16)] ^= 1;
      expect_refused(b, nonce, aad, na, one, n + 16);
    }
    CHECK(pl_aead_open(b, nonce, aad, na, data, n) == PL_OK);
    CHECK(!memcmp(data, plain, n));
    for (uint8_t *p = other; p < data; p++) CHECK(*p == 0xa5);
    for (uint8_t *p = data + n + 16; p < other + n + 16 + 2 * AROUND; p++) CHECK(*p == 0xa5);
    pl_aead_free(a);
    pl_aead_free(b);
  }
  free(plain);
  free(one);
  free(other);
}

int main(void) {
  uint64_t seed = check_seed("test_aead", 1);
  CHECK(pl_aead_has(PL_AEAD_EVP));
  for (unsigned v = 0; v < PL_AEAD_VARIANTS; v++) {
    variant = (enum pl_aead_variant)v;
    if (!pl_aead_has(variant)) {
      printf("test_aead: this processor has no variant %u\n", v);
      CHECK(new_aead((const uint8_t *)"0123456789abcdef0123456789abcdef") == NULL);
      continue;
    }
    for (unsigned i = 0; i < sizeof vectors / sizeof *vectors; i++) known(&vectors[i]);
    round_trips(seed);
    same_as_libcrypto(seed);
  }
  uint8_t secret[40];
  memset(secret, 1, sizeof secret);
  pl_wipe(secret, 39);
  for (unsigned i = 0; i < 39; i++) CHECK(secret[i] == 0);
  CHECK(secret[39] == 1);
  pl_wipe(NULL, 0);
  printf("test_aead: ok\n");
  return 0;
}
