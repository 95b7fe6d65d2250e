/* Sealed datagrams between beacons that share a secret (docs/wire-extensions.md 7.6).
 *
 * The owner runs the handshake and installs keys: one to seal what goes to a peer, some to open what comes from it. Here every datagram
 * of a peer is opened, judged against a replay window and only then looked at; what comes unsealed from a peer's address is dropped. Letters of
 * the handshake are checked against the secret before the owner sees them, so that forged ones cost it nothing. */
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <stdlib.h>

#include "relay_internal.h"
#include "wire.h"

#define NONCE_SIZE 16u
#define MAC_SIZE 16u
#define LETTER_RATE 20u       /* letters a second and peer */
#define STRAY_NS PL_NS_PER_S  /* between two words to the owner about datagrams of an unknown session */

static void aead_nonce(uint8_t nonce[12], uint64_t counter) {
  memset(nonce, 0, 4);
  pl_put64(nonce + 4, counter);
}

static void key_free(pl_relay_key *k) {
  pl_aead_free(k->aead);
  free(k->window);
  *k = (pl_relay_key){0};
}

void pl_relay_peer_wipe(pl_relay_peer *p) {
  key_free(&p->seal);
  for (unsigned i = 0; i < PL_RELAY_OPEN_KEYS; i++) key_free(&p->open[i]);
}

int pl_relay_set_secret(pl_relay *r, const uint8_t key[PL_RELAY_SECRET]) {
  if (!r->arena && !(r->arena = malloc(PL_RELAY_ARENA))) return PL_ENOMEM;
  memcpy(r->secret, key, PL_RELAY_SECRET);
  r->sealed = true;
  return PL_OK;
}

int pl_relay_set_seal_key(pl_relay *r, const pl_addr *peer, uint32_t session, const uint8_t key[32]) {
  pl_relay_peer *p = pl_relay_find_peer(r, peer);
  if (!p) return PL_ENOENT;
  pl_aead *aead = pl_aead_new(key);
  if (!aead) return PL_ENOMEM;
  key_free(&p->seal);
  p->seal = (pl_relay_key){.aead = aead, .session = session};
  return PL_OK;
}

int pl_relay_add_open_key(pl_relay *r, const pl_addr *peer, uint32_t session, const uint8_t key[32]) {
  pl_relay_peer *p = pl_relay_find_peer(r, peer);
  if (!p) return PL_ENOENT;
  pl_relay_key made = {.aead = pl_aead_new(key), .session = session, .window = pl_replay_window_new()};
  if (!made.aead || !made.window) {
    key_free(&made);
    return PL_ENOMEM;
  }
  /* Slot 0 is the one in use; the others wait for their first datagram, the oldest gives way. */
  key_free(&p->open[PL_RELAY_OPEN_KEYS - 1]);
  memmove(&p->open[2], &p->open[1], (PL_RELAY_OPEN_KEYS - 2) * sizeof p->open[0]);
  p->open[1] = made;
  return PL_OK;
}

uint32_t pl_relay_seal(pl_relay *r, pl_relay_peer *p, uint8_t *to, const uint8_t *data, uint32_t len) {
  if (!p->seal.aead) {
    r->st.unsealed++;
    return 0;
  }
  uint8_t nonce[12];
  to[0] = PL_BEACON_SEALED;
  to[1] = PL_SEALED_DATA;
  pl_put32(to + 2, p->seal.session);
  pl_put64(to + 6, ++p->seal.counter);
  aead_nonce(nonce, p->seal.counter);
  memcpy(to + PL_SEALED_HEAD, data, len);
  if (pl_aead_seal(p->seal.aead, nonce, to, PL_SEALED_HEAD, to + PL_SEALED_HEAD, len) < 0) return 0;
  return PL_SEALED_HEAD + len + PL_SEALED_TAG;
}

void pl_relay_emit_peer(pl_relay *r, pl_relay_peer *p, uint8_t *data, uint32_t len) {
  static const pl_addr any; /* peers are configured by address; the kernel's choice of ours is what they were told */
  if (!r->sealed) {
    pl_relay_emit(r, &p->addr, &any, &p->slot, data, len);
    return;
  }
  if (len + PL_SEALED_HEAD + PL_SEALED_TAG > PL_UDP_MAX || len + PL_SEALED_HEAD + PL_SEALED_TAG > PL_RELAY_ARENA - r->arena_used) {
    r->st.limited++;
    return;
  }
  uint8_t *to = r->arena + r->arena_used;
  uint32_t sealed = pl_relay_seal(r, p, to, data, len);
  if (sealed == 0) return;
  r->arena_used += sealed;
  pl_relay_emit(r, &p->addr, &any, &p->slot, to, sealed);
}

int pl_relay_for_peer(pl_relay *r, const pl_addr *peer, const uint8_t *data, uint32_t len, const uint8_t **out) {
  *out = data;
  if (!r->sealed) return (int)len;
  pl_relay_peer *p = pl_relay_find_peer(r, peer);
  if (!p) return PL_ENOENT;
  if (len + PL_SEALED_HEAD + PL_SEALED_TAG > PL_UDP_MAX) return PL_ELIMIT;
  uint32_t sealed = pl_relay_seal(r, p, r->arena, data, len);
  *out = r->arena;
  return sealed ? (int)sealed : PL_ENOENT;
}

static bool genuine(const pl_relay *r, const uint8_t *p, uint32_t len) {
  uint8_t mac[32];
  unsigned n = sizeof mac;
  if (!HMAC(EVP_sha256(), r->secret, PL_RELAY_SECRET, p, len - MAC_SIZE, mac, &n)) return false;
  return CRYPTO_memcmp(mac, p + len - MAC_SIZE, MAC_SIZE) == 0;
}

static void letter(pl_relay *r, pl_relay_peer *via, const uint8_t *p, uint32_t len) {
  if (r->n_letters == PL_RELAY_LETTERS) {
    r->st.limited++;
    return;
  }
  pl_relay_letter *l = &r->letters[r->n_letters++];
  l->from = via->addr;
  memcpy(l->data, p, len);
  l->len = len;
}

/* Opens in place. NULL: dropped and counted; otherwise what was sealed, `*len` bytes of it. */
static uint8_t *open_sealed(pl_relay *r, pl_relay_peer *via, uint8_t *p, uint32_t *len) {
  if (*len <= PL_SEALED_HEAD + PL_SEALED_TAG) {
    r->st.bad++;
    return NULL;
  }
  uint32_t session = pl_get32(p + 2), inner = *len - PL_SEALED_HEAD - PL_SEALED_TAG;
  uint64_t counter = pl_get64(p + 6);
  unsigned i = 0;
  while (i < PL_RELAY_OPEN_KEYS && !(via->open[i].aead && via->open[i].session == session)) i++;
  if (i == PL_RELAY_OPEN_KEYS) {
    /* It believes in a session of ours from before a restart: the owner greets it. */
    r->st.forged++;
    if (r->now_ns - via->stray_ns >= STRAY_NS) {
      via->stray_ns = r->now_ns;
      letter(r, via, (const uint8_t[]){PL_BEACON_SEALED, PL_SEALED_DATA}, 2);
    }
    return NULL;
  }
  pl_relay_key *k = &via->open[i];
  uint8_t nonce[12];
  aead_nonce(nonce, counter);
  if (pl_replay_window_check(k->window, counter) < 0 || pl_aead_open(k->aead, nonce, p, PL_SEALED_HEAD, p + PL_SEALED_HEAD, inner) < 0) {
    r->st.forged++;
    return NULL;
  }
  if (pl_replay_window_commit(&k->window, counter) < 0) { /* no memory: what cannot be told from a repetition is not taken */
    r->st.limited++;
    return NULL;
  }
  if (i > 0 && k->fresh == 0) { /* its first datagram: the peer uses it from here on */
    pl_relay_key used = *k;
    memmove(&via->open[1], &via->open[0], i * sizeof *k);
    via->open[0] = used;
    k = &via->open[0];
  }
  k->fresh = 1;
  *len = inner;
  return p + PL_SEALED_HEAD;
}

uint8_t *pl_relay_on_sealed(pl_relay *r, pl_relay_peer *via, uint8_t *p, uint32_t *len) {
  if (*len < 2) {
    r->st.bad++;
    return NULL;
  }
  if (p[1] == PL_SEALED_DATA) return open_sealed(r, via, p, len);
  if (p[1] > PL_SEALED_WELCOME || *len != PL_RELAY_LETTER_SIZE) {
    r->st.bad++;
    return NULL;
  }
  pl_relay_bucket *b = &via->letters;
  if (b->at_ns == 0) *b = (pl_relay_bucket){.tokens = 2.0 * LETTER_RATE, .at_ns = r->now_ns};
  if (!genuine(r, p, *len)) { /* costs no budget: a genuine one that comes meanwhile is taken */
    r->st.forged++;
    return NULL;
  }
  b->tokens += (double)(r->now_ns - b->at_ns) * LETTER_RATE / 1e9;
  if (b->tokens > 2.0 * LETTER_RATE) b->tokens = 2.0 * LETTER_RATE;
  b->at_ns = r->now_ns;
  if (b->tokens < 1) {
    r->st.limited++;
    return NULL;
  }
  b->tokens -= 1;
  letter(r, via, p, *len);
  return NULL;
}

unsigned pl_relay_take_letters(pl_relay *r, pl_relay_letter out[PL_RELAY_LETTERS]) {
  unsigned n = r->n_letters;
  memcpy(out, r->letters, n * sizeof *out);
  r->n_letters = 0;
  return n;
}

bool pl_relay_has_letters(const pl_relay *r) { return r->n_letters > 0; }
