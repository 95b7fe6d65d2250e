# The engine by itself: datagrams, time and deadlines pass through the caller's hands.


cdef void log_sent(pl_tx *tx, void *ctx) noexcept nogil:
    """Flush hook of the sans-I/O engine: appends {addr, len, bytes} records to a growing buffer."""
    cdef LogBuffer *b = <LogBuffer *> ctx
    cdef unsigned i
    cdef uint32_t at, end, n
    cdef size_t need
    cdef char *grown
    for i in range(tx.n_runs):
        at = tx.runs[i].off
        end = at + tx.runs[i].len
        while at < end:
            n = tx.runs[i].seg
            if n > end - at:
                n = end - at
            need = b.len + sizeof(pl_addr) + 4 + n
            if need > b.cap:
                grown = <char *> realloc(b.data, need * 2)
                if grown is NULL:
                    break
                b.data = grown
                b.cap = need * 2
            memcpy(b.data + b.len, &tx.runs[i].to, sizeof(pl_addr))
            memcpy(b.data + b.len + sizeof(pl_addr), &n, 4)
            memcpy(b.data + b.len + sizeof(pl_addr) + 4, tx.arena + at, n)
            b.len = need
            at += n
    pl_tx_reset(tx)


cdef class Engine(EngineBase):
    """Sans-I/O engine on the caller's clock, for the simulator and tests."""

    cdef pl_engine *acquire(self, uint64_t *now_ns) noexcept nogil:
        now_ns[0] = self.now
        return self.engine

    cdef void release(self) noexcept nogil:
        pl_engine_flush(self.engine, self.now)

    cdef int check_open(self) except -1:
        return 0

    def __cinit__(self, *, bytes seed, uint64_t now_ns, str congestion="bbr", int max_segment=8192, options=None):
        cdef pl_engine_cfg cfg
        configure(&cfg, congestion, max_segment, seed, options)
        self.now = now_ns
        self.tx = <pl_tx *> calloc(1, sizeof(pl_tx))
        if self.tx is NULL or pl_tx_init(self.tx, log_sent, &self.log) < 0:
            raise MemoryError
        self.engine = pl_engine_new(&cfg, self.tx, now_ns)
        if self.engine is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.engine is not NULL:
            pl_engine_free(self.engine)
        if self.tx is not NULL:
            pl_tx_free(self.tx)
            free(self.tx)
        free(self.log.data)

    def input(self, bytes data, addr, uint64_t now_ns, size_t seg=0):
        cdef pl_addr a
        cdef size_t n = len(data)
        cdef uint8_t *copy = <uint8_t *> malloc(n + 1)
        if copy is NULL:
            raise MemoryError
        try:
            addr_from_py(addr, &a)
            memcpy(copy, <char *> data, n)
            self.now = max(self.now, now_ns)
            pl_engine_input(self.engine, copy, n, seg, &a, self.now)
        finally:
            free(copy)

    def flush(self, uint64_t now_ns):
        self.now = max(self.now, now_ns)
        pl_engine_flush(self.engine, self.now)

    def output(self):
        cdef list out = []
        cdef size_t at = 0
        cdef pl_addr a
        cdef uint32_t n
        while at < self.log.len:
            memcpy(&a, self.log.data + at, sizeof(pl_addr))
            memcpy(&n, self.log.data + at + sizeof(pl_addr), 4)
            at += sizeof(pl_addr) + 4
            out.append((PyBytes_FromStringAndSize(self.log.data + at, n), addr_to_py(&a)))
            at += n
        self.log.len = 0
        return out

    def deadline(self):
        cdef uint64_t d = pl_engine_deadline(self.engine)
        return None if d == PL_NEVER else d
