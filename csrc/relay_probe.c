/* NAT probes (docs/wire-extensions.md 7.1): what the asker's NAT lets in, and how it maps, in the way of RFC 5780.
 *
 * The answer goes to the source of the question and nowhere else, carries its nonce, and all answers together are smaller than the question, so a
 * forged source gains nothing; questions are limited per address besides. Nothing is remembered. */
#include "relay_internal.h"

#include "wire.h"

#define NONCE_AT 2u
#define ENDPOINT_AT 10u

enum { FROM_ASKED = 0, FROM_OTHER_PORT = 1, FROM_OTHER_ADDRESS = 2 };

void pl_relay_set_probe(pl_relay *r, uint16_t observer_port, const pl_addr *alt) {
  r->observer_port = observer_port;
  r->alt = *alt;
}

static void answer(pl_relay *r, const pl_rx *rx, const uint8_t *question, enum pl_relay_socket socket, uint8_t what, const pl_addr *from,
                   const pl_addr *alt) {
  pl_relay_reply *a = &r->answers[r->n_answers];
  uint8_t *p = a->data;
  p[0] = PL_BEACON_PROBE_REPLY;
  p[1] = what;
  memcpy(p + NONCE_AT, question + NONCE_AT, ENDPOINT_AT - NONCE_AT);
  uint8_t *end = p + ENDPOINT_AT;
  end += pl_beacon_write_addr(end, &rx->from);
  pl_put16(end, r->observer_port);
  end += 2;
  if (alt)
    end += pl_beacon_write_addr(end, alt);
  else
    *end++ = 0;
  a->socket = socket;
  a->to = rx->from;
  a->from = *from;
  a->len = (uint32_t)(end - p);
  r->n_answers++;
}

static bool allowed(pl_relay *r, const pl_rx *rx, const uint8_t *p, uint32_t len) {
  if (len < PL_PROBE_SIZE || p[1] != 0 || rx->from.family == PL_ADDR_STREAM) {
    r->st.bad++;
    return false;
  }
  pl_addr ip = rx->from;
  ip.port = 0;
  if (ip.family == 6) memset(ip.ip + 8, 0, 8); /* a host owns a whole /64 */
  if (r->n_answers + 3 > PL_PROBE_SENDS || !pl_relay_allow(r->probe_ip, pl_relay_hash(r, &ip, 3), r->cfg.probe_rate, r->now_ns)) {
    r->st.limited++;
    return false;
  }
  r->st.probes++;
  return true;
}

/* The other address, as the asker can use it; NULL if there is none. */
static const pl_addr *other(const pl_relay *r, const pl_rx *rx) {
  bool usable = r->alt.family && r->alt.family == rx->from.family && memcmp(r->alt.ip, rx->local.ip, sizeof r->alt.ip) != 0;
  return usable ? &r->alt : NULL;
}

void pl_relay_on_probe(pl_relay *r, const pl_rx *rx, const uint8_t *p, uint32_t len) {
  if (r->observer_port == 0) {
    r->st.bad++;
    return;
  }
  if (!allowed(r, rx, p, len)) return;
  const pl_addr *alt = other(r, rx);
  answer(r, rx, p, PL_SOCK_QUIET, FROM_OTHER_PORT, &rx->local, alt);
  if (alt) answer(r, rx, p, PL_SOCK_QUIET_ALT, FROM_OTHER_ADDRESS, alt, alt);
  answer(r, rx, p, PL_SOCK_MAIN, FROM_ASKED, &rx->local, alt); /* last: who has it has had a chance of the others */
}

void pl_relay_observe(pl_relay *r, enum pl_relay_socket at, const pl_rx *batch, unsigned n, uint64_t now_ns) {
  if (now_ns > r->now_ns) r->now_ns = now_ns;
  r->n_answers = 0;
  for (unsigned i = 0; i < n; i++) {
    const pl_rx *rx = &batch[i];
    if (rx->seg || rx->data[0] != PL_BEACON_PROBE)
      r->st.bad++;
    else if (allowed(r, rx, rx->data, rx->len))
      answer(r, rx, rx->data, at, FROM_ASKED, &rx->local, other(r, rx));
  }
}

unsigned pl_relay_replies(const pl_relay *r, const pl_relay_reply **out) {
  *out = r->answers;
  return r->n_answers;
}
