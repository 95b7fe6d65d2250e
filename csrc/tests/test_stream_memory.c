/* Memory of streams: none for the idle, as much as reader and path make use of, within limits that all share. */
#include "stream_by_hand.h"

/* An idle stream holds no buffers. */
static void idle_memory(void) {
  sim m;
  sim_init(&m, 5);
  sim_opts o = {.own = {true, true}, .cc = {"bbr", "cubic"}, .mss = {1400, 1400}, .isn = {1, 2}};
  m.e[0].to_send = m.e[1].to_send = 2u << 20;
  CHECK(sim_run(&m, &o, 60 * S, true));
  uint64_t busy = m.budget.used;
  sim_run(&m, &o, m.now + 5 * S, false);
  CHECK(busy > 32768 && m.budget.used < 2 * 2048);
  sim_free(&m);
}

/* One side does not read: windows close without loss of a byte, and open again when it reads. */
static void slow_reader(bool own) {
  sim m;
  sim_init(&m, 6);
  sim_opts o = {.own = {own, own}, .cc = {"bbr", "cubic"}, .mss = {1152, 1152}, .isn = {0xffff0000u, 2}};
  m.cfg[1].recv_buffer = m.cfg[1].recv_buffer_plain = 256u << 10;
  m.e[0].to_send = 3u << 20;
  m.e[1].held = true;
  sim_run(&m, &o, 90 * S, false);
  pl_stream_info in;
  pl_stream_get_info(m.e[1].s, &in);
  CHECK(in.state == PL_ST_ESTABLISHED && in.bytes_recv >= (200u << 10) && in.bytes_recv <= (290u << 10));
  pl_stream_get_info(m.e[0].s, &in);
  CHECK(in.state == PL_ST_ESTABLISHED);
  m.e[1].held = false;
  m.e[1].read_rate = 4u << 20;
  m.e[1].read_credit_at = m.now;
  uint64_t t0 = m.now;
  CHECK(sim_run(&m, &o, m.now + 30 * S, true));
  CHECK(m.now - t0 < 3 * S); /* the window update, not a probe, got it going */
  CHECK(m.e[1].read == 3u << 20);
  sim_free(&m);
}

/* Buffers are as large as a reader and a path make use of, however much there is to send: little for one that reads slowly, twice what the
 * path holds and more for one that keeps up. */
static void memory_follows_reader(void) {
  for (unsigned fast = 0; fast < 2; fast++) {
    sim m;
    sim_init(&m, 12);
    sim_opts o = {.own = {true, true}, .cc = {"bbr", "bbr"}, .mss = {1400, 1400}, .isn = {1, 2}};
    m.cfg[0].send_buffer = m.cfg[1].recv_buffer = 64u << 20;
    m.l[0].delay_ns = m.l[1].delay_ns = 25 * MS;
    m.l[0].rate = 125000000;
    m.l[0].queue = 6250000;
    m.e[0].to_send = 1ull << 40;
    m.e[1].read_rate = fast ? 0 : 1u << 20;
    sim_run(&m, &o, m.now + 2 * S, false);
    pl_stream_info in;
    pl_stream_get_info(m.e[1].s, &in);
    uint64_t window = (uint64_t)in.local_window << sim_opt().window_shift;
    if (fast)
      CHECK(window >= 12500000 && m.e[1].read > 150000000);
    else
      CHECK(window <= 1u << 20 && m.budget.used <= 12u << 20);
    sim_free(&m);
  }
}

/* On a path this short a window is always open, but the streams of a peer share it: what is out together does not grow with their number. */
static void short_path_is_shared(void) {
  enum { MANY = 32 };
  pl_stream_cfg c = cfg();
  pl_synopt mine = sim_opt();
  mine.window_shift = 10;
  uint8_t option[PL_SYNOPT_SIZE];
  pl_synopt_write(option, &mine);
  static uint8_t data[1 << 18];
  pl_stream *s[MANY];
  uint64_t out = 0, alone = 0;
  for (unsigned i = 0; i < MANY; i++) {
    s[i] = pl_stream_dial(&c, 1000, 1400, &mine, S);
    pl_stream_release(s[i], S);
    CHECK(only(s[i], S).flags == PL_FLAG_SYN);
    CHECK(give(s[i], PL_FLAG_SYN | PL_FLAG_ACK, 0, 1001, 65535, option, sizeof option, S + MS / 10) & PL_SEV_OPENED);
    if (i == 0) {
      while (pl_stream_write(s[0], data, sizeof data) > 0 && pl_stream_unacked(s[0]) < 2u << 20) {
      }
      pl_stream_out o;
      while (pl_stream_next(s[0], S + MS / 10, &o)) alone += o.n1 + o.n2;
      pl_stream_abort(s[0], S + MS / 10);
      pl_stream_free(s[0]);
      s[0] = NULL;
    }
  }
  CHECK(alone > 900u << 10 && alone <= 1u << 20);
  for (unsigned i = 1; i < MANY; i++) CHECK(pl_stream_write(s[i], data, sizeof data) > 0);
  CHECK(budget.senders == MANY - 1);
  for (unsigned i = 1; i < MANY; i++) {
    pl_stream_out o;
    while (pl_stream_next(s[i], S + MS / 10, &o)) out += o.n1 + o.n2;
  }
  CHECK(out <= 3u << 20); /* each has its first window, whatever the path */
  for (unsigned i = 1; i < MANY; i++) pl_stream_free(s[i]);
  for (unsigned others = 0; others < 1000; others += 999) { /* so many that the receiver's socket would overflow: as on any path */
    s[0] = pl_stream_dial(&c, 1000, 1400, NULL, S);
    pl_stream_release(s[0], S);
    CHECK(only(s[0], S).flags == PL_FLAG_SYN);
    CHECK(give(s[0], PL_FLAG_SYN | PL_FLAG_ACK, 0, 1001, 512, NULL, 0, S + MS / 10) & PL_SEV_OPENED);
    budget.senders = others;
    CHECK(pl_stream_write(s[0], data, sizeof data) > 0);
    uint64_t first = 0;
    pl_stream_out o;
    while (pl_stream_next(s[0], S + MS / 10, &o)) first += o.n1 + o.n2;
    CHECK(others ? first <= 10 * 1400 : first > 100 * 1400);
    budget.senders = 1;
    pl_stream_free(s[0]);
  }
  CHECK(budget.used == 0 && budget.senders == 0);
}

/* The memory limit of the whole engine holds back windows, and everything still arrives. */
static void short_of_memory(void) {
  sim m;
  sim_init(&m, 8);
  sim_opts o = {.own = {true, true}, .cc = {"cubic", "cubic"}, .mss = {1400, 1400}, .isn = {1, 2}};
  m.budget.limit = 600u << 10;
  m.e[0].to_send = m.e[1].to_send = 4u << 20;
  m.l[0].loss = m.l[1].loss = 0.02;
  m.e[0].read_rate = m.e[1].read_rate = 8u << 20;
  uint64_t most = 0;
  while (!(m.e[0].done_at && m.e[1].done_at)) {
    sim_run(&m, &o, m.now + 10 * MS, true);
    if (m.budget.used > most) most = m.budget.used;
    CHECK(m.now < 200 * S);
  }
  CHECK(most <= (600u << 10) + 4 * 65536); /* 64 KiB per buffer are granted regardless */
  sim_free(&m);
}

/* Small buffers of streams that went serve the next ones, so many; large ones are not kept. */
static void spare_buffers(void) {
  static const uint8_t data[4 * 16384];
  pl_stream_cfg c = cfg();
  pl_spares kept = {0};
  c.spares = &kept;
  for (unsigned i = 0; i < 3; i++) {
    pl_stream *s = opened(&c, S);
    CHECK(kept.n == (i ? 1 : 0) && pl_stream_write(s, data, 1) == 1 && kept.n == 0);
    done(s);
    CHECK(kept.n == 1);
  }
  pl_stream *s[PL_SPARES + 6];
  for (unsigned i = 0; i < PL_SPARES + 6; i++) {
    s[i] = opened(&c, S);
    CHECK(pl_stream_write(s[i], data, 1) == 1);
  }
  for (unsigned i = 0; i < PL_SPARES + 6; i++) pl_stream_free(s[i]);
  CHECK(budget.used == 0 && kept.n == PL_SPARES);
  s[0] = opened(&c, S);
  CHECK(pl_stream_write(s[0], data, sizeof data) == sizeof data);
  done(s[0]);
  CHECK(kept.n == PL_SPARES);
  pl_spares_free(&kept);
  CHECK(kept.n == 0);
}

/* What is left of a stream that has ended both ways holds no buffers: at once, or when the rest is read. */
static void ended_memory(void) {
  for (unsigned unread = 0; unread < 2; unread++) {
    pl_stream_cfg c = cfg();
    pl_stream *s = opened(&c, S);
    CHECK(pl_stream_write(s, (const uint8_t *)"ping", 4) == 4);
    CHECK(only(s, S).seq == 1001);
    give(s, PL_FLAG_ACK, 1, 1005, 512, "pong", 4, S);
    if (!unread) pl_stream_consume(s, 4, S);
    pl_stream_close(s, S);
    pl_stream_out o;
    while (pl_stream_next(s, S, &o)) CHECK(o.n1 == 0);
    give(s, PL_FLAG_FIN | PL_FLAG_ACK, 5, 1006, 512, NULL, 0, S);
    pl_stream_info in;
    pl_stream_get_info(s, &in);
    CHECK(in.state == PL_ST_TIME_WAIT && (budget.used > 16384) == unread);
    if (unread) pl_stream_consume(s, 4, S);
    CHECK(pl_stream_tick(s, 2 * S) == 0 && budget.used < 4096);
    done(s);
  }
}

int main(void) {
  spare_buffers();
  ended_memory();
  idle_memory();
  slow_reader(true);
  slow_reader(false);
  memory_follows_reader();
  short_path_is_shared();
  short_of_memory();
  printf("test_stream_memory: ok\n");
  return 0;
}
