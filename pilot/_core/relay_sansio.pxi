# The relay by itself: datagrams and time pass through the caller's hands.


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
