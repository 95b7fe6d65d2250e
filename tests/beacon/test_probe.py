"""NAT probes on real sockets: where the answers come from, and what nobody gets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from beacon_support import Addr, Udp, until

from pilot.beacon import Beacon, BeaconConfig
from pilot.errors import PilotError
from pilot.wire import beacon as wire
from pilot.wire.beacon import ProbeSource

NONCE = bytes(range(8))


async def ask(node: Udp, beacon: Beacon, to: Addr, answers: int) -> dict[ProbeSource, tuple[wire.ProbeReply, Addr]]:
    """Every answer to one probe, by where it says that it is from."""
    node.beacon = to
    node.send(wire.Probe(NONCE).build())
    found: dict[ProbeSource, tuple[wire.ProbeReply, Addr]] = {}
    while len(found) < answers:
        await until(node.arrived, f"{answers} answers from {to}")
        data, sender = node.receive()
        reply = wire.parse(data)
        assert isinstance(reply, wire.ProbeReply) and reply.build() == data
        assert reply.nonce == NONCE and reply.endpoint == node.addr
        found[reply.source] = (reply, sender)
    node.beacon = to
    return found


@pytest.fixture(params=["127.0.0.1", ""], ids=["one address", "wildcard"])
async def beacon(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Beacon, Addr]]:
    """A beacon with another address. Loopback has many."""
    running = Beacon(BeaconConfig(bind=(request.param, 0), alt="127.0.0.2"))
    _, port = await running.start()
    yield running, ("127.0.0.1", port)
    await running.stop()


async def test_answers_come_from_another_port_and_another_address(beacon: tuple[Beacon, Addr]) -> None:
    running, at = beacon
    node = Udp(at)
    found = await ask(node, running, at, 3)
    assert found[ProbeSource.ASKED][1] == at
    port, address = found[ProbeSource.OTHER_PORT][1], found[ProbeSource.OTHER_ADDRESS][1]
    assert port[0] == at[0] and port[1] != at[1] and address[0] == "127.0.0.2" and address[1] != at[1]
    told = found[ProbeSource.ASKED][0]
    observers = [(at[0], told.observer_port), told.alternate]
    assert told.alternate and told.alternate[0] == "127.0.0.2" and not {port, address, at} & set(observers)
    for observer in observers:
        assert observer
        reply, sender = (await ask(node, running, observer, 1))[ProbeSource.ASKED]
        assert sender == observer and reply.endpoint == node.addr
    node.beacon = at
    node.fence()
    assert not node.arrived(), "an observer answers alone"
    assert running.stats()["probes"] == 3
    node.close()


async def test_quiet_sockets_and_observers_are_no_beacons(beacon: tuple[Beacon, Addr]) -> None:
    running, at = beacon
    node = Udp(at)
    found = await ask(node, running, at, 3)
    told = found[ProbeSource.ASKED][0]
    others = [found[ProbeSource.OTHER_PORT][1], found[ProbeSource.OTHER_ADDRESS][1], (at[0], told.observer_port), told.alternate]
    for other in others:
        assert other
        node.beacon = other
        node.send(wire.discover(77))
        node.send(wire.relay(77, 77, b"PILS"))
        if other in others[:2]:
            node.send(wire.Probe(NONCE).build())
    for observer in others[2:]:
        assert observer
        await ask(node, running, observer, 1)  # behind the rest in its queue
    assert not node.arrived() and running.stats()["nodes"] == 0
    node.close()


async def test_answers_are_no_larger_than_the_question(beacon: tuple[Beacon, Addr]) -> None:
    running, at = beacon
    node = Udp(at)
    found = await ask(node, running, at, 3)
    heads = 20 + 8
    assert sum(len(reply.build()) + heads for reply, _ in found.values()) <= len(wire.Probe(NONCE).build()) + heads
    short = wire.Probe(NONCE).build()[:-1]
    node.send(short)
    node.fence()
    assert not node.arrived()
    other = Udp(at)
    for _ in range(100):
        other.send(wire.Probe(NONCE).build())
    node.fence()
    assert running.stats()["probes"] <= 1 + 40 + 5, "one source cannot make it send for ever"
    node.close()
    other.close()


async def test_one_address_is_said_to_be_one(beacon: tuple[Beacon, Addr]) -> None:
    plain = Beacon(BeaconConfig(bind=("127.0.0.1", 0)))
    at = await plain.start()
    node = Udp(at)
    found = await ask(node, plain, at, 2)
    assert set(found) == {ProbeSource.ASKED, ProbeSource.OTHER_PORT}
    assert all(reply.alternate is None for reply, _ in found.values())
    node.close()
    await plain.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
async def test_an_address_of_somebody_else_is_refused(host: str) -> None:
    with pytest.raises(PilotError, match="cannot listen"):
        await Beacon(BeaconConfig(bind=(host, 0), alt="192.0.2.1")).open()
