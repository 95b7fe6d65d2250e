"""Traversal on real sockets: data planes and a beacon on loopback, asyncio, wall-clock time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._core import EV_CONN_OPEN, DataPlane, Event, RelayLoop
from pilot.errors import PilotError
from pilot.traversal import Decision, NatType, Step, Traversal, TraversalConfig, controller
from pilot.traversal.address_book import AddressBook
from pilot.traversal.nat import show
from pilot.tunnel import key_life


class Identity:
    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class Registry:
    """The registry as traversal sees it: a table, counted, and switched off at will."""

    def __init__(self) -> None:
        self.keys: dict[int, bytes] = {}
        self.replies: dict[int, dict[str, Any]] = {}
        self.asked = 0
        self.up = True

    async def _ask(self, node: int) -> None:
        self.asked += 1
        await asyncio.sleep(0.001)
        if not self.up:
            raise PilotError("connection_failed", "registry is down", retryable=True)
        if node not in self.keys:
            raise PilotError("not_found", f"node {node} not found")

    async def lookup(self, node: int) -> dict[str, Any]:
        await self._ask(node)
        return {"node_id": node, "public_key": base64.b64encode(self.keys[node]).decode()}

    async def resolve(self, node: int) -> dict[str, Any]:
        await self._ask(node)
        return {"node_id": node, **self.replies.get(node, {})}


class Node:
    """One agent: data plane and traversal."""

    def __init__(
        self, number: int, registry: Registry, beacons: list[str], *, relay_only: bool = False
    ) -> None:
        self.number = number
        self.registry = registry
        self.plane = DataPlane(("127.0.0.1", 0))
        self.identity = Identity()
        self.decisions: list[Decision] = []
        self.events: list[Event] = []
        config = TraversalConfig(beacons=beacons, local_port=self.plane.local_addr[1], relay_only=relay_only)
        self.traversal = Traversal(self.plane, registry, self.identity, config)
        self.traversal.observers.append(self.decisions.append)

    async def start(self) -> None:
        self.plane.set_node(self.number)
        self.plane.start()
        asyncio.get_running_loop().add_reader(self.plane.event_fd, self._on_events)
        await self.traversal.start()
        self.traversal.set_node(self.number)
        self.registry.keys[self.number] = self.identity.public_key

    def _on_events(self) -> None:
        for event in self.plane.events():
            if not self.traversal.handle(event):
                self.events.append(event)

    async def stop(self) -> None:
        await self.traversal.stop()
        asyncio.get_running_loop().remove_reader(self.plane.event_fd)
        self.plane.stop()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits for a condition; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition of either side
            await asyncio.sleep(0.005)


class Net:
    def __init__(self) -> None:
        self.registry = Registry()
        self.beacon = RelayLoop(("127.0.0.1", 0))
        self.beacon.start()
        self.nodes: list[Node] = []

    async def node(self, number: int, *, published: bool = True, **options: Any) -> Node:
        node = Node(number, self.registry, [show(self.beacon.local_addr)], **options)
        await node.start()
        self.nodes.append(node)
        endpoint = await node.traversal.discover()
        assert endpoint == node.plane.local_addr
        await until(lambda: self.beacon.lookup(number))
        if published:
            self.registry.replies[number] = {"real_addr": show(endpoint)}
        for other in self.nodes[:-1]:
            other.plane.set_trusted(number, True)
            node.plane.set_trusted(other.number, True)
        return node

    async def close(self) -> None:
        for node in self.nodes:
            await node.stop()
        self.beacon.stop()


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    net = Net()
    try:
        yield net
    finally:
        await net.close()


async def test_connect_directly(net: Net) -> None:
    a, b = await net.node(1), await net.node(2)
    await a.traversal.connect(2, timeout=5.0)
    found = await a.traversal.settled(2)
    assert found["path"]["kind"] == "direct" and found["path"]["addr"] == show(b.plane.local_addr)
    assert found["session"] and found["proved"] and found["path"]["rtt_ms"] < 1000
    assert found["why"] and found["history"][-1]["text"].startswith("Connected directly (encrypted")
    assert [d.step for d in a.decisions] == [Step.CONNECTED]
    assert a.traversal.nat_type is NatType.OPEN
    b.plane.listen(7, 2)
    conn = a.plane.dial(2, 7)
    await until(lambda: any(e.type == EV_CONN_OPEN and e.conn == conn for e in a.events))


async def test_the_registrys_word_on_a_key_is_used_while_it_is_news(net: Net) -> None:
    a, b = await net.node(1), await net.node(2)
    told = base64.b64encode(b.traversal.announcement).decode()
    net.registry.replies[2]["tunnel_key"] = told
    a.traversal.pin(2, b.identity.public_key)
    await a.traversal.connect(2, timeout=5.0)
    assert a.traversal._exchange.stats.foretold == 1 and a.traversal._exchange.is_proved(2)
    book = AddressBook(net.registry, a.traversal._clock)
    assert (await book.addresses(2, [], None)).pila == b.traversal.announcement
    assert (await book.addresses(2, [], None)).pila == b"", "cached"
    for junk in ("", "?", told * 5, 7):
        net.registry.replies[2]["tunnel_key"] = junk
        assert (await book.addresses(2, [], None, fresh=True)).pila == b""


async def test_traffic_alone_brings_the_path(net: Net) -> None:
    """A dial without connect: the data plane asks, traversal answers."""
    a, b = await net.node(1), await net.node(2)
    b.plane.listen(7, 2)
    conn = a.plane.dial(2, 7)
    await until(lambda: any(e.type == EV_CONN_OPEN and e.conn == conn for e in a.events))


async def test_relay_when_one_side_is_relay_only(net: Net) -> None:
    a, _ = await net.node(1), await net.node(2, published=False, relay_only=True)
    net.registry.replies[2] = {"relay_only": True}
    await a.traversal.connect(2, timeout=5.0)
    found = await a.traversal.settled(2)
    assert found["path"]["kind"] == "relay" and found["path"]["addr"] == show(net.beacon.local_addr)
    assert [d.text.partition(" (")[0] for d in a.decisions][-2:] == [
        "Falling back to relay...",
        "Connected via relay",
    ]


async def test_unresolvable_private_peer_is_relayed(net: Net) -> None:
    """The registry gives the key but no address (no trust there): the beacon still connects the two."""
    a, _ = await net.node(1), await net.node(2, published=False)
    await a.traversal.connect(2, timeout=5.0)
    assert (await a.traversal.settled(2))["session"]


async def test_errors_of_connect(net: Net) -> None:
    a = await net.node(1)
    with pytest.raises(PilotError) as failed:
        await a.traversal.connect(1)
    assert failed.value.code == "invalid_argument"
    with pytest.raises(PilotError) as failed:
        await a.traversal.connect(99, timeout=0.5)
    assert failed.value.code == "not_found"
    net.registry.keys[3] = Identity().public_key
    net.registry.replies[3] = {"real_addr": "127.0.0.1:9"}
    with pytest.raises(PilotError) as failed:
        await a.traversal.connect(3, timeout=0.5)
    assert failed.value.code == "timeout" and failed.value.retryable


async def test_registry_outage_after_first_contact(net: Net) -> None:
    a, b = await net.node(1), await net.node(2)
    await a.traversal.connect(2, timeout=5.0)
    net.registry.up = False
    a.traversal.paths.forget(2)
    a.plane.set_trusted(2, True)
    await a.traversal.connect(2, timeout=5.0)
    assert (await a.traversal.settled(2))["path"]["kind"] == "direct"
    del b


async def test_forget(net: Net) -> None:
    a, _ = await net.node(1), await net.node(2)
    await a.traversal.connect(2, timeout=5.0)
    a.traversal.forget(2)
    assert a.traversal.describe(2)["phase"] == "idle"
    assert not (a.plane.peer_info(2) or {"session": False})["session"]
    await a.traversal.connect(2, timeout=5.0)


async def test_rotation(net: Net) -> None:
    a, b = await net.node(1), await net.node(2)
    await a.traversal.connect(2, timeout=5.0)
    before = a.plane.peer_info(2)["key_id"]
    assert a.traversal.rotate_keys() and not a.traversal.rotate_keys()
    await until(lambda: a.plane.peer_info(2)["key_id"] != before)
    await b.traversal.connect(1, timeout=5.0)


async def test_keys_are_retired_by_volume(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for it: the amount of traffic alone brings the peers to another key, and they go on talking."""
    monkeypatch.setattr(key_life, "MAX_BYTES", 100_000)
    monkeypatch.setattr(controller, "CHECK_EVERY_S", 0.05)
    a, b = await net.node(1), await net.node(2)
    await a.traversal.connect(2, timeout=5.0)
    before = a.plane.peer_info(2)["key_id"], b.plane.peer_info(1)["key_id"]
    for _ in range(100):
        a.plane.send_datagram(2, 9, bytes(1100))
    await until(lambda: a.plane.peer_info(2)["key_id"] != before[0] and b.plane.peer_info(1)["key_id"] != before[1])
    await b.traversal.connect(1, timeout=5.0)


async def test_beacon_by_name(net: Net) -> None:
    port = net.beacon.local_addr[1]
    node = Node(5, net.registry, [f"localhost:{port}", "nonexistent.invalid:9001"])
    net.nodes.append(node)
    await node.start()
    assert await node.traversal.discover() == node.plane.local_addr
    assert any(b["alive"] and b["rtt_ms"] is not None for b in node.traversal.beacons())


async def test_discover_without_an_answer(net: Net) -> None:
    node = Node(6, net.registry, ["127.0.0.1:9"])
    net.nodes.append(node)
    await node.start()
    assert await node.traversal.discover(timeout=0.3) is None
    assert node.traversal.endpoint is None


async def test_stop_ends_everything(net: Net) -> None:
    a = await net.node(1)
    net.registry.keys[3] = Identity().public_key
    waiting = asyncio.create_task(a.traversal.connect(3, timeout=30.0))
    await asyncio.sleep(0.05)
    await a.traversal.stop()
    with pytest.raises(PilotError) as failed:
        await waiting
    assert failed.value.code == "not_running"
    others = {t for t in asyncio.all_tasks() if t is not asyncio.current_task()}
    assert not [t for t in others if "traversal" in repr(t.get_coro())]


async def test_a_faulty_observer_harms_nobody(net: Net) -> None:
    a, _ = await net.node(1), await net.node(2)

    def fail(decision: Decision) -> None:
        raise RuntimeError("observer")

    a.traversal.observers.insert(0, fail)
    await a.traversal.connect(2, timeout=5.0)
    await until(lambda: [d.step for d in a.decisions] == [Step.CONNECTED])


# ---- the address book alone, on its own clock ----


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_book_caches_and_coalesces() -> None:
    registry, clock = Registry(), Clock()
    registry.keys[7] = bytes(range(32))
    book = AddressBook(registry, clock)
    keys = await asyncio.gather(*(book.public_key(7) for _ in range(20)))
    assert set(keys) == {bytes(range(32))} and registry.asked == 1
    clock.now += 59
    await book.public_key(7)
    assert registry.asked == 1
    clock.now += 2
    await book.public_key(7)
    assert registry.asked == 2
    await book.public_key(7, fresh=True)
    assert registry.asked == 3


async def test_book_survives_an_outage_for_an_hour() -> None:
    registry, clock = Registry(), Clock()
    registry.keys[7] = bytes(range(32))
    book = AddressBook(registry, clock)
    await book.public_key(7)
    registry.up = False
    clock.now += 3000
    assert await book.public_key(7) == bytes(range(32))
    asked = registry.asked
    await book.public_key(7)
    assert registry.asked == asked, "a registry that is down is not asked at every turn"
    clock.now += 700
    with pytest.raises(PilotError) as failed:
        await book.public_key(7)
    assert failed.value.code == "connection_failed"


async def test_book_believes_a_no() -> None:
    registry, clock = Registry(), Clock()
    registry.keys[7] = bytes(range(32))
    book = AddressBook(registry, clock)
    await book.public_key(7)
    del registry.keys[7]
    clock.now += 61
    for _ in range(2):
        with pytest.raises(PilotError) as failed:
            await book.public_key(7)
        assert failed.value.code == "not_found"
    assert registry.asked == 2
    registry.keys[7] = b"short"
    clock.now += 10
    with contextlib.suppress(PilotError):
        assert not await book.public_key(7)
