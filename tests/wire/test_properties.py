"""The native codecs and their Python twins say the same about any bytes, well formed or nearly so."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pilot import _core
from pilot.wire import WireError, beacon, ipc
from pilot.wire import ipc_networks as networks
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address
from pilot.wire.frames import (
    Capabilities,
    build_pilk,
    classify,
    open_pils,
    parse_pila,
    parse_pilk,
    parse_pils,
    seal_pils,
)
from pilot.wire.ipc_message import Request
from pilot.wire.packet import (
    Packet,
    StreamOptions,
    build_sack,
    parse_packet,
    parse_sack,
    parse_stream_options,
    sack_ambiguous,
)

T = TypeVar("T")
PL_ESHORT, PL_EFORMAT, PL_ECRC = -1, -2, -3

wire = settings(max_examples=300, deadline=None, print_blob=True)

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
addresses = st.builds(Address, u16, u32)
packets = st.builds(
    Packet, st.integers(0, 15), u8, addresses, u16, addresses, u16, u32, u32, u16, st.binary(max_size=80)
)
hosts = st.ip_addresses().map(lambda ip: str(getattr(ip, "ipv4_mapped", None) or ip))
endpoints = st.tuples(hosts, u16)
payloads = st.binary(max_size=60)
messages: st.SearchStrategy[beacon.Message] = st.one_of(
    st.builds(beacon.Discover, u32, st.none() | st.binary(min_size=32, max_size=32)),
    st.builds(beacon.Discover, u32, st.none(), st.booleans()),
    st.builds(beacon.DiscoverReply, endpoints, u8),
    st.builds(
        beacon.PunchRequest, u32, u32, st.none() | st.builds(beacon.PunchGrant, u64, st.binary(min_size=64, max_size=64))
    ),
    st.builds(beacon.PunchCommand, endpoints),
    st.builds(beacon.Relay, u32, u32, payloads),
    st.builds(beacon.Deliver, u32, payloads),
    st.builds(beacon.Sync, u32, st.lists(u32, max_size=10).map(tuple)),
    st.builds(beacon.DiscoverDst, u32),
    st.builds(beacon.DeliverDst, u32, u32, payloads),
    st.builds(beacon.Notify, u8),
)
sacks = st.lists(st.tuples(u32, u32), min_size=1, max_size=32).map(build_sack)
options = st.builds(StreamOptions, u8, u8, u16, u32, u32)


@st.composite
def spoiled(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of `source` with some changed, cut off or added."""
    data = bytearray(draw(source))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(u8)
    end = draw(st.integers(0, len(data))) if draw(st.booleans()) else len(data)
    return bytes(data[:end]) + draw(st.binary(max_size=4))


def attempt(call: Callable[[], T]) -> T | int:
    """The result, or the number of the native error."""
    try:
        return call()
    except _core.CoreError as error:
        return int(error.code)


# ---- packets ----


def twin_packet(data: bytes, optional: bool) -> dict[str, Any] | int:
    try:
        packet = parse_packet(data, optional)
    except WireError as error:
        return {"short": PL_ESHORT, "checksum": PL_ECRC, "version": PL_EFORMAT}[error.reason]
    return {
        "flags": packet.flags, "proto": packet.protocol, "src_net": packet.source.network, "src_node": packet.source.node,
        "dst_net": packet.destination.network, "dst_node": packet.destination.node, "src_port": packet.source_port,
        "dst_port": packet.destination_port, "seq": packet.seq, "ack": packet.ack, "window": packet.window,
        "crc": int.from_bytes(data[30:34], "big"), "payload": packet.payload,
    }  # fmt: skip


@wire
@given(packets, st.booleans())
def test_packet_round_trip(packet: Packet, checksum: bool) -> None:
    data = packet.build(checksum)
    assert parse_packet(data, checksum_optional=not checksum) == packet
    fields = twin_packet(data, not checksum)
    assert _core.packet_parse(data, not checksum) == fields
    assert isinstance(fields, dict)
    assert _core.packet_build(fields) == packet.build()


@wire
@given(spoiled(st.builds(Packet.build, packets, st.booleans())) | st.binary(max_size=90), st.booleans())
def test_packet_parsers_agree(data: bytes, optional: bool) -> None:
    assert attempt(lambda: _core.packet_parse(data, optional)) == twin_packet(data, optional)


@wire
@given(packets, u8)
def test_packet_parsers_agree_on_versions(packet: Packet, first: int) -> None:
    data = bytearray(packet.build(False))
    data[0] = first
    data[30:34] = zlib.crc32(data).to_bytes(4, "big")
    assert attempt(lambda: _core.packet_parse(bytes(data))) == twin_packet(bytes(data), False)


@wire
@given(st.binary(max_size=400), u32)
def test_checksums_agree(data: bytes, start: int) -> None:
    assert _core.crc32(data, start) == zlib.crc32(data, start)
    assert _core.crc32(data[100:], _core.crc32(data[:100], start)) == zlib.crc32(data, start)


@wire
@given(spoiled(sacks) | st.binary(max_size=20) | st.binary(max_size=20).map(b"SACK".__add__), st.integers(0, 32))
@example(b"SACK\0", 4)
def test_sack_parsers_agree(data: bytes, most: int) -> None:
    blocks = parse_sack(data, most)
    assert _core.sack_parse(data, most) == blocks
    if blocks:
        assert data.startswith(build_sack(blocks)) and _core.sack_write(blocks) == build_sack(blocks)
        assert sack_ambiguous(data)


@wire
@given(spoiled(options.map(StreamOptions.build)) | st.binary(max_size=20))
def test_option_parsers_agree(data: bytes) -> None:
    parsed, native = parse_stream_options(data), _core.synopt_parse(data)
    if parsed is None:
        assert native is None
        return
    assert native == {name: getattr(parsed, name) for name in parsed.__slots__}
    assert _core.synopt_write(native) == parsed.build() == data[:16]


# ---- tunnel frames ----


@wire
@given(st.binary(min_size=32, max_size=32), u32, u32, st.integers(1, (1 << 64) - 1), st.binary(max_size=200))
def test_sealing_agrees(key: bytes, node: int, prefix: int, counter: int, packet: bytes) -> None:
    frame = seal_pils(key, node, prefix, counter, packet)
    head = _core.pils_parse(frame)
    assert (head["node"], head["prefix"], head["counter"]) == (node, prefix, counter)
    assert _core.aead_seal(key, head["nonce"], frame[4:8], packet) == head["body"]
    assert _core.aead_open(key, head["nonce"], frame[4:8], head["body"]) == open_pils(key, frame) == packet


KEY = bytes(range(32))
SEALED = seal_pils(KEY, 7, 8, 9, b"packet")


@wire
@given(spoiled(st.just(SEALED)))
def test_opening_agrees(frame: bytes) -> None:
    opened = open_pils(KEY, frame)
    assert opened == (b"packet" if frame == SEALED else None)
    if parse_pils(frame):
        native = attempt(lambda: _core.aead_open(KEY, frame[8:20], frame[4:8], frame[20:]))
        assert native == opened if opened is not None else isinstance(native, int)


@wire
@given(spoiled(st.binary(max_size=60).map(b"PILS".__add__)) | st.binary(max_size=60))
def test_pils_heads_agree(data: bytes) -> None:
    parsed, native = parse_pils(data), attempt(lambda: _core.pils_parse(data))
    if parsed is None:
        assert native in (PL_ESHORT, PL_EFORMAT)
        return
    nonce = {"nonce": parsed.nonce, "body": parsed.body}
    assert native == {"node": parsed.node, "prefix": parsed.prefix, "counter": parsed.counter, **nonce}


@wire
@given(spoiled(st.binary(max_size=700).map(b"PILA".__add__)) | spoiled(st.binary(max_size=60).map(b"PILK".__add__)) | payloads)
def test_key_frames_of_any_bytes(data: bytes) -> None:
    classify(data)
    pila, pilk = parse_pila(data), parse_pilk(data)
    assert not (pila and pilk)
    if pila:
        assert not pila.verify() and pila.caps is None
    if pilk:
        assert build_pilk(pilk.node, pilk.x25519) == data[:40]


@wire
@given(st.builds(Capabilities, u32, st.just(0) | st.integers(1152, 65000), u32), st.binary(max_size=80))
def test_capabilities_round_trip(caps: Capabilities, noise: bytes) -> None:
    assert Capabilities.unpack(caps.pack()) == caps
    Capabilities.unpack(noise)
    Capabilities.unpack(caps.pack() + noise)


# ---- beacon ----


def twin_beacon(message: beacon.Message) -> dict[str, Any]:
    """The fields that the native parser gives by name."""
    names = {"node": "node", "beacon": "node", "target": "target", "endpoint": "endpoint", "kind": "kind"}
    return {names[name]: getattr(message, name) for name in message.__slots__ if name in names}


@wire
@given(messages)
def test_beacon_round_trip(message: beacon.Message) -> None:
    data = message.build()
    assert beacon.parse(data) == message
    native = _core.beacon_parse(data)
    assert native["type"] == data[0]
    for name, value in twin_beacon(message).items():
        assert native[name] == value
    if isinstance(message, beacon.Relay | beacon.Deliver | beacon.DeliverDst):
        assert native["body"] == message.frame
    if isinstance(message, beacon.Sync):
        assert native["count"] == len(message.nodes) and native["body"] == data[7:]


@wire
@given(spoiled(messages.map(lambda m: m.build())) | st.binary(max_size=30) | st.tuples(st.integers(0, 11), payloads).map(
    lambda t: bytes((t[0],)) + t[1]
))  # fmt: skip
def test_beacon_parsers_agree(data: bytes) -> None:
    message, native = beacon.parse(data), attempt(lambda: _core.beacon_parse(data))
    if message is None:
        assert native in (PL_ESHORT, PL_EFORMAT)
        return
    assert isinstance(native, dict)
    for name, value in twin_beacon(message).items():
        assert native[name] == value
    assert beacon.parse(message.build()) == message


# ---- local socket ----


texts = st.text(max_size=9)
objects = st.dictionaries(st.text(max_size=8), st.integers(-9, 9) | st.text(max_size=8) | st.none(), max_size=3)
tags = st.lists(st.text(max_size=8), max_size=3)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(rq.Bind, u16), st.builds(rq.Unbind, u16), st.builds(rq.Dial, addresses, u16), st.builds(rq.Send, u32, payloads),
    st.builds(rq.Close, u32), st.builds(rq.SendTo, addresses, u16, payloads),
    st.builds(rq.SendToConfirm, addresses, u16, payloads), st.builds(rq.Cancel),
    st.builds(rq.Broadcast, u16, u16, texts, payloads), st.builds(rq.Info), st.builds(rq.Health),
    st.builds(rq.ResolveHostname, st.text(min_size=1, max_size=9)), st.builds(rq.SetHostname, texts),
    st.builds(rq.SetVisibility, st.booleans()), st.builds(rq.Deregister), st.builds(rq.SetTags, tags),
    st.builds(rq.SetWebhook, texts), st.builds(rq.SetTaskExec, st.booleans()), st.builds(rq.RotateKey),
    st.builds(rq.PreferDirect, u32), st.builds(rq.PathInfo, u32, u32), st.builds(rq.SubmitBadge, objects),
    st.builds(rq.EnrollRecovery, objects), st.builds(rq.SignEnvelope, objects), st.builds(rq.VerifyEnvelope, objects),
    st.builds(rq.Handshake, u32, texts), st.builds(rq.ApproveHandshake, u32), st.builds(rq.RejectHandshake, u32, texts),
    st.builds(rq.PendingHandshakes), st.builds(rq.TrustedPeers), st.builds(rq.RevokeTrust, u32),
    st.builds(rq.WaitForTrust, u32, u32), st.builds(networks.NetworkList), st.builds(networks.NetworkJoin, u16, texts),
    st.builds(networks.NetworkLeave, u16), st.builds(networks.NetworkMembers, u16), st.builds(networks.NetworkInvite, u16, u32),
    st.builds(networks.NetworkPollInvites), st.builds(networks.NetworkRespondInvite, u16, st.booleans()),
    st.builds(networks.ManagedStatus, u16), st.builds(networks.ManagedCycle, u16), st.builds(networks.ManagedReconcile, u16),
    st.builds(networks.PolicyGet, u16), st.builds(networks.PolicySet, u16, texts, payloads),
    st.builds(networks.MemberTagsGet, u16, u32), st.builds(networks.MemberTagsSet, u16, u32, tags),
)  # fmt: skip
replies = st.one_of(
    st.builds(ipc.BindOk, u16), st.builds(ipc.DialOk, u32), st.builds(ipc.Accept, u16, u32, addresses, u16),
    st.builds(ipc.Recv, u32, payloads), st.builds(ipc.CloseOk, u32), st.builds(ipc.Error, u16, texts),
    st.builds(ipc.RecvFrom, addresses, u16, u16, payloads), st.builds(ipc.UnbindOk, u16), st.builds(ipc.SendToConfirmOk),
    st.builds(ipc.BroadcastOk),
)  # fmt: skip


@wire
@given(requests)
def test_request_round_trip(request: Request) -> None:
    frame = request.frame()
    code, payload, size = _core.ipc_parse(frame) or (0, b"", 0)
    assert (code, payload, size) == ipc.parse_frame(frame) == (request.code, request.payload, len(frame))
    assert rq.parse_request(code, payload) == request
    assert request.label and (request.reply == 0 or request.reply == request.code + 1)


def test_every_request_is_covered() -> None:
    made = set()

    @settings(max_examples=2000, deadline=None, database=None, derandomize=True)
    @given(requests)
    def collect(request: Request) -> None:
        made.add(type(request))

    collect()
    assert made == set(Request.__subclasses__())


@wire
@given(replies)
def test_reply_round_trip(reply: Any) -> None:
    code, payload, _ = ipc.parse_frame(reply.frame()) or (0, b"", 0)
    assert ipc.parse_reply(code, payload) == reply


@wire
@given(spoiled(requests.map(lambda r: r.frame())) | spoiled(replies.map(lambda r: r.frame())) | st.binary(max_size=20))
def test_ipc_frames_agree(data: bytes) -> None:
    try:
        parsed: Any = ipc.parse_frame(data)
    except WireError:
        parsed = PL_EFORMAT
    assert attempt(lambda: _core.ipc_parse(data)) == parsed


@wire
@given(u8, payloads | requests.flatmap(lambda r: spoiled(st.just(r.payload))))
def test_any_request_is_understood_or_has_an_error_text(code: int, payload: bytes) -> None:
    for use in (code, payload[0] if payload else 0, ipc.Cmd.HANDSHAKE, ipc.Cmd.NETWORK, ipc.Cmd.MANAGED, ipc.Cmd.BROADCAST):
        try:
            request = rq.parse_request(use, payload)
        except WireError as fault:
            assert fault.reason and len(ipc.error(fault.reason)) < 1 << 17
        else:
            assert rq.parse_request(request.code, request.payload) == request
        try:
            ipc.parse_reply(use, payload)
        except WireError as fault:
            assert fault.reason
