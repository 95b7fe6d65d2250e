/* Local IPC frames: the whole input as a stream gives the same frames as the same bytes arriving piece by piece. Input: the stream. */
#include "fuzz.h"
#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_in in = {data, data + size};
  size_t n, done = 0;
  uint8_t *p = fuzz_bytes(&in, SIZE_MAX, &n);
  for (;;) {
    uint8_t cmd = 0;
    const uint8_t *payload = NULL;
    uint32_t len = 0;
    size_t frame = 0;
    int r = pl_ipc_parse(p + done, p + n, &cmd, &payload, &len, &frame);
    FUZZ_CHECK(r == 0 || r == 1 || r == PL_EFORMAT);
    size_t left = n - done, step = left > 64 ? left / 16 : 1;
    for (size_t cut = 0; cut < (r == 1 ? frame : left); cut += step) { /* less of it: wait, or refuse as soon as the length is known */
      uint8_t *part = malloc(cut ? cut : 1);
      FUZZ_CHECK(part != NULL);
      if (cut) memcpy(part, p + done, cut);
      uint8_t c2;
      const uint8_t *p2;
      uint32_t l2;
      size_t s2;
      FUZZ_CHECK(pl_ipc_parse(part, part + cut, &c2, &p2, &l2, &s2) == (r == PL_EFORMAT && cut >= 4 ? PL_EFORMAT : 0));
      free(part);
    }
    if (r != 1) break;
    FUZZ_CHECK(frame >= 4 && frame <= left && frame <= 4 + (size_t)PL_IPC_MAX && payload + len == p + done + frame);
    fuzz_touch(payload, len);
    done += frame;
  }
  free(p);
  return 0;
}
