# The relay with its thread and sockets: csrc/relay_loop.c.


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
