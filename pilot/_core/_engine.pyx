"""Bindings on csrc/engine.h and csrc/loop.h. Glue only: policy is in Python, packets stay in C."""

import os
from time import monotonic

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from pilot._core._errors import CoreError
from pilot._core.addr cimport addr_from_py, addr_to_py
from pilot._core.capi cimport *

cdef extern from "loop_wait.h" nogil:
    int64_t pl_loop_read_wait(pl_loop *l, uint32_t conn, uint8_t *buf, size_t cap, uint64_t timeout_ns)
    int64_t pl_loop_write_wait(pl_loop *l, uint32_t conn, const uint8_t *data, size_t len, uint64_t timeout_ns)

EV_FRAME, EV_BEACON, EV_PEER_WANTED, EV_NO_SESSION, EV_SESSION_PROVED, EV_SESSION_BROKEN = range(1, 7)
EV_PATH_SEEN, EV_PONG, EV_CONN_OPEN, EV_CONN_FAILED, EV_ACCEPT, EV_READABLE, EV_WRITABLE = range(7, 14)
EV_CONN_CLOSED, EV_DATAGRAM, EV_CLIENT_OPEN, EV_CLIENT_FRAME, EV_CLIENT_CLOSED, EV_PMTU, EV_CLIENT_CONN = range(14, 21)
EV_PEER_STIRRED = 21
DIAL_REFUSED, DIAL_TIMEOUT, DIAL_NO_KEY = 1, 2, 3
CAP_NOCRC, CAP_STREAM_OPTS = 1, 2
OWNER_NONE, OWNER_APP, OWNER_ECHO, OWNER_CLIENT = 0, 1, 2, 3

cdef tuple STATES = ("CLOSED", "SYN_SENT", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT")


cdef class Event:
    """One engine event; which fields mean something depends on `type` (csrc/engine.h)."""

    cdef readonly uint32_t type, node, conn, client
    cdef readonly uint16_t remote_net, remote_port, local_net, local_port
    cdef readonly bint relayed
    cdef readonly object addr
    cdef readonly uint64_t a, b
    cdef readonly bytes data

    def __repr__(self):
        return f"Event(type={self.type}, node={self.node}, conn={self.conn}, client={self.client}, a={self.a})"


cdef Event event_to_py(pl_event *ev):
    cdef Event out = Event.__new__(Event)
    out.type = ev.type
    out.node = ev.node
    out.conn = ev.conn
    out.client = ev.client
    out.remote_net = ev.remote_net
    out.remote_port = ev.remote_port
    out.local_net = ev.local_net
    out.local_port = ev.local_port
    out.relayed = ev.relayed
    out.addr = addr_to_py(&ev.addr)
    out.a = ev.a
    out.b = ev.b
    out.data = PyBytes_FromStringAndSize(<char *> ev.data, ev.len)
    return out


cdef int check(int64_t result) except -1:
    if result < 0:
        raise CoreError(result)
    return 0


cdef uint64_t left_ns(object end) except? 0:
    """Nanoseconds until `end` on the monotonic clock; None = for ever."""
    if end is None:
        return PL_NEVER
    return <uint64_t> (max(end - monotonic(), 0.0) * 1e9)


cdef dict peer_to_py(pl_peer_info *i):
    cdef dict d = dict(i[0])
    d["path"] = addr_to_py(&i.path)
    for name in ("trusted", "session", "proved", "has_path", "relay", "own_kind"):
        d[name] = bool(d[name])
    return d


cdef dict conn_to_py(pl_conn_info *i):
    cdef dict d = dict(i.s)
    d["state"] = STATES[i.s.state] if i.s.state < 5 else "unknown"
    d["options"] = bool(i.s.options)
    d["in_recovery"] = bool(i.s.in_recovery)
    d["id"] = i.id
    d["node"] = i.node
    d["local_net"] = i.local_net
    d["local_port"] = i.local_port
    d["remote_net"] = i.remote_net
    d["remote_port"] = i.remote_port
    d["owner"] = i.owner
    d["client"] = i.client
    return d


cdef int configure(pl_engine_cfg *cfg, str congestion, int max_segment, bytes entropy, object options) except -1:
    """Applies the constructor arguments; unknown option names are a ValueError."""
    pl_engine_cfg_default(cfg)
    cdef bytes name = congestion.encode()
    cdef const pl_cc_ops *ops = pl_cc_find(name)
    if ops is NULL:
        raise ValueError(f"unknown congestion control: {congestion!r}")
    cfg.stream.congestion = ops.name  # static storage
    cfg.max_segment = max_segment
    if len(entropy) != 32:
        raise ValueError("seed must be 32 bytes")
    memcpy(&cfg.entropy[0], <char *> entropy, 32)
    for key, value in (options or {}).items():
        if key == "send_buffer":
            cfg.stream.send_buffer = value
        elif key == "recv_buffer":
            cfg.stream.recv_buffer = value
        elif key == "recv_buffer_plain":
            cfg.stream.recv_buffer_plain = value
        elif key == "keepalive_ns":
            cfg.stream.keepalive_ns = value
        elif key == "idle_timeout_ns":
            cfg.stream.idle_timeout_ns = value
        elif key == "time_wait_ns":
            cfg.stream.time_wait_ns = value
        elif key == "linger_ns":
            cfg.stream.linger_ns = value
        elif key == "syn_timer_ns":
            cfg.stream.syn_timer_ns = value
        elif key == "max_conns":
            cfg.max_conns = value
        elif key == "max_conns_port":
            cfg.max_conns_port = value
        elif key == "max_peers":
            cfg.max_peers = value
        elif key == "syn_rate":
            cfg.syn_rate = value
        elif key == "accept_queue":
            cfg.accept_queue = value
        elif key == "datagram_queue":
            cfg.datagram_queue = value
        elif key == "peer_keepalive_ns":
            cfg.peer_keepalive_ns = value
        elif key == "accept_era1":
            cfg.accept_era1 = value
        else:
            raise ValueError(f"unknown engine option: {key!r}")
    return 0


cdef class EngineBase:
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
