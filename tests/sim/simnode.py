"""One node on virtual time: the real engine, key exchange and path machines, its clock, its process, a small application."""

from __future__ import annotations

import hashlib
import math
import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from simcompat import SimCompat
from simnat import SECOND, Addr, Nat

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
    CoreError,
    Engine,
    Event,
)
from pilot.traversal.decisions import Decision
from pilot.traversal.discovery import Discovery, DiscoveryAction, EndpointChanged
from pilot.traversal.path import PathMachine
from pilot.traversal.peer_paths import PeerPaths
from pilot.tunnel.exchange import KeyExchange
from pilot.wire.frames import Capabilities

if TYPE_CHECKING:
    from simworld import World

CAPS = Capabilities(features=CAP_NOCRC | CAP_STREAM_OPTS, max_segment=8192, reorder_segments=65536)
PORT = 1001
SOCKET_QUEUE = 250  # datagrams that the kernel holds for a stopped process


@dataclass(slots=True)
class Link:
    """One-way properties of a host's access link. late: share of packets that others overtake; twice: that arrive two times."""

    delay_s: float = 0.010
    jitter_s: float = 0.0
    loss: float = 0.0
    late: float = 0.0
    twice: float = 0.0


class SimIdentity:
    """A deterministic Ed25519 identity."""

    def __init__(self, seed: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed.encode()).digest())

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


@dataclass(slots=True)
class Inbox:
    """What a node's application received on one connection."""

    node: int
    accepted: bool
    data: bytearray = field(default_factory=bytearray)
    at_ns: list[int] = field(default_factory=list)


class SimNode:
    """Engine and PeerPaths, driven in virtual time. Its monotonic clock stands still while the machine sleeps."""

    def __init__(
        self, world: World, number: int, inside: Addr, nat: Nat | None, beacons: list[Addr], hidden: bool, door: bool
    ) -> None:
        """door: its beacon can be reached by WebSocket."""
        self.world = world
        self.number = number
        self.inside = inside
        self.nat = nat
        self.link = Link()
        self.hidden = hidden
        self.beacons = beacons
        self.identity = SimIdentity(f"{world.seed}:{number}")
        self.lan: tuple[Addr, ...] = ()
        self.caps = CAPS
        self.starts = 0
        self.up = False
        self.asleep = False  # the machine: its clock stands, what arrives is lost
        self.halted = False  # the process alone (SIGSTOP): the kernel queues
        self.udp_blocked = False
        self.touched = True
        self.due_ns: int | None = None  # world's time
        self._lag_ns = 0  # slept so far
        self._slept_ns = 0
        self._queue: list[tuple[bytes, Addr]] = []
        self.decisions: list[Decision] = []
        self.inboxes: dict[int, Inbox] = {}
        self.outboxes: dict[int, bytes] = {}
        self.open: set[int] = set()
        self.failed: set[int] = set()
        self.closed: set[int] = set()
        self.compat = SimCompat(self, door)
        self.start()

    def start(self) -> None:
        """A new process: nothing is remembered but the identity."""
        self.starts += 1
        self.up = self.touched = True
        world = self.world
        seed = hashlib.sha256(f"{world.seed}:{self.number}:{self.starts}".encode()).digest()
        rng = random.Random(seed)
        self.engine = Engine(seed=seed, now_ns=self.now_ns)
        self.engine.set_node(self.number)
        self.engine.listen(PORT, OWNER_APP)
        exchange = KeyExchange(self.identity, caps=self.caps, random=rng.randbytes, last_heard=self._last_heard)
        discovery = Discovery(random=rng.randbytes)
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
        self.paths.set_node(self.number, self.now)
        self.paths.set_beacons(self.beacons, self.now)
        for memory in (self.inboxes, self.outboxes, self.open, self.failed, self.closed):
            memory.clear()

    def stop(self) -> None:
        self.up = False
        self.asleep = self.halted = False
        self._queue.clear()
        self.compat.stop()

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

    # ---- clock and process ----

    @property
    def now_ns(self) -> int:
        """CLOCK_MONOTONIC of this host."""
        return self._slept_ns if self.asleep else self.world.now_ns - self._lag_ns

    @property
    def now(self) -> float:
        return self.now_ns / SECOND

    @property
    def runs(self) -> bool:
        """The process gets the processor."""
        return self.up and not self.asleep and not self.halted

    def sleep(self) -> None:
        """The machine is suspended."""
        self._slept_ns = self.now_ns
        self.asleep = True

    def wake(self) -> None:
        """The machine goes on, unaware of the time that passed."""
        if self.asleep:
            self._lag_ns = self.world.now_ns - self._slept_ns
            self.asleep = False
            self.touched = True

    def halt(self) -> None:
        """SIGSTOP."""
        self.halted = True

    def resume(self) -> None:
        """SIGCONT: what the kernel has queued is read first."""
        if self.halted:
            self.halted = False
            self.touched = True
            queued, self._queue = self._queue, []
            for data, src in queued:
                self.engine.input(data, src, self.now_ns)

    def move(self, host: str, nat: Nat | None) -> None:
        """The host is in another network; `network_changed` tells the process."""
        self.inside, self.nat = (host, self.inside[1]), nat
        self.lan = (self.inside,) if nat else ()

    def network_changed(self) -> None:
        """The node's watch on its network reports (see controller.Traversal.network_changed)."""
        self.paths.discovery.set_local([self.inside[0]], self.inside[1])
        self.paths.network_changed(self.now)
        self.touched = True

    # ---- application ----

    def dial(self, other: SimNode, timeout: float = 30.0) -> int:
        self.touched = True
        return self.engine.dial(other.number, PORT, timeout=timeout)

    def send(self, conn: int, data: bytes) -> None:
        self.touched = True
        self.outboxes[conn] = self.outboxes.get(conn, b"") + data
        self._write(conn)

    def hang_up(self, conn: int) -> None:
        """Closes a connection and forgets it."""
        self.touched = True
        self.inboxes.pop(conn, None)
        self.outboxes.pop(conn, None)
        with suppress(CoreError):  # gone already
            self.engine.close(conn)

    def _write(self, conn: int) -> None:
        data = self.outboxes.get(conn, b"")
        if data:
            self.outboxes[conn] = data[self.engine.write(conn, data) :]

    def received(self, other: SimNode) -> bytes:
        """Everything the application got from a peer, in order of arrival."""
        return b"".join(bytes(i.data) for i in self.inboxes.values() if i.node == other.number)

    # ---- driving ----

    def deadline_ns(self) -> int | None:
        """When the process has something to do, on the world's clock; None also while it does not run."""
        if not self.runs:
            return None
        times = []
        if (engine := self.engine.deadline()) is not None:
            times.append(engine)
        if (paths := self.paths.deadline()) is not None:
            times.append(math.ceil(max(paths, 0.0) * SECOND) + 1)  # not before it, whatever the rounding
        return min(times) + self._lag_ns if times else None

    def input(self, data: bytes, src: Addr) -> None:
        """A datagram arrives at the host."""
        if self.asleep or not self.up:
            return
        if self.halted:
            if len(self._queue) < SOCKET_QUEUE:
                self._queue.append((data, src))
            return
        self.touched = True
        self.engine.input(data, src, self.now_ns)

    def pump(self) -> None:
        """Everything this node has to do at this instant."""
        self.touched = False
        now = self.now
        self.engine.flush(self.now_ns)
        for _ in range(1000):
            due = self.paths.deadline()
            if due is not None and due <= now:
                self.paths.tick(now)
            self.engine.flush(self.now_ns)
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
                self.due_ns = self.deadline_ns()
                return
        raise AssertionError(f"node {self.number} does not come to rest (seed {self.world.seed})")

    def _check(self) -> None:
        """The data plane sends where the machine says, whenever that has an opinion."""
        for node in self.paths.nodes():
            machine = None if self.paths.sleeps(node) else self.paths.machine(node)
            info = self.engine.peer_info(node)
            if machine and machine.session and machine.active and info:
                assert (info["path"], info["relay"]) == (machine.active.addr, machine.active.relay)

    def _on_event(self, event: Event) -> None:
        conn = event.conn
        if event.type == EV_ACCEPT:
            self.engine.own(conn, OWNER_APP)
            self.inboxes[conn] = Inbox(event.node, True)
            self._read(conn)
        elif event.type == EV_CONN_OPEN:
            self.engine.own(conn, OWNER_APP)
            self.open.add(conn)
            self.inboxes.setdefault(conn, Inbox(event.node, False))
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
        with suppress(CoreError):  # a reset came right behind the bytes: its event is the next
            while inbox and (chunk := self.engine.read(conn)):
                inbox.data += chunk
                inbox.at_ns.append(self.world.now_ns)

    # ---- what the machines ask for ----

    def ask_key(self, node: int, fresh: bool) -> None:
        self.world.ask_registry(
            self,
            lambda: self.world.registry_key(node),
            lambda key: self.paths.key_answer(node, key, self.now),
        )

    def ask_addresses(self, node: int, fresh: bool) -> None:
        self.world.ask_registry(
            self,
            lambda: self.world.registry_addresses(self, node),
            lambda found: self.paths.addresses_answer(node, found, self.now),
        )

    def _discovered(self, action: DiscoveryAction) -> None:
        if isinstance(action, EndpointChanged):
            self._register()

    def _register(self) -> None:
        """For ever, as registration.Registration does."""
        endpoint = self.paths.discovery.endpoint
        if endpoint:
            self.world.ask_registry(self, lambda: self.world.register(self, endpoint), self._registered)

    def _registered(self, done: object) -> None:
        if done:
            self.paths.set_node(self.number, self.now)
            pila = self.paths.exchange.announcement
            self.world.ask_registry(self, lambda: self.world.announce(self.number, pila), lambda _: None)
        else:
            self._register()

    def _last_heard(self, node: int) -> float | None:
        info = self.engine.peer_info(node)
        return info["last_recv_ns"] / SECOND if info and info["last_recv_ns"] else None
