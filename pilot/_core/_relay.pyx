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


include "relay_loop.pxi"
include "relay_sansio.pxi"
