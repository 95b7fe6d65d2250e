/* Rules of a stream, one by one: opening, acknowledging, windows. transport.md 4 and 9.1. */
#include "stream_by_hand.h"

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

int main(void) {
  opening();
  accepting();
  options();
  dial_ends();
  acknowledging();
  overlaps();
  sack_lookalike();
  closed_window();
  printf("test_stream: ok\n");
  return 0;
}
