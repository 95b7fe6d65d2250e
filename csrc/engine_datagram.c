/* Datagrams (transport.md 5.1) and the trust gate (4.2). */
#include "engine_internal.h"

#include <stdlib.h>

#define PORT_HANDSHAKE 444u
#define PORT_DATA_EXCHANGE 1001u

/* Private nodes listen only to peers they trust; for five minutes after a dial the dialled peer may answer on the ports that
 * carry its handshake and its files. */
bool pl_trust_gate(const pl_engine *e, const pl_peer *p, uint16_t port, bool open_port) {
  if (e->is_public || p->trusted || open_port) return true;
  bool reply = port == PORT_HANDSHAKE || port == PORT_DATA_EXCHANGE;
  return reply && p->last_dial_ns && e->now_ns - p->last_dial_ns < PL_REPLY_WINDOW_NS;
}

static int send_now(pl_engine *e, pl_peer *p, uint16_t local_net, uint16_t src_port, uint16_t remote_net, uint16_t port,
                    const uint8_t *data, size_t len) {
  pl_packet pkt = {.proto = PL_PROTO_DATAGRAM, .src_net = local_net, .src_node = e->node, .dst_net = remote_net,
                   .dst_node = p->node, .src_port = src_port, .dst_port = port, .len = (uint16_t)len};
  pl_peer_active(e, p);
  return pl_session_send_active(e, p, &pkt, data, len);
}

int pl_engine_send_datagram(pl_engine *e, uint16_t local_net, uint16_t src_port, uint16_t remote_net, uint32_t node,
                            uint16_t port, const uint8_t *data, size_t len, uint64_t now_ns) {
  if (now_ns > e->now_ns) e->now_ns = now_ns;
  if (len == 0) return PL_EFORMAT;
  if (len > PL_UDP_MAX - PL_PILS_OVERHEAD - PL_HDR_SIZE - PL_RELAY_HEAD) return PL_ELIMIT;
  if (!e->node) return PL_ESTATE;
  pl_peer *p = pl_peer_get(e, node);
  if (!p) return node == 0 || node == e->node ? PL_ENOENT : PL_ELIMIT;
  if (src_port == 0) src_port = pl_conn_ephemeral(e, node, port);
  p->last_dial_ns = e->now_ns;
  if (pl_peer_certain(p)) return send_now(e, p, local_net, src_port, remote_net, port, data, len);
  if (p->n_dgrams >= e->cfg.datagram_queue || e->dgram_wait_bytes > PL_DATAGRAM_WAIT) return PL_ELIMIT;
  pl_dgram *d = malloc(sizeof *d + len);
  if (!d) return PL_ENOMEM;
  *d = (pl_dgram){.local_net = local_net, .src_port = src_port, .remote_net = remote_net, .dst_port = port, .len = (uint32_t)len};
  memcpy(d->data, data, len);
  if (p->dgram_tail)
    p->dgram_tail->next = d;
  else
    p->dgram_head = d;
  p->dgram_tail = d;
  p->n_dgrams++;
  e->dgram_wait_bytes += sizeof *d + len;
  pl_peer_active(e, p);
  pl_peer_want(e, p);
  return PL_OK;
}

void pl_datagram_flush(pl_engine *e, pl_peer *p) {
  while (p->dgram_head) {
    pl_dgram *d = p->dgram_head;
    p->dgram_head = d->next;
    send_now(e, p, d->local_net, d->src_port, d->remote_net, d->dst_port, d->data, d->len);
    e->dgram_wait_bytes -= sizeof *d + d->len;
    free(d);
  }
  p->dgram_tail = NULL;
  p->n_dgrams = 0;
}

void pl_datagram_drop_all(pl_engine *e, pl_peer *p) {
  while (p->dgram_head) {
    pl_dgram *d = p->dgram_head;
    p->dgram_head = d->next;
    e->dgram_wait_bytes -= sizeof *d + d->len;
    free(d);
  }
  p->dgram_tail = NULL;
  p->n_dgrams = 0;
}

void pl_engine_on_datagram(pl_engine *e, void (*fn)(void *, const pl_packet *), void *ctx) {
  e->dgram_fn = fn;
  e->dgram_ctx = ctx;
}

void pl_datagram_on_packet(pl_engine *e, pl_peer *p, const pl_packet *pkt) {
  if (pkt->len == 0) {
    e->st.drop_packet++;
    return;
  }
  const pl_port *port = pl_map_get(&e->ports, pkt->dst_port);
  if (!pl_trust_gate(e, p, pkt->dst_port, port && port->open_port)) {
    e->st.drop_untrusted++;
    return;
  }
  if (e->dgram_fn) e->dgram_fn(e->dgram_ctx, pkt);
  if (!port || port->owner != PL_OWNER_APP) return;
  if (e->dgram_event_bytes > PL_DATAGRAM_BYTES) {
    e->st.drop_event++;
    return;
  }
  pl_event *ev = pl_event_push(e, PL_EV_DATAGRAM, pkt->payload, pkt->len, false);
  if (!ev) return;
  e->dgram_event_bytes += sizeof *ev + ev->len;
  ev->node = pkt->src_node;
  ev->remote_net = pkt->src_net;
  ev->remote_port = pkt->src_port;
  ev->local_net = pkt->dst_net;
  ev->local_port = pkt->dst_port;
}
