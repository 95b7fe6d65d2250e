"""Packets, SACK and stream options: recorded bytes through the Python codec and the native one."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from pilot import _core
from pilot.wire import WireError
from pilot.wire.address import Address
from pilot.wire.packet import (
    Flags,
    Packet,
    StreamOptions,
    build_sack,
    parse_packet,
    parse_sack,
    parse_stream_options,
    sack_ambiguous,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())


def packet_of(fields: dict[str, Any]) -> Packet:
    source, destination = (Address(fields[f"{s}_network"], fields[f"{s}_node"]) for s in ("src", "dst"))
    payload = bytes.fromhex(fields["payload_hex"])
    numbers = (fields["seq"], fields["ack"], fields["window"])
    ports = (fields["src_port"], fields["dst_port"])
    return Packet(fields["flags"], fields["protocol"], source, ports[0], destination, ports[1], *numbers, payload)


def native_fields(packet: Packet) -> dict[str, Any]:
    """The same packet as pilot._core writes it."""
    return {
        "flags": packet.flags, "proto": packet.protocol, "src_net": packet.source.network, "src_node": packet.source.node,
        "dst_net": packet.destination.network, "dst_node": packet.destination.node, "src_port": packet.source_port,
        "dst_port": packet.destination_port, "seq": packet.seq, "ack": packet.ack, "window": packet.window,
        "payload": packet.payload,
    }  # fmt: skip


@pytest.mark.parametrize("row", VECTORS["packets"], ids=lambda row: row["name"])
def test_packets(row: dict) -> None:
    packet, wire = packet_of(row["fields"]), bytes.fromhex(row["wire_hex"])
    assert packet.build() == wire and wire[30:34].hex() == row["checksum_hex"]
    assert parse_packet(wire) == packet
    assert _core.packet_build(native_fields(packet)) == wire
    parsed = _core.packet_parse(wire)
    assert parsed.pop("crc") == int(row["checksum_hex"], 16)
    assert parsed == native_fields(packet)


@pytest.mark.parametrize("row", VECTORS["packet_parse"], ids=lambda row: row["name"])
def test_packet_parse(row: dict) -> None:
    wire = bytes.fromhex(row["wire_hex"])
    if row["current"] == "accept":
        assert parse_packet(wire).payload == _core.packet_parse(wire)["payload"]
        return
    with pytest.raises(WireError):
        parse_packet(wire)
    with pytest.raises(_core.CoreError):
        _core.packet_parse(wire)


@pytest.mark.parametrize("row", VECTORS["stream_exchange"], ids=lambda row: f"{row['flags']}-{row['seq']}")
def test_recorded_exchange(row: dict) -> None:
    frame = bytes.fromhex(row["frame_hex"])
    packet = parse_packet(frame[4:])
    flags = Flags.NONE
    for name in row["flags"].upper().split("|"):
        flags |= Flags[name]
    assert (packet.flags, packet.protocol, packet.seq, packet.ack) == (flags, row["protocol"], row["seq"], row["ack"])
    assert (packet.source_port, packet.destination_port) == (row["src_port"], row["dst_port"])
    assert (packet.window, packet.payload.hex()) == (row["window"], row["payload_hex"])
    assert packet.build() == frame[4:] == _core.packet_build(native_fields(packet))


@pytest.mark.parametrize("row", VECTORS["checksums"], ids=lambda row: row["crc32_hex"])
def test_checksums(row: dict) -> None:
    data = bytes.fromhex(row["input_hex"])
    assert zlib.crc32(data) == _core.crc32(data) == int(row["crc32_hex"], 16)


@pytest.mark.parametrize("row", VECTORS["sack"]["decode"], ids=lambda row: row["payload_hex"] or "empty")
def test_sack_decode(row: dict) -> None:
    payload = bytes.fromhex(row["payload_hex"])
    blocks = [tuple(block) for block in row["blocks"]]
    assert parse_sack(payload) == _core.sack_parse(payload, 4) == blocks
    assert bool(blocks) == row["is_sack"]
    assert sack_ambiguous(payload) or not row["is_sack"], "user data like this must never be sent"


@pytest.mark.parametrize("row", VECTORS["sack"]["encode"], ids=lambda row: row["payload_hex"])
def test_sack_encode(row: dict) -> None:
    blocks = [tuple(block) for block in row["blocks"]][:4]  # the recorded encoder keeps the lowest four
    assert build_sack(blocks).hex() == _core.sack_write(blocks).hex() == row["payload_hex"]


def test_zero_checksum_only_toward_those_who_said_so() -> None:
    packet = Packet(2, 1, Address(0, 1), 7, Address(0, 2), 9, 1, 2, 3, b"data")
    bare = packet.build(checksum=False)
    assert parse_packet(bare, checksum_optional=True) == packet
    assert _core.packet_parse(bare, True)["payload"] == b"data"
    assert parse_packet(packet.build(), checksum_optional=True) == packet
    for optional in (False, True):
        with pytest.raises(WireError, match="checksum"):
            parse_packet(bare[:30] + (bytes(4) if not optional else b"\0\0\0\1") + bare[34:], optional)


def test_values_that_do_not_fit_are_refused() -> None:
    for packet in (
        Packet(0, 256, Address(0, 1), 7, Address(0, 2), 9),
        Packet(0, 1, Address(1 << 16, 1), 7, Address(0, 2), 9),
        Packet(0, 1, Address(0, 1), 7, Address(0, 2), 9, seq=-1),
        Packet(0, 1, Address(0, 1), 7, Address(0, 2), 9, payload=bytes(65536)),
    ):
        with pytest.raises(WireError):
            packet.build()
    for blocks in ([], [(0, 1)] * 33, [(0, 1 << 32)]):
        with pytest.raises(WireError):
            build_sack(blocks)
    with pytest.raises(WireError):
        StreamOptions(256, 4, 1152, 128).build()


def test_stream_options_layout() -> None:
    options = StreamOptions(10, 32, 8192, 65536)
    assert options.build().hex() == "504c5831" "0a" "20" "2000" "00010000" "00000000"
    assert parse_stream_options(options.build() + b"more") == options
    assert parse_stream_options(options.build()[:15]) is None
