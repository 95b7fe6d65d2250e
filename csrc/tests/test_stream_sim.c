/* Streams over a virtual network: every byte exactly once and in order under loss, reordering and duplication, and enough of them
 * per second. The seed of a failing run is printed; PL_SEED=n runs that one alone. */
#include "stream_sim.h"

static const char *const strategies[2] = {"cubic", "bbr"};

static void fail_unless(const sim *m, bool ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "seed %llu: %s (t=%.3f s, read %llu of %llu and %llu of %llu)\n", (unsigned long long)m->seed, what,
          (double)m->now / 1e9, (unsigned long long)m->e[0].read, (unsigned long long)m->e[0].expect,
          (unsigned long long)m->e[1].read, (unsigned long long)m->e[1].expect);
  CHECK(ok);
}

/* One random transfer both ways, drawn wholly from the seed. */
static void random_transfer(uint64_t seed) {
  sim m;
  sim_init(&m, seed);
  sim_rng *r = &m.rng;
  unsigned mix = (unsigned)(sim_u64(r) % 3); /* plain-plain, own-own, own-plain */
  sim_opts o = {.own = {mix != 0, mix == 1}, .cc = {strategies[sim_u64(r) & 1], strategies[sim_u64(r) & 1]}};
  for (unsigned i = 0; i < 2; i++) {
    o.mss[i] = sim_u64(r) & 1 ? 1152 : 4096 + (uint32_t)(sim_u64(r) % 4000);
    o.isn[i] = sim_u64(r) & 1 ? (uint32_t)sim_u64(r) : 0xffffffffu - (uint32_t)(sim_u64(r) % 600000);
    m.l[i].loss = sim_unit(r) * 0.10;
    m.l[i].dup = sim_unit(r) * 0.05;
    m.l[i].delay_ns = sim_u64(r) % (60 * PL_NS_PER_MS);
    m.l[i].jitter_ns = sim_u64(r) & 1 ? sim_u64(r) % (10 * PL_NS_PER_MS) : 0;
    m.l[i].rate = sim_u64(r) & 1 ? 2000000 + sim_u64(r) % 100000000 : 0;
    m.l[i].queue = m.l[i].rate ? 30000 + sim_u64(r) % 1000000 : 0;
    m.e[i].to_send = (1u << 20) + sim_u64(r) % 100000;
    if (sim_u64(r) % 8 == 0) m.cfg[i].recv_buffer = m.cfg[i].recv_buffer_plain = 65536;
    if (sim_u64(r) % 8 == 0) m.e[i].read_rate = 1u << 20;
  }
  m.e[sim_u64(r) & 1].close_on_eof = true;
  unsigned closer = (unsigned)(sim_u64(r) & 1);
  bool plain = !(o.own[0] && o.own[1]);
  if (plain) sim_watch_bounds(&m, 0), sim_watch_bounds(&m, 1);
  bool done = sim_run(&m, &o, 400 * PL_NS_PER_S, true);
  fail_unless(&m, done, "the transfer ends");
  if (plain)
    for (unsigned i = 0; i < 2; i++) {
      fail_unless(&m, m.e[i].max_seg <= 4096, "no plain segment above 4096 bytes");
      fail_unless(&m, m.e[i].max_segs_out <= 128, "at most 128 unacknowledged segments toward a plain peer");
    }
  /* Orderly end: one closes, the other follows. */
  m.e[!closer].close_on_eof = true;
  m.e[closer].close_when_done = true;
  sim_run(&m, &o, m.now + 100 * PL_NS_PER_S, false);
  fail_unless(&m, m.e[!closer].eof, "the end of the stream is seen");
  for (unsigned i = 0; i < 2; i++) {
    fail_unless(&m, (m.e[i].events & PL_SEV_CLOSED) != 0, "both sides come to CLOSED");
    fail_unless(&m, !(m.e[i].events & PL_SEV_RESET), "nothing was reset");
  }
  sim_free(&m);
}

typedef struct rate_case {
  const char *name, *cc;
  bool own;
  uint64_t rate, queue, rtt_ns;
  double loss;
  uint64_t bytes;
  uint32_t mss;
  double share; /* of the link, at least */
} rate_case;

/* Goodput over the last three quarters of a one-way transfer, as a share of the link. */
static void throughput(const rate_case *c) {
  sim m;
  sim_init(&m, 7);
  sim_opts o = {.own = {c->own, c->own}, .cc = {c->cc, c->cc}, .mss = {c->mss, c->mss}, .isn = {1, 2}};
  for (unsigned i = 0; i < 2; i++) {
    m.l[i].delay_ns = c->rtt_ns / 2;
    m.l[i].rate = c->rate;
    m.l[i].queue = c->queue;
    m.cfg[i].send_buffer = 64u << 20;
    m.cfg[i].recv_buffer = 64u << 20;
  }
  m.l[0].loss = c->loss;
  m.e[0].to_send = c->bytes;
  m.e[1].expect = c->bytes;
  uint64_t begin = 0, from = 0;
  while (m.e[1].read < c->bytes) {
    sim_run(&m, &o, m.now + 5 * PL_NS_PER_MS, false);
    if (!begin && m.e[1].read >= c->bytes / 4) begin = m.now, from = m.e[1].read;
    CHECK(m.now < 600 * PL_NS_PER_S);
  }
  double share = (double)(m.e[1].read - from) / ((double)(m.now - begin) / 1e9) / (double)c->rate;
  pl_stream_info in;
  pl_stream_get_info(m.e[0].s, &in);
  printf("%-44s %5.1f %% of the link, %.2f s in all, %.2f %% resent, %llu timeouts, queue %.1f ms\n", c->name, 100 * share,
         (double)(m.now - PL_NS_PER_S) / 1e9, 100.0 * (double)in.retransmits / (double)in.segs_sent,
         (unsigned long long)in.timeouts, (double)m.l[0].max_queue_ns / 1e6);
  if (share < c->share) {
    fprintf(stderr, "%s: below %.0f %%\n", c->name, 100 * c->share);
    CHECK(share >= c->share);
  }
  sim_free(&m);
}

/* Two flows share a bottleneck; the second starts `later` afterwards. The weaker one's share of what both got from the twelfth second on. */
static double contest(const char *a, const char *b, uint64_t rate, uint64_t queue, uint64_t rtt_ns, uint64_t later) {
  sim m[2];
  uint64_t wire = 0, from[2] = {0};
  sim_opts o[2] = {{.own = {true, true}, .cc = {a, a}, .mss = {1400, 1400}, .isn = {1, 2}},
                   {.own = {true, true}, .cc = {b, b}, .mss = {1400, 1400}, .isn = {3, 4}}};
  for (unsigned f = 0; f < 2; f++) {
    sim_init(&m[f], 11 + f);
    for (unsigned i = 0; i < 2; i++) m[f].l[i].delay_ns = rtt_ns / 2;
    m[f].l[0].rate = rate;
    m[f].l[0].queue = queue;
    m[f].l[0].busy_until = &wire;
    m[f].cfg[0].send_buffer = m[f].cfg[1].recv_buffer = 64u << 20;
    m[f].e[0].to_send = 1ull << 40;
  }
  m[1].now += later;
  const uint64_t slice = 200 * PL_NS_PER_US, warm = 12 * PL_NS_PER_S, end = 42 * PL_NS_PER_S;
  for (uint64_t t = PL_NS_PER_S; t < end; t += slice) {
    for (unsigned k = 0; k < 2; k++) {
      unsigned f = (unsigned)(t / slice + k) & 1;
      if (m[f].now <= t) sim_run(&m[f], &o[f], t + slice, false);
    }
    if (t < warm) from[0] = m[0].e[1].read, from[1] = m[1].e[1].read;
  }
  double got[2], all;
  for (unsigned f = 0; f < 2; f++) got[f] = (double)(m[f].e[1].read - from[f]);
  all = got[0] + got[1];
  pl_stream_info in[2];
  for (unsigned f = 0; f < 2; f++) pl_stream_get_info(m[f].e[0].s, &in[f]);
  printf("%-6s and %-6s %4.0f Mbit/s, %3.0f ms, queue %4.0f KB: %4.1f %% + %4.1f %% of the link, resent %.2f %% and %.2f %%\n", a, b,
         (double)rate / 125000.0, (double)rtt_ns / 1e6, (double)queue / 1e3, 100 * got[0] / ((double)(end - warm) / 1e9) / (double)rate,
         100 * got[1] / ((double)(end - warm) / 1e9) / (double)rate, 100.0 * (double)in[0].retransmits / (double)in[0].segs_sent,
         100.0 * (double)in[1].retransmits / (double)in[1].segs_sent);
  CHECK(all / ((double)(end - warm) / 1e9) > 0.75 * (double)rate);
  for (unsigned f = 0; f < 2; f++) sim_free(&m[f]);
  return (got[0] < got[1] ? got[0] : got[1]) / all;
}

#define MBIT 125000ull

int main(void) {
  const char *one = getenv("PL_SEED"), *count = getenv("PL_SEEDS");
  if (one) {
    random_transfer(strtoull(one, NULL, 10));
    return 0;
  }
  uint64_t seeds = count ? strtoull(count, NULL, 10) : 1000;
  for (uint64_t seed = 1; seed <= seeds; seed++) random_transfer(seed);
  static const rate_case cases[] = {
      {"bbr own 1 Gbit/s 40 ms", "bbr", true, 1000 * MBIT, 5000000, 40 * PL_NS_PER_MS, 0, 200u << 20, 1400, 0.80},
      {"cubic own 1 Gbit/s 40 ms", "cubic", true, 1000 * MBIT, 5000000, 40 * PL_NS_PER_MS, 0, 200u << 20, 1400, 0.80},
      {"bbr own 1 Gbit/s 100 ms", "bbr", true, 1000 * MBIT, 12500000, 100 * PL_NS_PER_MS, 0, 400u << 20, 1400, 0.85},
      {"bbr own 1 Gbit/s 40 ms, shallow queue", "bbr", true, 1000 * MBIT, 500000, 40 * PL_NS_PER_MS, 0, 200u << 20, 1400, 0.75},
      {"bbr own 100 Mbit/s 30 ms 2 % loss", "bbr", true, 100 * MBIT, 400000, 30 * PL_NS_PER_MS, 0.02, 40u << 20, 1152, 0.80},
      {"bbr own 100 Mbit/s 30 ms 1 % loss", "bbr", true, 100 * MBIT, 200000, 30 * PL_NS_PER_MS, 0.01, 100u << 20, 1400, 0.85},
      {"bbr own 100 Mbit/s 100 ms 2 % loss", "bbr", true, 100 * MBIT, 1250000, 100 * PL_NS_PER_MS, 0.02, 40u << 20, 1152, 0.60},
      {"bbr own 100 Mbit/s 100 ms", "bbr", true, 100 * MBIT, 1250000, 100 * PL_NS_PER_MS, 0, 40u << 20, 1152, 0.80},
      {"cubic own 100 Mbit/s 100 ms", "cubic", true, 100 * MBIT, 1250000, 100 * PL_NS_PER_MS, 0, 40u << 20, 1152, 0.80},
      {"bbr own 10 Mbit/s 20 ms", "bbr", true, 10 * MBIT, 100000, 20 * PL_NS_PER_MS, 0, 8u << 20, 1152, 0.85},
      {"bbr own 1 Gbit/s 30 ms 2 % loss", "bbr", true, 1000 * MBIT, 4000000, 30 * PL_NS_PER_MS, 0.02, 100u << 20, 1400, 0.80},
      {"bbr own 10 Gbit/s 0.2 ms", "bbr", true, 10000 * MBIT, 4000000, 200 * PL_NS_PER_US, 0, 200u << 20, 8000, 0.80},
      {"bbr own 10 Gbit/s 0.2 ms, shallow queue", "bbr", true, 10000 * MBIT, 260000, 200 * PL_NS_PER_US, 0, 400u << 20, 8000, 0.80},
      {"cubic own 10 Gbit/s 0.2 ms", "cubic", true, 10000 * MBIT, 4000000, 200 * PL_NS_PER_US, 0, 200u << 20, 8000, 0.80},
      {"cubic plain 20 Mbit/s 20 ms", "cubic", false, 20 * MBIT, 100000, 20 * PL_NS_PER_MS, 0, 8u << 20, 1152, 0.80},
      {"bbr plain 20 Mbit/s 20 ms 2 % loss", "bbr", false, 20 * MBIT, 100000, 20 * PL_NS_PER_MS, 0.02, 8u << 20, 1152, 0.60},
  };
  const char *only = getenv("PL_RATE");
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
    if (!only || strstr(cases[i].name, only)) throughput(&cases[i]);
  static const struct {
    const char *a, *b;
    uint64_t queue;
    double share;
  } pairs[] = {
      {"cubic", "cubic", 250000, 0.25}, {"bbr", "bbr", 250000, 0.25},   {"bbr", "bbr", 1000000, 0.25},
      {"cubic", "bbr", 250000, 0.35},   {"cubic", "bbr", 1000000, 0.20}, {"bbr", "cubic", 100000, 0.35},
      {"bbr", "cubic", 500000, 0.35},
  };
  for (unsigned i = 0; i < sizeof pairs / sizeof *pairs; i++)
    if (!only || !strcmp(only, "contest"))
      CHECK(contest(pairs[i].a, pairs[i].b, 50 * MBIT, pairs[i].queue, 40 * PL_NS_PER_MS, 2 * PL_NS_PER_S) >= pairs[i].share);
  /* Begun together, neither gets more than 65 % in queues of half to two times what the path holds. */
  for (uint64_t ms = 10; ms <= 100; ms = ms == 30 ? 100 : 3 * ms)
    for (uint64_t half = 1; half <= 4 && (!only || !strcmp(only, "contest")); half *= 2)
      CHECK(contest("bbr", "cubic", 50 * MBIT, 50 * MBIT * ms * half / 2000, ms * PL_NS_PER_MS, 0) >= 0.35);
  printf("test_stream_sim: %llu transfers ok\n", (unsigned long long)seeds);
  return 0;
}
