/* Output of a local client: queued frames, and Recv frames written straight out of the receive buffers of streams. */
#include "local_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define FRAMES_PER_WRITE 16u

/* ---- queue ---- */

static uint8_t *room(pl_client *c, size_t n) {
  if (c->out_cap - c->out_tail < n) {
    size_t have = c->out_tail - c->out_head;
    if (c->out_head && c->out_cap - have >= n && c->out_head >= have) { /* moved at most once per byte */
      memmove(c->out, c->out + c->out_head, have);
    } else {
      size_t cap = c->out_cap ? c->out_cap : 4096;
      while (cap - have < n) cap *= 2;
      uint8_t *grown = malloc(cap);
      if (!grown) return NULL;
      if (have) memcpy(grown, c->out + c->out_head, have);
      free(c->out);
      c->out = grown;
      c->out_cap = cap;
    }
    c->out_head = 0;
    c->out_tail = have;
  }
  uint8_t *p = c->out + c->out_tail;
  c->out_tail += n;
  return p;
}

int pl_client_queue(pl_local *l, pl_client *c, uint8_t cmd, const uint8_t *p1, size_t n1, const uint8_t *p2, size_t n2, bool forced) {
  if (c->deaf || c->leaving) return PL_ENOENT;
  size_t waits = c->out_tail - c->out_head, n = 5 + n1 + n2;
  if (!forced && waits && (c->out_frames >= PL_OUT_FRAMES || waits + n > PL_OUT_BYTES)) return PL_ELIMIT;
  uint8_t *p = room(c, n);
  if (!p) return PL_ENOMEM;
  pl_put32(p, (uint32_t)(n - 4));
  p[4] = cmd;
  if (n1) memcpy(p + 5, p1, n1);
  if (n2) memcpy(p + 5 + n1, p2, n2);
  c->out_frames++;
  pl_client_no_wait(l, c);
  pl_local_work(l, c, false);
  return PL_OK;
}

/* `n` bytes of the queue were written: counts the frames that are through. */
static void queue_written(pl_client *c, size_t n) {
  while (n) {
    if (!c->out_left) c->out_left = 4 + (size_t)pl_get32(c->out + c->out_head);
    size_t k = n < c->out_left ? n : c->out_left;
    c->out_head += k;
    c->out_left -= k;
    n -= k;
    if (!c->out_left) c->out_frames--;
  }
  if (c->out_head < c->out_tail) return;
  c->out_head = c->out_tail = 0;
  if (c->out_cap > PL_STAGE_SIZE) {
    free(c->out);
    c->out = NULL;
    c->out_cap = 0;
  }
}

/* ---- connections in turn ---- */

static void append(pl_lconn *lc) {
  pl_client *c = lc->client;
  lc->queued = true;
  lc->next = NULL;
  lc->prev = c->push_tail;
  if (c->push_tail)
    c->push_tail->next = lc;
  else
    c->push_head = lc;
  c->push_tail = lc;
}

void pl_client_unpush(pl_lconn *lc) {
  if (!lc->queued) return;
  pl_client *c = lc->client;
  if (lc->prev)
    lc->prev->next = lc->next;
  else
    c->push_head = lc->next;
  if (lc->next)
    lc->next->prev = lc->prev;
  else
    c->push_tail = lc->prev;
  lc->queued = false;
}

void pl_client_push(pl_local *l, pl_lconn *lc) {
  if (!lc->queued) append(lc);
  pl_client_no_wait(l, lc->client);
  pl_local_work(l, lc->client, false);
}

void pl_client_detach(pl_lconn *lc, pl_stream *s) {
  pl_client *c = lc->client;
  pl_client_unpush(lc);
  if (c->recv_conn != lc) return;
  c->recv_conn = NULL;
  if (!c->recv_left || c->leaving) return;
  const uint8_t *p[2];
  size_t n[2];
  unsigned spans = pl_stream_peek(s, p, n);
  c->rest = malloc(c->recv_left);
  c->rest_off = 0;
  if (!c->rest || pl_stream_readable(s) < c->recv_left) { /* a frame that cannot be finished */
    c->broken = true;
    return;
  }
  size_t at = 0;
  for (unsigned i = 0; i < spans && at < c->recv_left; i++) {
    size_t k = n[i] < c->recv_left - at ? n[i] : c->recv_left - at;
    memcpy(c->rest + at, p[i], k);
    at += k;
  }
}

/* Nothing of `lc` waits any more: it rests, or goes if its stream has ended. */
static void drained(pl_local *l, pl_lconn *lc, const pl_client_conn *cc) {
  pl_client_unpush(lc);
  if (cc->dead || pl_stream_eof(cc->s)) pl_engine_close(l->e, lc->id, l->now_ns); /* queues CloseOK */
}

/* ---- writing ---- */

typedef struct recv_frame {
  pl_lconn *lc;
  uint32_t n; /* payload bytes */
  uint8_t head[PL_SEND_HEAD];
} recv_frame;

typedef struct batch {
  struct iovec iov[2 + 3 * FRAMES_PER_WRITE];
  unsigned n_iov, n_frames;
  recv_frame frames[FRAMES_PER_WRITE];
  size_t bytes, queued;
} batch;

static void add(batch *b, const void *p, size_t n) {
  if (!n) return;
  b->iov[b->n_iov++] = (struct iovec){(void *)(uintptr_t)p, n};
  b->bytes += n;
}

static void add_spans(batch *b, const pl_stream *s, size_t want) {
  const uint8_t *p[2];
  size_t n[2];
  unsigned spans = pl_stream_peek(s, p, n);
  for (unsigned i = 0; i < spans && want; i++) {
    size_t k = n[i] < want ? n[i] : want;
    add(b, p[i], k);
    want -= k;
  }
}

static void add_queue(batch *b, const pl_client *c) {
  b->queued = c->out_tail - c->out_head;
  add(b, c->out + c->out_head, b->queued);
}

/* Chooses the next Recv frames. Connections that turn out to have ended are closed, which queues frames: so this comes first. */
static void choose(pl_local *l, pl_client *c, batch *b) {
  size_t sum = 0;
  for (pl_lconn *lc = c->push_head, *next; lc && b->n_frames < FRAMES_PER_WRITE && sum < PL_RECV_CHUNK; lc = next) {
    next = lc->next;
    pl_client_conn cc;
    if (!pl_engine_client_conn(l->e, lc->id, &cc)) {
      pl_client_unpush(lc);
      continue;
    }
    size_t n = pl_stream_readable(cc.s);
    if (!n) {
      drained(l, lc, &cc);
      continue;
    }
    recv_frame *f = &b->frames[b->n_frames++];
    f->lc = lc;
    f->n = n < PL_RECV_CHUNK - sum ? (uint32_t)n : (uint32_t)(PL_RECV_CHUNK - sum);
    pl_put32(f->head, 5 + f->n);
    f->head[4] = PL_IPC_RECV;
    pl_put32(f->head + 5, lc->id);
    sum += f->n;
  }
}

/* `k` bytes of the payload of a connection's frame were written. `done`: the frame is complete. */
static void payload_written(pl_local *l, pl_lconn *lc, size_t k, bool done) {
  pl_client_conn cc;
  if (!pl_engine_client_conn(l->e, lc->id, &cc)) return;
  if (k) {
    pl_stream_consume(cc.s, k, l->now_ns);
    pl_engine_touch(l->e, lc->id);
  }
  if (!done) return;
  if (pl_stream_readable(cc.s)) {
    pl_client_unpush(lc);
    append(lc); /* the others first */
  } else {
    drained(l, lc, &cc);
  }
}

/* The frame in progress advances by what of `n` belongs to it; returns the rest of `n`. */
static size_t progress_written(pl_local *l, pl_client *c, size_t n) {
  size_t k = n < c->recv_head_left ? n : c->recv_head_left;
  c->recv_head_left -= (uint32_t)k;
  n -= k;
  k = n < c->recv_left ? n : c->recv_left;
  c->recv_left -= (uint32_t)k;
  bool done = !c->recv_head_left && !c->recv_left;
  if (c->rest) {
    c->rest_off += (uint32_t)k;
    if (done) {
      free(c->rest);
      c->rest = NULL;
    }
  } else if (c->recv_conn) {
    pl_lconn *lc = c->recv_conn;
    if (done) c->recv_conn = NULL;
    payload_written(l, lc, k, done);
  }
  return n - k;
}

static void begin_progress(pl_local *l, pl_client *c, const recv_frame *f, size_t n) {
  memcpy(c->recv_head, f->head, PL_SEND_HEAD);
  c->recv_head_left = PL_SEND_HEAD;
  c->recv_left = f->n;
  c->recv_conn = f->lc;
  progress_written(l, c, n);
}

static void written(pl_local *l, pl_client *c, batch *b, bool begun, size_t n) {
  if (begun) n = progress_written(l, c, n);
  size_t k = n < b->queued ? n : b->queued;
  queue_written(c, k);
  n -= k;
  for (unsigned i = 0; i < b->n_frames && n; i++) {
    recv_frame *f = &b->frames[i];
    size_t whole = PL_SEND_HEAD + (size_t)f->n;
    if (n < whole) {
      begin_progress(l, c, f, n);
      return;
    }
    payload_written(l, f->lc, f->n, true);
    n -= whole;
  }
}

/* The client does not take anything any more. What it sent is still read. */
static void give_up_writing(pl_client *c) {
  c->deaf = true;
  c->full = false;
  c->out_head = c->out_tail = c->out_left = 0;
  c->out_frames = 0;
  c->recv_head_left = c->recv_left = 0;
  c->recv_conn = NULL;
  free(c->rest);
  c->rest = NULL;
}

bool pl_client_has_output(const pl_client *c) {
  return !c->deaf && (c->recv_head_left || c->recv_left || c->out_head < c->out_tail || c->push_head);
}

/* ---- clients that do not read ---- */

void pl_client_unstall(pl_local *l, pl_client *c) {
  if (!c->stalled_ns) return;
  c->stalled_ns = 0;
  if (c->stall_prev)
    c->stall_prev->stall_next = c->stall_next;
  else
    l->stall_head = c->stall_next;
  if (c->stall_next)
    c->stall_next->stall_prev = c->stall_prev;
  else
    l->stall_tail = c->stall_prev;
}

static void stall(pl_local *l, pl_client *c) {
  pl_client_unstall(l, c);
  c->stalled_ns = l->now_ns | 1;
  c->stall_next = NULL;
  c->stall_prev = l->stall_tail;
  if (l->stall_tail)
    l->stall_tail->stall_next = c;
  else
    l->stall_head = c;
  l->stall_tail = c;
}

/* A deaf client's streams that have ended are let go; the others keep what they hold, and their windows close. */
static void drop_ended(pl_local *l, pl_client *c) {
  while (c->push_head) {
    pl_lconn *lc = c->push_head;
    pl_client_conn cc;
    pl_client_unpush(lc);
    if (pl_engine_client_conn(l->e, lc->id, &cc) && (cc.dead || pl_stream_eof(cc.s))) pl_engine_close(l->e, lc->id, l->now_ns);
  }
}

void pl_client_write(pl_local *l, pl_client *c) {
  if (l->patient == c) return; /* later */
  size_t sent = 0;
  bool progress = false;
  while (!c->full && !c->broken && !c->deaf && sent < PL_TURN_BYTES) {
    batch b;
    b.n_iov = b.n_frames = 0;
    b.bytes = b.queued = 0;
    bool begun = c->recv_head_left || c->recv_left;
    if (begun) {
      add(&b, c->recv_head + PL_SEND_HEAD - c->recv_head_left, c->recv_head_left);
      pl_client_conn cc;
      if (c->rest)
        add(&b, c->rest + c->rest_off, c->recv_left);
      else if (c->recv_conn && pl_engine_client_conn(l->e, c->recv_conn->id, &cc))
        add_spans(&b, cc.s, c->recv_left);
      add_queue(&b, c);
    } else {
      choose(l, c, &b);
      add_queue(&b, c);
      for (unsigned i = 0; i < b.n_frames; i++) {
        pl_client_conn cc;
        if (!pl_engine_client_conn(l->e, b.frames[i].lc->id, &cc)) continue;
        add(&b, b.frames[i].head, PL_SEND_HEAD);
        add_spans(&b, cc.s, b.frames[i].n);
      }
    }
    if (!b.bytes) break;
    struct msghdr h = {.msg_iov = b.iov, .msg_iovlen = b.n_iov};
    ssize_t n = sendmsg(c->fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == ENOMEM)
        c->full = true;
      else
        give_up_writing(c);
      break;
    }
    if ((size_t)n < b.bytes) c->full = true;
    progress = l->told = true;
    sent += (size_t)n;
    pl_local_spend(l, (size_t)n);
    written(l, c, &b, begun, (size_t)n);
  }
  if (c->deaf) drop_ended(l, c);
  if (!pl_client_has_output(c)) {
    pl_client_unstall(l, c);
  } else if (c->full) {
    if (progress || !c->stalled_ns) stall(l, c);
  } else {
    pl_local_work(l, c, false); /* its turn is over */
  }
}
