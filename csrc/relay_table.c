/* Who is where: nodes and their claims, peer beacons and their routes (beacon.md sections 4, 6, 7, 14).
 *
 * Claims. An id belongs to the address that bound it. The same IP (IPv6: the same /64) may rebind at any time, because NATs change ports; another
 * IP only when the holder has been silent for claim_ttl_ns, or at once when the registry vouches for it.
 * Memory is bounded by max_nodes (bound) + max_nodes (vouched for). When full, silent nodes give way; a vouched node also takes the
 * place of the oldest that nobody vouches for.
 *
 * Several beacons may claim a node. One that holds its stream has it, the youngest stream first: nobody can say so by a forged datagram. Else the
 * one that heard it last, but those that hear it both keep to the one they chose. At most two peers' claims are kept for an id. */
#include "relay_internal.h"

#include <stdlib.h>

#include "wire.h"

static uint64_t mix(uint64_t h) {
  h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ h >> 27) * 0x94d049bb133111ebull;
  return h ^ h >> 31;
}

uint64_t pl_relay_hash(const pl_relay *r, const pl_addr *a, uint64_t salt) {
  uint64_t h = mix(r->cfg.hash_seed ^ salt);
  h = mix(h ^ pl_get64(a->ip));
  h = mix(h ^ pl_get64(a->ip + 8));
  return mix(h ^ ((uint64_t)a->port << 8 | a->family));
}

static bool same_holder(const pl_addr *a, const pl_addr *b) {
  return a->family == b->family && memcmp(a->ip, b->ip, a->family == 6 ? 8 : 4) == 0;
}

/* ---- nodes ---- */

static void list_add(pl_relay *r, pl_relay_node *n) {
  n->list = n->attached || (n->vouched && same_holder(&n->vouch, &n->addr));
  pl_relay_list *l = &r->lists[n->list];
  n->next = NULL;
  n->prev = l->tail;
  if (l->tail)
    l->tail->next = n;
  else
    l->head = n;
  l->tail = n;
}

static void list_remove(pl_relay *r, pl_relay_node *n) {
  pl_relay_list *l = &r->lists[n->list];
  if (n->prev)
    n->prev->next = n->next;
  else
    l->head = n->next;
  if (n->next)
    n->next->prev = n->prev;
  else
    l->tail = n->prev;
}

/* ---- how many ids one party holds ---- */

static uint16_t holder_of(const pl_relay *r, const pl_addr *a) {
  pl_addr ip = *a;
  ip.port = 0;
  if (ip.family == 6) memset(ip.ip + 6, 0, 10); /* whole /48s are given away for nothing */
  return (uint16_t)(pl_relay_hash(r, &ip, 4) % PL_RELAY_HOLDERS);
}

static void uncount(pl_relay *r, pl_relay_node *n) {
  if (n->counted) r->held[n->holder]--;
  n->counted = false;
}

/* Whether `from` may hold one id more. Those that the registry vouches for there do not count. */
static bool may_hold(const pl_relay *r, const pl_relay_node *n, const pl_addr *from, bool vouched) {
  uint16_t holder = holder_of(r, from);
  if (vouched || (n && n->counted && n->holder == holder)) return true;
  return r->held[holder] < r->cfg.max_nodes_per_ip;
}

static void count(pl_relay *r, pl_relay_node *n, bool vouched) {
  uncount(r, n);
  if (vouched || n->addr.family == PL_ADDR_STREAM) return;
  n->holder = holder_of(r, &n->addr);
  n->counted = true;
  r->held[n->holder]++;
}

static void drop_if_empty(pl_relay *r, pl_relay_node *n) {
  if (n->bound || n->vouched) return;
  pl_map_del(&r->nodes, n->id);
  free(n);
}

static void unbind(pl_relay *r, pl_relay_node *n) {
  r->memo.valid = false;
  list_remove(r, n);
  uncount(r, n);
  n->bound = false;
  n->wants_dst = false;
  r->n_attached -= n->attached;
  n->attached = false;
  r->n_bound--;
  drop_if_empty(r, n);
}

static pl_relay_node *node_get(pl_relay *r, uint32_t id) {
  pl_relay_node *n = pl_map_get(&r->nodes, id);
  if (n) return n;
  n = calloc(1, sizeof *n);
  if (!n) return NULL;
  n->id = id;
  if (pl_map_put(&r->nodes, id, n) < 0) {
    free(n);
    return NULL;
  }
  return n;
}

pl_relay_node *pl_relay_find(const pl_relay *r, uint32_t id) {
  pl_relay_node *n = pl_map_get(&r->nodes, id);
  return n && n->bound ? n : NULL;
}

static bool silent(const pl_relay *r, const pl_relay_node *n) { return r->now_ns - n->seen_ns >= r->cfg.claim_ttl_ns; }

static bool make_room(pl_relay *r, bool vouched_claim) {
  if (r->n_bound < r->cfg.max_nodes) return true;
  for (int i = 0; i < 2; i++) {
    if (r->lists[i].head && silent(r, r->lists[i].head)) {
      unbind(r, r->lists[i].head);
      return true;
    }
  }
  if (!vouched_claim || !r->lists[0].head) return false;
  unbind(r, r->lists[0].head);
  return true;
}

bool pl_relay_known_at(const pl_relay *r, uint32_t id, const pl_addr *from) {
  const pl_relay_node *n = pl_map_get(&r->nodes, id);
  return n && ((n->bound && same_holder(&n->addr, from)) || (n->vouched && same_holder(&n->vouch, from)));
}

double pl_relay_burst(const pl_relay *r) { return (double)pl_max64(r->cfg.relay_bytes_per_s, PL_UDP_MAX); }

pl_relay_node *pl_relay_bind(pl_relay *r, uint32_t id, const pl_addr *from, const pl_addr *local, bool wants_dst) {
  pl_relay_node *n = pl_map_get(&r->nodes, id);
  bool vouched = n && n->vouched && same_holder(&n->vouch, from);
  bool moves = !n || !n->bound || n->counted == vouched || !same_holder(&n->addr, from);
  if (moves && !may_hold(r, n, from, vouched)) {
    r->st.limited++;
    return NULL;
  }
  if (n && n->bound) {
    if (!same_holder(&n->addr, from)) {
      if (!vouched && (n->attached || !silent(r, n))) {
        r->st.spoofed++;
        return NULL;
      }
      n->wants_dst = false; /* another host, which has not asked */
    }
    if (silent(r, n)) r->news = true; /* left out of the gossip until now */
    list_remove(r, n);
  } else {
    if (!make_room(r, vouched) || !(n = node_get(r, id))) {
      r->st.limited++;
      return NULL;
    }
    n->bound = true;
    r->news = true;
    n->tokens = pl_relay_burst(r);
    n->tokens_ns = r->now_ns;
    r->n_bound++;
  }
  r->memo.valid = false;
  if (wants_dst) n->wants_dst = true;
  if (!pl_addr_eq(&n->addr, from) || !pl_addr_eq(&n->local, local)) {
    n->slot.batch = r->batch - 1; /* a run begun for the old endpoint is not continued */
    n->addr = *from;
    n->local = *local;
  }
  if (moves) count(r, n, vouched);
  n->seen_ns = r->now_ns;
  list_add(r, n);
  return n;
}

int pl_relay_attach(pl_relay *r, uint32_t node, uint64_t now_ns) {
  if (now_ns > r->now_ns) r->now_ns = now_ns;
  if (node == 0) return PL_EFORMAT;
  for (int i = 0; i < 2; i++)
    if (!r->hand[i] && !(r->hand[i] = malloc(PL_RELAY_HAND_BYTES))) return PL_ENOMEM;
  pl_relay_node *n = pl_relay_find(r, node);
  if (n) {
    list_remove(r, n);
  } else {
    if (!make_room(r, true)) return PL_ELIMIT;
    if (!(n = node_get(r, node))) return PL_ENOMEM;
    n->bound = true;
    r->news = true;
    n->tokens = pl_relay_burst(r);
    n->tokens_ns = r->now_ns;
    r->n_bound++;
  }
  if (!n->attached) {
    r->memo.valid = false;
    r->news = true; /* others may hold it by UDP, which it has lost */
    n->attached = true;
    n->wants_dst = false;
    r->n_attached++;
    uncount(r, n);
    pl_relay_stream_addr(&n->addr, node); /* whoever held the id by UDP has to claim it anew */
    memset(&n->local, 0, sizeof n->local);
  }
  n->seen_ns = n->attached_ns = r->now_ns;
  list_add(r, n);
  return PL_OK;
}

void pl_relay_alive(pl_relay *r, uint32_t node) {
  pl_relay_node *n = pl_relay_find(r, node);
  if (!n || !n->attached) { /* forgotten, but its stream still stands */
    pl_relay_attach(r, node, r->now_ns);
    return;
  }
  list_remove(r, n);
  n->seen_ns = r->now_ns;
  list_add(r, n);
}

void pl_relay_detach(pl_relay *r, uint32_t node) {
  pl_relay_node *n = pl_relay_find(r, node);
  if (!n || !n->attached) return;
  r->news = true;
  if (n->addr.family == PL_ADDR_STREAM) {
    unbind(r, n);
    return;
  }
  r->memo.valid = false;
  list_remove(r, n);
  n->attached = false;
  r->n_attached--;
  list_add(r, n);
}

int pl_relay_vouch(pl_relay *r, uint32_t node, const pl_addr *addr, uint64_t now_ns) {
  if (now_ns > r->now_ns) r->now_ns = now_ns;
  if (addr->family == 0) {
    pl_relay_node *n = pl_map_get(&r->nodes, node);
    if (n && n->vouched) {
      n->vouched = false;
      r->n_vouched--;
      drop_if_empty(r, n);
    }
    return PL_OK;
  }
  if (node == 0 || (addr->family != 4 && addr->family != 6)) return PL_EFORMAT;
  pl_relay_node *n = pl_map_get(&r->nodes, node);
  if (!(n && n->vouched)) {
    if (r->n_vouched >= r->cfg.max_nodes) return PL_ELIMIT;
    n = node_get(r, node);
    if (!n) return PL_ENOMEM;
    n->vouched = true;
    r->n_vouched++;
  }
  n->vouch = *addr;
  n->vouch.port = 0;
  return PL_OK; /* a bound node changes lists with its next keep-alive, which keeps the lists sorted */
}

bool pl_relay_lookup(const pl_relay *r, uint32_t node, pl_addr *out) {
  const pl_relay_node *n = pl_relay_find(r, node);
  if (!n || n->addr.family == PL_ADDR_STREAM) return false;
  *out = n->addr;
  return true;
}

bool pl_relay_lookup_local(const pl_relay *r, uint32_t node, pl_addr *out) {
  const pl_relay_node *n = pl_relay_find(r, node);
  if (n) *out = n->local;
  return n != NULL;
}

bool pl_relay_take_news(pl_relay *r) {
  bool news = r->news;
  r->news = false;
  return news;
}

static uint8_t age_of(const pl_relay *r, const pl_relay_node *n) {
  uint64_t s = (r->now_ns - (n->attached ? n->attached_ns : n->seen_ns)) / PL_NS_PER_S;
  return (uint8_t)((s < PL_AGE_MAX ? s : PL_AGE_MAX) | (n->attached ? PL_AGE_STREAM : 0));
}

size_t pl_relay_nodes(const pl_relay *r, uint32_t *out, uint8_t *ages, size_t cap) {
  size_t n = 0;
  for (int i = 1; i >= 0; i--) /* those that the registry vouches for first: a crowd of others leaves none of them out */
    for (const pl_relay_node *x = r->lists[i].tail; x && !silent(r, x) && n < cap; x = x->prev) {
      if (ages) ages[n] = age_of(r, x);
      out[n++] = x->id;
    }
  return n;
}

/* ---- peer beacons ---- */

pl_relay_peer *pl_relay_find_peer(const pl_relay *r, const pl_addr *a) {
  if (r->n_peers == 0) return NULL;
  pl_relay_peer *p = pl_map_get(&r->peers, pl_relay_hash(r, a, 0));
  return p && pl_addr_eq(&p->addr, a) ? p : NULL;
}

/* A peer that has been silent for a while may have lost the stream together with itself. */
static bool holds_stream(const pl_relay *r, const pl_relay_claim *c) {
  return c->attached && (!c->peer || r->now_ns - c->peer->sync_ns < PL_CLAIM_FRESH_NS);
}

/* Whether x takes a node over from y. Ages are whole seconds, so a lead of one is none. */
static bool beats(const pl_relay *r, const pl_relay_claim *x, const pl_relay_claim *y) {
  bool x_stream = holds_stream(r, x), y_stream = holds_stream(r, y);
  if (x_stream != y_stream) return x_stream;
  if (x_stream) return x->at_ns > y->at_ns + PL_NS_PER_S;
  uint64_t x_at = x->attached && x->peer ? x->peer->sync_ns : x->at_ns, y_at = y->attached && y->peer ? y->peer->sync_ns : y->at_ns;
  if (!x->aged && !y->aged) return x_at >= y_at;
  if (!x->aged) return r->now_ns - y_at >= r->cfg.claim_ttl_ns;
  if (!y->aged) return r->now_ns - x_at < PL_CLAIM_LEAD_NS;
  return x_at > y_at + PL_CLAIM_LEAD_NS || (x_at > y_at && r->now_ns - y_at >= r->cfg.claim_ttl_ns);
}

pl_relay_peer *pl_relay_elsewhere(const pl_relay *r, uint32_t id, const pl_relay_node *n) {
  const pl_relay_route *route = pl_map_get(&r->routes, id);
  if (!route) return NULL;
  if (!n) return route->claims[0].peer;
  pl_relay_claim here = {.at_ns = n->attached ? n->attached_ns : n->seen_ns, .aged = true, .attached = n->attached};
  return beats(r, &route->claims[0], &here) ? route->claims[0].peer : NULL;
}

/* False if there is no room for it. */
static bool claim(pl_relay *r, uint32_t id, const pl_relay_claim *c) {
  pl_relay_route *route = pl_map_get(&r->routes, id);
  if (!route) {
    if (r->routes.used >= r->cfg.max_nodes) {
      r->st.limited++;
      return false;
    }
    route = calloc(1, sizeof *route);
    if (!route || pl_map_put(&r->routes, id, route) < 0) {
      free(route);
      return false;
    }
  }
  unsigned i = 0;
  while (i < route->n && route->claims[i].peer != c->peer) i++;
  if (i == 2) { /* a third */
    if (!beats(r, c, &route->claims[1])) return false;
    i = 1;
  }
  if (i == route->n) route->n++;
  route->claims[i] = *c;
  if (route->n == 2 && beats(r, &route->claims[1], &route->claims[0])) {
    pl_relay_claim other = route->claims[0];
    route->claims[0] = route->claims[1];
    route->claims[1] = other;
  }
  return true;
}

static void unclaim(pl_relay *r, uint32_t id, const pl_relay_peer *p) {
  pl_relay_route *route = pl_map_get(&r->routes, id);
  unsigned i = 0;
  while (route && i < route->n && route->claims[i].peer != p) i++;
  if (!route || i == route->n || route->claims[i].turn == p->turn) return;
  if (i == 0) route->claims[0] = route->claims[1];
  if (--route->n > 0) return;
  pl_map_del(&r->routes, id);
  free(route);
}

static uint64_t instant(const pl_relay *r, uint8_t age) {
  uint64_t ago = (age & PL_AGE_MAX) * PL_NS_PER_S;
  return r->now_ns > ago ? r->now_ns - ago : 0;
}

void pl_relay_sync(pl_relay *r, pl_relay_peer *p, const uint8_t *ids, uint32_t n, const uint8_t *ages, uint32_t n_ages) {
  uint32_t *before = p->ids, n_before = p->n_ids;
  r->memo.valid = false;
  r->st.sync++;
  p->sync_ns = r->now_ns;
  p->turn++;
  p->n_ids = 0;
  p->ids = n ? malloc(n * sizeof *p->ids) : NULL;
  for (uint32_t i = 0; p->ids && i < n; i++) {
    uint32_t id = pl_get32(ids + 4 * i);
    pl_relay_claim c = {.peer = p, .at_ns = r->now_ns, .turn = p->turn};
    if (i < n_ages) {
      c.aged = true;
      c.attached = ages[i] & PL_AGE_STREAM;
      c.at_ns = instant(r, ages[i]);
    }
    if (id && claim(r, id, &c)) p->ids[p->n_ids++] = id;
  }
  for (uint32_t i = 0; i < n_before; i++) unclaim(r, before[i], p);
  free(before);
}

static void withdraw(pl_relay *r, pl_relay_peer *p) {
  r->memo.valid = false;
  p->turn++;
  for (uint32_t i = 0; i < p->n_ids; i++) unclaim(r, p->ids[i], p);
  free(p->ids);
  p->ids = NULL;
  p->n_ids = 0;
}

static void peer_free(pl_relay *r, pl_relay_peer *p) {
  withdraw(r, p);
  pl_relay_peer_wipe(p);
  pl_map_del(&r->peers, pl_relay_hash(r, &p->addr, 0));
  free(p);
}

void pl_relay_set_peers(pl_relay *r, const pl_addr *peers, unsigned n) {
  for (unsigned i = 0; i < r->n_peers; i++) r->peer_list[i]->keep = false;
  for (unsigned i = 0; i < n; i++) {
    pl_relay_peer *p = pl_relay_find_peer(r, &peers[i]);
    if (p) p->keep = true;
  }
  unsigned kept = 0;
  for (unsigned i = 0; i < r->n_peers; i++) {
    if (r->peer_list[i]->keep)
      r->peer_list[kept++] = r->peer_list[i];
    else
      peer_free(r, r->peer_list[i]);
  }
  r->n_peers = kept;
  for (unsigned i = 0; i < n && r->n_peers < PL_RELAY_PEERS; i++) {
    uint64_t key = pl_relay_hash(r, &peers[i], 0);
    if (peers[i].family == 0 || pl_map_get(&r->peers, key)) continue;
    pl_relay_peer *p = calloc(1, sizeof *p);
    if (!p) return;
    p->addr = peers[i];
    p->sync_ns = r->now_ns;
    if (pl_map_put(&r->peers, key, p) < 0) {
      free(p);
      return;
    }
    r->peer_list[r->n_peers++] = p;
  }
}

/* ---- time ---- */

void pl_relay_expire(pl_relay *r, uint64_t now_ns) {
  if (now_ns > r->now_ns) r->now_ns = now_ns;
  for (int i = 0; i < 2; i++)
    while (r->lists[i].head && r->now_ns - r->lists[i].head->seen_ns >= r->cfg.node_ttl_ns) unbind(r, r->lists[i].head);
  for (unsigned i = 0; i < r->n_peers; i++)
    if (r->peer_list[i]->n_ids && r->now_ns - r->peer_list[i]->sync_ns >= PL_ROUTE_TTL_NS) withdraw(r, r->peer_list[i]);
}

void pl_relay_table_free(pl_relay *r) {
  for (unsigned i = 0; i < r->n_peers; i++) peer_free(r, r->peer_list[i]);
  size_t it = 0;
  pl_relay_node *n;
  while ((n = pl_map_next(&r->nodes, &it, NULL))) free(n);
  pl_map_free(&r->nodes);
  pl_map_free(&r->peers);
  pl_map_free(&r->routes);
}
