"""Beacons with a secret: the handshake on virtual time against loss, recordings and restarts; then real beacons."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from beacon_support import Addr, Udp, until
from test_cluster import at, two_ports

from pilot.beacon import Beacon, BeaconConfig
from pilot.beacon.secret import LETTER_SIZE, STRAY, Handshakes, OpenKey, SealKey, Send
from pilot.wire import beacon as wire

ONE, TWO = ("198.51.100.1", 9001), ("198.51.100.2", 9001)
SECRET = "correct horse battery staple"


class Side:
    """A beacon's handshake and what came of it."""

    def __init__(self, own: Addr, peer: Addr, rng: random.Random, secret: str = SECRET) -> None:
        self.own, self.peer = own, peer
        self.machine = Handshakes(secret, rng.randbytes)
        self.machine.set_peers([peer], [peer], 0.0)
        self.seal: tuple[int, bytes] | None = None
        self.opens: dict[int, bytes] = {}
        self.sent: list[bytes] = []

    def work(self, now: float) -> list[bytes]:
        """Letters that leave now."""
        if (due := self.machine.deadline()) is not None and due <= now:
            self.machine.tick(now)
        letters = []
        for action in self.machine.take():
            match action:
                case Send():
                    letters.append(action.letter)
                case SealKey():
                    self.seal = (action.session, action.key)
                case OpenKey():
                    self.opens[action.session] = action.key
        self.sent += letters
        return letters

    def reaches(self, other: Side) -> bool:
        """What it seals opens at the other side."""
        return self.seal is not None and other.opens.get(self.seal[0]) == self.seal[1]


class World:
    def __init__(self, seed: int, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 0.0
        self.a, self.b = Side(ONE, TWO, self.rng), Side(TWO, ONE, self.rng)

    def run(self, seconds: float) -> None:
        """Letters take 10 ms."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.01
            for side, other in ((self.a, self.b), (self.b, self.a)):
                for letter in side.work(self.now):
                    if self.rng.random() >= self.loss:
                        other.machine.receive(side.own, letter, self.now)

    @property
    def joined(self) -> bool:
        return self.a.reaches(self.b) and self.b.reaches(self.a)


def test_one_round_trip() -> None:
    world = World(1)
    world.run(0.05)
    assert world.joined and world.a.seal != world.b.seal
    assert all(len(letter) == LETTER_SIZE for letter in world.a.sent + world.b.sent), "no answer is larger than its question"
    world.run(200.0)
    assert len(world.a.sent) + len(world.b.sent) <= 6, "then there is quiet"
    first = world.a.seal
    world.run(200.0)
    assert world.joined and world.a.seal != first, "keys are renewed"


@pytest.mark.parametrize("seed", range(20))
def test_losses(seed: int) -> None:
    world = World(seed, loss=0.5)
    world.run(60.0)
    assert world.joined


@pytest.mark.parametrize("seed", range(5))
def test_a_restart_of_either_side(seed: int) -> None:
    world = World(seed, loss=0.2)
    world.run(20.0)
    world.b = Side(TWO, ONE, world.rng)
    world.b.machine.set_peers([ONE], [ONE], world.now)
    world.run(10.0)
    assert world.joined
    world.a = Side(ONE, TWO, world.rng)
    world.a.machine.set_peers([TWO], [TWO], world.now)
    world.run(10.0)
    assert world.joined


def test_a_restart_whose_hello_is_lost_shows_in_the_first_datagram() -> None:
    """The relay says that it cannot open what the peer sends: the peer is greeted, and greets back."""
    world = World(3)
    world.run(1.0)
    lost = Side(TWO, ONE, world.rng)
    lost.machine.set_peers([ONE], [], 0.0)  # sends no hello of its own accord
    world.b = lost
    world.run(5.0)
    assert not world.a.reaches(world.b)
    lost.machine.set_peers([ONE], [ONE], world.now)
    lost.machine.receive(ONE, STRAY, world.now)
    world.run(0.2)
    assert world.joined


def test_recordings_of_a_former_life_lead_to_no_known_key() -> None:
    """Both directions of a whole session, repeated to either side: neither takes a key again, and the session in use stays."""
    world = World(4)
    world.run(1.0)
    old = [*world.a.sent], [*world.b.sent]
    keys = {*world.a.opens.values(), *world.b.opens.values()}
    world.a, world.b = Side(ONE, TWO, world.rng), Side(TWO, ONE, world.rng)
    for side in (world.a, world.b):
        side.machine.set_peers([side.peer], [side.peer], world.now)
    world.run(1.0)
    assert world.joined
    seals = world.a.seal, world.b.seal
    for _ in range(50):
        for letter in old[0]:
            world.b.machine.receive(ONE, letter, world.now)
        for letter in old[1]:
            world.a.machine.receive(TWO, letter, world.now)
        world.run(0.05)
        assert world.joined
    assert not keys & {*world.a.opens.values(), *world.b.opens.values()}
    assert len(world.a.opens) < 20, "recordings at high speed make few keys"
    world.run(5.0)
    assert world.joined and seals[0] is not None and seals[1] is not None


def test_letters_of_strangers_and_reflected_ones() -> None:
    world = World(5)
    world.run(1.0)
    seal = world.a.seal
    world.a.machine.receive(("192.0.2.66", 1), world.b.sent[0], world.now)
    assert world.a.work(world.now) == []
    for letter in [*world.a.sent]:
        world.a.machine.receive(TWO, letter, world.now)  # its own, as if from the peer
    world.run(1.0)
    assert world.joined or world.a.seal != seal
    world.run(2.0)
    assert world.joined


def test_another_secret_makes_other_keys() -> None:
    world = World(6)
    world.b = Side(TWO, ONE, world.rng, secret=SECRET + "!")
    assert world.a.machine.letter_key != world.b.machine.letter_key, "the relay would drop all letters"
    world.run(1.0)
    assert not world.a.reaches(world.b)


# Real beacons

Start = Callable[..., Awaitable[Beacon]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    running: list[Beacon] = []

    async def run(number: int, port: int, peer: int, secret: str = SECRET) -> Beacon:
        config = BeaconConfig(
            bind=("127.0.0.1", port), beacon=number, peers=(("127.0.0.1", peer),), gossip_s=3600.0, refresh_s=0.2, secret=secret
        )
        beacon = Beacon(config)
        running.append(beacon)
        await beacon.start()
        return beacon

    yield run
    for beacon in running:
        await beacon.stop()


async def test_two_beacons_with_a_secret(start: Start) -> None:
    one, two = two_ports()
    first, second = await start(1, one, two), await start(2, two, one)
    a, b = Udp(at(one)).register(100), Udp(at(two)).register(200)
    await until(lambda: first.stats()["routes"] == second.stats()["routes"] == 1, "each knows the other's node")
    a.relay(100, 200, b"PILS" + bytes(1200))
    await until(b.arrived, "a relayed datagram")
    assert b.receive() == (wire.Deliver(100, b"PILS" + bytes(1200)).build(), at(two))
    a.send(wire.punch_request(100, 200))
    await until(lambda: a.arrived() and b.arrived(), "an introduction")
    assert a.receive()[0] == wire.PunchCommand(b.addr).build() and b.receive()[0] == wire.PunchCommand(a.addr).build()

    await second.stop()
    second = await start(2, two, one)
    a.waiting()
    b.waiting()

    def arrives() -> bool:
        a.relay(100, 200, b"PILS")
        b.relay(200, 100, b"PILS")
        return wire.Deliver(100, b"PILS").build() in b.waiting()

    await until(arrives, "the flow goes on after a restart", 5.0)
    a.close()
    b.close()


async def test_who_sits_at_the_peers_address_without_the_secret_is_nobody(start: Start) -> None:
    """Even from the very address of the peer: no routes, no introductions, no relayed datagrams."""
    one, two = two_ports()
    first = await start(1, one, two)
    forger = Udp(at(one), port=two)
    node = Udp(at(one)).register(100)
    await until(forger.arrived, "it is greeted as the peer")
    for forged in (
        wire.Sync(2, (200, 300)).build(), wire.relay(200, 100, b"PILS"), bytes.fromhex("0d0000000064000000c8") + b"\4" + bytes(6)
    ):
        forger.send(forged)
    forger.send(wire.discover(0))
    await until(lambda: first.stats()["forged"] == 3, "all are counted")
    assert first.stats()["routes"] == 0 and not node.arrived()
    heard = forger.waiting()
    assert {len(d) for d in heard} <= {LETTER_SIZE, 8}, "it is greeted, and answered where it is; nothing else"
    forger.close()
    node.close()


async def test_beacons_with_different_secrets_stay_strangers(start: Start) -> None:
    one, two = two_ports()
    first, second = await start(1, one, two), await start(2, two, one, SECRET + "!")
    a = Udp(at(one)).register(100)
    await until(lambda: second.stats()["forged"] and first.stats()["forged"], "letters do not fit")
    await asyncio.sleep(0.3)
    assert second.stats()["routes"] == 0 and first.stats()["sessions"] == second.stats()["sessions"] == 0
    a.close()


def test_a_secret_is_not_shown() -> None:
    assert SECRET not in repr(BeaconConfig(secret=SECRET))
