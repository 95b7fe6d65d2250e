"""Two beacons of ours: nodes of one are introduced to nodes of the other, news travels at once, a restart costs a moment."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from beacon_support import Addr, Udp, until

from pilot.beacon import Beacon, BeaconConfig
from pilot.wire import beacon as wire

Start = Callable[[int, int, int], Awaitable[Beacon]]
HOUR_S = 3600.0


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Beacons whose only gossip is that of news and greetings: rounds come once an hour."""
    running: list[Beacon] = []

    async def run(number: int, port: int, peer: int) -> Beacon:
        config = BeaconConfig(
            bind=("127.0.0.1", port), beacon=number, peers=(("127.0.0.1", peer),), gossip_s=HOUR_S, refresh_s=0.2
        )
        beacon = Beacon(config)
        running.append(beacon)
        await beacon.start()
        return beacon

    yield run
    for beacon in running:
        await beacon.stop()


def two_ports() -> tuple[int, int]:
    first, second = Udp(("127.0.0.1", 1)), Udp(("127.0.0.1", 1))
    ports = first.addr[1], second.addr[1]
    first.close()
    second.close()
    return ports


def at(port: int) -> Addr:
    return ("127.0.0.1", port)


async def received(node: Udp, what: str) -> tuple[bytes, Addr]:
    await until(node.arrived, what)
    return node.receive()


async def test_each_hears_of_the_other_from_its_own_beacon(start: Start) -> None:
    one, two = two_ports()
    first, second = await start(1, one, two), await start(2, two, one)
    a, b = Udp(at(one)).register(100), Udp(at(two)).register(200)
    await until(lambda: first.stats()["routes"] == second.stats()["routes"] == 1, "news travels without a round")
    a.send(wire.punch_request(100, 200))
    assert await received(a, "the requester's command") == (wire.PunchCommand(b.addr).build(), at(one))
    assert await received(b, "the target's command") == (wire.PunchCommand(a.addr).build(), at(two))
    assert first.stats()["introduced"] == second.stats()["introduced"] == 1

    stranger = Udp(at(two))  # not a peer: it cannot make a beacon send to its nodes
    spoofed = second.stats()["spoofed"]
    stranger.send(bytes.fromhex("0d0000000064000000c8") + wire.PunchCommand(a.addr).build()[1:])
    stranger.fence()
    assert not b.arrived() and second.stats()["spoofed"] == spoofed + 1
    for udp in (a, b, stranger):
        udp.close()


@pytest.mark.parametrize("which", ["the sender's beacon", "the receiver's beacon"])
async def test_a_flow_goes_on_after_a_restart(start: Start, which: str) -> None:
    """What both sides keep sending arrives again at once: nobody waits for a keep-alive or for the next round."""
    one, two = two_ports()
    first, second = await start(1, one, two), await start(2, two, one)
    a, b = Udp(at(one)).register(100), Udp(at(two)).register(200)
    await until(lambda: first.stats()["routes"] == second.stats()["routes"] == 1, "both know the other's node")
    if which == "the sender's beacon":
        await first.stop()
        first = await start(1, one, two)
    else:
        await second.stop()
        second = await start(2, two, one)
    begun = time.monotonic()
    a.waiting()
    b.waiting()

    def arrives() -> bool:
        a.relay(100, 200, b"PILS")
        b.relay(200, 100, b"PILS")
        return wire.Deliver(100, b"PILS").build() in b.waiting() and wire.Deliver(200, b"PILS").build() in a.waiting()

    await until(arrives, "both directions flow again", 5.0)
    print(f"after {time.monotonic() - begun:.3f} s")
    a.close()
    b.close()


async def test_a_beacon_that_comes_late_gets_the_list_at_once(start: Start) -> None:
    one, two = two_ports()
    first = await start(1, one, two)
    nodes = [Udp(at(one)).register(number) for number in range(100, 120)]
    second = await start(2, two, one)
    await until(lambda: second.stats()["routes"] == len(nodes), "it asked, and was answered", 5.0)
    told = first.stats()["gossip_sent"]
    for node in nodes:
        node.register(100 + nodes.index(node))  # keep-alives are no news
    await until(lambda: second.stats()["sync"] >= 1, "something was told")
    assert first.stats()["gossip_sent"] <= told + 3
    for node in nodes:
        node.close()
