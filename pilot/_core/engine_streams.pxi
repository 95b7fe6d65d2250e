# Commands about ports, streams and datagrams; counters and events.


cdef class EngineBase(PeerCommands):
    def listen(self, uint16_t port, int owner, uint32_t client=0, bint open_port=False):
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            r = pl_engine_listen(self.acquire(&now), port, <pl_owner> owner, client, open_port)
            self.release()
        check(r)

    def unlisten(self, uint16_t port):
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            r = pl_engine_unlisten(self.acquire(&now), port)
            self.release()
        check(r)

    def dial(self, uint32_t node, uint16_t port, *, uint16_t local_net=0, uint16_t remote_net=0, uint32_t client=0,
             double timeout=30.0):
        cdef uint64_t now, timeout_ns = <uint64_t> (max(timeout, 0.0) * 1e9)
        cdef pl_engine *e
        cdef int64_t r
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_dial(e, local_net, remote_net, node, port, client, timeout_ns, now)
            self.release()
        check(r)
        return r

    def own(self, uint32_t conn, int owner, uint32_t client=0):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_own(e, conn, <pl_owner> owner, client, now)
            self.release()
        check(r)

    def write(self, uint32_t conn, const uint8_t[::1] data not None):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int64_t r
        cdef size_t n = data.shape[0]
        self.check_open()
        if n == 0:
            return 0
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_write(e, conn, &data[0], n, now)
            self.release()
        check(r)
        return r

    def read(self, uint32_t conn, size_t max_bytes=65536):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int64_t r
        cdef bytes out = PyBytes_FromStringAndSize(NULL, max_bytes)
        cdef uint8_t *buf = <uint8_t *> PyBytes_AS_STRING(out)
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_read(e, conn, buf, max_bytes, now)
            self.release()
        if r == PL_EAGAIN:
            return None
        check(r)
        return out if <size_t> r == max_bytes else out[:r]

    def read_into(self, uint32_t conn, uint8_t[::1] buffer not None):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int64_t r
        cdef size_t n = buffer.shape[0]
        self.check_open()
        if n == 0:
            raise ValueError("no room in the buffer")
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_read(e, conn, &buffer[0], n, now)
            self.release()
        if r == PL_EAGAIN:
            return None
        check(r)
        return r

    def unacked(self, uint32_t conn):
        cdef uint64_t now
        cdef int64_t r
        self.check_open()
        with nogil:
            r = pl_engine_unacked(self.acquire(&now), conn)
            self.release()
        check(r)
        return r

    def close(self, uint32_t conn):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_close(e, conn, now)
            self.release()
        if r != PL_ENOENT:
            check(r)

    def abort(self, uint32_t conn):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_abort(e, conn, now)
            self.release()
        if r != PL_ENOENT:
            check(r)

    def conn_info(self, uint32_t conn):
        cdef pl_conn_info info
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            r = pl_engine_conn_info(self.acquire(&now), conn, &info)
            self.release()
        return conn_to_py(&info) if r == PL_OK else None

    def conns(self):
        cdef pl_engine_stats st
        cdef pl_conn_info *rows = NULL
        cdef uint64_t now
        cdef size_t it = 0, n = 0, cap
        cdef pl_engine *e
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            pl_engine_get_stats(e, &st)
            cap = st.conns
            rows = <pl_conn_info *> calloc(cap + 1, sizeof(pl_conn_info))
            if rows is not NULL:
                while n < cap and pl_engine_next_conn(e, &it, &rows[n]):
                    n += 1
            self.release()
        if rows is NULL:
            raise MemoryError
        try:
            return [conn_to_py(&rows[i]) for i in range(n)]
        finally:
            free(rows)

    def send_datagram(self, uint32_t node, uint16_t port, const uint8_t[::1] data not None, *, uint16_t local_net=0,
                      uint16_t src_port=0, uint16_t remote_net=0):
        cdef uint64_t now
        cdef pl_engine *e
        cdef int r
        cdef size_t n = data.shape[0]
        cdef const uint8_t *p = &data[0] if n else NULL
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            r = pl_engine_send_datagram(e, local_net, src_port, remote_net, node, port, p, n, now)
            self.release()
        check(r)

    def stats(self):
        cdef pl_engine_stats st
        cdef uint64_t now
        self.check_open()
        with nogil:
            pl_engine_get_stats(self.acquire(&now), &st)
            self.release()
        return dict(st)

    def events(self, size_t limit=1024):
        cdef uint64_t now
        cdef pl_engine *e
        cdef pl_event *head = NULL
        cdef pl_event *tail = NULL
        cdef pl_event *ev
        cdef size_t n = 0
        self.check_open()
        with nogil:
            e = self.acquire(&now)
            while n < limit:
                ev = pl_engine_event(e)
                if ev is NULL:
                    break
                if tail is NULL:
                    head = ev
                else:
                    tail.next = ev
                tail = ev
                n += 1
            self.release()
        cdef list out = []
        while head is not NULL:
            ev = head
            head = ev.next
            try:
                out.append(event_to_py(ev))
            finally:
                pl_event_free(ev)
        return out
