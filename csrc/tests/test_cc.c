/* Congestion control by itself: acknowledgements in, window and pace out. */
#include "check.h"
#include "cc.h"

#include <stdio.h>
#include <string.h>

#define MS PL_NS_PER_MS
#define MSS 1402u

static const pl_cc_ops *const ALL[] = {&pl_cc_bbr, &pl_cc_cubic};

/* A thousand streams begin at once and overflow the receiver: of a stream's first flight one segment arrives, late. What such a round says of the
 * path must not stop the stream: it may have four segments out in a round trip, whatever it believes. */
static void nearly_all_lost(const pl_cc_ops *ops) {
  pl_cc cc = {.ops = ops};
  ops->init(&cc, MSS, 1000 * MS);
  uint64_t now = 1060 * MS, least = 4 * MSS;
  pl_cc_ack a = {.now_ns = now, .acked = MSS, .lost = 46 * MSS, .prior_in_flight = 47 * MSS, .rtt_ns = 60 * MS, .min_rtt_ns = MS / 10,
                 .srtt_ns = 27 * MS, .delivery_rate = 21383, .round_start = true};
  ops->on_congestion(&cc, a.prior_in_flight, now);
  ops->on_ack(&cc, &a);
  for (unsigned i = 0; i < 40; i++) {
    CHECK(cc.cwnd >= 2 * MSS && cc.pacing_rate >= least * PL_NS_PER_S / a.srtt_ns - 1);
    if (i % 8 == 0) ops->on_timeout(&cc, now);
    now += 30 * MS;
    a = (pl_cc_ack){.now_ns = now, .acked = 2 * MSS, .prior_in_flight = 2 * MSS, .min_rtt_ns = 48 * MS, .srtt_ns = 27 * MS, .round_start = true};
    ops->on_ack(&cc, &a);
  }
}

int main(void) {
  for (unsigned i = 0; i < sizeof ALL / sizeof *ALL; i++) nearly_all_lost(ALL[i]);
  printf("test_cc: ok\n");
  return 0;
}
