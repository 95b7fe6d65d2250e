"""Datagrams between nodes and beacons (beacon.md 2, 3). Bytes behind the last field are ignored unless they are payload."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from pilot.wire.errors import WireError

Addr = tuple[str, int]  # numeric IP text, port

NOTIFY_HANDSHAKE = 1  # the registry holds a relayed trust handshake for the node
KEY_SIZE = 32
SIGNATURE_SIZE = 64
MAX_SYNC = 16366  # node ids that fit one datagram with our trailer, also when it is sealed
PACE_ASKS = b"PX\x01"  # trailer of a discover: how often shall we ask? Other beacons ignore it
PACE_SIZE, PACE_SIZE_V6 = 12, 24  # of such a discover: no smaller than its reply
ASK_SIZE, ASK_SIZE_V6 = 20, 32  # the same with a nonce, which the reply repeats
SYNC_ASKS, SYNC_AGES = 1, 2  # flags of the trailer of a sync: answer with your own list; ages of the nodes follow
_SYNC_TRAILER = b"PX\x01"
_SYNC_BYTES = 65507 - 30  # a datagram that can be sealed
PROBE_SIZE = 250
NONCE_SIZE = 8

_MAPPED = bytes(10) + b"\xff\xff"


class BeaconType(IntEnum):
    """First byte of the datagram, always below 0x10."""

    DISCOVER = 0x01
    DISCOVER_REPLY = 0x02
    PUNCH_REQUEST = 0x03
    PUNCH_COMMAND = 0x04
    RELAY = 0x05
    DELIVER = 0x06
    SYNC = 0x07
    DISCOVER_DST = 0x08
    DELIVER_DST = 0x09
    NOTIFY = 0x0A
    PROBE = 0x0B  # from here on ours alone: docs/wire-extensions.md 7
    PROBE_REPLY = 0x0C
    INTRODUCE = 0x0D  # between beacons, native code only
    SEALED = 0x0E  # between beacons with a secret


@dataclass(frozen=True, slots=True)
class Discover:
    """node: own number, 0 without one. key: Ed25519 public key or None; it proves nothing by itself. paced: asks how
    often the beacon wants to be asked (docs/wire-extensions.md 7.4; not with a key). nonce: 8 bytes that a reply to a paced
    discover repeats, or none."""

    node: int
    key: bytes | None = None
    paced: bool = False
    nonce: bytes = b""

    def build(self, v6: bool = False) -> bytes:
        """5 or 37 bytes; paced 12, with a nonce 20, to a beacon with an IPv6 address (v6) 12 more."""
        if self.key is not None and (len(self.key) != KEY_SIZE or self.paced):
            raise WireError("key is not 32 bytes" if not self.paced else "a discover with a key has no trailer")
        head = _pack(">BI", BeaconType.DISCOVER, self.node) + (self.key or b"")
        if self.nonce and (len(self.nonce) != NONCE_SIZE or not self.paced):
            raise WireError("a nonce of 8 bytes goes into a paced discover")
        if self.nonce:
            return (head + PACE_ASKS + self.nonce).ljust(ASK_SIZE_V6 if v6 else ASK_SIZE, b"\0")
        return (head + PACE_ASKS).ljust(PACE_SIZE_V6 if v6 else PACE_SIZE, b"\0") if self.paced else head


@dataclass(frozen=True, slots=True)
class DiscoverReply:
    """endpoint: where the beacon saw the discover come from. pace: seconds until it wants to be asked again, 0 = not told.
    nonce: that of the discover, if it had one and the beacon is of our kind."""

    endpoint: Addr
    pace: int = 0
    nonce: bytes = b""

    def build(self) -> bytes:
        """8 or 20 bytes, 4 more with a pace, 12 more with a nonce."""
        plain = _pack_endpoint(BeaconType.DISCOVER_REPLY, self.endpoint)
        return plain + PACE_ASKS + _pack(">B", self.pace) + self.nonce if self.pace or self.nonce else plain


@dataclass(frozen=True, slots=True)
class PunchGrant:
    """The target's permission for one requester. expiry: Unix seconds. signature: Ed25519, 64 bytes, by the target."""

    expiry: int
    signature: bytes

    def signed_text(self, node: int, target: int) -> bytes:
        """What the signature covers (beacon.md 8)."""
        return f"punch-grant:{node}:{target}:{self.expiry}".encode()


@dataclass(frozen=True, slots=True)
class PunchRequest:
    """`node` asks to be introduced to `target`."""

    node: int
    target: int
    grant: PunchGrant | None = None

    def build(self) -> bytes:
        """9 or 81 bytes."""
        head = _pack(">BII", BeaconType.PUNCH_REQUEST, self.node, self.target)
        if self.grant is None:
            return head
        if len(self.grant.signature) != SIGNATURE_SIZE:
            raise WireError("signature is not 64 bytes")
        return head + _pack(">Q", self.grant.expiry) + self.grant.signature


@dataclass(frozen=True, slots=True)
class PunchCommand:
    """endpoint: where to send PILP."""

    endpoint: Addr

    def build(self) -> bytes:
        """8 or 20 bytes."""
        return _pack_endpoint(BeaconType.PUNCH_COMMAND, self.endpoint)


@dataclass(frozen=True, slots=True)
class Relay:
    """`node` sends the tunnel frame `frame` to `target` through the beacon."""

    node: int
    target: int
    frame: bytes

    def build(self) -> bytes:
        """9 bytes and the frame."""
        return _pack(">BII", BeaconType.RELAY, self.node, self.target) + self.frame


@dataclass(frozen=True, slots=True)
class Deliver:
    """The beacon brings `frame` of `node`. The source is a claim: identity comes from what the frame proves."""

    node: int
    frame: bytes

    def build(self) -> bytes:
        """5 bytes and the frame."""
        return _pack(">BI", BeaconType.DELIVER, self.node) + self.frame


@dataclass(frozen=True, slots=True)
class Sync:
    """Beacon `beacon` knows exactly these nodes."""

    beacon: int
    nodes: tuple[int, ...]

    def build(self, asks: bool = False, ages: bytes = b"") -> bytes:
        """7 bytes and 4 a node. asks, ages: the trailer that only our beacons read (docs/wire-extensions.md 7.3); ages has a byte
        per node, of which those that do not fit the datagram are left out. WireError above MAX_SYNC nodes."""
        if len(self.nodes) > MAX_SYNC:
            raise WireError("too many nodes for one datagram")
        head = _pack(">BIH", BeaconType.SYNC, self.beacon, len(self.nodes))
        listed = head + _pack(f">{len(self.nodes)}I", *self.nodes)
        flags = (SYNC_ASKS if asks else 0) | (SYNC_AGES if ages else 0)
        if not flags:
            return listed
        return listed + _SYNC_TRAILER + bytes([flags]) + ages[: max(0, _SYNC_BYTES - len(listed) - 4)]


@dataclass(frozen=True, slots=True)
class DiscoverDst:
    """Discover of an endpoint with several nodes: deliveries shall name the destination."""

    node: int

    def build(self) -> bytes:
        """5 bytes."""
        return _pack(">BI", BeaconType.DISCOVER_DST, self.node)


@dataclass(frozen=True, slots=True)
class DeliverDst:
    """Deliver to one node of an endpoint that sent DiscoverDst."""

    node: int
    target: int
    frame: bytes

    def build(self) -> bytes:
        """9 bytes and the frame."""
        return _pack(">BII", BeaconType.DELIVER_DST, self.node, self.target) + self.frame


@dataclass(frozen=True, slots=True)
class Notify:
    """kind: NOTIFY_HANDSHAKE; others are to be ignored."""

    kind: int

    def build(self) -> bytes:
        """2 bytes."""
        return _pack(">BB", BeaconType.NOTIFY, self.kind)


@dataclass(frozen=True, slots=True)
class Probe:
    """Asks a beacon of our kind to show what the NAT in between lets in. nonce: 8 bytes."""

    nonce: bytes

    def build(self) -> bytes:
        """250 bytes: no less than all answers together."""
        if len(self.nonce) != NONCE_SIZE:
            raise WireError("nonce is not 8 bytes")
        return (bytes((BeaconType.PROBE, 0)) + self.nonce).ljust(PROBE_SIZE, b"\0")


class ProbeSource(IntEnum):
    """Where an answer to a probe comes from."""

    ASKED = 0
    OTHER_PORT = 1
    OTHER_ADDRESS = 2


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """endpoint: where the probe was seen to come from. observer_port (on the beacon's own address) and alternate (on its other
    one, if it has one) are more places to ask: they see what the NAT maps to there."""

    source: ProbeSource
    nonce: bytes
    endpoint: Addr
    observer_port: int
    alternate: Addr | None

    def build(self) -> bytes:
        """20 to 50 bytes."""
        head = bytes((BeaconType.PROBE_REPLY, self.source)) + self.nonce + _pack_addr(self.endpoint)
        return head + _pack(">H", self.observer_port) + (_pack_addr(self.alternate) if self.alternate else b"\0")


Message = (
    Discover
    | DiscoverReply
    | PunchRequest
    | PunchCommand
    | Relay
    | Deliver
    | Sync
    | DiscoverDst
    | DeliverDst
    | Notify
    | Probe
    | ProbeReply
)


def discover(node: int) -> bytes:
    """Query, registration and keepalive in one; node 0 without a number."""
    return Discover(node).build()


def paced_discover(node: int, beacon: Addr, nonce: bytes = b"") -> bytes:
    """The same to a beacon that may say how often it wants to be asked, and repeat the nonce (8 bytes or none)."""
    return Discover(node, None, True, nonce).build(v6=":" in beacon[0])


def punch_request(node: int, target: int) -> bytes:
    """Asks the beacon to introduce `node` to `target`."""
    return PunchRequest(node, target).build()


def relay(node: int, target: int, frame: bytes) -> bytes:
    """Wraps a tunnel frame of `node` for `target`."""
    return Relay(node, target, frame).build()


def parse(data: bytes) -> Message | None:
    """A beacon message; None if it is too short, of unknown type or has an impossible address."""
    size = len(data)
    if size < 2:
        return None
    kind = data[0]
    if kind in (BeaconType.DISCOVER_REPLY, BeaconType.PUNCH_COMMAND):
        endpoint, rest = _unpack_addr(data[1:])
        if endpoint is None:
            return None
        return DiscoverReply(endpoint, *_pace(rest)) if kind == BeaconType.DISCOVER_REPLY else PunchCommand(endpoint)
    if kind == BeaconType.NOTIFY:
        return Notify(data[1])
    if kind == BeaconType.PROBE:
        return Probe(data[2 : 2 + NONCE_SIZE]) if size >= PROBE_SIZE and data[1] == 0 else None
    if kind == BeaconType.PROBE_REPLY:
        return _parse_probe_reply(data)
    if size < 5:
        return None
    (node,) = struct.unpack_from(">I", data, 1)
    if kind == BeaconType.DISCOVER:
        key = data[5:37] if size >= 5 + KEY_SIZE else None
        paced = key is None and size >= PACE_SIZE and data.startswith(PACE_ASKS, 5)
        return Discover(node, key, paced, data[8 : 8 + NONCE_SIZE] if paced and size in (ASK_SIZE, ASK_SIZE_V6) else b"")
    if kind == BeaconType.DISCOVER_DST:
        return DiscoverDst(node)
    if kind == BeaconType.DELIVER:
        return Deliver(node, data[5:])
    if kind == BeaconType.SYNC:
        return _parse_sync(node, data)
    if size < 9:
        return None
    (target,) = struct.unpack_from(">I", data, 5)
    if kind == BeaconType.PUNCH_REQUEST:
        return PunchRequest(node, target, _parse_grant(data))
    if kind == BeaconType.RELAY:
        return Relay(node, target, data[9:])
    if kind == BeaconType.DELIVER_DST:
        return DeliverDst(node, target, data[9:])
    return None


def _parse_probe_reply(data: bytes) -> ProbeReply | None:
    if len(data) < 2 + NONCE_SIZE or data[1] > max(ProbeSource):
        return None
    endpoint, rest = _unpack_addr(data[2 + NONCE_SIZE :])
    if endpoint is None or len(rest) < 3:
        return None
    alternate = None
    if rest[2]:
        alternate, _ = _unpack_addr(rest[2:])
        if alternate is None:
            return None
    return ProbeReply(ProbeSource(data[1]), data[2 : 2 + NONCE_SIZE], endpoint, int.from_bytes(rest[:2], "big"), alternate)


def _parse_sync(beacon: int, data: bytes) -> Sync | None:
    count = int.from_bytes(data[5:7], "big")
    if len(data) < 7 + 4 * count:
        return None
    return Sync(beacon, struct.unpack_from(f">{count}I", data, 7))


def _parse_grant(data: bytes) -> PunchGrant | None:
    if len(data) < 17 + SIGNATURE_SIZE:
        return None
    return PunchGrant(int.from_bytes(data[9:17], "big"), data[17 : 17 + SIGNATURE_SIZE])


def _pack(form: str, *values: int) -> bytes:
    try:
        return struct.pack(form, *values)
    except struct.error:
        raise WireError("number out of range") from None


def _pack_endpoint(kind: BeaconType, endpoint: Addr) -> bytes:
    return bytes((kind,)) + _pack_addr(endpoint)


def _pack_addr(endpoint: Addr) -> bytes:
    """An IPv4 address that came over a dual-stack socket goes out in its 4-byte form (beacon.md 1.1)."""
    host, port = endpoint
    try:
        ip = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        raise WireError("not a numeric IP address") from None
    ip = ip.removeprefix(_MAPPED)
    return bytes((len(ip),)) + ip + _pack(">H", port)


def _pace(trailer: bytes) -> tuple[int, bytes]:
    """Pace and nonce of a reply."""
    if len(trailer) < 4 or not trailer.startswith(PACE_ASKS):
        return 0, b""
    return trailer[3], trailer[4 : 4 + NONCE_SIZE] if len(trailer) >= 4 + NONCE_SIZE else b""


def _unpack_addr(data: bytes) -> tuple[Addr | None, bytes]:
    """The address at the beginning and what follows; (None, b"") if it is impossible or cut off."""
    size = data[0] if data else 0
    if size not in (4, 16) or len(data) < 3 + size:
        return None, b""
    ip = data[1 : 1 + size].removeprefix(_MAPPED)  # one form for one address, whatever the beacon wrote
    family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
    return (socket.inet_ntop(family, ip), int.from_bytes(data[1 + size : 3 + size], "big")), data[3 + size :]
