# What the engine tells: events, peers and connections as Python values.

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
