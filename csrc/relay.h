/* The beacon's forwarding loop: discover, punch, relay (beacon.md sections 3 to 7). The decisions of policy (who may use it, peers, gossip timing)
 * belong to Python; packets stay here.
 *
 * pl_relay is sans-I/O: it takes a batch of received buffers and gives back a list of sends whose iovecs point into
 * those buffers (payloads are never copied or parsed). pl_relay_loop runs it on a socket in a native thread. */
#ifndef PL_RELAY_H
#define PL_RELAY_H

#include "pl.h"
#include "udp.h"
#include <sys/uio.h>

typedef struct pl_relay_cfg {
  uint32_t max_nodes;            /* 500000 */
  uint64_t node_ttl_ns;          /* 600 s; at least 180 s */
  uint64_t claim_ttl_ns;         /* 130 s: a different IP may take over an id only when its holder was silent this long */
  uint32_t punch_rate;           /* punch requests per second per (source IP, node): 5, burst 10 */
  uint64_t relay_bytes_per_s;    /* per sender node, token bucket with one second of burst; 0 = no limit */
  uint64_t hash_seed;
} pl_relay_cfg;
void pl_relay_cfg_default(pl_relay_cfg *cfg);

typedef struct pl_relay pl_relay;
pl_relay *pl_relay_new(const pl_relay_cfg *cfg, uint64_t now_ns);
void pl_relay_free(pl_relay *r);

/* One sendmsg: `seg` != 0 means the iovecs hold datagrams of `seg` bytes (last may be shorter), one datagram per iovec. */
typedef struct pl_relay_send {
  pl_addr to;
  struct iovec *iov;
  unsigned n_iov;
  uint32_t seg;
} pl_relay_send;

/* Handles a batch; replies and forwards are appended to the internal list, read it with pl_relay_sends until the next input. Rewrites heads in place. */
void pl_relay_input(pl_relay *r, pl_rx *batch, unsigned n, uint64_t now_ns);
unsigned pl_relay_sends(pl_relay *r, const pl_relay_send **out);
void pl_relay_expire(pl_relay *r, uint64_t now_ns); /* call about once a second; O(expired) amortised */

/* Peer beacons: addresses allowed to send 0x07 and forwarded 0x05; a 0x05 from one of them is never forwarded to another. */
void pl_relay_set_peers(pl_relay *r, const pl_addr *peers, unsigned n);
/* Local node ids for gossip; copies up to cap, returns the count. */
size_t pl_relay_nodes(const pl_relay *r, uint32_t *out, size_t cap);
bool pl_relay_lookup(const pl_relay *r, uint32_t node, pl_addr *out);
/* The registry vouches that `node` is at IP `addr` (port ignored): a claim from it is believed at once. family 0 = node unknown to the registry. */
int pl_relay_vouch(pl_relay *r, uint32_t node, const pl_addr *addr, uint64_t now_ns);

typedef struct pl_relay_stats {
  uint64_t discovers, punches, relayed, relayed_bytes, forwarded, not_found, spoofed, limited, bad, sync;
  uint32_t nodes, routes;
} pl_relay_stats;
void pl_relay_get_stats(const pl_relay *r, pl_relay_stats *out);

/* Threaded shell. Lock as in loop.h. */
typedef struct pl_relay_loop pl_relay_loop;
int pl_relay_loop_new(const pl_relay_cfg *cfg, const pl_addr *bind, uint32_t socket_buffer, pl_relay_loop **out);
int pl_relay_loop_start(pl_relay_loop *l);
void pl_relay_loop_stop(pl_relay_loop *l);
void pl_relay_loop_free(pl_relay_loop *l);
pl_relay *pl_relay_loop_lock(pl_relay_loop *l, uint64_t *now_ns);
void pl_relay_loop_unlock(pl_relay_loop *l);
void pl_relay_loop_local_addr(const pl_relay_loop *l, pl_addr *out);
/* Sends one datagram from the beacon socket (gossip, notify). */
int pl_relay_loop_send(pl_relay_loop *l, const pl_addr *to, const uint8_t *data, size_t len);

#endif
