"""A whole network on virtual time: real engines, the real key exchange and path machines, simulated NATs,
links, beacons, registry.

One seed decides everything; a failing test prints it and replays.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from simnat import KINDS, SECOND, Addr, Nat

from pilot._core import (
    CAP_NOCRC,
    CAP_STREAM_OPTS,
    EV_ACCEPT,
    EV_CONN_CLOSED,
    EV_CONN_FAILED,
    EV_CONN_OPEN,
    EV_READABLE,
    EV_WRITABLE,
    OWNER_APP,
    Engine,
    Event,
)
from pilot.traversal.decisions import Decision
from pilot.traversal.discovery import Discovery, DiscoveryAction, EndpointChanged
from pilot.traversal.path import PathMachine
from pilot.traversal.peer_paths import Addresses, PeerPaths
from pilot.tunnel.exchange import KeyExchange
from pilot.wire.frames import Capabilities

CAPS = Capabilities(features=CAP_NOCRC | CAP_STREAM_OPTS, max_segment=8192, reorder_segments=65536)
PORT = 1001


@dataclass(slots=True)
class Link:
    """One-way properties of a host's access link."""

    delay_s: float = 0.010
    jitter_s: float = 0.0
    loss: float = 0.0


class SimIdentity:
    """A deterministic Ed25519 identity."""

    def __init__(self, seed: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed.encode()).digest())

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class SimBeacon:
    """Discover, punch, relay and forwarding between beacons that know each other's nodes."""

    def __init__(self, world: World, addr: Addr) -> None:
        self.world = world
        self.addr = addr
        self.up = True
        self.table: dict[int, Addr] = {}
        self.relayed = 0
        self.punches = 0

    def restart(self) -> None:
        self.table.clear()

    def input(self, data: bytes, src: Addr) -> None:
        if not self.up:
            return
        kind = data[0]
        if kind == 1:
            node = struct.unpack(">I", data[1:5])[0]
            if node:
                self._bind(node, src)
            self.world.send_from(self.addr, wire_endpoint(2, src), src)
        elif kind == 3:
            own, target = struct.unpack(">II", data[1:9])
            known = self.table.get(own) == src
            if self._bind(own, src) and known and target in self.table:
                self.punches += 1
                self.world.send_from(self.addr, wire_endpoint(4, self.table[target]), src)
                self.world.send_from(self.addr, wire_endpoint(4, src), self.table[target])
        elif kind == 5:
            own, target = struct.unpack(">II", data[1:9])
            other_beacon = any(src == b.addr for b in self.world.beacons.values())
            if not other_beacon and self.table.setdefault(own, src) != src:
                return
            if target in self.table:
                self.relayed += 1
                frame = b"\x06" + struct.pack(">I", own) + data[9:]
                self.world.send_from(self.addr, frame, self.table[target])
            elif not other_beacon:
                for other in self.world.beacons.values():
                    if other is not self and other.up and target in other.table:
                        self.world.send_from(self.addr, data, other.addr)
                        return


    def _bind(self, node: int, src: Addr) -> bool:
        """Another host takes over a number only with the registry's word."""
        held = self.table.get(node)
        if held and held[0] != src[0] and self.world.registered_ip(node) != src[0]:
            return False
        self.table[node] = src
        return True


def wire_endpoint(kind: int, addr: Addr) -> bytes:
    ip = bytes(int(x) for x in addr[0].split("."))
    return bytes([kind, 4]) + ip + struct.pack(">H", addr[1])


@dataclass(slots=True)
class Inbox:
    """What a node's application received on one connection."""

    node: int
    data: bytearray = field(default_factory=bytearray)
    at_ns: list[int] = field(default_factory=list)


class SimNode:
    """One node: engine and PeerPaths, driven in virtual time, and a small application."""

    def __init__(
        self, world: World, number: int, inside: Addr, nat: Nat | None, beacons: list[Addr], hidden: bool
    ) -> None:
        self.world = world
        self.number = number
        self.inside = inside
        self.nat = nat
        self.link = Link()
        self.hidden = hidden
        self.beacons = beacons
        self.trusts_all = True
        self.identity = SimIdentity(f"{world.seed}:{number}")
        self.lan: tuple[Addr, ...] = ()
        self.starts = 0
        self.up = False
        self.decisions: list[Decision] = []
        self.inboxes: dict[int, Inbox] = {}
        self.outboxes: dict[int, bytes] = {}
        self.open: set[int] = set()
        self.failed: set[int] = set()
        self.closed: set[int] = set()
        self.start()

    def start(self) -> None:
        """A new process: nothing is remembered but the identity."""
        self.starts += 1
        self.up = True
        world = self.world
        seed = hashlib.sha256(f"{world.seed}:{self.number}:{self.starts}".encode()).digest()
        rng = random.Random(seed)
        self.engine = Engine(seed=seed, now_ns=world.now_ns)
        self.engine.set_node(self.number)
        self.engine.listen(PORT, OWNER_APP)
        exchange = KeyExchange(self.identity, caps=CAPS, random=rng.randbytes, last_heard=self._last_heard)
        discovery = Discovery()
        self.paths = PeerPaths(
            self.engine,
            self,
            exchange,
            discovery,
            tell=self.decisions.append,
            discovered=self._discovered,
            hidden=self.hidden,
        )
        discovery.set_local([self.inside[0]], self.inside[1])
        self.paths.set_node(self.number, world.now)
        self.paths.set_beacons(self.beacons, world.now)
        self.inboxes.clear()
        self.outboxes.clear()
        self.open.clear()

    def stop(self) -> None:
        self.up = False

    @property
    def outside_ip(self) -> str:
        nat = self.nat
        while nat and nat.outer:
            nat = nat.outer
        return nat.ip if nat else self.inside[0]

    def trust(self, other: SimNode) -> None:
        self.engine.set_trusted(other.number, True)

    def machine(self, other: SimNode) -> PathMachine:
        machine = self.paths.machine(other.number)
        assert machine
        return machine

    # ---- application ----

    def dial(self, other: SimNode, timeout: float = 30.0) -> int:
        return self.engine.dial(other.number, PORT, timeout=timeout)

    def send(self, conn: int, data: bytes) -> None:
        self.outboxes[conn] = self.outboxes.get(conn, b"") + data
        self._write(conn)

    def _write(self, conn: int) -> None:
        data = self.outboxes.get(conn, b"")
        if data:
            self.outboxes[conn] = data[self.engine.write(conn, data) :]

    def received(self, other: SimNode) -> bytes:
        """Everything the application got from a peer, in order of arrival."""
        return b"".join(bytes(i.data) for i in self.inboxes.values() if i.node == other.number)

    # ---- driving ----

    def deadline_ns(self) -> int | None:
        times = []
        if (engine := self.engine.deadline()) is not None:
            times.append(engine)
        if (paths := self.paths.deadline()) is not None:
            times.append(math.ceil(max(paths, 0.0) * SECOND) + 1)  # not before it, whatever the rounding
        return min(times, default=None)

    def input(self, data: bytes, src: Addr) -> None:
        self.engine.input(data, src, self.world.now_ns)

    def pump(self) -> None:
        """Everything this node has to do at this instant."""
        now = self.world.now
        self.engine.flush(self.world.now_ns)
        for _ in range(1000):
            due = self.paths.deadline()
            if due is not None and due <= now:
                self.paths.tick(now)
            self.engine.flush(self.world.now_ns)
            out = self.engine.output()
            for data, dst in out:
                self.world.send(self, data, dst)
            events = self.engine.events()
            for event in events:
                if not self.paths.handle(event, now):
                    self._on_event(event)
            due = self.paths.deadline()
            if not events and not out and not (due is not None and due <= now):
                self._check()
                return
        raise AssertionError(f"node {self.number} does not come to rest (seed {self.world.seed})")

    def _check(self) -> None:
        """The data plane sends where the machine says, whenever that has an opinion."""
        for node in self.paths.nodes():
            machine = self.paths.machine(node)
            info = self.engine.peer_info(node)
            if machine and machine.session and machine.active and info:
                assert (info["path"], info["relay"]) == (machine.active.addr, machine.active.relay)

    def _on_event(self, event: Event) -> None:
        conn = event.conn
        if event.type == EV_ACCEPT:
            self.engine.own(conn, OWNER_APP)
            self.inboxes[conn] = Inbox(event.node)
            self._read(conn)
        elif event.type == EV_CONN_OPEN:
            self.engine.own(conn, OWNER_APP)
            self.open.add(conn)
            self.inboxes.setdefault(conn, Inbox(event.node))
        elif event.type == EV_READABLE:
            self._read(conn)
        elif event.type == EV_WRITABLE:
            self._write(conn)
        elif event.type == EV_CONN_FAILED:
            self.failed.add(conn)
        elif event.type == EV_CONN_CLOSED:
            self.closed.add(conn)

    def _read(self, conn: int) -> None:
        inbox = self.inboxes.get(conn)
        while inbox and (chunk := self.engine.read(conn)):
            inbox.data += chunk
            inbox.at_ns.append(self.world.now_ns)

    # ---- what the machines ask for ----

    def ask_key(self, node: int, fresh: bool) -> None:
        self.world.ask_registry(
            self,
            lambda: self.world.registry_key(node),
            lambda key: self.paths.key_answer(node, key, self.world.now),
        )

    def ask_addresses(self, node: int, fresh: bool) -> None:
        self.world.ask_registry(
            self,
            lambda: self.world.registry_addresses(self, node),
            lambda found: self.paths.addresses_answer(node, found, self.world.now),
        )

    def _discovered(self, action: DiscoveryAction) -> None:
        if isinstance(action, EndpointChanged):
            self.world.ask_registry(self, lambda: self.world.register(self, action.new), self._registered)

    def _registered(self, _: object) -> None:
        self.paths.set_node(self.number, self.world.now)

    def _last_heard(self, node: int) -> float | None:
        info = self.engine.peer_info(node)
        return info["last_recv_ns"] / SECOND if info and info["last_recv_ns"] else None


class World:
    """Time, packets, and everybody in the network."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now_ns = 100 * SECOND
        self.nodes: dict[int, SimNode] = {}
        self.beacons: dict[Addr, SimBeacon] = {}
        self.nats: dict[str, Nat] = {}
        self.block: Callable[[Addr, Addr, bytes], bool] | None = None  # outside addresses; True = dropped
        self.registry_up = True
        self.registry_delay_s = 0.010
        self.sent = 0
        self._endpoints: dict[int, Addr] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    @property
    def now(self) -> float:
        return self.now_ns / SECOND

    # ---- building ----

    def beacon(self, ip: str = "198.51.100.1") -> SimBeacon:
        beacon = SimBeacon(self, (ip, 9001))
        self.beacons[beacon.addr] = beacon
        return beacon

    def router(self, ip: str, kind: str, **options: object) -> Nat | None:
        traits = KINDS[kind]
        if traits is None:
            return None
        nat = Nat(ip, *traits, rng=self.rng, **options)  # type: ignore[arg-type]
        self.nats[ip] = nat
        return nat

    def node(
        self,
        number: int,
        inside: str,
        nat: Nat | None = None,
        *,
        beacons: list[SimBeacon] | None = None,
        hidden: bool = False,
    ) -> SimNode:
        use = beacons if beacons is not None else list(self.beacons.values())
        node = SimNode(self, number, (inside, 4000), nat, [b.addr for b in use], hidden)
        self.nodes[number] = node
        return node

    def pair(self, a_kind: str, b_kind: str, **options: object) -> tuple[SimNode, SimNode]:
        """Two nodes that trust each other, each behind a router of its kind, and one beacon."""
        self.beacon()
        a = self._site(1, a_kind, **options)
        b = self._site(2, b_kind, **options)
        a.trust(b)
        b.trust(a)
        return a, b

    def _site(self, n: int, kind: str, **options: object) -> SimNode:
        if kind == "none":
            return self.node(n, f"203.0.113.{n}")
        if kind == "double":
            outer = self.router(f"203.0.113.{n}", "port_restricted", **options)
            inner = self.router(f"100.64.{n}.2", "port_restricted", outer=outer, **options)
            return self.node(n, f"192.168.{n}.2", inner)
        return self.node(n, f"192.168.{n}.2", self.router(f"203.0.113.{n}", kind, **options))

    # ---- packets ----

    def at(self, when_ns: int, what: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._queue, (max(when_ns, self.now_ns), self._serial, what))

    def send(self, node: SimNode, data: bytes, dst: Addr) -> None:
        """A datagram leaves a node: through its routers, then over the link."""
        if not node.up:
            return
        self.sent += 1
        lan = self._lan_neighbour(node, dst)
        if lan:
            self.at(self.now_ns + SECOND // 5000, lambda: self._arrive(lan, data, node.inside))
            return
        src, nat = node.inside, node.nat
        passed: list[Nat] = []
        while nat:
            if nat.ip == dst[0] and not nat.hairpin:
                return  # toward the router's own outside: needs hairpinning
            src = nat.outbound(src, dst, self.now_ns)
            passed.append(nat)
            nat = nat.outer
        if self.rng.random() < node.link.loss:
            return
        self._route(src, dst, data, self._delay(node.link))

    def send_from(self, src: Addr, data: bytes, dst: Addr) -> None:
        """A datagram of a beacon."""
        self._route(src, dst, data, 0.0005)

    def _route(self, src: Addr, dst: Addr, data: bytes, delay_s: float) -> None:
        if self.block and self.block(src, dst, data):
            return
        self.at(self.now_ns + int(delay_s * SECOND), lambda: self._inbound(src, dst, data))

    def _inbound(self, src: Addr, dst: Addr, data: bytes) -> None:
        beacon = self.beacons.get(dst)
        if beacon:
            beacon.input(data, src)
            return
        link = next((n.link for n in self.nodes.values() if n.outside_ip == dst[0]), None)
        if link and self.rng.random() >= link.loss:
            self.at(self.now_ns + int(self._delay(link) * SECOND), lambda: self._enter(src, dst, data))

    def _enter(self, src: Addr, dst: Addr, data: bytes) -> None:
        """A datagram has come over the link to the outermost router, or to a host without one."""
        target: Addr | None = dst
        while target and target[0] in self.nats:
            target = self.nats[target[0]].inbound(src, target[1], self.now_ns)
        node = next((n for n in self.nodes.values() if n.inside == target), None) if target else None
        if node and (node.nat is None or target != dst):  # an inside address is not reachable from here
            self._arrive(node, data, src)

    def _arrive(self, node: SimNode, data: bytes, src: Addr) -> None:
        if node.up:
            node.input(data, src)

    def _delay(self, link: Link) -> float:
        return link.delay_s + (self.rng.random() * link.jitter_s if link.jitter_s else 0.0)

    def _lan_neighbour(self, node: SimNode, dst: Addr) -> SimNode | None:
        if not node.nat:
            return None
        return next((n for n in self.nodes.values() if n.nat is node.nat and n.inside == dst), None)

    # ---- registry ----

    def ask_registry(self, node: SimNode, ask: Callable[[], object], answer: Callable[..., None]) -> None:
        """A round trip to the registry; an outage answers None after two seconds."""
        starts = node.starts

        def finish(reply: object) -> None:
            if node.up and node.starts == starts:
                answer(reply)

        half = int(self.registry_delay_s * SECOND)

        def serve() -> None:
            if self.registry_up:
                reply = ask()
                self.at(self.now_ns + half, lambda: finish(reply))
            else:
                self.at(self.now_ns + 2 * SECOND, lambda: finish(None))

        self.at(self.now_ns + half, serve)

    def register(self, node: SimNode, endpoint: Addr) -> None:
        self._endpoints[node.number] = endpoint

    def registered_ip(self, node: int) -> str:
        """Where the registry saw a node, "" if never."""
        return self._endpoints[node][0] if node in self._endpoints else ""

    def registry_key(self, node: int) -> bytes | None:
        known = self.nodes.get(node)
        return known.identity.public_key if known else None

    def registry_addresses(self, asking: SimNode, node: int) -> Addresses | None:
        known = self.nodes.get(node)
        if not known:
            return None
        if known.hidden:
            return Addresses(relay_only=True)
        endpoint = self._endpoints.get(node)
        lan = known.lan if asking.nat is known.nat and known.nat else ()
        return Addresses((endpoint,) if endpoint else (), lan)

    # ---- time ----

    def step(self, end_ns: int) -> bool:
        """One instant; False when `end_ns` is reached first."""
        times = [d for n in self.nodes.values() if n.up and (d := n.deadline_ns()) is not None]
        if self._queue:
            times.append(self._queue[0][0])
        at = min(times, default=end_ns)
        if at >= end_ns:
            self.now_ns = end_ns
            return False
        self.now_ns = max(self.now_ns, at)
        while self._queue and self._queue[0][0] <= self.now_ns:
            heapq.heappop(self._queue)[2]()
        self.pump()
        return True

    def pump(self) -> None:
        for node in self.nodes.values():
            if node.up:
                node.pump()

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Runs for some virtual seconds, or until the condition holds. True if it does (or none was
        given)."""
        end = self.now_ns + int(seconds * SECOND)
        self.pump()
        while not (until and until()):
            if not self.step(end):
                return until is None or until()
        return True
