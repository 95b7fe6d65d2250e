/* The beacon's forwarding loop: discover, punch, relay (beacon.md sections 3 to 7). The decisions of policy (who may use it, peers, gossip timing)
 * belong to Python; packets stay here.
 *
 * pl_relay is sans-I/O: it takes a batch of received buffers and gives back a list of sends whose iovecs point into
 * those buffers (payloads are never copied or parsed). pl_relay_loop runs it on its sockets in a native thread. */
#ifndef PL_RELAY_H
#define PL_RELAY_H

#include "pl.h"
#include "udp.h"

typedef struct pl_relay_cfg {
  uint32_t max_nodes;            /* 500000 */
  uint32_t max_nodes_per_ip;     /* 4096: ids bound from one address (IPv6: /48), but for those the registry vouches for there */
  uint64_t node_ttl_ns;          /* 600 s; at least 180 s */
  uint64_t claim_ttl_ns;         /* 130 s: a different IP may take over an id only when its holder was silent this long */
  uint32_t punch_rate;           /* punch requests per second per (source IP, node): 5, burst 10 */
  uint32_t probe_rate;           /* NAT probes answered per second and source IP: 20, burst 40 */
  uint32_t pace_rate;            /* discovers per second that this beacon wants, all nodes together: 20000. Nodes are told to ask every
                                  * nodes / pace_rate seconds, 3 at least and 20 at most (docs/wire-extensions.md 7.4) */
  uint64_t relay_bytes_per_s;    /* per sender node, token bucket with one second of burst, at least one datagram; 0 = no limit. 1.25e9 */
  uint64_t hash_seed;
} pl_relay_cfg;
void pl_relay_cfg_default(pl_relay_cfg *cfg);

typedef struct pl_relay pl_relay;
pl_relay *pl_relay_new(const pl_relay_cfg *cfg, uint64_t now_ns);
void pl_relay_free(pl_relay *r);

/* One sendmsg: one iovec per datagram; with more than one, all are of `seg` bytes but the last, which may be shorter. `from` is the
 * beacon's address that the receiver knows. */
typedef pl_udp_msg pl_relay_send;

/* Handles a batch; replies and forwards make up a new list, read it with pl_relay_sends until the next input. Rewrites heads in place.
 * Datagrams to one destination keep their order. Takes at most PL_RELAY_BATCH datagrams; the rest is dropped and counted (the kernel
 * never delivers that many). */
#define PL_RELAY_BATCH 4096u
void pl_relay_input(pl_relay *r, pl_rx *batch, unsigned n, uint64_t now_ns);
unsigned pl_relay_sends(pl_relay *r, const pl_relay_send **out);
void pl_relay_expire(pl_relay *r, uint64_t now_ns); /* call about once a second; O(expired) amortised */

/* NAT probes (docs/wire-extensions.md 7.1). A probe that reaches the beacon's own socket is answered from there, from another port of the same
 * address, and from another address; one that reaches an observer is answered by that observer alone. Answers are at most as large as the
 * question together. `quiet` sockets send only: nobody ever sends there, which is what makes them a test of filtering. */
enum pl_relay_socket { PL_SOCK_MAIN, PL_SOCK_QUIET, PL_SOCK_QUIET_ALT, PL_SOCK_OBSERVER, PL_SOCK_OBSERVER_ALT, PL_SOCK_COUNT };
#define PL_PROBE_SIZE 250u        /* of a question; three answers with their IP and UDP heads are no larger */
#define PL_PROBE_REPLY_MAX 50u
#define PL_PROBE_SENDS 192u       /* per batch */
typedef struct pl_relay_reply {
  enum pl_relay_socket socket;
  pl_addr to, from;               /* from: as in pl_udp_msg */
  uint8_t data[PL_PROBE_REPLY_MAX];
  uint32_t len;
} pl_relay_reply;
/* observer_port: of PL_SOCK_OBSERVER, on the beacon's own address; 0 = probes are not answered. alt: address and port of
 * PL_SOCK_OBSERVER_ALT, family 0 if there is no other address. */
void pl_relay_set_probe(pl_relay *r, uint16_t observer_port, const pl_addr *alt);
/* Handles what an observer received; anything but probes is dropped and counted. */
void pl_relay_observe(pl_relay *r, enum pl_relay_socket at, const pl_rx *batch, unsigned n, uint64_t now_ns);
/* What the last pl_relay_input or pl_relay_observe answers to probes. */
unsigned pl_relay_replies(const pl_relay *r, const pl_relay_reply **out);

/* Peer beacons: addresses allowed to send 0x07, 0x0D and forwarded 0x05; a 0x05 from one of them is never forwarded to another. Replaces the
 * set; routes through peers that stay are kept, a peer silent for 90 s loses its own. At most PL_RELAY_PEERS, the rest is ignored. */
#define PL_RELAY_PEERS 256u
void pl_relay_set_peers(pl_relay *r, const pl_addr *peers, unsigned n);
/* Beacons with a secret in common (docs/wire-extensions.md 7.6). With one set, peers are believed in sealed datagrams (0x0E) alone, and what goes
 * to a peer without a key is dropped. The owner runs the handshake: it takes letters, sends its own, and installs the keys that come of it. */
#define PL_RELAY_SECRET 32u
#define PL_SEALED_HEAD 14u
#define PL_SEALED_TAG 16u
enum { PL_SEALED_HELLO = 0, PL_SEALED_WELCOME = 1, PL_SEALED_DATA = 2 };
/* key: authenticates letters. From here on only sealed datagrams count. PL_ENOMEM. */
int pl_relay_set_secret(pl_relay *r, const uint8_t key[PL_RELAY_SECRET]);
/* What goes to the peer is sealed with this key; it replaces the former one. PL_ENOENT if it is no peer, PL_ENOMEM. */
int pl_relay_set_seal_key(pl_relay *r, const pl_addr *peer, uint32_t session, const uint8_t key[32]);
/* What comes from the peer may be sealed with this key too. The one that the peer used last is kept, of the others the newest. */
int pl_relay_add_open_key(pl_relay *r, const pl_addr *peer, uint32_t session, const uint8_t key[32]);
#define PL_RELAY_LETTER_SIZE 54u
#define PL_RELAY_LETTERS 64u
typedef struct pl_relay_letter { /* genuine, of a peer; 2 bytes 0x0E 0x02: it seals with a key that is not known here (any more) */
  pl_addr from;
  uint8_t data[PL_RELAY_LETTER_SIZE];
  uint32_t len;
} pl_relay_letter;
unsigned pl_relay_take_letters(pl_relay *r, pl_relay_letter out[PL_RELAY_LETTERS]);
bool pl_relay_has_letters(const pl_relay *r);
/* What to send to a peer for `data`: sealed if there is a secret. The length; *out is good until the next input. PL_ENOENT, PL_ELIMIT. */
int pl_relay_for_peer(pl_relay *r, const pl_addr *peer, const uint8_t *data, uint32_t len, const uint8_t **out);

/* True once after something that peers should hear of now: a node came or came back, or a peer of our kind asked for our list. */
bool pl_relay_take_news(pl_relay *r);
/* Local node ids for gossip, those that the registry vouches for first; copies up to cap, returns the number copied. Left out are nodes silent for claim_ttl_ns: they may have moved to
 * another beacon, whose own announcement then stands alone. ages: as many bytes for the trailer of the gossip (docs/wire-extensions.md 7.3), or NULL. */
size_t pl_relay_nodes(const pl_relay *r, uint32_t *out, uint8_t *ages, size_t cap);
bool pl_relay_lookup(const pl_relay *r, uint32_t node, pl_addr *out);
/* The beacon's own address that the node sends to; family 0 if unknown. False as pl_relay_lookup. */
bool pl_relay_lookup_local(const pl_relay *r, uint32_t node, pl_addr *out);
/* The registry vouches that `node` is at IP `addr` (port ignored): a claim from it is believed at once, and it finds
 * room in a full table. family 0 = node unknown to the registry: takes the word back. PL_ELIMIT beyond max_nodes, PL_ENOMEM. */
int pl_relay_vouch(pl_relay *r, uint32_t node, const pl_addr *addr, uint64_t now_ns);

/* Nodes whose datagrams come over a stream that the owner holds (WebSocket: beacon.md 11). The owner has authenticated them: what it injects in
 * the name of a node carries pl_relay_stream_addr as its source, and deliveries for the node are handed over to the owner instead of being
 * sent. An attached node wins over its UDP endpoint; only the registry's word lets another address bind its id. */
#define PL_ADDR_STREAM 0xffu /* pl_addr.family that no socket has; ip = node id, big-endian */
void pl_relay_stream_addr(pl_addr *out, uint32_t node);
/* A stream of the node begins, perhaps in place of a former one. PL_OK, PL_EFORMAT for id 0, PL_ELIMIT when the table is full, PL_ENOMEM. */
int pl_relay_attach(pl_relay *r, uint32_t node, uint64_t now_ns);
void pl_relay_detach(pl_relay *r, uint32_t node);
/* The 0x06 deliveries since the last call, oldest first: records of u32 node, u32 length (host order), datagram. Good until the call after.
 * At most PL_RELAY_HAND_BYTES, of which one node gets at most a quarter; the rest is dropped and counted. */
#define PL_RELAY_HAND_BYTES (2u << 20)
size_t pl_relay_take(pl_relay *r, const uint8_t **out);
bool pl_relay_waiting(const pl_relay *r); /* there is something to take */

typedef struct pl_relay_stats {
  uint64_t discovers;      /* 0x01 and 0x08 answered */
  uint64_t punches;        /* pairs of 0x04 sent */
  uint64_t introduced;     /* punches arranged together with a peer beacon */
  uint64_t probes;         /* NAT probes answered */
  uint64_t relayed, relayed_bytes; /* delivered to a node; payload bytes */
  uint64_t forwarded;      /* passed on to a peer beacon */
  uint64_t not_found;      /* relay or punch target unknown, or a punch request from someone unknown until then */
  uint64_t spoofed;        /* 0x05 not from its sender's address, an id claimed from elsewhere, 0x07 from a stranger */
  uint64_t limited;        /* over a rate, or no room in the table */
  uint64_t bad;            /* short or of a type that a beacon does not take */
  uint64_t sync;
  uint64_t forged;         /* from a peer, but not sealed with the secret, or seen before */
  uint64_t unsealed;       /* not sent, as there was no key for the peer yet */
  uint64_t handed, hand_full; /* deliveries to attached nodes; those that found no room */
  uint32_t nodes, routes, attached;
} pl_relay_stats;
void pl_relay_get_stats(const pl_relay *r, pl_relay_stats *out);

/* Threaded shell. The thread waits for the socket and takes the lock per batch; any other thread may lock, call pl_relay_*, unlock. Waiting
 * threads and the data thread take turns, so a flood on the socket cannot keep the control plane out. */
typedef struct pl_relay_loop pl_relay_loop;
/* How NAT probes are answered. alt: another address of this host, family 0 = none; its port is not looked at. Ports 0 = any free ones. */
typedef struct pl_relay_probe_cfg {
  pl_addr alt;
  uint16_t observer_port, quiet_port;
} pl_relay_probe_cfg;
/* Opens the sockets; PL_OK and *out, PL_ENOMEM, or PL_EIO with errno. The thread is not started. probe: NULL = probes are not answered. */
int pl_relay_loop_new(const pl_relay_cfg *cfg, const pl_addr *bind, const pl_relay_probe_cfg *probe, uint32_t socket_buffer,
                      pl_relay_loop **out);
/* PL_ESTATE if it runs already, PL_EIO with errno if there is no thread to be had. On Linux the thread's nice value is PL_RELAY_PRECEDENCE below
 * that of its caller where the process may lower it (CAP_SYS_NICE, RLIMIT_NICE). */
#define PL_RELAY_PRECEDENCE 10
int pl_relay_loop_start(pl_relay_loop *l);
void pl_relay_loop_stop(pl_relay_loop *l); /* joins the thread; may be started again */
void pl_relay_loop_free(pl_relay_loop *l); /* stops first; NULL is allowed */
pl_relay *pl_relay_loop_lock(pl_relay_loop *l, uint64_t *now_ns);
void pl_relay_loop_unlock(pl_relay_loop *l);
void pl_relay_loop_local_addr(const pl_relay_loop *l, pl_addr *out);
/* Readable when there is news (pl_relay_take_news, which the thread calls itself), a byte 1, or when letters wait, a byte 2. Read it empty; do
 * not close it. */
int pl_relay_loop_news_fd(const pl_relay_loop *l);
/* Sends one datagram from the beacon socket (gossip). PL_OK or PL_EIO with errno. With or without the lock. */
int pl_relay_loop_send(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len);
/* The same to a peer beacon, sealed if there is a secret. Takes the lock. PL_ENOENT if it is no peer, or has no key yet. */
int pl_relay_loop_send_peer(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len);
unsigned pl_relay_loop_take_letters(pl_relay_loop *l, pl_relay_letter out[PL_RELAY_LETTERS]); /* takes the lock */
/* The same to a node in the table, from the very address the node knows (notify: beacon.md 1, source pinning). With the lock held.
 * PL_ENOENT if the node is not there. */
int pl_relay_loop_send_node(pl_relay_loop *l, uint32_t node, const uint8_t *data, size_t len);

/* Datagrams of an attached node, in order; their bytes are rewritten. Takes the lock. */
void pl_relay_loop_inject(pl_relay_loop *l, uint32_t node, pl_rx *batch, unsigned n);
/* pl_relay_take for one consumer that watches the descriptor: readable when deliveries wait. Takes the lock. */
int pl_relay_loop_hand_fd(const pl_relay_loop *l);
size_t pl_relay_loop_take(pl_relay_loop *l, const uint8_t **out);

typedef struct pl_relay_loop_stats {
  uint64_t wakeups, recv_calls, recv_datagrams, send_calls, send_datagrams;
  uint64_t send_errors;   /* datagrams that the kernel refused or had no room for */
  uint64_t gso_fallbacks;
  bool gso, gro;
} pl_relay_loop_stats;
/* With the lock held. */
void pl_relay_loop_get_stats(const pl_relay_loop *l, pl_relay_loop_stats *out);

#endif
