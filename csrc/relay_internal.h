/* Structures shared by relay.c (messages in, sends out), relay_table.c (nodes, claims, peers, routes), relay_punch.c (introductions),
 * relay_probe.c (NAT probes) and relay_seal.c (datagrams between beacons with a secret). */
#ifndef PL_RELAY_INTERNAL_H
#define PL_RELAY_INTERNAL_H

#include "aead.h"
#include "map.h"
#include "relay.h"
#include "replay.h"

#define PL_ROUTE_TTL_NS (90 * PL_NS_PER_S) /* without a sync a peer's routes are gone */
#define PL_CLAIM_FRESH_NS (25 * PL_NS_PER_S) /* a peer that is there has told its list meanwhile, even if a datagram was lost */
#define PL_CLAIM_LEAD_NS (25 * PL_NS_PER_S)  /* nodes ask each beacon every 20 s: one with this lead has it alone */
#define PL_RELAY_BUCKETS 4096u
#define PL_RELAY_OUT (2 * PL_RELAY_BATCH)  /* a punch makes two datagrams */
#define PL_RELAY_REPLY_SIZE 32u            /* the largest datagram that is no rewritten input: an introduction, IPv6 */
#define PL_RELAY_HOLDERS 65536u
#define PL_PUNCH_IP_FACTOR 40u             /* all nodes behind one address together, in multiples of punch_rate */

/* The run that the present batch is building for a destination. */
typedef struct pl_relay_slot {
  uint32_t run, batch;
} pl_relay_slot;

typedef struct pl_relay_node {
  uint32_t id;
  bool bound;      /* has an endpoint; otherwise only vouched for */
  bool vouched;
  bool wants_dst;  /* asked with 0x08 for 0x09 deliveries */
  bool counted;    /* in pl_relay.held[holder] */
  uint16_t holder;
  bool attached;   /* deliveries are handed over; addr is that of its stream, or of UDP if the registry vouches for it */
  uint8_t list;    /* of pl_relay.lists, while bound */
  pl_addr addr;    /* its endpoint */
  pl_addr local;   /* our address that it sends to */
  pl_addr vouch;   /* port 0 */
  uint64_t seen_ns;
  uint64_t attached_ns; /* when its stream began */
  double tokens;   /* relay bytes */
  uint64_t tokens_ns;
  pl_relay_slot slot;
  uint32_t hand_turn, hand_bytes; /* what the present hand-over holds for it */
  struct pl_relay_node *prev, *next;
} pl_relay_node;

typedef struct pl_relay_list { /* by seen_ns, oldest first */
  pl_relay_node *head, *tail;
} pl_relay_list;

typedef struct pl_relay_bucket {
  uint64_t key, at_ns;
  double tokens;
} pl_relay_bucket;

typedef struct pl_relay_key {
  pl_aead *aead; /* NULL = none */
  uint32_t session;
  uint64_t counter;         /* of the last datagram sealed */
  pl_replay_window *window; /* of what was opened */
  bool fresh;               /* opened something already */
} pl_relay_key;
#define PL_RELAY_OPEN_KEYS 6u

typedef struct pl_relay_peer {
  pl_addr addr;
  uint32_t *ids; /* what its last sync listed */
  uint32_t n_ids;
  uint32_t turn; /* counts its syncs */
  uint64_t sync_ns;
  pl_relay_slot slot;
  bool keep;
  pl_relay_key seal, open[PL_RELAY_OPEN_KEYS];
  uint64_t stray_ns;        /* when the owner was told of an unknown session */
  pl_relay_bucket letters;
} pl_relay_peer;

/* "The node is at mine": of a peer, or (peer NULL) of this beacon. */
typedef struct pl_relay_claim {
  pl_relay_peer *peer;
  uint64_t at_ns;  /* when its stream began, or it was heard by UDP; for a list without ages, when that came */
  uint32_t turn;   /* of the peer, when it said so last */
  bool aged, attached;
} pl_relay_claim;

/* The claim that holds, and the one that takes its place when it is withdrawn. */
typedef struct pl_relay_route {
  pl_relay_claim claims[2];
  unsigned n;
} pl_relay_route;

typedef struct pl_relay_out { /* one outgoing datagram */
  struct iovec iov;
  uint32_t run;
} pl_relay_out;

typedef struct pl_relay_run {
  pl_addr to, from;
  uint32_t seg, bytes, n;
  bool closed;
} pl_relay_run;

/* What the 9 bytes of a relay head from one source led to. A train repeats them in every datagram. */
typedef struct pl_relay_memo {
  bool valid;
  uint8_t head[9];
  pl_relay_node *sender; /* NULL from a peer beacon */
  pl_relay_node *node;   /* either of the two, or neither: not found */
  pl_relay_peer *peer;
} pl_relay_memo;

struct pl_relay {
  pl_relay_cfg cfg;
  uint64_t now_ns;
  pl_map nodes;  /* id -> pl_relay_node */
  pl_relay_list lists[2]; /* bound nodes: [1] at the address the registry vouches for, [0] the others */
  uint32_t n_bound, n_vouched, n_attached;
  uint32_t *held; /* PL_RELAY_HOLDERS: nodes bound from an address, by its hash */
  pl_map peers;  /* hash of address -> pl_relay_peer */
  pl_relay_peer *peer_list[PL_RELAY_PEERS];
  unsigned n_peers;
  pl_map routes; /* id -> pl_relay_route */
  pl_relay_bucket *punch_node, *punch_ip, *probe_ip;
  uint16_t observer_port;
  pl_addr alt;
  bool news;

  uint32_t batch;
  pl_relay_memo memo;
  pl_relay_out *out;
  pl_relay_run *runs;
  struct iovec *iov;
  pl_relay_send *sends;
  uint8_t *replies;      /* PL_RELAY_OUT * PL_RELAY_REPLY_SIZE bytes: the datagrams that are not rewritten input */
  pl_relay_reply *answers; /* PL_PROBE_SENDS: to NAT probes */
  unsigned n_out, n_runs, n_replies, n_sends, n_answers;

  uint8_t *hand[2];      /* PL_RELAY_HAND_BYTES each, from the first attached node on: one is filled, one is read */
  uint32_t hand_len, hand_turn;

  bool sealed;           /* there is a secret */
  uint8_t secret[PL_RELAY_SECRET];
  uint8_t *arena;        /* PL_RELAY_ARENA bytes: sealed datagrams of the present batch */
  uint32_t arena_used;
  pl_relay_letter letters[PL_RELAY_LETTERS];
  unsigned n_letters;
  pl_relay_stats st;
};

#define PL_RELAY_ARENA (4u << 20) /* more than one batch of received trains */

uint64_t pl_relay_hash(const pl_relay *r, const pl_addr *a, uint64_t salt);
/* One of `rate` per second, 2 * rate at once, for `key` (pl_relay_hash) in a table of PL_RELAY_BUCKETS. */
bool pl_relay_allow(pl_relay_bucket *table, uint64_t key, double rate, uint64_t now_ns);

/* Queues one datagram. `slot` of the destination lets it join the run that is being built for it; NULL = on its own. */
void pl_relay_emit(pl_relay *r, const pl_addr *to, const pl_addr *from, pl_relay_slot *slot, uint8_t *p, uint32_t len);
/* Queues 0x02 or 0x04. */
void pl_relay_emit_endpoint(pl_relay *r, const pl_addr *to, const pl_addr *from, uint8_t type, const pl_addr *endpoint);
#define PL_PACE_MIN_S 3u  /* how often nodes are told to ask */
#define PL_PACE_MAX_S 20u
/* 0x03 with its 9 bytes; 0x0D of `len` bytes from the peer `via`; a probe that came to the main socket. */
void pl_relay_on_punch(pl_relay *r, const pl_rx *rx, const uint8_t *p);
void pl_relay_on_introduce(pl_relay *r, pl_relay_peer *via, const uint8_t *p, uint32_t len);
void pl_relay_on_probe(pl_relay *r, const pl_rx *rx, const uint8_t *p, uint32_t len);

/* relay_seal.c. Queues a datagram to a peer, sealed if there is a secret. */
void pl_relay_emit_peer(pl_relay *r, pl_relay_peer *p, uint8_t *data, uint32_t len);
/* Seals `data` at `to`, which has room for PL_SEALED_HEAD + len + PL_SEALED_TAG bytes; the bytes written, 0 without a key. */
uint32_t pl_relay_seal(pl_relay *r, pl_relay_peer *p, uint8_t *to, const uint8_t *data, uint32_t len);
/* A 0x0E from a peer: what is inside, in place, and its length; NULL if it was a letter, or dropped. */
uint8_t *pl_relay_on_sealed(pl_relay *r, pl_relay_peer *via, uint8_t *p, uint32_t *len);
void pl_relay_peer_wipe(pl_relay_peer *p);

/* The bound node, or NULL. */
pl_relay_node *pl_relay_find(const pl_relay *r, uint32_t id);
/* Whether `id` was bound at this holder's address already, or the registry vouches for it there. */
bool pl_relay_known_at(const pl_relay *r, uint32_t id, const pl_addr *from);
/* Capacity of a node's relay budget, bytes: one second, and no less than one datagram. */
double pl_relay_burst(const pl_relay *r);
/* Binds `id` to `from` if the rules of a claim allow it; NULL (counted) if not. */
pl_relay_node *pl_relay_bind(pl_relay *r, uint32_t id, const pl_addr *from, const pl_addr *local, bool wants_dst);
pl_relay_peer *pl_relay_find_peer(const pl_relay *r, const pl_addr *a);
/* Replaces the peer's claims by the `n` big-endian ids at `ids`; there are ages of the first `n_ages` of them. */
void pl_relay_sync(pl_relay *r, pl_relay_peer *p, const uint8_t *ids, uint32_t n, const uint8_t *ages, uint32_t n_ages);
/* The peer whose claim to `id` is better than that of the local entry `n` (NULL = there is none); NULL if none is. */
pl_relay_peer *pl_relay_elsewhere(const pl_relay *r, uint32_t id, const pl_relay_node *n);
/* An attached node was heard over its stream. */
void pl_relay_alive(pl_relay *r, uint32_t node);
/* Hands a 0x06 over; NULL pointers of `hand` are possible only while nobody was ever attached. */
void pl_relay_hand(pl_relay *r, pl_relay_node *n, const uint8_t *p, uint32_t len);
void pl_relay_table_free(pl_relay *r);

#endif
