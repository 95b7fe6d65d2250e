/* Base types of the native core: error codes, addresses, byte order, time.
 *
 * Every function of csrc/ returns 0 or a positive value on success and a negative PL_E* code on
 * failure. Time is a monotonic count of nanoseconds passed in by the caller; nothing below the
 * I/O shells (udp, loop, local, relay_loop) reads a clock, a socket or a random source. */
#ifndef PL_H
#define PL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
  PL_OK = 0,
  PL_ESHORT = -1,   /* input ends before the structure does */
  PL_EFORMAT = -2,  /* a field has a value that the format forbids */
  PL_ECRC = -3,     /* checksum mismatch */
  PL_EAUTH = -4,    /* AEAD tag mismatch */
  PL_EREPLAY = -5,  /* counter seen before, or too old */
  PL_ENOMEM = -6,
  PL_ELIMIT = -7,   /* a configured limit is reached */
  PL_ENOENT = -8,   /* no such peer, connection, port or client */
  PL_EEXIST = -9,   /* already there (port bound, ...) */
  PL_ESTATE = -10,  /* not possible in the present state */
  PL_EIO = -11,     /* a system call failed; errno has the reason */
  PL_EAGAIN = -12,  /* nothing now */
};

#define PL_NS_PER_US 1000ull
#define PL_NS_PER_MS 1000000ull
#define PL_NS_PER_S 1000000000ull
#define PL_NEVER UINT64_MAX /* deadline that does not come */

/* UDP endpoint. Zero the whole struct before filling it: addresses are compared with memcmp. */
typedef struct pl_addr {
  uint8_t family;  /* 0 = none, 4, 6; an IPv4-mapped IPv6 address is stored as 4 */
  uint8_t zero;
  uint16_t port;   /* host byte order */
  uint8_t ip[16];  /* network order; the first 4 bytes for IPv4, the rest zero */
} pl_addr;

static inline bool pl_addr_eq(const pl_addr *a, const pl_addr *b) {
  return memcmp(a, b, sizeof *a) == 0;
}

static inline uint16_t pl_get16(const uint8_t *p) { return (uint16_t)((unsigned)p[0] << 8 | p[1]); }
static inline uint32_t pl_get32(const uint8_t *p) {
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static inline uint64_t pl_get64(const uint8_t *p) {
  return (uint64_t)pl_get32(p) << 32 | pl_get32(p + 4);
}
static inline void pl_put16(uint8_t *p, uint16_t v) {
  p[0] = (uint8_t)(v >> 8);
  p[1] = (uint8_t)v;
}
static inline void pl_put32(uint8_t *p, uint32_t v) {
  pl_put16(p, (uint16_t)(v >> 16));
  pl_put16(p + 2, (uint16_t)v);
}
static inline void pl_put64(uint8_t *p, uint64_t v) {
  pl_put32(p, (uint32_t)(v >> 32));
  pl_put32(p + 4, (uint32_t)v);
}

/* Serial-number comparison of sequence numbers (RFC 1982): negative, zero or positive. */
static inline int32_t pl_seq_cmp(uint32_t a, uint32_t b) { return (int32_t)(a - b); }

static inline uint64_t pl_min64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t pl_max64(uint64_t a, uint64_t b) { return a > b ? a : b; }

#endif
