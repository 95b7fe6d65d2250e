/* Frame heads and what rides in payloads: classification, PILS, SACK, stream options. Input: the bytes themselves. */
#include "fuzz.h"
#include "wire.h"

static void sack(const uint8_t *p, size_t n) {
  static const unsigned limits[] = {1, PL_SACK_PLAIN_MAX, PL_SACK_MAX};
  for (unsigned i = 0; i < 3; i++) {
    pl_sack_block b[PL_SACK_MAX];
    uint8_t out[5 + 8 * PL_SACK_MAX];
    unsigned count = pl_sack_parse(p, p + n, limits[i], b);
    FUZZ_CHECK(count <= limits[i]);
    if (!count) continue;
    FUZZ_CHECK(pl_sack_ambiguous(p, n)); /* a sender would have avoided it */
    size_t len = pl_sack_write(out, b, count);
    FUZZ_CHECK(len <= n && !memcmp(out, p, len));
  }
  if (n > 4) FUZZ_CHECK(!pl_sack_ambiguous(p, 4)); /* what is sent instead is safe */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_in in = {data, data + size};
  size_t n;
  uint8_t *p = fuzz_bytes(&in, SIZE_MAX, &n);
  enum pl_frame_kind kind = pl_frame_classify(p, p + n);
  FUZZ_CHECK((kind == PL_FRAME_BEACON) == (n > 0 && p[0] < 0x10));
  pl_pils h;
  int r = pl_pils_parse(p, p + n, &h);
  FUZZ_CHECK((r == PL_OK) == (kind == PL_FRAME_PILS && n >= PL_PILS_OVERHEAD));
  if (r == PL_OK) {
    uint8_t head[PL_PILS_HEAD];
    pl_pils_write_head(head, h.node, h.prefix, h.counter);
    FUZZ_CHECK(!memcmp(head, p, sizeof head) && h.body + h.body_len == p + n && h.body_len >= PL_TAG_SIZE);
    fuzz_touch(h.body, h.body_len);
  }
  sack(p, n);
  pl_synopt o;
  if (pl_synopt_parse(p, p + n, &o)) {
    uint8_t out[PL_SYNOPT_SIZE];
    pl_synopt_write(out, &o);
    FUZZ_CHECK(n >= sizeof out && !memcmp(out, p, sizeof out));
  }
  free(p);
  return 0;
}
