/* Input of a local client: IPC frames. Bodies of large Send frames are read from the socket straight into the stream. */
#include "local_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#define NODE_BROADCAST 0xffffffffu

bool pl_client_paused(const pl_client *c) {
  return c->blocked || c->n_dials >= PL_DIALS || c->taken >= PL_TAKEN_FRAMES || c->taken_bytes >= PL_TAKEN_BYTES || c->out_frames >= PL_OUT_PAUSE;
}

/* ---- frames ---- */

static void on_close(pl_local *l, pl_client *c, const uint8_t *p, uint32_t len) {
  static const char text[] = "close: missing conn_id";
  static const uint8_t code[2] = {0, 1};
  if (len < 4) {
    l->st.bad_frames++;
    if (pl_client_queue(l, c, PL_IPC_ERROR, code, 2, (const uint8_t *)text, sizeof text - 1, true) == PL_ENOMEM) c->broken = true;
    return;
  }
  pl_client_close_request(l, c, pl_get32(p));
}

void pl_client_to_python(pl_local *l, pl_client *c, uint8_t cmd, const uint8_t *p, uint32_t len) {
  pl_event head = {.type = PL_EV_CLIENT_FRAME, .client = c->id, .a = cmd};
  if (pl_engine_post(l->e, &head, p, len) < 0) {
    c->broken = true; /* out of memory: a request without an answer would hang the client */
    return;
  }
  c->taken++;
  c->taken_bytes += len;
}

static void on_send_to(pl_local *l, pl_client *c, const uint8_t *p, uint32_t len) {
  if (len < 8) {
    l->st.bad_frames++;
    return;
  }
  uint16_t net = pl_get16(p);
  uint32_t node = pl_get32(p + 2);
  if (node == NODE_BROADCAST) { /* only the registry knows the members */
    pl_client_to_python(l, c, PL_IPC_SEND_TO, p, len);
    return;
  }
  if (pl_engine_send_datagram(l->e, net, 0, net, node, pl_get16(p + 6), p + 8, len - 8, l->now_ns) < 0) l->st.send_drops++;
}

static void on_frame(pl_local *l, pl_client *c, uint8_t cmd, const uint8_t *p, uint32_t len) {
  switch (cmd) {
    case PL_IPC_CLOSE:
      on_close(l, c, p, len);
      break;
    case PL_IPC_SEND_TO:
      on_send_to(l, c, p, len);
      break;
    case PL_IPC_DIAL:
      if (l->dial_net >= 0)
        pl_client_dial(l, c, p, len);
      else
        pl_client_to_python(l, c, cmd, p, len);
      break;
    default:
      pl_client_to_python(l, c, cmd, p, len);
  }
}

/* ---- Send bodies ---- */

/* The stream that takes the body, or NULL: then it is discarded. */
static pl_stream *send_stream(pl_local *l, pl_client *c) {
  pl_client_conn cc;
  if (!c->send_conn) return NULL;
  if (pl_engine_client_conn(l->e, c->send_conn, &cc) && cc.client == c->id && pl_stream_write(cc.s, NULL, 0) == 0) return cc.s;
  l->st.send_drops++;
  c->send_conn = 0;
  return NULL;
}

/* From the stage: copied. False when the stream is full. */
static bool body_from_stage(pl_local *l, pl_client *c) {
  uint32_t n = c->in_tail - c->in_head;
  if (n > c->send_left) n = c->send_left;
  if (!n) return true;
  pl_stream *s = send_stream(l, c);
  if (s) {
    int64_t w = pl_stream_write(s, c->in + c->in_head, n);
    if (w < 0) w = 0; /* send_stream has just said that it can be written */
    if (w) pl_engine_touch(l->e, c->send_conn);
    c->blocked = (uint32_t)w < n;
    n = (uint32_t)w;
  }
  c->in_head += n;
  c->send_left -= n;
  return !c->blocked;
}

static void begin_send(pl_client *c, uint32_t conn, uint32_t len) {
  c->send_conn = conn;
  c->send_left = len;
  c->bulk = conn && len >= PL_BULK_FRAME;
}

/* ---- stage ---- */

/* Makes the stage able to hold `n` bytes from in_head on. */
static bool stage_room(pl_client *c, size_t n) {
  uint32_t have = c->in_tail - c->in_head;
  if (n < PL_STAGE_SIZE) n = PL_STAGE_SIZE;
  if (n > c->in_cap) {
    uint8_t *grown = malloc(n);
    if (!grown) return false;
    if (have) memcpy(grown, c->in + c->in_head, have);
    free(c->in);
    c->in = grown;
    c->in_cap = (uint32_t)n;
  } else if (c->in_head) {
    memmove(c->in, c->in + c->in_head, have);
  }
  c->in_head = 0;
  c->in_tail = have;
  return true;
}

/* Handles what the stage holds until more bytes are needed or the client is paused. `*need`: size of the frame begun, 0 = unknown. */
static void parse(pl_local *l, pl_client *c, size_t *need) {
  *need = 0;
  while (!pl_client_paused(c) && !c->broken) {
    if (c->send_left) {
      if (!body_from_stage(l, c)) return;
      if (c->send_left) return;
      continue;
    }
    const uint8_t *p = c->in + c->in_head, *end = c->in + c->in_tail, *payload;
    size_t avail = (size_t)(end - p), size;
    uint32_t len;
    uint8_t cmd;
    if (!avail) return;
    int r = pl_ipc_parse(p, end, &cmd, &payload, &len, &size);
    if (r < 0) {
      l->st.bad_frames++;
      c->broken = true;
      return;
    }
    if (avail >= 5 && p[4] == PL_IPC_SEND && (r == 0 || size > 4)) {
      uint32_t length = pl_get32(p); /* counts cmd and connection id */
      if (length < 5) {
        if (r == 0) return;
        l->st.bad_frames++;
        c->in_head += (uint32_t)size;
        continue;
      }
      if (avail < PL_SEND_HEAD) return;
      l->st.frames++;
      c->in_head += PL_SEND_HEAD;
      uint32_t conn = pl_get32(p + 5);
      if (!conn) l->st.send_drops++;
      begin_send(c, conn, length - 5);
      continue;
    }
    if (r == 0) {
      if (avail >= 4) *need = 4 + (size_t)pl_get32(p);
      return;
    }
    if (cmd == PL_IPC_CLOSE && size > 4 && pl_client_hold_close(l, c, size == avail)) return;
    c->bulk = false;
    if (size > 4) { /* an empty frame is nothing */
      l->st.frames++;
      on_frame(l, c, cmd, payload, len);
    }
    c->in_head += (uint32_t)size;
  }
}

/* ---- reading ---- */

enum { READ_MORE, READ_STOP };

static int after_read(pl_client *c, ssize_t r) {
  if (r > 0) return READ_MORE;
  if (r < 0 && errno == EINTR) return READ_MORE;
  if (r < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return READ_STOP;
  c->broken = true; /* end of input or error */
  return READ_STOP;
}

/* The rest of a large body, and the head of the frame behind it. The stage is empty. */
static int read_body(pl_local *l, pl_client *c, pl_stream *s) {
  uint8_t *p;
  size_t room = pl_stream_reserve(s, c->send_left, &p);
  if (!room) {
    c->blocked = true;
    return READ_STOP;
  }
  struct iovec v[2] = {{p, room}, {c->in, PL_SEND_HEAD}};
  ssize_t r = readv(c->fd, v, room == c->send_left ? 2 : 1);
  if (r <= 0) return after_read(c, r);
  size_t k = (size_t)r < room ? (size_t)r : room;
  pl_stream_commit(s, k);
  pl_engine_touch(l->e, c->send_conn);
  c->send_left -= (uint32_t)k;
  c->in_tail = (uint32_t)((size_t)r - k);
  c->turn_left -= (size_t)r < c->turn_left ? (size_t)r : c->turn_left;
  pl_local_spend(l, (size_t)r);
  return READ_MORE;
}

static int read_stage(pl_local *l, pl_client *c, size_t need) {
  if (!stage_room(c, need)) {
    c->broken = true;
    return READ_STOP;
  }
  size_t want = c->bulk && !c->in_tail && !c->send_left ? PL_SEND_HEAD : c->in_cap - c->in_tail;
  ssize_t r = read(c->fd, c->in + c->in_tail, want);
  if (r <= 0) return after_read(c, r);
  c->in_tail += (uint32_t)r;
  c->turn_left -= (size_t)r < c->turn_left ? (size_t)r : c->turn_left;
  pl_local_spend(l, (size_t)r);
  return READ_MORE;
}

void pl_client_read(pl_local *l, pl_client *c) {
  size_t need;
  c->turn_left = PL_TURN_BYTES;
  for (;;) {
    parse(l, c, &need);
    if (c->broken || pl_client_paused(c) || !c->turn_left) return;
    if (c->in_head == c->in_tail) {
      c->in_head = c->in_tail = 0;
      if (c->in_cap > PL_STAGE_SIZE) { /* a large request is through */
        free(c->in);
        c->in = NULL;
        c->in_cap = 0;
      }
    }
    pl_stream *s = c->bulk && c->send_left && !c->in_tail && c->in ? send_stream(l, c) : NULL;
    int r = s ? read_body(l, c, s) : read_stage(l, c, need);
    if (r == READ_STOP) break;
  }
  if (!c->broken || !c->held) return;
  pl_client_no_hold(l, c);
  c->broken = false; /* the end of the input is behind what was held back */
  parse(l, c, &need);
  c->broken = true;
}
