/* Congestion control as a replaceable strategy. Units: bytes and nanoseconds. The stream calls the hooks and obeys
 * cwnd and pacing_rate. No strategy allocates; each keeps its state in pl_cc.u. */
#ifndef PL_CC_H
#define PL_CC_H

#include "pl.h"

typedef struct pl_cc pl_cc;

/* One acknowledgement's worth of news. */
typedef struct pl_cc_ack {
  uint64_t now_ns;
  uint64_t acked;         /* bytes newly acknowledged, cumulatively or selectively */
  uint64_t lost;          /* bytes newly marked lost by this acknowledgement */
  uint64_t in_flight;     /* after it */
  uint64_t prior_in_flight;
  uint64_t rtt_ns;        /* sample, 0 if none */
  uint64_t min_rtt_ns, srtt_ns;
  uint64_t delivery_rate; /* bytes/s over the sampled flight, 0 if none */
  bool app_limited;       /* the rate sample was limited by the application */
  bool round_start;       /* first acknowledgement of a new round trip */
} pl_cc_ack;

typedef struct pl_cc_ops {
  const char *name;
  void (*init)(pl_cc *cc, uint32_t mss, uint64_t now_ns);
  void (*on_ack)(pl_cc *cc, const pl_cc_ack *a);
  void (*on_congestion)(pl_cc *cc, uint64_t in_flight, uint64_t now_ns); /* once per loss episode */
  void (*on_recovered)(pl_cc *cc, uint64_t now_ns);  /* the episode's end point is acknowledged */
  void (*on_timeout)(pl_cc *cc, uint64_t now_ns);    /* retransmission timer expired */
  void (*on_spurious)(pl_cc *cc, uint64_t now_ns);   /* the last reduction was not due to loss */
} pl_cc_ops;

struct pl_cc {
  const pl_cc_ops *ops;
  uint32_t mss;
  uint64_t cwnd;        /* bytes */
  uint64_t ssthresh;    /* UINT64_MAX until first loss */
  uint64_t pacing_rate; /* bytes/s; 0 = no pacing yet (no RTT sample) */
  union {
    uint64_t words[64];
  } u;
};

extern const pl_cc_ops pl_cc_cubic, pl_cc_bbr;
/* By name; NULL if unknown. */
const pl_cc_ops *pl_cc_find(const char *name);

#endif
