/* Tunnel frames, packets, SACK blocks and beacon messages: parse and write.
 * Specification: transport.md sections 2, 3, 4.3; beacon.md sections 2, 3.
 *
 * Parsers take (p, end) and never read at or past `end`; they do not copy. Parsed payloads point
 * into the input. */
#ifndef PL_WIRE_H
#define PL_WIRE_H

#include "pl.h"

#define PL_VERSION 1
#define PL_HDR_SIZE 34u          /* packet header */
#define PL_PILS_OVERHEAD 36u     /* magic 4, node 4, nonce 12, tag 16 */
#define PL_PILS_HEAD 20u         /* bytes before the ciphertext */
#define PL_TAG_SIZE 16u
#define PL_PILK_SIZE 40u
#define PL_PILA_SIZE 136u
#define PL_RELAY_HEAD 9u         /* 0x05 node node */
#define PL_DELIVER_HEAD 5u       /* 0x06 node */
#define PL_SEGMENT_BASE 1152u    /* fits every path, relayed too: 1152+34+36+9 <= 1232 */
#define PL_SEGMENT_PLAIN_MAX 4096u /* largest segment another implementation takes */
#define PL_UDP_MAX 65507u

enum { PL_FLAG_SYN = 1, PL_FLAG_ACK = 2, PL_FLAG_FIN = 4, PL_FLAG_RST = 8 };
enum { PL_PROTO_STREAM = 1, PL_PROTO_DATAGRAM = 2, PL_PROTO_CONTROL = 3 };

typedef struct pl_packet {
  uint8_t flags;
  uint8_t proto;
  uint16_t src_net, dst_net;
  uint32_t src_node, dst_node;
  uint16_t src_port, dst_port;
  uint32_t seq, ack;
  uint16_t window;  /* in slots */
  uint32_t crc;     /* as received */
  const uint8_t *payload;
  uint16_t len;     /* payload bytes */
} pl_packet;

/* CRC-32/IEEE of `len` bytes, continuing from `crc` (0 to start). Uses carry-less multiply where
 * the processor has it. */
uint32_t pl_crc32(uint32_t crc, const uint8_t *p, size_t len);

/* Parses one packet, checks in the order of transport.md 2.2 (version last). `crc_optional`: a zero
 * checksum field is accepted unchecked (capability NOCRC). Errors: PL_ESHORT, PL_ECRC, PL_EFORMAT. */
int pl_packet_parse(const uint8_t *p, const uint8_t *end, bool crc_optional, pl_packet *out);

/* Writes the 34 header bytes for `pkt` (payload not copied, checksum zero). */
void pl_packet_write_header(uint8_t out[PL_HDR_SIZE], const pl_packet *pkt);

/* Fills in the checksum of a complete packet of `len` bytes whose checksum field is zero. */
void pl_packet_write_crc(uint8_t *packet, size_t len);

/* What a datagram is, by its first bytes (transport.md 3.1). */
enum pl_frame_kind {
  PL_FRAME_UNKNOWN = 0,
  PL_FRAME_BEACON,  /* first byte < 0x10 */
  PL_FRAME_PILT,
  PL_FRAME_PILS,
  PL_FRAME_PILK,
  PL_FRAME_PILA,
  PL_FRAME_PILP,
};
enum pl_frame_kind pl_frame_classify(const uint8_t *p, const uint8_t *end);

/* PILS head. `body` points at ciphertext||tag. PL_ESHORT below 36 bytes, PL_EFORMAT on bad magic. */
typedef struct pl_pils {
  uint32_t node;
  const uint8_t *nonce; /* 12 bytes: prefix 4, counter 8 */
  uint32_t prefix;
  uint64_t counter;
  const uint8_t *body;
  size_t body_len;      /* including the tag */
} pl_pils;
int pl_pils_parse(const uint8_t *p, const uint8_t *end, pl_pils *out);
void pl_pils_write_head(uint8_t out[PL_PILS_HEAD], uint32_t node, uint32_t prefix, uint64_t counter);

/* SACK payload (transport.md 4.3): "SACK" count {left right}*count. Other implementations take at most
 * PL_SACK_PLAIN_MAX blocks; our own kind up to PL_SACK_MAX when negotiated. */
#define PL_SACK_PLAIN_MAX 4u
#define PL_SACK_MAX 32u
typedef struct pl_sack_block {
  uint32_t left, right;
} pl_sack_block;
/* Returns the number of blocks (1..max) if `p` is a SACK payload with a count within `max`, else 0. */
unsigned pl_sack_parse(const uint8_t *p, const uint8_t *end, unsigned max, pl_sack_block *out);
/* Writes 5 + 8*n bytes and returns that number. 1 <= n <= PL_SACK_MAX. */
size_t pl_sack_write(uint8_t *out, const pl_sack_block *blocks, unsigned n);
/* True if user data starting like this would be taken for SACK by some receiver: "SACK" then 1..32.
 * Only `len` >= 5 can match. Senders then end the segment after its first 4 bytes. */
bool pl_sack_ambiguous(const uint8_t *p, size_t len);

/* Beacon messages (beacon.md 2). Parsed in place. */
enum {
  PL_BEACON_DISCOVER = 0x01,
  PL_BEACON_DISCOVER_REPLY = 0x02,
  PL_BEACON_PUNCH_REQUEST = 0x03,
  PL_BEACON_PUNCH_COMMAND = 0x04,
  PL_BEACON_RELAY = 0x05,
  PL_BEACON_DELIVER = 0x06,
  PL_BEACON_SYNC = 0x07,
  PL_BEACON_DISCOVER_DST = 0x08,
  PL_BEACON_DELIVER_DST = 0x09,
  PL_BEACON_NOTIFY = 0x0a,
  /* Of our own kind (docs/wire-extensions.md 7); other beacons and daemons drop them. */
  PL_BEACON_PROBE = 0x0b,
  PL_BEACON_PROBE_REPLY = 0x0c,
  PL_BEACON_SEALED = 0x0e,
  PL_BEACON_INTRODUCE = 0x0d,
};
#define PL_SYNC_ASKS 1u   /* flags in the trailer of 0x07: answer with your list */
#define PL_SYNC_AGES 2u   /* a byte per node follows: PL_AGE_* */
#define PL_AGE_STREAM 0x80u /* it came by a stream; the age is that of the stream */
#define PL_AGE_MAX 127u   /* seconds since it was heard; this many or more */
typedef struct pl_beacon_msg {
  uint8_t type;
  uint32_t node;     /* 01 03 05 06 07 08 09: sender, requester, source or beacon id */
  uint32_t target;   /* 03 05 09 */
  pl_addr endpoint;  /* 02 04 */
  uint8_t kind;      /* 0A */
  uint16_t count;    /* 07 */
  const uint8_t *body; /* 05 06 09: payload; 07: node ids; 01 02 03 04 08 0A: trailer after the fields */
  size_t body_len;
} pl_beacon_msg;
/* PL_ESHORT, or PL_EFORMAT for an unknown type or an address length other than 4 or 16. */
int pl_beacon_parse(const uint8_t *p, const uint8_t *end, pl_beacon_msg *out);
/* An endpoint in the form of beacon.md 1.1, without a type: the number of bytes (7 or 19), PL_ESHORT or PL_EFORMAT. A v4-mapped address reads
 * as IPv4. */
int pl_beacon_read_addr(const uint8_t *p, const uint8_t *end, pl_addr *out);
int pl_beacon_write_addr(uint8_t *out, const pl_addr *a);
/* 0x02 / 0x04: writes type and endpoint; returns 8 or 20, or PL_EFORMAT without an address. */
int pl_beacon_write_endpoint(uint8_t *out, uint8_t type, const pl_addr *a);

/* Local IPC frame head: length u32 (counts cmd and payload), cmd u8 (ipc.md 1). Returns 1 with the
 * fields filled, 0 if fewer than needed bytes are there, PL_EFORMAT if length > 1 MiB.
 * A length of 0 is legal: *size = 4, *cmd = 0, *len = 0. */
#define PL_IPC_MAX (1u << 20)
int pl_ipc_parse(const uint8_t *p, const uint8_t *end, uint8_t *cmd, const uint8_t **payload,
                 uint32_t *len, size_t *size);

/* Options of a stream between nodes of our own kind, carried as the payload of SYN and SYN+ACK, which
 * every other implementation ignores (docs/wire-extensions.md 3). 16 bytes:
 * "PLX1" | window_shift u8 | max_sack u8 | max_segment u16 | reorder_segments u32 | flags u32. */
#define PL_SYNOPT_SIZE 16u
typedef struct pl_synopt {
  uint8_t window_shift;       /* window field of the sender of this option counts 1<<shift bytes */
  uint8_t max_sack;           /* SACK blocks it takes per acknowledgement */
  uint16_t max_segment;       /* largest segment it takes, bytes */
  uint32_t reorder_segments;  /* out-of-order segments it holds */
  uint32_t flags;             /* none defined: sent as 0, ignored */
} pl_synopt;
bool pl_synopt_parse(const uint8_t *p, const uint8_t *end, pl_synopt *out);
void pl_synopt_write(uint8_t out[PL_SYNOPT_SIZE], const pl_synopt *o);

#endif
