"""The NAT class from probes, on virtual time: a model of a NAT and of a beacon with several sockets; loss comes from a seed."""

from __future__ import annotations

import random

import pytest

from pilot.traversal.discovery import Discovery, EndpointChanged, NatChanged, SendDiscover, SendProbe
from pilot.traversal.nat import NatType
from pilot.wire import beacon as wire
from pilot.wire.beacon import ProbeSource

Addr = tuple[str, int]
MAIN: Addr = ("198.51.100.1", 9001)
ALT = "198.51.100.2"
OBSERVER, QUIET = 7001, 7002
INSIDE: Addr = ("192.168.1.2", 4000)
RTT = 0.04


class Nat:
    """mapping, filtering: "endpoint", "address", "port": what they depend on."""

    def __init__(self, mapping: str, filtering: str, outside: str = "203.0.113.7") -> None:
        self.mapping = mapping
        self.filtering = filtering
        self.outside = outside
        self.sent: set[Addr] = set()
        self.ports: dict[object, int] = {}

    def _key(self, what: str, to: Addr) -> object:
        return {"endpoint": None, "address": to[0], "port": to}[what]

    def out(self, to: Addr) -> Addr:
        self.sent.add(to)
        key = self._key(self.mapping, to)
        return self.outside, self.ports.setdefault(key, 40000 + len(self.ports))

    def lets_in(self, source: Addr, to: Addr) -> bool:
        if self.filtering == "endpoint":
            return True
        wanted = self._key(self.filtering, source)
        return any(self._key(self.filtering, s) == wanted and self.out(s) == to for s in set(self.sent))


class World:
    """One node, its beacons, time."""

    def __init__(self, nat: Nat, *, alt: bool = True, loss: float = 0.0, seed: int = 1, foreign: tuple[Addr, ...] = ()) -> None:
        self.nat, self.alt, self.loss, self.foreign = nat, alt, loss, foreign
        self.rng = random.Random(seed)
        self.now = 0.0
        self.node = Discovery(random=self.rng.randbytes)
        self.node.set_local([INSIDE[0]], INSIDE[1])
        self.queue: list[tuple[float, int, Addr, bytes]] = []
        self.probes: list[Addr] = []
        self.classes: list[NatType] = []
        self.observer_answers = True

    def send(self, to: Addr, data: bytes) -> None:
        seen = self.nat.out(to)
        if self.rng.random() < self.loss:
            return
        message = wire.parse(data)
        if isinstance(message, wire.Discover):
            self.arrive(to, seen, wire.DiscoverReply(seen).build())
        elif isinstance(message, wire.Probe) and to not in self.foreign:
            alternate = (ALT, OBSERVER) if self.alt else None
            answers = [(ProbeSource.ASKED, to)]
            if to == MAIN:
                answers.insert(0, (ProbeSource.OTHER_PORT, (to[0], QUIET)))
                answers += [(ProbeSource.OTHER_ADDRESS, (ALT, QUIET))] if self.alt else []
            elif to[1] != OBSERVER or not self.observer_answers:
                return
            for source, sender in answers:
                self.arrive(sender, seen, wire.ProbeReply(source, message.nonce, seen, OBSERVER, alternate).build())

    def arrive(self, sender: Addr, to: Addr, data: bytes) -> None:
        if self.rng.random() >= self.loss and self.nat.lets_in(sender, to):
            self.queue.append((self.now + RTT, len(self.queue), sender, data))

    def flush(self) -> None:
        for action in self.node.take():
            if isinstance(action, SendDiscover):
                self.send(action.beacon, wire.discover(action.node))
            elif isinstance(action, SendProbe):
                assert len(action.data) == wire.PROBE_SIZE
                self.probes.append(action.addr)
                self.send(action.addr, action.data)
            elif isinstance(action, NatChanged):
                self.classes.append(action.nat)

    def run(self, seconds: float) -> NatType:
        end = self.now + seconds
        while True:
            self.flush()
            times = [t for t in (self.node.deadline(), min(self.queue)[0] if self.queue else None) if t is not None]
            if not times or min(times) > end:
                self.now = end
                return self.node.nat
            self.now = max(self.now, min(times))
            due = sorted(entry for entry in self.queue if entry[0] <= self.now)
            self.queue = [entry for entry in self.queue if entry[0] > self.now]
            for _, _, sender, data in due:
                message = wire.parse(data)
                if isinstance(message, wire.DiscoverReply):
                    self.node.reply(sender, message.endpoint, self.now)
                elif isinstance(message, wire.ProbeReply):
                    self.node.probe_reply(sender, message, self.now)
            self.node.tick(self.now)


KINDS = [
    ("endpoint", "endpoint", NatType.FULL_CONE), ("endpoint", "address", NatType.RESTRICTED_CONE),
    ("endpoint", "port", NatType.PORT_RESTRICTED_CONE), ("port", "port", NatType.SYMMETRIC),
    ("address", "port", NatType.SYMMETRIC), ("port", "endpoint", NatType.SYMMETRIC), ("address", "endpoint", NatType.SYMMETRIC),
]  # fmt: skip


@pytest.mark.parametrize(("mapping", "filtering", "expected"), KINDS)
def test_class_within_a_second_and_again_after_a_restart(mapping: str, filtering: str, expected: NatType) -> None:
    world = World(Nat(mapping, filtering))
    world.node.set_beacons([MAIN], 0.0)
    assert world.run(1.0) is expected and not world.node.measuring
    assert world.classes == [expected], "nothing wrong is said on the way"
    again = World(world.nat)  # a new process on the same port: the NAT remembers what the old one sent
    again.node.set_beacons([MAIN], 0.0)
    assert again.run(1.0) is expected
    assert len(again.probes) <= 6


@pytest.mark.parametrize(("mapping", "filtering", "expected"), KINDS)
@pytest.mark.parametrize("seed", range(40))
def test_loss_does_not_make_it_say_better_than_it_is(mapping: str, filtering: str, expected: NatType, seed: int) -> None:
    """With a fifth of the datagrams lost the class may be missing or stricter, never wider."""
    world = World(Nat(mapping, filtering), loss=0.2, seed=seed)
    world.node.set_beacons([MAIN], 0.0)
    got = world.run(8.0)
    order = [NatType.FULL_CONE, NatType.RESTRICTED_CONE, NatType.PORT_RESTRICTED_CONE, NatType.SYMMETRIC]
    assert got in (NatType.UNKNOWN, *order[order.index(expected) :]), f"seed {seed}"


@pytest.mark.parametrize(("filtering", "expected"), [
    ("endpoint", NatType.RESTRICTED_CONE), ("address", NatType.RESTRICTED_CONE), ("port", NatType.PORT_RESTRICTED_CONE),
])  # fmt: skip
def test_one_address_says_the_stricter(filtering: str, expected: NatType) -> None:
    for _ in range(2):
        world = World(Nat("endpoint", filtering), alt=False)
        world.node.set_beacons([MAIN], 0.0)
        assert world.run(2.0) is expected


@pytest.mark.parametrize(("filtering", "alt", "expected"), [
    ("endpoint", True, NatType.OPEN), ("endpoint", False, NatType.OPEN), ("port", True, NatType.PORT_RESTRICTED_CONE),
    ("port", False, NatType.PORT_RESTRICTED_CONE), ("address", True, NatType.RESTRICTED_CONE),
])  # fmt: skip
def test_a_public_host_with_and_without_a_firewall(filtering: str, alt: bool, expected: NatType) -> None:
    nat = Nat("endpoint", filtering, INSIDE[0])
    nat.ports[None] = INSIDE[1]
    world = World(nat, alt=alt)
    world.node.set_beacons([MAIN], 0.0)
    assert world.run(2.0) is expected


def test_a_foreign_beacon_costs_a_few_datagrams_and_the_next_one_is_asked() -> None:
    other: Addr = ("198.51.100.9", 9001)
    world = World(Nat("endpoint", "port"), foreign=(other,))
    world.node.set_beacons([other], 0.0)
    assert world.run(30.0) is NatType.UNKNOWN and not world.node.measuring
    assert world.probes == [other] * 3
    world.node.set_beacons([other, MAIN], world.now)
    assert world.run(5.0) is NatType.PORT_RESTRICTED_CONE
    assert world.probes.count(other) == 3


def test_an_observer_behind_a_firewall_leaves_it_unknown_unless_a_second_beacon_tells() -> None:
    world = World(Nat("endpoint", "port"))
    world.observer_answers = False
    world.node.set_beacons([MAIN], 0.0)
    assert world.run(5.0) is NatType.UNKNOWN
    world.node.set_beacons([MAIN, ("198.51.100.9", 9001)], world.now)
    assert world.run(5.0) is NatType.PORT_RESTRICTED_CONE


def test_measured_again_when_the_endpoint_moves_but_not_all_the_time() -> None:
    world = World(Nat("endpoint", "endpoint"))
    world.node.set_beacons([MAIN], 0.0)
    assert world.run(15.0) is NatType.FULL_CONE
    count = len(world.probes)
    world.run(300.0)
    assert len(world.probes) == count, "nothing changed"
    world.nat = Nat("port", "port", "203.0.113.99")
    world.node.check(world.now)
    assert world.run(3.0) is NatType.SYMMETRIC
    count = len(world.probes)
    for i in range(60):  # every second another address
        world.nat = Nat("port", "port", f"203.0.113.{i}")
        world.node.check(world.now)
        world.node.network_changed(world.now)
        world.run(1.0)
    assert len(world.probes) - count <= 7 * 6


def test_nothing_is_measured_with_a_fixed_endpoint_or_without_udp() -> None:
    fixed = Discovery(fixed=("203.0.113.7", 4000))
    fixed.set_beacons([MAIN], 0.0)
    fixed.tick(0.0)
    assert [type(a) for a in fixed.take() if isinstance(a, SendProbe)] == []
    world = World(Nat("endpoint", "port"))
    world.node.set_beacons([MAIN], 0.0)
    world.run(2.0)
    world.node.set_blocked(True)
    count = len(world.probes)
    assert world.run(30.0) is NatType.BLOCKED and len(world.probes) == count
    world.node.set_blocked(False)
    assert world.run(2.0) is NatType.PORT_RESTRICTED_CONE


def test_forged_answers_are_nothing() -> None:
    """Without the nonce, or from where it cannot come, an answer changes nothing."""
    node = Discovery(random=lambda n: b"\x5a" * n)
    node.set_beacons([MAIN], 0.0)
    node.tick(0.0)
    seen: Addr = ("203.0.113.7", 40000)
    node.reply(MAIN, seen, RTT)

    def forge(sender: Addr, source: ProbeSource, nonce: bytes = b"\x5a" * 8) -> None:
        node.probe_reply(sender, wire.ProbeReply(source, nonce, seen, OBSERVER, (ALT, OBSERVER)), RTT)

    forge(MAIN, ProbeSource.ASKED, b"\0" * 8)
    forge((ALT, QUIET), ProbeSource.OTHER_ADDRESS, b"\0" * 8)
    forge(("198.51.100.66", 9001), ProbeSource.ASKED)
    forge(MAIN, ProbeSource.OTHER_PORT)
    forge((MAIN[0], QUIET), ProbeSource.OTHER_ADDRESS)
    node.take()
    now = RTT
    probes: list[Addr] = []
    while (at := node.deadline()) is not None and at < 3.0:
        now = max(now, at)
        node.tick(now)
        probes += [a.addr for a in node.take() if isinstance(a, SendProbe)]
    assert node.nat is NatType.UNKNOWN and set(probes) == {MAIN}


def test_a_beacon_cannot_make_us_probe_inside_our_network() -> None:
    node = Discovery()
    node.set_beacons([MAIN], 0.0)
    node.tick(0.0)
    probe = next(a for a in node.take() if isinstance(a, SendProbe))
    nonce = probe.data[2:10]
    for sender, source in (((ALT, QUIET), ProbeSource.OTHER_ADDRESS), (MAIN, ProbeSource.ASKED)):
        reply = wire.ProbeReply(source, nonce, ("203.0.113.7", 40000), OBSERVER, ("192.168.1.1", 53))
        node.probe_reply(sender, reply, RTT)
    assert not [a for a in node.take() if isinstance(a, SendProbe | EndpointChanged)]
