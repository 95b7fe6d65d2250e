"""A network on virtual time: real engines, the real key exchange, path machines and relays, simulated NATs, links, registry.

One seed decides everything; a failing test prints it and replays.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from simbeacon import SimBeacon
from simnat import KINDS, SECOND, Addr, Nat
from simnode import Inbox, Link, SimIdentity, SimNode

from pilot.traversal.peer_paths import Addresses

__all__ = ["Inbox", "Link", "SimBeacon", "SimIdentity", "SimNode", "World"]


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
        self.sent = 0  # datagrams of nodes, without their questions to beacons
        self.announced: dict[int, bytes] = {}
        self.endpoints: dict[int, Addr] = {}
        self._sockets: dict[Addr, SimBeacon] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    @property
    def now(self) -> float:
        return self.now_ns / SECOND

    # ---- building ----

    def beacon(self, ip: str = "198.51.100.1", alt_ip: str = "", probes: bool = True) -> SimBeacon:
        beacon = SimBeacon(self, (ip, 9001), alt_ip, probes)
        self.beacons[beacon.addr] = beacon
        self._sockets |= dict.fromkeys(beacon.sockets, beacon)
        for each in self.beacons.values():
            each.know_peers()
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
        door: bool = False,
    ) -> SimNode:
        use = beacons if beacons is not None else list(self.beacons.values())
        node = SimNode(self, number, (inside, 4000), nat, [b.addr for b in use], hidden, door)
        self.nodes[number] = node
        return node

    def pair(self, a_kind: str, b_kind: str, **options: object) -> tuple[SimNode, SimNode]:
        """Two nodes that trust each other, each behind a router of its kind, and one beacon."""
        self.beacon()
        a = self.site(1, a_kind, **options)
        b = self.site(2, b_kind, **options)
        a.trust(b)
        b.trust(a)
        return a, b

    def site(self, n: int, kind: str, **options: object) -> SimNode:
        if kind == "none":
            return self.node(n, f"203.0.113.{n}")
        if kind == "double":
            outer = self.router(f"203.0.113.{n}", "port_restricted", **options)
            inner = self.router(f"100.64.{n}.2", "port_restricted", outer=outer, **options)
            return self.node(n, f"192.168.{n}.2", inner)
        return self.node(n, f"192.168.{n}.2", self.router(f"203.0.113.{n}", kind, **options))

    # ---- packets ----

    def post(self, when_ns: int, what: Callable[[], None]) -> None:
        """Does something then; it marks the nodes it touches itself."""
        self._serial += 1
        heapq.heappush(self._queue, (max(when_ns, self.now_ns), self._serial, what))

    def at(self, when_ns: int, what: Callable[[], None]) -> None:
        """Does something then, whatever it touches."""

        def touch() -> None:
            what()
            for node in self.nodes.values():
                node.touched = True

        self.post(when_ns, touch)

    def send(self, node: SimNode, data: bytes, dst: Addr) -> None:
        """A datagram leaves a node: through its routers, then over the link."""
        if not node.up:
            return
        if data[0] != 1:
            self.sent += 1
        if dst[0] == "127.0.0.1":
            if dst == node.compat.bridge:
                node.compat.send(data)
            return
        lan = self._lan_neighbour(node, dst)
        if lan:
            src = node.inside
            self.post(self.now_ns + SECOND // 5000, lambda: lan.input(data, src))
            return
        if node.udp_blocked:
            return
        src, nat = node.inside, node.nat
        while nat:
            if nat.ip == dst[0] and not nat.hairpin:
                return  # toward the router's own outside: needs hairpinning
            src = nat.outbound(src, dst, self.now_ns)
            nat = nat.outer
        if node.link.loss and self.rng.random() < node.link.loss:
            return
        self._route(src, dst, data, self._delay(node.link))
        if node.link.twice and self.rng.random() < node.link.twice:
            self._route(src, dst, data, self._delay(node.link))

    def send_from(self, src: Addr, data: bytes, dst: Addr) -> None:
        """A datagram of a beacon."""
        self._route(src, dst, data, 0.0005)

    def deliver_stream(self, node: int, data: bytes) -> None:
        """A beacon's datagram for a node that came by WebSocket."""
        if node in self.nodes:
            self.nodes[node].compat.deliver(data)

    def stream_ended(self, node: int) -> None:
        """The beacon's end of a WebSocket is gone."""
        if node in self.nodes:
            self.nodes[node].compat.ended()

    def _route(self, src: Addr, dst: Addr, data: bytes, delay_s: float) -> None:
        if self.block and self.block(src, dst, data):
            return
        self.post(self.now_ns + int(delay_s * SECOND), lambda: self._inbound(src, dst, data))

    def _inbound(self, src: Addr, dst: Addr, data: bytes) -> None:
        beacon = self._sockets.get(dst)
        if beacon:
            beacon.input(dst, data, src)
            return
        link = next((n.link for n in self.nodes.values() if n.outside_ip == dst[0]), None)
        if link and not (link.loss and self.rng.random() < link.loss):
            self.post(self.now_ns + int(self._delay(link) * SECOND), lambda: self._enter(src, dst, data))

    def _enter(self, src: Addr, dst: Addr, data: bytes) -> None:
        """A datagram has come over the link to the outermost router, or to a host without one."""
        target: Addr | None = dst
        while target and target[0] in self.nats:
            target = self.nats[target[0]].inbound(src, target[1], self.now_ns)
        node = next((n for n in self.nodes.values() if n.inside == target), None) if target else None
        if node and (node.nat is None or target != dst) and not node.udp_blocked:  # an inside address is not reachable from here
            node.input(data, src)

    def _delay(self, link: Link) -> float:
        delay = link.delay_s
        if link.jitter_s:
            delay += self.rng.random() * link.jitter_s
        if link.late and self.rng.random() < link.late:
            delay += self.rng.uniform(0.005, 0.030)
        return delay

    def _lan_neighbour(self, node: SimNode, dst: Addr) -> SimNode | None:
        if not node.nat:
            return None
        return next((n for n in self.nodes.values() if n.nat is node.nat and n.inside == dst), None)

    # ---- registry ----

    def ask_registry(self, node: SimNode, ask: Callable[[], object], answer: Callable[..., None]) -> None:
        """A round trip to the registry; an outage answers None after two seconds."""
        starts = node.starts

        def finish(reply: object) -> None:
            if node.starts != starts or not node.up:
                return
            if not node.runs:
                self.post(self.now_ns + SECOND // 4, lambda: finish(reply))
                return
            node.touched = True
            answer(reply)

        half = int(self.registry_delay_s * SECOND)

        def serve() -> None:
            if self.registry_up:
                reply = ask()
                self.post(self.now_ns + half, lambda: finish(reply))
            else:
                self.post(self.now_ns + 2 * SECOND, lambda: finish(None))

        self.post(self.now_ns + half, serve)

    def register(self, node: SimNode, endpoint: Addr) -> bool:
        """The registry takes an endpoint and tells the beacons."""
        self.endpoints[node.number] = endpoint
        for beacon in self.beacons.values():
            beacon.relay.vouch(node.number, endpoint[0])
        return True

    def announce(self, node: int, pila: bytes) -> None:
        """The registry takes a key announcement: true until the node starts again or rotates."""
        self.announced[node] = pila

    def registry_key(self, node: int) -> bytes | None:
        known = self.nodes.get(node)
        return known.identity.public_key if known else None

    def registry_addresses(self, asking: SimNode, node: int) -> Addresses | None:
        known = self.nodes.get(node)
        if not known:
            return None
        if known.hidden or known.compat.active:
            return Addresses(relay_only=True, pila=self.announced.get(node, b""))
        endpoint = self.endpoints.get(node)
        lan = known.lan if asking.nat is known.nat and known.nat else ()
        return Addresses((endpoint,) if endpoint else (), lan, pila=self.announced.get(node, b""))

    # ---- time ----

    def step(self, end_ns: int) -> bool:
        """One instant; False when `end_ns` is reached first."""
        times = [n.due_ns for n in self.nodes.values() if n.due_ns is not None and n.runs]
        if self._queue:
            times.append(self._queue[0][0])
        at = min(times, default=end_ns)
        if at >= end_ns:
            self.now_ns = end_ns
            return False
        self.now_ns = max(self.now_ns, at)
        while self._queue and self._queue[0][0] <= self.now_ns:
            heapq.heappop(self._queue)[2]()
        for node in self.nodes.values():
            if node.runs and (node.touched or (node.due_ns is not None and node.due_ns <= self.now_ns)):
                node.pump()
        return True

    def pump(self) -> None:
        """Lets everybody act on what was done to them from outside."""
        for node in self.nodes.values():
            if node.runs:
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
