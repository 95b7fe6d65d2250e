/* The node's data plane without I/O: peers, sessions, paths, connections, datagrams, pings.
 * Specification: transport.md sections 3 to 6; design.md sections 4 and 5.
 *
 * One instance serves one node. It is driven by a shell (loop.c on sockets, the simulator on virtual time):
 * datagrams in through pl_engine_input, datagrams out through the pl_tx it was given, events out through a queue.
 * Not thread safe: the shell holds one lock around it. Nothing here allocates per packet.
 *
 * Batches: call pl_engine_input for each received buffer, then pl_engine_flush once: acknowledgements and data that the
 * batch made possible leave then. After any command call pl_engine_flush as well. */
#ifndef PL_ENGINE_H
#define PL_ENGINE_H

#include "pl.h"
#include "stream.h"
#include "tx.h"
#include "wire.h"

typedef struct pl_engine pl_engine;

enum pl_event_type {
  PL_EV_NONE = 0,
  PL_EV_FRAME = 1,       /* PILA, PILK, PILP: data, addr, relayed, node = relay-reported source (0 if direct) */
  PL_EV_BEACON,          /* 0x02 0x04 0x0A and unknown types < 0x10: data, addr */
  PL_EV_PEER_WANTED,     /* node: traffic waits for it; no session, or no path. At most once a second per node */
  PL_EV_NO_SESSION,      /* node: PILS came, no key for it: addr, relayed. At most once per 3 s per node */
  PL_EV_SESSION_PROVED,  /* node: first frame opened under key a = key_id; that key is now the sending key. b = era of the session, 1 or 2 */
  PL_EV_SESSION_BROKEN,  /* node: repeated tag or replay failures dropped the session; a = reason PL_E* */
  PL_EV_PATH_SEEN,       /* node: authenticated frame from an address that is not its active path: addr, relayed. <= 1/s per address.
                            a = 1: it is now, because the peer has replaced its key and is heard there, directly, instead of on its direct path */
  PL_EV_PONG,            /* node: answer to pl_engine_probe: addr, relayed = where it came from; a = token, b = rtt_ns */
  PL_EV_CONN_OPEN,       /* conn: dial succeeded. node, remote_net, remote_port, local_port, client */
  PL_EV_CONN_FAILED,     /* conn: dial failed, conn is gone; a = PL_DIAL_* */
  PL_EV_ACCEPT,          /* conn: inbound stream on a port owned by Python or a client: as CONN_OPEN; client = owner */
  PL_EV_READABLE,        /* conn owned by Python: bytes or end of stream wait. Edge: repeats only after a read found nothing */
  PL_EV_WRITABLE,        /* conn owned by Python: room again after a short write */
  PL_EV_CONN_CLOSED,     /* conn is gone (any owner); a = 1 if reset */
  PL_EV_DATAGRAM,        /* node, remote_net, remote_port -> local_port; data. For ports that Python listens on */
  PL_EV_CLIENT_OPEN,     /* client connected */
  PL_EV_CLIENT_FRAME,    /* client: IPC request; a = cmd, data = payload */
  PL_EV_CLIENT_CLOSED,   /* client is gone; its connections are closed already */
  PL_EV_PMTU,            /* node: a = largest segment of the active path */
  PL_EV_CLIENT_CONN,     /* conn became a client's without Python: as CONN_OPEN, or, with a = 1, as ACCEPT */
  PL_EV_PEER_STIRRED,    /* node: it rests no more. a = 1: application traffic, in or out; 0: its time is over, or the peer is forgotten */
};
enum { PL_DIAL_REFUSED = 1, PL_DIAL_TIMEOUT = 2, PL_DIAL_NO_KEY = 3 };

typedef struct pl_event {
  struct pl_event *next;
  uint32_t type;
  uint32_t node, conn, client;
  uint16_t remote_net, remote_port, local_net, local_port;
  bool relayed;
  bool quiet; /* it can wait for others before anybody is woken up for it */
  pl_addr addr;
  uint64_t a, b;
  uint32_t len;
  uint8_t data[];
} pl_event;

/* Features a peer offered in the trailer of its PILA (docs/wire-extensions.md 1). All zero = another implementation. */
enum {
  PL_CAP_NOCRC = 1,       /* accepts a zero inner checksum */
  PL_CAP_STREAM_OPTS = 2, /* understands stream options in SYN */
};
typedef struct pl_caps {
  uint32_t features;
  uint16_t max_segment;
  uint32_t reorder_segments;
} pl_caps;

typedef struct pl_engine_cfg {
  pl_stream_cfg stream;
  uint32_t max_conns;         /* 65536 */
  uint32_t max_conns_port;    /* 1024 per local port. Of this, of max_conns and of accept_queue one peer alone gets nearly all */
  uint32_t max_peers;         /* 65536 */
  uint32_t syn_rate;          /* per second, all sources; 100, burst the same; shared by the peers that want it. A stranger: 10/s, burst 64 */
  uint32_t accept_queue;      /* inbound streams not yet taken by Python or a client, per port: 64 */
  uint32_t max_segment;       /* what we send and accept at most, e.g. 8192; PMTU discovery probes up to it */
  uint32_t datagram_queue;    /* datagrams that wait for a session, per peer: 64 */
  uint64_t peer_keepalive_ns; /* 20 s */
  bool accept_era1;           /* off: keys of era 1 are not kept, their frames fail like any forgery */
  uint8_t entropy[32];        /* seeds ISNs, hash keys, prefixes; from the system in production, a seed in tests */
  uint8_t probe_secret[32];   /* for the sequence numbers of pings; likewise, but zero will do in tests */
} pl_engine_cfg;
void pl_engine_cfg_default(pl_engine_cfg *cfg);

pl_engine *pl_engine_new(const pl_engine_cfg *cfg, pl_tx *tx, uint64_t now_ns);
void pl_engine_free(pl_engine *e);

/* Input. `data` is modified (opened in place). `seg` != 0: a GRO buffer of datagrams of `seg` bytes, the last may be shorter. */
void pl_engine_input(pl_engine *e, uint8_t *data, size_t len, size_t seg, const pl_addr *from, uint64_t now_ns);
/* Sends what is due; also expires timers. Call after each batch, command and deadline. */
void pl_engine_flush(pl_engine *e, uint64_t now_ns);
uint64_t pl_engine_deadline(const pl_engine *e);

/* Oldest event or NULL; free with pl_event_free. The queue is bounded by the tables behind it; stranger-made events
 * (FRAME, BEACON, NO_SESSION) are dropped and counted when 4096 are waiting. */
pl_event *pl_engine_event(pl_engine *e);
void pl_event_free(pl_event *ev);
bool pl_engine_has_events(const pl_engine *e);
bool pl_engine_has_pressing_events(const pl_engine *e); /* others than quiet ones: streams of local clients that come and go */
/* For shells: queue an event of their own (CLIENT_*). Data is copied. PL_OK or PL_ENOMEM. */
int pl_engine_post(pl_engine *e, const pl_event *head, const uint8_t *data, uint32_t len);

/* ---- identity and policy ---- */
void pl_engine_set_node(pl_engine *e, uint32_t node);     /* own number; 0 = not registered: PILS is dropped */
void pl_engine_set_public(pl_engine *e, bool is_public);  /* public: SYN and datagrams from anyone with a session */
/* The addresses from which beacon messages are accepted (0x04, 0x06, 0x0A, 0x02). n <= 16. */
void pl_engine_set_beacons(pl_engine *e, const pl_addr *beacons, unsigned n);

/* ---- peers, sessions, paths ---- */
int pl_engine_set_trusted(pl_engine *e, uint32_t node, bool trusted);
/* Installs a session key. With no session, or key_id equal to the present one: in force at once (same key_id: counters and windows
 * are kept, caps updated, a pending key is withdrawn). Otherwise it waits as pending: frames under it are accepted, and the first that opens makes it the
 * sending key (SESSION_PROVED) and the old one a receive-only key for 10 s. caps may be NULL. */
int pl_engine_install_key(pl_engine *e, uint32_t node, const uint8_t key[32], uint64_t key_id, const pl_caps *caps, uint64_t now_ns);
/* The same with more to say.
 *
 * era1: the key of a peer that may be of era 1 (transport.md 3.4), NULL = it is known not to speak it; ignored unless cfg.accept_era1 is set.
 * The first frame that opens settles the era of the session. Until then ours are of era 2, every second one of era 1 if that was the last
 * that the peer spoke. A peer that was heard in era 2 is never heard in era 1 again.
 *
 * A peer's first key opens the last few short frames of it that came up to a second before.
 *
 * foretold: the peer has not said this key to us (docs/wire-extensions.md 9). Dials begin under it, datagrams wait until it is proved, or
 * installed without foretold. Then, or when another key is installed after drop_session, dials that are under way begin again. */
int pl_engine_install_keys(pl_engine *e, uint32_t node, const uint8_t key[32], const uint8_t *era1, uint64_t key_id, const pl_caps *caps,
                           bool foretold, uint64_t now_ns);
int pl_engine_drop_session(pl_engine *e, uint32_t node);
/* Resets the streams with a peer that is gone; dials go on until their own time is over. key_id: only streams that are older than this key
 * of the session, 0 = all. The number of streams, or PL_ENOENT. */
int64_t pl_engine_reset_streams(pl_engine *e, uint32_t node, uint64_t key_id, uint64_t now_ns);
/* Removes peer, session, path; its connections are reset. */
int pl_engine_forget_peer(pl_engine *e, uint32_t node, uint64_t now_ns);
/* The path that carries traffic. relay: `to` is a beacon and frames are wrapped in 0x05. Restarts path MTU discovery. */
int pl_engine_set_path(pl_engine *e, uint32_t node, const pl_addr *to, bool relay, uint64_t now_ns);
/* Sends an encrypted ping over the given path, active or not, under the pending key if there is one. The token comes back in PONG. */
int pl_engine_probe(pl_engine *e, uint32_t node, const pl_addr *to, bool relay, uint64_t token, uint64_t now_ns);
/* Sends the datagrams that are made already, without making others: before something that gives the processor away. */
void pl_engine_send_made(pl_engine *e);
/* Any bytes to any address: PILA, PILK, PILP, beacon messages. */
int pl_engine_send_raw(pl_engine *e, const pl_addr *to, const uint8_t *data, size_t len);

typedef struct pl_peer_info {
  uint32_t node;
  bool trusted, session, proved, has_path, relay, own_kind;
  pl_addr path;
  uint32_t mss;
  uint8_t era;                         /* 1 or 2; 0 before the first frame has opened */
  uint64_t key_id;
  uint64_t last_recv_ns, last_send_ns; /* 0 = never; authenticated frames */
  uint64_t last_direct_recv_ns;
  uint64_t bytes_sent, bytes_recv, pkts_sent, pkts_recv;
  uint64_t open_failures;
  uint32_t conns;
} pl_peer_info;
int pl_engine_peer_info(const pl_engine *e, uint32_t node, pl_peer_info *out);
/* Iterates over the peers that sent or received since then, 0 = all: *it = 0 to start; false at the end. Those that rest are left out
 * unless all are asked for. */
bool pl_engine_next_peer(const pl_engine *e, size_t *it, uint64_t since_ns, pl_peer_info *out);
/* Nobody wants to hear of the idle peer until then, a little later when many rest, or until there is application traffic:
 * PEER_STIRRED tells. Its pings and keepalives are no news, and some memory is given back. 0: it rests no more. PL_ENOENT. */
int pl_engine_rest(pl_engine *e, uint32_t node, uint64_t until_ns, uint64_t now_ns);

/* ---- streams ---- */
enum pl_owner { PL_OWNER_NONE = 0, PL_OWNER_APP, PL_OWNER_ECHO, PL_OWNER_CLIENT };

/* `client`: local client of a PL_OWNER_CLIENT port. `open_port`: strangers with a session may connect (trust gate off). */
int pl_engine_listen(pl_engine *e, uint16_t port, enum pl_owner owner, uint32_t client, bool open_port);
int pl_engine_unlisten(pl_engine *e, uint16_t port);
/* Starts a dial; the connection id (> 0) or an error. The result comes as CONN_OPEN or CONN_FAILED. The connection is parked
 * (owner NONE: bytes collect) until pl_engine_own. `client` is only echoed in events. */
int64_t pl_engine_dial(pl_engine *e, uint16_t local_net, uint16_t remote_net, uint32_t node, uint16_t port, uint32_t client, uint64_t timeout_ns, uint64_t now_ns);
/* Decides who moves the bytes from now on. Accepted connections arrive parked too. */
int pl_engine_own(pl_engine *e, uint32_t conn, enum pl_owner owner, uint32_t client, uint64_t now_ns);
int64_t pl_engine_write(pl_engine *e, uint32_t conn, const uint8_t *data, size_t len, uint64_t now_ns);
/* Copies out; bytes read, 0 at end of stream, PL_EAGAIN when nothing waits, PL_ESTATE after pl_engine_close, PL_ENOENT. */
int64_t pl_engine_read(pl_engine *e, uint32_t conn, uint8_t *buf, size_t cap, uint64_t now_ns);
int pl_engine_close(pl_engine *e, uint32_t conn, uint64_t now_ns);
int pl_engine_abort(pl_engine *e, uint32_t conn, uint64_t now_ns);
/* Bytes written to the stream and not yet acknowledged by the peer. */
int64_t pl_engine_unacked(const pl_engine *e, uint32_t conn);

typedef struct pl_conn_info {
  uint32_t id, node;
  uint16_t local_net, local_port, remote_net, remote_port;
  enum pl_owner owner;
  uint32_t client;
  pl_stream_info s;
} pl_conn_info;
int pl_engine_conn_info(const pl_engine *e, uint32_t conn, pl_conn_info *out);
bool pl_engine_next_conn(const pl_engine *e, size_t *it, pl_conn_info *out);

/* For the shell that lets threads wait: while a waiter is set, a connection of owner APP makes no READABLE / WRITABLE event; instead the
 * hook gets the waiter, once, and the slot is empty again. So it does when the connection ends or is closed. PL_ENOENT, PL_ESTATE (closed
 * here), PL_EEXIST (somebody waits for the same). A writer sets it after a short pl_engine_write. */
enum pl_wait { PL_WAIT_READ = 0, PL_WAIT_WRITE = 1 };
int pl_engine_wait(pl_engine *e, uint32_t conn, enum pl_wait what, void *waiter);
void pl_engine_unwait(pl_engine *e, uint32_t conn, enum pl_wait what, const void *waiter); /* nothing if it is not set */
/* The hook must not call the engine. */
void pl_engine_on_wake(pl_engine *e, void (*fn)(void *ctx, void *waiter), void *ctx);

/* For the shell that serves local clients: connections of owner CLIENT that became readable, writable, ended or died since last
 * asked. Returns a connection id or 0. */
uint32_t pl_engine_next_ready(pl_engine *e);
bool pl_engine_has_ready(const pl_engine *e);
typedef struct pl_client_conn {
  pl_stream *s;    /* for peek/consume/reserve/commit; after using it call pl_engine_touch */
  uint32_t client;
  bool accepted;   /* inbound and claimed: the client has to be told before anything else, if there is no tag yet */
  bool dead;       /* reset: the shell hands over what is buffered, then calls pl_engine_close */
  void **tag;      /* the shell's own record; NULL until it sets one */
} pl_client_conn;
/* False if there is no such connection or no local client owns it. */
bool pl_engine_client_conn(const pl_engine *e, uint32_t conn, pl_client_conn *out);
/* Hook: the connection stops being the client's (closed, forgotten, given to another owner), and `s` may be read for the last time.
 * Called only when a tag was set. Must not call the engine. */
void pl_engine_on_release(pl_engine *e, void (*fn)(void *ctx, uint32_t conn, pl_stream *s, void *tag), void *ctx);
/* Of a dial that has just begun: its answer is the shell's and not Python's. When it opens it is its client's at once and next_ready names it
 * (Python hears CLIENT_CONN); one that fails is told to the hook, which must not call the engine. PL_ENOENT, PL_ESTATE. */
int pl_engine_claim_dial(pl_engine *e, uint32_t conn);
/* Inbound streams of ports of owner CLIENT are their client's at once, named by next_ready, instead of ACCEPT events. */
void pl_engine_claim_accepts(pl_engine *e, bool claim);
void pl_engine_on_dial_failed(pl_engine *e, void (*fn)(void *ctx, uint32_t conn, uint32_t client), void *ctx);
/* Hook: a CLIENT_FRAME event left the queue; `len` is the size of its data. Must not call the engine. */
void pl_engine_on_taken(pl_engine *e, void (*fn)(void *ctx, uint32_t client, uint32_t len), void *ctx);
void pl_engine_touch(pl_engine *e, uint32_t conn);
/* All connections owned by a client are closed (reset = false) or forgotten by it; ports it listens on stay until unlisten. */
void pl_engine_client_gone(pl_engine *e, uint32_t client, uint64_t now_ns);

/* ---- datagrams ---- */
/* Source port 0: a fresh ephemeral one. Waits (bounded) for a session. PL_ELIMIT when the queue is full or len too large for
 * one UDP payload, PL_EFORMAT when empty. */
int pl_engine_send_datagram(pl_engine *e, uint16_t local_net, uint16_t src_port, uint16_t remote_net, uint32_t node, uint16_t port,
                            const uint8_t *data, size_t len, uint64_t now_ns);
/* Shell hook: every accepted datagram, before PL_EV_DATAGRAM (the local-client shell fans it out). */
void pl_engine_on_datagram(pl_engine *e, void (*fn)(void *ctx, const pl_packet *pkt), void *ctx);

/* ---- counters ---- */
typedef struct pl_engine_stats {
  uint64_t bytes_sent, bytes_recv, pkts_sent, pkts_recv; /* tunnel datagrams */
  uint64_t drop_short, drop_unknown, drop_plaintext, drop_no_session, drop_auth, drop_replay, drop_packet, drop_source,
      drop_beacon_source, drop_untrusted, drop_no_conn, drop_limit, drop_event;
  uint64_t syn_refused, syn_rate_limited, accept_queue_drops;
  uint64_t opened_ok, opened_fail; /* PILS frames */
  uint64_t opened_early; /* of opened_ok: came before the key, and counted in drop_no_session then */
  uint64_t opened_era1, drop_era1; /* of opened_ok; opened, but not of the peer that the frame named: reflected */
  uint32_t peers, sessions, conns, ports;
} pl_engine_stats;
void pl_engine_get_stats(const pl_engine *e, pl_engine_stats *out);
uint64_t pl_engine_opened(const pl_engine *e); /* opened_ok alone */

#endif
