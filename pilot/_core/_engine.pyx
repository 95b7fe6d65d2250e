"""Bindings on csrc/engine.h and csrc/loop.h. Glue only: policy is in Python, packets stay in C.

One module in parts: every extension module links a native core of its own, so what shares an engine is compiled together."""

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

EV_FRAME, EV_BEACON, EV_PEER_WANTED, EV_NO_SESSION, EV_SESSION_PROVED, EV_SESSION_BROKEN = range(1, 7)
EV_PATH_SEEN, EV_PONG, EV_CONN_OPEN, EV_CONN_FAILED, EV_ACCEPT, EV_READABLE, EV_WRITABLE = range(7, 14)
EV_CONN_CLOSED, EV_DATAGRAM, EV_CLIENT_OPEN, EV_CLIENT_FRAME, EV_CLIENT_CLOSED, EV_PMTU, EV_CLIENT_CONN = range(14, 21)
EV_PEER_STIRRED = 21
DIAL_REFUSED, DIAL_TIMEOUT, DIAL_NO_KEY = 1, 2, 3
CAP_NOCRC, CAP_STREAM_OPTS = 1, 2
OWNER_NONE, OWNER_APP, OWNER_ECHO, OWNER_CLIENT = 0, 1, 2, 3


cdef int check(int64_t result) except -1:
    if result < 0:
        raise CoreError(result)
    return 0


include "engine_values.pxi"
include "engine_options.pxi"
include "engine_peers.pxi"
include "engine_streams.pxi"
include "engine_loop.pxi"
include "engine_sansio.pxi"
