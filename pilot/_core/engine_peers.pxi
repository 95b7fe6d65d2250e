# Commands about the node and its peers: trust, keys, paths, probes, inspection.


cdef class PeerCommands:
    cdef pl_engine *acquire(self, uint64_t *now_ns) noexcept nogil:
        return NULL

    cdef void release(self) noexcept nogil:
        pass

    cdef int check_open(self) except -1:
        raise NotImplementedError

    def set_node(self, uint32_t node):
        cdef uint64_t now
        self.check_open()
        with nogil:
            pl_engine_set_node(self.acquire(&now), node)
            self.release()

    def set_public(self, bint public):
        cdef uint64_t now
        self.check_open()
        with nogil:
            pl_engine_set_public(self.acquire(&now), public)
            self.release()

    def set_beacons(self, beacons):
        cdef pl_addr table[16]
        cdef unsigned n = 0
        cdef uint64_t now
        self.check_open()
        for b in list(beacons)[:16]:
            addr_from_py(b, &table[n])
            n += 1
        with nogil:
            pl_engine_set_beacons(self.acquire(&now), table, n)
            self.release()

    def set_trusted(self, uint32_t node, bint trusted):
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            r = pl_engine_set_trusted(self.acquire(&now), node, trusted)
            self.release()
        check(r)

    def install_key(self, uint32_t node, bytes key, uint64_t key_id, uint32_t features=0, uint16_t max_segment=0,
                    uint32_t reorder_segments=0, bytes era1=None, bint foretold=False):
        cdef pl_caps caps
        cdef uint64_t now
        cdef int r
        self.check_open()
        if len(key) != 32 or (era1 is not None and len(era1) != 32):
            raise ValueError("key must be 32 bytes")
        caps.features = features
        caps.max_segment = max_segment
        caps.reorder_segments = reorder_segments
        cdef const uint8_t *k = <const uint8_t *> PyBytes_AS_STRING(key)
        cdef const uint8_t *k1 = NULL
        if era1 is not None:
            k1 = <const uint8_t *> PyBytes_AS_STRING(era1)
        cdef pl_engine *e
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_install_keys(e, node, k, k1, key_id, &caps, foretold, now)
            self.release()
        check(r)

    def reset_streams(self, uint32_t node, uint64_t key_id=0):
        cdef uint64_t now
        cdef int64_t n
        cdef pl_engine *e
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            n = pl_engine_reset_streams(e, node, key_id, now)
            self.release()
        if n < 0:
            check(<int> n)
        return n

    def drop_session(self, uint32_t node):
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            r = pl_engine_drop_session(self.acquire(&now), node)
            self.release()
        if r != PL_ENOENT:
            check(r)

    def forget_peer(self, uint32_t node):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_forget_peer(e, node, now)
            self.release()
        if r != PL_ENOENT:
            check(r)

    def set_path(self, uint32_t node, addr, bint relay):
        cdef pl_addr a
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        addr_from_py(addr, &a)
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_set_path(e, node, &a, relay, now)
            self.release()
        check(r)

    def probe(self, uint32_t node, addr, bint relay, uint64_t token):
        cdef pl_addr a
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        addr_from_py(addr, &a)
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_probe(e, node, &a, relay, token, now)
            self.release()
        check(r)

    def send_raw(self, addr, const uint8_t[::1] data not None):
        cdef pl_addr a
        cdef uint64_t now
        cdef int r
        cdef size_t n = data.shape[0]
        self.check_open()
        addr_from_py(addr, &a)
        if n == 0:
            raise CoreError(PL_EFORMAT)
        with nogil:
            r = pl_engine_send_raw(self.acquire(&now), &a, &data[0], n)
            self.release()
        check(r)

    def peer_info(self, uint32_t node):
        cdef pl_peer_info info
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            r = pl_engine_peer_info(self.acquire(&now), node, &info)
            self.release()
        return peer_to_py(&info) if r == PL_OK else None

    def peers(self, uint64_t since_ns=0):
        cdef pl_peer_info *rows = NULL
        cdef pl_peer_info one
        cdef uint64_t now
        cdef size_t it = 0, n = 0, cap = 0
        cdef pl_engine *e
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            while pl_engine_next_peer(e, &it, since_ns, &one):
                cap += 1
            it = 0
            rows = <pl_peer_info *> malloc((cap + 1) * sizeof(pl_peer_info))
            if rows is not NULL:
                while n < cap and pl_engine_next_peer(e, &it, since_ns, &rows[n]):
                    n += 1
            self.release()
        if rows is NULL:
            raise MemoryError
        try:
            return [peer_to_py(&rows[i]) for i in range(n)]
        finally:
            free(rows)

    def rest(self, uint32_t node, uint64_t until_ns):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_rest(e, node, until_ns, now)
            self.release()
        return r == PL_OK
