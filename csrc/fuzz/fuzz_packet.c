/* Packets: what parses lies within the input and writes back to the same bytes; with a checksum made good, every header is reached.
 * Input: one byte of options, then the packet. */
#include "fuzz.h"
#include "wire.h"

static void check(const uint8_t *p, size_t n, bool optional) {
  pl_packet k;
  int r = pl_packet_parse(p, p + n, optional, &k);
  FUZZ_CHECK(r == PL_OK || r == PL_ESHORT || r == PL_ECRC || r == PL_EFORMAT);
  if (r != PL_OK) return;
  FUZZ_CHECK(k.payload == p + PL_HDR_SIZE && PL_HDR_SIZE + (size_t)k.len <= n);
  fuzz_touch(k.payload, k.len);
  size_t whole = PL_HDR_SIZE + (size_t)k.len;
  uint8_t *out = malloc(whole);
  FUZZ_CHECK(out != NULL);
  pl_packet_write_header(out, &k);
  if (k.len) memcpy(out + PL_HDR_SIZE, k.payload, k.len);
  if (k.crc || !optional) pl_packet_write_crc(out, whole);
  FUZZ_CHECK(!memcmp(out, p, whole));
  free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_in in = {data, data + size};
  uint8_t options = fuzz_u8(&in);
  size_t n;
  uint8_t *p = fuzz_bytes(&in, SIZE_MAX, &n);
  check(p, n, options & 1);
  if (options & 2 && n >= PL_HDR_SIZE) {
    size_t len = pl_get16(p + 2);
    if (len > n - PL_HDR_SIZE) pl_put16(p + 2, (uint16_t)(len = (n - PL_HDR_SIZE) & 0xffff));
    p[0] = (uint8_t)(0x10 | (p[0] & 0x0f));
    pl_put32(p + 30, 0);
    pl_packet_write_crc(p, PL_HDR_SIZE + len);
    check(p, n, options & 1);
  }
  free(p);
  return 0;
}
