"""NAT probes and the NAT record of PILA, to the byte as docs/wire-extensions.md has them; native tests have the same bytes."""

from __future__ import annotations

import pytest

from pilot.wire import beacon
from pilot.wire.beacon import ProbeReply, ProbeSource
from pilot.wire.errors import WireError
from pilot.wire.frames import Capabilities

NONCE = b"\xab" * 8
ANSWER = bytes.fromhex("0c02abababababababab04cb00710a9c411b5804cb0071021b59")


def test_probe() -> None:
    data = beacon.Probe(NONCE).build()
    assert data == b"\x0b\x00" + NONCE + bytes(240)
    assert beacon.parse(data) == beacon.parse(data + b"more") == beacon.Probe(NONCE)
    assert beacon.parse(data[:-1]) is None and beacon.parse(b"\x0b\x01" + data[2:]) is None
    with pytest.raises(WireError):
        beacon.Probe(b"short").build()


def test_answer() -> None:
    reply = ProbeReply(ProbeSource.OTHER_ADDRESS, NONCE, ("203.0.113.10", 40001), 7000, ("203.0.113.2", 7001))
    assert reply.build() == ANSWER and beacon.parse(ANSWER) == beacon.parse(ANSWER + b"more") == reply
    for size in range(2, len(ANSWER)):
        assert beacon.parse(ANSWER[:size]) is None
    assert beacon.parse(b"\x0c\x03" + ANSWER[2:]) is None
    v6 = ProbeReply(ProbeSource.ASKED, NONCE, ("2001:db8::10", 40006), 7000, None)
    assert v6.build().hex() == "0c00abababababababab1020010db80000000000000000000000109c461b5800"
    assert beacon.parse(v6.build()) == v6
    largest = ProbeReply(ProbeSource.ASKED, NONCE, ("2001:db8::10", 1), 1, ("2001:db8::11", 1)).build()
    assert 3 * (len(largest) + 48) <= beacon.PROBE_SIZE + 48


def test_nat_record() -> None:
    assert Capabilities(features=3, nat=5).pack().hex() == "010400000003060105"
    for code in (0, 1, 6, 255):  # what we have no word for yet is carried all the same
        assert Capabilities.unpack(Capabilities(nat=code).pack()) == Capabilities(nat=code)
    assert Capabilities.unpack(bytes.fromhex("06020505")) is None
    with pytest.raises(WireError):
        Capabilities(nat=256).pack()
