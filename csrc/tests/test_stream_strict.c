/* The plain sender and a receiver as strict as the other implementations are, over bad links. PL_SEED runs one seed alone. */
#include "stream_upstream.h"

#define MS PL_NS_PER_MS
#define S PL_NS_PER_S

/* Our plain sender against the strict receiver over a bad link. */
static void strict_receiver(uint64_t seed) {
  sim m; /* only links, clock and randomness */
  sim_init(&m, seed);
  sim_rng *r = &m.rng;
  ups u = {.ack_at = PL_NEVER, .lowest = sim_u64(r) & 1, .no_sack = sim_u64(r) % 6 == 0, .renege = sim_u64(r) % 6 == 0};
  for (unsigned i = 0; i < 2; i++) {
    m.l[i].loss = sim_unit(r) * 0.08;
    m.l[i].dup = sim_unit(r) * 0.03;
    m.l[i].delay_ns = sim_u64(r) % (30 * MS);
    m.l[i].jitter_ns = sim_u64(r) & 1 ? sim_u64(r) % (5 * MS) : 0;
  }
  uint32_t isn = sim_u64(r) & 1 ? 0xffffffffu - (uint32_t)(sim_u64(r) % 300000) : (uint32_t)sim_u64(r);
  uint64_t read_every = sim_u64(r) & 1 ? 0 : 1 + sim_u64(r) % 3; /* ms per segment read */
  pl_stream_cfg c = sim_cfg(sim_u64(r) & 1 ? "bbr" : "cubic");
  c.budget = &m.budget;
  size_t total = 600000 + sim_u64(r) % 100000, written = 0;
  uint8_t *text = malloc(total);
  for (size_t i = 0; i < total; i++) text[i] = (uint8_t)sim_u64(r);
  for (size_t i = 0; i + 5 < total; i += 97 + sim_u64(r) % 2000) memcpy(text + i, "SACK\x01", 5); /* traps */
  m.e[0].isn = isn;
  m.e[0].to_send = total;
  sim_watch_bounds(&m, 0);
  pl_stream *s = pl_stream_dial(&c, isn, sim_u64(r) & 1 ? 1152 : 9000, NULL, m.now);
  m.e[0].s = s;
  pl_stream_release(s, m.now);
  bool closed = false;
  unsigned ev = 0;
  uint64_t next_read = 0, fin_time = 0, limit = m.now + 400 * S;
  while (!(ev & PL_SEV_CLOSED)) {
    if (m.now > limit) fprintf(stderr, "seed %llu: %zu of %zu\n", (unsigned long long)seed, u.n_got, total);
    CHECK(m.now <= limit);
    if (pl_stream_deadline(s) <= m.now) ev |= pl_stream_tick(s, m.now);
    if (written < total) {
      size_t some = 1 + sim_u64(r) % 20000;
      int64_t w = pl_stream_write(s, text + written, some < total - written ? some : total - written);
      if (w > 0) written += (size_t)w;
    }
    pl_stream_info in;
    pl_stream_get_info(s, &in);
    if (written == total && !closed && in.state != PL_ST_SYN_SENT) { /* before it is open a close gives the dial up */
      closed = true;
      pl_stream_close(s, m.now);
    }
    sim_flush(&m, 0);
    CHECK(!(ev & PL_SEV_RESET));
    if (u.closed && !fin_time) {
      fin_time = m.now;
      CHECK(u.n_got == total); /* FIN came after everything: this receiver acts on it at once */
    }
    uint64_t next = pl_min64(pl_stream_deadline(s), u.ack_at);
    for (unsigned i = 0; i < 2; i++)
      if (m.l[i].n) next = pl_min64(next, m.l[i].heap[0].at);
    if (u.slots_used && read_every) next = pl_min64(next, next_read);
    if (written < total && pl_stream_writable(s)) next = pl_min64(next, m.now + MS);
    m.now = next > m.now ? next : m.now + 1;
    if (u.slots_used && (!read_every || m.now >= next_read)) {
      u.slots_used = read_every ? u.slots_used - 1 : 0;
      next_read = m.now + read_every * MS;
    }
    ups_reply rep;
    while (m.l[0].n && m.l[0].heap[0].at <= m.now) {
      sim_pkt p = sim_pop(&m.l[0]);
      if (ups_recv(&u, &p.h, m.now, &rep)) {
        rep.h.proto = PL_PROTO_STREAM;
        sim_transmit(&m, &m.l[1], &rep.h, rep.body);
      }
      free(p.data);
    }
    if (u.ack_at <= m.now) {
      ups_ack(&u, &rep, false);
      sim_transmit(&m, &m.l[1], &rep.h, rep.body);
    }
    while (m.l[1].n && m.l[1].heap[0].at <= m.now) {
      sim_pkt p = sim_pop(&m.l[1]);
      sim_deliver(&m, 0, &p, NULL, 0, 0);
      free(p.data);
    }
    ev |= m.e[0].events;
  }
  CHECK(u.n_got == total && !memcmp(u.got, text, total));
  CHECK(m.e[0].max_segs_out <= 128 && m.e[0].max_seg <= 4096 && !m.e[0].finacks);
  CHECK(u.fin_echoes <= 6);
  ups_free(&u);
  free(text);
  sim_free(&m);
}

int main(void) {
  const char *one = getenv("PL_SEED");
  if (one) {
    strict_receiver(strtoull(one, NULL, 10));
    return 0;
  }
  for (uint64_t seed = 1; seed <= 60; seed++) strict_receiver(seed);
  printf("test_stream_strict: ok\n");
  return 0;
}
