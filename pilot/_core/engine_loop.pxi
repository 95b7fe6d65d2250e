# The engine with its data thread, tunnel socket and local clients.

cdef extern from "loop_wait.h" nogil:
    int64_t pl_loop_read_wait(pl_loop *l, uint32_t conn, uint8_t *buf, size_t cap, uint64_t timeout_ns)
    int64_t pl_loop_write_wait(pl_loop *l, uint32_t conn, const uint8_t *data, size_t len, uint64_t timeout_ns)


cdef uint64_t left_ns(object end) except? 0:
    """Nanoseconds until `end` on the monotonic clock; None = for ever."""
    if end is None:
        return PL_NEVER
    return <uint64_t> (max(end - monotonic(), 0.0) * 1e9)


cdef class DataPlane(EngineBase):
    """Engine, data thread, tunnel socket and local clients: csrc/loop.h."""

    cdef pl_engine *acquire(self, uint64_t *now_ns) noexcept nogil:
        return pl_loop_lock(self.loop, now_ns)

    cdef void release(self) noexcept nogil:
        pl_loop_unlock(self.loop)

    cdef int check_open(self) except -1:
        if self.loop is NULL:
            raise CoreError(-10)
        return 0

    def __cinit__(self, bind=("0.0.0.0", 0), *, bint gso=True, bint gro=True, str congestion="bbr", int max_segment=8192,
                  uint32_t socket_buffer=8 << 20, uint32_t spin_us=200, options=None):
        cdef pl_loop_cfg cfg
        cdef int r
        pl_loop_cfg_default(&cfg)
        addr_from_py(bind, &cfg.bind)
        configure(&cfg.engine, congestion, max_segment, os.urandom(32), options)
        cfg.local_listen_fd = -1
        cfg.socket_buffer = socket_buffer
        cfg.spin_us = spin_us
        cfg.use_gso = gso
        cfg.use_gro = gro
        r = pl_loop_new(&cfg, &self.loop)
        if r < 0:
            self.loop = NULL
            if r == PL_EIO:
                raise OSError(errno, f"{os.strerror(errno)} (UDP {bind[0]}:{bind[1]})")
            raise CoreError(r)

    def __dealloc__(self):
        if self.loop is not NULL:
            if self.started:
                with nogil:
                    pl_loop_stop(self.loop)
            pl_loop_free(self.loop)

    def start(self):
        self.check_open()
        check(pl_loop_start(self.loop))
        self.started = True

    def stop(self):
        if self.loop is NULL or not self.started:
            return
        self.started = False
        with nogil:
            pl_loop_stop(self.loop)

    def serve(self, int listen_fd):
        self.check_open()
        cdef int r
        with nogil:
            r = pl_loop_serve(self.loop, listen_fd)
        check(r)

    @property
    def event_fd(self):
        self.check_open()
        return pl_loop_event_fd(self.loop)

    @property
    def local_addr(self):
        cdef pl_addr a
        self.check_open()
        pl_loop_local_addr(self.loop, &a)
        return addr_to_py(&a)

    def events(self, size_t limit=1024):
        self.check_open()
        try:  # clear first: what arrives during the drain makes it readable again
            os.read(pl_loop_event_fd(self.loop), 8)
        except BlockingIOError:
            pass
        return EngineBase.events(self, limit)

    def client_send(self, uint32_t client, uint8_t cmd, const uint8_t[::1] payload=b""):
        cdef uint64_t now
        cdef int r
        cdef uint32_t n = payload.shape[0]
        cdef const uint8_t *p = &payload[0] if n else NULL
        self.check_open()
        with nogil:
            pl_loop_lock(self.loop, &now)
            r = pl_loop_client_send(self.loop, client, cmd, p, n)
            pl_loop_unlock(self.loop)
        return r == PL_OK

    def client_close(self, uint32_t client):
        cdef uint64_t now
        self.check_open()
        with nogil:
            pl_loop_lock(self.loop, &now)
            pl_loop_client_close(self.loop, client)
            pl_loop_unlock(self.loop)

    def serve_streams(self, int32_t network):
        cdef uint64_t now
        cdef int r
        self.check_open()
        with nogil:
            pl_loop_lock(self.loop, &now)
            r = pl_loop_serve_streams(self.loop, network)
            pl_loop_unlock(self.loop)
        check(r)

    def dial_answered(self, uint32_t client):
        cdef uint64_t now
        self.check_open()
        with nogil:
            pl_loop_lock(self.loop, &now)
            pl_loop_dial_answered(self.loop, client)
            pl_loop_unlock(self.loop)

    def attach(self, uint32_t conn, uint32_t client, uint8_t cmd=0, const uint8_t[::1] payload=b""):
        cdef uint64_t now
        cdef int r = PL_OK
        cdef uint32_t n = payload.shape[0]
        cdef const uint8_t *p = &payload[0] if n else NULL
        self.check_open()
        with nogil:
            pl_loop_lock(self.loop, &now)
            if cmd:  # under one lock: the client's answer to this frame must find the connection in its hands
                r = pl_loop_client_send(self.loop, client, cmd, p, n)
            if r == PL_OK:
                r = pl_loop_attach(self.loop, conn, client)
            pl_loop_unlock(self.loop)
        check(r)

    def read_wait(self, uint32_t conn, uint8_t[::1] buffer not None, timeout=None):
        cdef int64_t r
        cdef size_t n = buffer.shape[0]
        cdef uint64_t timeout_ns
        self.check_open()
        if n == 0:
            raise ValueError("no room in the buffer")
        end = None if timeout is None else monotonic() + timeout
        while True:
            timeout_ns = left_ns(end)
            with nogil:
                r = pl_loop_read_wait(self.loop, conn, &buffer[0], n, timeout_ns)
            if r != PL_EAGAIN:
                check(r)
                return r
            PyErr_CheckSignals()
            if end is not None and monotonic() >= end:
                return None

    def write_wait(self, uint32_t conn, const uint8_t[::1] data not None, timeout=None):
        cdef int64_t r
        cdef size_t done = 0, n = data.shape[0]
        cdef uint64_t timeout_ns
        self.check_open()
        end = None if timeout is None else monotonic() + timeout
        while done < n:
            timeout_ns = left_ns(end)
            with nogil:
                r = pl_loop_write_wait(self.loop, conn, &data[done], n - done, timeout_ns)
            if r != PL_EAGAIN:
                check(r)
                done += <size_t> r
            if done < n:
                PyErr_CheckSignals()
                if end is not None and monotonic() >= end:
                    break
        return done

    def stats(self):
        cdef pl_loop_stats st
        d = EngineBase.stats(self)
        with nogil:
            pl_loop_get_stats(self.loop, &st)
        d.update(dict(st))
        return d
