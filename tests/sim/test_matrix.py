"""Every pair of NATs connects, by the best tier that theory allows, and fast."""

from __future__ import annotations

import itertools

import pytest
from simworld import SimNode, World

from pilot.traversal.path_actions import Phase

KINDS = ["none", "full_cone", "restricted", "port_restricted", "symmetric", "double"]
FILTERS_BY_PORT = {"port_restricted", "double", "symmetric"}
RTT_S = 0.041  # two access links of 10 ms each way, and the beacon
TEXT = b"the quick brown agent " * 400


def best_is_direct(a: str, b: str) -> bool:
    """Punching fails only if one side maps per destination and the other filters by port."""
    return not ((a == "symmetric" and b in FILTERS_BY_PORT) or (b == "symmetric" and a in FILTERS_BY_PORT))


def talk(world: World, a: SimNode, b: SimNode, limit_s: float = 10.0) -> float:
    """Dials and sends; returns the seconds from the dial to the first byte at the other side."""
    start = world.now_ns
    conn = a.dial(b)
    assert world.run(limit_s, lambda: conn in a.open), f"no connection, seed {world.seed}"
    a.send(conn, TEXT)
    assert world.run(limit_s, lambda: b.received(a) == TEXT), f"bytes missing, seed {world.seed}"
    first = min(i.at_ns[0] for i in b.inboxes.values() if i.node == a.number and i.at_ns)
    return (first - start) / 1e9


@pytest.mark.parametrize(("a_kind", "b_kind"), list(itertools.combinations_with_replacement(KINDS, 2)))
@pytest.mark.parametrize("seed", range(3))
def test_best_tier(a_kind: str, b_kind: str, seed: int) -> None:
    world = World(seed)
    a, b = world.pair(a_kind, b_kind)
    if seed % 2:
        a, b = b, a
    world.run(1.0)
    start = world.now
    first_byte = talk(world, a, b)
    assert first_byte <= 4 * RTT_S + 0.020, f"{first_byte=}"
    direct = best_is_direct(a_kind, b_kind)
    wanted = Phase.DIRECT if direct else Phase.RELAYED
    reached = world.run(20.0, lambda: a.machine(b).phase is wanted and b.machine(a).phase is wanted)
    assert reached, f"{a.machine(b).phase} {b.machine(a).phase}"
    if direct:
        assert world.now - start < 1.0
    world.run(60.0)
    assert a.machine(b).phase is wanted and b.machine(a).phase is wanted
    assert talk_again(world, a, b)


def talk_again(world: World, a: SimNode, b: SimNode) -> bool:
    before = len(b.received(a))
    conn = b.dial(a)
    assert world.run(5.0, lambda: conn in b.open)
    b.send(conn, TEXT)
    assert world.run(5.0, lambda: a.received(b) == TEXT)
    return len(b.received(a)) == before


@pytest.mark.parametrize(
    ("a_kind", "b_kind"), [("port_restricted", "restricted"), ("symmetric", "symmetric")]
)
@pytest.mark.parametrize("seed", range(6))
def test_loss(a_kind: str, b_kind: str, seed: int) -> None:
    """One packet in ten is lost on each link: slower, but the same tier."""
    world = World(seed)
    a, b = world.pair(a_kind, b_kind)
    a.link.loss = b.link.loss = 0.1
    a.link.jitter_s = b.link.jitter_s = 0.005
    world.run(3.0)
    talk(world, a, b, limit_s=30.0)
    wanted = Phase.DIRECT if best_is_direct(a_kind, b_kind) else Phase.RELAYED
    assert world.run(30.0, lambda: a.machine(b).phase is wanted and b.machine(a).phase is wanted)


@pytest.mark.parametrize("seed", range(8))
def test_routers_that_take_early_punches_for_themselves(seed: int) -> None:
    """A frame that comes before the peer has sent anything spoils the peer's port toward us. So nothing goes to an address
    behind a NAT before a beacon has told both sides; then the first frames cross on the way, however unequal the links are."""
    world = World(seed)
    a, b = world.pair("port_restricted", "port_restricted")
    a.link.delay_s, b.link.delay_s = (0.003, 0.060) if seed % 2 else (0.040, 0.010)
    for node in (a, b):
        assert node.nat
        node.nat.open_input = True
    if seed % 4 > 1:
        a, b = b, a
    world.run(1.0)
    talk(world, a, b)
    assert world.run(2.0, lambda: a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT)


@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_port_recovers(seed: int) -> None:
    """Even if it happened: the entry is forgotten, and some later attempt finds both ports clean."""
    world = World(seed)
    a, b = world.pair("port_restricted", "port_restricted")
    for node in (a, b):
        assert node.nat
        node.nat.open_input = True
    world.run(1.0)
    assert a.nat and b.nat
    b.nat._taken[b.nat._by_key[b.inside].port, (a.nat.ip, a.nat._by_key[a.inside].port)] = world.now_ns
    talk(world, a, b)
    assert world.run(180.0, lambda: a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT)
