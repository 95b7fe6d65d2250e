/* The wire formats against recorded bytes, and against every cut and change of them. Inputs lie in memory of exactly their size. */
#include "check.h"
#include "vectors.h"
#include "wire.h"

static int parse(const uint8_t *p, size_t n, bool optional, pl_packet *out) { return pl_packet_parse(p, p + n, optional, out); }

static void packet_vector_ok(const packet_vector *v) {
  size_t n, np;
  uint8_t *wire = check_hex(v->hex, &n), *payload = check_hex(v->payload, &np);
  pl_packet k;
  CHECK(parse(wire, n, false, &k) == PL_OK);
  CHECK(k.flags == v->flags && k.proto == v->proto && k.src_net == v->src_net && k.dst_net == v->dst_net);
  CHECK(k.src_node == v->src_node && k.dst_node == v->dst_node && k.src_port == v->src_port && k.dst_port == v->dst_port);
  CHECK(k.seq == v->seq && k.ack == v->ack && k.window == v->window && k.crc == v->crc);
  CHECK(k.len == np && k.payload == wire + PL_HDR_SIZE && !memcmp(k.payload, payload, np));
  uint8_t *out = malloc(n);
  k.flags |= 0xf0; /* only four bits go out */
  pl_packet_write_header(out, &k);
  memcpy(out + PL_HDR_SIZE, payload, np);
  CHECK(pl_get32(out + 30) == 0);
  CHECK(parse(out, n, false, &k) == PL_ECRC && parse(out, n, true, &k) == PL_OK && k.crc == 0);
  pl_packet_write_crc(out, n);
  CHECK(!memcmp(out, wire, n));
  for (size_t cut = 0; cut < n; cut++) { /* every shorter input is short, whatever it says */
    uint8_t *part = check_copy(wire, cut);
    CHECK(parse(part, cut, false, &k) == PL_ESHORT);
    free(part);
  }
  for (size_t bit = 0; bit < n * 8; bit++) {
    wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
    CHECK(parse(wire, n, false, &k) < 0);
    CHECK(parse(wire, n, true, &k) < 0 || pl_get32(wire + 30) == 0);
    wire[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  free(wire);
  free(payload);
  free(out);
}

static void large_segment(size_t len, uint32_t crc, uint64_t seed) {
  size_t n = PL_HDR_SIZE + len;
  uint8_t *p = malloc(n);
  pl_packet k = {.flags = PL_FLAG_ACK, .proto = PL_PROTO_STREAM, .src_node = 1, .dst_node = 2, .src_port = 49152, .dst_port = 1001,
                 .seq = 1, .ack = 1, .window = 512, .len = (uint16_t)len};
  pl_packet_write_header(p, &k);
  for (size_t i = 0; i < len; i++) p[PL_HDR_SIZE + i] = (uint8_t)i;
  pl_packet_write_crc(p, n);
  CHECK(pl_get32(p + 30) == crc);
  CHECK(parse(p, n, false, &k) == PL_OK && k.len == len);
  for (unsigned i = 0; i < 2000; i++) { /* no single bit goes unnoticed */
    size_t bit = check_u64(&seed) % (n * 8);
    p[bit / 8] ^= (uint8_t)(1u << bit % 8);
    CHECK(parse(p, n, false, &k) < 0);
    p[bit / 8] ^= (uint8_t)(1u << bit % 8);
  }
  free(p);
}

static void packet_rules(void) {
  static const struct {
    const char *hex;
    int result;
  } v[] = {
      {"", PL_ESHORT},
      {"11010000000000000001000000000002c00003e800000000000000000200145ed8", PL_ESHORT},
      {"12010005000000000001000000000002c00003e8000000010000000101f65ee872c868656c6c", PL_ESHORT},
      {"12010005000000000001000000000002c00003e8000000010000000101f65ee872c868656d6c6f", PL_ECRC},
      {"12010005000000000001000000000002c00003e8000000010000000101f65ee872c968656c6c6f", PL_ECRC},
      {"12010005000000000001000000000002c00003e8000000010000000101f65ee872c868656c6c6f010203", PL_OK}, /* rest ignored */
      {"02010005000000000001000000000002c00003e8000000010000000101f66d5eddde68656c6c6f", PL_EFORMAT}, /* version 0 */
      {"22010005000000000001000000000002c00003e8000000010000000101f60a3383f268656c6c6f", PL_EFORMAT}, /* version 2 */
      {"10090001000000000001000000000002000100020000000000000000000077c6728678", PL_OK}, /* unknown protocol */
  };
  pl_packet k;
  for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
    size_t n;
    uint8_t *p = check_hex(v[i].hex, &n);
    CHECK(parse(p, n, false, &k) == v[i].result);
    free(p);
  }
  CHECK(pl_packet_parse(NULL, NULL, false, &k) == PL_ESHORT);
}

static void frames(void) {
  static const struct {
    const char *hex;
    enum pl_frame_kind kind;
  } v[] = {{"", PL_FRAME_UNKNOWN},        {"00", PL_FRAME_BEACON},           {"0f", PL_FRAME_BEACON},
           {"10", PL_FRAME_UNKNOWN},      {"50494c", PL_FRAME_UNKNOWN},      {"50494c54", PL_FRAME_PILT},
           {"50494c53", PL_FRAME_PILS},   {"50494c4b", PL_FRAME_PILK},       {"50494c41", PL_FRAME_PILA},
           {"50494c50", PL_FRAME_PILP},   {"50494c5000000001", PL_FRAME_PILP}, {"50494c46", PL_FRAME_UNKNOWN},
           {"50494c73", PL_FRAME_UNKNOWN}, {"50494d53", PL_FRAME_UNKNOWN},   {"ff494c53", PL_FRAME_UNKNOWN}};
  for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
    size_t n;
    uint8_t *p = check_hex(v[i].hex, &n);
    CHECK(pl_frame_classify(p, p + n) == v[i].kind);
    free(p);
  }
  size_t n;
  uint8_t *p = check_hex("50494c530000a001aabbccdd0000000000000001dae623f9b01d1e6eb6cef307e644647f1b6f2bb09deaa4eaffa4f864ef36d5d0d79e"
                         "ff9a1715cf846d27c5d3c5345ddfb8d9", &n);
  pl_pils h;
  CHECK(pl_pils_parse(p, p + n, &h) == PL_OK);
  CHECK(h.node == 0xa001 && h.prefix == 0xaabbccdd && h.counter == 1 && h.nonce == p + 8 && h.body == p + 20 && h.body_len == n - 20);
  uint8_t head[PL_PILS_HEAD];
  pl_pils_write_head(head, h.node, h.prefix, h.counter);
  CHECK(!memcmp(head, p, sizeof head));
  for (size_t cut = 0; cut < n; cut++) {
    uint8_t *part = check_copy(p, cut);
    CHECK(pl_pils_parse(part, part + cut, &h) == (cut < PL_PILS_OVERHEAD ? PL_ESHORT : PL_OK));
    free(part);
  }
  p[3] = 'T';
  CHECK(pl_pils_parse(p, p + n, &h) == PL_EFORMAT);
  free(p);
}

static void sack(void) {
  static const struct {
    const char *hex;
    unsigned count;
    uint32_t left, right;
    bool ambiguous;
  } v[] = {
      {"5341434b010000000100000002", 1, 1, 2, true},
      {"5341434b010000000100000002747261696c696e6720757365722064617461", 1, 1, 2, true},
      {"5341434b00", 0, 0, 0, false},
      {"5341434b0500000000000000000000000000000000000000000000000000000000000000000000000000000000", 0, 0, 0, true},
      {"5341434b020000000000000000", 0, 0, 0, true},
      {"5341434b", 0, 0, 0, false},
      {"7361636b010000000000000000", 0, 0, 0, false},
      {"5341434b01206c756e636820666f7220746865207363686f6f6c2074726970", 1, 543978862, 1667768422, true},
      {"5341434b206c756e636820666f7220746865207363686f6f6c2074726970", 0, 0, 0, true}, /* 32 blocks to our own kind */
      {"5341434b216c756e6368", 0, 0, 0, false},
      {"5341434b01fffffff000000010", 1, 4294967280u, 16, true},
      {"", 0, 0, 0, false},
  };
  pl_sack_block b[PL_SACK_MAX], back[PL_SACK_MAX];
  for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
    size_t n;
    uint8_t *p = check_hex(v[i].hex, &n);
    CHECK(pl_sack_parse(p, p + n, PL_SACK_PLAIN_MAX, b) == v[i].count);
    if (v[i].count) CHECK(b[0].left == v[i].left && b[0].right == v[i].right);
    CHECK(pl_sack_ambiguous(p, n) == v[i].ambiguous);
    free(p);
  }
  for (unsigned n = 1; n <= PL_SACK_MAX; n++) {
    for (unsigned i = 0; i < n; i++) b[i] = (pl_sack_block){i * 0x10000001u, i * 0x10000001u + 7};
    uint8_t *out = malloc(5 + 8 * n);
    CHECK(pl_sack_write(out, b, n) == 5 + 8 * n);
    CHECK(pl_sack_parse(out, out + 5 + 8 * n, PL_SACK_MAX, back) == n && !memcmp(b, back, n * sizeof *b));
    CHECK(pl_sack_parse(out, out + 5 + 8 * n - 1, PL_SACK_MAX, back) == 0);
    CHECK(pl_sack_parse(out, out + 5 + 8 * n, PL_SACK_PLAIN_MAX, back) == (n <= PL_SACK_PLAIN_MAX ? n : 0));
    free(out);
  }
  b[0] = (pl_sack_block){100, 200};
  b[1] = (pl_sack_block){300, 400};
  uint8_t two[21], *expect;
  size_t n;
  pl_sack_write(two, b, 2);
  expect = check_hex("5341434b0200000064000000c80000012c00000190", &n);
  CHECK(n == sizeof two && !memcmp(two, expect, n));
  free(expect);
}

static void options(void) {
  pl_synopt o = {.window_shift = 10, .max_sack = 32, .max_segment = 8192, .reorder_segments = 65536, .flags = 0}, back;
  uint8_t *p = malloc(PL_SYNOPT_SIZE);
  pl_synopt_write(p, &o);
  size_t n;
  uint8_t *expect = check_hex("504c58310a2020000001000000000000", &n);
  CHECK(n == PL_SYNOPT_SIZE && !memcmp(p, expect, n));
  CHECK(pl_synopt_parse(p, p + n, &back) && back.window_shift == 10 && back.max_sack == 32 && back.max_segment == 8192 &&
        back.reorder_segments == 65536 && back.flags == 0);
  for (size_t cut = 0; cut < n; cut++) {
    uint8_t *part = check_copy(p, cut);
    CHECK(!pl_synopt_parse(part, part + cut, &back));
    free(part);
  }
  p[3] = '2';
  CHECK(!pl_synopt_parse(p, p + n, &back));
  free(p);
  free(expect);
}

static void beacon(void) {
  static const pl_addr v4 = {.family = 4, .port = 40000, .ip = {203, 0, 113, 9}};
  static const pl_addr v6 = {.family = 6, .port = 40000, .ip = {0x20, 0x01, 0x0d, 0xb8, [15] = 1}};
  static const struct {
    const char *hex;
    int result;
    uint8_t type;
    uint32_t node, target;
    size_t body;
    uint8_t kind;
    uint16_t count;
    const pl_addr *endpoint;
  } v[] = {
      {"010000a001", PL_OK, 1, 0xa001, 0, 0, 0, 0, NULL},
      {"01ffffffff", PL_OK, 1, 0xffffffff, 0, 0, 0, 0, NULL},
      {"01000000c88139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394", PL_OK, 1, 200, 0, 32, 0, 0, NULL},
      {"030000a001b0000002", PL_OK, 3, 0xa001, 0xb0000002, 0, 0, 0, NULL},
      {"050000a001b000000250494c50", PL_OK, 5, 0xa001, 0xb0000002, 4, 0, 0, NULL},
      {"0500000064000000c8", PL_OK, 5, 100, 200, 0, 0, 0, NULL},
      {"0404cb0071099c40", PL_OK, 4, 0, 0, 0, 0, 0, &v4},
      {"0204cb0071099c40", PL_OK, 2, 0, 0, 0, 0, 0, &v4},
      {"0204cb0071099c40ffff", PL_OK, 2, 0, 0, 2, 0, 0, &v4},
      {"021020010db80000000000000000000000019c40", PL_OK, 2, 0, 0, 0, 0, 0, &v6},
      {"021000000000000000000000ffffcb0071099c40", PL_OK, 2, 0, 0, 0, 0, 0, &v4}, /* IPv4 in IPv6's clothes */
      {"060000a00150494c50", PL_OK, 6, 0xa001, 0, 4, 0, 0, NULL},
      {"070000004d0003000013890000138a000000c8", PL_OK, 7, 77, 0, 12, 0, 3, NULL},
      {"070000004d00010000138aaabb", PL_OK, 7, 77, 0, 4, 0, 1, NULL}, /* rest ignored */
      {"070000004d0000", PL_OK, 7, 77, 0, 0, 0, 0, NULL},
      {"070000004d000300001771", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL}, /* three announced, one there */
      {"08000000c8", PL_OK, 8, 200, 0, 0, 0, 0, NULL},
      {"0900000064000000c850494c5364656d6f2d7061796c6f6164", PL_OK, 9, 100, 200, 16, 0, 0, NULL},
      {"0a01", PL_OK, 10, 0, 0, 0, 1, 0, NULL},
      {"0a07aabb", PL_OK, 10, 0, 0, 2, 7, 0, NULL},
      {"", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"01", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"01000001", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"0300000064000000", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"0500000064000000", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"06000000", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"0a", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"02", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"0204cb0071099c", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"021020010db80000000000000000000000019c", PL_ESHORT, 0, 0, 0, 0, 0, 0, NULL},
      {"0205cb0071099c4000", PL_EFORMAT, 0, 0, 0, 0, 0, 0, NULL},
      {"0000000001", PL_EFORMAT, 0, 0, 0, 0, 0, 0, NULL},
      {"0b00000001", PL_EFORMAT, 0, 0, 0, 0, 0, 0, NULL},
      {"50494c50", PL_EFORMAT, 0, 0, 0, 0, 0, 0, NULL},
  };
  static const pl_addr none;
  for (unsigned i = 0; i < sizeof v / sizeof *v; i++) {
    size_t n;
    uint8_t *p = check_hex(v[i].hex, &n);
    pl_beacon_msg m;
    if (pl_beacon_parse(p, p + n, &m) != v[i].result) fprintf(stderr, "%s\n", v[i].hex);
    CHECK(pl_beacon_parse(p, p + n, &m) == v[i].result);
    if (v[i].result == PL_OK) {
      CHECK(m.type == v[i].type && m.node == v[i].node && m.target == v[i].target && m.kind == v[i].kind && m.count == v[i].count);
      CHECK(m.body_len == v[i].body && m.body >= p && m.body + m.body_len <= p + n);
      CHECK(pl_addr_eq(&m.endpoint, v[i].endpoint ? v[i].endpoint : &none));
    }
    free(p);
  }
  uint8_t *out = malloc(8);
  CHECK(pl_beacon_write_endpoint(out, PL_BEACON_PUNCH_COMMAND, &v4) == 8 && !memcmp(out, "\x04\x04\xcb\x00\x71\x09\x9c\x40", 8));
  CHECK(pl_beacon_write_endpoint(out, PL_BEACON_DISCOVER_REPLY, &none) == PL_EFORMAT);
  free(out);
  out = malloc(20);
  pl_beacon_msg m;
  CHECK(pl_beacon_write_endpoint(out, PL_BEACON_DISCOVER_REPLY, &v6) == 20);
  CHECK(pl_beacon_parse(out, out + 20, &m) == PL_OK && pl_addr_eq(&m.endpoint, &v6));
  free(out);
}

static void ipc(void) {
  uint8_t cmd;
  const uint8_t *payload;
  uint32_t len;
  size_t size, n;
  uint8_t *p = check_hex("00000003011b59000000010d0000000000000001", &n);
  const uint8_t *at = p, *end = p + n;
  CHECK(pl_ipc_parse(at, end, &cmd, &payload, &len, &size) == 1 && cmd == 1 && len == 2 && payload == at + 5 && size == 7);
  at += size;
  CHECK(pl_ipc_parse(at, end, &cmd, &payload, &len, &size) == 1 && cmd == 0x0d && len == 0 && size == 5);
  at += size;
  CHECK(pl_ipc_parse(at, end, &cmd, &payload, &len, &size) == 1 && cmd == 0 && len == 0 && size == 4); /* legal, ignored */
  at += size;
  CHECK(pl_ipc_parse(at, end, &cmd, &payload, &len, &size) == 0); /* the command has not come yet */
  free(p);
  p = check_hex("00100000", &n); /* 1 MiB: as soon as it has arrived */
  CHECK(pl_ipc_parse(p, p + n, &cmd, &payload, &len, &size) == 0 && pl_ipc_parse(p, p + 3, &cmd, &payload, &len, &size) == 0);
  free(p);
  p = check_hex("00100001", &n);
  CHECK(pl_ipc_parse(p, p + n, &cmd, &payload, &len, &size) == PL_EFORMAT);
  free(p);
  p = malloc(4 + PL_IPC_MAX);
  pl_put32(p, PL_IPC_MAX);
  p[4] = 6;
  CHECK(pl_ipc_parse(p, p + 4 + PL_IPC_MAX, &cmd, &payload, &len, &size) == 1 && len == PL_IPC_MAX - 1 && size == 4 + PL_IPC_MAX);
  CHECK(pl_ipc_parse(p, p + 3 + PL_IPC_MAX, &cmd, &payload, &len, &size) == 0);
  free(p);
  CHECK(pl_ipc_parse(NULL, NULL, &cmd, &payload, &len, &size) == 0);
}

int main(void) {
  for (unsigned i = 0; i < sizeof packet_vectors / sizeof *packet_vectors; i++) packet_vector_ok(&packet_vectors[i]);
  uint64_t seed = check_seed("test_wire", 1);
  large_segment(1152, 0x3a86b7ae, seed);
  large_segment(4096, 0x6bd051ce, seed);
  packet_rules();
  frames();
  sack();
  options();
  beacon();
  ipc();
  printf("test_wire: ok\n");
  return 0;
}
