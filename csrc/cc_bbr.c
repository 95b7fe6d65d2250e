/* Model-based congestion control in the manner of BBR (Cardwell et al.; draft-ietf-ccwg-bbr).
 *
 * The path is modelled by the largest delivery rate of the last ten rounds and the smallest round-trip time of the last ten
 * seconds. Sending is paced at the modelled rate; what may be in flight is a small multiple of their product. Loss alone changes
 * nothing, so random loss of a few per cent costs its share and no more. Loss of a whole round is weighed: much of it, or
 * some of it together with a standing queue, is congestion, and then the model is bounded from above (`bw_lo`, `inflight_hi`)
 * until a later probe finds room.
 *
 * Beside flows that fill the queue until it overflows, which is what TCP does, such a model takes too much of a short queue and too
 * little of a long one. So while there is a rival the window follows the rival's own rule (RIVAL: the curve of CUBIC, reduced when the
 * queue overflows), and pacing only smooths it. Signs of a rival: a queue that stands while this flow does not build one, or more loss
 * while there is a queue than while there is none. What is lost on a short queue is random and reduces nothing. From time to time the
 * flow drains its own part of the queue and looks whether the rest stands. */
#include <assert.h>
#include <math.h>

#include "cc_curve.h"

#define STARTUP_GAIN 2.77
#define DRAIN_GAIN (1.0 / STARTUP_GAIN)
#define CWND_GAIN 2.0
#define UP_GAIN 1.25
#define DOWN_GAIN 0.75
#define PACING_MARGIN 0.99    /* a little under the estimate keeps the queue from standing */
#define FULL_GROWTH 1.25
#define FULL_ROUNDS 3u
#define BW_ROUNDS 10u
#define MIN_RTT_WINDOW_NS (10 * PL_NS_PER_S)
#define PROBE_RTT_NS (200 * PL_NS_PER_MS)
#define CRUISE_RTTS 6u
#define LOSS_QUEUED 0.03      /* share of a round, with the round-trip time raised */
#define LOSS_ANY 0.15         /* share of a round, whatever the round-trip time says */
#define BETA_QUEUED 0.7
#define BETA_ANY 0.85
#define MIN_SEGMENTS 4u
#define SLACK_BYTES (128u * 1024u) /* two trains: acknowledgements come per batch */
#define SHORT_PATH_NS PL_NS_PER_MS
#define RIVAL_FIRST_NS (10 * PL_NS_PER_S) /* may have been a false alarm */
#define RIVAL_NS (30 * PL_NS_PER_S)
#define RIVAL_PACING 1.2
#define SETTLE_ROUNDS 3u
#define EMPTY_ROUNDS 10u
#define RANDOM_SEEN 0.0005
#define RANDOM_MAX 0.05       /* no more than this is taken for random */

enum { STARTUP, DRAIN, CRUISE, UP, DOWN, PROBE_RTT, RIVAL };

typedef struct bbr {
  struct {
    uint64_t v;
    uint32_t round;
  } max[3];                  /* best, second best, third best of the window, each newer than the one before */
  uint32_t round;
  uint8_t mode;
  bool full;                 /* start-up has found the limit */
  uint8_t full_rounds;
  uint64_t full_bw;
  uint64_t min_rtt, min_rtt_at;
  uint64_t phase_at, phase_len;
  uint64_t bw_lo, inflight_hi; /* UINT64_MAX = no bound */
  uint64_t prior_bw_lo, prior_inflight_hi; /* before the last reduction, for undo */
  uint64_t prior_cwnd;         /* before a timeout or PROBE_RTT */
  uint64_t round_acked, round_lost, round_rtt, round_bw, round_flight; /* rtt: the smallest, which late acknowledgements do not blur */
  uint64_t last_acked, last_lost, last_rtt; /* of the round before */
  bool round_limited, restore;
  pl_curve curve;              /* RIVAL: where `window` goes next */
  uint64_t window, rival_until;
  uint32_t cut_round;          /* in which it was last reduced */
  bool settled;                /* what start-up lost has been found out: there was a round without loss */
  uint32_t empty_rounds;       /* so many rounds without a queue */
  uint32_t tall_round;         /* in which the queue was last long */
  uint64_t cruise_rtt;         /* smallest round-trip time of the present CRUISE */
  double random;               /* share lost while the queue is short, smoothed */
  uint32_t seed;
} bbr;
static_assert(sizeof(bbr) <= sizeof(((pl_cc *)0)->u), "state of a strategy lives in pl_cc.u");

static bbr *state(pl_cc *cc) { return (bbr *)(void *)cc->u.words; }

static void bbr_init(pl_cc *cc, uint32_t mss, uint64_t now) {
  memset(&cc->u, 0, sizeof cc->u);
  cc->mss = mss;
  cc->cwnd = 10ull * mss;
  cc->ssthresh = UINT64_MAX;
  cc->pacing_rate = 0;
  bbr *b = state(cc);
  b->mode = STARTUP;
  b->bw_lo = b->inflight_hi = b->prior_bw_lo = b->prior_inflight_hi = UINT64_MAX;
  b->round_rtt = UINT64_MAX;
  b->min_rtt_at = now;
  b->seed = (uint32_t)(now ^ now >> 32) | 1;
}

/* ---- the model ---- */

/* Windowed maximum in constant space (Kathleen Nichols): the best sample and two newer runners-up. */
static void max_update(bbr *b, uint64_t v) {
  uint32_t r = b->round;
  if (v >= b->max[0].v || r - b->max[2].round > BW_ROUNDS) {
    for (unsigned i = 0; i < 3; i++) b->max[i].v = v, b->max[i].round = r;
    return;
  }
  if (v >= b->max[1].v) {
    b->max[1].v = b->max[2].v = v;
    b->max[1].round = b->max[2].round = r;
  } else if (v >= b->max[2].v) {
    b->max[2].v = v;
    b->max[2].round = r;
  }
  if (r - b->max[0].round > BW_ROUNDS) {
    b->max[0] = b->max[1];
    b->max[1] = b->max[2];
    b->max[2].v = v;
    b->max[2].round = r;
    if (r - b->max[0].round > BW_ROUNDS) {
      b->max[0] = b->max[1];
      b->max[1] = b->max[2];
    }
  } else if (b->max[1].round == b->max[0].round && r - b->max[1].round > BW_ROUNDS / 4) {
    b->max[1].v = b->max[2].v = v;
    b->max[1].round = b->max[2].round = r;
  } else if (b->max[2].round == b->max[1].round && r - b->max[2].round > BW_ROUNDS / 2) {
    b->max[2].v = v;
    b->max[2].round = r;
  }
}

static uint64_t bandwidth(const bbr *b) { return pl_min64(b->max[0].v, b->bw_lo); }

static uint64_t bdp(const bbr *b, double gain) {
  return (uint64_t)(gain * (double)bandwidth(b) * (double)b->min_rtt / (double)PL_NS_PER_S);
}

static uint64_t floor_bytes(const pl_cc *cc) { return MIN_SEGMENTS * (uint64_t)cc->mss; }

/* ---- rounds ---- */

static void check_full(bbr *b) {
  if (b->full || b->round_limited) return;
  if ((double)b->max[0].v >= (double)b->full_bw * FULL_GROWTH) {
    b->full_bw = b->max[0].v;
    b->full_rounds = 0;
  } else if (++b->full_rounds >= FULL_ROUNDS) {
    b->full = true;
  }
}

/* True if what was lost in this round bounds the model. */
static bool weigh_loss(pl_cc *cc, bbr *b) {
  uint64_t total = b->round_acked + b->round_lost;
  if (b->mode == RIVAL || b->round_lost < floor_bytes(cc) || !total) return false;
  double share = (double)b->round_lost / (double)total;
  bool queued = b->round_rtt != UINT64_MAX && b->min_rtt && b->round_rtt > b->min_rtt + b->min_rtt / 4 + PL_NS_PER_MS;
  double beta;
  if (queued && share > LOSS_QUEUED)
    beta = BETA_QUEUED;
  else if (share > LOSS_ANY)
    beta = BETA_ANY;
  else
    return false;
  if (b->mode == STARTUP) b->full = true;
  b->prior_bw_lo = b->bw_lo;
  b->prior_inflight_hi = b->inflight_hi;
  uint64_t flight = pl_min64(b->inflight_hi, b->round_flight);
  uint64_t least = pl_max64(bdp(b, beta), floor_bytes(cc));
  b->inflight_hi = pl_max64(pl_max64((uint64_t)(beta * (double)flight), b->round_acked), least);
  if (b->mode != UP) {
    /* Lost while not even probing: the path has become slower than the model believes. */
    uint64_t lo = (uint64_t)(beta * (double)bandwidth(b));
    b->bw_lo = pl_max64(lo, b->round_bw);
  }
  return true;
}

/* ---- rivals ---- */

static uint64_t queue_ns(uint64_t rtt, const pl_cc_ack *a) { return rtt > a->min_rtt_ns ? rtt - a->min_rtt_ns : 0; }
static uint64_t short_queue_ns(const pl_cc_ack *a) { return a->min_rtt_ns / 8 + PL_NS_PER_MS / 5; }

static bool overflowed(const pl_cc *cc, const bbr *b, const pl_cc_ack *a) {
  double lost = (double)(b->round_lost + b->last_lost), all = (double)(b->round_acked + b->last_acked) + lost;
  if (lost > LOSS_ANY * all) return true;
  uint64_t queue = queue_ns(b->round_rtt == UINT64_MAX ? b->last_rtt : pl_max64(b->round_rtt, b->last_rtt), a);
  if (queue <= short_queue_ns(a)) return false;
  double expected = b->random * all / cc->mss; /* two deviations more may still be chance */
  return lost / cc->mss > expected + 2 * sqrt(expected);
}

static void weigh_random(const pl_cc *cc, bbr *b, const pl_cc_ack *a) {
  double all = (double)(b->round_acked + b->round_lost);
  if (!b->round_lost) { /* the more of such losses there should have been, the more it tells that there were none */
    double expected = b->random * all / cc->mss;
    b->random -= b->random * (expected < 1 ? expected : 1) / 8;
    return;
  }
  if (b->mode == STARTUP || b->mode == DRAIN || queue_ns(b->round_rtt, a) > short_queue_ns(a)) b->tall_round = b->round;
  if (b->round - b->tall_round <= SETTLE_ROUNDS) return; /* may be from when the queue was not short */
  double share = (double)b->round_lost / all;
  b->random += ((share < RANDOM_MAX ? share : RANDOM_MAX) - b->random) / 8;
}

static void enter(bbr *b, uint8_t mode, uint64_t now);

static void reduce(pl_cc *cc, bbr *b) {
  b->window = pl_curve_reduce(&b->curve, b->window, cc->mss);
  b->cut_round = b->round;
}

static void meet_rival(bbr *b, const pl_cc_ack *a) {
  uint64_t flight = pl_max64(pl_max64(a->prior_in_flight, b->round_flight), bdp(b, 1.0));
  b->curve = (pl_curve){0};
  bool again = b->rival_until && a->now_ns - b->rival_until < RIVAL_FIRST_NS; /* only the look around came between */
  b->window = again ? pl_max64(b->window, flight) : flight;
  b->rival_until = a->now_ns + (again ? RIVAL_NS : RIVAL_FIRST_NS);
  b->bw_lo = b->inflight_hi = UINT64_MAX;
  b->cut_round = b->round - 2;
  enter(b, RIVAL, a->now_ns);
}

/* The window beside a rival. */
static void compete(pl_cc *cc, bbr *b, const pl_cc_ack *a) {
  if (a->lost && b->round - b->cut_round >= 2 && overflowed(cc, b, a)) {
    reduce(cc, b);
    return;
  }
  if (b->round - b->cut_round >= 1 && a->prior_in_flight + a->prior_in_flight / 3 >= b->window)
    b->window = pl_curve_grow(&b->curve, b->window, cc->mss, a);
  /* What was reduced although the loss was random is given back at once. */
  if (a->round_start && b->random > RANDOM_SEEN && queue_ns(b->last_rtt, a) < short_queue_ns(a)) b->window = pl_max64(b->window, bdp(b, 1.0));
}

static void end_round(pl_cc *cc, bbr *b, const pl_cc_ack *a) {
  b->round++;
  bool bounded = weigh_loss(cc, b);
  weigh_random(cc, b, a);
  if (b->full && b->mode != DRAIN && !b->round_lost) b->settled = true;
  bool empty = queue_ns(b->round_rtt, a) < a->min_rtt_ns / 32 + PL_NS_PER_MS / 10;
  b->empty_rounds = empty && b->round_rtt != UINT64_MAX ? b->empty_rounds + 1 : 0;
  check_full(b);
  if (b->mode == UP && b->inflight_hi != UINT64_MAX && !bounded && b->round_flight >= b->inflight_hi / 8 * 7)
    b->inflight_hi += b->inflight_hi / 2; /* the bound was reached without loss: there is room */
  b->last_acked = b->round_acked;
  b->last_lost = b->round_lost;
  b->last_rtt = b->round_rtt == UINT64_MAX ? 0 : b->round_rtt;
  b->round_acked = b->round_lost = b->round_bw = b->round_flight = 0;
  b->round_rtt = UINT64_MAX;
  b->round_limited = true;
}

/* ---- phases ---- */

static void enter(bbr *b, uint8_t mode, uint64_t now) {
  b->mode = mode;
  b->phase_at = now;
  b->phase_len = b->min_rtt;
  if (mode == CRUISE) {
    /* Flows that began together must not probe together. */
    b->seed = b->seed * 1664525u + 1013904223u;
    b->phase_len = b->min_rtt * (CRUISE_RTTS - 2 + (b->seed >> 24) % 5);
  }
  b->cruise_rtt = UINT64_MAX;
  if (mode == UP) b->bw_lo = UINT64_MAX;
}

static void advance(pl_cc *cc, bbr *b, const pl_cc_ack *a) {
  uint64_t spent = a->now_ns - b->phase_at;
  switch (b->mode) {
    case STARTUP:
      if (b->full) enter(b, DRAIN, a->now_ns);
      break;
    case DRAIN:
      if (a->in_flight > bdp(b, 1.0)) break;
      enter(b, CRUISE, a->now_ns);
      break;
    case CRUISE:
      if (spent < b->phase_len) break;
      if (b->cruise_rtt != UINT64_MAX && queue_ns(b->cruise_rtt, a) > short_queue_ns(a) + PL_NS_PER_MS / 2)
        meet_rival(b, a);
      else
        enter(b, UP, a->now_ns);
      break;
    case UP:
      if (spent >= b->phase_len && (a->prior_in_flight >= bdp(b, UP_GAIN) || spent >= (b->inflight_hi == UINT64_MAX ? 4 : 8) * b->phase_len))
        enter(b, DOWN, a->now_ns);
      break;
    case RIVAL:
      if (b->empty_rounds >= EMPTY_ROUNDS)
        enter(b, CRUISE, a->now_ns); /* a rival would have filled it again */
      else if (a->now_ns >= b->rival_until)
        enter(b, DRAIN, a->now_ns);
      break;
    case DOWN:
      if (a->in_flight <= bdp(b, 1.0) || spent >= 2 * b->phase_len) enter(b, CRUISE, a->now_ns);
      break;
    default: /* PROBE_RTT */
      if (spent >= b->phase_len) {
        b->min_rtt_at = a->now_ns;
        cc->cwnd = pl_max64(cc->cwnd, b->prior_cwnd);
        enter(b, b->full ? CRUISE : STARTUP, a->now_ns);
      }
      break;
  }
}

static void update_min_rtt(pl_cc *cc, bbr *b, const pl_cc_ack *a) {
  if (!a->rtt_ns) return;
  bool expired = a->now_ns - b->min_rtt_at > MIN_RTT_WINDOW_NS;
  if (!b->min_rtt || a->rtt_ns <= b->min_rtt) {
    b->min_rtt = a->rtt_ns;
    b->min_rtt_at = a->now_ns;
  } else if (expired && b->mode == RIVAL) {
    b->min_rtt = a->min_rtt_ns;
    b->min_rtt_at = a->now_ns;
  } else if (expired && b->mode != PROBE_RTT) {
    b->min_rtt = a->rtt_ns;
    b->min_rtt_at = a->now_ns;
    /* On a path this short a drained queue tells nothing that a sample does not, and costs a lot. */
    if (a->rtt_ns < SHORT_PATH_NS || !b->full) return;
    b->prior_cwnd = cc->cwnd;
    enter(b, PROBE_RTT, a->now_ns);
    b->phase_len = pl_max64(PROBE_RTT_NS, a->srtt_ns);
    b->min_rtt = a->rtt_ns;
  }
}

static double pacing_gain(const bbr *b) {
  switch (b->mode) {
    case STARTUP: return STARTUP_GAIN;
    case DRAIN: return DRAIN_GAIN;
    case UP: return UP_GAIN;
    case DOWN: return DOWN_GAIN;
    default: return 1.0;
  }
}

static void set_limits(pl_cc *cc, bbr *b, const pl_cc_ack *a) {
  if (b->mode == RIVAL) {
    cc->cwnd = b->window;
    if (a->srtt_ns) cc->pacing_rate = (uint64_t)(RIVAL_PACING * (double)cc->cwnd * (double)PL_NS_PER_S / (double)a->srtt_ns);
    return;
  }
  uint64_t bw = bandwidth(b);
  if (bw) {
    cc->pacing_rate = (uint64_t)(pacing_gain(b) * PACING_MARGIN * (double)bw);
    /* The first estimates are small because little was sent, not because the path is slow. */
    uint64_t window_rate = a->srtt_ns ? (uint64_t)((double)cc->cwnd * (double)PL_NS_PER_S / (double)a->srtt_ns) : 0;
    if (b->mode == STARTUP && cc->pacing_rate < window_rate) cc->pacing_rate = window_rate;
  } else if (a->srtt_ns) {
    cc->pacing_rate = (uint64_t)(STARTUP_GAIN * (double)cc->cwnd * (double)PL_NS_PER_S / (double)a->srtt_ns);
  }
  /* What the window allows in any case is no burst either; an estimate from a round that lost nearly everything would stop the stream. */
  if (bw && a->srtt_ns) cc->pacing_rate = pl_max64(cc->pacing_rate, (uint64_t)((double)floor_bytes(cc) * (double)PL_NS_PER_S / (double)a->srtt_ns));
  uint64_t target = pl_max64(bdp(b, CWND_GAIN) + SLACK_BYTES, floor_bytes(cc));
  if (b->full)
    cc->cwnd = pl_min64(cc->cwnd + a->acked, target);
  else if (cc->cwnd < target || b->round < 2)
    cc->cwnd += a->acked;
  if (b->inflight_hi != UINT64_MAX) {
    uint64_t hi = b->mode == CRUISE || b->mode == DOWN ? b->inflight_hi - b->inflight_hi / 8 : b->inflight_hi;
    cc->cwnd = pl_min64(cc->cwnd, pl_max64(hi, floor_bytes(cc)));
  }
  if (b->mode == PROBE_RTT) cc->cwnd = pl_min64(cc->cwnd, pl_max64(bdp(b, 0.5), floor_bytes(cc)));
  if (cc->cwnd < floor_bytes(cc)) cc->cwnd = floor_bytes(cc);
}

static void bbr_on_ack(pl_cc *cc, const pl_cc_ack *a) {
  bbr *b = state(cc);
  b->round_acked += a->acked;
  b->round_lost += a->lost;
  b->round_flight = pl_max64(b->round_flight, a->prior_in_flight);
  if (a->rtt_ns) {
    b->round_rtt = pl_min64(b->round_rtt, a->rtt_ns);
    b->cruise_rtt = pl_min64(b->cruise_rtt, a->rtt_ns);
  }
  if (a->delivery_rate) {
    b->round_bw = pl_max64(b->round_bw, a->delivery_rate);
    if (!a->app_limited || a->delivery_rate >= b->max[0].v) max_update(b, a->delivery_rate);
    if (!a->app_limited) b->round_limited = false;
  }
  update_min_rtt(cc, b, a);
  if (a->round_start) end_round(cc, b, a);
  bool probing = b->mode == CRUISE || b->mode == UP || b->mode == DOWN;
  if (a->lost && probing && b->settled && overflowed(cc, b, a)) {
    meet_rival(b, a);
    reduce(cc, b);
  } else if (b->mode == RIVAL) {
    compete(cc, b, a);
  }
  advance(cc, b, a);
  set_limits(cc, b, a);
}

/* ---- events ---- */

static void bbr_on_congestion(pl_cc *cc, uint64_t in_flight, uint64_t now) {
  (void)cc, (void)in_flight, (void)now; /* single losses mean nothing: see weigh_loss */
}

static void bbr_on_recovered(pl_cc *cc, uint64_t now) {
  (void)now;
  bbr *b = state(cc);
  if (!b->restore) return;
  b->restore = false;
  cc->cwnd = pl_max64(cc->cwnd, pl_min64(b->prior_cwnd, b->inflight_hi));
}

static void bbr_on_timeout(pl_cc *cc, uint64_t now) {
  (void)now;
  bbr *b = state(cc);
  if (!b->restore) b->prior_cwnd = cc->cwnd;
  b->restore = true; /* the model outlives the pause; the window returns once the holes are mended */
  b->full_bw = 0;
  b->full_rounds = 0;
  cc->cwnd = floor_bytes(cc);
}

static void bbr_on_spurious(pl_cc *cc, uint64_t now) {
  bbr *b = state(cc);
  if (b->mode == RIVAL && b->round - b->cut_round < 2) b->window = pl_max64(b->window, (uint64_t)(b->curve.cwnd_prior * cc->mss));
  b->bw_lo = pl_max64(b->bw_lo, b->prior_bw_lo);
  b->inflight_hi = pl_max64(b->inflight_hi, b->prior_inflight_hi);
  bbr_on_recovered(cc, now);
}

const pl_cc_ops pl_cc_bbr = {
    .name = "bbr",
    .init = bbr_init,
    .on_ack = bbr_on_ack,
    .on_congestion = bbr_on_congestion,
    .on_recovered = bbr_on_recovered,
    .on_timeout = bbr_on_timeout,
    .on_spurious = bbr_on_spurious,
};
