/* What the parts of the local-client shell share.
 *
 *   local.c      the listening socket, clients coming and going, connections coming and going, pump
 *   local_in.c   from the socket: frames, Send bodies
 *   local_dial.c dials that are made here
 *   local_out.c  to the socket: queued frames, Recv frames out of streams
 *   local_later.c what may wait for what comes next
 *
 * Order on a client's socket: a frame once begun is finished; then queued frames; then Recv frames, connections taking turns. So
 * what was queued before pl_local_attach precedes the first Recv, and CloseOK, queued when a stream is empty, follows the last. */
#ifndef PL_LOCAL_INTERNAL_H
#define PL_LOCAL_INTERNAL_H

#include "local.h"
#include "map.h"
#include "wire.h"

#define PL_STAGE_SIZE 65536u        /* small frames are read this many bytes at a time */
#define PL_BULK_FRAME 16384u        /* Send bodies from this size are read straight into the stream */
#define PL_SEND_HEAD 9u             /* length, cmd, connection id: Send and Recv alike */
#define PL_RECV_CHUNK (256u * 1024u) /* largest Recv frame made */
#define PL_TURN_BYTES (1u << 20)    /* moved per client and direction before others get their turn */
#define PL_PUMP_BYTES (4u << 20)    /* moved in one pump: the tunnel has to be listened to as well */
#define PL_OUT_FRAMES 256u          /* queued toward a client ... */
#define PL_OUT_BYTES (4u << 20)
#define PL_REPLY_FRAMES 2048u       /* the same for replies of Python, which has as many requests under way as it likes to */
#define PL_OUT_DATAGRAM_BYTES (512u * 1024u) /* beyond, datagrams are not queued: peers make those */
#define PL_OUT_PAUSE 128u           /* from here on the client is not read: its requests make these frames */
#define PL_TAKEN_FRAMES 64u         /* requests that wait for Python, per client ... */
#define PL_TAKEN_BYTES (4u << 20)   /* ... before the client is not read any more */
#define PL_DIALS 4096u              /* connections and dials of a client; beyond, it is not read until some are answered */
#define PL_SLOW_NS (10 * PL_NS_PER_S)

struct pl_client;

/* A connection that a client owns: the tag of the engine's connection. */
typedef struct pl_lconn {
  uint32_t id;
  bool queued; /* in its client's push list */
  bool waiting; /* its dial has not been answered: nothing is pushed */
  struct pl_client *client;
  struct pl_lconn *next, *prev;           /* push list */
  struct pl_lconn *all_next, *all_prev;   /* all connections of the client */
} pl_lconn;

typedef struct pl_dial pl_dial;

typedef struct pl_client {
  uint32_t id;
  int fd;
  uint32_t armed;      /* epoll events asked for */
  bool registered;     /* with epoll */
  bool hup;            /* the other end is closed; what it sent may still have to be read */
  bool deaf;           /* it cannot be written to any more */
  bool full;           /* the last write did not take everything: wait for EPOLLOUT */
  bool broken;         /* to be disconnected by the next pump */
  bool leaving;        /* being disconnected: nothing is queued any more */
  struct pl_client *next, *prev;
  struct pl_client *work_next, *work_prev; /* work list of the pump */
  bool in_work;
  bool readable;       /* work: something may be readable or parsed */
  bool stopped;        /* was paused when last served */

  /* input */
  size_t turn_left;    /* of PL_TURN_BYTES */
  uint8_t *in;         /* stage: [in_head, in_tail) is unparsed */
  uint32_t in_cap, in_head, in_tail;
  uint32_t send_left;  /* bytes of the present Send frame not yet moved */
  uint32_t send_conn;  /* whose they are; 0 = nobody's, discard */
  bool blocked;        /* that stream has no room */
  bool bulk;           /* the last Send frame was a large one: heads are read alone */
  bool held;           /* a Close at the head of the stage was held back */
  uint32_t taken;      /* CLIENT_FRAME events in the queue, and their bytes */
  uint64_t taken_bytes;

  /* output */
  uint8_t *out;        /* queued frames: [out_head, out_tail) */
  size_t out_cap, out_head, out_tail;
  size_t out_left;     /* of the frame at out_head, 0 = none begun */
  uint32_t out_frames;
  pl_lconn *push_head, *push_tail;        /* connections with something to push, in turn */
  uint8_t recv_head[PL_SEND_HEAD];        /* the Recv frame in progress: its head, */
  uint32_t recv_head_left;                /* what is left of that, */
  uint32_t recv_left;                     /* what is left of its payload, */
  pl_lconn *recv_conn;                    /* and where that comes from: a stream, */
  uint8_t *rest;                          /* or the copy made when the stream went away */
  uint32_t rest_off;
  uint64_t stalled_ns;                    /* last progress while output waits; 0 = it does not wait */
  struct pl_client *stall_next, *stall_prev;

  pl_lconn *conns;
  uint32_t n_conns, n_dials;
  pl_dial *dials, *dials_tail;            /* asked for and not answered, in order */
} pl_client;

struct pl_local {
  pl_engine *e;
  int epoll_fd, listen_fd;
  uint64_t now_ns;
  uint64_t accept_at_ns;  /* accepting failed: tried again then; PL_NEVER = it is armed */
  uint32_t max_clients, next_id;
  size_t pump_left;       /* of PL_PUMP_BYTES */
  int32_t dial_net;       /* dials to addresses of this network may be made here; -1: none */
  pl_map clients;         /* id -> pl_client */
  pl_client *head;
  pl_client *work_head, *work_tail;
  pl_client *stall_head, *stall_tail; /* oldest first */
  bool told;                    /* a client was written to in this pump */

  /* local_later.c */
  bool brisk;
  pl_client *holder, *patient;  /* whose Close is held back, and whose CloseOK; one each, as a conversation has */
  uint64_t hold_ns, patient_ns; /* until when */
  pl_local_stats st;
};

/* ---- local.c ---- */
void pl_local_work(pl_local *l, pl_client *c, bool readable); /* the pump looks at the client */
bool pl_client_paused(const pl_client *c);                    /* must not be read now */
void pl_client_close_request(pl_local *l, pl_client *c, uint32_t conn);

static inline void pl_local_spend(pl_local *l, size_t n) { l->pump_left -= n < l->pump_left ? n : l->pump_left; }

/* ---- local_in.c ---- */
/* Reads and handles what is there, up to a turn. Sets `broken` when the client has to go. */
void pl_client_read(pl_local *l, pl_client *c);

/* Makes the frame a CLIENT_FRAME event. */
void pl_client_to_python(pl_local *l, pl_client *c, uint8_t cmd, const uint8_t *p, uint32_t len);

/* ---- local_dial.c ---- */
void pl_client_dial(pl_local *l, pl_client *c, const uint8_t *p, uint32_t len);
void pl_client_advance_dials(pl_local *l, pl_client *c);
/* A connection has become the client's. True if it was dialled here: then nothing is pushed before the answer. */
bool pl_client_dialed(pl_local *l, pl_lconn *lc);
void pl_client_dial_lost(pl_local *l, pl_client *c, uint32_t conn); /* it failed, or is gone before it was answered */
void pl_client_dial_answered(pl_local *l, pl_client *c);           /* by Python */
void pl_client_free_dials(pl_client *c);

/* ---- local_later.c ---- */
/* True: the Close at the head of the stage is not to be handled now. last: nothing stands behind it. */
bool pl_client_hold_close(pl_local *l, pl_client *c, bool last);
void pl_client_no_hold(pl_local *l, const pl_client *c); /* any more */
/* Before a CloseOK that the client asked for is queued: whether it may wait; and after it. */
bool pl_client_may_wait(const pl_local *l, const pl_client *c);
void pl_client_wait(pl_local *l, pl_client *c);
void pl_client_no_wait(pl_local *l, const pl_client *c); /* any more */
void pl_local_now_or_later(pl_local *l);                 /* what has waited long enough is work */
uint64_t pl_local_later_ns(const pl_local *l);           /* when something will have */

/* ---- local_out.c ---- */
/* Queues a complete frame from up to two parts. `forced`: not subject to the bounds. PL_OK, PL_ELIMIT, PL_ENOMEM. */
int pl_client_queue(pl_local *l, pl_client *c, uint8_t cmd, const uint8_t *p1, size_t n1, const uint8_t *p2, size_t n2, bool forced);
void pl_client_write(pl_local *l, pl_client *c);
bool pl_client_has_output(const pl_client *c);
void pl_client_push(pl_local *l, pl_lconn *lc);   /* the connection has something to push, or has ended */
void pl_client_unpush(pl_lconn *lc);
/* The connection goes: keeps what the Recv frame in progress still needs of it. */
void pl_client_detach(pl_lconn *lc, pl_stream *s);
void pl_client_unstall(pl_local *l, pl_client *c);

#endif
