/* Dials of local clients. One to a peer that is there is made here, without Python; every other one, and one that fails here, is a request like
 * any other. Clients tell replies apart by their code alone, so each client's dials are answered in the order in which it asked. */
#include "local_internal.h"

#include <stdlib.h>

#define DIAL_NS PL_NS_PER_S            /* then Python, who knows of other paths, tries */
#define FRESH_NS (45 * PL_NS_PER_S)    /* a peer that was heard within two keepalives is there */
#define DIAL_KEPT 16u                   /* of a request: what waits is bounded by the number of dials */
#define NODE_BROADCAST 0xffffffffu

enum dial_state {
  DIAL_PENDING, /* here */
  DIAL_OPEN,    /* here, to be answered */
  DIAL_HELD,    /* to be handed to Python, when what is ahead is answered or in its hands */
  DIAL_PYTHON,
};

struct pl_dial {
  struct pl_dial *next;
  uint32_t conn; /* of ours */
  enum dial_state state;
  uint32_t len;
  uint8_t request[];
};

static pl_dial *find(const pl_client *c, uint32_t conn) {
  pl_dial *d = c->dials;
  while (d && !(d->conn == conn && (d->state == DIAL_PENDING || d->state == DIAL_OPEN))) d = d->next;
  return d;
}

static void pop(pl_client *c) {
  pl_dial *d = c->dials;
  c->dials = d->next;
  if (!c->dials) c->dials_tail = NULL;
  c->n_dials--;
  free(d);
}

/* Starts it here if that can be done: a connection, or 0. */
static uint32_t start(pl_local *l, const pl_client *c, const uint8_t *p, uint32_t len) {
  if (len != 8 || c->n_conns + c->n_dials >= PL_DIALS) return 0;
  uint16_t net = pl_get16(p), port = pl_get16(p + 6);
  uint32_t node = pl_get32(p + 2);
  pl_peer_info info;
  if (net != l->dial_net || !node || node == NODE_BROADCAST || pl_engine_peer_info(l->e, node, &info) < 0) return 0;
  if (!info.session || !info.proved || !info.has_path || info.last_recv_ns + FRESH_NS < l->now_ns) return 0;
  int64_t conn = pl_engine_dial(l->e, net, net, node, port, c->id, DIAL_NS, l->now_ns);
  if (conn <= 0) return 0;
  if (pl_engine_claim_dial(l->e, (uint32_t)conn) == PL_OK) return (uint32_t)conn;
  pl_engine_abort(l->e, (uint32_t)conn, l->now_ns);
  return 0;
}

/* Answers what can be answered, and hands over what Python may answer next. */
void pl_client_advance_dials(pl_local *l, pl_client *c) {
  if (c->dials && c->dials->state == DIAL_OPEN) pl_local_work(l, c, false); /* it may be read again, or have to go */
  while (c->dials && c->dials->state == DIAL_OPEN) {
    uint8_t id[4];
    pl_client_conn cc;
    uint32_t conn = c->dials->conn;
    pop(c);
    pl_put32(id, conn);
    if (pl_client_queue(l, c, PL_IPC_DIAL_OK, id, 4, NULL, 0, true) == PL_ENOMEM) c->broken = true;
    l->st.dials++;
    if (!pl_engine_client_conn(l->e, conn, &cc) || !*cc.tag) continue;
    pl_lconn *lc = *cc.tag;
    lc->waiting = false;
    if (cc.dead || pl_stream_readable(cc.s) || pl_stream_eof(cc.s)) pl_client_push(l, lc);
  }
  for (pl_dial *d = c->dials; d && (d->state == DIAL_HELD || d->state == DIAL_PYTHON); d = d->next) {
    if (d->state == DIAL_PYTHON) continue;
    d->state = DIAL_PYTHON;
    pl_client_to_python(l, c, PL_IPC_DIAL, d->request, d->len);
  }
}

void pl_client_dial(pl_local *l, pl_client *c, const uint8_t *p, uint32_t len) {
  if (len > DIAL_KEPT) len = DIAL_KEPT; /* eight bytes mean something, and what follows nothing */
  pl_dial *d = malloc(sizeof *d + len);
  if (!d) {
    c->broken = true;
    return;
  }
  uint32_t conn = start(l, c, p, len);
  *d = (pl_dial){.conn = conn, .state = conn ? DIAL_PENDING : DIAL_HELD, .len = len};
  if (len) memcpy(d->request, p, len);
  if (c->dials_tail)
    c->dials_tail->next = d;
  else
    c->dials = d;
  c->dials_tail = d;
  c->n_dials++;
  pl_client_advance_dials(l, c);
}

bool pl_client_dialed(pl_local *l, pl_lconn *lc) {
  pl_dial *d = find(lc->client, lc->id);
  if (!d) return false;
  lc->waiting = true;
  d->state = DIAL_OPEN;
  pl_client_advance_dials(l, lc->client);
  return true;
}

void pl_client_dial_lost(pl_local *l, pl_client *c, uint32_t conn) {
  pl_dial *d = find(c, conn);
  if (!d) return;
  d->state = DIAL_HELD;
  pl_local_work(l, c, false);
}

void pl_client_dial_answered(pl_local *l, pl_client *c) {
  if (!c->dials || c->dials->state != DIAL_PYTHON) return;
  pop(c);
  pl_local_work(l, c, true); /* it may have been paused for the number of its dials */
}

void pl_client_free_dials(pl_client *c) {
  while (c->dials) pop(c);
}
