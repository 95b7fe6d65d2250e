"""What happens to a working pair when the network, a peer or a server misbehaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simnat import SECOND, Nat
from simworld import SimNode, World
from test_matrix import talk

from pilot.traversal.decisions import Step
from pilot.traversal.path_actions import Phase


def connected(world: World, a: SimNode, b: SimNode, phase: Phase = Phase.DIRECT) -> int:
    """Both sides on the wanted tier, and a stream from a to b."""
    world.run(1.0)
    conn = a.dial(b)
    assert world.run(5.0, lambda: conn in a.open)
    assert world.run(10.0, lambda: a.machine(b).phase is phase and b.machine(a).phase is phase)
    return conn


class Stream:
    """A steady flow: a chunk every 20 ms; knows the longest silence at the receiver."""

    def __init__(self, world: World, a: SimNode, b: SimNode, conn: int) -> None:
        self.world, self.a, self.b, self.conn = world, a, b, conn
        self.sent = bytearray()
        self.on = True
        self._send()

    def _send(self) -> None:
        if not self.on or not self.a.up:
            return
        chunk = len(self.sent).to_bytes(8, "big") * 25
        self.sent += chunk
        self.a.send(self.conn, chunk)
        self.world.at(self.world.now_ns + 20_000_000, self._send)

    def finish(self, limit_s: float = 20.0) -> None:
        """Stops and demands every byte, once and in order."""
        self.on = False
        assert self.world.run(limit_s, lambda: self.b.received(self.a) == bytes(self.sent)), (
            f"{len(self.b.received(self.a))} of {len(self.sent)} bytes, seed {self.world.seed}"
        )

    def gap_s(self, since_ns: int) -> float:
        """Longest time without a byte at the receiver after `since_ns`."""
        times = sorted(t for i in self.b.inboxes.values() for t in i.at_ns if t >= since_ns)
        return max((y - x for x, y in zip([since_ns, *times], times, strict=False)), default=0) / 1e9


@pytest.mark.parametrize("direction", ["a to b", "b to a", "both"])
@pytest.mark.parametrize("kinds", [("none", "none"), ("port_restricted", "restricted")])
@pytest.mark.parametrize("seed", range(3))
def test_dead_direct_path(direction: str, kinds: tuple[str, str], seed: int) -> None:
    """A direct path dies, in one direction or both: the relay takes over within 3 s; when it heals, traffic
    goes back."""
    world = World(seed)
    a, b = world.pair(*kinds)
    stream = Stream(world, a, b, connected(world, a, b))
    world.run(2.0)
    cut = {"a to b": {"203.0.113.1"}, "b to a": {"203.0.113.2"}, "both": {"203.0.113.1", "203.0.113.2"}}[
        direction
    ]
    world.block = lambda src, dst, data: src[0] in cut and dst[0].startswith("203.")
    at = world.now_ns
    world.run(10.0)
    assert stream.gap_s(at) < 3.0
    assert a.machine(b).active.relay or direction == "b to a"
    assert any(d.step is Step.LOST for d in a.decisions + b.decisions)
    world.block = None
    at = world.now
    assert world.run(60.0, lambda: a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT)
    assert world.now - at < 50.0
    stream.finish()


@pytest.mark.parametrize("seed", range(3))
def test_upgrade_leaves_no_gap(seed: int) -> None:
    """The switch from relay to the punched path is not felt by the application."""
    world = World(seed)
    a, b = world.pair("port_restricted", "port_restricted")
    world.block = lambda src, dst, data: not {src[0], dst[0]} & {"198.51.100.1"}
    stream = Stream(world, a, b, connected(world, a, b, Phase.RELAYED))
    world.run(3.0)
    world.block = None
    at = world.now_ns
    assert world.run(60.0, lambda: a.machine(b).phase is Phase.DIRECT)
    world.run(2.0)
    assert stream.gap_s(at) < 0.1
    assert any(d.text.startswith("Upgraded to hole-punched") for d in a.decisions)
    stream.finish()


@pytest.mark.parametrize("seed", range(3))
def test_beacon_restart(seed: int) -> None:
    """The relay forgets everybody: a relayed stream flows again within 5 s."""
    world = World(seed)
    a, b = world.pair("symmetric", "symmetric")
    stream = Stream(world, a, b, connected(world, a, b, Phase.RELAYED))
    world.run(2.0)
    at = world.now_ns
    for beacon in world.beacons.values():
        beacon.restart()
    world.run(10.0)
    assert stream.gap_s(at) < 5.0
    stream.finish()


@pytest.mark.parametrize("seed", range(3))
def test_second_beacon_takes_over(seed: int) -> None:
    """The beacon that relays goes away for good."""
    world = World(seed)
    world.beacon("198.51.100.2")
    a, b = world.pair("symmetric", "symmetric")
    stream = Stream(world, a, b, connected(world, a, b, Phase.RELAYED))
    world.run(2.0)
    at = world.now_ns
    used = a.machine(b).active.addr
    world.beacons[used].up = False
    world.run(15.0)
    assert stream.gap_s(at) < 6.0
    assert a.machine(b).active.addr != used
    stream.finish()


@pytest.mark.parametrize("seed", range(2))
def test_agents_at_different_beacons(seed: int) -> None:
    """Each knows one beacon only; the beacons forward to each other."""
    world = World(seed)
    first, second = world.beacon("198.51.100.1"), world.beacon("198.51.100.2")
    a = world.node(1, "192.168.1.2", world.router("203.0.113.1", "symmetric"), beacons=[first])
    b = world.node(2, "192.168.2.2", world.router("203.0.113.2", "symmetric"), beacons=[second])
    a.trust(b)
    b.trust(a)
    world.run(1.0)
    assert talk(world, a, b) < 0.3
    assert world.run(5.0, lambda: a.machine(b).phase is Phase.RELAYED)


@pytest.mark.parametrize("seed", range(4))
def test_peer_restarts(seed: int) -> None:
    """The other process dies and comes back with new keys: the next dial works, without waiting for a
    timeout."""
    world = World(seed)
    a, b = world.pair("port_restricted", "restricted")
    connected(world, a, b)
    b.stop()
    world.run(1.0 + seed)
    b.start()
    b.trust(a)
    world.run(0.5)
    assert talk(world, a, b) < 2.5
    assert world.run(20.0, lambda: a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT)


@pytest.mark.parametrize("way", ["out", "back"])
@pytest.mark.parametrize("seed", range(8))
def test_roaming(seed: int, way: str) -> None:
    """One agent's router changes its address in the middle of a stream, whichever way that flows."""
    world = World(seed)
    a, b = world.pair("port_restricted", "port_restricted")
    conn = connected(world, a, b)
    stream = Stream(world, a, b, conn) if way == "out" else Stream(world, b, a, connected(world, b, a))
    world.run(2.0)
    at = world.now_ns
    del world.nats["203.0.113.1"]
    a.nat = world.router("203.0.113.77", "port_restricted")
    if seed % 2:  # the host noticed (netlink); otherwise silence tells
        a.paths.network_changed(world.now)
    world.run(10.0)
    assert stream.gap_s(at) < (1.0 if seed % 2 else 1.6)
    assert world.run(60.0, lambda: a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT)
    stream.finish()


@pytest.mark.parametrize("seed", range(6))
def test_a_slow_registry_delays_a_moved_agent_no_longer_than_it_takes(seed: int) -> None:
    """The beacons believe the new address when the registry does: then all is tried again at once, not at the next retry."""
    world = World(seed)
    a, b = world.pair("port_restricted", "port_restricted")
    stream = Stream(world, a, b, connected(world, a, b))
    world.run(2.0)
    at, told, ask = world.now_ns, [], world.ask_registry

    def late(node: SimNode, question: Callable[[], object], answer: Callable[..., None]) -> None:
        """What the moved agent wants of the registry gets through after a while."""
        world.at(world.now_ns + 5 * SECOND if node is a else 0, lambda: ask(node, question, answer))

    def registered(reply: object) -> None:
        told.append(world.now_ns)
        a.paths.set_node(a.number, world.now)

    world.ask_registry = late  # type: ignore[method-assign]
    a._registered = registered  # type: ignore[method-assign]
    del world.nats["203.0.113.1"]
    a.nat = world.router("203.0.113.77", "port_restricted")
    world.run(15.0)
    assert len(told) == 1
    assert stream.gap_s(at) < (told[0] - at) / 1e9 + 0.4
    stream.finish()


def test_short_mappings_are_kept() -> None:
    """A router that forgets after 30 s: an idle trusted pair stays direct and answers at once after ten
    minutes."""
    world = World(5)
    a, b = world.pair("port_restricted", "port_restricted", timeout_s=30.0)
    connected(world, a, b)
    world.run(600.0)
    assert a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT
    assert not any(d.step is Step.LOST for d in a.decisions + b.decisions)
    assert talk(world, a, b) < 0.1


def test_very_short_mappings() -> None:
    """A router that forgets after 15 s, below our keepalive: the interval adapts."""
    world = World(6)
    a, b = world.pair("port_restricted", "port_restricted", timeout_s=15.0)
    connected(world, a, b)
    world.run(900.0)
    late = [d for d in a.decisions + b.decisions if d.step is Step.LOST and d.at > world.now - 300]
    assert not late
    assert a.machine(b).phase is Phase.DIRECT


def test_idle_pair_is_quiet() -> None:
    """An idle pair costs a few packets a minute, on whatever tier."""
    for kinds in (("none", "none"), ("symmetric", "symmetric")):
        world = World(7)
        a, b = world.pair(*kinds)
        connected(world, a, b, Phase.DIRECT if kinds[0] == "none" else Phase.RELAYED)
        world.run(300.0)
        before = world.sent
        world.run(600.0)
        assert (world.sent - before) / 10 < 60, "packets per minute of both nodes"


@pytest.mark.parametrize("seed", range(3))
def test_same_lan(seed: int) -> None:
    """Two agents behind one router that does not hairpin talk over the LAN."""
    world = World(seed)
    world.beacon()
    nat = world.router("203.0.113.1", "port_restricted")
    a = world.node(1, "192.168.1.2", nat)
    b = world.node(2, "192.168.1.3", nat)
    for x, y in ((a, b), (b, a)):
        x.trust(y)
        x.lan = (x.inside,)
    connected(world, a, b)
    assert world.run(0.1, lambda: a.machine(b).kind == "lan" and b.machine(a).kind == "lan")  # the registry has told both


def test_without_a_beacon() -> None:
    """Public hosts need no beacon at all."""
    world = World(1)
    a, b = world.node(1, "203.0.113.1"), world.node(2, "203.0.113.2")
    a.trust(b)
    b.trust(a)
    for n in (a, b):
        world.register(n, n.inside)
    assert talk(world, a, b) < 0.3
    assert a.machine(b).kind == "direct"


@pytest.mark.parametrize("hidden", [1, 2])
def test_relay_only(hidden: int) -> None:
    """A relay-only node shows its address to nobody: no datagram ever goes between the two directly."""
    world = World(1)
    world.beacon()
    a = world.node(1, "203.0.113.1", hidden=hidden == 1)
    b = world.node(2, "203.0.113.2", hidden=hidden == 2)
    a.trust(b)
    b.trust(a)
    seen: list[bytes] = []
    world.block = lambda src, dst, data: bool(
        src[0][:4] == dst[0][:4] == "203." and (seen.append(data) or True)
    )
    world.run(1.0)
    talk(world, a, b)
    world.run(60.0)
    assert not seen
    assert sum(b.punches for b in world.beacons.values()) == 0
    assert a.machine(b).phase is Phase.RELAYED


def test_registry_outage() -> None:
    """The registry goes away after the first contact: keys and paths live on, new streams open."""
    world = World(3)
    a, b = world.pair("port_restricted", "restricted")
    connected(world, a, b)
    world.registry_up = False
    world.run(120.0)
    assert talk(world, a, b) < 0.2


def test_offline_peer_is_given_up() -> None:
    """Nobody answers: the user is told, and traffic toward the silent peer stays small."""
    world = World(4)
    a, b = world.pair("port_restricted", "restricted")
    world.run(1.0)
    b.stop()
    conn = a.dial(b, timeout=20.0)
    world.run(60.0)
    assert conn in a.failed
    assert any(d.step is Step.GAVE_UP for d in a.decisions)
    before = world.sent
    world.run(300.0)
    assert world.sent - before < 60
    b.start()
    b.trust(a)
    world.run(1.0)
    assert talk(world, a, b) < 0.5


def test_restarted_router() -> None:
    """The router of one side loses all mappings while the pair is busy."""
    world = World(8)
    a, b = world.pair("port_restricted", "port_restricted")
    stream = Stream(world, a, b, connected(world, a, b))
    world.run(2.0)
    at = world.now_ns
    assert isinstance(a.nat, Nat)
    a.nat.reset()
    world.run(10.0)
    assert stream.gap_s(at) < 3.0
    assert world.run(60.0, lambda: a.machine(b).phase is Phase.DIRECT)
    stream.finish()


@pytest.mark.parametrize("trouble", ["none", "dead path", "restart", "network"])
def test_a_pair_that_was_idle_for_hours(trouble: str) -> None:
    """Machines of idle peers sleep; nothing that happens then is missed or takes longer."""
    world = World(7)
    a, b = world.pair("none", "none")
    conn = connected(world, a, b)
    stream = Stream(world, a, b, conn)
    world.run(1.0)
    stream.finish()
    a.engine.close(conn)
    world.run(3600.0)
    asleep = [x.paths.sleeps(y.number) for x, y in ((a, b), (b, a))]
    assert any(asleep) and a.paths.connected(b.number), asleep
    at = world.now
    if trouble == "dead path":
        world.block = lambda src, dst, data: src[0].startswith("203.") and dst[0].startswith("203.")
        assert world.run(40.0, lambda: a.machine(b).phase is Phase.RELAYED and b.machine(a).phase is Phase.RELAYED)
    elif trouble == "restart":
        b.stop()
        b.start()
        b.trust(a)
    elif trouble == "network":
        a.paths.network_changed(world.now)
        assert not a.paths.sleeps(b.number)
    conn = a.dial(b)
    assert world.run(10.0, lambda: conn in a.open), f"{world.now - at:.1f} s"
    stream = Stream(world, a, b, conn)
    world.run(5.0)
    assert not a.paths.sleeps(b.number), "its traffic woke it"
    stream.on = False


TROUBLES = ("none", "restart", "network", "beacon restarts", "beacon dies", "direct opens", "peer moves")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_relayed_pair_that_was_idle_for_hours(trouble: str) -> None:
    """Peers reached through a beacon sleep as well, and wake for what concerns them."""
    world = World(11)
    world.beacon("198.51.100.2")
    if trouble == "direct opens":
        a, b = world.pair("none", "none")
        world.block = lambda src, dst, data: src[0].startswith("203.") and dst[0].startswith("203.")
    else:
        a, b = world.pair("symmetric", "symmetric")
    conn = connected(world, a, b, Phase.RELAYED)
    stream = Stream(world, a, b, conn)
    world.run(1.0)
    stream.finish()
    a.engine.close(conn)
    world.run(1.0)
    b.inboxes.clear()
    naps = [0, 0]
    for _ in range(3600):
        world.run(1.0)
        for i, (x, y) in enumerate(((a, b), (b, a))):
            naps[i] += x.paths.sleeps(y.number)
    assert min(naps) > 3000 and a.paths.connected(b.number), naps
    used = a.machine(b).active.addr
    if trouble == "restart":
        b.stop()
        b.start()
        b.trust(a)
        world.run(0.5)
    elif trouble == "network":
        a.paths.network_changed(world.now)
        assert not a.paths.sleeps(b.number)
    elif trouble == "beacon restarts":
        world.beacons[used].restart()
        world.run(25.0)
    elif trouble == "beacon dies":
        world.beacons[used].up = False
        assert world.run(60.0, lambda: a.machine(b).active.addr != used and b.machine(a).active.addr != used)
    elif trouble == "direct opens":
        world.block = None
        assert world.run(60.0, lambda: a.machine(b).phase is Phase.DIRECT and b.machine(a).phase is Phase.DIRECT)
    elif trouble == "peer moves":
        b.move("203.0.113.77", None)
        b.network_changed()
    at = world.now
    conn = a.dial(b)
    assert world.run(10.0, lambda: conn in a.open), f"{world.now - at:.1f} s"
    stream = Stream(world, a, b, conn)
    world.run(5.0)
    assert not a.paths.sleeps(b.number), "its traffic woke it"
    stream.finish()
    if trouble == "peer moves":
        assert world.run(60.0, lambda: a.machine(b).phase is Phase.DIRECT)


@pytest.mark.parametrize("kinds", [("none", "none"), ("symmetric", "symmetric")])
def test_the_first_packet_after_idleness_is_not_delayed(kinds: tuple[str, str]) -> None:
    world = World(5)
    a, b = world.pair(*kinds)
    phase = Phase.DIRECT if kinds[0] == "none" else Phase.RELAYED
    a.hang_up(connected(world, a, b, phase))
    world.run(600.0)
    assert world.run(60.0, lambda: a.paths.sleeps(b.number) and b.paths.sleeps(a.number))
    was = world.now
    conn = a.dial(b)
    assert world.run(1.0, lambda: conn in a.open)
    rtt = a.machine(b).active.srtt
    assert rtt and world.now - was < 1.2 * rtt + 0.002
