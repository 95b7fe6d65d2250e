"""Packets of the overlay, SACK payloads and stream options (transport.md 2, 4.3; docs/wire-extensions.md 2, 3)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from struct import error as StructError

from pilot.wire.address import Address
from pilot.wire.errors import WireError

VERSION = 1
HEADER_SIZE = 34
MAX_PAYLOAD = 0xFFFF
SACK_PLAIN_MAX = 4  # blocks other implementations take
SACK_MAX = 32  # blocks our own kind may agree on

_HEADER = Struct(">BBHHIHIHHIIHI")
_CRC_AT = 30
_SACK = b"SACK"
_OPTIONS = Struct(">4sBBHII")
_OPTIONS_MAGIC = b"PLX1"


class Flags(IntFlag):
    """The low four bits of the first byte."""

    NONE = 0
    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class Protocol(IntEnum):
    """Values of the protocol byte; others are dropped by whoever gets the packet."""

    STREAM = 1
    DATAGRAM = 2
    CONTROL = 3


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. window: in the sender's unit. seq, ack: mod 2^32. protocol: any byte, see Protocol."""

    flags: int
    protocol: int
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    seq: int = 0
    ack: int = 0
    window: int = 0
    payload: bytes = b""

    def build(self, checksum: bool = True) -> bytes:
        """34 bytes and the payload. checksum: False leaves the field zero (toward NOCRC peers).

        Raises WireError for values out of range; of `flags` only the low four bits are kept.
        """
        if len(self.payload) > MAX_PAYLOAD:
            raise WireError("payload exceeds 65535 bytes")
        first = VERSION << 4 | self.flags & 0x0F
        source, destination = (*self.source, *self.destination), (self.source_port, self.destination_port)
        rest = (*source, *destination, self.seq, self.ack, self.window)
        try:
            head = _HEADER.pack(first, self.protocol, len(self.payload), *rest, 0)
        except StructError:
            raise WireError("packet field out of range") from None
        if checksum:
            head = head[:_CRC_AT] + zlib.crc32(self.payload, zlib.crc32(head)).to_bytes(4, "big")
        return head + self.payload


def parse_packet(data: bytes, checksum_optional: bool = False) -> Packet:
    """A packet; bytes behind its payload are ignored. checksum_optional: a zero checksum is accepted (NOCRC).

    Raises WireError with the reason "short", "checksum" or "version", judged in this order (transport.md 2.2).
    """
    if len(data) < HEADER_SIZE:
        raise WireError("short")
    fields = _HEADER.unpack_from(data)
    end = HEADER_SIZE + fields[2]
    if len(data) < end:
        raise WireError("short")
    payload, crc = data[HEADER_SIZE:end], fields[12]
    if (crc or not checksum_optional) and crc != zlib.crc32(payload, zlib.crc32(data[:_CRC_AT] + bytes(4))):
        raise WireError("checksum")
    first, protocol, _, src_net, src_node, dst_net, dst_node, src_port, dst_port, seq, ack, window, _ = fields
    if first >> 4 != VERSION:
        raise WireError("version")
    source, destination = Address(src_net, src_node), Address(dst_net, dst_node)
    return Packet(first & 0x0F, protocol, source, src_port, destination, dst_port, seq, ack, window, payload)


def build_sack(blocks: Sequence[tuple[int, int]]) -> bytes:
    """The payload that reports 1..32 ranges (first byte held, one past the last). Raises WireError."""
    if not 1 <= len(blocks) <= SACK_MAX:
        raise WireError("SACK needs 1 to 32 blocks")
    try:
        edges = b"".join(left.to_bytes(4, "big") + right.to_bytes(4, "big") for left, right in blocks)
    except OverflowError:
        raise WireError("SACK edge out of range") from None
    return _SACK + bytes((len(blocks),)) + edges


def parse_sack(payload: bytes, most: int = SACK_PLAIN_MAX) -> list[tuple[int, int]]:
    """The blocks, at most `most`; [] if the payload is user data. Bytes behind the blocks are ignored."""
    if len(payload) < 5 or payload[:4] != _SACK:
        return []
    count = payload[4]
    if not 1 <= count <= most or len(payload) < 5 + 8 * count:
        return []
    edges = [int.from_bytes(payload[at : at + 4], "big") for at in range(5, 5 + 8 * count, 4)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def sack_ambiguous(payload: bytes) -> bool:
    """Some receiver would take user data that starts like this for SACK: end the segment after 4 bytes."""
    return len(payload) >= 5 and payload[:4] == _SACK and 1 <= payload[4] <= SACK_MAX


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Payload of SYN and SYN+ACK between nodes of our own kind. window_shift: the window field of the sender counts
    2^shift bytes; max_sack: blocks it takes; max_segment: bytes; reorder_segments: out-of-order segments it holds."""

    window_shift: int
    max_sack: int
    max_segment: int
    reorder_segments: int
    flags: int = 0

    def build(self) -> bytes:
        """16 bytes. Raises WireError for values that do not fit their fields."""
        values = (self.window_shift, self.max_sack, self.max_segment, self.reorder_segments, self.flags)
        try:
            return _OPTIONS.pack(_OPTIONS_MAGIC, *values)
        except StructError:
            raise WireError("stream option out of range") from None


def parse_stream_options(payload: bytes) -> StreamOptions | None:
    """The options; None if the payload is something else. Values are as sent: whoever uses them bounds them."""
    if len(payload) < _OPTIONS.size or payload[:4] != _OPTIONS_MAGIC:
        return None
    return StreamOptions(*_OPTIONS.unpack_from(payload)[1:])
