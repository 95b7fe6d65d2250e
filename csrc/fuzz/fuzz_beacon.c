/* Beacon messages: fields and body lie within the input, endpoints write back. Input: one datagram. */
#include "fuzz.h"
#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_in in = {data, data + size};
  size_t n;
  uint8_t *p = fuzz_bytes(&in, SIZE_MAX, &n);
  pl_beacon_msg m;
  int r = pl_beacon_parse(p, p + n, &m);
  FUZZ_CHECK(r == PL_OK || r == PL_ESHORT || r == PL_EFORMAT);
  if (r == PL_OK) {
    FUZZ_CHECK(m.type == p[0] && m.body >= p && m.body_len <= n && m.body + m.body_len <= p + n);
    fuzz_touch(m.body, m.body_len);
    if (m.type == PL_BEACON_SYNC) FUZZ_CHECK(m.body_len == 4 * (size_t)m.count);
    if (m.type == PL_BEACON_DISCOVER_REPLY || m.type == PL_BEACON_PUNCH_COMMAND) {
      uint8_t out[20];
      int len = pl_beacon_write_endpoint(out, m.type, &m.endpoint);
      FUZZ_CHECK(len == (m.endpoint.family == 4 ? 8 : 20));
      pl_beacon_msg again;
      FUZZ_CHECK(pl_beacon_parse(out, out + len, &again) == PL_OK && pl_addr_eq(&again.endpoint, &m.endpoint));
      if (p[1] == out[1]) FUZZ_CHECK(!memcmp(out, p, (size_t)len));
    } else {
      FUZZ_CHECK(m.endpoint.family == 0);
    }
  }
  free(p);
  return 0;
}
