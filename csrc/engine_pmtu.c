/* Path MTU discovery of the active path: datagram packetization layer discovery (RFC 8899) with padded pings.
 *
 * All rungs of the ladder above the confirmed size are probed at once, three rounds; the largest that comes back counts. A ping
 * is echoed at full size, so both directions are proved. Then quiet for ten minutes. */
#include "engine_internal.h"

/* UDP payload sizes: tunnels, PPPoE and IPv6 over Ethernet, Ethernet, one 4096-byte segment, jumbo frames, loopback. */
static const uint32_t ladder[] = {1392, 1452, 1472, PL_SEGMENT_PLAIN_MAX + 79, 8192 + 79, 8972, 16384 + 79, 32768 + 79, 65000};
#define RUNGS (sizeof ladder / sizeof ladder[0])
#define ROUNDS 3u
#define ROUND_NS (400 * PL_NS_PER_MS)
#define AGAIN_NS (600 * PL_NS_PER_S)

/* No use in proving more than a segment of the largest size needs. */
static uint32_t useful_max(const pl_engine *e, const pl_peer *p) {
  uint32_t seg = p->cur->caps.max_segment >= PL_SEGMENT_BASE ? p->cur->caps.max_segment : PL_SEGMENT_PLAIN_MAX;
  if (seg > e->cfg.max_segment) seg = e->cfg.max_segment;
  return seg + PL_PILS_OVERHEAD + PL_HDR_SIZE + PL_RELAY_HEAD;
}

void pl_pmtu_start(pl_engine *e, pl_peer *p) {
  p->pmtu.confirmed = PL_PMTU_BASE;
  p->pmtu.round = 1;
  p->pmtu.next_ns = e->now_ns;
  pl_peer_schedule(e, p);
}

void pl_pmtu_round(pl_engine *e, pl_peer *p) {
  if (!p->cur->proved) { /* probing an unproved peer could make us send large datagrams to a stranger */
    p->pmtu.next_ns = e->now_ns + 100 * PL_NS_PER_MS;
    return;
  }
  if (p->pmtu.round > ROUNDS) p->pmtu.round = 1; /* the ten minutes are over: look again for more */
  uint32_t top = useful_max(e, p);
  bool any = false;
  for (size_t i = 0; i < RUNGS; i++) {
    if (ladder[i] <= p->pmtu.confirmed || ladder[i] > top) continue;
    pl_peer_ping(e, p, p->cur, &p->path, p->relay, 0, ladder[i]);
    any = true;
  }
  p->pmtu.round++;
  p->pmtu.next_ns = e->now_ns + (any && p->pmtu.round <= ROUNDS ? ROUND_NS : AGAIN_NS);
}

void pl_pmtu_on_pong(pl_engine *e, pl_peer *p, uint32_t size) {
  if (size <= p->pmtu.confirmed) return;
  p->pmtu.confirmed = size;
  pl_peer_apply_mss(e, p);
  pl_event *ev = pl_event_push(e, PL_EV_PMTU, NULL, 0, false);
  if (!ev) return;
  ev->node = p->node;
  ev->a = pl_peer_mss(e, p);
}

/* Large segments stopped getting through (repeated timeouts): back to what always fits, look again later. */
void pl_pmtu_blackhole(pl_engine *e, pl_peer *p) {
  if (p->pmtu.confirmed <= PL_PMTU_BASE) return;
  p->pmtu.confirmed = PL_PMTU_BASE;
  p->pmtu.round = ROUNDS + 1;
  p->pmtu.next_ns = e->now_ns + AGAIN_NS;
  pl_peer_apply_mss(e, p);
  pl_peer_schedule(e, p);
}
