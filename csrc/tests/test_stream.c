/* Rules of a stream, one by one: opening, acknowledging, windows, closing, giving up. transport.md 4 and 9.1. */
#include "stream_upstream.h"

#define MS PL_NS_PER_MS
#define S PL_NS_PER_S

static pl_budget budget;

static pl_stream_cfg cfg(void) {
  budget = (pl_budget){.limit = 256u << 20};
  pl_stream_cfg c = sim_cfg("cubic");
  c.budget = &budget;
  return c;
}

static pl_packet pkt(uint8_t flags, uint32_t seq, uint32_t ack, uint16_t window, const void *data, size_t len) {
  return (pl_packet){.flags = flags, .proto = PL_PROTO_STREAM, .seq = seq, .ack = ack, .window = window, .payload = data, .len = (uint16_t)len};
}

static unsigned give(pl_stream *s, uint8_t flags, uint32_t seq, uint32_t ack, uint16_t window, const void *data, size_t len, uint64_t now) {
  pl_packet p = pkt(flags, seq, ack, window, data, len);
  return pl_stream_recv(s, &p, now);
}

/* Expects exactly one packet to be ready. */
static pl_stream_out only(pl_stream *s, uint64_t now) {
  pl_stream_out o, none;
  CHECK(pl_stream_next(s, now, &o) == 1);
  uint8_t keep[5 + 8 * PL_SACK_MAX];
  bool small = o.n1 <= sizeof keep && !o.n2 && o.n1;
  if (small) memcpy(keep, o.p1, o.n1);
  CHECK(pl_stream_next(s, now, &none) == 0);
  if (small) {
    static uint8_t kept[sizeof keep];
    memcpy(kept, keep, o.n1);
    o.p1 = kept;
  }
  return o;
}

static void silent(pl_stream *s, uint64_t now) {
  pl_stream_out o;
  CHECK(pl_stream_next(s, now, &o) == 0);
}

/* Lets time pass until a packet is sent: some deadlines are only housekeeping. */
static pl_stream_out await(pl_stream *s, uint64_t *at) {
  pl_stream_out o;
  do {
    *at = pl_stream_deadline(s);
    CHECK(*at != PL_NEVER);
    CHECK(pl_stream_tick(s, *at) == 0);
  } while (!pl_stream_next(s, *at, &o));
  return o;
}

static void done(pl_stream *s) {
  pl_stream_free(s);
  CHECK(budget.used == 0);
}

/* A dialer at ISN 1000 whose peer is a plain one at ISN 0: first byte out 1001, first byte in 1. */
static pl_stream *opened(const pl_stream_cfg *c, uint64_t now) {
  pl_stream *s = pl_stream_dial(c, 1000, 1152, NULL, now);
  pl_stream_release(s, now);
  CHECK(only(s, now).flags == PL_FLAG_SYN);
  CHECK(give(s, PL_FLAG_SYN | PL_FLAG_ACK, 0, 1001, 512, NULL, 0, now + 10 * MS) & PL_SEV_OPENED);
  pl_stream_out o = only(s, now + 10 * MS);
  CHECK(o.flags == PL_FLAG_ACK && o.seq == 1001 && o.ack == 1 && o.window == 512 && !o.n1);
  return s;
}

static void opening(void) {
  pl_stream_cfg c = cfg();
  pl_stream *s = pl_stream_dial(&c, 1000, 1152, NULL, S);
  silent(s, S);
  CHECK(pl_stream_write(s, (const uint8_t *)"hello", 5) == 5); /* waits */
  pl_stream_release(s, 2 * S);
  pl_stream_out o = only(s, 2 * S);
  CHECK(o.flags == PL_FLAG_SYN && o.seq == 1000 && o.ack == 0 && o.window == 512 && o.n1 == 0);
  CHECK(pl_stream_deadline(s) == 2 * S + 250 * MS);
  CHECK(pl_stream_tick(s, 2 * S + 250 * MS) == 0);
  CHECK(only(s, 2 * S + 250 * MS).flags == PL_FLAG_SYN);
  CHECK(pl_stream_deadline(s) == 2 * S + 750 * MS);
  CHECK(give(s, PL_FLAG_SYN | PL_FLAG_ACK, 70, 1000, 512, NULL, 0, 2 * S + 300 * MS) == 0); /* acknowledges something else */
  CHECK(give(s, PL_FLAG_ACK, 71, 1001, 512, "x", 1, 2 * S + 300 * MS) == 0);
  silent(s, 2 * S + 300 * MS);
  CHECK(give(s, PL_FLAG_SYN | PL_FLAG_ACK, 70, 1001, 512, "ignored", 7, 2 * S + 310 * MS) & PL_SEV_OPENED);
  o = only(s, 2 * S + 310 * MS); /* the data carries the third packet's acknowledgement */
  CHECK(o.flags == PL_FLAG_ACK && o.seq == 1001 && o.ack == 71 && o.n1 == 5 && !memcmp(o.p1, "hello", 5));
  CHECK(give(s, PL_FLAG_SYN | PL_FLAG_ACK, 70, 1001, 512, NULL, 0, 2 * S + 320 * MS) == 0); /* ours was lost */
  CHECK(only(s, 2 * S + 320 * MS).flags == PL_FLAG_ACK);
  done(s);

  s = opened(&c, S); /* the third packet is repeated if nothing proves that it arrived */
  CHECK(pl_stream_deadline(s) == S + 310 * MS);
  pl_stream_tick(s, S + 310 * MS);
  CHECK(only(s, S + 310 * MS).flags == PL_FLAG_ACK);
  done(s);
}

static void accepting(void) {
  pl_stream_cfg c = cfg();
  pl_packet syn = pkt(PL_FLAG_SYN, 5, 0, 512, NULL, 0);
  pl_stream *s = pl_stream_accept(&c, 0xffffffff, 1152, NULL, &syn, S);
  pl_stream_out o = only(s, S);
  CHECK(o.flags == (PL_FLAG_SYN | PL_FLAG_ACK) && o.seq == 0xffffffff && o.ack == 6 && o.window == 512 && !o.n1);
  CHECK(pl_stream_write(s, (const uint8_t *)"speak first", 11) == 11);
  o = only(s, S);
  CHECK(o.flags == PL_FLAG_ACK && o.seq == 0 && o.n1 == 11);
  pl_stream_recv(s, &syn, S + 250 * MS); /* must-have 17: the original answer, whatever was sent since */
  o = only(s, S + 250 * MS);
  CHECK(o.flags == (PL_FLAG_SYN | PL_FLAG_ACK) && o.seq == 0xffffffff && o.ack == 6);
  CHECK(give(s, PL_FLAG_ACK, 6, 11, 512, NULL, 0, S + 300 * MS) == 0);
  CHECK(pl_stream_unacked(s) == 0);
  pl_packet other = pkt(PL_FLAG_SYN, 900, 0, 512, NULL, 0); /* a peer that started anew */
  CHECK(pl_stream_recv(s, &other, 2 * S) & PL_SEV_RESET);
  done(s);
}

static void options(void) {
  pl_stream_cfg c = cfg();
  pl_synopt mine = sim_opt(), back;
  pl_stream *s = pl_stream_dial(&c, 1000, 9000, &mine, S);
  pl_stream_release(s, S);
  pl_stream_out o = only(s, S);
  CHECK(o.flags == PL_FLAG_SYN && o.n1 == PL_SYNOPT_SIZE && o.window == 256);
  CHECK(pl_synopt_parse(o.p1, o.p1 + o.n1, &back) && back.max_sack == 32 && back.window_shift == 9);
  pl_packet syn = pkt(PL_FLAG_SYN, 1000, 0, 512, o.p1, o.n1);
  uint8_t copy[PL_SYNOPT_SIZE];
  memcpy(copy, o.p1, sizeof copy);
  syn.payload = copy;
  pl_stream *t = pl_stream_accept(&c, 7, 9000, &mine, &syn, S);
  o = only(t, S);
  CHECK(o.n1 == PL_SYNOPT_SIZE && o.window == (1u << 20) >> 9);
  CHECK(give(s, o.flags, o.seq, o.ack, o.window, o.p1, o.n1, S + MS) & PL_SEV_OPENED);
  pl_stream_info in;
  pl_stream_get_info(s, &in);
  CHECK(in.options && in.mss == 8192 && in.cwnd >= 65536);
  pl_stream_get_info(t, &in);
  CHECK(in.options);
  pl_stream_free(t);
  t = pl_stream_accept(&c, 7, 9000, NULL, &syn, S); /* does not want them: plain on both sides */
  o = only(t, S);
  CHECK(o.n1 == 0 && o.window == 512);
  pl_stream_get_info(t, &in);
  CHECK(!in.options && in.mss == 4096);
  pl_stream_free(t);
  pl_stream_free(s);
  s = pl_stream_dial(&c, 1000, 9000, &mine, S);
  pl_stream_release(s, S);
  only(s, S);
  give(s, PL_FLAG_SYN | PL_FLAG_ACK, 0, 1001, 512, NULL, 0, S + MS);
  pl_stream_get_info(s, &in);
  CHECK(!in.options && in.mss == 4096 && in.state == PL_ST_ESTABLISHED);
  done(s);
}

static void dial_ends(void) {
  pl_stream_cfg c = cfg();
  pl_stream *s = pl_stream_dial(&c, 1000, 1152, NULL, S);
  pl_stream_release(s, S);
  only(s, S);
  CHECK(give(s, PL_FLAG_RST, 0, 77, 0, NULL, 0, S + MS) == 0); /* not ours */
  CHECK(give(s, PL_FLAG_RST, 0, 0, 0, NULL, 0, S + MS) == (PL_SEV_REFUSED | PL_SEV_CLOSED));
  done(s);
  s = pl_stream_dial(&c, 1000, 1152, NULL, S);
  pl_stream_release(s, S);
  unsigned syns = 0, ev = 0;
  uint64_t now = S;
  pl_stream_out o;
  while (!ev) {
    while (pl_stream_next(s, now, &o)) syns++;
    now = pl_stream_deadline(s);
    CHECK(now != PL_NEVER);
    ev = pl_stream_tick(s, now);
  }
  CHECK(ev == (PL_SEV_TIMEOUT | PL_SEV_CLOSED) && now == 31 * S);
  CHECK(syns == 8); /* 0, 1/4, 3/4, 7/4, 15/4, 31/4, 63/4, 95/4 s */
  CHECK(pl_stream_deadline(s) == PL_NEVER);
  done(s);
  s = pl_stream_dial(&c, 1000, 1152, NULL, S); /* held for ever: the timeout still comes */
  CHECK(pl_stream_deadline(s) == 31 * S && pl_stream_tick(s, 31 * S) == (PL_SEV_TIMEOUT | PL_SEV_CLOSED));
  done(s);
}

/* Every second segment, at once on a gap and with SACK, a lone one within 5 ms, old data at once, empty packets never. */
static void acknowledging(void) {
  pl_stream_cfg c = cfg();
  uint64_t now = 2 * S;
  pl_stream *s = opened(&c, S);
  uint32_t seq = 1;
  for (unsigned i = 0; i < 16; i++, seq += 10) { /* the start of a stream: each at once */
    CHECK(give(s, PL_FLAG_ACK, seq, 1001, 512, "0123456789", 10, now) == PL_SEV_READABLE);
    CHECK(only(s, now).ack == seq + 10);
  }
  give(s, PL_FLAG_ACK, seq, 1001, 512, "0123456789", 10, now);
  silent(s, now);
  CHECK(pl_stream_deadline(s) == now + 5 * MS);
  pl_stream_tick(s, now + 5 * MS);
  CHECK(only(s, now + 5 * MS).ack == seq + 10);
  seq += 10;
  give(s, PL_FLAG_ACK, seq, 1001, 512, "0123456789", 10, now);
  silent(s, now);
  give(s, PL_FLAG_ACK, seq + 10, 1001, 512, "0123456789", 10, now);
  CHECK(only(s, now).ack == seq + 20);
  seq += 20;
  CHECK(give(s, PL_FLAG_ACK, seq + 10, 1001, 512, "0123456789", 10, now) == 0); /* gap */
  pl_stream_out o = only(s, now);
  pl_sack_block b[4];
  CHECK(o.ack == seq && pl_sack_parse(o.p1, o.p1 + o.n1, 4, b) == 1 && b[0].left == seq + 10 && b[0].right == seq + 20);
  /* A batch of three more: one SACK each, and with the third out of order three bare duplicates, which is what the first release counts. */
  for (unsigned i = 2; i < 4; i++) give(s, PL_FLAG_ACK, seq + 20 * i, 1001, 512, "0123456789", 10, now);
  unsigned sacks = 0, bare = 0;
  while (pl_stream_next(s, now, &o)) {
    CHECK(o.ack == seq);
    if (o.n1)
      sacks++;
    else
      bare++;
  }
  CHECK(sacks == 2 && bare == 3);
  /* Re-cut bytes that overlap what is held are taken, toward anybody. */
  CHECK(give(s, PL_FLAG_ACK, seq - 5, 1001, 512, "567890123456789012345678901234567890123456789012345", 50, now) & PL_SEV_READABLE);
  CHECK(only(s, now).ack == seq + 50); /* up to 45 by this one, on through a range held */
  give(s, PL_FLAG_ACK, 1, 1001, 512, "0", 1, now); /* a probe with an old byte */
  CHECK(only(s, now).n1 <= 21);
  give(s, PL_FLAG_ACK, 1, 1001, 512, NULL, 0, now);
  silent(s, now);
  give(s, 0, seq + 500, 1001, 512, "x", 1, now); /* no flags: dropped */
  silent(s, now);
  done(s);
}

/* Reads all and compares with what an overlapping, reordered arrival should have made. */
static void overlaps(void) {
  pl_stream_cfg c = cfg();
  sim_rng r = {99};
  for (unsigned round = 0; round < 200; round++) {
    pl_stream *s = opened(&c, S);
    uint8_t text[3000], got[sizeof text];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)sim_u64(&r);
    text[0] = 'x';
    size_t n = 0;
    while (n < sizeof text) {
      size_t a = sim_u64(&r) % sizeof text, len = 1 + sim_u64(&r) % 200;
      if (a + len > sizeof text) len = sizeof text - a;
      if (pl_sack_ambiguous(text + a, len)) continue;
      give(s, PL_FLAG_ACK, 1 + (uint32_t)a, 1001, 512, text + a, len, S);
      const uint8_t *p[2];
      size_t k[2];
      unsigned spans = pl_stream_peek(s, p, k);
      for (unsigned i = 0; i < spans; i++) {
        CHECK(n + k[i] <= sizeof got);
        memcpy(got + n, p[i], k[i]);
        n += k[i];
        pl_stream_consume(s, k[i], S);
      }
    }
    CHECK(!memcmp(got, text, sizeof text));
    done(s);
  }
}

static void sack_lookalike(void) {
  pl_stream_cfg c = cfg();
  static const char text[] = "SACK\x01 lunch SACK\x20 and SACK\x04";
  pl_stream *s = opened(&c, S);
  pl_stream_write(s, (const uint8_t *)text, 22);
  pl_stream_out o;
  CHECK(pl_stream_next(s, 2 * S, &o) == 1 && o.n1 == 4 && !memcmp(o.p1, "SACK", 4) && o.seq == 1001);
  CHECK(pl_stream_next(s, 2 * S, &o) == 1 && o.n1 == 18 && o.seq == 1005);
  silent(s, 2 * S);
  CHECK(give(s, PL_FLAG_ACK, 1, 1023, 512, NULL, 0, 2 * S) == 0 && pl_stream_unacked(s) == 0);
  pl_stream_write(s, (const uint8_t *)"SACK", 4); /* alone it is harmless */
  CHECK(only(s, 2 * S).n1 == 4);
  done(s);
}

/* A zero window is probed with the last acknowledged byte, which every receiver answers. */
static void closed_window(void) {
  pl_stream_cfg c = cfg();
  uint64_t now = 2 * S;
  pl_stream *s = opened(&c, S);
  pl_stream_write(s, (const uint8_t *)"abc", 3);
  CHECK(only(s, now).n1 == 3);
  give(s, PL_FLAG_ACK, 1, 1004, 0, NULL, 0, now + 20 * MS); /* acknowledged, and full */
  pl_stream_write(s, (const uint8_t *)"def", 3);
  silent(s, now + 20 * MS);
  uint64_t first = 0, second = 0;
  for (unsigned i = 0; i < 2; i++) {
    uint64_t at;
    pl_stream_out o = await(s, &at);
    CHECK(at < now + 5 * S);
    CHECK(o.flags == PL_FLAG_ACK && o.seq == 1003 && o.n1 == 1 && o.p1[0] == 'c');
    give(s, PL_FLAG_ACK, 1, 1004, 0, NULL, 0, at + 10 * MS);
    silent(s, at + 10 * MS);
    *(i ? &second : &first) = at;
  }
  CHECK(second - first >= 2 * (first - now) - 40 * MS); /* backs off */
  uint64_t at;
  await(s, &at);
  give(s, PL_FLAG_ACK, 1, 1004, 3, NULL, 0, at + MS);
  pl_stream_out o = only(s, at + MS);
  CHECK(o.seq == 1004 && o.n1 == 3);
  /* The older releases' keepalive says window 0 without meaning it: with nothing out the window cannot have shrunk. */
  give(s, PL_FLAG_ACK, 1, 1007, 500, NULL, 0, at + 2 * MS);
  give(s, PL_FLAG_ACK, 1, 1007, 0, NULL, 0, at + S);
  pl_stream_write(s, (const uint8_t *)"ghi", 3);
  CHECK(only(s, at + S).n1 == 3);
  done(s);
}

static void keepalive(void) {
  pl_stream_cfg c = cfg();
  pl_stream *s = opened(&c, S);
  give(s, PL_FLAG_ACK, 1, 1001, 512, "hi", 2, 2 * S);
  only(s, 2 * S);
  uint64_t now = 2 * S, sent = now;
  unsigned n = 0, ev = 0;
  while (!ev) {
    now = pl_stream_deadline(s);
    ev = pl_stream_tick(s, now);
    pl_stream_out o;
    while (!ev && pl_stream_next(s, now, &o)) {
      CHECK(o.flags == PL_FLAG_ACK && o.seq == 1001 && o.ack == 3 && !o.n1 && o.window == 511);
      CHECK(now - sent == 25 * S);
      sent = now;
      n++;
    }
  }
  CHECK(n == 4 && now == 122 * S); /* silence for 120 s */
  CHECK(ev == (PL_SEV_RESET | PL_SEV_CLOSED));
  CHECK(only(s, now).flags == PL_FLAG_RST);
  done(s);
}

static void closing(void) {
  pl_stream_cfg c = cfg();
  uint64_t now = 2 * S;
  /* We close first: FIN only once all is acknowledged, bare; the FIN+ACK that answers ends it in silence. */
  pl_stream *s = opened(&c, S);
  pl_stream_write(s, (const uint8_t *)"bye", 3);
  pl_stream_close(s, now);
  CHECK(pl_stream_write(s, (const uint8_t *)"x", 1) == PL_ESTATE);
  pl_stream_out o = only(s, now);
  CHECK(o.flags == PL_FLAG_ACK && o.n1 == 3);
  give(s, PL_FLAG_ACK, 1, 1004, 512, NULL, 0, now + 20 * MS);
  o = only(s, now + 20 * MS);
  CHECK(o.flags == PL_FLAG_FIN && o.seq == 1004 && o.ack == 0 && o.window == 0 && !o.n1);
  uint64_t at = pl_stream_deadline(s); /* lost: again */
  CHECK(pl_stream_tick(s, at) == 0 && only(s, at).flags == PL_FLAG_FIN);
  CHECK(give(s, PL_FLAG_FIN | PL_FLAG_ACK, 1, 1005, 0, NULL, 0, at + MS) == PL_SEV_EOF);
  silent(s, at + MS);
  give(s, PL_FLAG_FIN | PL_FLAG_ACK, 1, 1005, 0, NULL, 0, at + 2 * MS);
  silent(s, at + 2 * MS);
  CHECK(pl_stream_deadline(s) <= at + MS + 10 * S);
  unsigned ev = 0;
  while (!ev) ev = pl_stream_tick(s, at = pl_stream_deadline(s));
  CHECK(ev == PL_SEV_CLOSED);
  done(s);

  /* The peer closes first, its last bytes still missing: FIN waits for them. */
  s = opened(&c, S);
  CHECK(give(s, PL_FLAG_FIN, 4, 0, 0, NULL, 0, now) == 0);
  o = only(s, now);
  CHECK(o.flags == PL_FLAG_ACK && o.ack == 1 && !pl_stream_eof(s));
  CHECK(give(s, PL_FLAG_ACK, 1, 1001, 512, "end", 3, now + MS) == (PL_SEV_READABLE | PL_SEV_EOF));
  o = only(s, now + MS);
  CHECK(o.flags == (PL_FLAG_FIN | PL_FLAG_ACK) && o.seq == 1001 && o.ack == 5 && o.window == 0);
  CHECK(!pl_stream_eof(s) && pl_stream_readable(s) == 3);
  give(s, PL_FLAG_FIN | PL_FLAG_ACK, 4, 1002, 0, NULL, 0, now + 2 * MS); /* an echoing peer finds no partner */
  silent(s, now + 2 * MS);
  give(s, PL_FLAG_FIN, 4, 0, 0, NULL, 0, now + 3 * MS); /* our answer was lost: told again, but without FIN */
  o = only(s, now + 3 * MS);
  CHECK(o.flags == PL_FLAG_ACK && o.ack == 5);
  CHECK(pl_stream_tick(s, now + 20 * S) == 0); /* unread bytes outlast TIME_WAIT */
  pl_stream_consume(s, 3, now + 20 * S);
  CHECK(pl_stream_eof(s));
  CHECK(pl_stream_tick(s, now + 20 * S) == PL_SEV_CLOSED);
  done(s);

  /* Nobody answers our FIN: a handful of tries, then closed. */
  s = opened(&c, S);
  pl_stream_close(s, now);
  unsigned fins = 0;
  for (ev = 0; !ev;) {
    while (pl_stream_next(s, now, &o)) fins += o.flags == PL_FLAG_FIN;
    now = pl_stream_deadline(s);
    ev = pl_stream_tick(s, now);
  }
  CHECK(fins == 6 && (ev & PL_SEV_CLOSED) && !(ev & PL_SEV_RESET) && now < 60 * S);
  done(s);

  /* Both at once. */
  now = 2 * S;
  s = opened(&c, S);
  pl_stream_close(s, now);
  CHECK(only(s, now).flags == PL_FLAG_FIN);
  CHECK(give(s, PL_FLAG_FIN, 1, 0, 0, NULL, 0, now + MS) == PL_SEV_EOF);
  CHECK(only(s, now + MS).flags == (PL_FLAG_FIN | PL_FLAG_ACK));
  give(s, PL_FLAG_FIN | PL_FLAG_ACK, 1, 1002, 0, NULL, 0, now + 2 * MS);
  silent(s, now + 2 * MS);
  done(s);

  /* Linger: a peer that never opens its window gets FIN in the end. */
  s = opened(&c, S);
  now = 2 * S;
  pl_stream_write(s, (const uint8_t *)"a", 1);
  only(s, now);
  give(s, PL_FLAG_ACK, 1, 1002, 0, NULL, 0, now);
  pl_stream_write(s, (const uint8_t *)"b", 1);
  pl_stream_close(s, now);
  bool fin = false;
  while (now < 70 * S && !fin) {
    while (pl_stream_next(s, now, &o)) {
      fin |= o.flags == PL_FLAG_FIN;
      if (o.n1 == 1) give(s, PL_FLAG_ACK, 1, 1002, 0, NULL, 0, now);
    }
    if (!fin) {
      now = pl_stream_deadline(s);
      CHECK(pl_stream_tick(s, now) == 0);
    }
  }
  CHECK(fin && now == 62 * S);
  done(s);
}

static void resets(void) {
  pl_stream_cfg c = cfg();
  pl_stream *s = opened(&c, S);
  CHECK(give(s, PL_FLAG_RST, 0x70000000, 0x70000000, 0, NULL, 0, 2 * S) == 0); /* fits nothing here */
  CHECK(give(s, PL_FLAG_RST, 1, 0, 0, NULL, 0, 2 * S) == (PL_SEV_RESET | PL_SEV_CLOSED));
  silent(s, 2 * S);
  done(s);
  s = opened(&c, S);
  pl_stream_abort(s, 2 * S);
  pl_stream_out o = only(s, 2 * S);
  CHECK(o.flags == PL_FLAG_RST && o.seq == 1001 && o.ack == 1);
  CHECK(pl_stream_tick(s, 2 * S) == PL_SEV_CLOSED);
  done(s);
  /* Retransmissions used up: one RST. */
  s = opened(&c, S);
  pl_stream_write(s, (const uint8_t *)"anybody?", 8);
  unsigned ev = 0, sent = 0;
  uint64_t now = 2 * S;
  while (!ev) {
    while (pl_stream_next(s, now, &o)) {
      CHECK(o.n1 ? o.n1 == 8 && o.seq == 1001 : o.seq == 1009); /* boundaries frozen; the rest are keepalives */
      sent += o.n1 == 8;
    }
    now = pl_stream_deadline(s);
    ev = pl_stream_tick(s, now);
  }
  CHECK(ev == (PL_SEV_RESET | PL_SEV_CLOSED) && sent >= 9 && sent <= 11 && now > 25 * S && now < 60 * S);
  CHECK(only(s, now).flags == PL_FLAG_RST);
  done(s);
}

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
  opening();
  accepting();
  options();
  dial_ends();
  acknowledging();
  overlaps();
  sack_lookalike();
  closed_window();
  keepalive();
  closing();
  resets();
  idle_memory();
  slow_reader(true);
  slow_reader(false);
  memory_follows_reader();
  short_path_is_shared();
  short_of_memory();
  const char *one = getenv("PL_SEED");
  if (one) {
    strict_receiver(strtoull(one, NULL, 10));
    return 0;
  }
  for (uint64_t seed = 1; seed <= 60; seed++) strict_receiver(seed);
  printf("test_stream: ok\n");
  return 0;
}
