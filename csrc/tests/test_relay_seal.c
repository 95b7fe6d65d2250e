/* Beacons with a secret: what is believed of a peer, what is not, and what an attacker can do with recordings. */
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "relay_net.h"
#include "wire.h"

#define ONE "198.51.100.1:9001"
#define TWO "198.51.100.2:9001"
#define STRANGER "192.0.2.66:9001"

static const uint8_t secret[32] = {7, 7, 7}, key1[32] = {1}, key2[32] = {2}, key3[32] = {3};

/* Beacon ONE, whose peer is TWO; or the other way round. */
static net beacon(const char *peer) {
  net t = net_new(NULL);
  pl_addr a = addr(peer);
  pl_relay_set_peers(t.r, &a, 1);
  CHECK(pl_relay_set_secret(t.r, secret) == PL_OK);
  return t;
}

static int add_key(net *t, const char *peer, uint32_t session, const uint8_t *key) {
  pl_addr a = addr(peer);
  return pl_relay_add_open_key(t->r, &a, session, key);
}

static int seal_with(net *t, const char *peer, uint32_t session, const uint8_t *key) {
  pl_addr a = addr(peer);
  return pl_relay_set_seal_key(t->r, &a, session, key);
}

/* What `t` sends to its peer for `hex`: the caller frees it. */
static uint8_t *sealed_by(net *t, const char *peer, const char *hex, size_t *len) {
  size_t n;
  uint8_t *plain = check_hex(hex, &n);
  const uint8_t *out;
  pl_addr a = addr(peer);
  int r = pl_relay_for_peer(t->r, &a, plain, (uint32_t)n, &out);
  CHECK(r == (int)(n + PL_SEALED_HEAD + PL_SEALED_TAG));
  free(plain);
  *len = (size_t)r;
  return check_copy(out, *len);
}

static void a_flow_across_two_beacons(void) {
  net one = beacon(TWO), two = beacon(ONE);
  CHECK(seal_with(&one, TWO, 11, key1) == PL_OK && add_key(&two, ONE, 11, key1) == PL_OK);
  CHECK(seal_with(&two, ONE, 22, key2) == PL_OK && add_key(&one, TWO, 22, key2) == PL_OK);
  net_discover(&one, A, 100);
  net_discover(&two, B, 200);
  size_t len;
  uint8_t *gossip = sealed_by(&two, ONE, "07000000020001000000c8", &len);
  net_send(&one, TWO, gossip, len);
  CHECK(net_stats(&one).routes == 1);

  /* A train of equal datagrams leaves as one train of sealed ones, and arrives as one at the node. */
  enum { N = 40, SIZE = PL_RELAY_HEAD + 1200 };
  uint8_t train[N * SIZE];
  for (unsigned i = 0; i < N; i++) {
    memset(train + i * SIZE, (int)i, SIZE);
    memcpy(train + i * SIZE, "\x05\0\0\0\x64\0\0\0\xc8PILS", 13);
  }
  net_clear(&one);
  pl_addr a = addr(A), from = addr(ONE);
  net_add(&one, &a, train, sizeof train, SIZE);
  CHECK(net_run(&one) == N && one.out[0].run == one.out[N - 1].run && net_stats(&one).forwarded == N);
  size_t sealed = SIZE + PL_SEALED_HEAD + PL_SEALED_TAG;
  uint8_t *wire = malloc(N * sealed);
  CHECK(wire);
  for (unsigned i = 0; i < N; i++) {
    CHECK(one.out[i].len == sealed && one.out[i].p[0] == PL_BEACON_SEALED && one.out[i].p[1] == PL_SEALED_DATA);
    for (size_t k = PL_SEALED_HEAD; k + 4 <= sealed; k++) CHECK(memcmp(one.out[i].p + k, "PILS", 4) != 0);
    memcpy(wire + i * sealed, one.out[i].p, sealed);
  }
  net_clear(&two);
  net_add(&two, &from, wire, N * sealed, (uint32_t)sealed);
  CHECK(net_run(&two) == N && two.out[0].run == two.out[N - 1].run && net_stats(&two).relayed == N && net_stats(&two).forged == 0);
  for (unsigned i = 0; i < N; i++) {
    CHECK(two.out[i].len == SIZE - 4 && memcmp(two.out[i].p, "\x06\0\0\0\x64PILS", 9) == 0);
    CHECK(memcmp(two.out[i].p + 9, train + i * SIZE + 13, SIZE - 13) == 0);
  }

  /* Recorded and sent again: nothing. */
  net_clear(&two);
  net_add(&two, &from, wire, N * sealed, (uint32_t)sealed);
  CHECK(net_run(&two) == 0 && net_stats(&two).forged == N);
  free(wire);
  free(gossip);
  net_free(&one);
  net_free(&two);
}

static void only_sealed_words_of_a_peer_count(void) {
  net one = beacon(TWO), two = beacon(ONE);
  net_discover(&one, A, 100);
  seal_with(&two, ONE, 5, key1);
  add_key(&one, TWO, 5, key1);
  net_hex(&one, TWO, "07000000020001000000c8");             /* gossip */
  net_hex(&one, TWO, "05000000c80000006450494c53");         /* a relayed datagram */
  net_hex(&one, TWO, "0d0000000064000000c804cb0071149c42"); /* an introduction */
  CHECK(one.n_out == 0 && net_stats(&one).forged == 3 && net_stats(&one).routes == 0 && net_stats(&one).nodes == 1);
  CHECK(net_hex(&one, TWO, "0100000000") == 1); /* everybody may ask where he is */
  CHECK(net_hex(&one, STRANGER, "0e02000000050000000000000001aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") == 0 && net_stats(&one).bad == 1);

  /* Sealed, but no word of a beacon. */
  size_t len;
  uint8_t *p = sealed_by(&two, ONE, "01000003e7", &len);
  CHECK(net_send(&one, TWO, p, len) == 0 && net_stats(&one).forged == 4 && net_stats(&one).nodes == 1);
  free(p);

  /* Each byte counts. */
  p = sealed_by(&two, ONE, "05000000c80000006450494c53", &len);
  for (size_t i = 2; i < len; i++) {
    uint8_t *bent = check_copy(p, len);
    bent[i] ^= 1;
    CHECK(net_send(&one, TWO, bent, len) == 0);
    free(bent);
  }
  for (size_t n = 1; n < len; n++) CHECK(net_send(&one, TWO, p, n) == 0);
  CHECK(net_stats(&one).relayed == 0);
  CHECK(net_send(&one, STRANGER, p, len) == 0); /* from another address than that of the peer */
  CHECK(net_send(&one, TWO, p, len) == 1 && is_hex(&one.out[0], A, "06000000c850494c53"));
  CHECK(net_send(&one, TWO, p, len) == 0);
  free(p);
  net_free(&one);
  net_free(&two);
}

static void without_a_key_nothing_leaves(void) {
  net one = beacon(TWO);
  net_discover(&one, A, 100);
  seal_with(&one, TWO, 1, key1);
  add_key(&one, TWO, 2, key2);
  net two = beacon(ONE);
  seal_with(&two, ONE, 2, key2);
  size_t len;
  uint8_t *gossip = sealed_by(&two, ONE, "07000000020001000000c8", &len);
  net_send(&one, TWO, gossip, len);
  CHECK(net_relay(&one, A, 100, 200) == 1 && one.out[0].p[0] == PL_BEACON_SEALED);

  pl_addr other = addr(STRANGER), peer = addr(TWO);
  pl_relay_set_peers(one.r, &other, 1); /* the peer is gone, and so are its keys */
  pl_relay_set_peers(one.r, &peer, 1);
  CHECK(net_send(&one, TWO, gossip, len) == 0 && net_stats(&one).routes == 0);
  const uint8_t *out;
  CHECK(pl_relay_for_peer(one.r, &peer, (const uint8_t *)"\x07", 1, &out) == PL_ENOENT && net_stats(&one).unsealed == 1);
  CHECK(pl_relay_for_peer(one.r, &other, (const uint8_t *)"\x07", 1, &out) == PL_ENOENT);
  CHECK(seal_with(&one, STRANGER, 1, key1) == PL_ENOENT && add_key(&one, STRANGER, 1, key1) == PL_ENOENT);
  free(gossip);
  net_free(&one);
  net_free(&two);
}

static void keys_that_were_never_used_give_way_first(void) {
  net one = beacon(TWO), two = beacon(ONE);
  net_discover(&one, A, 100);
  add_key(&one, TWO, 1, key1);
  seal_with(&two, ONE, 1, key1);
  size_t len;
  uint8_t *p = sealed_by(&two, ONE, "05000000c80000006450494c53", &len), *late = sealed_by(&two, ONE, "05000000c80000006450494c53", &len);
  CHECK(net_send(&one, TWO, p, len) == 1);
  free(p);
  /* Somebody repeats recorded letters: keys that nobody will use. */
  for (uint32_t i = 0; i < 100; i++) add_key(&one, TWO, 1000 + i, key3);
  p = sealed_by(&two, ONE, "05000000c80000006450494c53", &len);
  CHECK(net_send(&one, TWO, p, len) == 1);
  free(p);
  /* A new session of the peer; what was under way under the former one still arrives. */
  add_key(&one, TWO, 2, key2);
  seal_with(&two, ONE, 2, key2);
  p = sealed_by(&two, ONE, "05000000c80000006450494c53", &len);
  CHECK(net_send(&one, TWO, p, len) == 1 && net_send(&one, TWO, late, len) == 1 && net_send(&one, TWO, late, len) == 0);
  free(p);
  free(late);
  net_free(&one);
  net_free(&two);
}

static void letter_of(uint8_t *p, uint8_t kind, uint8_t fill, const uint8_t *with) {
  uint8_t mac[32];
  unsigned n;
  memset(p, fill, PL_RELAY_LETTER_SIZE);
  p[0] = PL_BEACON_SEALED;
  p[1] = kind;
  HMAC(EVP_sha256(), with, 32, p, PL_RELAY_LETTER_SIZE - 16, mac, &n);
  memcpy(p + PL_RELAY_LETTER_SIZE - 16, mac, 16);
}

static void letters_are_checked_before_anybody_reads_them(void) {
  net one = beacon(TWO);
  pl_relay_letter got[PL_RELAY_LETTERS];
  uint8_t p[PL_RELAY_LETTER_SIZE];
  letter_of(p, PL_SEALED_HELLO, 9, secret);
  net_send(&one, STRANGER, p, sizeof p);
  CHECK(!pl_relay_has_letters(one.r));
  net_send(&one, TWO, p, sizeof p);
  CHECK(pl_relay_has_letters(one.r) && pl_relay_take_letters(one.r, got) == 1 && got[0].len == sizeof p && memcmp(got[0].data, p, sizeof p) == 0);
  CHECK(one.n_out == 0 && !pl_relay_has_letters(one.r));
  for (size_t i = 1; i < sizeof p; i++) {
    p[i] ^= 0x40;
    net_send(&one, TWO, p, sizeof p);
    p[i] ^= 0x40;
  }
  for (size_t n = 1; n < sizeof p; n++) net_send(&one, TWO, p, n);
  letter_of(p, PL_SEALED_WELCOME, 9, key1);
  for (unsigned i = 0; i < 10000; i++) net_send(&one, TWO, p, sizeof p); /* forged ones use up nothing */
  CHECK(!pl_relay_has_letters(one.r));
  letter_of(p, PL_SEALED_WELCOME, 9, secret);
  for (unsigned i = 0; i < 200; i++) net_send(&one, TWO, p, sizeof p);
  CHECK(pl_relay_take_letters(one.r, got) == 39); /* recorded ones have a rate; one was taken above */

  /* Data under an unknown key: the owner hears of it once a second, to greet the peer. */
  one.now += 10 * PL_NS_PER_S;
  for (unsigned i = 0; i < 100; i++) net_hex(&one, TWO, "0e02000000050000000000000001aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
  CHECK(pl_relay_take_letters(one.r, got) == 1 && got[0].len == 2 && got[0].data[1] == PL_SEALED_DATA);
  net_free(&one);
}

int main(void) {
  a_flow_across_two_beacons();
  only_sealed_words_of_a_peer_count();
  without_a_key_nothing_leaves();
  keys_that_were_never_used_give_way_first();
  letters_are_checked_before_anybody_reads_them();
  puts("ok");
  return 0;
}
