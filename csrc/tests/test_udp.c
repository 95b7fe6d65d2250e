/* UDP socket on loopback: every datagram arrives whole, with offloads on and off; refusals and oversize are counted, never fatal;
 * replies leave from the address that was asked. */
#include "udp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * PL_NS_PER_S + (uint64_t)t.tv_nsec;
}

static pl_addr v4(uint8_t last, uint16_t port) {
  return (pl_addr){.family = 4, .port = port, .ip = {127, 0, 0, last}};
}
static pl_addr v6_loopback(uint16_t port) {
  pl_addr a = {.family = 6, .port = port};
  a.ip[15] = 1;
  return a;
}
static pl_addr any6(void) { return (pl_addr){.family = 6}; }

static bool have_v6(void) {
  pl_udp u;
  pl_addr a = v6_loopback(0);
  if (pl_udp_open(&u, &a, 65536, false, false) < 0) return false;
  pl_udp_close(&u);
  return true;
}

/* One received datagram after the other, whatever buffers they came in. */
typedef struct reader {
  pl_udp *u;
  pl_rx rx[PL_UDP_BATCH];
  int n, at;
  uint32_t off;
} reader;

static const uint8_t *next_datagram(reader *r, uint32_t *len, const pl_rx **rx) {
  for (;;) {
    if (r->at < r->n) {
      pl_rx *x = &r->rx[r->at];
      uint32_t seg = x->seg ? x->seg : x->len, left = x->len - r->off;
      *len = left < seg ? left : seg;
      const uint8_t *p = x->data + r->off;
      r->off += *len;
      if (r->off >= x->len) {
        r->at++;
        r->off = 0;
      }
      if (rx) *rx = x;
      return p;
    }
    struct pollfd p = {.fd = r->u->fd, .events = POLLIN};
    if (poll(&p, 1, 500) <= 0) return NULL;
    r->n = pl_udp_recv(r->u, r->rx);
    r->at = 0;
  }
}

static uint8_t pattern(uint32_t datagram, uint32_t i) { return (uint8_t)(datagram * 31 + i * 7 + (i >> 8)); }

/* Runs of many sizes, as the engine makes them; in order, because loopback keeps it. */
static void transfer(pl_addr from, pl_addr to, bool gso, bool gro, bool refuse_gso) {
  static const struct {
    uint32_t seg, count, last;
  } runs[] = {{1, 1, 1}, {100, 64, 100}, {1152, 46, 7}, {1400, 45, 1400}, {1400, 1, 1400}, {8000, 8, 20}, {65400, 1, 65400}, {32000, 2, 1}};
  pl_udp a, b;
  CHECK(pl_udp_open(&a, &from, 4u << 20, gso, gro) == PL_OK);
  CHECK(pl_udp_open(&b, &to, 4u << 20, gso, gro) == PL_OK);
  if (refuse_gso) {
    int on = 1;
    CHECK(setsockopt(a.fd, SOL_SOCKET, SO_NO_CHECK, &on, sizeof on) == 0); /* the kernel refuses UDP_SEGMENT without checksums */
  }
  reader r = {.u = &b};
  unsigned sent = 0;
  for (unsigned round = 0; round < 3; round++) {
    unsigned expect = 0;
    pl_tx tx = {.arena = malloc(PL_TX_ARENA)};
    CHECK(tx.arena);
    for (size_t k = 0; k < sizeof runs / sizeof *runs; k++) {
      pl_run *run = &tx.runs[tx.n_runs++];
      *run = (pl_run){.to = b.local, .off = tx.used, .seg = runs[k].seg, .count = runs[k].count,
                      .len = runs[k].seg * (runs[k].count - 1) + runs[k].last};
      if (b.local.family == 6 && a.local.family == 4) run->to = v4(1, b.local.port);
      for (uint32_t i = 0; i < run->len; i++)
        tx.arena[run->off + i] = pattern(sent + i / run->seg, i % run->seg);
      tx.used += run->len;
      sent += run->count;
      expect += run->count;
    }
    pl_udp_send(&a, &tx);
    unsigned number = sent - expect;
    for (size_t k = 0; k < sizeof runs / sizeof *runs; k++) {
      for (uint32_t d = 0; d < runs[k].count; d++, number++) {
        uint32_t len, want = d + 1 < runs[k].count ? runs[k].seg : runs[k].last;
        const pl_rx *rx;
        const uint8_t *p = next_datagram(&r, &len, &rx);
        if (!p || len != want) fprintf(stderr, "gso %d gro %d run %zu datagram %u: %u bytes, expected %u\n", gso, gro, k, d, p ? len : 0, want);
        CHECK(p && len == want);
        CHECK(rx->from.family == a.local.family && rx->from.port == a.local.port);
        for (uint32_t i = 0; i < len; i++) CHECK(p[i] == pattern(number, i));
      }
    }
    free(tx.arena);
  }
  CHECK(a.send_errors == 0 && a.send_datagrams == sent && b.recv_datagrams == sent);
  if (refuse_gso) {
    CHECK(!a.gso && a.gso_fallbacks >= 1);
  } else {
    CHECK(a.gso == gso && a.gso_fallbacks == 0);
    if (gso && gro) CHECK(b.recv_calls < sent / 4); /* trains were received as trains */
  }
  pl_udp_close(&a);
  pl_udp_close(&b);
}

static void test_transfer(void) {
  for (int mode = 0; mode < 4; mode++) {
    transfer(v4(1, 0), v4(1, 0), mode & 1, mode & 2, false);
    if (have_v6()) {
      transfer(v6_loopback(0), v6_loopback(0), mode & 1, mode & 2, false);
      transfer(v4(1, 0), any6(), mode & 1, mode & 2, false); /* dual stack: the sender is seen as IPv4 */
    }
  }
  transfer(v4(1, 0), v4(1, 0), true, true, true);
}

/* After a refusal trains go singly for a while, then the kernel is asked again. */
static void test_gso_comes_back(void) {
  pl_udp a, b;
  pl_addr lo = v4(1, 0);
  CHECK(pl_udp_open(&a, &lo, 1u << 20, true, false) == PL_OK);
  CHECK(pl_udp_open(&b, &lo, 1u << 20, false, false) == PL_OK);
  uint8_t data[200] = {0};
  struct iovec iov = {data, sizeof data};
  pl_udp_msg m = {.to = b.local, .iov = &iov, .n_iov = 1, .seg = 100};
  int on = 1, off = 0;
  CHECK(setsockopt(a.fd, SOL_SOCKET, SO_NO_CHECK, &on, sizeof on) == 0);
  pl_udp_sendv(&a, &m, 1);
  CHECK(!a.gso && a.gso_skip > 0);
  CHECK(setsockopt(a.fd, SOL_SOCKET, SO_NO_CHECK, &off, sizeof off) == 0);
  pl_rx rx[PL_UDP_BATCH];
  for (uint32_t i = a.gso_skip; i > 0; i--) {
    pl_udp_sendv(&a, &m, 1);
    while (pl_udp_recv(&b, rx) > 0) {}
  }
  CHECK(a.gso);
  pl_udp_sendv(&a, &m, 1);
  CHECK(a.gso && a.gso_fallbacks == 1 && a.send_errors == 0);
  pl_udp_close(&a);
  pl_udp_close(&b);
}

/* Messages as the relay makes them: one iovec per datagram with gaps between, several destinations in one call. */
static void test_gather(bool gso) {
  pl_udp a, b[3];
  pl_addr lo = v4(1, 0);
  CHECK(pl_udp_open(&a, &lo, 1u << 20, gso, true) == PL_OK);
  enum { SEGS = 10, SIZE = 500 };
  static uint8_t data[3][SEGS][SIZE + 4];
  struct iovec iov[3][SEGS];
  pl_udp_msg m[3];
  for (unsigned d = 0; d < 3; d++) {
    CHECK(pl_udp_open(&b[d], &lo, 1u << 20, gso, true) == PL_OK);
    for (unsigned i = 0; i < SEGS; i++) {
      for (unsigned k = 0; k < SIZE; k++) data[d][i][k + 4] = pattern(d * SEGS + i, k);
      iov[d][i] = (struct iovec){&data[d][i][4], i + 1 < SEGS ? SIZE : 77};
    }
    m[d] = (pl_udp_msg){.to = b[d].local, .iov = iov[d], .n_iov = SEGS, .seg = SIZE};
  }
  pl_udp_sendv(&a, m, 3);
  CHECK(a.send_datagrams == 3 * SEGS && a.send_errors == 0);
  if (gso) CHECK(a.send_calls == 1);
  for (unsigned d = 0; d < 3; d++) {
    reader r = {.u = &b[d]};
    for (unsigned i = 0; i < SEGS; i++) {
      uint32_t len;
      const uint8_t *p = next_datagram(&r, &len, NULL);
      CHECK(p && len == (i + 1 < SEGS ? SIZE : 77));
      for (uint32_t k = 0; k < len; k++) CHECK(p[k] == pattern(d * SEGS + i, k));
    }
    pl_udp_close(&b[d]);
  }
  pl_udp_close(&a);
}

/* What one destination cannot take must not stop the others in the same call. */
static void test_errors_pass(void) {
  pl_udp a, b;
  pl_addr lo = v4(1, 0), closed;
  CHECK(pl_udp_open(&a, &lo, 1u << 20, true, true) == PL_OK);
  CHECK(pl_udp_open(&b, &lo, 1u << 20, true, true) == PL_OK);
  closed = b.local;
  pl_udp_close(&b);
  CHECK(pl_udp_open(&b, &lo, 1u << 20, true, true) == PL_OK);
  static uint8_t big[65536];
  struct iovec small = {big, 10}, huge = {big, 65508};
  pl_udp_msg m[] = {
      {.to = b.local, .iov = &huge, .n_iov = 1},                          /* EMSGSIZE */
      {.to = closed, .iov = &small, .n_iov = 1},                          /* ICMP port unreachable */
      {.to = {.family = 6, .port = 9}, .iov = &small, .n_iov = 1},        /* not expressible on an IPv4 socket */
      {.to = {.family = 0}, .iov = &small, .n_iov = 1},
      {.to = {.family = 4, .port = 0, .ip = {127, 0, 0, 1}}, .iov = &small, .n_iov = 1}, /* EINVAL */
      {.to = {.family = 4, .port = 9, .ip = {255, 255, 255, 255}}, .iov = &small, .n_iov = 1}, /* EACCES */
      {.to = b.local, .iov = &small, .n_iov = 1},
  };
  for (int i = 0; i < 3; i++) pl_udp_sendv(&a, m, sizeof m / sizeof *m);
  CHECK(a.send_too_big == 3 && a.send_errors == 15 && a.send_datagrams == 6);
  reader r = {.u = &b};
  uint32_t len;
  for (int i = 0; i < 3; i++) CHECK(next_datagram(&r, &len, NULL) && len == 10);
  pl_rx rx[PL_UDP_BATCH];
  CHECK(pl_udp_recv(&a, rx) == 0); /* the ICMP errors do not show as data nor stick */
  CHECK(pl_udp_send_one(&b, &a.local, NULL, big, 5) == PL_OK);
  reader back = {.u = &a};
  CHECK(next_datagram(&back, &len, NULL) && len == 5);
  pl_addr six = v6_loopback(9);
  CHECK(pl_udp_send_one(&b, &six, NULL, big, 5) == PL_EIO && errno == EAFNOSUPPORT);
  pl_udp_close(&a);
  pl_udp_close(&b);
}

static void test_open_errors(void) {
  pl_udp a, b;
  pl_addr lo = v4(1, 0), none = {0}, foreign = {.family = 4, .ip = {192, 0, 2, 1}};
  CHECK(pl_udp_open(&a, &none, 65536, true, true) == PL_EIO && errno == EAFNOSUPPORT);
  CHECK(pl_udp_open(&a, &foreign, 65536, true, true) == PL_EIO && errno == EADDRNOTAVAIL);
  CHECK(pl_udp_open(&a, &lo, 65536, true, true) == PL_OK);
  lo = a.local;
  CHECK(lo.port != 0);
  CHECK(pl_udp_open(&b, &lo, 65536, true, true) == PL_EIO && errno == EADDRINUSE);
  CHECK(b.fd == -1 && b.rx_arena == NULL);
  pl_udp_close(&a);
}

/* Wildcard socket on a host with several addresses: the answer leaves from the address that was asked. */
static void pinned(pl_addr wildcard, pl_addr ask) {
  pl_udp server, client;
  pl_addr from = ask.family == 6 ? v6_loopback(0) : v4(1, 0);
  CHECK(pl_udp_open(&server, &wildcard, 1u << 20, true, true) == PL_OK);
  pl_udp_relay_mode(&server);
  CHECK(pl_udp_open(&client, &from, 1u << 20, true, true) == PL_OK);
  ask.port = server.local.port;
  uint8_t data[400] = {1};
  CHECK(pl_udp_send_one(&client, &ask, NULL, data, 100) == PL_OK);
  reader r = {.u = &server}, back = {.u = &client};
  uint32_t len;
  const pl_rx *rx;
  CHECK(next_datagram(&r, &len, &rx) && len == 100);
  CHECK(rx->local.family == ask.family && memcmp(rx->local.ip, ask.ip, 16) == 0);
  CHECK(rx->from.family == ask.family);
  struct iovec iov = {data, sizeof data};
  pl_udp_msg m = {.to = rx->from, .from = rx->local, .iov = &iov, .n_iov = 1, .seg = 100}; /* pinned trains too */
  pl_udp_sendv(&server, &m, 1);
  for (int i = 0; i < 4; i++) {
    CHECK(next_datagram(&back, &len, &rx) && len == 100);
    CHECK(pl_addr_eq(&rx->from, &ask));
  }
  CHECK(pl_udp_send_one(&server, &m.to, &m.from, data, 7) == PL_OK);
  CHECK(next_datagram(&back, &len, &rx) && len == 7 && pl_addr_eq(&rx->from, &ask));
  CHECK(server.gso && server.send_errors == 0);
  pl_udp_close(&server);
  pl_udp_close(&client);
}

static void test_pinning(void) {
  pinned((pl_addr){.family = 4}, v4(1, 0));
  pinned((pl_addr){.family = 4}, v4(77, 0));
  if (have_v6()) {
    pinned(any6(), v6_loopback(0));
    pinned(any6(), v4(77, 0));
  }
}

/* ---- in a network namespace ---- */

static void if_up(const char *name, int mtu, const char *ip) {
  int s = socket(AF_INET, SOCK_DGRAM, 0);
  struct ifreq ifr = {.ifr_mtu = mtu};
  snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", name);
  CHECK(s >= 0 && ioctl(s, SIOCSIFMTU, &ifr) == 0);
  if (ip) {
    struct sockaddr_in in = {.sin_family = AF_INET};
    CHECK(inet_pton(AF_INET, ip, &in.sin_addr) == 1);
    memcpy(&ifr.ifr_addr, &in, sizeof in);
    CHECK(ioctl(s, SIOCSIFADDR, &ifr) == 0);
    CHECK(inet_pton(AF_INET, "255.255.255.0", &in.sin_addr) == 1);
    memcpy(&ifr.ifr_netmask, &in, sizeof in);
    CHECK(ioctl(s, SIOCSIFNETMASK, &ifr) == 0);
  }
  ifr.ifr_flags = IFF_UP | IFF_RUNNING;
  CHECK(ioctl(s, SIOCSIFFLAGS, &ifr) == 0);
  close(s);
}

/* Oversize trains are dropped by a node's socket and fragmented by a beacon's, and neither loses its offload over it. */
static void oversize(void) {
  if_up("lo", 1500, NULL);
  static uint8_t data[20000];
  struct iovec iov = {data, sizeof data}, small = {data, 14000}, single = {data, 8009};
  for (int relay = 0; relay < 2; relay++) {
    pl_udp a, b;
    pl_addr lo = v4(1, 0);
    CHECK(pl_udp_open(&a, &lo, 1u << 20, true, true) == PL_OK);
    CHECK(pl_udp_open(&b, &lo, 1u << 20, true, true) == PL_OK);
    if (relay) pl_udp_relay_mode(&a);
    pl_udp_msg m[] = {{.to = b.local, .iov = &iov, .n_iov = 1, .seg = 2000},
                      {.to = b.local, .iov = &single, .n_iov = 1},
                      {.to = b.local, .iov = &small, .n_iov = 1, .seg = 1400}};
    pl_udp_sendv(&a, m, 3);
    CHECK(a.gso);
    reader r = {.u = &b};
    uint32_t len;
    if (relay) {
      CHECK(a.send_errors == 0 && a.send_datagrams == 21);
      for (int i = 0; i < 10; i++) CHECK(next_datagram(&r, &len, NULL) && len == 2000);
      CHECK(next_datagram(&r, &len, NULL) && len == 8009);
    } else {
      CHECK(a.send_errors == 11 && a.send_too_big == 11 && a.send_datagrams == 10);
    }
    for (int i = 0; i < 10; i++) CHECK(next_datagram(&r, &len, NULL) && len == 1400);
    pl_udp_close(&a);
    pl_udp_close(&b);
  }
}

/* A neighbour that never answers ARP keeps what waits for it in the socket buffer: the call returns in bounded time, and everything is accounted for. */
static void full_buffer(void) {
  int tun = open("/dev/net/tun", O_RDWR);
  if (tun < 0) _exit(77);
  struct ifreq ifr = {.ifr_name = "dead0", .ifr_flags = IFF_TAP | IFF_NO_PI};
  CHECK(ioctl(tun, TUNSETIFF, &ifr) == 0);
  if_up("dead0", 1500, "192.0.2.1");
  for (int gso = 0; gso < 2; gso++) {
    pl_udp a;
    pl_addr from = {.family = 4, .ip = {192, 0, 2, 1}};
    CHECK(pl_udp_open(&a, &from, 65536, gso, false) == PL_OK);
    static uint8_t data[60000];
    struct iovec iov = {data, sizeof data};
    pl_udp_msg m[20];
    for (unsigned i = 0; i < 20; i++)
      m[i] = (pl_udp_msg){.to = {.family = 4, .port = 9, .ip = {192, 0, 2, 2}}, .iov = &iov, .n_iov = 1, .seg = 1000};
    uint64_t start = now_ns();
    pl_udp_sendv(&a, m, 20);
    CHECK(now_ns() - start < PL_NS_PER_S);
    CHECK(a.send_errors > 0 && a.send_errors + a.send_datagrams == 20 * 60);
    pl_udp_close(&a);
  }
  close(tun);
}

static void in_namespace(const char *name, void (*test)(void)) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) _exit(77);
    test();
    _exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
    printf("%s skipped: no right to make a network namespace or a TUN device\n", name);
  else
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
  test_open_errors();
  test_transfer();
  test_gso_comes_back();
  test_gather(true);
  test_gather(false);
  test_errors_pass();
  test_pinning();
  in_namespace("oversize", oversize);
  in_namespace("full_buffer", full_buffer);
  printf("ok\n");
  return 0;
}
