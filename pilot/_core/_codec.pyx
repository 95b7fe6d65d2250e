"""Bindings on the C codecs (csrc/wire.h, csrc/aead.h), for tests against their pure-Python twins in pilot.wire."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from pilot._core._errors import CoreError
from pilot._core.addr cimport addr_to_py
from pilot._core.capi cimport *


cdef inline const uint8_t *ptr(bytes b) noexcept:
    return <const uint8_t *> PyBytes_AS_STRING(b)


cdef inline bytes span(const uint8_t *p, size_t n):
    return PyBytes_FromStringAndSize(<const char *> p, n)


cdef int check(int r) except -1:
    if r < 0:
        raise CoreError(r)
    return 0


def crc32(bytes data, uint32_t crc=0):
    return pl_crc32(crc, ptr(data), len(data))


def packet_parse(bytes data, bint crc_optional=False):
    cdef pl_packet p
    check(pl_packet_parse(ptr(data), ptr(data) + len(data), crc_optional, &p))
    return {
        "flags": p.flags, "proto": p.proto, "src_net": p.src_net, "src_node": p.src_node, "dst_net": p.dst_net,
        "dst_node": p.dst_node, "src_port": p.src_port, "dst_port": p.dst_port, "seq": p.seq, "ack": p.ack,
        "window": p.window, "crc": p.crc, "payload": span(p.payload, p.len),
    }


def packet_build(fields):
    cdef pl_packet p
    cdef uint8_t head[34]
    cdef bytes payload = fields.get("payload", b"")
    memset(&p, 0, sizeof(p))
    p.flags = fields["flags"]
    p.proto = fields["proto"]
    p.src_net = fields["src_net"]
    p.src_node = fields["src_node"]
    p.dst_net = fields["dst_net"]
    p.dst_node = fields["dst_node"]
    p.src_port = fields["src_port"]
    p.dst_port = fields["dst_port"]
    p.seq = fields["seq"]
    p.ack = fields["ack"]
    p.window = fields["window"]
    p.len = len(payload)
    pl_packet_write_header(head, &p)
    out = bytearray(head[:34])
    out += payload
    cdef uint8_t[::1] view = out
    pl_packet_write_crc(&view[0], len(out))
    return bytes(out)


def pils_parse(bytes data):
    cdef pl_pils h
    check(pl_pils_parse(ptr(data), ptr(data) + len(data), &h))
    return {"node": h.node, "prefix": h.prefix, "counter": h.counter, "nonce": span(h.nonce, 12),
            "body": span(h.body, h.body_len)}


def sack_parse(bytes data, unsigned max_blocks=4):
    cdef pl_sack_block blocks[32]
    cdef unsigned n = pl_sack_parse(ptr(data), ptr(data) + len(data), min(max_blocks, 32), blocks)
    return [(blocks[i].left, blocks[i].right) for i in range(n)]


def sack_write(blocks):
    cdef pl_sack_block table[32]
    cdef uint8_t out[261]
    cdef unsigned n = 0
    if not 1 <= len(blocks) <= 32:
        raise ValueError("1 to 32 blocks")
    for left, right in blocks:
        table[n].left = left
        table[n].right = right
        n += 1
    return span(out, pl_sack_write(out, table, n))


def beacon_parse(bytes data):
    cdef pl_beacon_msg m
    memset(&m, 0, sizeof(m))
    check(pl_beacon_parse(ptr(data), ptr(data) + len(data), &m))
    return {"type": m.type, "node": m.node, "target": m.target, "kind": m.kind, "count": m.count,
            "endpoint": addr_to_py(&m.endpoint), "body": span(m.body, m.body_len) if m.body is not NULL else b""}


def ipc_parse(bytes data):
    cdef uint8_t cmd = 0
    cdef const uint8_t *payload = NULL
    cdef uint32_t n = 0
    cdef size_t size = 0
    cdef int r = pl_ipc_parse(ptr(data), ptr(data) + len(data), &cmd, &payload, &n, &size)
    check(r)
    if r == 0:
        return None
    return cmd, span(payload, n) if n else b"", size


def synopt_parse(bytes data):
    cdef pl_synopt o
    if not pl_synopt_parse(ptr(data), ptr(data) + len(data), &o):
        return None
    return {"window_shift": o.window_shift, "max_sack": o.max_sack, "max_segment": o.max_segment,
            "reorder_segments": o.reorder_segments, "flags": o.flags}


def synopt_write(fields):
    cdef pl_synopt o
    cdef uint8_t out[16]
    o.window_shift = fields["window_shift"]
    o.max_sack = fields["max_sack"]
    o.max_segment = fields["max_segment"]
    o.reorder_segments = fields["reorder_segments"]
    o.flags = fields.get("flags", 0)
    pl_synopt_write(out, &o)
    return span(out, 16)


cdef class _Aead:
    cdef pl_aead *a

    def __cinit__(self, bytes key):
        if len(key) != 32:
            raise ValueError("key must be 32 bytes")
        self.a = pl_aead_new(ptr(key))
        if self.a is NULL:
            raise MemoryError

    def __dealloc__(self):
        pl_aead_free(self.a)


def aead_seal(bytes key, bytes nonce, bytes aad, bytes data):
    cdef _Aead ctx = _Aead(key)
    if len(nonce) != 12:
        raise ValueError("nonce must be 12 bytes")
    out = bytearray(data + bytes(16))
    cdef uint8_t[::1] view = out
    check(pl_aead_seal(ctx.a, ptr(nonce), ptr(aad), len(aad), &view[0], len(data)))
    return bytes(out)


def aead_open(bytes key, bytes nonce, bytes aad, bytes data):
    cdef _Aead ctx = _Aead(key)
    if len(nonce) != 12:
        raise ValueError("nonce must be 12 bytes")
    if len(data) < 16:
        raise CoreError(-1)
    out = bytearray(data)
    cdef uint8_t[::1] view = out
    check(pl_aead_open(ctx.a, ptr(nonce), ptr(aad), len(aad), &view[0], len(data) - 16))
    return bytes(out[: len(data) - 16])
