"""Two nodes come to trust each other, or do not: over streams, through the registry, across restarts."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memstream import FakeHub, Network

from pilot.errors import PilotError
from pilot.trust import HandshakeMachine, Policy, TrustService, TrustStore, courier, effects, relay, service
from pilot.trust.handshake import ACCEPT, REQUEST, REVOKE
from pilot.trust.message import HandshakeMessage

LIMIT_S = 10.0
NOW = 1_767_225_600


class Registry:
    """Inboxes and trust pairs. `down`: it does not answer. Keys of all nodes."""

    def __init__(self) -> None:
        self.keys: dict[int, bytes] = {}
        self.networks: dict[int, list[int]] = {}
        self.requests: dict[int, dict[int, dict[str, Any]]] = {}
        self.responses: dict[int, list[dict[str, Any]]] = {}
        self.pairs: set[frozenset[int]] = set()
        self.down = False
        self.twice = False  # hands out everything two times, as a registry may
        self.polls = 0
        self.clock = NOW


class RegistryClient:
    def __init__(self, registry: Registry, node: int) -> None:
        self.r, self.node = registry, node

    def _up(self) -> None:
        if self.r.down:
            raise PilotError("connection_failed", "registry unreachable", "", True)

    async def lookup(self, node: int) -> Mapping[str, Any]:
        self._up()
        if node not in self.r.keys:
            raise PilotError("not_found", "node not found")
        key = base64.b64encode(self.r.keys[node]).decode()
        return {"node_id": node, "public_key": key, "networks": self.r.networks.get(node, [0])}

    async def request_handshake(self, node: int, justification: str) -> Mapping[str, Any]:
        self._up()
        inbox = self.r.requests.setdefault(node, {})
        if self.node in inbox:
            raise PilotError("invalid_argument", f"handshake request already pending from node {self.node}")
        if node not in self.r.keys:
            raise PilotError("not_found", f"node {node} not found")
        self.r.clock += 1
        inbox[self.node] = {"from_node_id": self.node, "justification": justification, "timestamp": self.r.clock}
        return {"status": "delivered"}

    async def poll_handshakes(self) -> Mapping[str, Any]:
        self._up()
        self.r.polls += 1
        read: Callable[..., Any] = (lambda d, k, v: d.get(k, v)) if self.r.twice else (lambda d, k, v: d.pop(k, v))
        requests = list(read(self.r.requests, self.node, {}).values())
        return {"requests": requests, "responses": list(read(self.r.responses, self.node, []))}

    async def respond_handshake(self, node: int, accept: bool) -> Mapping[str, Any]:
        self._up()
        self.r.clock += 1
        row = {"from_node_id": self.node, "accept": accept, "timestamp": self.r.clock}
        self.r.responses.setdefault(node, []).append(row)
        if accept:
            self.r.pairs.add(frozenset((self.node, node)))
        return {}

    async def report_trust(self, node: int) -> Mapping[str, Any]:
        self._up()
        self.r.pairs.add(frozenset((self.node, node)))
        return {}

    async def revoke_trust(self, node: int) -> Mapping[str, Any]:
        self._up()
        if frozenset((self.node, node)) not in self.r.pairs:
            raise PilotError("not_found", "no such pair")
        self.r.pairs.discard(frozenset((self.node, node)))
        return {}


class Side:
    """Data plane and paths, as far as trust touches them."""

    def __init__(self) -> None:
        self.trusted: set[int] = set()
        self.pins: dict[int, bytes] = {}
        self.log: list[tuple[str, int]] = []

    def set_trusted(self, node: int, trusted: bool) -> None:
        (self.trusted.add if trusted else self.trusted.discard)(node)

    def forget_peer(self, node: int) -> None:
        self.log.append(("forget_peer", node))

    def pin(self, node: int, key: bytes | None) -> None:
        if key is None:
            self.pins.pop(node, None)
        else:
            self.pins[node] = key

    def forget(self, node: int) -> None:
        self.log.append(("forget", node))


class Node:
    def __init__(self, world: World, number: int, policy: Policy, path: Path | None) -> None:
        self.world, self.number = world, number
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        self.public = self.key.public_key().public_bytes_raw()
        self.side = Side()
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.hub = FakeHub(world.net, number)
        world.registry.keys[number] = self.public
        self.trust = TrustService(
            HandshakeMachine(TrustStore.load(path), policy),
            public_key=self.public,
            sign=self.key.sign,
            hub=self.hub,  # type: ignore[arg-type]
            registry=RegistryClient(world.registry, number),
            plane=self.side,
            paths=self.side,
            emit=lambda event, data: self.events.append((event, data)),
            now=lambda: world.now,
        )
        self.trust.start(number)

    def trusts(self, other: Node) -> bool:
        """On the data plane, which is never open to a peer that is not in the store."""
        there = other.number in self.side.trusted
        assert self.trust.store.is_trusted(other.number) or not there
        return there

    async def raw(self, to: Node, data: bytes) -> None:
        """A message as a peer may craft it."""
        stream = await self.hub.dial(to.number, courier.PORT)
        await stream.write(data)
        stream.close()
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*self.world.net.tasks)

    def message(self, kind: str, to: Node, **fields: Any) -> bytes:
        made = HandshakeMessage.build(
            kind, self.number, to.number, self.public, self.key.sign, timestamp=int(self.world.now), **fields
        )
        return made.encode()


class World:
    def __init__(self) -> None:
        self.net = Network()
        self.registry = Registry()
        self.now = float(NOW)
        self.nodes: list[Node] = []

    def node(self, number: int, policy: Policy | None = None, path: Path | None = None) -> Node:
        self.nodes.append(Node(self, number, policy or Policy(), path))
        return self.nodes[-1]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - whatever it is, it is soon
            await asyncio.sleep(0.002)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    for module, name, value in (
        (courier, "HEAD_START_S", 0.05),
        (service, "WAIT_POLL_S", 0.02),
        (effects, "RETRY_S", (0.01, 0.02, 0.05)),
        (relay, "FAST_S", 0.02),
    ):
        monkeypatch.setattr(module, name, value)
    w = World()
    yield w
    for node in w.nodes:
        await node.trust.close()


async def test_ask_and_approve(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    assert await ann.trust.send(2, "work on the model") == "sent"
    await until(lambda: 1 in bob.trust.store.pending)
    (request,) = await bob.trust.pending()
    assert (request.node_id, request.justification, request.public_key) == (1, "work on the model", ann.public)
    assert not ann.trusts(bob) and not bob.trusts(ann)
    await bob.trust.approve(1)
    assert bob.trusts(ann) and bob.side.pins == {1: ann.public}
    await until(lambda: ann.trusts(bob))
    assert ann.side.pins == {2: bob.public}
    await until(lambda: world.registry.pairs == {frozenset((1, 2))})
    assert [e for e, _ in bob.events] == [
        "handshake.received", "handshake.pending", "handshake.approved", "trust.changed",
    ]  # fmt: skip
    assert [p.node_id for p in await ann.trust.trusted()] == [2]
    assert await ann.trust.send(2, "again") == "sent"  # nothing left to ask for


async def test_reject(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await bob.trust.reject(1, "not now")
    await until(lambda: 2 not in ann.trust.store.requested)
    assert not ann.trusts(bob) and not bob.trusts(ann) and not bob.trust.store.pending
    await bob.trust.approve(1)  # too late: without effect
    assert not bob.trusts(ann)


async def test_both_ask_at_once(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    assert await asyncio.gather(ann.trust.send(2), bob.trust.send(1)) == ["sent", "sent"]
    await until(lambda: ann.trusts(bob) and bob.trusts(ann))


async def test_both_ask_at_once_through_the_registry(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    world.net.down = {1, 2}
    await asyncio.gather(ann.trust.send(2), bob.trust.send(1))
    await until(lambda: ann.trusts(bob) and bob.trusts(ann))
    await until(lambda: ann.side.pins == {2: bob.public} and bob.side.pins == {1: ann.public})


@pytest.mark.parametrize("twice", [False, True])
async def test_through_the_registry(world: World, twice: bool) -> None:
    ann, bob = world.node(1), world.node(2)
    world.net.down, world.registry.twice = {2}, twice
    assert await ann.trust.send(2, "hello") == "sent"
    (request,) = await bob.trust.pending()  # fetched because the user looks
    assert (request.node_id, request.justification, request.public_key) == (1, "hello", b"")
    await bob.trust.approve(1)
    await until(lambda: ann.trusts(bob))
    # The keys, which the registry's relay does not carry, are found and pinned.
    await until(lambda: ann.side.pins == {2: bob.public} and bob.side.pins == {1: ann.public})
    assert await bob.trust.pending() == []


async def test_a_rejected_request_that_is_handed_out_twice_stays_rejected(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    world.net.down, world.registry.twice = {2}, True
    await ann.trust.send(2)
    await bob.trust.pending()
    await bob.trust.reject(1)
    assert await bob.trust.pending() == []
    await until(lambda: not ann.trust.store.requested)
    world.registry.requests.clear()
    await ann.trust.send(2, "please")  # a new request is a new request
    assert [p.justification for p in await bob.trust.pending()] == ["please"]


async def test_approve_fetches_the_request_by_itself(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    world.net.down = {2}
    await ann.trust.send(2)
    await bob.trust.approve(1)
    assert bob.trusts(ann)


async def test_neither_way_works(world: World) -> None:
    ann = world.node(1)
    with pytest.raises(PilotError, match="handshake relay: node 9 not found"):
        await ann.trust.send(9)
    assert ann.trust.store.requested == {}  # it would make a stranger's later request mutual
    world.registry.down = True
    with pytest.raises(PilotError, match="handshake relay: registry unreachable") as failure:
        await ann.trust.send(2)
    assert failure.value.retryable
    with pytest.raises(PilotError, match="own trust"):
        await ann.trust.send(1)


async def test_a_registry_outage_does_not_stop_two_nodes_that_reach_each_other(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    ann.trust.store.requested[2] = bob.trust.store.requested[1] = NOW
    world.registry.down = True
    await ann.raw(bob, ann.message(REQUEST, bob))
    assert not bob.trusts(ann)  # nobody vouches for the key
    world.registry.down = False
    await ann.raw(bob, ann.message(REQUEST, bob, justification="again"))
    assert bob.trusts(ann)
    await until(lambda: ann.trusts(bob))


async def test_a_second_request_while_the_first_lies_in_the_inbox(world: World) -> None:
    ann = world.node(1)
    world.registry.keys[2] = bytes(32)
    assert await ann.trust.send(2) == "sent"
    assert await ann.trust.send(2) == "sent"
    assert 2 in ann.trust.store.requested


async def test_a_request_soon_after_another_goes_through_the_registry_too(world: World) -> None:
    """Published daemons take a second direct request within ten minutes for a replay."""
    ann, bob = world.node(1), world.node(2)
    await ann.trust.send(2, "first")
    await until(lambda: 1 in bob.trust.store.pending)
    assert not world.registry.requests
    await bob.trust.reject(1)
    await until(lambda: 2 not in ann.trust.store.requested)
    await ann.trust.send(2, "second")
    assert world.registry.requests[2][1]["justification"] == "second"


async def test_a_change_of_mind_does_not_wait_for_the_first_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rejection cannot be delivered directly and keeps trying; the approval after it is at the registry at once."""
    ann, bob = world.node(1), world.node(2)

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(LIMIT_S * 2)

    monkeypatch.setattr(bob.hub, "dial", never)
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await bob.trust.reject(1)
    await until(lambda: 2 not in ann.trust.store.requested)  # told by the registry
    assert list(bob.trust._effects._answering) == [1]
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await bob.trust.approve(1)
    await until(lambda: ann.trusts(bob))


async def test_a_restart_does_not_forget_what_was_said(world: World, tmp_path: Path) -> None:
    """Neither do the peers: the second request is a replay to them, though another process made it."""
    ann, bob = world.node(1, path=tmp_path / "trust.json"), world.node(2)
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await bob.trust.reject(1)
    await until(lambda: 2 not in ann.trust.store.requested)
    await ann.trust.close()
    world.nodes.remove(ann)
    await world.node(1, path=tmp_path / "trust.json").trust.send(2, "again")
    assert world.registry.requests[2][1]["justification"] == "again"


async def test_an_accept_soon_after_another_goes_through_the_registry_too(world: World) -> None:
    """Published daemons take a second accept within ten minutes for a replay; a request of the node that they ask is consent."""
    ann, bob = world.node(1), world.node(2)
    await befriend(ann, bob)
    assert not world.registry.requests
    await bob.trust.revoke(1)
    await until(lambda: not ann.trusts(bob))
    ann.hub.unlisten(courier.PORT)  # the direct accept is lost on it
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await bob.trust.approve(1)
    await until(lambda: 2 in world.registry.requests.get(1, {}))
    assert [p.node_id for p in await ann.trust.trusted()] == [2]


async def test_a_new_key_reaches_the_peers(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await befriend(ann, bob)
    ann.key = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    ann.trust._courier._sign = ann.key.sign  # the identity is one object that becomes another
    world.registry.keys[1] = ann.key.public_key().public_bytes_raw()
    ann.trust.set_public_key(world.registry.keys[1])
    await ann.trust.announce_key([2, 5])
    await until(lambda: bob.side.pins.get(1) == world.registry.keys[1])
    assert bob.trusts(ann)


async def test_the_same_call_twice(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    first = asyncio.ensure_future(ann.trust.send(2))
    await asyncio.sleep(0)
    assert await ann.trust.send(2) == "in_flight"
    assert await first == "sent"
    await until(lambda: 1 in bob.trust.store.pending)


async def test_a_request_goes_on_when_the_caller_is_gone(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    call = asyncio.ensure_future(ann.trust.send(2))
    await asyncio.sleep(0)
    call.cancel()
    await until(lambda: 1 in bob.trust.store.pending)
    assert 2 in ann.trust.store.requested


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_wrong_clock_is_named(world: World, caplog: pytest.LogCaptureFixture, hours: int) -> None:
    """Nothing comes of the request, so the operator must learn why; not once a message."""
    ann, bob = world.node(1), world.node(2)
    world.now += hours * 3600
    stale = [ann.message(REQUEST, bob, justification=str(i)) for i in range(3)]
    world.now -= hours * 3600
    for data in stale:
        await ann.raw(bob, data)
    assert not bob.trust.store.pending
    (told,) = [r for r in caplog.records if "clock" in r.message]
    assert (told.peer, told.ahead_s) == (1, hours * 3600)  # type: ignore[attr-defined]
    await ann.raw(bob, stale[0].replace(b'"node_id":1', b'"node_id":3'))
    await ann.raw(bob, b"{}")
    assert len([r for r in caplog.records if "clock" in r.message]) == 1


async def befriend(ann: Node, bob: Node) -> None:
    await asyncio.gather(ann.trust.send(bob.number), bob.trust.send(ann.number))
    await until(lambda: ann.trusts(bob) and bob.trusts(ann))


async def test_revoke(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await befriend(ann, bob)
    await until(lambda: not ann.trust._effects._last and not bob.trust._effects._last)
    await ann.trust.revoke(2)
    assert not ann.trusts(bob) and ann.side.pins == {}  # at once, whatever the network does
    await until(lambda: not bob.trusts(ann) and bob.side.pins == {})
    await until(lambda: ann.side.log == [("forget", 2), ("forget_peer", 2)])
    await until(lambda: bob.side.log == [("forget", 1), ("forget_peer", 1)])
    await until(lambda: world.registry.pairs == set())
    assert ("trust.revoked_by_peer", {"peer_node_id": 1}) in bob.events
    with pytest.raises(PilotError, match="node 2 was not trusted"):
        await ann.trust.revoke(2)


async def test_revoke_of_a_peer_that_is_away(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await befriend(ann, bob)
    world.net.down = {2}
    world.registry.down = True
    await ann.trust.revoke(2)
    assert not ann.trusts(bob)
    await until(lambda: ("forget_peer", 2) in ann.side.log)  # waits for neither peer nor registry
    world.registry.down = False
    await until(lambda: world.registry.pairs == set())


async def test_trust_given_again_during_a_revocation_stays(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await befriend(ann, bob)
    await until(lambda: not ann.trust._effects._last)
    world.net.down = {2}
    dials = len(world.net.dials)
    await ann.trust.revoke(2)
    await until(lambda: len(world.net.dials) > dials)  # the notice is lost
    world.net.down = set()
    await ann.trust.send(2)
    await until(lambda: ann.trusts(bob))
    await until(lambda: not ann.trust._effects._last)
    assert ann.trusts(bob)


async def test_replayed_and_foreign_messages(world: World) -> None:
    ann, bob, eve = world.node(1), world.node(2), world.node(3)
    await befriend(ann, bob)
    old = ann.message(REVOKE, bob, reason="trust revoked")
    await eve.raw(bob, old)  # captured, sent from another node
    assert bob.trusts(ann)
    forged = HandshakeMessage.build(REVOKE, 1, 2, eve.public, eve.key.sign, timestamp=NOW).encode()
    await ann.raw(bob, forged)  # the right node, another key
    assert bob.trusts(ann)
    await ann.raw(bob, old)
    assert not bob.trusts(ann)
    await befriend(ann, bob)
    await ann.raw(bob, old)
    assert bob.trusts(ann)
    assert bob.trust.machine.stats.dropped == {"wrong_node": 1, "key_mismatch": 1, "replay": 1}


async def test_an_accept_nobody_asked_for(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await ann.raw(bob, ann.message(ACCEPT, bob))
    await RegistryClient(world.registry, 1).respond_handshake(2, True)
    assert await bob.trust.trusted() == []
    assert not bob.trusts(ann)


@pytest.mark.parametrize("data", [b"", b"{}", b"}" * 9, b"[" * 70000, b"\xff" * 70000, b'{"type":"handshake_request"'])
async def test_garbage(world: World, data: bytes) -> None:
    ann, bob = world.node(1), world.node(2)
    stream = await ann.hub.dial(2, courier.PORT)
    await stream.write(data)
    stream.close()
    await until(lambda: sum(bob.trust.machine.stats.dropped.values()) == 1)
    await befriend(ann, bob)


async def test_one_stranger_with_many_silent_streams_does_not_close_the_port(world: World) -> None:
    ann, bob, eve = world.node(1), world.node(2), world.node(3)
    for _ in range(service.MAX_OPEN + 8):
        await (await eve.hub.dial(2, courier.PORT)).write(b"{")
    await (await ann.hub.dial(2, courier.PORT)).write(ann.message(REQUEST, bob))
    await until(lambda: 1 in bob.trust.store.pending)


async def test_a_message_in_pieces_and_one_that_never_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "RECEIVE_S", 0.1)
    ann, bob = world.node(1), world.node(2)
    data = ann.message(REQUEST, bob, justification="{nested} braces}")
    stream = await ann.hub.dial(2, courier.PORT)
    for at in range(0, len(data), 17):
        await stream.write(data[at : at + 17])
        await asyncio.sleep(0)
    await until(lambda: 1 in bob.trust.store.pending)  # before the sender ends the stream
    slow = await ann.hub.dial(2, courier.PORT)
    await slow.write(data[:50])
    with pytest.raises(ConnectionResetError):
        await slow.read()


async def test_messages_fit_one_segment(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    await ann.trust.send(2, "<&>" * 1000)
    await until(lambda: 1 in bob.trust.store.pending)
    assert set(bob.trust.store.pending[1].justification) == set("<&>")
    data = courier.Courier(ann.hub, lambda: 1, ann.public, ann.key.sign, lambda: NOW, OrderedDict()).message(  # type: ignore[arg-type]
        2, REQUEST, justification="<" * 5000, reason="&" * 5000
    )
    assert len(data) < 4096 and json.loads(data)["node_id"] == 1


async def test_wait(world: World) -> None:
    ann, bob = world.node(1), world.node(2)
    assert await ann.trust.wait(1, 0)  # oneself
    assert not await ann.trust.wait(2, 0)
    assert not await ann.trust.wait(2, 0.05)
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    waiting = [asyncio.ensure_future(ann.trust.wait(2, 30)) for _ in range(3)]
    await asyncio.sleep(0.01)
    await bob.trust.approve(1)
    async with asyncio.timeout(LIMIT_S):
        assert await asyncio.gather(*waiting) == [True, True, True]
    assert ann.trust._waiting == {}
    world.registry.down = True
    assert await ann.trust.wait(2, 0) and not await ann.trust.wait(7, 0.05)


async def test_restart_in_the_middle(world: World, tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    ann, bob = world.node(1, path=path), world.node(2)
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await ann.trust.close()
    await bob.trust.approve(1)  # the accept does not reach her; the registry keeps it
    await until(lambda: bool(world.registry.responses.get(1)))
    ann = world.node(1, path=path)
    await until(lambda: ann.trusts(bob))
    await until(lambda: ann.side.pins == {2: bob.public})
    await until(lambda: "trusted" in path.read_text() and '"requested"' not in path.read_text())
    await ann.trust.close()
    ann = world.node(1, path=path)  # trust and pins are applied before anything else happens
    assert ann.trusts(bob) and ann.side.pins == {2: bob.public}
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_is_told_is_on_disk(world: World, tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    ann, bob = world.node(1), world.node(2, path=path)
    await ann.trust.send(2)
    await until(lambda: 1 in bob.trust.store.pending)
    await bob.trust.approve(1)
    rows = json.loads(path.read_text())["trusted"]
    assert [(row["node_id"], row["mutual"]) for row in rows] == [(1, False)]
    await bob.trust.revoke(1)
    assert json.loads(path.read_text())["trusted"] is None


async def test_a_disk_that_fails_costs_no_trust(world: World, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    ann, bob = world.node(1), world.node(2, path=blocked / "trust.json")
    await befriend(ann, bob)
    blocked.unlink()
    await bob.trust.revoke(1)
    assert json.loads((blocked / "trust.json").read_text())["trusted"] is None


async def test_policies(world: World) -> None:
    ann = world.node(1)
    eager, club, shy = world.node(2, Policy(auto_approve=True)), world.node(3, Policy(same_network=True)), world.node(4)
    world.registry.networks = {1: [0, 5, 7], 3: [0, 7, 9], 4: [0, 7]}
    for other in (eager, club):
        await ann.trust.send(other.number)
        await until(lambda other=other: ann.trusts(other))  # type: ignore[misc]
    assert club.trust.store.trusted[1].network == 7 and eager.trust.store.trusted[1].network == 0
    await ann.trust.send(4)
    await until(lambda: 1 in shy.trust.store.pending)
    world.net.down = {3}
    far = world.node(6)
    world.registry.networks[6] = [9]
    await far.trust.send(3)
    await club.trust.pending()
    await until(lambda: far.trusts(club))


async def test_notify_is_limited(world: World) -> None:
    ann = world.node(1)
    await until(lambda: world.registry.polls == 1)  # after the start
    for _ in range(50):
        ann.trust.notify()
        await asyncio.sleep(0.001)
    assert world.registry.polls == 2


def test_notify_bucket() -> None:
    limit = relay.NotifyLimit()
    taken = [t for t in range(40) if limit.allows(float(t))]
    assert taken[:3] == [0, 2, 4] and all(b - a >= 2 for a, b in itertools.pairwise(taken))
    assert len(taken) <= 3 + 40 / 5


async def test_polls_often_only_while_an_answer_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = world.node(1)
    world.registry.keys[2] = bytes(32)
    await until(lambda: world.registry.polls == 1)
    await asyncio.sleep(0.1)
    assert world.registry.polls == 1
    await ann.trust.send(2)
    await until(lambda: world.registry.polls >= 4)
    await RegistryClient(world.registry, 2).respond_handshake(1, False)
    await until(lambda: not ann.trust.store.requested)
    polls = world.registry.polls
    await asyncio.sleep(0.1)
    assert world.registry.polls <= polls + 1


@pytest.mark.parametrize("reply", [
    {}, {"requests": None}, {"requests": "x", "responses": 7}, {"requests": [1, None, {}, {"from_node_id": "2"}]},
    {"requests": [{"from_node_id": True}, {"from_node_id": -1}, {"from_node_id": 1 << 32}]},
    {"responses": [{"from_node_id": 2}, {"from_node_id": 2, "accept": "yes"}, {"from_node_id": 2, "accept": 1}]},
])  # fmt: skip
def test_malformed_inboxes_are_empty(reply: dict[str, Any]) -> None:
    assert relay.read_reply(reply) == []


async def test_pending_is_bounded_whatever_the_registry_hands_out(world: World) -> None:
    bob = world.node(2)
    rows = {n: {"from_node_id": n, "justification": "x" * 5000, "timestamp": 1} for n in range(10, 5000)}
    world.registry.requests[2] = rows
    assert len(await bob.trust.pending()) == 256
    assert all(len(p.justification) <= 1024 for p in bob.trust.store.pending.values())
