# The constructor arguments that DataPlane and Engine share.

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
