"""Random networks with random trouble. Invariants: connected whenever a path exists, never stuck on the relay
while something
better works, no byte lost or doubled, probe traffic bounded.

PILOT_SIM_SEEDS=N runs N seeds (default 4); PILOT_SIM_FIRST=K starts at seed K.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest
from simworld import SimNode, World
from test_matrix import KINDS, best_is_direct

from pilot.traversal.path_actions import Phase

FIRST = int(os.environ.get("PILOT_SIM_FIRST", "1000"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("PILOT_SIM_SEEDS", "4")))
TROUBLE_S = 120


class Pair:
    """A stream between two nodes that is opened again whenever one of the processes restarted."""

    def __init__(self, world: World, a: SimNode, b: SimNode) -> None:
        self.world, self.a, self.b = world, a, b
        self.conn = 0
        self.sent = b""
        self.opened = (0, 0)

    def tend(self) -> None:
        if not (self.a.up and self.b.up):
            return
        if self.opened != (self.a.starts, self.b.starts) or self.conn in self.a.failed | self.a.closed:
            self.opened = (self.a.starts, self.b.starts)
            self.sent = b""
            self.before = len(self.b.received(self.a))
            self.conn = self.a.dial(self.b)
        elif self.conn in self.a.open:
            chunk = bytes([len(self.sent) // 100 % 256]) * 100
            self.sent += chunk
            self.a.send(self.conn, chunk)

    def intact(self) -> bool:
        return self.conn in self.a.open and self.b.received(self.a).endswith(self.sent)


class Trouble:
    """Things that go wrong, one at a time, and mend themselves."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.log: list[str] = []

    def strike(self) -> None:
        what = self.rng.choice(
            [
                "restart",
                "router",
                "move",
                "beacon restart",
                "beacon down",
                "cut",
                "one-way",
                "registry",
                "loss",
            ]
        )
        node = self.rng.choice(list(self.world.nodes.values()))
        lasts = self.rng.uniform(1, 15)
        self.log.append(f"{self.world.now:.1f} {what} {node.number} {lasts:.1f}s")
        getattr(self, "_" + what.replace(" ", "_").replace("-", "_"))(node, lasts)

    def _later(self, seconds: float, what: object) -> None:
        self.world.at(self.world.now_ns + int(seconds * 1e9), what)  # type: ignore[arg-type]

    def _restart(self, node: SimNode, lasts: float) -> None:
        node.stop()

        def back() -> None:
            if not node.up:
                node.start()
                for other in self.world.nodes.values():
                    if other is not node:
                        node.trust(other)

        self._later(min(lasts, 4.0), back)

    def _router(self, node: SimNode, lasts: float) -> None:
        if node.nat:
            node.nat.reset()

    def _move(self, node: SimNode, lasts: float) -> None:
        if node.nat and not node.nat.outer:
            node.nat.reset()
            del self.world.nats[node.nat.ip]
            node.nat.ip = f"203.0.113.{self.rng.randrange(100, 250)}"
            while node.nat.ip in self.world.nats:
                node.nat.ip = f"203.0.113.{self.rng.randrange(100, 250)}"
            self.world.nats[node.nat.ip] = node.nat
            if self.rng.random() < 0.5:
                node.paths.network_changed(self.world.now)

    def _beacon_restart(self, node: SimNode, lasts: float) -> None:
        self.rng.choice(list(self.world.beacons.values())).restart()

    def _beacon_down(self, node: SimNode, lasts: float) -> None:
        beacon = self.rng.choice(list(self.world.beacons.values()))
        beacon.up = False
        self._later(lasts, lambda: setattr(beacon, "up", True))

    def _cut(self, node: SimNode, lasts: float) -> None:
        self.world.block = lambda src, dst, data: src[0].startswith("203.") and dst[0].startswith("203.")
        self._later(lasts, lambda: setattr(self.world, "block", None))

    def _one_way(self, node: SimNode, lasts: float) -> None:
        host = node.nat.ip if node.nat else node.inside[0]
        self.world.block = lambda src, dst, data: src[0] == host and dst[0].startswith("203.")
        self._later(lasts, lambda: setattr(self.world, "block", None))

    def _registry(self, node: SimNode, lasts: float) -> None:
        self.world.registry_up = False
        self._later(lasts, lambda: setattr(self.world, "registry_up", True))

    def _loss(self, node: SimNode, lasts: float) -> None:
        node.link.loss = 0.15
        self._later(lasts, lambda: setattr(node.link, "loss", 0.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_churn(seed: int) -> None:
    rng = random.Random(seed)
    world = World(seed)
    world.beacon("198.51.100.1")
    world.beacon("198.51.100.2")
    kinds = [rng.choice(KINDS) for _ in range(4)]
    nodes = [world._site(n + 1, kind) for n, kind in enumerate(kinds)]
    for node in nodes:
        node.link.delay_s = rng.uniform(0.002, 0.06)
        node.link.jitter_s = rng.uniform(0, 0.005)
    for x, y in itertools.permutations(nodes, 2):
        x.trust(y)
    pairs = [Pair(world, *(p if rng.random() < 0.5 else p[::-1])) for p in itertools.combinations(nodes, 2)]
    trouble = Trouble(world, rng)
    context = f"seed {seed} {kinds}"
    world.run(2.0)
    next_strike = world.now + 5
    while world.now < 100 + TROUBLE_S:
        for pair in pairs:
            pair.tend()
        if world.now >= next_strike:
            trouble.strike()
            next_strike = world.now + rng.uniform(4, 12)
        world.run(0.25)

    def best(pair: Pair) -> bool:
        kind = best_is_direct(kinds[pair.a.number - 1], kinds[pair.b.number - 1])
        wanted = Phase.DIRECT if kind else Phase.RELAYED
        return pair.a.machine(pair.b).phase is wanted and pair.b.machine(pair.a).phase is wanted

    for _ in range(int(75 / 0.25)):  # all is well again: trouble lasts 15 s at most, recovery 60 s
        for pair in pairs:
            pair.tend()
        world.run(0.25)
    stuck = [
        f"{p.a.number}-{p.b.number} {p.a.machine(p.b).phase.value}/{p.b.machine(p.a).phase.value}"
        for p in pairs
        if not best(p)
    ]
    assert not stuck, f"{context}: {stuck} after {trouble.log}"
    assert world.run(20.0, lambda: all(p.intact() for p in pairs)), f"{context}: bytes missing, {trouble.log}"
    before = world.sent
    world.run(120.0)
    assert (world.sent - before) / 2 / len(nodes) < 60 * len(nodes), f"{context}: not quiet"
