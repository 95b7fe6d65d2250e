"""The path machine alone, on virtual time: what it asks for, what it says, and that it never spins."""

from __future__ import annotations

import itertools
import random

import pytest

from pilot.traversal.candidates import Candidate
from pilot.traversal.decisions import Step
from pilot.traversal.machines import AFTER_NS
from pilot.traversal.nat import NatType
from pilot.traversal.path import PathMachine
from pilot.traversal.path_actions import (
    AskAddresses,
    Decided,
    ExchangeAgain,
    PathAction,
    Phase,
    Probe,
    PunchTo,
    RequestPunch,
    SetPath,
)
from pilot.traversal.punching import HOLD_S

PEER = ("203.0.113.2", 4000)
LAN = ("192.168.1.3", 4000)
BEACON = ("198.51.100.1", 9001)


class Driver:
    """Runs one machine; `answers` tells which ways answer probes, and after how long."""

    def __init__(self, *, relay: bool = True, hidden: bool = False, sleeps: bool = False) -> None:
        """sleeps: the machine is packed whenever it can be."""
        self.token = itertools.count(1).__next__
        self.machine = PathMachine(2, token=self.token, hidden=hidden)
        self.sleeps, self.slept = sleeps, 0
        self.relays = [(BEACON, 0.02)] if relay else []
        self.now = 100.0
        self.answers: dict[tuple[tuple[str, int], bool], float] = {}
        self.actions: list[tuple[float, PathAction]] = []
        self._pongs: list[tuple[float, Probe, float]] = []
        if relay:
            self.machine.set_relays(self.relays, self.now)

    def collect(self) -> None:
        for action in self.machine.take():
            self.actions.append((self.now, action))
            if isinstance(action, Probe) and (action.addr, action.relay) in self.answers:
                rtt = self.answers[(action.addr, action.relay)]
                self._pongs.append((self.now + rtt, action, rtt))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(20_000):
            self.collect()
            self._pongs.sort(key=lambda p: p[0])
            times = [p[0] for p in self._pongs[:1]]
            at = self.machine.deadline()
            if at is not None:
                times.append(at)
            if min(times, default=end) >= end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            while self._pongs and self._pongs[0][0] <= self.now:
                _, probe, rtt = self._pongs.pop(0)
                self.machine.pong(probe.token, probe.relay, rtt, self.now)
            self.machine.tick(self.now)
            self.nap()
        raise AssertionError("the machine spins")

    def nap(self) -> None:
        """The machine sleeps, if it can, and wakes."""
        self.collect()
        state = self.machine.packed(self.now) if self.sleeps else None
        if state:
            self.slept += 1
            own_nat = self.machine.own_nat
            self.machine = PathMachine.unpacked(state, 2, self.relays, token=self.token, hidden=False)
            self.machine.own_nat = own_nat

    def of(self, kind: type) -> list[PathAction]:
        return [a for _, a in self.actions if isinstance(a, kind)]

    def texts(self) -> list[str]:
        return [a.decision.text for a in self.of(Decided)]  # type: ignore[union-attr]

    def start(self, *, direct: bool = False) -> None:
        self.machine.want(self.now)
        self.machine.set_addresses([PEER], [], False, self.now)
        self.run(0.1)
        if direct:
            self.machine.hint(PEER, self.now)
        self.machine.session_ready(direct, self.now)


def test_the_article() -> None:
    """Relay after everything else failed: the published lines, in their order."""
    d = Driver()
    d.answers[(BEACON, True)] = 0.035
    d.start()
    d.machine.peer_nat = NatType.SYMMETRIC
    d.machine.punch_command(PEER, d.now)
    d.run(3.0)
    assert d.texts() == [
        "Trying direct... failed (3 attempts)",
        "Trying hole-punch... failed (symmetric NAT on remote)",
        "Falling back to relay...",
        "Connected via relay (encrypted, 15ms overhead)",
    ]
    assert d.machine.kind == "relay" and d.machine.phase is Phase.RELAYED


def test_the_relay_carries_at_once() -> None:
    d = Driver()
    d.start()
    d.run(0.001)
    assert d.of(SetPath) == [SetPath(BEACON, True)], "no probe has to be answered first"


def test_direct_answer_wins() -> None:
    d = Driver()
    d.answers = {(BEACON, True): 0.04, (PEER, False): 0.012}
    d.start()
    d.run(2.0)
    assert d.of(SetPath) == [SetPath(BEACON, True), SetPath(PEER, False)]
    assert d.texts() == ["Connected directly (encrypted, 12ms)"]


def test_no_detour_when_the_exchange_came_directly() -> None:
    d = Driver()
    d.answers = {(BEACON, True): 0.04, (PEER, False): 0.012}
    d.start(direct=True)
    d.run(2.0)
    assert d.of(SetPath) == [SetPath(PEER, False)]


def test_never_to_an_unproved_address() -> None:
    """Hints, punch commands and registry entries are probed; traffic goes there only after an answer."""
    d = Driver(relay=False)
    d.start()
    d.machine.hint(("203.0.113.66", 1), d.now)
    d.machine.punch_command(("203.0.113.67", 2), d.now)
    d.machine.seen(("203.0.113.68", 3), False, d.now)
    d.run(10.0)
    assert not d.of(SetPath)
    probed = {a.addr for a in d.of(Probe)}  # type: ignore[union-attr]
    assert {PEER, ("203.0.113.66", 1), ("203.0.113.67", 2), ("203.0.113.68", 3)} <= probed


@pytest.mark.parametrize("answers", [True, False])
def test_a_restarted_peer_is_followed_and_the_relay_takes_over_unless_it_answers(answers: bool) -> None:
    d = Driver()
    d.answers = {(BEACON, True): 0.04, (PEER, False): 0.012}
    d.start(direct=True)
    d.run(2.0)
    there = (PEER[0], 5555)
    del d.answers[PEER, False]
    if answers:
        d.answers[there, False] = 0.012
    d.machine.key_settled(True, d.now)
    d.machine.moved(there, d.now)
    d.run(0.001)
    assert d.of(SetPath)[-1] == SetPath(there, False)
    d.run(1.0)
    assert d.of(SetPath)[-1] == (SetPath(there, False) if answers else SetPath(BEACON, True))


@pytest.mark.parametrize("answers", [True, False])
def test_a_restarted_peer_is_followed_behind_the_relay_until_its_address_answers(answers: bool) -> None:
    d = Driver()
    d.answers = {(BEACON, True): 0.04, (PEER, False): 0.012}
    d.start(direct=True)
    d.run(2.0)
    assert d.machine.phase is Phase.DIRECT
    if not answers:
        del d.answers[PEER, False]
    d.machine.key_settled(True, d.now)
    d.machine.moved_behind_relay(d.now)
    d.run(0.001)
    assert d.of(SetPath)[-1] == SetPath(BEACON, True)
    d.run(1.0)
    assert d.of(SetPath)[-1] == (SetPath(PEER, False) if answers else SetPath(BEACON, True))


def test_nothing_goes_to_a_foreign_nat_before_the_punch() -> None:
    """It could spoil the port the peer is known by. The relay carries meanwhile, the local network is not concerned."""
    d = Driver()
    d.machine.want(d.now)
    d.machine.set_addresses([PEER], [LAN], False, d.now)
    d.run(0.02)
    assert d.machine.direct_targets(d.now) == [LAN] and d.of(RequestPunch)
    d.machine.session_ready(False, d.now)
    d.run(0.02)
    assert {a.addr for a in d.of(Probe)} == {BEACON, LAN} and d.of(SetPath) == [SetPath(BEACON, True)]  # type: ignore[union-attr]
    d.machine.punch_command(PEER, d.now)
    d.run(0.001)
    assert PEER in {a.addr for a in d.of(Probe)} and d.of(PunchTo)  # type: ignore[union-attr]
    assert d.machine.direct_targets(d.now)[:2] == [LAN, PEER]


def test_a_beacon_that_knows_nothing_of_the_peer_delays_little() -> None:
    d = Driver()
    d.answers = {(PEER, False): 0.012}
    d.machine.want(d.now)
    d.machine.set_addresses([PEER], [], False, d.now)
    start = d.now
    d.run(0.5)
    again = [at for at, a in d.actions if isinstance(a, ExchangeAgain)]
    assert again and again[0] - start <= HOLD_S and d.machine.direct_targets(d.now) == [PEER]
    d.machine.session_ready(False, d.now)
    d.run(1.0)
    assert d.machine.phase is Phase.DIRECT


def test_lan_is_best() -> None:
    d = Driver()
    d.answers = {(BEACON, True): 0.04, (PEER, False): 0.010, (LAN, False): 0.011}
    d.machine.want(d.now)
    d.machine.set_addresses([PEER], [LAN], False, d.now)
    d.machine.session_ready(False, d.now)
    d.run(2.0)
    assert d.machine.kind == "lan" and d.machine.active.addr == LAN


def test_punched_path_is_called_so() -> None:
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.start()
    d.run(0.55)
    d.answers[(PEER, False)] = 0.02
    d.machine.punch_command(PEER, d.now)
    d.run(1.0)
    assert d.texts() == ["Trying direct... failed (3 attempts)", "Connected via hole-punch (encrypted, 20ms)"]
    assert PunchTo(PEER) in d.of(PunchTo)
    d.machine.peer_nat = NatType.OPEN
    assert d.machine.kind == "direct", "an open peer needed no punch"


@pytest.mark.parametrize("own", [NatType.RESTRICTED_CONE, NatType.PORT_RESTRICTED_CONE, NatType.SYMMETRIC])
def test_a_path_between_two_filters_was_punched_though_the_command_came_to_an_earlier_life(own: NatType) -> None:
    d = Driver()
    d.machine.own_nat, d.machine.peer_nat = own, NatType.PORT_RESTRICTED_CONE
    d.answers[(PEER, False)] = 0.02
    d.start()
    d.run(1.0)
    assert d.machine.kind == "hole-punched"
    d.machine.own_nat = NatType.FULL_CONE
    assert d.machine.kind == "direct"


def test_a_node_that_the_beacons_know_again_tries_at_once_what_had_failed() -> None:
    d = Driver()
    d.start()
    d.run(60.0)
    assert d.machine.phase is Phase.LOST
    d.answers[(BEACON, True)] = 0.04
    d.actions.clear()
    d.machine.known_again(d.now)
    d.run(0.1)
    assert d.machine.active and d.machine.active.relay and d.machine.active.answered and d.of(RequestPunch)
    d.answers[(PEER, False)] = 0.02
    d.machine.seen(PEER, False, d.now)
    d.run(1.0)
    assert d.machine.phase is Phase.DIRECT
    d.actions.clear()
    d.machine.known_again(d.now)
    d.run(0.1)
    assert not d.of(RequestPunch), "a direct path needs no beacon"


def test_relay_only_peer_is_never_punched_or_probed() -> None:
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.machine.want(d.now)
    d.machine.set_addresses([], [], True, d.now)
    d.machine.session_ready(False, d.now)
    d.machine.seen(PEER, False, d.now)
    d.machine.hint(PEER, d.now)
    d.machine.punch_command(PEER, d.now)
    d.run(300.0)
    assert not d.of(RequestPunch) and not d.of(PunchTo)
    assert {a.relay for a in d.of(Probe)} == {True}  # type: ignore[union-attr]
    assert d.texts()[0] == "Trying direct... skipped (relay-only)"


def test_a_peer_that_shows_itself_again_is_found() -> None:
    """UDP was blocked on both sides: each has heard that the other shows no address, and neither speaks up first."""
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.machine.want(d.now)
    d.machine.set_addresses([], [], True, d.now)
    d.machine.session_ready(False, d.now)
    asked = 0
    for second in range(600):
        if second < 300:
            d.machine.traffic(d.now, d.now, 100 * second, d.now)
        d.run(1.0)
        if second == 299:
            asked = len(d.of(AskAddresses))
    assert 6 <= asked <= 16, "every 45 s while there is traffic"
    assert len(d.of(AskAddresses)) <= asked + 2, "seldom without"
    d.answers[(PEER, False)] = 0.02
    d.machine.set_addresses([PEER], [], False, d.now)
    d.run(2.0)
    assert d.machine.phase is Phase.DIRECT


def test_hidden_node_shows_itself_to_nobody() -> None:
    d = Driver(hidden=True)
    d.start()
    d.machine.punch_command(PEER, d.now)
    d.run(60.0)
    assert not d.of(PunchTo) and d.machine.direct_targets(d.now) == []
    assert {a.relay for a in d.of(Probe)} == {True}  # type: ignore[union-attr]


@pytest.mark.parametrize("busy", [True, False])
def test_a_dead_path_is_left_within_seconds(busy: bool) -> None:
    d = Driver()
    d.answers = {(BEACON, True): 0.04, (PEER, False): 0.02}
    d.start()
    d.run(5.0)
    sent = 0

    def traffic(seconds: float) -> None:
        nonlocal sent
        for _ in range(int(seconds / 0.5)):
            sent += 50 if busy else 1
            # Busy: bytes keep coming in, only our own direction is dead. Else: one request, no answer.
            d.machine.traffic(d.now if busy else died - 1.0, d.now, sent, d.now)
            d.run(0.5)

    died = d.now
    if busy:
        traffic(5.0)
    died = d.now
    del d.answers[(PEER, False)]
    traffic(3.0)
    assert d.machine.active.relay
    switched = next(t for t, a in d.actions if t > died and isinstance(a, SetPath))
    assert switched - died < 3.0
    assert any(text.startswith("The direct path stopped answering") for text in d.texts())
    d.answers[(PEER, False)] = 0.02
    d.run(60.0)
    assert d.machine.phase is Phase.DIRECT


def test_relayed_peer_tries_for_ever_and_cheaply() -> None:
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.start()
    d.run(600.0)
    before = len(d.actions)
    d.run(3600.0)
    punches = [t for t, a in d.actions[before:] if isinstance(a, RequestPunch)]
    assert max(b - a for a, b in itertools.pairwise(punches)) <= 60
    assert (len(d.actions) - before) / 60 < 12, "actions per minute"
    assert len(d.machine.story.history) <= 64
    d.answers[(PEER, False)] = 0.02
    at = d.now
    d.run(61.0)
    assert d.machine.phase is Phase.DIRECT
    upgraded = next(t for t, a in d.actions if t > at and isinstance(a, SetPath))
    assert upgraded - at <= 60


def test_event_driven_retry() -> None:
    """An authenticated frame from a new address is followed at once, not at the next retry."""
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.start()
    d.run(300.0)
    moved = ("203.0.113.2", 5555)
    d.answers[(moved, False)] = 0.02
    d.machine.seen(moved, False, d.now)
    d.run(0.05)
    assert d.machine.active.addr == moved


def test_a_peer_that_punches_does_not_keep_us_from_the_relay() -> None:
    """Nothing answered for a while. The peer, whose relay works, asks for punches that fail: our own attempts, which include the
    relay, must not be put off by each of them."""
    d = Driver()
    d.start()
    d.run(200.0)
    assert d.machine.phase is Phase.LOST
    d.answers[(BEACON, True)] = 0.04
    for _ in range(4):
        d.machine.punch_command(PEER, d.now)
        d.run(20.0)
    assert d.machine.phase is Phase.RELAYED


def test_a_peer_that_is_heard_is_asked_at_once() -> None:
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.start()
    d.run(10.0)
    del d.answers[(BEACON, True)]
    d.machine.want(d.now, 300.0)
    d.run(200.0)
    assert d.machine.phase is Phase.LOST
    d.answers[(BEACON, True)] = 0.04
    assert d.machine.traffic(d.now, d.now, 1000, d.now)
    d.run(0.1)
    assert d.machine.phase is Phase.RELAYED


def test_foreign_peer_answers_through_the_beacon_first() -> None:
    """Other implementations answer relayed until three direct frames came: the probes go on until then."""
    d = Driver()
    d.answers[(BEACON, True)] = 0.04
    d.start()
    d.machine.punch_command(PEER, d.now)
    d.run(0.001)
    for _ in range(3):
        probe = next(a for _, a in reversed(d.actions) if isinstance(a, Probe) and not a.relay)
        d.machine.pong(probe.token, True, 0.05, d.now)
        d.run(0.15)
    assert d.machine.phase is Phase.DIRECT


def test_flapping_measurements_do_not_flap_the_path() -> None:
    """Two addresses of about the same quality: the path is chosen once."""
    d = Driver()
    other = ("203.0.113.3", 4000)
    rng = random.Random(1)
    d.machine.want(d.now)
    d.machine.set_addresses([PEER, other], [], False, d.now)
    d.machine.session_ready(False, d.now)
    for _ in range(200):
        d.answers = {
            (PEER, False): rng.uniform(0.02, 0.03),
            (other, False): rng.uniform(0.02, 0.03),
            (BEACON, True): 0.05,
        }
        d.machine.seen(other if d.machine.active and d.machine.active.addr == PEER else PEER, False, d.now)
        d.run(1.0)
    assert len(d.of(SetPath)) <= 4


def test_opening_punches_and_gives_up() -> None:
    d = Driver()
    d.machine.want(d.now)
    d.run(5.0)
    assert not d.of(RequestPunch), "the peer may be relay-only: wait for the registry"
    d.machine.set_addresses([PEER], [], False, d.now)
    d.run(10.0)
    assert len(d.of(RequestPunch)) == 4
    d.machine.punch_command(PEER, d.now)
    d.run(0.1)
    assert d.of(ExchangeAgain)
    d.machine.gave_up(5, "no answer to the key exchange", d.now)
    d.run(0.1)
    assert d.machine.phase is Phase.IDLE
    assert d.machine.deadline() is None
    assert d.actions[-1][1].decision.step is Step.GAVE_UP  # type: ignore[union-attr]


def test_nothing_answers() -> None:
    d = Driver()
    d.start()
    d.run(5.0)
    assert d.machine.phase is Phase.LOST
    assert d.texts()[-1].startswith("Trying relay... failed")
    assert d.of(AskAddresses)
    before = len(d.actions)
    d.run(600.0)
    assert (len(d.actions) - before) / 10 < 20
    d.answers[(BEACON, True)] = 0.04
    d.run(60.0)
    assert d.machine.phase is Phase.RELAYED


@pytest.mark.parametrize("seed", range(40))
def test_random_input_never_spins_or_grows(seed: int) -> None:
    """Any sequence of inputs: the deadline moves on, tables stay bounded, relay-only stays on the relay."""
    rng = random.Random(seed)
    d = Driver(relay=rng.random() < 0.8)
    m = d.machine
    addrs = [("203.0.113.2", p) for p in range(4000, 4040)] + [
        ("192.168.1.9", 1),
        ("0.0.0.0", 1),
        ("1.2.3.4", 0),
    ]
    beacons = [(BEACON, 0.02), (("198.51.100.2", 9001), None), (("198.51.100.3", 9001), 0.5)]
    for _ in range(300):
        addr = rng.choice(addrs)
        rng.choice(
            [
                lambda: m.want(d.now, rng.uniform(0, 30)),
                lambda addr=addr: m.set_addresses([addr], rng.sample(addrs, 3), rng.random() < 0.1, d.now),
                lambda: m.set_relays(rng.sample(beacons, rng.randrange(4)), d.now),
                lambda: m.session_ready(rng.random() < 0.5, d.now),
                lambda: m.session_gone(d.now) if rng.random() < 0.2 else None,
                lambda: m.key_pending(d.now + 4.0),
                lambda: m.key_settled(rng.random() < 0.5, d.now),
                lambda addr=addr: m.seen(addr, rng.random() < 0.2, d.now),
                lambda addr=addr: m.hint(addr, d.now),
                lambda addr=addr: m.punch_command(addr, d.now),
                lambda: m.pong(rng.randrange(500), rng.random() < 0.3, 0.01, d.now),
                lambda: m.traffic(
                    d.now - rng.random() * 3, d.now - rng.random() * 3, rng.randrange(10_000), d.now
                ),
                lambda: m.network_changed(d.now),
                lambda: m.gave_up(3, "test", d.now),
                lambda addr=addr: d.answers.update({(addr, False): 0.02}),
                d.answers.clear,
                lambda: d.answers.update({(BEACON, True): 0.04}),
            ]
        )()
        d.run(rng.choice([0.0, 0.01, 0.3, 2.0, 30.0]))
        assert len(m.candidates()) <= 12
        if m.relay_only:
            assert m.active is None or m.active.relay
    assert len(m.story.history) <= 64


def test_a_machine_that_slept_does_what_one_does_that_did_not() -> None:
    """The same hours, once awake and once asleep whenever possible: the same actions at the same times, and the same story."""

    def hours(sleeps: bool) -> Driver:
        d = Driver(sleeps=sleeps)
        d.machine.own_nat = d.machine.peer_nat = NatType.PORT_RESTRICTED_CONE
        d.answers = {(BEACON, True): 0.04, (PEER, False): 0.012, (LAN, False): 0.001}
        d.start(direct=True)
        d.machine.set_addresses([PEER], [LAN], False, d.now)
        d.run(200.0)
        del d.answers[LAN, False]  # the peer leaves its network
        d.run(200.0)
        d.machine.seen(("203.0.113.2", 4001), False, d.now)
        d.run(60.0)
        d.machine.want(d.now, 5.0)
        d.run(60.0)
        d.machine.network_changed(d.now)
        d.run(60.0)
        d.answers.clear()
        d.run(100.0)
        d.answers = {(PEER, False): 0.012}
        d.run(300.0)
        return d

    awake, asleep = hours(False), hours(True)
    assert asleep.slept > 30
    assert asleep.actions == awake.actions
    assert asleep.machine.story.history == awake.machine.story.history
    assert [vars_of(c) for c in asleep.machine.candidates()] == [vars_of(c) for c in awake.machine.candidates()]


@pytest.mark.parametrize("seed", range(20))
def test_sleep_changes_nothing_whatever_comes(seed: int) -> None:
    def life(sleeps: bool) -> Driver:
        rng = random.Random(seed)
        d = Driver(sleeps=sleeps)
        d.answers = {(BEACON, True): 0.04, (PEER, False): 0.012}
        d.start()
        for _ in range(60):
            d.run(rng.choice([0.5, 5.0, 30.0, 200.0]))
            addr = ("203.0.113.2", rng.randrange(4000, 4004))
            rng.choice(
                [
                    lambda: d.machine.want(d.now, 1.0),
                    lambda addr=addr: d.machine.seen(addr, rng.random() < 0.2, d.now),
                    lambda addr=addr: d.machine.hint(addr, d.now),
                    lambda addr=addr: d.machine.punch_command(addr, d.now),
                    lambda addr=addr: d.machine.set_addresses([addr], [LAN], False, d.now),
                    lambda: d.machine.traffic(d.now, d.now, rng.randrange(100), d.now),
                    lambda: d.machine.network_changed(d.now),
                    lambda addr=addr: d.answers.update({(addr, False): rng.uniform(0.001, 0.1)}),
                    lambda: d.answers.pop((PEER, False), None),
                ]
            )()
        return d

    awake, asleep = life(False), life(True)
    assert asleep.slept
    assert asleep.actions == awake.actions


def test_no_rounding_wakes_a_machine_before_it_is_due() -> None:
    """It would go back to sleep and be woken again, without end on a clock that stands."""
    rng = random.Random(3)
    for days in (0.001, 1, 100, 3650):
        for _ in range(2000):
            due = rng.uniform(0.0, days * 86400)
            assert (int(due * 1e9) + AFTER_NS) / 1e9 >= due


def test_a_relayed_machine_sleeps_between_its_looks_for_a_better_path() -> None:
    """Awake and asleep: the same looks at the same times; the punch that comes at last is not missed."""

    def hours(sleeps: bool) -> Driver:
        d = Driver(sleeps=sleeps)
        d.machine.own_nat = d.machine.peer_nat = NatType.SYMMETRIC
        d.answers = {(BEACON, True): 0.04}
        d.start()
        d.run(900.0)
        d.machine.want(d.now, 20.0)
        d.run(100.0)
        d.machine.set_relays([(BEACON, 0.02), (("198.51.100.9", 9001), 0.05)], d.now)
        d.relays.append((("198.51.100.9", 9001), 0.05))
        d.run(300.0)
        d.answers[PEER, False] = 0.012
        d.machine.punch_command(PEER, d.now)
        d.run(300.0)
        return d

    awake, asleep = hours(False), hours(True)
    assert asleep.slept > 60
    assert asleep.actions == awake.actions
    assert asleep.machine.phase is awake.machine.phase is Phase.DIRECT
    assert asleep.machine.story.history == awake.machine.story.history
    assert [vars_of(c) for c in asleep.machine.candidates()] == [vars_of(c) for c in awake.machine.candidates()]


def vars_of(candidate: Candidate) -> dict[str, object]:
    """But for probes that a dead or silent address has long not answered."""
    return {name: getattr(candidate, name) for name in candidate.__slots__ if candidate.answered or name != "waiting"}
