/* How a stream ends: after silence, by closing, by a reset, by giving up. transport.md 4.9 and 4.10. */
#include "stream_by_hand.h"

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

int main(void) {
  keepalive();
  closing();
  resets();
  printf("test_stream_end: ok\n");
  return 0;
}
