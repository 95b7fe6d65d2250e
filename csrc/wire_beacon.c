/* Beacon messages (beacon.md 1.1, 2, 3) and the head of local IPC frames (ipc.md 1). */
#include "wire.h"

static size_t left(const uint8_t *p, const uint8_t *end) { return p < end ? (size_t)(end - p) : 0; }

static bool is_v4_mapped(const uint8_t ip[16]) {
  static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
  return memcmp(ip, prefix, sizeof prefix) == 0;
}

/* The fields of one type: how many bytes, and how many of them are the two node numbers. */
static size_t fixed_size(uint8_t type) {
  switch (type) {
    case PL_BEACON_DISCOVER:
    case PL_BEACON_DISCOVER_DST:
    case PL_BEACON_DELIVER: return 5;
    case PL_BEACON_PUNCH_REQUEST:
    case PL_BEACON_RELAY:
    case PL_BEACON_DELIVER_DST: return 9;
    case PL_BEACON_SYNC: return 7;
    case PL_BEACON_NOTIFY: return 2;
    case PL_BEACON_DISCOVER_REPLY:
    case PL_BEACON_PUNCH_COMMAND: return 2; /* up to the address length, which says how much follows */
    default: return 0;
  }
}

static int parse_endpoint(const uint8_t *p, size_t n, pl_beacon_msg *out) {
  size_t ip = p[1];
  if (ip != 4 && ip != 16) return PL_EFORMAT;
  if (n < 2 + ip + 2) return PL_ESHORT;
  pl_addr *a = &out->endpoint;
  a->port = pl_get16(p + 2 + ip);
  if (ip == 16 && !is_v4_mapped(p + 2)) {
    a->family = 6;
    memcpy(a->ip, p + 2, 16);
  } else {
    a->family = 4;
    memcpy(a->ip, p + 2 + ip - 4, 4);
  }
  out->body = p + 2 + ip + 2;
  out->body_len = n - (2 + ip + 2);
  return PL_OK;
}

int pl_beacon_parse(const uint8_t *p, const uint8_t *end, pl_beacon_msg *out) {
  size_t n = left(p, end);
  if (n == 0) return PL_ESHORT;
  size_t fixed = fixed_size(p[0]);
  if (fixed == 0) return PL_EFORMAT;
  if (n < fixed) return PL_ESHORT;
  memset(out, 0, sizeof *out);
  out->type = p[0];
  out->body = p + fixed;
  out->body_len = n - fixed;
  switch (p[0]) {
    case PL_BEACON_DISCOVER_REPLY:
    case PL_BEACON_PUNCH_COMMAND: return parse_endpoint(p, n, out);
    case PL_BEACON_NOTIFY: out->kind = p[1]; return PL_OK;
    case PL_BEACON_SYNC:
      out->node = pl_get32(p + 1);
      out->count = pl_get16(p + 5);
      if (out->body_len < 4 * (size_t)out->count) return PL_ESHORT;
      out->body_len = 4 * (size_t)out->count;
      return PL_OK;
    default:
      out->node = pl_get32(p + 1);
      if (fixed == 9) out->target = pl_get32(p + 5);
      return PL_OK;
  }
}

int pl_beacon_write_endpoint(uint8_t *out, uint8_t type, const pl_addr *a) {
  if (a->family != 4 && a->family != 6) return PL_EFORMAT;
  uint8_t ip = a->family == 4 ? 4 : 16;
  out[0] = type;
  out[1] = ip;
  memcpy(out + 2, a->ip, ip);
  pl_put16(out + 2 + ip, a->port);
  return 2 + ip + 2;
}

int pl_ipc_parse(const uint8_t *p, const uint8_t *end, uint8_t *cmd, const uint8_t **payload, uint32_t *len, size_t *size) {
  size_t n = left(p, end);
  if (n < 4) return 0;
  uint32_t body = pl_get32(p);
  if (body > PL_IPC_MAX) return PL_EFORMAT;
  if (n - 4 < body) return 0;
  *size = 4 + (size_t)body;
  *cmd = body ? p[4] : 0;
  *payload = body ? p + 5 : p + 4;
  *len = body ? body - 1 : 0;
  return 1;
}
