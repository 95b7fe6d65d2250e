"""A random network from a seed, what goes wrong in it, and what theory says about it.

The oracle answers from the state of the simulation alone which pairs can reach each other now, through a beacon or directly.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from simbeacon import SimBeacon
from simnat import SECOND, Nat
from simworld import SimNode, World

KINDS = ("none", "full_cone", "restricted", "port_restricted", "symmetric", "double", "cgn", "shared")
WEIGHTS = (2, 1, 2, 4, 3, 1, 1, 1)
PORTS = ("random", "random", "sequential", "keep")


@dataclass(slots=True)
class Site:
    """What a node's place allows: mapping depends on the destination; how its strictest filter looks ("none", "addr", "port")."""

    kind: str
    symmetric: bool
    filtering: str


def site_of(node: SimNode) -> Site:
    """As the routers in front of a node stand now."""
    order = ("none", "addr", "port")
    nat, symmetric, filtering = node.nat, False, "none"
    while nat:
        symmetric |= nat.mapping == "apdm"
        filtering = max(filtering, "port" if nat.mapping == "apdm" else nat.filtering, key=order.index)
        nat = nat.outer
    return Site("nat" if node.nat else "none", symmetric, filtering)


def chain(node: SimNode) -> list[Nat]:
    """The routers in front of a node, innermost first."""
    nat, found = node.nat, []
    while nat:
        found.append(nat)
        nat = nat.outer
    return found


class Net:
    """The world of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed ^ 0x5EED)
        self.world = world = World(seed)
        self.traces: list[str] = []
        self._hosts = itertools.count(1)
        first = world.beacon("198.51.100.1", alt_ip="198.51.100.101" if rng.random() < 0.5 else "", probes=rng.random() < 0.8)
        beacons = [first]
        if rng.random() < 0.5:
            beacons.append(world.beacon("198.51.100.2", probes=rng.random() < 0.5))
        world.registry_delay_s = rng.choice((0.005, 0.02, 0.08))
        self.cuts: list[Callable[[str, str], bool]] = []  # outside addresses of two sites: True = nothing passes
        world.block = lambda src, dst, data: any(cut(src[0], dst[0]) for cut in self.cuts)
        self._carrier: Nat | None = None
        self._home: Nat | None = None
        for number in range(1, rng.choice((2, 2, 2, 3, 3, 4)) + 1):
            self._place(number, beacons)
        for a, b in itertools.permutations(world.nodes.values(), 2):
            a.trust(b)
        self.pairs = [
            p if rng.random() < 0.5 else p[::-1] for p in itertools.combinations(world.nodes.values(), 2)
        ]

    def _place(self, number: int, beacons: list[SimBeacon]) -> None:
        rng, world = self.rng, self.world
        kind = rng.choices(KINDS, WEIGHTS)[0]
        inside, nat = self.place(kind)
        use = beacons if rng.random() < 0.7 else [rng.choice(beacons)]
        node = world.node(number, inside, nat, beacons=use, hidden=rng.random() < 0.05, door=rng.random() < 0.4)
        node.lan = (node.inside,) if nat else ()
        link = node.link
        link.delay_s = rng.choice((0.001, 0.01, 0.02, 0.05, 0.12))
        link.jitter_s = rng.choice((0.0, 0.0, 0.002, 0.01))
        link.loss = rng.choice((0.0, 0.0, 0.0, 0.005, 0.02))
        link.late = rng.choice((0.0, 0.0, 0.02))
        link.twice = rng.choice((0.0, 0.0, 0.01))
        beacon_text = "+".join(b.addr[0][-1] for b in use)
        self.note(f"node {number}: {self.describe(node, kind)}, beacons {beacon_text}, {link}")

    def place(self, kind: str) -> tuple[str, Nat | None]:
        """A new attachment to the internet: inside address and router."""
        rng, world, n = self.rng, self.world, next(self._hosts)
        options = {
            "timeout_s": rng.choice((25.0, 30.0, 60.0, 120.0)),
            "hairpin": rng.random() < 0.5,
            "ports": rng.choice(PORTS),
            "open_input": rng.random() < 0.1,
        }
        if kind == "none":
            return f"203.0.113.{n}", None
        if kind == "double":
            outer = world.router(f"203.0.113.{n}", rng.choice(("restricted", "port_restricted")), **options)
            return f"192.168.{n}.2", world.router(f"100.64.{n}.2", "port_restricted", outer=outer, **options)
        if kind == "cgn":  # one carrier, several homes
            if self._carrier is None:
                self._carrier = world.router("203.0.113.254", rng.choice(("full_cone", "port_restricted")), **options)
            return f"192.168.{n}.2", world.router(f"100.64.{n}.2", "restricted", outer=self._carrier, **options)
        if kind == "shared":  # one home, several hosts
            if self._home is None:
                self._home = world.router("203.0.113.253", rng.choice(("restricted", "port_restricted", "symmetric")), **options)
            return f"192.168.1.{n + 10}", self._home
        return f"192.168.{n}.2", world.router(f"203.0.113.{n}", kind, **options)

    def describe(self, node: SimNode, kind: str) -> str:
        """The site in a few words."""
        routers = " behind ".join(
            f"{n.ip} {n.mapping}/{n.filtering} {n.timeout_ns // SECOND}s{' hairpin' * n.hairpin}{' open-input' * n.open_input}"
            for n in chain(node)
        )
        flags = (" hidden" * node.hidden) + (" door" * node.compat.has_door)
        return f"{kind}{flags} ({routers or node.inside[0]})"

    def note(self, text: str) -> None:
        """One line of the trace."""
        self.traces.append(f"{self.world.now:8.2f} {text}")

    # ---- oracle ----

    def relay_open(self, a: SimNode, b: SimNode) -> bool:
        """Both reach beacons that reach each other, and the peer's key can be had."""
        if not (a.runs and b.runs) or not all(self._at_beacon(n) for n in (a, b)):
            return False
        if self.world.registry_up:
            return True
        # Beacons believe the registry when somebody claims a number from a new address.
        known = all(n.udp_blocked or self.world.endpoints.get(n.number, ("",))[0] == n.outside_ip for n in (a, b))
        return known and all(x.paths.exchange.is_proved(y.number) for x, y in ((a, b), (b, a)))

    def _at_beacon(self, node: SimNode) -> bool:
        beacons = [self.world.beacons[addr] for addr in node.beacons]
        if node.udp_blocked:
            return node.compat.has_door and beacons[0].up
        return any(b.up for b in beacons)

    def direct_open(self, a: SimNode, b: SimNode) -> bool:
        """Theory allows a direct path now, and both can be told of it."""
        if a.hidden or b.hidden or a.udp_blocked or b.udp_blocked or not self.relay_open(a, b):
            return False
        if any(n.compat.active for n in (a, b)) or not self.world.registry_up:
            return False
        if any(cut(x.outside_ip, y.outside_ip) for cut in self.cuts for x, y in ((a, b), (b, a))):
            return False
        if a.nat is not None and a.nat is b.nat:
            return True
        shared = [n for n in chain(a) if n in chain(b)]
        if shared and not shared[0].hairpin:
            return False
        if any(n.open_input for n in (*chain(a), *chain(b))):
            return False  # not always: early punches may spoil a port for a while
        x, y = site_of(a), site_of(b)
        return not ((x.symmetric and y.filtering == "port") or (y.symmetric and x.filtering == "port"))

    # ---- reach of faults ----

    def cut(self, rule: Callable[[str, str], bool], lasts: float) -> None:
        """Drops what `rule` names (outside addresses from, to) for some time."""
        self.cuts.append(rule)
        self.later(lasts, lambda: self.cuts.remove(rule))

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        """Mends something."""
        self.world.at(self.world.now_ns + int(seconds * SECOND), lambda: what() and None)
