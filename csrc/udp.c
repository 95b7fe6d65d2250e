/* UDP socket of the I/O shells: batches in, trains out.
 *
 * Linux: recvmmsg into 64 KiB buffers with UDP_GRO; sendmmsg of messages that each carry up to 64 equal datagrams with UDP_SEGMENT.
 * Elsewhere: one system call per datagram. Errors that ICMP reports for one destination never stop the others. */
#include "udp.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __linux__
#include <netinet/udp.h>
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#endif

#define RX_SIZE 65536u
/* Not a power of two: the heads of small datagrams would all fall into the same few cache sets. */
#define RX_STRIDE (RX_SIZE + 320u)
#define RX_FEW 8u              /* with full trains, half a MiB per call stays in the cache */
#define SEND_WAITS 4u          /* of 1 ms each, per pl_udp_sendv */
#define GSO_PAUSE_FIRST 1024u  /* trains sent singly after a refusal, before the kernel is asked again; doubles */
#define GSO_PAUSE_MAX (1u << 20)
#define FITS_ANYWHERE 1232u    /* a segment size that no path refuses: EINVAL then means the offload itself */

/* ---- addresses ---- */

int pl_addr_from_sockaddr(pl_addr *out, const void *sa) {
  static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  memset(out, 0, sizeof *out);
  /* Copied, not cast: `sa` is a sockaddr_in6 here and a sockaddr_storage there, and the compiler may rely on the difference. */
  struct sockaddr any;
  memcpy(&any, sa, offsetof(struct sockaddr, sa_data));
  if (any.sa_family == AF_INET) {
    struct sockaddr_in in;
    memcpy(&in, sa, sizeof in);
    out->family = 4;
    out->port = ntohs(in.sin_port);
    memcpy(out->ip, &in.sin_addr, 4);
    return PL_OK;
  }
  if (any.sa_family == AF_INET6) {
    struct sockaddr_in6 in;
    memcpy(&in, sa, sizeof in);
    const uint8_t *ip = in.sin6_addr.s6_addr;
    out->port = ntohs(in.sin6_port);
    if (memcmp(ip, mapped, sizeof mapped) == 0) {
      out->family = 4;
      memcpy(out->ip, ip + 12, 4);
    } else {
      out->family = 6;
      memcpy(out->ip, ip, 16);
    }
    return PL_OK;
  }
  return PL_EFORMAT;
}

static void to_in6(struct in6_addr *out, const pl_addr *a) {
  memset(out, 0, sizeof *out);
  if (a->family == 4) {
    out->s6_addr[10] = out->s6_addr[11] = 0xff;
    memcpy(out->s6_addr + 12, a->ip, 4);
  } else {
    memcpy(out->s6_addr, a->ip, 16);
  }
}

unsigned pl_addr_to_sockaddr(const pl_addr *a, bool v6_socket, void *ss) {
  if (v6_socket && (a->family == 4 || a->family == 6)) {
    struct sockaddr_in6 in = {.sin6_family = AF_INET6, .sin6_port = htons(a->port)};
    to_in6(&in.sin6_addr, a);
    memcpy(ss, &in, sizeof in);
    return sizeof in;
  }
  if (!v6_socket && a->family == 4) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(a->port)};
    memcpy(&in.sin_addr, a->ip, 4);
    memcpy(ss, &in, sizeof in);
    return sizeof in;
  }
  return 0;
}

/* ---- open ---- */

static void set_int(int fd, int level, int name, int value) { (void)setsockopt(fd, level, name, &value, sizeof value); }

static void set_buffer(int fd, int name, int forced, uint32_t bytes) {
  int value = bytes > (1u << 30) ? 1 << 30 : (int)bytes;
  if (forced >= 0 && setsockopt(fd, SOL_SOCKET, forced, &value, sizeof value) == 0) return;
  /* Linux cuts the wish to its limit; other systems refuse it. */
  while (value > 65536 && setsockopt(fd, SOL_SOCKET, name, &value, sizeof value) < 0) value /= 2;
}

static void set_options(pl_udp *u, uint32_t socket_buffer, bool gso, bool gro) {
#ifdef __linux__
  set_buffer(u->fd, SO_RCVBUF, SO_RCVBUFFORCE, socket_buffer);
  set_buffer(u->fd, SO_SNDBUF, SO_SNDBUFFORCE, socket_buffer);
  /* Don't-fragment on everything, and no trust in ICMP "too big": the engine finds the path MTU with its own probes. */
  set_int(u->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
  if (u->v6) set_int(u->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
  int off = 0, on = 1;
  u->gso = gso && setsockopt(u->fd, SOL_UDP, UDP_SEGMENT, &off, sizeof off) == 0;
  u->gro = gro && setsockopt(u->fd, SOL_UDP, UDP_GRO, &on, sizeof on) == 0;
#else
  set_buffer(u->fd, SO_RCVBUF, -1, socket_buffer);
  set_buffer(u->fd, SO_SNDBUF, -1, socket_buffer);
#ifdef IP_DONTFRAG
  if (!u->v6) set_int(u->fd, IPPROTO_IP, IP_DONTFRAG, 1);
#endif
#ifdef IPV6_DONTFRAG
  if (u->v6) set_int(u->fd, IPPROTO_IPV6, IPV6_DONTFRAG, 1);
#endif
  (void)gso;
  (void)gro;
#endif
}

int pl_udp_open(pl_udp *u, const pl_addr *bind_to, uint32_t socket_buffer, bool gso, bool gro) {
  memset(u, 0, sizeof *u);
  u->fd = -1;
  u->v6 = bind_to->family == 6;
  struct sockaddr_storage ss;
  unsigned len = pl_addr_to_sockaddr(bind_to, u->v6, &ss);
  if (len == 0) {
    errno = EAFNOSUPPORT;
    return PL_EIO;
  }
#ifdef SOCK_CLOEXEC
  u->fd = socket(u->v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
#else
  u->fd = socket(u->v6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
  if (u->fd >= 0) {
    fcntl(u->fd, F_SETFD, FD_CLOEXEC);
    fcntl(u->fd, F_SETFL, O_NONBLOCK);
  }
#endif
  if (u->fd < 0) return PL_EIO;
  if (u->v6) set_int(u->fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  set_options(u, socket_buffer, gso, gro);
  socklen_t got = sizeof ss;
  /* Untouched pages of the arena cost nothing. */
  u->rx_arena = malloc((size_t)PL_UDP_BATCH * RX_STRIDE);
  if (!u->rx_arena) errno = ENOMEM;
  if (!u->rx_arena || bind(u->fd, (struct sockaddr *)&ss, (socklen_t)len) < 0 ||
      getsockname(u->fd, (struct sockaddr *)&ss, &got) < 0) {
    int why = errno;
    pl_udp_close(u);
    errno = why;
    return PL_EIO;
  }
  (void)pl_addr_from_sockaddr(&u->local, &ss);
  u->rx_want = PL_UDP_BATCH;
  u->gso_pause = GSO_PAUSE_FIRST;
  return PL_OK;
}

void pl_udp_close(pl_udp *u) {
  if (u->fd >= 0) close(u->fd);
  free(u->rx_arena);
  u->fd = -1;
  u->rx_arena = NULL;
}

void pl_udp_relay_mode(pl_udp *u) {
#ifdef __linux__
  if (u->v6) {
    set_int(u->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    set_int(u->fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT);
  } else {
    set_int(u->fd, IPPROTO_IP, IP_PKTINFO, 1);
  }
#ifdef IP_PMTUDISC_OMIT
  /* Fragments at the interface's own MTU only: a forged ICMP message cannot make it cut smaller. */
  set_int(u->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT);
#else
  set_int(u->fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT);
#endif
#else
#ifdef IP_DONTFRAG
  if (!u->v6) set_int(u->fd, IPPROTO_IP, IP_DONTFRAG, 0);
#endif
#ifdef IPV6_DONTFRAG
  if (u->v6) set_int(u->fd, IPPROTO_IPV6, IPV6_DONTFRAG, 0);
#endif
#endif
}

static bool recv_error_passes(int why) {
  /* Left behind by ICMP for something sent earlier; the queue behind it is intact. */
  return why == EINTR || why == ECONNREFUSED || why == ECONNRESET || why == EHOSTUNREACH || why == ENETUNREACH ||
         why == EMSGSIZE || why == EHOSTDOWN || why == ENETDOWN || why == EPERM || why == EACCES || why == ENOPROTOOPT;
}

static unsigned count_datagrams(const pl_udp_msg *m) {
  if (m->n_iov > 1) return m->n_iov;
  size_t len = m->iov[0].iov_len;
  return m->seg && len > m->seg ? (unsigned)((len + m->seg - 1) / m->seg) : 1;
}

/* Datagram `i` of a message. */
static struct iovec datagram_at(const pl_udp_msg *m, unsigned i) {
  if (m->n_iov > 1) return m->iov[i];
  size_t len = m->iov[0].iov_len, off = (size_t)i * m->seg;
  if (m->seg == 0 || len <= m->seg) return m->iov[0];
  return (struct iovec){(uint8_t *)m->iov[0].iov_base + off, len - off < m->seg ? len - off : m->seg};
}

typedef struct waits {
  unsigned left;
  bool progress; /* something went out since the last wait */
} waits;

/* True if sending may be tried again. */
static bool wait_for_room(const pl_udp *u, waits *w) {
  if (w->left == 0 || !w->progress) return false;
  w->left--;
  w->progress = false;
  struct pollfd p = {.fd = u->fd, .events = POLLOUT};
  return poll(&p, 1, 1) > 0;
}

static bool is_full(int why) { return why == EAGAIN || why == EWOULDBLOCK || why == ENOBUFS || why == ENOMEM; }

static void drop(pl_udp *u, unsigned datagrams, int why) {
  u->send_errors += datagrams;
  if (why == EMSGSIZE) u->send_too_big += datagrams;
}

typedef union peer_name {
  struct sockaddr sa;
  struct sockaddr_in in;
  struct sockaddr_in6 in6;
} peer_name;

#ifdef __linux__

/* ---- receive ---- */

typedef union rx_control {
  struct cmsghdr align;
  uint8_t space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in6_pktinfo)) + CMSG_SPACE(sizeof(struct in_pktinfo))];
} rx_control;

static void read_control(struct msghdr *h, pl_rx *rx) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
    if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
      int seg;
      memcpy(&seg, CMSG_DATA(c), sizeof seg);
      if (seg > 0 && (uint32_t)seg < rx->len) rx->seg = (uint32_t)seg;
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
      struct in_pktinfo info;
      memcpy(&info, CMSG_DATA(c), sizeof info);
      rx->local.family = 4;
      memcpy(rx->local.ip, &info.ipi_spec_dst, 4);
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
      struct sockaddr_in6 in = {.sin6_family = AF_INET6};
      struct in6_pktinfo info;
      memcpy(&info, CMSG_DATA(c), sizeof info);
      in.sin6_addr = info.ipi6_addr;
      (void)pl_addr_from_sockaddr(&rx->local, &in);
    }
  }
}

int pl_udp_recv(pl_udp *u, pl_rx out[PL_UDP_BATCH]) {
  struct mmsghdr msg[PL_UDP_BATCH];
  struct iovec iov[PL_UDP_BATCH];
  peer_name name[PL_UDP_BATCH];
  rx_control control[PL_UDP_BATCH];
  unsigned want = u->rx_want;
  for (unsigned tries = 0; tries < 16; tries++) {
    for (unsigned i = 0; i < want; i++) {
      iov[i] = (struct iovec){u->rx_arena + (size_t)i * RX_STRIDE, RX_SIZE};
      msg[i].msg_hdr = (struct msghdr){.msg_name = &name[i], .msg_namelen = sizeof name[i], .msg_iov = &iov[i], .msg_iovlen = 1,
                                       .msg_control = &control[i], .msg_controllen = sizeof control[i]};
    }
    int got = recvmmsg(u->fd, msg, want, MSG_DONTWAIT, NULL);
    u->recv_calls++;
    if (got < 0) {
      if (recv_error_passes(errno)) continue;
      break;
    }
    int n = 0;
    size_t bytes = 0;
    for (int i = 0; i < got; i++) {
      pl_rx *rx = &out[n];
      *rx = (pl_rx){.data = iov[i].iov_base, .len = msg[i].msg_len};
      if (rx->len == 0 || msg[i].msg_hdr.msg_flags & MSG_TRUNC) continue;
      if (pl_addr_from_sockaddr(&rx->from, &name[i]) < 0 || rx->from.port == 0) continue;
      read_control(&msg[i].msg_hdr, rx);
      u->recv_datagrams += rx->seg ? (rx->len + rx->seg - 1) / rx->seg : 1;
      bytes += rx->len;
      n++;
    }
    u->more = (unsigned)got == want;
    u->rx_want = bytes >= RX_FEW * RX_SIZE / 2 ? RX_FEW : PL_UDP_BATCH;
    if (n > 0) return n;
    if (!u->more) break;
  }
  u->more = false;
  return 0;
}

/* ---- send ---- */

#define SEND_BATCH 64u

typedef union tx_control {
  struct cmsghdr align;
  uint8_t space[CMSG_SPACE(sizeof(uint16_t)) + CMSG_SPACE(sizeof(struct in6_pktinfo))];
} tx_control;

typedef struct send_batch {
  unsigned n;
  struct mmsghdr msg[SEND_BATCH];
  const pl_udp_msg *src[SEND_BATCH];
  peer_name name[SEND_BATCH];
  tx_control control[SEND_BATCH];
} send_batch;

/* Fills one header; `seg` 0 = a single datagram. False if the destination does not exist on this kind of socket. */
static bool fill_header(const pl_udp *u, struct msghdr *h, peer_name *name, tx_control *control, const pl_udp_msg *m,
                        struct iovec *iov, size_t n_iov, uint32_t seg) {
  unsigned len = pl_addr_to_sockaddr(&m->to, u->v6, name);
  if (len == 0) return false;
  *h = (struct msghdr){.msg_name = name, .msg_namelen = len, .msg_iov = iov, .msg_iovlen = n_iov, .msg_control = control,
                       .msg_controllen = sizeof *control};
  size_t used = 0;
  struct cmsghdr *c = CMSG_FIRSTHDR(h);
  if (seg) {
    uint16_t value = (uint16_t)seg;
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof value);
    memcpy(CMSG_DATA(c), &value, sizeof value);
    used = CMSG_SPACE(sizeof value);
    c = (struct cmsghdr *)(void *)(control->space + used);
  }
  if (m->from.family && (u->v6 || m->from.family == 4)) {
    if (u->v6) {
      struct in6_pktinfo info = {.ipi6_ifindex = 0};
      to_in6(&info.ipi6_addr, &m->from);
      c->cmsg_level = IPPROTO_IPV6;
      c->cmsg_type = IPV6_PKTINFO;
      c->cmsg_len = CMSG_LEN(sizeof info);
      memcpy(CMSG_DATA(c), &info, sizeof info);
      used += CMSG_SPACE(sizeof info);
    } else {
      struct in_pktinfo info = {.ipi_ifindex = 0};
      memcpy(&info.ipi_spec_dst, m->from.ip, 4);
      c->cmsg_level = IPPROTO_IP;
      c->cmsg_type = IP_PKTINFO;
      c->cmsg_len = CMSG_LEN(sizeof info);
      memcpy(CMSG_DATA(c), &info, sizeof info);
      used += CMSG_SPACE(sizeof info);
    }
  }
  h->msg_controllen = used;
  if (used == 0) h->msg_control = NULL;
  return true;
}

/* Sends the datagrams of one message one by one, in as few calls as possible. True if the first, a full-sized one, went out. */
static bool send_split(pl_udp *u, const pl_udp_msg *m, waits *w) {
  struct mmsghdr msg[SEND_BATCH];
  struct iovec iov[SEND_BATCH];
  peer_name name;
  tx_control control;
  unsigned total = count_datagrams(m);
  bool first_ok = false;
  for (unsigned at = 0; at < total;) {
    unsigned n = total - at < SEND_BATCH ? total - at : SEND_BATCH;
    for (unsigned i = 0; i < n; i++) {
      iov[i] = datagram_at(m, at + i);
      if (!fill_header(u, &msg[i].msg_hdr, &name, &control, m, &iov[i], 1, 0)) {
        drop(u, total - at, EAFNOSUPPORT);
        return first_ok;
      }
    }
    for (unsigned i = 0; i < n;) {
      int r = sendmmsg(u->fd, msg + i, n - i, MSG_DONTWAIT);
      u->send_calls++;
      if (r > 0) {
        if (at + i == 0) first_ok = true;
        u->send_datagrams += (unsigned)r;
        w->progress = true;
        i += (unsigned)r;
        continue;
      }
      if (errno == EINTR) continue;
      if (is_full(errno)) {
        if (wait_for_room(u, w)) continue;
        drop(u, total - at - i, EAGAIN);
        return first_ok;
      }
      drop(u, 1, errno);
      i++;
    }
    at += n;
  }
  return first_ok;
}

static void gso_refused(pl_udp *u, const pl_udp_msg *m, int why, waits *w) {
  u->gso_fallbacks++;
  bool singles_pass = send_split(u, m, w);
  /* A segment too large for the route gives EINVAL or EMSGSIZE, by kernel version: then only this message is concerned. */
  if (why == EMSGSIZE || (why == EINVAL && (m->seg > FITS_ANYWHERE || !singles_pass))) return;
  u->gso = false;
  u->gso_skip = u->gso_pause;
  if (u->gso_pause < GSO_PAUSE_MAX) u->gso_pause *= 2;
}

/* Sends what is collected. False when the socket stays full: the rest of the call is dropped. */
static bool send_collected(pl_udp *u, send_batch *b, waits *w) {
  unsigned i = 0;
  while (i < b->n) {
    int r = sendmmsg(u->fd, b->msg + i, b->n - i, MSG_DONTWAIT);
    u->send_calls++;
    if (r > 0) {
      for (int k = 0; k < r; k++) u->send_datagrams += count_datagrams(b->src[i + (unsigned)k]);
      w->progress = true;
      i += (unsigned)r;
      continue;
    }
    int why = errno;
    const pl_udp_msg *m = b->src[i];
    if (why == EINTR) continue;
    if (is_full(why)) {
      if (wait_for_room(u, w)) continue;
      for (; i < b->n; i++) drop(u, count_datagrams(b->src[i]), why);
      b->n = 0;
      return false;
    }
    i++;
    bool train = count_datagrams(m) > 1;
    if (train && (why == EMSGSIZE || why == EINVAL || why == EIO || why == ENOPROTOOPT || why == EOPNOTSUPP))
      gso_refused(u, m, why, w);
    else
      drop(u, count_datagrams(m), why);
  }
  b->n = 0;
  return true;
}

void pl_udp_sendv(pl_udp *u, const pl_udp_msg *msgs, unsigned n) {
  send_batch b;
  b.n = 0;
  waits w = {.left = SEND_WAITS, .progress = true};
  bool open = true;
  for (unsigned i = 0; i < n; i++) {
    const pl_udp_msg *m = &msgs[i];
    unsigned datagrams = count_datagrams(m);
    if (!open) {
      drop(u, datagrams, EAGAIN);
      continue;
    }
    if (datagrams > 1 && !u->gso) {
      if (u->gso_skip && --u->gso_skip == 0) u->gso = true; /* the route may be another one by now */
      open = send_collected(u, &b, &w);
      if (open)
        send_split(u, m, &w);
      else
        drop(u, datagrams, EAGAIN);
      continue;
    }
    unsigned at = b.n;
    if (!fill_header(u, &b.msg[at].msg_hdr, &b.name[at], &b.control[at], m, m->iov, m->n_iov, datagrams > 1 ? m->seg : 0)) {
      drop(u, datagrams, EAFNOSUPPORT);
      continue;
    }
    b.src[at] = m;
    if (++b.n == SEND_BATCH) open = send_collected(u, &b, &w);
  }
  if (open) send_collected(u, &b, &w);
}

int pl_udp_send_one(const pl_udp *u, const pl_addr *to, const pl_addr *from, const uint8_t *data, size_t len) {
  struct iovec iov = {(void *)(uintptr_t)data, len};
  pl_udp_msg m = {.to = *to, .iov = &iov, .n_iov = 1};
  if (from) m.from = *from;
  struct msghdr h;
  peer_name name;
  tx_control control;
  if (!fill_header(u, &h, &name, &control, &m, &iov, 1, 0)) {
    errno = EAFNOSUPPORT;
    return PL_EIO;
  }
  return sendmsg(u->fd, &h, MSG_DONTWAIT) < 0 ? PL_EIO : PL_OK;
}

#else /* portable: one call per datagram, no source pinning */

int pl_udp_recv(pl_udp *u, pl_rx out[PL_UDP_BATCH]) {
  int n = 0;
  unsigned tries = 0;
  u->more = false;
  while (n < (int)PL_UDP_BATCH && tries < 2 * PL_UDP_BATCH) {
    peer_name name;
    socklen_t len = sizeof name;
    pl_rx *rx = &out[n];
    *rx = (pl_rx){.data = u->rx_arena + (size_t)n * RX_STRIDE};
    ssize_t got = recvfrom(u->fd, rx->data, RX_SIZE, 0, &name.sa, &len);
    u->recv_calls++;
    tries++;
    if (got < 0) {
      if (recv_error_passes(errno)) continue;
      return n;
    }
    if (got == 0 || pl_addr_from_sockaddr(&rx->from, &name) < 0 || rx->from.port == 0) continue;
    rx->len = (uint32_t)got;
    u->recv_datagrams++;
    n++;
  }
  u->more = true;
  return n;
}

int pl_udp_send_one(const pl_udp *u, const pl_addr *to, const pl_addr *from, const uint8_t *data, size_t len) {
  (void)from;
  peer_name name;
  unsigned name_len = pl_addr_to_sockaddr(to, u->v6, &name);
  if (name_len == 0) {
    errno = EAFNOSUPPORT;
    return PL_EIO;
  }
  return sendto(u->fd, data, len, 0, &name.sa, (socklen_t)name_len) < 0 ? PL_EIO : PL_OK;
}

void pl_udp_sendv(pl_udp *u, const pl_udp_msg *msgs, unsigned n) {
  waits w = {.left = SEND_WAITS, .progress = true};
  for (unsigned i = 0; i < n; i++) {
    unsigned total = count_datagrams(&msgs[i]);
    for (unsigned k = 0; k < total;) {
      struct iovec d = datagram_at(&msgs[i], k);
      int r = pl_udp_send_one(u, &msgs[i].to, NULL, d.iov_base, d.iov_len);
      u->send_calls++;
      if (r == PL_OK) {
        u->send_datagrams++;
        w.progress = true;
      } else if (errno == EINTR || (is_full(errno) && wait_for_room(u, &w))) {
        continue;
      } else {
        drop(u, 1, errno);
      }
      k++;
    }
  }
}

#endif

void pl_udp_send(pl_udp *u, const pl_tx *tx) {
  struct iovec iov[PL_TX_RUNS];
  pl_udp_msg msg[PL_TX_RUNS];
  for (unsigned i = 0; i < tx->n_runs; i++) {
    const pl_run *r = &tx->runs[i];
    iov[i] = (struct iovec){tx->arena + r->off, r->len};
    msg[i] = (pl_udp_msg){.to = r->to, .iov = &iov[i], .n_iov = 1, .seg = r->count > 1 ? r->seg : 0};
  }
  pl_udp_sendv(u, msg, tx->n_runs);
}
