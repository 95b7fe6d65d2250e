"""Beacons that find each other, tell each other who is where, believe the registry, and stay up whatever their peers do."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from beacon_support import Addr, Udp, until

from pilot.beacon import Announcement, Beacon, BeaconConfig
from pilot.beacon import peers as peers_module
from pilot.beacon.notify import Notifier
from pilot.beacon.peers import Peers, listed
from pilot.beacon.wss import WssConfig, WssServer
from pilot.errors import PilotError
from pilot.registry.server import RegistryServer
from pilot.registry.store import MemoryStore
from pilot.wire import beacon as wire

LOCAL = ("127.0.0.1", 0)
Start = Callable[..., Awaitable[tuple[Beacon, Addr]]]


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(LOCAL)
        return int(s.getsockname()[1])


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts beacons with quick timers; stops them at the end."""
    running: list[Beacon] = []

    async def run(bind: Addr = LOCAL, **fields: Any) -> tuple[Beacon, Addr]:
        config = BeaconConfig(**({"bind": bind, "gossip_s": 0.02, "refresh_s": 0.05, "notify_s": 0.1} | fields))
        beacon = Beacon(config)
        running.append(beacon)
        return beacon, await beacon.start()

    yield run
    for beacon in running:
        await beacon.stop()


# Gossip


async def test_gossip_is_what_a_published_beacon_sends(start: Start) -> None:
    peer = Udp(LOCAL)
    beacon, at = await start(beacon=3, peers=(peer.addr,))
    node = Udp(at).register(4242)
    expected = bytes.fromhex("0700000003000100001092")
    await until(lambda: beacon.stats()["gossip_sent"] > 1, "gossip goes out")
    seen: list[bytes] = []
    await until(lambda: seen.extend(peer.waiting()) or any(d.startswith(expected) for d in seen), "gossip names the node")
    empty = bytes.fromhex("07000000030000")  # from before the node came
    # Behind the list, where published beacons ignore it: asks, and the age of the node.
    trailers = {empty: {"", "50580101"}, expected: {"5058010200", "5058010300"}}
    assert all(any(d == head + bytes.fromhex(t) for head, ts in trailers.items() for t in ts) for d in seen)
    assert 1 <= sum(len(d) > len(empty) + 3 and d[7 + 4 * d[6] + 3] & 1 for d in seen) <= 3
    await until(lambda: peer.arrived(), "gossip goes on")
    assert peer.receive()[0].startswith(expected)
    peer.beacon = at
    peer.send(bytes.fromhex("05000000640000109250494c5364656d6f2d7061796c6f6164"))
    assert node.receive() == (bytes.fromhex("060000006450494c5364656d6f2d7061796c6f6164"), at)
    peer.waiting()
    await beacon.stop()
    assert peer.waiting()[-1] == bytes.fromhex("07000000030000"), "a beacon that ends withdraws its nodes"
    peer.close()
    node.close()


async def test_nodes_of_two_beacons_reach_each_other(start: Start) -> None:
    first_port, second_port = free_udp_port(), free_udp_port()
    first, at1 = await start(("127.0.0.1", first_port), beacon=1, peers=(("127.0.0.1", second_port),))
    second, at2 = await start(("127.0.0.1", second_port), beacon=2, peers=(("127.0.0.1", first_port),))
    a, b = Udp(at1).register(100), Udp(at2).register(200)
    await until(lambda: first.stats()["routes"] == second.stats()["routes"] == 1, "both know the other's node")
    for n in range(20):
        frame = b"PILS" + bytes([n]) * 8000
        a.relay(100, 200, frame)
        assert b.receive() == (wire.Deliver(100, frame).build(), at2)
        b.relay(200, 100, frame)
        assert a.receive() == (wire.Deliver(200, frame).build(), at1)
    assert first.stats()["forwarded"] == second.stats()["forwarded"] == 20
    await second.stop()
    await until(lambda: first.stats()["routes"] == 0, "routes of a beacon that ended are gone at once")
    a.close()
    b.close()


async def test_more_nodes_than_one_datagram_holds(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    peer = Udp(LOCAL)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    beacon, at = await start(beacon=1, peers=(peer.addr,), gossip_s=3600.0, max_nodes_per_ip=100_000)
    node = Udp(at)
    for first in range(1, wire.MAX_SYNC + 100, 50):
        for number in range(first, first + 50):
            node.send(wire.discover(number))
        for _ in range(50):
            node.receive()
    assert beacon.stats()["nodes"] > wire.MAX_SYNC
    await until(lambda: beacon.stats()["peers"] == 1, "the peer is known")
    await until(lambda: beacon.stats()["gossip_cut"] >= 2, "it was asked for, or there was news")
    for _ in range(2):
        sync = wire.parse(peer.receive()[0])
        assert isinstance(sync, wire.Sync) and len(set(sync.nodes)) == wire.MAX_SYNC
    assert [r.levelname for r in caplog.records if r.name == "pilot.beacon"].count("WARNING") == 1
    peer.close()
    node.close()


async def test_a_peer_that_cannot_be_sent_to_is_counted(start: Start) -> None:
    beacon, _ = await start(("127.0.0.1", 0), peers=(("255.255.255.255", 9),))  # the kernel refuses broadcast
    await until(lambda: beacon.stats()["gossip_failed"] >= 2, "gossip goes on trying")


# Peers through the registry


class Registry:
    """A registry that lists beacons."""

    def __init__(self, token: str = "operator") -> None:
        self.server = RegistryServer(MemoryStore(), admin_token=token)
        self.at: Addr = ("", 0)

    async def start(self) -> Addr:
        self.at = await self.server.start("127.0.0.1", self.at[1])
        return self.at


async def test_beacons_find_each_other_through_the_registry(start: Start) -> None:
    registry = Registry()
    where = await registry.start()
    given = Udp(LOCAL)
    first, at1 = await start(beacon=9, announcement=Announcement(where, 9, None, "operator"), peers=(given.addr,))
    second, at2 = await start(beacon=10, announcement=Announcement(where, 10, None, "operator"))
    # Own address: the one of this host on the way to the registry, with the beacon's port.
    await until(lambda: len(registry.server.core.beacons) == 2, "both are listed")
    assert {addr for addr, _ in registry.server.core.beacons.values()} == {f"127.0.0.1:{at[1]}" for at in (at1, at2)}
    a, b = Udp(at1).register(100), Udp(at2).register(200)
    await until(lambda: first.stats()["routes"] == second.stats()["routes"] == 1, "both know the other's node")
    assert (first.stats()["peers"], second.stats()["peers"]) == (2, 1), "a given peer stays a peer"
    a.relay(100, 200, b"PILS")
    assert b.receive()[0] == wire.Deliver(100, b"PILS").build()

    await registry.server.stop()  # the registry goes: what it listed last stays in force
    failures = first.stats()["peer_failures"]
    await until(lambda: first.stats()["peer_failures"] > failures, "a round without a registry")
    a.relay(100, 200, b"PILT")
    assert b.receive()[0] == wire.Deliver(100, b"PILT").build()
    for udp in (given, a, b):
        udp.close()


async def test_a_registry_that_refuses_is_said_once_and_without_the_token(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry = Registry("another")
    where = await registry.start()
    beacon, at = await start(beacon=9, announcement=Announcement(where, 9, ("127.0.0.1", 1), "guess-of-the-token"))
    await until(lambda: beacon.stats()["peer_failures"] >= 3, "several refused rounds")
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING and r.name == "pilot.beacon"]
    assert len(warnings) == 1
    assert "guess-of-the-token" not in caplog.text and "guess-of-the-token" not in str([r.__dict__ for r in caplog.records])
    node = Udp(at).register(1)  # nobody else is concerned
    node.close()
    await registry.server.stop()


def test_what_a_registry_lists_is_judged() -> None:
    good = {"id": 10, "addr": "203.0.113.7:9001"}
    entries: list[Any] = [
        good, {"id": 9, "addr": "203.0.113.6:9109"}, {"id": 11, "addr": "beacon.example:9001"},
        {"id": 12, "addr": "[2001:db8::1]:9001"}, {"id": 13, "addr": "203.0.113.8"},
        {"id": 14, "addr": "203.0.113.8:0"}, {"id": 15, "addr": ":9001"}, {"id": 16},
        {"id": 17, "addr": 7}, 5, None, {"id": 18, "addr": "0.0.0.0:9001"}, {"id": 19, "addr": "224.0.0.1:9001"},
    ]  # fmt: skip
    assert listed(entries, 9) == [("203.0.113.7", 9001), ("beacon.example", 9001), ("2001:db8::1", 9001)]
    assert listed(None, 9) == listed({"id": 1}, 9) == []
    assert len(listed([{"id": n, "addr": f"192.0.2.1:{n}"} for n in range(1, 2000)], 9)) == 256


# Names


async def test_names_are_resolved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {"moves.example": [("192.0.2.1", 9001), ("192.0.2.2", 9001)], "own.example": [("192.0.2.9", 9001)]}

    async def resolve(host: str, port: int, v6: bool) -> list[Addr]:
        answer = answers[host]
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    monkeypatch.setattr(peers_module, "resolve", resolve)
    peers = Peers((("moves.example", 9001), ("own.example", 9001)), False, 9001)
    peers.never([("192.0.2.9", 9001)])
    await peers.resolve_names()
    assert peers.accepted() == [("192.0.2.1", 9001), ("192.0.2.2", 9001)]
    assert peers.targets() == [("192.0.2.1", 9001)], "one datagram per peer, never one to itself"
    answers["moves.example"] = [("192.0.2.77", 9001)]
    await peers.resolve_names()
    assert peers.accepted() == peers.targets() == [("192.0.2.77", 9001)]
    for fault in (socket.gaierror(-3, "temporary failure"), TimeoutError(), UnicodeError("label too long")):
        answers["moves.example"] = fault
        await peers.resolve_names()
        assert peers.targets() == [("192.0.2.77", 9001)], "the last answer stays in force"
    assert peers.failures == 3


# The registry's word, and notify


async def test_a_registered_node_takes_its_place_at_once(start: Start) -> None:
    beacon, at = await start()
    squatter, owner, sender = Udp(at, "127.0.0.5").register(7), Udp(at, "127.0.0.6"), Udp(at).register(8)
    owner.register(7)
    sender.relay(8, 7, b"PILS")
    assert squatter.receive()[0] == wire.Deliver(8, b"PILS").build()
    beacon.vouch(7, "127.0.0.6")
    owner.register(7)
    sender.relay(8, 7, b"PILS")
    assert owner.receive()[0] == wire.Deliver(8, b"PILS").build()
    squatter.register(7)  # answered, not believed
    sender.relay(8, 7, b"PILS")
    assert owner.receive()[0] == wire.Deliver(8, b"PILS").build()
    beacon.vouch(7, None)
    beacon.vouch(9, "no address")
    beacon.vouch(0, "127.0.0.1")
    assert beacon.stats()["vouch_refused"] == 2
    for udp in (squatter, owner, sender):
        udp.close()


async def test_notify_comes_from_the_address_that_the_node_uses(start: Start) -> None:
    beacon, at = await start(("", 0))  # all addresses of the host
    node = Udp(("127.0.0.5", at[1]), "127.0.0.6").register(100)
    beacon.notify(100)
    beacon.notify(999)
    assert node.receive() == (b"\x0a\x01", ("127.0.0.5", at[1]))
    assert (beacon.stats()["notified"], beacon.stats()["notify_unknown"]) == (1, 1)
    node.close()


async def test_many_handshakes_are_one_notify_at_once_and_one_at_the_end() -> None:
    sent: list[tuple[int, float]] = []

    def send(node: int) -> bool:
        sent.append((node, time.monotonic()))
        return node != 13

    notifier = Notifier(send, interval_s=0.05, max_nodes=2)
    for _ in range(50):
        notifier.notify(1)
    notifier.notify(2)
    assert [node for node, _ in sent] == [1, 2]
    await until(lambda: len(sent) == 3, "what came meanwhile is told")
    assert sent[2][0] == 1 and sent[2][1] - sent[0][1] >= 0.045
    await until(lambda: not notifier._resting, "nothing is kept for ever")
    assert len(sent) == 3 and (notifier.sent, notifier.merged) == (3, 49)
    for node in (13, 3, 4, 5):
        notifier.notify(node)
    assert notifier.unknown == 2  # 13 is not here; 5 is one too many at once
    notifier.close()
    await asyncio.sleep(0)
    assert not notifier._resting


# Life


async def test_a_taken_port_is_said_plainly(start: Start) -> None:
    _, at = await start()
    with pytest.raises(PilotError) as fault:
        await Beacon(BeaconConfig(bind=at)).start()
    assert fault.value.code == "connection_failed"
    assert fault.value.message == f"beacon cannot listen on UDP 127.0.0.1:{at[1]}: Address already in use"
    with pytest.raises(PilotError, match=r"UDP 192.0.2.1:9: Cannot assign requested address"):
        await Beacon(BeaconConfig(bind=("192.0.2.1", 9))).open()


async def test_the_address_may_be_a_name(start: Start) -> None:
    _, at = await start(("localhost", 0))
    assert at[0] == "127.0.0.1"
    with pytest.raises(PilotError, match=r"beacon cannot listen on UDP no-such-host.invalid:9001: .+"):
        await Beacon(BeaconConfig(bind=("no-such-host.invalid", 9001))).open()


async def test_nothing_is_served_before_the_start_and_after_the_stop() -> None:
    beacon = Beacon(BeaconConfig(bind=LOCAL))
    beacon.vouch(1, "127.0.0.1")
    beacon.notify(1)
    at = await beacon.open()
    beacon.vouch(1, "127.0.0.1")
    node = Udp(at)
    node.send(wire.discover(1))
    assert await beacon.start() == at
    assert node.receive()[0][0] == 0x02  # it waited in the socket
    await beacon.stop()
    await beacon.stop()
    beacon.vouch(1, "127.0.0.1")
    beacon.notify(1)
    assert beacon.stats()["notified"] == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(at)  # the port is free again
    node.close()


async def test_the_port_is_free_when_stop_returns() -> None:
    class Executor(ThreadPoolExecutor):
        """Remembers what it did a little longer than others do."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            done.append(fn)
            return super().submit(fn, *args, **kwargs)

    async def nobody(_node: int) -> None:
        return None

    done: list[Callable[..., Any]] = []
    asyncio.get_running_loop().set_default_executor(Executor())
    beacon = Beacon(BeaconConfig(bind=LOCAL))
    beacon.wss = WssServer(WssConfig(LOCAL), nobody)
    at = await beacon.start()
    await beacon.stop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(at)
    assert done


async def test_garbage_does_not_stop_the_beacon(start: Start) -> None:
    beacon, at = await start(peers=(("127.0.0.1", free_udp_port()),))
    node, stranger = Udp(at).register(1), Udp(at)
    for size in (1, 2, 4, 5, 8, 9, 11, 1500, 60000):
        for kind in range(0, 256, 3):
            stranger.send(bytes([kind]) + bytes(size - 1))
        stranger.fence()
    node.fence()
    node.relay(1, 1, b"PILS")
    assert node.receive()[0] == wire.Deliver(1, b"PILS").build()
    assert beacon.stats()["bad"] > 100
    for udp in (node, stranger):
        udp.close()
