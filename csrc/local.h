/* Local clients: the Unix socket, IPC frames, and the bytes that flow between clients and streams (ipc.md 1 and 2).
 *
 * A shell beside the engine, driven by loop.c under its lock. Handled here, without Python: Send, Close, SendTo, dials to
 * peers that are there, and the pushes Accept, Recv, CloseOK, RecvFrom. Every other frame becomes a CLIENT_FRAME event.
 *
 * Stream bytes go from the socket into the stream's send buffer and from its receive buffer to the socket; nothing here stores
 * them. A client that sends faster than the tunnel is not read; one that reads slowly leaves its bytes in the stream, whose window
 * then closes. */
#ifndef PL_LOCAL_H
#define PL_LOCAL_H

#include "engine.h"

/* ipc.md 2; the others are Python's. */
enum {
  PL_IPC_DIAL = 0x03,
  PL_IPC_DIAL_OK = 0x04,
  PL_IPC_ACCEPT = 0x05,
  PL_IPC_SEND = 0x06,
  PL_IPC_RECV = 0x07,
  PL_IPC_CLOSE = 0x08,
  PL_IPC_CLOSE_OK = 0x09,
  PL_IPC_ERROR = 0x0a,
  PL_IPC_SEND_TO = 0x0b,
  PL_IPC_RECV_FROM = 0x0c,
};

typedef struct pl_local pl_local;

typedef struct pl_local_stats {
  uint64_t frames;         /* received, of any kind */
  uint64_t bad_frames;     /* oversized or malformed */
  uint64_t slow;           /* clients disconnected because they did not read, for too long or too many replies */
  uint64_t refused;        /* connections of other users, or beyond max_clients */
  uint64_t send_drops;     /* Send and SendTo frames that had nowhere to go */
  uint64_t datagram_drops; /* RecvFrom pushes that found a client's queue full */
  uint64_t dials;          /* answered without Python */
  uint32_t clients;
} pl_local_stats;

/* Registers its descriptors with `epoll_fd`; their epoll data is (kind << 32 | client), kind one of the two below. */
enum { PL_LOCAL_LISTEN = 1, PL_LOCAL_CLIENT = 2 };
pl_local *pl_local_new(pl_engine *e, int epoll_fd, uint32_t max_clients, uint64_t hash_seed);
/* Disconnects everybody; their connections are closed. */
void pl_local_free(pl_local *l, uint64_t now_ns);
/* Takes over a listening socket, also when it fails: PL_EEXIST if there is one already, PL_EIO with errno. */
int pl_local_serve(pl_local *l, int listen_fd);

void pl_local_on_accept(pl_local *l, uint64_t now_ns);
void pl_local_on_client(pl_local *l, uint32_t client, uint32_t epoll_events, uint64_t now_ns);
/* Moves what can be moved between streams and clients; call after engine input, commands and client events, before the flush. True if
 * clients were told something and said nothing. */
bool pl_local_pump(pl_local *l, uint64_t now_ns);
/* Whether the data thread waits awake, for an answer that is expected at once. Then what nobody waits for goes with what comes next: a Close
 * with the client's next word (it is often a dial), and the CloseOK that it asked for with the next frame it is sent. */
void pl_local_brisk(pl_local *l, bool brisk);
/* When pl_local_pump has to be called again at the latest; 0 = at once. */
uint64_t pl_local_deadline(const pl_local *l);

/* See pl_loop_client_send, pl_loop_client_close and pl_loop_attach. */
int pl_local_send(pl_local *l, uint32_t client, uint8_t cmd, const uint8_t *payload, uint32_t len);
int pl_local_close(pl_local *l, uint32_t client, uint64_t now_ns);
int pl_local_attach(pl_local *l, uint32_t conn, uint32_t client, uint64_t now_ns);
/* See pl_loop_serve_streams and pl_loop_dial_answered. */
void pl_local_serve_streams(pl_local *l, int32_t net);
int pl_local_dial_answered(pl_local *l, uint32_t client, uint64_t now_ns);
void pl_local_get_stats(const pl_local *l, pl_local_stats *out);

#endif
