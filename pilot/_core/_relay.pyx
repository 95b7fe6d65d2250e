"""Bindings on csrc/relay.h: the beacon's sockets and native forwarding thread, and the same without I/O for the simulator."""

import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from pilot._core._errors import CoreError
from pilot._core.addr cimport addr_from_py, addr_to_py
from pilot._core.capi cimport *


cdef int read_options(object options, pl_relay_cfg *cfg) except -1:
    pl_relay_cfg_default(cfg)
    for key, value in (options or {}).items():
        if key == "max_nodes":
            cfg.max_nodes = value
        elif key == "max_nodes_per_ip":
            cfg.max_nodes_per_ip = value
        elif key == "node_ttl_ns":
            cfg.node_ttl_ns = value
        elif key == "claim_ttl_ns":
            cfg.claim_ttl_ns = value
        elif key == "punch_rate":
            cfg.punch_rate = value
        elif key == "probe_rate":
            cfg.probe_rate = value
        elif key == "relay_bytes_per_s":
            cfg.relay_bytes_per_s = value
        else:
            raise ValueError(f"unknown relay option: {key!r}")
    return 0


cdef list read_hand(const uint8_t *p, size_t n):
    cdef size_t at = 0
    cdef uint32_t head[2]
    cdef list out = []
    while at < n:
        memcpy(head, p + at, 8)
        out.append((head[0], p[at + 8:at + 8 + head[1]]))
        at += 8 + head[1]
    return out


cdef class RelayLoop:
    cdef pl_relay_loop *loop

    def __cinit__(self, bind, *, alt=None, probe_ports=(0, 0), options=None):
        cdef pl_relay_cfg cfg
        cdef pl_relay_probe_cfg probe
        cdef pl_addr a
        cdef int r
        read_options(options, &cfg)
        cfg.hash_seed = int.from_bytes(os.urandom(8), "big")
        addr_from_py(bind, &a)
        addr_from_py((alt or "0.0.0.0", 0), &probe.alt)
        if alt is None:
            probe.alt.family = 0
        probe.observer_port, probe.quiet_port = probe_ports
        r = pl_relay_loop_new(&cfg, &a, &probe, 8 << 20, &self.loop)
        if r < 0:
            self.loop = NULL
            if r == PL_EIO:
                raise OSError(errno, f"{os.strerror(errno)} (UDP {bind[0]}:{bind[1]})")
            raise CoreError(r)

    def __dealloc__(self):
        with nogil:
            pl_relay_loop_free(self.loop)

    def start(self):
        cdef int r = pl_relay_loop_start(self.loop)
        if r == PL_EIO:
            raise CoreError(r, errno)
        if r < 0:
            raise CoreError(r)

    def stop(self):
        with nogil:
            pl_relay_loop_stop(self.loop)

    @property
    def local_addr(self):
        cdef pl_addr a
        pl_relay_loop_local_addr(self.loop, &a)
        return addr_to_py(&a)

    def set_peers(self, peers):
        cdef uint64_t now
        cdef unsigned n = 0
        peers = list(peers)
        cdef pl_addr *table = <pl_addr *> malloc((len(peers) + 1) * sizeof(pl_addr))
        if table is NULL:
            raise MemoryError
        try:
            for p in peers:
                addr_from_py(p, &table[n])
                n += 1
            with nogil:
                pl_relay_set_peers(pl_relay_loop_lock(self.loop, &now), table, n)
                pl_relay_loop_unlock(self.loop)
        finally:
            free(table)

    def nodes(self, uint32_t limit=0xFFFFFFFF):
        cdef uint64_t now
        cdef pl_relay_stats st
        cdef uint32_t *ids
        cdef uint8_t *ages
        cdef size_t n = 0, cap
        cdef pl_relay *r
        with nogil:
            r = pl_relay_loop_lock(self.loop, &now)
            pl_relay_get_stats(r, &st)
            cap = st.nodes if st.nodes < limit else limit
            ids = <uint32_t *> malloc((cap + 1) * (sizeof(uint32_t) + 1))
            ages = <uint8_t *> (ids + cap + 1)
            if ids is not NULL:
                n = pl_relay_nodes(r, ids, ages, cap)
            pl_relay_loop_unlock(self.loop)
        if ids is NULL:
            raise MemoryError
        try:
            return [ids[i] for i in range(n)], ages[:n]
        finally:
            free(ids)

    def lookup(self, uint32_t node):
        cdef uint64_t now
        cdef pl_addr a
        cdef bint found
        with nogil:
            found = pl_relay_lookup(pl_relay_loop_lock(self.loop, &now), node, &a)
            pl_relay_loop_unlock(self.loop)
        return addr_to_py(&a) if found else None

    def vouch(self, uint32_t node, ip):
        cdef uint64_t now
        cdef pl_addr a
        cdef pl_relay *relay
        cdef int r
        addr_from_py((ip, 0) if ip is not None else ("0.0.0.0", 0), &a)
        if ip is None:
            a.family = 0
        with nogil:
            relay = pl_relay_loop_lock(self.loop, &now)
            r = pl_relay_vouch(relay, node, &a, now)
            pl_relay_loop_unlock(self.loop)
        if r < 0:
            raise CoreError(r)

    def send(self, addr, const uint8_t[::1] data not None):
        cdef pl_addr a
        cdef size_t n = data.shape[0]
        cdef int r, why
        addr_from_py(addr, &a)
        if n == 0:
            raise CoreError(PL_EFORMAT)
        with nogil:
            r = pl_relay_loop_send(self.loop, &a, &data[0], n)
            why = errno
        if r < 0:
            raise CoreError(r, why)

    def send_peer(self, addr, const uint8_t[::1] data not None):
        cdef pl_addr a
        cdef size_t n = data.shape[0]
        cdef int r, why
        addr_from_py(addr, &a)
        if n == 0:
            raise CoreError(PL_EFORMAT)
        with nogil:
            r = pl_relay_loop_send_peer(self.loop, &a, &data[0], n)
            why = errno
        if r == PL_ENOENT:
            return False
        if r < 0:
            raise CoreError(r, why)
        return True

    def set_secret(self, const uint8_t[::1] key not None):
        cdef uint64_t now
        cdef int r
        if key.shape[0] != PL_RELAY_SECRET:
            raise CoreError(PL_EFORMAT)
        with nogil:
            r = pl_relay_set_secret(pl_relay_loop_lock(self.loop, &now), &key[0])
            pl_relay_loop_unlock(self.loop)
        if r < 0:
            raise CoreError(r)

    def set_seal_key(self, addr, uint32_t session, const uint8_t[::1] key not None):
        return self._key(addr, session, key, True)

    def add_open_key(self, addr, uint32_t session, const uint8_t[::1] key not None):
        return self._key(addr, session, key, False)

    cdef _key(self, addr, uint32_t session, const uint8_t[::1] key, bint seal):
        cdef uint64_t now
        cdef pl_addr a
        cdef pl_relay *relay
        cdef int r
        addr_from_py(addr, &a)
        if key.shape[0] != 32:
            raise CoreError(PL_EFORMAT)
        with nogil:
            relay = pl_relay_loop_lock(self.loop, &now)
            if seal:
                r = pl_relay_set_seal_key(relay, &a, session, &key[0])
            else:
                r = pl_relay_add_open_key(relay, &a, session, &key[0])
            pl_relay_loop_unlock(self.loop)
        if r == PL_ENOENT:
            return False
        if r < 0:
            raise CoreError(r)
        return True

    def take_letters(self):
        cdef pl_relay_letter letters[64]
        cdef unsigned n
        with nogil:
            n = pl_relay_loop_take_letters(self.loop, letters)
        return [(addr_to_py(&letters[i].frm), letters[i].data[:letters[i].len]) for i in range(n)]

    def send_node(self, uint32_t node, const uint8_t[::1] data not None):
        cdef uint64_t now
        cdef size_t n = data.shape[0]
        cdef int r, why
        if n == 0:
            raise CoreError(PL_EFORMAT)
        with nogil:
            pl_relay_loop_lock(self.loop, &now)
            r = pl_relay_loop_send_node(self.loop, node, &data[0], n)
            why = errno
            pl_relay_loop_unlock(self.loop)
        if r == PL_ENOENT:
            return False
        if r < 0:
            raise CoreError(r, why)
        return True

    def attach(self, uint32_t node):
        cdef uint64_t now
        cdef pl_relay *relay
        cdef int r
        with nogil:
            relay = pl_relay_loop_lock(self.loop, &now)
            r = pl_relay_attach(relay, node, now)
            pl_relay_loop_unlock(self.loop)
        if r < 0:
            raise CoreError(r)

    def detach(self, uint32_t node):
        cdef uint64_t now
        with nogil:
            pl_relay_detach(pl_relay_loop_lock(self.loop, &now), node)
            pl_relay_loop_unlock(self.loop)

    def inject(self, uint32_t node, datagrams):
        # The relay rewrites heads in place, and bytes objects may not change: one copy of the batch.
        cdef size_t total = 0
        cdef unsigned n = 0
        cdef bytes d
        cdef pl_rx *batch
        cdef uint8_t *arena
        if len(datagrams) > PL_RELAY_BATCH:
            raise ValueError("too many datagrams at once")
        for d in datagrams:
            total += len(d)
        batch = <pl_rx *> calloc(len(datagrams) + 1, sizeof(pl_rx))
        arena = <uint8_t *> malloc(total + 1)
        try:
            if batch is NULL or arena is NULL:
                raise MemoryError
            total = 0
            for d in datagrams:
                if len(d) == 0:
                    continue
                memcpy(arena + total, <const uint8_t *> d, len(d))
                batch[n].data = arena + total
                batch[n].len = <uint32_t> len(d)
                total += len(d)
                n += 1
            with nogil:
                pl_relay_loop_inject(self.loop, node, batch, n)
        finally:
            free(batch)
            free(arena)

    @property
    def news_fd(self):
        return pl_relay_loop_news_fd(self.loop)

    @property
    def hand_fd(self):
        return pl_relay_loop_hand_fd(self.loop)

    def take(self):
        cdef const uint8_t *p
        cdef size_t n
        with nogil:
            n = pl_relay_loop_take(self.loop, &p)
        return read_hand(p, n)

    def stats(self):
        cdef uint64_t now
        cdef pl_relay_stats st
        cdef pl_relay_loop_stats io
        with nogil:
            pl_relay_get_stats(pl_relay_loop_lock(self.loop, &now), &st)
            pl_relay_loop_get_stats(self.loop, &io)
            pl_relay_loop_unlock(self.loop)
        return {**dict(st), **{name: int(value) for name, value in dict(io).items()}}


cdef class Relay:
    cdef pl_relay *r
    cdef uint64_t now

    def __cinit__(self, *, uint64_t seed, uint64_t now_ns, uint16_t observer_port=0, observer=None, options=None):
        cdef pl_relay_cfg cfg
        cdef pl_addr a
        read_options(options, &cfg)
        cfg.hash_seed = seed
        self.now = now_ns
        self.r = pl_relay_new(&cfg, now_ns)
        if self.r is NULL:
            raise MemoryError
        addr_from_py(observer or ("0.0.0.0", 0), &a)
        if observer is None:
            a.family = 0
        pl_relay_set_probe(self.r, observer_port, &a)

    def __dealloc__(self):
        if self.r is not NULL:
            pl_relay_free(self.r)

    def input(self, int at, bytes data, src, local, uint64_t now_ns):
        cdef pl_rx rx
        cdef bytearray copy = bytearray(data)  # heads are rewritten in place
        cdef list out
        self.now = now_ns
        rx.data = copy
        rx.len = <uint32_t> len(data)
        rx.seg = 0
        if isinstance(src, int):
            pl_relay_stream_addr(&rx.from_, src)
        else:
            addr_from_py(src, &rx.from_)
        addr_from_py(local, &rx.local)
        if at == PL_SOCK_MAIN:
            pl_relay_input(self.r, &rx, 1, now_ns)
            out = self._sends()
        else:
            pl_relay_observe(self.r, <pl_relay_socket> at, &rx, 1, now_ns)
            out = []
        self._replies(out)
        return out

    cdef list _sends(self):
        cdef const pl_udp_msg *msgs
        cdef unsigned n = pl_relay_sends(self.r, &msgs)
        cdef unsigned i, j
        cdef bytes datagram
        cdef list out = []
        for i in range(n):
            # One buffer went in, so what comes out are single datagrams: a run of several would be of equal ones.
            for j in range(msgs[i].n_iov):
                datagram = msgs[i].iov[j].iov_base[:msgs[i].iov[j].iov_len]
                out.append((0, datagram, addr_to_py(&msgs[i].to)))
        return out

    cdef int _replies(self, list out) except -1:
        cdef const pl_relay_reply *replies
        cdef unsigned n = pl_relay_replies(self.r, &replies)
        cdef unsigned i
        for i in range(n):
            out.append((<int> replies[i].socket, replies[i].data[:replies[i].len], addr_to_py(&replies[i].to)))
        return 0

    def expire(self, uint64_t now_ns):
        self.now = now_ns
        pl_relay_expire(self.r, now_ns)

    def set_peers(self, peers):
        cdef pl_addr table[16]
        cdef unsigned n = 0
        for p in list(peers)[:16]:
            addr_from_py(p, &table[n])
            n += 1
        pl_relay_set_peers(self.r, table, n)

    def take_news(self):
        return pl_relay_take_news(self.r)

    def nodes(self):
        cdef uint32_t ids[4096]
        cdef uint8_t ages[4096]
        cdef size_t n = pl_relay_nodes(self.r, ids, ages, 4096)
        return [ids[i] for i in range(n)], ages[:n]

    def lookup(self, uint32_t node):
        cdef pl_addr a
        return addr_to_py(&a) if pl_relay_lookup(self.r, node, &a) else None

    def vouch(self, uint32_t node, ip):
        cdef pl_addr a
        addr_from_py((ip, 0), &a)
        cdef int r = pl_relay_vouch(self.r, node, &a, self.now)
        if r < 0:
            raise CoreError(r)

    def attach(self, uint32_t node):
        cdef int r = pl_relay_attach(self.r, node, self.now)
        if r < 0:
            raise CoreError(r)

    def detach(self, uint32_t node):
        pl_relay_detach(self.r, node)

    def take(self):
        cdef const uint8_t *p
        cdef size_t n = pl_relay_take(self.r, &p)
        return read_hand(p, n)

    def stats(self):
        cdef pl_relay_stats st
        pl_relay_get_stats(self.r, &st)
        return dict(st)
