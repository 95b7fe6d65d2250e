/* Packets and tunnel frame heads (transport.md 2, 3.1, 3.5.1). */
#include "wire.h"

enum { CRC_AT = 30 };

static size_t left(const uint8_t *p, const uint8_t *end) { return p < end ? (size_t)(end - p) : 0; }

int pl_packet_parse(const uint8_t *p, const uint8_t *end, bool crc_optional, pl_packet *out) {
  size_t n = left(p, end);
  if (n < PL_HDR_SIZE) return PL_ESHORT;
  uint16_t len = pl_get16(p + 2);
  if (n - PL_HDR_SIZE < len) return PL_ESHORT;
  uint32_t crc = pl_get32(p + CRC_AT);
  if (crc != 0 || !crc_optional) {
    uint8_t head[PL_HDR_SIZE] = {0};
    memcpy(head, p, CRC_AT);
    if (pl_crc32(pl_crc32(0, head, PL_HDR_SIZE), p + PL_HDR_SIZE, len) != crc) return PL_ECRC;
  }
  if (p[0] >> 4 != PL_VERSION) return PL_EFORMAT;
  *out = (pl_packet){
      .flags = p[0] & 0x0f,
      .proto = p[1],
      .len = len,
      .src_net = pl_get16(p + 4),
      .src_node = pl_get32(p + 6),
      .dst_net = pl_get16(p + 10),
      .dst_node = pl_get32(p + 12),
      .src_port = pl_get16(p + 16),
      .dst_port = pl_get16(p + 18),
      .seq = pl_get32(p + 20),
      .ack = pl_get32(p + 24),
      .window = pl_get16(p + 28),
      .crc = crc,
      .payload = p + PL_HDR_SIZE,
  };
  return PL_OK;
}

void pl_packet_write_header(uint8_t out[PL_HDR_SIZE], const pl_packet *pkt) {
  out[0] = (uint8_t)(PL_VERSION << 4 | (pkt->flags & 0x0f));
  out[1] = pkt->proto;
  pl_put16(out + 2, pkt->len);
  pl_put16(out + 4, pkt->src_net);
  pl_put32(out + 6, pkt->src_node);
  pl_put16(out + 10, pkt->dst_net);
  pl_put32(out + 12, pkt->dst_node);
  pl_put16(out + 16, pkt->src_port);
  pl_put16(out + 18, pkt->dst_port);
  pl_put32(out + 20, pkt->seq);
  pl_put32(out + 24, pkt->ack);
  pl_put16(out + 28, pkt->window);
  pl_put32(out + CRC_AT, 0);
}

void pl_packet_write_crc(uint8_t *packet, size_t len) { pl_put32(packet + CRC_AT, pl_crc32(0, packet, len)); }

enum pl_frame_kind pl_frame_classify(const uint8_t *p, const uint8_t *end) {
  size_t n = left(p, end);
  if (n == 0) return PL_FRAME_UNKNOWN;
  if (p[0] < 0x10) return PL_FRAME_BEACON;
  if (n < 4 || memcmp(p, "PIL", 3) != 0) return PL_FRAME_UNKNOWN;
  switch (p[3]) {
    case 'T': return PL_FRAME_PILT;
    case 'S': return PL_FRAME_PILS;
    case 'K': return PL_FRAME_PILK;
    case 'A': return PL_FRAME_PILA;
    case 'P': return PL_FRAME_PILP;
    default: return PL_FRAME_UNKNOWN;
  }
}

int pl_pils_parse(const uint8_t *p, const uint8_t *end, pl_pils *out) {
  size_t n = left(p, end);
  if (n < PL_PILS_OVERHEAD) return PL_ESHORT;
  if (memcmp(p, "PILS", 4) != 0) return PL_EFORMAT;
  *out = (pl_pils){
      .node = pl_get32(p + 4),
      .nonce = p + 8,
      .prefix = pl_get32(p + 8),
      .counter = pl_get64(p + 12),
      .body = p + PL_PILS_HEAD,
      .body_len = n - PL_PILS_HEAD,
  };
  return PL_OK;
}

void pl_pils_write_head(uint8_t out[PL_PILS_HEAD], uint32_t node, uint32_t prefix, uint64_t counter) {
  memcpy(out, "PILS", 4);
  pl_put32(out + 4, node);
  pl_put32(out + 8, prefix);
  pl_put64(out + 12, counter);
}
