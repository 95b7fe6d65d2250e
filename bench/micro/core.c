/* Nanoseconds of what the data plane does for each packet: AEAD, checksum, replay window, codec, stream engine. Medians of ROUNDS, JSON.
 *
 *   cc -O3 -D_GNU_SOURCE -Icsrc bench/micro/core.c csrc/{aead,aead_vaes,...}.c -lcrypto -lm     (operations.py has the list)
 *
 * The stream engine is two ends that hand packets to each other in memory, 32 at a time: both sides of one full data packet with its share
 * of acknowledgements, the copies in and out of the buffers included, nothing of frames or sockets. */
#include "aead_internal.h"
#include "replay.h"
#include "stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROUNDS = 7, TIMES = 20000, SEGMENT = 1393, BATCH = 32, TRANSFER = 32 << 20 };

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * PL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void report(const char *name, double ns[ROUNDS]) {
  static bool some;
  qsort(ns, ROUNDS, sizeof *ns, by_value);
  printf("%s\n  {\"name\": \"%s\", \"ns\": [", some ? "," : "[", name);
  for (unsigned i = 0; i < ROUNDS; i++) printf("%s%.1f", i ? ", " : "", ns[i]);
  printf("]}");
  some = true;
}

static void must(bool ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "%s failed\n", what);
  exit(1);
}

static void aead(void) {
  static const char *const names[PL_AEAD_VARIANTS] = {"libcrypto", "VAES"};
  static const size_t sizes[] = {64, 1400, 8192};
  static uint8_t data[8192 + 16], copies[BATCH][8192 + 16];
  uint8_t key[32] = {1}, nonce[12] = {0}, aad[4] = {0};
  for (unsigned v = 0; v < PL_AEAD_VARIANTS; v++) {
    pl_aead *a = pl_aead_new_variant(key, (enum pl_aead_variant)v);
    if (!a) continue; /* this machine has it not */
    for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
      double seal[ROUNDS], open[ROUNDS];
      for (unsigned r = 0; r < ROUNDS; r++) {
        uint64_t sealing = 0, opening = 0;
        for (unsigned i = 0; i < TIMES / BATCH; i++) {
          uint64_t t0 = now_ns();
          for (unsigned k = 0; k < BATCH; k++) pl_aead_seal(a, nonce, aad, 4, data, sizes[s]);
          sealing += now_ns() - t0;
          for (unsigned k = 0; k < BATCH; k++) memcpy(copies[k], data, sizes[s] + 16);
          t0 = now_ns();
          for (unsigned k = 0; k < BATCH; k++) must(pl_aead_open(a, nonce, aad, 4, copies[k], sizes[s]) == PL_OK, "open");
          opening += now_ns() - t0;
        }
        seal[r] = (double)sealing / TIMES;
        open[r] = (double)opening / TIMES;
      }
      char name[64];
      snprintf(name, sizeof name, "AEAD %s, seal %zu bytes", names[v], sizes[s]);
      report(name, seal);
      snprintf(name, sizeof name, "AEAD %s, open %zu bytes", names[v], sizes[s]);
      report(name, open);
    }
    pl_aead_free(a);
  }
}

static void checksum(void) {
  static uint8_t data[PL_HDR_SIZE + SEGMENT];
  double ns[ROUNDS];
  uint32_t crc = 0;
  for (unsigned r = 0; r < ROUNDS; r++) {
    uint64_t t0 = now_ns();
    for (unsigned i = 0; i < TIMES; i++) crc = pl_crc32(crc, data, sizeof data);
    ns[r] = (double)(now_ns() - t0) / TIMES;
  }
  must(crc != 1, "checksum"); /* the result is used */
  report("CRC-32 of a full packet", ns);
}

static void replay(void) {
  pl_replay window;
  double ns[ROUNDS];
  uint64_t counter = 0;
  pl_replay_init(&window);
  for (unsigned r = 0; r < ROUNDS; r++) {
    uint64_t t0 = now_ns();
    for (unsigned i = 0; i < TIMES; i++) {
      must(pl_replay_check(&window, 7, ++counter) == PL_OK, "replay check");
      must(pl_replay_commit(&window, 7, counter, t0) == PL_OK, "replay commit");
    }
    ns[r] = (double)(now_ns() - t0) / TIMES;
  }
  pl_replay_free(&window);
  report("replay window, check and commit in order", ns);
}

static void codec(void) {
  static uint8_t packet[PL_HDR_SIZE + SEGMENT];
  pl_packet p = {.flags = PL_FLAG_ACK, .proto = PL_PROTO_STREAM, .src_node = 1, .dst_node = 2, .payload = packet + PL_HDR_SIZE, .len = SEGMENT};
  double write[ROUNDS], parse[ROUNDS];
  for (unsigned r = 0; r < ROUNDS; r++) {
    uint64_t t0 = now_ns();
    for (unsigned i = 0; i < TIMES; i++) {
      p.seq = i;
      pl_packet_write_header(packet, &p);
    }
    uint64_t t1 = now_ns();
    for (unsigned i = 0; i < TIMES; i++) must(pl_packet_parse(packet, packet + sizeof packet, true, &p) == PL_OK, "parse");
    write[r] = (double)(t1 - t0) / TIMES;
    parse[r] = (double)(now_ns() - t1) / TIMES;
  }
  report("packet header, write", write);
  report("packet header, parse without checksum", parse);
}

/* Takes at most BATCH packets of `from` to `to`, then `to` reads what has arrived. */
static unsigned carry(pl_stream *from, pl_stream *to, uint64_t now) {
  static uint8_t sunk[1 << 16];
  static uint8_t flat[PL_UDP_MAX];
  pl_stream_out o;
  unsigned n = 0;
  while (n < BATCH && pl_stream_next(from, now, &o)) {
    if (o.n1) memcpy(flat, o.p1, o.n1); /* as into the datagram */
    if (o.n2) memcpy(flat + o.n1, o.p2, o.n2);
    pl_packet p = {.flags = o.flags, .proto = PL_PROTO_STREAM, .seq = o.seq, .ack = o.ack, .window = o.window, .payload = flat,
                   .len = (uint16_t)(o.n1 + o.n2)};
    pl_stream_recv(to, &p, now);
    n++;
  }
  size_t waiting = pl_stream_readable(to);
  while (waiting) {
    const uint8_t *p[2];
    size_t len[2];
    pl_stream_peek(to, p, len);
    size_t took = len[0] < sizeof sunk ? len[0] : sizeof sunk;
    memcpy(sunk, p[0], took);
    pl_stream_consume(to, took, now);
    waiting -= took;
  }
  return n;
}

static void stream(const char *congestion, const char *name) {
  static uint8_t source[1 << 16];
  double ns[ROUNDS];
  for (unsigned r = 0; r < ROUNDS; r++) {
    pl_budget budget = {.limit = 256u << 20};
    pl_stream_cfg cfg = {.congestion = congestion, .send_buffer = 4u << 20, .recv_buffer = 16u << 20, .recv_buffer_plain = 2u << 20,
                         .keepalive_ns = 25 * PL_NS_PER_S, .idle_timeout_ns = 120 * PL_NS_PER_S, .time_wait_ns = 10 * PL_NS_PER_S,
                         .linger_ns = 60 * PL_NS_PER_S, .syn_timer_ns = 250 * PL_NS_PER_MS, .dial_timeout_ns = 30 * PL_NS_PER_S,
                         .budget = &budget};
    pl_synopt offer = {.window_shift = 10, .max_sack = PL_SACK_MAX, .max_segment = 8192, .reorder_segments = 32768};
    uint64_t now = PL_NS_PER_S;
    pl_stream *a = pl_stream_dial(&cfg, 1, SEGMENT, &offer, now);
    must(a != NULL, "dial");
    pl_stream_release(a, now);
    pl_stream_out o;
    must(pl_stream_next(a, now, &o) == 1, "SYN");
    pl_packet syn = {.flags = o.flags, .proto = PL_PROTO_STREAM, .seq = o.seq, .window = o.window, .payload = o.p1, .len = (uint16_t)o.n1};
    pl_stream *b = pl_stream_accept(&cfg, 2, SEGMENT, &offer, &syn, now);
    must(b != NULL, "accept");
    int64_t left = TRANSFER;
    uint64_t t0 = now_ns();
    while (left > 0 || pl_stream_unacked(a)) {
      while (left > 0) {
        int64_t put = pl_stream_write(a, source, left < (int64_t)sizeof source ? (size_t)left : sizeof source);
        if (put <= 0) break;
        left -= put;
      }
      unsigned moved = carry(a, b, now);
      moved += carry(b, a, now);
      now += 20 * PL_NS_PER_US;
      if (moved) continue;
      uint64_t at = pl_min64(pl_stream_deadline(a), pl_stream_deadline(b)); /* paced, or an acknowledgement is due */
      must(at != PL_NEVER, "stream");
      now = pl_max64(now, at);
      pl_stream_tick(a, now);
      pl_stream_tick(b, now);
    }
    ns[r] = (double)(now_ns() - t0) / (TRANSFER / SEGMENT);
    pl_stream_free(a);
    pl_stream_free(b);
  }
  report(name, ns);
}

int main(void) {
  aead();
  checksum();
  replay();
  codec();
  stream("bbr", "stream engine, both ends, per full packet, BBR");
  stream("cubic", "stream engine, both ends, per full packet, CUBIC");
  printf("\n]\n");
  return 0;
}
