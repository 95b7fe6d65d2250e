/* A whole node under a hostile peer that holds a session key: raw datagrams, sealed frames with any inside, stream packets that fit the
 * connections it sees, time, and every command in any order. Input: a sequence of operations, one byte each with its arguments.
 *
 * Checked beside the sanitizers: each frame the node sends opens under the peer's key and carries the node's own number; nonces never
 * repeat; frames of era 1 go only to a peer that has sent some; the node comes to rest when time stands still; counts of connections
 * agree. */
#include "aead.h"
#include "engine.h"
#include "fuzz.h"

#define SEEN 8u

enum { NODE = 0x1001, PEER = 0x2002, OWN_KIND = 0x3003 };

typedef struct world {
  fuzz_in in;
  pl_engine *e;
  pl_tx tx;
  uint64_t now;
  pl_aead *aead[2]; /* of the plain peer and of the own kind; each with the present key */
  pl_aead *aead1[2]; /* the same in era 1 */
  uint8_t key[2][32], key1[2][32];
  bool accepts;     /* the node takes era 1 */
  bool speaks1[2], spoke1[2];
  uint64_t key_id[2];
  uint64_t counter[2];
  uint32_t prefix;
  pl_packet seen[SEEN]; /* stream packets that the node sent, newest first */
  unsigned who[SEEN];
  uint32_t conns[SEEN];
  unsigned next_conn;
  uint64_t last_nonce[2];
  pl_packet ping;       /* the last one of the node that asks for an answer */
  unsigned pinged;
} world;

static const uint32_t nodes[2] = {PEER, OWN_KIND};
static const uint16_t ports[] = {7, 444, 1000, 1001, 2000};

static pl_addr address(uint8_t which) { return (pl_addr){.family = 4, .port = 4000, .ip = {192, 0, 2, (uint8_t)(which & 3)}}; }
static pl_addr beacon(void) { return (pl_addr){.family = 4, .port = 9001, .ip = {192, 0, 2, 99}}; }

static void new_key(world *w, unsigned i) {
  w->key_id[i]++;
  memset(w->key[i], (int)(w->key_id[i] + 64 * i), 32);
  pl_aead_free(w->aead[i]);
  w->aead[i] = pl_aead_new(w->key[i]);
  memset(w->key1[i], (int)(w->key_id[i] + 64 * i + 128), 32);
  pl_aead_free(w->aead1[i]);
  w->aead1[i] = pl_aead_new(w->key1[i]);
  FUZZ_CHECK(w->aead[i] != NULL && w->aead1[i] != NULL);
}

static void remember(world *w, unsigned i, const pl_packet *k) {
  memmove(w->seen + 1, w->seen, (SEEN - 1) * sizeof *w->seen);
  memmove(w->who + 1, w->who, (SEEN - 1) * sizeof *w->who);
  w->seen[0] = *k;
  w->seen[0].payload = NULL; /* freed with the frame */
  w->who[0] = i;
}

static void on_sent(world *w, uint8_t *p, size_t n) {
  if (n >= PL_RELAY_HEAD && p[0] == PL_BEACON_RELAY) {
    p += PL_RELAY_HEAD;
    n -= PL_RELAY_HEAD;
  }
  pl_pils h;
  if (pl_pils_parse(p, p + n, &h) < 0) return; /* raw */
  FUZZ_CHECK(h.node == NODE && h.counter > 0);
  uint8_t *body = malloc(h.body_len);
  FUZZ_CHECK(body != NULL);
  for (unsigned i = 0; i < 2; i++) {
    memcpy(body, h.body, h.body_len);
    if (pl_aead_open(w->aead[i], h.nonce, p + 4, 4, body, h.body_len - PL_TAG_SIZE) < 0) {
      memcpy(body, h.body, h.body_len);
      if (pl_aead_open(w->aead1[i], h.nonce, NULL, 0, body, h.body_len - PL_TAG_SIZE) < 0) continue; /* the other's, or under an older key */
      FUZZ_CHECK(w->accepts && w->spoke1[i]);
    }
    pl_packet k;
    FUZZ_CHECK(pl_packet_parse(body, body + h.body_len - PL_TAG_SIZE, i == 1, &k) == PL_OK);
    FUZZ_CHECK(k.src_node == NODE);
    uint64_t nonce = (uint64_t)h.prefix << 32 | (uint32_t)h.counter;
    FUZZ_CHECK(nonce != w->last_nonce[i]);
    w->last_nonce[i] = nonce;
    if (k.proto == PL_PROTO_STREAM) {
      /* A SACK look-alike must be one: either so short that it is none, or an empty acknowledgement's blocks (no new bytes). */
      pl_sack_block b[PL_SACK_MAX];
      unsigned blocks = pl_sack_parse(k.payload, k.payload + k.len, PL_SACK_MAX, b);
      FUZZ_CHECK(!blocks || k.len == 5 + 8 * blocks);
      remember(w, i, &k);
    }
    if (k.proto == PL_PROTO_CONTROL && !(k.flags & PL_FLAG_ACK) && k.len) {
      w->ping = k;
      w->pinged = i;
    }
    break;
  }
  free(body);
}

static void flush(pl_tx *tx, void *ctx) {
  world *w = ctx;
  for (unsigned i = 0; i < tx->n_runs; i++) {
    const pl_run *r = &tx->runs[i];
    for (uint32_t off = 0; off < r->len; off += r->seg) {
      uint32_t len = r->len - off < r->seg ? r->len - off : r->seg;
      on_sent(w, tx->arena + r->off + off, len);
    }
  }
  pl_tx_reset(tx);
}

static void input(world *w, const uint8_t *p, size_t n, size_t seg, pl_addr from) {
  uint8_t *copy = malloc(n ? n : 1); /* the engine opens frames in place, and may not look past them */
  FUZZ_CHECK(copy != NULL);
  if (n) memcpy(copy, p, n);
  pl_engine_input(w->e, copy, n, seg, &from, w->now);
  free(copy);
}

/* `inner` is the packet; sealed by peer `i`, with its checksum put right if `fix`. */
static void sealed(world *w, unsigned i, uint8_t *inner, size_t n, bool fix, uint8_t how) {
  if (fix && n >= PL_HDR_SIZE) {
    inner[0] = (uint8_t)(0x10 | (inner[0] & 15));
    pl_put16(inner + 2, (uint16_t)(n - PL_HDR_SIZE));
    pl_put32(inner + 6, nodes[i]);
    if (!(how & 8)) pl_put32(inner + 12, NODE);
    pl_put32(inner + 30, 0);
    pl_packet_write_crc(inner, n);
  }
  size_t head = how & 4 ? PL_DELIVER_HEAD : 0, len = head + PL_PILS_OVERHEAD + n;
  uint8_t *f = malloc(len), *p = f + head;
  FUZZ_CHECK(f != NULL);
  if (head) {
    f[0] = PL_BEACON_DELIVER;
    pl_put32(f + 1, nodes[i]);
  }
  w->counter[i] += how & 1 ? 0 : 1; /* a replay now and then */
  pl_pils_write_head(p, nodes[i], w->prefix, w->counter[i]);
  if (n) memcpy(p + PL_PILS_HEAD, inner, n);
  if (w->accepts && how & 0x20) w->speaks1[i] = !w->speaks1[i];
  bool era1 = w->speaks1[i];
  w->spoke1[i] |= era1;
  FUZZ_CHECK(pl_aead_seal(era1 ? w->aead1[i] : w->aead[i], p + 8, p + 4, era1 ? 0 : 4, p + PL_PILS_HEAD, n) == PL_OK);
  if (how & 2) w->prefix++;
  input(w, f, len, 0, head ? beacon() : address((uint8_t)(i + 1)));
  free(f);
}

/* A packet for a connection that the node has: numbers near what it expects. */
static void fitting(world *w) {
  unsigned at = fuzz_u8(&w->in) % SEEN, i = w->who[at];
  const pl_packet *s = &w->seen[at];
  uint8_t flags = fuzz_u8(&w->in), shape = fuzz_u8(&w->in);
  int8_t seq = (int8_t)fuzz_u8(&w->in), ack = (int8_t)fuzz_u8(&w->in);
  uint32_t span = s->len + (s->flags & (PL_FLAG_SYN | PL_FLAG_FIN) ? 1u : 0u);
  pl_packet k = {.proto = PL_PROTO_STREAM, .flags = flags & 15, .src_net = s->dst_net, .dst_net = s->src_net, .src_port = s->dst_port,
                 .dst_port = s->src_port, .seq = s->ack + (uint32_t)(int32_t)seq * (shape & 1 ? 1000u : 1u),
                 .ack = s->seq + span + (uint32_t)(int32_t)ack * (shape & 2 ? 1000u : 1u), .window = fuzz_u16(&w->in)};
  uint8_t body[1400];
  size_t n = 0;
  switch (shape >> 2 & 3) {
    case 1: { /* SACK around there */
      pl_sack_block b[4];
      unsigned count = 1 + (shape >> 4 & 3);
      for (unsigned j = 0; j < count; j++) { /* mostly along segments that were sent */
        uint8_t edges = fuzz_u8(&w->in);
        const pl_packet *from = &w->seen[edges % SEEN], *to = &w->seen[(edges >> 3) % SEEN];
        b[j].left = from->seq + (edges & 0x80 ? fuzz_u8(&w->in) : 0u);
        b[j].right = to->seq + to->len;
      }
      n = pl_sack_write(body, b, count);
      break;
    }
    case 2: { /* stream options */
      pl_synopt o = {.window_shift = fuzz_u8(&w->in), .max_sack = fuzz_u8(&w->in), .max_segment = fuzz_u16(&w->in), .reorder_segments = fuzz_u32(&w->in)};
      pl_synopt_write(body, &o);
      n = PL_SYNOPT_SIZE;
      break;
    }
    case 3:
      n = (size_t)(shape >> 4) * 80;
      memset(body, shape, n);
      break;
    default:
      break;
  }
  uint8_t inner[PL_HDR_SIZE + sizeof body];
  k.len = (uint16_t)n;
  pl_packet_write_header(inner, &k);
  if (n) memcpy(inner + PL_HDR_SIZE, body, n);
  sealed(w, i, inner, PL_HDR_SIZE + n, true, 0);
}

/* Answers the last ping of the node, or nearly. */
static void pong(world *w) {
  uint8_t how = fuzz_u8(&w->in);
  pl_packet k = {.proto = PL_PROTO_CONTROL, .flags = PL_FLAG_ACK, .dst_port = w->ping.src_port, .seq = w->ping.seq + (how & 0x80 ? 1u : 0u),
                 .ack = w->ping.seq + 1};
  uint8_t inner[PL_HDR_SIZE];
  pl_packet_write_header(inner, &k);
  sealed(w, w->pinged, inner, sizeof inner, true, how & 4);
}

static void on_datagram(void *ctx, const pl_packet *k) {
  FUZZ_CHECK(ctx && k->len > 0 && (k->src_node == PEER || k->src_node == OWN_KIND) && k->dst_node == NODE);
  fuzz_touch(k->payload, k->len);
}

static void on_release(void *ctx, uint32_t conn, pl_stream *s, void *tag) {
  FUZZ_CHECK(ctx && conn && s && tag == ctx);
  const uint8_t *p[2];
  size_t n[2];
  unsigned spans = pl_stream_peek(s, p, n);
  for (unsigned i = 0; i < spans; i++) fuzz_touch(p[i], n[i]);
}

static uint32_t some_conn(world *w) { return w->conns[fuzz_u8(&w->in) % SEEN]; }

static void note_conn(world *w, uint32_t id) { w->conns[w->next_conn++ % SEEN] = id; }

static void events(world *w) {
  for (pl_event *ev; (ev = pl_engine_event(w->e));) {
    if (ev->type == PL_EV_ACCEPT || ev->type == PL_EV_CONN_OPEN) note_conn(w, ev->conn);
    fuzz_touch(ev->data, ev->len);
    pl_event_free(ev);
  }
  FUZZ_CHECK(!pl_engine_has_events(w->e));
}

static void shell_of_clients(world *w) {
  for (uint32_t id; (id = pl_engine_next_ready(w->e));) {
    pl_client_conn k;
    if (!pl_engine_client_conn(w->e, id, &k)) continue;
    *k.tag = w;
    pl_stream_consume(k.s, pl_stream_readable(k.s) / 2 + 1, w->now);
    uint8_t *p;
    size_t room = pl_stream_reserve(k.s, 100, &p);
    if (room) {
      memset(p, 'S', room);
      pl_stream_commit(k.s, room);
    }
    pl_engine_touch(w->e, id);
    if (k.dead) pl_engine_close(w->e, id, w->now);
  }
}

static void command(world *w) {
  uint8_t what = fuzz_u8(&w->in), arg = fuzz_u8(&w->in);
  uint32_t node = nodes[arg & 1], client = 1 + (arg >> 1 & 1);
  uint16_t port = ports[(arg >> 2) % 5];
  pl_addr to = arg & 0x80 ? beacon() : address((uint8_t)(arg & 1) + 1);
  static uint8_t buf[65536];
  for (size_t i = 0; i + 5 < sizeof buf; i += 1000) memcpy(buf + i, "SACK\x01", 5); /* what segments must not begin with */
  switch (what % 21) {
    case 0: {
      int64_t id = pl_engine_dial(w->e, 0, 0, node, port, client, (uint64_t)arg * PL_NS_PER_S, w->now);
      if (id > 0) note_conn(w, (uint32_t)id);
      break;
    }
    case 1: pl_engine_listen(w->e, port, (enum pl_owner)(1 + arg % 3), client, arg & 0x40); break;
    case 2: pl_engine_unlisten(w->e, port); break;
    case 3: pl_engine_own(w->e, some_conn(w), (enum pl_owner)(arg & 3), client, w->now); break;
    case 4: pl_engine_write(w->e, some_conn(w), buf, (size_t)arg * 70, w->now); break;
    case 5: pl_engine_read(w->e, some_conn(w), buf, (size_t)arg * 70, w->now); break;
    case 6: pl_engine_close(w->e, some_conn(w), w->now); break;
    case 7: pl_engine_abort(w->e, some_conn(w), w->now); break;
    case 8: pl_engine_send_datagram(w->e, 0, arg & 2 ? 0 : 9, 0, node, port, buf, (size_t)arg * arg, w->now); break;
    case 9: pl_engine_probe(w->e, node, &to, arg & 0x80, arg, w->now); break;
    case 10: pl_engine_set_path(w->e, node, &to, arg & 0x80, w->now); break;
    case 11: { /* a new key; sometimes only this side learns it */
      unsigned i = arg & 1;
      pl_caps own = {.features = PL_CAP_NOCRC | PL_CAP_STREAM_OPTS, .max_segment = 8192, .reorder_segments = 1000};
      if (arg & 2) {
        uint8_t stray[32] = {9};
        pl_engine_install_keys(w->e, node, stray, NULL, 1000 + arg, i ? &own : NULL, arg & 4, w->now);
      } else {
        new_key(w, i);
        pl_engine_install_keys(w->e, node, w->key[i], w->key1[i], w->key_id[i], i ? &own : NULL, arg & 4, w->now);
      }
      break;
    }
    case 12: pl_engine_install_keys(w->e, node, w->key[arg & 1], arg & 2 ? NULL : w->key1[arg & 1], w->key_id[arg & 1], NULL, false, w->now); break;
    case 13: pl_engine_drop_session(w->e, node); break;
    case 14: pl_engine_set_trusted(w->e, node, arg & 2); break;
    case 15: pl_engine_set_public(w->e, arg & 2); break;
    case 16: pl_engine_forget_peer(w->e, node, w->now); break;
    case 17: pl_engine_client_gone(w->e, client, w->now); break;
    case 18: shell_of_clients(w); break;
    case 19: {
      pl_conn_info info;
      uint32_t id = some_conn(w);
      FUZZ_CHECK((pl_engine_conn_info(w->e, id, &info) == PL_OK) == (pl_engine_unacked(w->e, id) >= 0));
      pl_event head = {.type = PL_EV_CLIENT_FRAME, .client = client};
      FUZZ_CHECK(pl_engine_post(w->e, &head, buf, arg) == PL_OK);
      pl_engine_send_raw(w->e, &to, buf, (size_t)arg * 10);
      break;
    }
    default: {
      size_t it = 0;
      pl_conn_info info;
      uint32_t n = 0;
      while (pl_engine_next_conn(w->e, &it, &info)) n++;
      pl_engine_stats st;
      pl_engine_get_stats(w->e, &st);
      FUZZ_CHECK(n == st.conns);
      it = 0;
      pl_peer_info peer;
      uint32_t conns = 0;
      while (pl_engine_next_peer(w->e, &it, 0, &peer)) conns += peer.conns;
      FUZZ_CHECK(conns == n);
    }
  }
}

/* Time stands still: a node that always has something more to do now would take a whole core. */
static void settle(world *w) {
  unsigned rounds = 0;
  do {
    pl_engine_flush(w->e, w->now);
    FUZZ_CHECK(++rounds < 2000);
  } while (pl_engine_deadline(w->e) <= w->now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static world w; /* large */
  memset(&w, 0, sizeof w);
  w.in = (fuzz_in){data, data + size};
  w.now = 1000 * PL_NS_PER_S;
  w.prefix = 1;
  FUZZ_CHECK(pl_tx_init(&w.tx, flush, &w) == PL_OK);
  pl_engine_cfg cfg;
  pl_engine_cfg_default(&cfg);
  cfg.max_conns = 20;
  cfg.max_peers = 3;
  uint8_t options = fuzz_u8(&w.in);
  if (options & 1) cfg.stream.congestion = "cubic";
  if (options & 2) cfg.stream.recv_buffer = cfg.stream.recv_buffer_plain = cfg.stream.send_buffer = 16384;
  cfg.accept_era1 = w.accepts = options & 8;
  w.e = pl_engine_new(&cfg, &w.tx, w.now);
  FUZZ_CHECK(w.e != NULL);
  pl_engine_set_node(w.e, NODE);
  pl_addr b = beacon();
  pl_engine_set_beacons(w.e, &b, 1);
  pl_engine_on_datagram(w.e, on_datagram, &w);
  pl_engine_on_release(w.e, on_release, &w);
  pl_caps own = {.features = PL_CAP_NOCRC | PL_CAP_STREAM_OPTS, .max_segment = 8192, .reorder_segments = 1000};
  for (unsigned i = 0; i < 2; i++) {
    pl_addr at = address((uint8_t)(i + 1));
    new_key(&w, i);
    FUZZ_CHECK(pl_engine_install_keys(w.e, nodes[i], w.key[i], w.key1[i], w.key_id[i], i ? &own : NULL, false, w.now) == PL_OK);
    if (!(options & 4)) FUZZ_CHECK(pl_engine_set_path(w.e, nodes[i], &at, false, w.now) == PL_OK);
    pl_engine_set_trusted(w.e, nodes[i], true);
  }
  for (unsigned i = 0; i < 5; i++) pl_engine_listen(w.e, ports[i], i == 0 ? PL_OWNER_ECHO : i == 2 ? PL_OWNER_CLIENT : PL_OWNER_APP, 1, i == 4);
  for (unsigned steps = 0; w.in.p < w.in.end && steps < 300; steps++) {
    uint8_t op = fuzz_u8(&w.in);
    switch (op & 7) {
      case 0: { /* anything from anywhere, perhaps a GRO buffer */
        size_t n;
        uint8_t from = fuzz_u8(&w.in), seg = fuzz_u8(&w.in), *p = fuzz_bytes(&w.in, fuzz_u8(&w.in), &n);
        input(&w, p, n, seg, from & 0x80 ? beacon() : address(from));
        free(p);
        break;
      }
      case 1: { /* any packet, sealed */
        size_t n;
        uint8_t how = fuzz_u8(&w.in), *inner = fuzz_bytes(&w.in, fuzz_u8(&w.in), &n);
        sealed(&w, how >> 7, inner, n, how & 0x40, how);
        free(inner);
        break;
      }
      case 2: { /* a SYN to a port that listens */
        uint8_t inner[PL_HDR_SIZE + PL_SYNOPT_SIZE], arg = fuzz_u8(&w.in);
        pl_packet k = {.proto = PL_PROTO_STREAM, .flags = PL_FLAG_SYN, .src_port = (uint16_t)(50000 + (arg & 7)), .dst_port = ports[(arg >> 3) % 5],
                       .seq = fuzz_u32(&w.in), .window = 512};
        pl_packet_write_header(inner, &k);
        pl_synopt o = {.window_shift = 4, .max_sack = 32, .max_segment = 8192, .reorder_segments = 1000};
        pl_synopt_write(inner + PL_HDR_SIZE, &o);
        sealed(&w, arg >> 7, inner, sizeof inner - (arg & 0x40 ? PL_SYNOPT_SIZE : 0), true, 0);
        break;
      }
      case 3: w.now += (uint64_t)(1 + fuzz_u8(&w.in)) << (op >> 3); break;
      case 4: command(&w); break;
      case 5: pong(&w); break;
      default: fitting(&w);
    }
    if (!(op & 0x80)) settle(&w);
    if (!(op & 0x40)) events(&w);
  }
  settle(&w);
  events(&w);
  pl_engine_free(w.e);
  pl_tx_free(&w.tx);
  for (unsigned i = 0; i < 2; i++) {
    pl_aead_free(w.aead[i]);
    pl_aead_free(w.aead1[i]);
  }
  return 0;
}
