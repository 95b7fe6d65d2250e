/* The window curve of CUBIC (RFC 9438), for every strategy that has to live beside it. In cc_cubic.c. */
#ifndef PL_CC_CURVE_H
#define PL_CC_CURVE_H

#include "cc.h"

#define PL_CUBIC_BETA 0.7

typedef struct pl_curve {
  uint64_t epoch_ns;                          /* start of the present climb, 0 = not begun */
  double w_max, cwnd_prior, w_est, k, origin; /* segments; k in seconds; origin = plateau of the curve */
} pl_curve;

/* The window, in bytes, after an acknowledgement that found it full; and after a loss. */
uint64_t pl_curve_grow(pl_curve *c, uint64_t window, uint32_t mss, const pl_cc_ack *a);
uint64_t pl_curve_reduce(pl_curve *c, uint64_t window, uint32_t mss);

#endif
