/* The data thread: tunnel socket, engine, local clients, timers, one lock.
 *
 * Threads: the data thread waits in epoll; it takes the lock for each batch (drain socket, engine input, serve clients, flush) and
 * releases it before waiting. Any other thread may lock, call pl_engine_* / pl_local_*, and unlock; unlock flushes, and wakes the data thread if
 * its deadline moved. Events wait in the engine's queue; an eventfd becomes readable when the queue goes from empty to
 * non-empty. */
#ifndef PL_LOOP_H
#define PL_LOOP_H

#include "engine.h"

typedef struct pl_loop pl_loop;

typedef struct pl_loop_cfg {
  pl_engine_cfg engine;
  pl_addr bind;            /* tunnel socket; port 0 = any */
  int local_listen_fd;     /* listening Unix socket, non-blocking, or -1; the loop owns it from now on */
  uint32_t max_clients;    /* 1024 */
  uint32_t socket_buffer;  /* SO_RCVBUF / SO_SNDBUF asked for, bytes; 8 MiB */
  uint32_t spin_us;        /* the longest that a conversation of small messages is waited for without sleep; 0 = never, at most 1000 */
  bool use_gso, use_gro;   /* false: sendmmsg / recvmmsg without offload */
} pl_loop_cfg;
void pl_loop_cfg_default(pl_loop_cfg *cfg);

/* Opens the socket; PL_OK and *out, or PL_EIO with errno. The thread is not started. */
int pl_loop_new(const pl_loop_cfg *cfg, pl_loop **out);
int pl_loop_start(pl_loop *l);
/* Adds the listening Unix socket later (the daemon opens it once it is registered). The loop owns fd, also when it fails: PL_EEXIST if
 * there is one already, PL_EIO with errno, PL_ESTATE after stop. */
int pl_loop_serve(pl_loop *l, int listen_fd);
/* Stops and joins the thread and closes everything: clients, streams (FIN once where all was acknowledged, RST where bytes are
 * under way), sockets. Commands and events still work afterwards; nothing is sent. */
void pl_loop_stop(pl_loop *l);
void pl_loop_free(pl_loop *l);

pl_engine *pl_loop_lock(pl_loop *l, uint64_t *now_ns);
void pl_loop_unlock(pl_loop *l);
int pl_loop_event_fd(const pl_loop *l);   /* owned by the loop; read it to clear, then drain events until NULL */
void pl_loop_local_addr(const pl_loop *l, pl_addr *out);

/* ---- local clients (ipc.md). Call with the lock held. ---- */
/* Queues one complete IPC frame (length, cmd, payload are written here). PL_ENOENT, PL_EFORMAT (over 1 MiB), PL_ELIMIT (client
 * reads too slowly; it will be disconnected after 10 s). */
int pl_loop_client_send(pl_loop *l, uint32_t client, uint8_t cmd, const uint8_t *payload, uint32_t len);
int pl_loop_client_close(pl_loop *l, uint32_t client);
/* Hands a connection to a client: its bytes flow as Recv frames from now on, after frames queued before. */
int pl_loop_attach(pl_loop *l, uint32_t conn, uint32_t client);
/* Streams come to clients without Python from now on: inbound ones of their ports, and dials to addresses of network `net` whose peer is there;
 * -1: none do. Then Python says of every Dial request that it was given when it has answered it, whatever the answer. */
int pl_loop_serve_streams(pl_loop *l, int32_t net);
int pl_loop_dial_answered(pl_loop *l, uint32_t client);

typedef struct pl_loop_stats {
  uint64_t recv_calls, recv_datagrams, send_calls, send_datagrams, send_errors, gso_fallbacks, wakeups;
  uint64_t client_frames, client_bad_frames;
  uint64_t client_dials;          /* answered without Python */
  uint64_t client_slow;           /* disconnected: did not read for 10 s while output waited */
  uint64_t client_refused;        /* another user's, or beyond max_clients */
  uint64_t client_send_drops;     /* Send and SendTo frames with nowhere to go */
  uint64_t client_datagram_drops; /* RecvFrom pushes that found a client's queue full */
  uint32_t clients;
  bool gso, gro;
} pl_loop_stats;
void pl_loop_get_stats(pl_loop *l, pl_loop_stats *out);

#endif
