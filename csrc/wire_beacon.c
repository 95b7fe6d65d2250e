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

int pl_beacon_read_addr(const uint8_t *p, const uint8_t *end, pl_addr *a) {
  size_t n = left(p, end);
  if (n == 0) return PL_ESHORT;
  size_t ip = p[0];
  if (ip != 4 && ip != 16) return PL_EFORMAT;
  if (n < 1 + ip + 2) return PL_ESHORT;
  memset(a, 0, sizeof *a);
  a->port = pl_get16(p + 1 + ip);
  if (ip == 16 && !is_v4_mapped(p + 1)) {
    a->family = 6;
    memcpy(a->ip, p + 1, 16);
  } else {
    a->family = 4;
    memcpy(a->ip, p + 1 + ip - 4, 4);
  }
  return (int)(1 + ip + 2);
}

static int parse_endpoint(const uint8_t *p, const uint8_t *end, pl_beacon_msg *out) {
  int len = pl_beacon_read_addr(p + 1, end, &out->endpoint);
  if (len < 0) return len;
  out->body = p + 1 + len;
  out->body_len = left(out->body, end);
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
    case PL_BEACON_PUNCH_COMMAND: return parse_endpoint(p, end, out);
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

int pl_beacon_write_addr(uint8_t *out, const pl_addr *a) {
  if (a->family != 4 && a->family != 6) return PL_EFORMAT;
  uint8_t ip = a->family == 4 ? 4 : 16;
  out[0] = ip;
  memcpy(out + 1, a->ip, ip);
  pl_put16(out + 1 + ip, a->port);
  return 1 + ip + 2;
}

int pl_beacon_write_endpoint(uint8_t *out, uint8_t type, const pl_addr *a) {
  int len = pl_beacon_write_addr(out + 1, a);
  if (len < 0) return len;
  out[0] = type;
  return 1 + len;
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
