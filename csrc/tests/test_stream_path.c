/* Streams whose path changes under them: before the dialer has its answer, and in the middle of a transfer. */
#include "stream_sim.h"

#define MS PL_NS_PER_MS
#define S PL_NS_PER_S

static bool drop_after(void *ctx, const pl_packet *p) {
  (void)p;
  uint64_t *left = ctx;
  if (!*left) return false;
  --*left;
  return true;
}

/* The path dies and another takes over: the transfer goes on within a few round trips, re-cut for smaller segments. */
static void path_change(bool own) {
  sim m;
  sim_init(&m, 9);
  sim_opts o = {.own = {own, own}, .cc = {"bbr", "bbr"}, .mss = {4096, 4096}, .isn = {1, 2}};
  uint64_t left = 60;
  m.e[0].to_send = 1u << 20;
  m.l[0].filter = drop_after;
  m.l[0].filter_ctx = &left;
  sim_watch_bounds(&m, 0);
  if (own) free(m.e[0].seg_len), m.e[0].seg_len = NULL;
  sim_run(&m, &o, 3 * S, false);
  CHECK(!m.e[1].done_at);
  left = UINT64_MAX;
  m.l[0].delay_ns = m.l[1].delay_ns = 25 * MS;
  pl_stream_path_changed(m.e[0].s, 1152, m.now);
  pl_stream_path_changed(m.e[1].s, 1152, m.now);
  if (own) m.e[0].max_seg = 0;
  uint64_t t0 = m.now;
  CHECK(sim_run(&m, &o, 20 * S, true));
  CHECK(m.now - t0 < 1500 * MS);
  if (own) CHECK(m.e[0].max_seg <= 1152);
  sim_free(&m);
}

/* The SYN came over one path and the answer to it went there and was lost; by then the acceptor knows a better one. The dialer has
 * the stream a round trip after that, not only when its SYN is due again. */
static void path_change_while_opening(void) {
  sim m;
  sim_init(&m, 10);
  sim_opts o = {.own = {true, true}, .cc = {"bbr", "bbr"}, .mss = {1152, 1152}, .isn = {1, 2}};
  uint64_t none = 0;
  m.e[0].to_send = 64;
  m.l[0].delay_ns = m.l[1].delay_ns = 2 * MS;
  m.l[1].filter = drop_after;
  m.l[1].filter_ctx = &none;
  sim_run(&m, &o, m.now + 3 * MS, false);
  CHECK(m.e[1].s && m.l[1].dropped == 1); /* SYN+ACK */
  none = UINT64_MAX;
  uint64_t t0 = m.now;
  pl_stream_path_changed(m.e[1].s, 1152, m.now);
  CHECK(sim_run(&m, &o, m.now + S, true));
  CHECK(m.now - t0 <= 3 * 2 * MS);
  sim_free(&m);
}

int main(void) {
  path_change_while_opening();
  path_change(true);
  path_change(false);
  printf("test_stream_path: ok\n");
  return 0;
}
