"""Conversion between ("192.0.2.1", 4000) and pl_addr. Numeric addresses only: nothing here resolves names."""

import socket

from libc.string cimport memcpy, memset

from pilot._core.capi cimport pl_addr


cdef int addr_from_py(object addr, pl_addr *out) except -1:
    """Fills `out`. IPv4-mapped IPv6 text is stored as IPv4, as the C side expects. ValueError on anything else."""
    host, port = addr
    memset(out, 0, sizeof(pl_addr))
    if not 0 <= port <= 65535:
        raise ValueError(f"port out of range: {port}")
    try:
        packed = socket.inet_pton(socket.AF_INET, host)
        out.family = 4
    except OSError:
        try:
            packed = socket.inet_pton(socket.AF_INET6, host)
        except OSError:
            raise ValueError(f"not a numeric IP address: {host!r}") from None
        out.family = 6
        if packed.startswith(b"\x00" * 10 + b"\xff\xff"):
            packed = packed[12:]
            out.family = 4
    memcpy(&out.ip[0], <const unsigned char *> packed, len(packed))
    out.port = port
    return 0


cdef object addr_to_py(const pl_addr *a):
    """(text, port), or None for an empty address."""
    if a.family == 4:
        return socket.inet_ntop(socket.AF_INET, (<const unsigned char *> a.ip)[:4]), a.port
    if a.family == 6:
        return socket.inet_ntop(socket.AF_INET6, (<const unsigned char *> a.ip)[:16]), a.port
    return None
