"""Codecs of the control plane (pilot.wire) and the native ones beside them, each way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._core import _codec
from pilot.wire import beacon, frames, packet, registry
from pilot.wire.address import Address

Measure = Callable[[str, Callable[[], Any]], Any]
FULL = packet.Packet(2, 1, Address(1, 8), 1000, Address(1, 9), 50000, 1, 2, 512, bytes(1393))
BYTES = FULL.build()
FIELDS = _codec.packet_parse(BYTES)
LOOKUP = {"type": "lookup", "node_id": 8}


class Identity:
    key = Ed25519PrivateKey.generate()
    public_key = key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)


PILA = frames.build_pila(8, bytes(32), Identity(), frames.Capabilities())


def test_packet_build(measure: Measure) -> None:
    assert measure("packet, build (Python)", FULL.build) == BYTES


def test_packet_parse(measure: Measure) -> None:
    assert measure("packet, parse (Python)", lambda: packet.parse_packet(BYTES)) == FULL


def test_packet_build_native(measure: Measure) -> None:
    assert measure("packet, build (native, called from Python)", lambda: _codec.packet_build(FIELDS)) == BYTES


def test_packet_parse_native(measure: Measure) -> None:
    assert measure("packet, parse (native, called from Python)", lambda: _codec.packet_parse(BYTES)) == FIELDS


def test_aead_seal(measure: Measure) -> None:
    def seal() -> bytes:
        return _codec.aead_seal(bytes(32), bytes(12), b"", BYTES)

    assert len(measure("AEAD, seal a full packet (native, called from Python)", seal)) == len(BYTES) + 16


def test_pils(measure: Measure) -> None:
    frame = frames.seal_pils(bytes(32), 8, 1, 1, BYTES)
    assert measure("PILS, open (Python)", lambda: frames.open_pils(bytes(32), frame)) == BYTES


def test_pila_build(measure: Measure) -> None:
    measure("PILA, build and sign", lambda: frames.build_pila(8, bytes(32), Identity(), frames.Capabilities()))


def test_pila_parse(measure: Measure) -> None:
    def verified() -> bool:
        parsed = frames.parse_pila(PILA)
        return parsed is not None and parsed.verify()

    assert measure("PILA, parse and verify", verified)


def test_beacon(measure: Measure) -> None:
    message = beacon.relay(8, 9, BYTES)
    assert measure("beacon relay, parse (Python)", lambda: beacon.parse(message)) is not None


@pytest.mark.parametrize("encoding", list(registry.Encoding), ids=lambda e: e.name.lower())
def test_registry(measure: Measure, encoding: registry.Encoding) -> None:
    def there_and_back() -> dict[str, Any]:
        return registry.decode(registry.encode(LOOKUP, encoding)[registry.HEAD_SIZE :])[0]

    assert measure(f"registry frame, build and parse ({encoding.name.lower()})", there_and_back) == LOOKUP
