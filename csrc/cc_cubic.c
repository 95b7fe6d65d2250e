/* CUBIC (RFC 9438) with HyStart++ (RFC 9406). */
#include <assert.h>
#include <math.h>

#include "cc.h"
#include "cc_curve.h"

#define CUBIC_C 0.4
#define CUBIC_ALPHA (3.0 * (1.0 - PL_CUBIC_BETA) / (1.0 + PL_CUBIC_BETA))
#define HS_MIN_SAMPLES 8u
#define HS_MIN_THRESH_NS (4 * PL_NS_PER_MS)
#define HS_MAX_THRESH_NS (16 * PL_NS_PER_MS)
#define HS_CSS_DIVISOR 4u
#define HS_CSS_ROUNDS 5u
#define MIN_SEGMENTS 2u

typedef struct cubic {
  pl_curve curve;
  uint64_t last_ack_ns;
  bool recovering;      /* window reduced, episode not over: no growth */
  bool reduced;         /* `undo_*` are good */
  uint64_t undo_cwnd, undo_ssthresh;
  double undo_w_max;
  /* HyStart++ */
  uint64_t round_min_ns, last_min_ns, css_base_ns;
  uint32_t samples, css_rounds;
  bool css;
} cubic;
static_assert(sizeof(cubic) <= sizeof(((pl_cc *)0)->u), "state of a strategy lives in pl_cc.u");

static cubic *state(pl_cc *cc) { return (cubic *)(void *)cc->u.words; }

static void start_round(cubic *c) {
  c->last_min_ns = c->round_min_ns;
  c->round_min_ns = UINT64_MAX;
  c->samples = 0;
}

static void cubic_init(pl_cc *cc, uint32_t mss, uint64_t now) {
  (void)now;
  memset(&cc->u, 0, sizeof cc->u);
  cc->mss = mss;
  cc->cwnd = 10ull * mss;
  cc->ssthresh = UINT64_MAX;
  cc->pacing_rate = 0;
  cubic *c = state(cc);
  c->last_min_ns = c->round_min_ns = UINT64_MAX;
}

static void set_pacing(pl_cc *cc, uint64_t srtt) {
  if (!srtt) return;
  /* Above the window's own rate, so that the window and not the pacer is the limit (as Linux does). */
  double gain = cc->cwnd < cc->ssthresh ? 2.0 : 1.2;
  cc->pacing_rate = (uint64_t)(gain * (double)cc->cwnd * (double)PL_NS_PER_S / (double)srtt);
}

static void slow_start(pl_cc *cc, cubic *c, const pl_cc_ack *a) {
  if (a->round_start) {
    start_round(c);
    if (c->css && ++c->css_rounds >= HS_CSS_ROUNDS) {
      cc->ssthresh = cc->cwnd;
      return;
    }
  }
  if (a->rtt_ns) {
    if (a->rtt_ns < c->round_min_ns) c->round_min_ns = a->rtt_ns;
    c->samples++;
  }
  cc->cwnd += c->css ? a->acked / HS_CSS_DIVISOR : a->acked;
  if (c->samples < HS_MIN_SAMPLES || c->round_min_ns == UINT64_MAX) return;
  if (c->css) {
    if (c->round_min_ns < c->css_base_ns) c->css = false; /* the rise was an accident: back to slow start */
  } else if (c->last_min_ns != UINT64_MAX) {
    uint64_t thresh = c->last_min_ns / 8;
    if (thresh < HS_MIN_THRESH_NS) thresh = HS_MIN_THRESH_NS;
    if (thresh > HS_MAX_THRESH_NS) thresh = HS_MAX_THRESH_NS;
    if (c->round_min_ns >= c->last_min_ns + thresh) {
      c->css = true;
      c->css_base_ns = c->round_min_ns;
      c->css_rounds = 0;
    }
  }
}

static double at(const pl_curve *c, double t) {
  double d = t - c->k;
  return c->origin + CUBIC_C * d * d * d;
}

uint64_t pl_curve_grow(pl_curve *c, uint64_t window, uint32_t mss_bytes, const pl_cc_ack *a) {
  double mss = mss_bytes, cwnd = (double)window / mss, acked = (double)a->acked / mss;
  if (!c->epoch_ns) {
    c->epoch_ns = a->now_ns;
    c->w_est = cwnd;
    c->origin = c->w_max > cwnd ? c->w_max : cwnd;
    c->k = c->w_max > cwnd ? cbrt((c->w_max - cwnd) / CUBIC_C) : 0;
    if (c->cwnd_prior < cwnd) c->cwnd_prior = cwnd;
  }
  double t = (double)(a->now_ns - c->epoch_ns) / (double)PL_NS_PER_S;
  double target = at(c, t + (double)a->srtt_ns / (double)PL_NS_PER_S);
  if (target < cwnd) target = cwnd;
  if (target > 1.5 * cwnd) target = 1.5 * cwnd;
  c->w_est += (c->w_est < c->cwnd_prior ? CUBIC_ALPHA : 1.0) * acked / cwnd;
  if (at(c, t) < c->w_est) {
    if (c->w_est > cwnd) cwnd = c->w_est;
  } else {
    cwnd += (target - cwnd) / cwnd * acked;
  }
  uint64_t grown = (uint64_t)(cwnd * mss);
  return grown > window ? grown : window;
}

uint64_t pl_curve_reduce(pl_curve *c, uint64_t window, uint32_t mss) {
  double cwnd = (double)window / mss;
  c->cwnd_prior = cwnd;
  /* Fast convergence: a flow that shrinks leaves room for the newcomer that made it shrink. */
  c->w_max = cwnd < c->w_max ? cwnd * (1.0 + PL_CUBIC_BETA) / 2.0 : cwnd;
  c->epoch_ns = 0;
  return pl_max64((uint64_t)(PL_CUBIC_BETA * (double)window), MIN_SEGMENTS * (uint64_t)mss);
}

static void cubic_on_ack(pl_cc *cc, const pl_cc_ack *a) {
  cubic *c = state(cc);
  bool slow = cc->cwnd < cc->ssthresh;
  /* A window that is not used proves nothing: half of it in slow start, most of it afterwards. */
  bool limited = slow ? a->prior_in_flight * 2 >= cc->cwnd : a->prior_in_flight + a->prior_in_flight / 3 >= cc->cwnd;
  if (c->recovering || !limited) {
    if (c->curve.epoch_ns && c->last_ack_ns) c->curve.epoch_ns += a->now_ns - c->last_ack_ns; /* idle time is not growth time */
    if (a->round_start && slow) start_round(c);
  } else if (slow) {
    slow_start(cc, c, a);
  } else {
    cc->cwnd = pl_curve_grow(&c->curve, cc->cwnd, cc->mss, a);
  }
  c->last_ack_ns = a->now_ns;
  set_pacing(cc, a->srtt_ns);
}

static void remember(pl_cc *cc, cubic *c) {
  c->undo_cwnd = cc->cwnd;
  c->undo_ssthresh = cc->ssthresh;
  c->undo_w_max = c->curve.w_max;
  c->reduced = true;
}

static void reduce(pl_cc *cc, cubic *c) {
  cc->ssthresh = pl_curve_reduce(&c->curve, cc->cwnd, cc->mss);
  c->css = false;
}

static void cubic_on_congestion(pl_cc *cc, uint64_t in_flight, uint64_t now) {
  (void)in_flight;
  (void)now;
  cubic *c = state(cc);
  remember(cc, c);
  reduce(cc, c);
  cc->cwnd = cc->ssthresh;
  c->recovering = true;
}

static void cubic_on_recovered(pl_cc *cc, uint64_t now) {
  (void)now;
  state(cc)->recovering = false;
}

static void cubic_on_timeout(pl_cc *cc, uint64_t now) {
  (void)now;
  cubic *c = state(cc);
  if (cc->cwnd > cc->mss) { /* a second timeout in a row has nothing left to learn */
    if (!c->recovering) remember(cc, c);
    reduce(cc, c);
  }
  cc->cwnd = cc->mss;
  c->recovering = false; /* slow start climbs back while the holes are mended */
  start_round(c);
}

static void cubic_on_spurious(pl_cc *cc, uint64_t now) {
  (void)now;
  cubic *c = state(cc);
  if (!c->reduced) return;
  c->reduced = false;
  if (c->undo_cwnd > cc->cwnd) cc->cwnd = c->undo_cwnd;
  cc->ssthresh = c->undo_ssthresh;
  c->curve.w_max = c->undo_w_max;
  c->curve.epoch_ns = 0;
  c->recovering = false;
}

const pl_cc_ops pl_cc_cubic = {
    .name = "cubic",
    .init = cubic_init,
    .on_ack = cubic_on_ack,
    .on_congestion = cubic_on_congestion,
    .on_recovered = cubic_on_recovered,
    .on_timeout = cubic_on_timeout,
    .on_spurious = cubic_on_spurious,
};
