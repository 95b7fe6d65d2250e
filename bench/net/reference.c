/* The machine's own limit: sealed datagrams in trains with UDP_SEGMENT and UDP_GRO, and nothing of a protocol but a window and one
 * acknowledgement per receive batch. What is left out is order, loss, congestion, sessions, streams: what a figure is compared with.
 *
 *   reference recv  BIND_IP PORT                           until the sender says it is done; prints JSON
 *   reference send  TO_IP PORT SECONDS PAYLOAD BIND_IP      as fast as the window lets it
 *   reference relay BIND_IP PORT TO_IP PORT                 trains from anyone go to TO, trains from TO to the one who sent last
 *   reference pong  BIND_IP PORT / ping TO_IP PORT COUNT     sealed 64-byte messages, blocking; microseconds of each as JSON
 *
 * Sockets and trains are those of csrc/udp.c, the AEAD is that of csrc/aead.c. */
#include "aead.h"
#include "tx.h"
#include "udp.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { HEAD = 16, TAG = 16, WINDOW_BYTES = 704 * 1024, ACK_BYTES = 16, STALL_MS = 2 };

static uint8_t key[32] = {7};
static uint8_t datagram_end[HEAD];

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu_s(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) + (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static pl_addr addr(const char *ip, const char *port) {
  pl_addr a;
  memset(&a, 0, sizeof a);
  a.family = 4;
  a.port = (uint16_t)atoi(port);
  if (inet_pton(AF_INET, ip, a.ip) != 1) fail(ip);
  return a;
}

static void open_at(pl_udp *u, const pl_addr *at) {
  if (pl_udp_open(u, at, 8u << 20, true, true) < 0) fail("socket");
}

static bool wait_in(const pl_udp *u, int ms) {
  struct pollfd p = {.fd = u->fd, .events = POLLIN};
  return u->more || poll(&p, 1, ms) > 0;
}

static void nonce_of(uint8_t nonce[12], uint64_t counter) {
  memset(nonce, 0, 12);
  pl_put64(nonce + 4, counter);
}

static void seal(pl_aead *a, uint8_t *d, uint64_t counter, size_t payload) {
  uint8_t nonce[12];
  pl_put64(d, counter);
  nonce_of(nonce, counter);
  pl_aead_seal(a, nonce, d, 8, d + HEAD, payload);
}

static bool unseal(pl_aead *a, uint8_t *d, size_t len) {
  uint8_t nonce[12];
  if (len < HEAD + TAG) return false;
  nonce_of(nonce, pl_get64(d));
  return pl_aead_open(a, nonce, d, 8, d + HEAD, len - HEAD - TAG) == PL_OK;
}

/* ---- one way ---- */

static int receive(const pl_addr *at) {
  pl_udp u;
  pl_rx rx[PL_UDP_BATCH];
  pl_aead *a = pl_aead_new(key);
  uint64_t bytes = 0, bad = 0;
  double first = 0, last = 0;
  uint8_t *sunk = malloc(1 << 16); /* the copy to the reader */
  if (!a || !sunk) return 1;
  open_at(&u, at);
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    if (!wait_in(&u, first > 0 ? 3000 : 30000)) break;
    int n = pl_udp_recv(&u, rx);
    bool end = false;
    for (int i = 0; i < n; i++) {
      size_t seg = rx[i].seg ? rx[i].seg : rx[i].len;
      for (size_t off = 0; off < rx[i].len; off += seg) {
        size_t len = rx[i].len - off < seg ? rx[i].len - off : seg;
        uint8_t *d = rx[i].data + off;
        if (len == HEAD) {
          end = true;
        } else if (unseal(a, d, len)) {
          memcpy(sunk, d + HEAD, len - HEAD - TAG);
          bytes += len - HEAD - TAG;
        } else {
          bad++;
        }
      }
    }
    if (n <= 0) continue;
    last = now_s();
    if (first == 0) first = last;
    if (end) break;
    uint8_t ack[ACK_BYTES] = {0};
    pl_put64(ack, bytes);
    pl_udp_send_one(&u, &rx[0].from, NULL, ack, sizeof ack);
  }
  printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu\": %.3f, \"bad\": %llu, \"gro\": %d}\n", (unsigned long long)bytes, last - first,
         cpu_s(), (unsigned long long)bad, u.gro);
  return 0;
}

static void flush_runs(pl_tx *tx, void *ctx) {
  pl_udp_send(ctx, tx);
  pl_tx_reset(tx);
}

static int send_stream(const pl_addr *to, const pl_addr *at, double seconds, size_t payload) {
  pl_udp u;
  pl_tx tx;
  pl_rx rx[PL_UDP_BATCH];
  pl_aead *a = pl_aead_new(key);
  uint64_t counter = 0, sent = 0, acked = 0, stalls = 0;
  uint8_t *source = malloc(1 << 16);
  if (!a || !source || pl_tx_init(&tx, flush_runs, &u) < 0) return 1;
  memset(source, 1, 1 << 16);
  unsigned train = (unsigned)(PL_TX_RUN_BYTES / (HEAD + payload + TAG));
  if (train > PL_TX_RUN_SEGS) train = PL_TX_RUN_SEGS;
  open_at(&u, at);
  double start = now_s(), end = start + seconds;
  while (now_s() < end) {
    while (sent - acked < WINDOW_BYTES) {
      for (unsigned i = 0; i < train; i++) {
        uint8_t *d = pl_tx_datagram(&tx, to, (uint32_t)(HEAD + payload + TAG));
        memcpy(d + HEAD, source, payload); /* the copy out of the send buffer */
        memset(d, 0, HEAD);
        seal(a, d, ++counter, payload);
        sent += payload;
      }
      flush_runs(&tx, &u);
      if (sent - acked >= WINDOW_BYTES / 2) break; /* look for acknowledgements before the window is full */
    }
    int patience = sent - acked < WINDOW_BYTES ? 0 : STALL_MS;
    if (wait_in(&u, patience)) {
      int n = pl_udp_recv(&u, rx);
      for (int i = 0; i < n; i++)
        for (size_t off = 0; off + ACK_BYTES <= rx[i].len; off += ACK_BYTES) acked = pl_max64(acked, pl_get64(rx[i].data + off));
    } else if (patience) { /* something was lost: it will never be acknowledged */
      stalls++;
      sent = acked;
    }
  }
  double took = now_s() - start;
  for (unsigned i = 0; i < 3; i++) pl_udp_send_one(&u, to, NULL, datagram_end, sizeof datagram_end);
  printf("{\"cpu\": %.3f, \"seconds\": %.6f, \"stalls\": %llu, \"gso\": %d}\n", cpu_s(), took, (unsigned long long)stalls, u.gso);
  return 0;
}

/* ---- relay ---- */

static int relay(const pl_addr *at, const pl_addr *to) {
  pl_udp u;
  pl_rx rx[PL_UDP_BATCH];
  struct iovec iov[PL_UDP_BATCH];
  pl_udp_msg msgs[PL_UDP_BATCH];
  pl_addr sender;
  memset(&sender, 0, sizeof sender);
  open_at(&u, at);
  pl_udp_relay_mode(&u);
  printf("ready\n");
  fflush(stdout);
  for (;;) {
    if (!wait_in(&u, 30000)) return 0;
    int n = pl_udp_recv(&u, rx);
    for (int i = 0; i < n; i++) {
      bool back = pl_addr_eq(&rx[i].from, to);
      if (!back) sender = rx[i].from;
      iov[i] = (struct iovec){.iov_base = rx[i].data, .iov_len = rx[i].len};
      msgs[i] = (pl_udp_msg){.to = back ? sender : *to, .iov = &iov[i], .n_iov = 1, .seg = rx[i].seg};
    }
    if (n > 0) pl_udp_sendv(&u, msgs, (unsigned)n);
  }
}

/* ---- conversation ---- */

static int converse(const pl_addr *at, const pl_addr *to, unsigned count) {
  pl_udp u;
  pl_rx rx[PL_UDP_BATCH];
  pl_aead *a = pl_aead_new(key);
  uint8_t d[HEAD + 64 + TAG] = {0};
  if (!a) return 1;
  open_at(&u, at);
  if (!to) {
    printf("ready\n");
    fflush(stdout);
  } else {
    printf("{\"us\": [");
  }
  for (unsigned i = 0; !to || i < count; i++) {
    double start = now_s();
    if (to) {
      seal(a, d, i, 64);
      pl_udp_send_one(&u, to, NULL, d, sizeof d);
    }
    int n = 0;
    while (n <= 0) {
      if (!wait_in(&u, 5000)) return to ? 1 : 0;
      n = pl_udp_recv(&u, rx);
    }
    if (!unseal(a, rx[0].data, rx[0].len)) return 1;
    if (to) {
      printf("%s%.2f", i ? ", " : "", (now_s() - start) * 1e6);
    } else {
      seal(a, d, i, 64);
      pl_udp_send_one(&u, &rx[0].from, NULL, d, sizeof d);
    }
  }
  printf("]}\n");
  return 0;
}

int main(int argc, char **argv) {
  pl_addr x = {0}, y = {0};
  if (argc >= 4) x = addr(argv[2], argv[3]);
  if (argc == 4 && !strcmp(argv[1], "recv")) return receive(&x);
  if (argc == 7 && !strcmp(argv[1], "send")) {
    y = addr(argv[6], "0");
    return send_stream(&x, &y, atof(argv[4]), (size_t)atoi(argv[5]));
  }
  if (argc == 6 && !strcmp(argv[1], "relay")) {
    y = addr(argv[4], argv[5]);
    return relay(&x, &y);
  }
  if (argc == 4 && !strcmp(argv[1], "pong")) return converse(&x, NULL, 0);
  if (argc == 5 && !strcmp(argv[1], "ping")) {
    y = addr("0.0.0.0", "0");
    return converse(&y, &x, (unsigned)atoi(argv[4]));
  }
  fprintf(stderr, "see the head of reference.c\n");
  return 2;
}
