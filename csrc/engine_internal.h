/* Structures shared by the engine_*.c files. See engine.h for what the engine promises. */
#ifndef PL_ENGINE_INTERNAL_H
#define PL_ENGINE_INTERNAL_H

#include "aead.h"
#include "engine.h"
#include "map.h"
#include "replay.h"
#include "timer.h"

#define PL_EVENT_LIMIT 4096u         /* events a stranger can cause and that wait for Python */
#define PL_DATAGRAM_BYTES (4u << 20) /* of datagrams that wait for Python: a peer may send large ones, and none of them may keep a PILA out */
#define PL_DATAGRAM_WAIT (32u << 20) /* of datagrams that wait for sessions with whatever peers */
#define PL_PROBE_PORT 0xfffeu        /* source port of our pings: pongs come back to it */
#define PL_MEMORY (1ull << 30)       /* held by all streams */
#define PL_PEER_MEMORY (PL_MEMORY / 4)
#define PL_PROBES 16u                /* pings without an answer, per peer; the oldest is overwritten */
#define PL_PROBES_MIN 1u             /* room for so many at first */
#define PL_KEY_RETIRE_NS (10 * PL_NS_PER_S)
#define PL_KEY_WARM_NS (PL_NS_PER_S / 4) /* after its last use a key keeps its cipher context so long */
#define PL_GRAVES 1024u              /* keys no longer in force whose counters are remembered */
#define PL_REPLY_WINDOW_NS (300 * PL_NS_PER_S) /* after our dial the peer may reach ports 444 and 1001 */
#define PL_PEER_IDLE_NS (300 * PL_NS_PER_S)    /* a stranger's peer entry lives this long without contact */
#define PL_NO_SESSION_NS (3 * PL_NS_PER_S)
#define PL_EARLY 256u        /* frames without a key that are kept, in all */
#define PL_EARLY_WAYS 4u     /* of one peer at most */
#define PL_EARLY_BYTES 512u  /* longer ones are not kept: those that open something are short */
#define PL_EARLY_NS PL_NS_PER_S
#define PL_BROKEN_FAILURES 5u
#define PL_FLUSH_BYTES (1u << 20)    /* sent per flush before input gets its turn again */
#define PL_TRAIN_PACKETS 64u         /* per visit of one stream: a full GSO run */
#define PL_SYN_SHARE_BURST 16.0
#define PL_BUCKETS 4096u             /* direct-mapped rate tables keyed by address or node */

/* How frames under a key are sealed (transport.md 3.4). */
enum pl_era {
  PL_ERA_2 = 0,
  PL_ERA_1,    /* the first frame that opened was of era 1 */
  PL_ERA_OPEN, /* none has opened yet, and it may be of either */
};

/* The other key that two X25519 keys give. */
typedef struct pl_era1 {
  uint8_t secret[32];
  pl_aead *aead; /* NULL as in pl_key */
} pl_era1;

/* One derived session key; both directions use it (transport.md 3.4). */
typedef struct pl_key {
  uint64_t id;
  uint8_t secret[32];
  pl_aead *aead;       /* NULL when the key was not used of late: a context is many times as large as the key */
  struct pl_key *warmer, *colder; /* those with a context, by last use */
  uint64_t warmed_ns;
  uint64_t counter;    /* last one sent; the first frame carries 1 */
  pl_replay replay;
  uint64_t retire_ns;  /* of a replaced key */
  uint64_t installed_ns;
  uint32_t prefix;
  uint32_t first_conn; /* the id that the next connection would have had then */
  pl_caps caps;
  bool proved;         /* a frame under it was opened */
  uint8_t era;         /* enum pl_era */
  bool foretold;       /* not proved, nor said to us by the peer: until then nothing goes out under it but what is repeated */
  pl_era1 era1[];      /* one, while the era is not PL_ERA_2; counter and replay windows serve both */
} pl_key;

/* What is remembered of a key that was dropped. The same two X25519 keys give the same session key again, by a PILA that anybody may have
 * recorded: without this its recorded frames would open a second time. */
typedef struct pl_grave {
  uint64_t id;
  uint32_t prefix;
  uint64_t counter;
  pl_replay replay; /* n_live 0 = empty */
} pl_grave;

/* A frame that came before its key. */
typedef struct pl_early {
  uint32_t node;
  uint32_t len;
  bool relayed;
  pl_addr from;
  uint64_t at_ns; /* 0 = free */
  uint8_t data[PL_EARLY_BYTES];
} pl_early;

typedef struct pl_probe {
  uint32_t seq;
  uint32_t size;       /* PMTU probe: UDP payload; 0 = path probe */
  uint64_t token;
  uint64_t sent_ns;    /* 0 = free */
  bool relay;
  pl_addr to;
} pl_probe;

typedef struct pl_dgram {
  struct pl_dgram *next;
  uint16_t local_net, src_port, remote_net, dst_port;
  uint32_t len;
  uint8_t data[];
} pl_dgram;

/* Path MTU discovery of the active path (RFC 8899, by padded pings; pmtu.c). Sizes are UDP payload bytes. */
typedef struct pl_pmtu {
  uint32_t confirmed;  /* largest size that came back; PL_PMTU_BASE at least */
  unsigned round;      /* probe rounds done since the path was set */
  uint64_t next_ns;
} pl_pmtu;
#define PL_PMTU_BASE 1232u

struct pl_conn;
struct pl_peer;

/* A timer that knows whose it is: exactly one of the two is set. */
typedef struct pl_owned_timer {
  pl_timer t; /* first: the wheel hands back its address */
  struct pl_peer *peer;
  struct pl_conn *conn;
} pl_owned_timer;

typedef struct pl_peer {
  uint32_t node;
  bool trusted;
  bool has_path, relay;
  bool keeping;         /* the timer includes a keepalive */
  bool moved;           /* the key was replaced, and nothing has come over the path since: the peer may have restarted elsewhere */
  bool era2;            /* was heard in era 2: no key of it is tried in era 1 any more */
  bool spoke_era1;      /* the last key that settled did so in era 1 */
  pl_addr path;
  pl_key *cur, *next, *prev;
  pl_owned_timer timer;
  uint64_t last_recv_ns, last_send_ns, last_direct_recv_ns, last_dial_ns, last_app_ns, created_ns;
  uint64_t wanted_ns;   /* last PEER_WANTED */
  uint64_t broken_ns;   /* last SESSION_BROKEN */
  uint64_t rest_until_ns; /* 0 = it does not rest */
  unsigned failures;    /* consecutive frames that did not open */
  int failure_reason;
  uint64_t open_failures;
  struct { pl_addr addr; bool relay; uint64_t at_ns; } seen[2];
  pl_probe *probes;     /* room for max_probes; NULL while none waits for an answer */
  pl_pmtu pmtu;
  pl_dgram *dgram_head, *dgram_tail;
  unsigned n_dgrams, max_probes;
  struct pl_conn *conns;
  uint32_t n_conns;
  uint32_t n_parked;    /* of them in accept queues */
  pl_budget budget;     /* memory of its streams */
  double syn_tokens;    /* per-source SYN bucket */
  uint64_t syn_at_ns;
  double share_tokens;  /* its share of the common one */
  uint64_t share_at_ns;
  uint64_t bytes_sent, bytes_recv, pkts_sent, pkts_recv;
} pl_peer;

typedef struct pl_port {
  uint16_t port;
  enum pl_owner owner;
  uint32_t client;
  bool open_port;
  uint32_t first_conn; /* streams with lower ids were accepted when the port was somebody else's */
  uint32_t n_conns, parked;
} pl_port;

typedef struct pl_conn {
  uint32_t id;
  uint32_t client;
  pl_peer *peer;
  uint16_t local_net, local_port, remote_net, remote_port;
  enum pl_owner owner;
  pl_stream *s;
  pl_owned_timer timer;
  uint64_t dial_deadline_ns; /* while dialing */
  uint64_t timeouts_seen, sent_seen; /* since bytes last went out for the first time */
  bool dialing, held;        /* held: SYN waits for key and path */
  bool claimed;              /* the local clients' shell answers the dial, or takes the accepted stream, by itself */
  bool inbound, parked;      /* parked: counted in its port's accept queue */
  bool served;               /* owned by a local client or the echo service, or was when it was closed: its end does not press Python */
  bool closing;              /* closed on our side: what still arrives is discarded */
  bool dead;                 /* reset; kept only until a local client's shell let go */
  bool armed;                /* APP: the next bytes make a READABLE event */
  bool want_write;           /* APP: a short write waits for room */
  bool in_active, in_ready;
  void *tag;                 /* of the shell that serves local clients */
  void *waiter[2];           /* APP: threads that wait in the shell, by enum pl_wait */
  struct pl_conn *peer_next, *peer_prev;
  struct pl_conn *active_next, *active_prev, *ready_next, *ready_prev;
} pl_conn;

typedef struct pl_bucket {
  uint64_t key;
  uint64_t at_ns;
  double tokens;
} pl_bucket;

struct pl_engine {
  pl_engine_cfg cfg;
  pl_budget budget;
  pl_spares spares;
  pl_tx *tx;
  pl_wheel *wheel;
  uint64_t now_ns;
  uint32_t node;
  bool is_public;
  pl_addr beacons[16];
  unsigned n_beacons;

  pl_map peers;   /* node -> pl_peer */
  pl_map conns;   /* id -> pl_conn */
  pl_map tuples;  /* (local port, remote port, node) -> pl_conn */
  pl_map ports;   /* port -> pl_port */
  pl_map places;  /* (port, node) -> how many inbound streams the peer has there */
  uint32_t next_conn;
  uint16_t next_port;
  uint32_t n_sessions;
  uint32_t next_prefix; /* of nonces: see engine_session.c */
  pl_grave *graves;     /* PL_GRAVES entries, a ring */
  unsigned next_grave;
  pl_early *early;      /* PL_EARLY entries, sets of PL_EARLY_WAYS by node */

  pl_key *warmest, *coldest; /* keys with a cipher context */

  pl_conn *active_head, *active_tail;
  pl_conn *ready_head, *ready_tail;

  pl_event *ev_head, *ev_tail;
  uint32_t n_stranger_events;
  uint32_t n_events, n_quiet_events;
  uint64_t dgram_event_bytes; /* payloads of PL_EV_DATAGRAM and their heads */
  uint64_t dgram_wait_bytes;  /* of datagrams that wait for sessions */

  double syn_tokens;
  uint64_t syn_at_ns;
  uint32_t syn_node;          /* who sent the last SYN */
  uint64_t syn_turn_ns;       /* when one last came of another peer than the one before; 0 = never */
  pl_bucket *frame_buckets;   /* PILA/PILK per source address */
  pl_bucket *session_buckets; /* NO_SESSION per node */

  uint64_t rng[4];
  pl_aead *probe_cipher;      /* makes sequence numbers of pings from a count */
  uint64_t n_probes;
  uint8_t *scratch;           /* 64 KiB: ciphertext copy while two keys are tried */
  void (*dgram_fn)(void *, const pl_packet *);
  void *dgram_ctx;
  void (*release_fn)(void *, uint32_t, pl_stream *, void *);
  void *release_ctx;
  void (*wake_fn)(void *, void *);
  void *wake_ctx;
  void (*taken_fn)(void *, uint32_t, uint32_t);
  void *taken_ctx;
  bool claim_accepts;
  void (*dial_failed_fn)(void *, uint32_t, uint32_t);
  void *dial_failed_ctx;
  pl_engine_stats st;
};

/* engine.c */
uint64_t pl_engine_random(pl_engine *e);
pl_event *pl_event_push(pl_engine *e, uint32_t type, const uint8_t *data, size_t len, bool stranger);
void pl_event_hush(pl_engine *e, pl_event *ev); /* quiet from now on; NULL is nothing */
bool pl_bucket_take(pl_bucket *b, uint64_t key, double rate, double burst, uint64_t now_ns);
/* keep: tokens that have to be left. */
bool pl_token_take(double *tokens, uint64_t *at_ns, double rate, double burst, double keep, uint64_t now_ns);

/* engine_peer.c */
pl_peer *pl_peer_find(const pl_engine *e, uint32_t node);
pl_peer *pl_peer_get(pl_engine *e, uint32_t node); /* creates; NULL at the limit */
bool pl_peer_usable(const pl_peer *p);             /* has key and path */
bool pl_peer_certain(const pl_peer *p);            /* and the key is no mere foretelling */
void pl_peer_want(pl_engine *e, pl_peer *p);
void pl_peer_ready(pl_engine *e, pl_peer *p);      /* key and path are there: lets held traffic go */
void pl_peer_on_timer(pl_engine *e, pl_peer *p);
void pl_peer_schedule(pl_engine *e, pl_peer *p);
void pl_peer_active(pl_engine *e, pl_peer *p);     /* application traffic, in or out */
void pl_peer_stir(pl_engine *e, pl_peer *p, bool traffic); /* it rests no more, and Python hears of it */
uint32_t pl_peer_mss(const pl_engine *e, const pl_peer *p);
void pl_peer_apply_mss(pl_engine *e, pl_peer *p);
void pl_peer_free(pl_engine *e, pl_peer *p);
void pl_peer_on_pong(pl_engine *e, pl_peer *p, const pl_packet *pkt, const pl_addr *from, bool relayed);
int pl_peer_ping(pl_engine *e, pl_peer *p, pl_key *k, const pl_addr *to, bool relay, uint64_t token, uint32_t size);

/* engine_session.c */
void pl_key_free(pl_engine *e, pl_key *k);
void pl_session_on_pils(pl_engine *e, uint8_t *p, size_t len, const pl_addr *from, bool relayed);
/* Seals one packet (head fields from `pkt`, payload from up to two spans) under `k` into the tx arena. */
int pl_session_send(pl_engine *e, pl_peer *p, pl_key *k, const pl_addr *to, bool relay, const pl_packet *pkt,
                    const uint8_t *p1, size_t n1, const uint8_t *p2, size_t n2);
/* Over the active path under the sending key; PL_ESTATE without. */
int pl_session_send_active(pl_engine *e, pl_peer *p, const pl_packet *pkt, const uint8_t *data, size_t len);

/* engine_early.c */
void pl_early_keep(pl_engine *e, uint32_t node, const uint8_t *p, size_t len, const pl_addr *from, bool relayed);
void pl_early_open(pl_engine *e, pl_peer *p); /* the first key of the peer is here */

/* engine_pmtu.c */
void pl_pmtu_start(pl_engine *e, pl_peer *p);
void pl_pmtu_round(pl_engine *e, pl_peer *p);
void pl_pmtu_on_pong(pl_engine *e, pl_peer *p, uint32_t size);
void pl_pmtu_blackhole(pl_engine *e, pl_peer *p);

/* engine_conn.c */
static inline uint64_t pl_tuple_key(uint16_t local, uint16_t remote, uint32_t node) {
  return (uint64_t)local << 48 | (uint64_t)remote << 32 | node;
}
pl_conn *pl_conn_new(pl_engine *e, pl_peer *p, uint16_t local_net, uint16_t local_port, uint16_t remote_net, uint16_t remote_port);
void pl_conn_free(pl_engine *e, pl_conn *c);
void pl_conn_kill(pl_engine *e, pl_conn *c, bool reset); /* frees it, with an event if anybody knows it */
void pl_conn_on_packet(pl_engine *e, pl_peer *p, const pl_packet *pkt);
void pl_conn_activate(pl_engine *e, pl_conn *c);
void pl_conn_events(pl_engine *e, pl_conn *c, unsigned ev);
void pl_conn_on_timer(pl_engine *e, pl_conn *c);
pl_event *pl_conn_event(pl_engine *e, const pl_conn *c, uint32_t type); /* NULL: there is no room for it */
void pl_conn_let_go(pl_engine *e, pl_conn *c);  /* tells the shell of the client that owned it */
void pl_conn_mark_ready(pl_engine *e, pl_conn *c); /* that shell has something to do */
void pl_conn_unlink_ready(pl_engine *e, pl_conn *c);
void pl_conn_tell_readable(pl_engine *e, pl_conn *c); /* to its owner, if there is something */
void pl_conn_discard(pl_engine *e, pl_conn *c);       /* what is readable, unread */
void pl_conn_wake(pl_engine *e, pl_conn *c, enum pl_wait what);
void pl_conn_send_reset(pl_engine *e, pl_conn *c);
void pl_conn_send_now(pl_engine *e, pl_conn *c); /* a train, before its turn */
void pl_conn_send_all(pl_engine *e);

/* engine_open.c */
void pl_conn_on_syn(pl_engine *e, pl_peer *p, const pl_packet *pkt);
void pl_conn_on_unknown(pl_engine *e, pl_peer *p, const pl_packet *pkt); /* of a stream that does not exist */
void pl_conn_release(pl_engine *e, pl_conn *c); /* a held dial: its SYN may go */
void pl_conn_dial_again(pl_engine *e, pl_peer *p); /* SYNs that are out went under a key the peer may not have had */
void pl_conn_unpark(pl_engine *e, pl_conn *c);  /* out of its port's accept queue */
void pl_conn_vacate(pl_engine *e, const pl_conn *c); /* its place on its port */
uint16_t pl_conn_ephemeral(pl_engine *e, uint32_t node, uint16_t remote_port);

/* engine_datagram.c */
void pl_datagram_on_packet(pl_engine *e, pl_peer *p, const pl_packet *pkt);
void pl_datagram_flush(pl_engine *e, pl_peer *p);
void pl_datagram_drop_all(pl_engine *e, pl_peer *p);
bool pl_trust_gate(const pl_engine *e, const pl_peer *p, uint16_t port, bool open_port);

#endif
