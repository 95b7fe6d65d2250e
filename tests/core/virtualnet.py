"""A network of sans-I/O engines on virtual time: seeded loss, delay, jitter, reordering and duplication.

Every run is a function of its seed; a failing test prints the seed and replays byte for byte.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from pilot._core import CAP_NOCRC, CAP_STREAM_OPTS, Engine, Event

MS = 1_000_000
SECOND = 1_000_000_000


@dataclass(slots=True)
class Link:
    """One-way properties. Times in nanoseconds, probabilities 0..1, rate in bytes per second (0 = unlimited)."""

    delay: int = 1 * MS
    jitter: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_delay: int = 5 * MS
    rate: int = 0
    queue: int = 256 * 1024
    mtu: int = 65507


class Host:
    """One node: its engine, its address, and what its Python side saw."""

    def __init__(self, net: VirtualNet, node: int, ip: str, **engine_options: object) -> None:
        self.net = net
        self.node = node
        self.addr = (ip, 4000)
        self.options = engine_options
        self.starts = 0
        self.restart()
        self.events: list[Event] = []
        self.received: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.on_event: Callable[[Event], None] | None = None

    def restart(self) -> None:
        """A new process: nothing is known any more."""
        seed = hashlib.sha256(f"{self.net.seed}:{self.node}:{self.starts}".encode()).digest()
        self.engine = Engine(seed=seed, now_ns=self.net.now, **self.options)  # type: ignore[arg-type]
        self.engine.set_node(self.node)
        self.starts += 1

    def drain_events(self) -> None:
        while batch := self.engine.events():
            for ev in batch:
                self.events.append(ev)
                if self.on_event is not None:
                    self.on_event(ev)

    def read_all(self, conn: int) -> bool:
        """Takes what waits; True at end of stream."""
        buf = self.received.setdefault(conn, bytearray())
        while (chunk := self.engine.read(conn)) is not None:
            if not chunk:
                self.ended.add(conn)
                return True
            buf += chunk
        return False

    def of_type(self, kind: int) -> list[Event]:
        return [ev for ev in self.events if ev.type == kind]


class VirtualNet:
    def __init__(self, seed: int, link: Link | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = SECOND
        self.link = link or Link()
        self.hosts: dict[tuple[str, int], Host] = {}
        self.busy_until: dict[tuple[object, object], int] = {}
        self.wire: list[tuple[int, int, bytes, tuple[str, int], tuple[str, int]]] = []
        self.serial = 0
        self.lost = self.delivered = 0
        self.tap: Callable[[bytes, tuple[str, int], tuple[str, int]], bool] | None = None

    def add(self, node: int, ip: str, **engine_options: object) -> Host:
        host = Host(self, node, ip, **engine_options)
        self.hosts[host.addr] = host
        return host

    def introduce(self, a: Host, b: Host, own_kind: bool = True, key: bytes | None = None) -> None:
        """Installs a shared key, paths and trust on both sides, as a finished key exchange would."""
        key = key or hashlib.sha256(f"key:{self.seed}:{a.node}:{b.node}".encode()).digest()
        key_id = int.from_bytes(key[:8], "big")
        features = CAP_NOCRC | CAP_STREAM_OPTS if own_kind else 0
        for x, y in ((a, b), (b, a)):
            x.engine.set_trusted(y.node, True)
            x.engine.install_key(
                y.node, key, key_id, features=features, max_segment=8192 if own_kind else 0, reorder_segments=65536
            )
            x.engine.set_path(y.node, y.addr, False)

    def _send(self, data: bytes, src: tuple[str, int], dst: tuple[str, int]) -> None:
        link = self.link
        if self.tap is not None and not self.tap(data, src, dst):
            return
        if len(data) > link.mtu or self.rng.random() < link.loss:
            self.lost += 1
            return
        copies = 2 if self.rng.random() < link.duplicate else 1
        for _ in range(copies):
            start = self.now
            if link.rate:
                start = max(start, self.busy_until.get((src, dst), 0))
                if (start - self.now) * link.rate // SECOND > link.queue:
                    self.lost += 1
                    continue
                start += len(data) * SECOND // link.rate
                self.busy_until[(src, dst)] = start
            at = start + link.delay + (self.rng.randrange(link.jitter) if link.jitter else 0)
            if self.rng.random() < link.reorder:
                at += self.rng.randrange(1, link.reorder_delay)
            self.serial += 1
            heapq.heappush(self.wire, (at, self.serial, data, src, dst))

    def _collect(self, host: Host) -> None:
        for data, dst in host.engine.output():
            self._send(data, host.addr, dst)
        host.drain_events()

    def settle(self) -> None:
        """Moves what the engines have to say now, without letting time pass."""
        for host in self.hosts.values():
            host.engine.flush(self.now)
            self._collect(host)

    def step(self) -> bool:
        """One instant of virtual time; False when nothing is left to happen."""
        at = self.wire[0][0] if self.wire else None
        for host in self.hosts.values():
            deadline = host.engine.deadline()
            if deadline is not None and (at is None or deadline < at):
                at = deadline
        if at is None:
            return False
        self.now = max(self.now, at)
        touched = set()
        while self.wire and self.wire[0][0] <= self.now:
            _, _, data, src, dst = heapq.heappop(self.wire)
            target = self.hosts.get(dst)
            if target is not None:
                self.delivered += 1
                target.engine.input(data, src, self.now)
                touched.add(dst)
        for host in self.hosts.values():
            deadline = host.engine.deadline()
            if host.addr in touched or (deadline is not None and deadline <= self.now):
                host.engine.flush(self.now)
            self._collect(host)
        return True

    def run(self, until: Callable[[], bool], limit_s: float = 60.0) -> bool:
        """Runs until the condition holds; False after `limit_s` virtual seconds or when the network fell silent."""
        end = self.now + int(limit_s * SECOND)
        self.settle()
        while not until():
            if self.now > end or not self.step():
                return until()
        return True
