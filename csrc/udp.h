/* UDP socket with segmentation offload (UDP_SEGMENT, UDP_GRO), recvmmsg/sendmmsg fallback, and a portable
 * recvfrom/sendto fallback. The only file that knows socket options. */
#ifndef PL_UDP_H
#define PL_UDP_H

#include "pl.h"
#include "tx.h"
#include <sys/uio.h>

typedef struct pl_udp {
  int fd;
  bool gso, gro;      /* in use; gso turns false by itself when the kernel or device refuses, and is tried again later */
  bool v6;            /* dual-stack socket */
  bool more;          /* the last pl_udp_recv took all it could: more may be waiting */
  pl_addr local;
  uint8_t *rx_arena;  /* owned */
  uint64_t send_calls, send_datagrams, send_errors, gso_fallbacks, recv_calls, recv_datagrams;
  uint64_t send_too_big;        /* of send_errors: larger than the interface allows */
  unsigned rx_want;             /* buffers offered to the next receive call */
  uint32_t gso_pause, gso_skip; /* after a refusal: trains to send without, and how many are left of them */
} pl_udp;

#define PL_UDP_BATCH 32u
typedef struct pl_rx {
  uint8_t *data;
  uint32_t len;
  uint32_t seg;  /* 0 = one datagram */
  pl_addr from;
  pl_addr local; /* address it was sent to; family 0 unless pl_udp_relay_mode was called */
} pl_rx;

/* One send: datagrams to one destination. Either one iovec, cut every `seg` bytes (the last datagram may be shorter; 0 = not
 * cut), or one iovec per datagram, each of `seg` bytes but the last. At most PL_TX_RUN_SEGS datagrams, PL_TX_RUN_BYTES bytes when
 * there is more than one. */
typedef struct pl_udp_msg {
  pl_addr to;
  pl_addr from;  /* local address to send from, port ignored; family 0: the kernel chooses */
  struct iovec *iov;
  unsigned n_iov;
  uint32_t seg;
} pl_udp_msg;

/* Opens, binds, sets buffers and don't-fragment (path MTU probing mode). PL_EIO with errno. */
int pl_udp_open(pl_udp *u, const pl_addr *bind, uint32_t socket_buffer, bool gso, bool gro);
void pl_udp_close(pl_udp *u);
/* Fills up to PL_UDP_BATCH entries (each at most 64 KiB); the data is good until the next call. Number, or 0 when drained. */
int pl_udp_recv(pl_udp *u, pl_rx out[PL_UDP_BATCH]);
/* Sends all runs. A full socket buffer is waited for, 1 ms at a time, at most four times and only as long as each wait lets something out; what
 * the kernel then refuses is dropped and counted (the stream engine repeats it). Datagrams larger than the interface allows
 * (EMSGSIZE) are dropped and counted. */
void pl_udp_send(pl_udp *u, const pl_tx *tx);
void pl_udp_sendv(pl_udp *u, const pl_udp_msg *msgs, unsigned n);
/* One datagram at once, from any thread: touches no counters. `from` may be NULL. PL_OK or PL_EIO with errno. */
int pl_udp_send_one(const pl_udp *u, const pl_addr *to, const pl_addr *from, const uint8_t *data, size_t len);
/* For a beacon: received buffers tell the local address they were sent to, and what is sent may be fragmented (beacon.md 1, 3.5). */
void pl_udp_relay_mode(pl_udp *u);

/* Conversions for shells. sockaddr_storage of either family <-> pl_addr. */
struct sockaddr_storage;
int pl_addr_from_sockaddr(pl_addr *out, const void *sa);
/* Length of the sockaddr, or 0 if the family cannot be expressed on such a socket. */
unsigned pl_addr_to_sockaddr(const pl_addr *a, bool v6_socket, void *ss);

#endif
