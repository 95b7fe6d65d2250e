/* UDP socket with segmentation offload (UDP_SEGMENT, UDP_GRO), recvmmsg/sendmmsg fallback, and a portable
 * recvfrom/sendto fallback. The only file that knows socket options. */
#ifndef PL_UDP_H
#define PL_UDP_H

#include "pl.h"
#include "tx.h"

typedef struct pl_udp {
  int fd;
  bool gso, gro;      /* in use; gso turns false by itself when the kernel or device refuses */
  bool v6;            /* dual-stack socket */
  pl_addr local;
  uint8_t *rx_arena;  /* owned */
  uint64_t send_calls, send_datagrams, send_errors, gso_fallbacks, recv_calls, recv_datagrams;
} pl_udp;

#define PL_UDP_BATCH 32u
typedef struct pl_rx {
  uint8_t *data;
  uint32_t len;
  uint32_t seg;  /* 0 = one datagram */
  pl_addr from;
} pl_rx;

/* Opens, binds, sets buffers and don't-fragment (path MTU probing mode). PL_EIO with errno. */
int pl_udp_open(pl_udp *u, const pl_addr *bind, uint32_t socket_buffer, bool gso, bool gro);
void pl_udp_close(pl_udp *u);
/* Fills up to PL_UDP_BATCH entries (each at most 64 KiB); the data is good until the next call. Number, or 0 when drained. */
int pl_udp_recv(pl_udp *u, pl_rx out[PL_UDP_BATCH]);
/* Sends all runs; never blocks longer than one POLLOUT wait of 1 ms, what the kernel then refuses is dropped and counted (the stream
 * engine repeats it). Datagrams larger than the interface allows (EMSGSIZE) are dropped and counted. */
void pl_udp_send(pl_udp *u, const pl_tx *tx);

/* Conversions for shells. sockaddr_storage of either family <-> pl_addr. */
struct sockaddr_storage;
int pl_addr_from_sockaddr(pl_addr *out, const void *sa);
unsigned pl_addr_to_sockaddr(const pl_addr *a, bool v6_socket, void *ss);

#endif
