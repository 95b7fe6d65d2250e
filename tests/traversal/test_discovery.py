"""Own endpoint and beacons, on virtual time."""

from __future__ import annotations

from itertools import pairwise

from pilot.traversal.discovery import (
    BeaconsChanged,
    Discovery,
    EndpointChanged,
    NatChanged,
    ResolveBeacons,
    SendDiscover,
)
from pilot.traversal.nat import NatType

ONE, TWO = ("198.51.100.1", 9001), ("198.51.100.2", 9001)
OUTSIDE = ("203.0.113.7", 41000)


def run(machine: Discovery, until: float, now: float = 0.0) -> list[tuple[float, SendDiscover]]:
    """Lets time pass; returns the questions with their times."""
    sent = []
    while (at := machine.deadline()) is not None and at <= until:
        now = max(now, at)
        machine.tick(now)
        sent += [(now, a) for a in machine.take() if isinstance(a, SendDiscover)]
    return sent


def started(*beacons: tuple[str, int]) -> Discovery:
    machine = Discovery()
    machine.set_beacons(beacons, 0.0)
    machine.take()
    machine.tick(0.0)
    return machine


def test_question_answer_keepalive() -> None:
    machine = started(ONE)
    assert [(a.beacon, a.node) for a in machine.take() if isinstance(a, SendDiscover)] == [(ONE, 0)]
    machine.reply(ONE, OUTSIDE, 0.03)
    news = machine.take()
    assert EndpointChanged(None, OUTSIDE) in news and BeaconsChanged() in news
    assert machine.usable() == [(ONE, 0.03)]
    machine.set_node(8, 1.0)
    assert [(t, a.beacon, a.node) for t, a in run(machine, 1.0)] == [(1.0, ONE, 8)], "the beacon learns the number at once"
    machine.reply(ONE, OUTSIDE, 1.03)
    assert [t for t, _ in run(machine, 22.0)] == [21.03, 21.28, 21.78], (
        "every 20 s, then asked again until it answers"
    )


def test_silent_beacon() -> None:
    machine = started(ONE, TWO)
    machine.take()
    machine.reply(TWO, OUTSIDE, 0.01)
    times = [t for t, a in run(machine, 60.0) if a.beacon == ONE]
    gaps = [round(b - a, 3) for a, b in zip([0.0, *times], times, strict=False)]
    assert gaps[:7] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0] and set(gaps[7:]) == {15.0}


def test_beacon_dies_and_comes_back() -> None:
    machine = started(ONE, TWO)
    for beacon in (ONE, TWO):
        machine.reply(beacon, OUTSIDE, 0.02)
    machine.take()
    run(machine, 20.0)
    now = 20.02
    died = None
    while died is None and now < 30:
        machine.tick(now)
        machine.reply(TWO, OUTSIDE, now + 0.001)
        if any(isinstance(a, BeaconsChanged) for a in machine.take()) and [
            a for a, _ in machine.usable()
        ] == [TWO]:
            died = now
        now += 0.05
    assert died is not None and died - 20.02 < 2.5
    machine.reply(ONE, OUTSIDE, now)
    assert {a for a, _ in machine.usable()} == {ONE, TWO}


def test_a_beacon_that_tells_a_pace_is_asked_so_often_and_no_others() -> None:
    """Its restart, whenever it comes and however long it takes, costs at most a pace and a round trip."""
    far = [(f"192.0.2.{i}", 9001) for i in range(1, 5)]
    machine = started(*far, ONE)
    machine.take()
    machine.reply(ONE, OUTSIDE, 0.01, pace=4)
    for i, beacon in enumerate(far):
        machine.reply(beacon, OUTSIDE, 0.1 + i / 100, pace=3)
    now, asked = 0.2, []
    while (at := machine.deadline()) is not None and at < 40.0:
        now = max(at, now)
        machine.tick(now)
        for action in machine.take():
            if isinstance(action, SendDiscover):
                asked.append((now, action.beacon))
                machine.reply(action.beacon, OUTSIDE, now + 0.01, pace=4 if action.beacon == ONE else 3)
    times = {beacon: [t for t, b in asked if b == beacon] for beacon in (ONE, *far)}
    assert len(times[ONE]) == 9 and len(times[far[0]]) == len(times[far[1]]) == 13
    assert [len(times[b]) for b in far[2:]] == [1, 1], "the farther ones keep to 20 s"

    gone = [t for t, a in run(machine, 100.0, now) if a.beacon == ONE]
    assert max(b - a for a, b in pairwise(gone)) <= 4.0, "it may be back any moment"
    machine.reply(ONE, OUTSIDE, gone[-1] + 0.01)
    assert [t for t, a in run(machine, gone[-1] + 20.0, gone[-1]) if a.beacon == ONE] == [], "it tells no pace any more"


def test_names_are_resolved_again_when_nothing_answers() -> None:
    machine = started(ONE)
    asked = []
    now = 0.0
    while now < 100:
        machine.tick(now)
        asked += [now for a in machine.take() if isinstance(a, ResolveBeacons)]
        now += 0.5
    assert 10 <= asked[0] <= 20 and 2 <= len(asked) <= 4


def test_forged_and_late_replies_are_ignored() -> None:
    machine = started(ONE)
    machine.take()
    machine.reply(TWO, ("192.0.2.66", 1), 0.01)
    machine.reply(("198.51.100.1", 9002), ("192.0.2.66", 1), 0.01)
    machine.reply(ONE, OUTSIDE, 0.02)
    assert machine.endpoint == OUTSIDE
    machine.reply(ONE, ("192.0.2.66", 1), 12.0)
    assert machine.endpoint == OUTSIDE, "nothing was asked in the last five seconds"


ELSEWHERE = ("203.0.113.99", 7)


def asked(machine: Discovery, now: float) -> bytes:
    """A question at that moment; its nonce."""
    machine.take()
    machine.check(now)
    machine.tick(now)
    (nonce,) = [a.nonce for a in machine.take() if isinstance(a, SendDiscover)]
    return nonce


def test_endpoint_change() -> None:
    """A beacon of another kind proves nothing: it is asked once more."""
    machine = started(ONE)
    machine.reply(ONE, OUTSIDE, 0.02)
    asked(machine, 5.0)
    machine.reply(ONE, ELSEWHERE, 5.02)
    assert machine.endpoint == OUTSIDE
    machine.reply(ONE, ELSEWHERE, 5.03)
    assert machine.endpoint == OUTSIDE, "nothing was asked in between"
    ((at, _),) = run(machine, 5.2)
    assert at == 5.02 + 0.1
    machine.reply(ONE, ELSEWHERE, 5.2)
    assert EndpointChanged(OUTSIDE, ELSEWHERE) in machine.take()


def test_a_beacon_that_repeats_nonces_proves_what_it_says() -> None:
    machine = started(ONE)
    (first,) = [a.nonce for a in machine.take() if isinstance(a, SendDiscover)]
    machine.reply(ONE, OUTSIDE, 0.02, 3, first)
    nonce = asked(machine, 5.0)
    assert len(nonce) == 8 and nonce != first
    for forged in (b"", first, bytes(8)):
        machine.reply(ONE, ("192.0.2.66", 1), 5.01, 3, forged)
    assert machine.endpoint == OUTSIDE and machine.forged == 3
    machine.reply(ONE, ELSEWHERE, 5.02, 3, nonce)
    assert EndpointChanged(OUTSIDE, ELSEWHERE) in machine.take(), "at once"
    machine.reply(ONE, OUTSIDE, 5.03, 3, nonce)
    assert machine.endpoint == ELSEWHERE, "a recording of its answer"


def test_made_up_replies_race_those_of_a_beacon_of_another_kind() -> None:
    """Whoever sends in its name, without seeing what it is asked, has to win two races in a row."""
    machine = started(ONE)
    machine.reply(ONE, OUTSIDE, 0.02)
    now = 5.0
    asked(machine, now)
    for _ in range(20):
        machine.reply(ONE, ("192.0.2.66", 1), now + 0.001)
        ((at, _),) = run(machine, now + 0.2, now)
        now = at
        machine.reply(ONE, OUTSIDE, now + 0.001)  # here the beacon is first
        machine.reply(ONE, ("192.0.2.66", 1), now + 0.002)
        assert machine.endpoint == OUTSIDE
        now += 2.0
        asked(machine, now)


def test_a_beacon_that_is_replaced_by_one_of_another_kind() -> None:
    machine = started(ONE)
    (first,) = [a.nonce for a in machine.take() if isinstance(a, SendDiscover)]
    machine.reply(ONE, OUTSIDE, 0.02, 3, first)
    now = 0.02
    answered = False
    while now < 20.0 and not answered:
        machine.tick(now)
        if any(isinstance(a, SendDiscover) for a in machine.take()):
            machine.reply(ONE, OUTSIDE, now + 0.01)
            (beacon,) = machine.beacons()
            answered = beacon.asked == 0 and not beacon.repeats
        now += 0.05
    assert answered and now < 8.0


def test_check_asks_at_most_once_a_second() -> None:
    machine = started(ONE)
    machine.reply(ONE, OUTSIDE, 0.02)
    machine.take()
    sent = 0
    for i in range(50):
        machine.check(5.0 + i * 0.1)
        machine.tick(5.0 + i * 0.1)
        machine.reply(ONE, OUTSIDE, 5.0 + i * 0.1)
        sent += sum(isinstance(a, SendDiscover) for a in machine.take())
    assert sent == 5


def test_nat_classes_that_replies_can_show() -> None:
    machine = started(ONE)
    machine.set_local(["203.0.113.7", "127.0.0.1"], 41000)
    machine.reply(ONE, OUTSIDE, 0.02)
    assert NatChanged(NatType.OPEN) in machine.take()

    machine = started(ONE)
    machine.set_local(["192.168.1.2"], 4000)
    machine.reply(ONE, OUTSIDE, 0.02)
    assert machine.nat is NatType.UNKNOWN, "one observer cannot tell"

    machine = started(ONE, TWO)
    machine.reply(ONE, OUTSIDE, 0.02)
    machine.reply(TWO, ("203.0.113.7", 41001), 0.02)
    assert machine.nat is NatType.SYMMETRIC

    machine = started(ONE, TWO)
    machine.reply(ONE, OUTSIDE, 0.02)
    machine.reply(TWO, OUTSIDE, 0.02)
    assert machine.nat is NatType.UNKNOWN, "filtering is not known"

    machine = started(("192.168.1.1", 9001), ONE)
    machine.reply(("192.168.1.1", 9001), ("192.168.1.2", 4000), 0.01)
    machine.reply(ONE, OUTSIDE, 0.02)
    assert machine.nat is NatType.UNKNOWN, "a beacon inside the NAT sees another address without any symmetry"


def test_fixed_endpoint() -> None:
    machine = Discovery(fixed=("192.0.2.1", 4000))
    machine.set_beacons([ONE], 0.0)
    machine.tick(0.0)
    machine.reply(ONE, OUTSIDE, 0.02)
    assert machine.endpoint == ("192.0.2.1", 4000)
    assert not [a for a in machine.take() if isinstance(a, EndpointChanged)]
    assert machine.usable()[0][0] == ONE, "it is registered at the beacon all the same"


def test_replaced_beacons() -> None:
    machine = started(ONE, TWO)
    machine.reply(TWO, OUTSIDE, 0.02)
    machine.set_beacons([TWO, ("198.51.100.3", 9001)], 1.0)
    assert [b.addr for b in machine.beacons()] == [TWO, ("198.51.100.3", 9001)]
    assert machine.usable() == [(TWO, 0.02)]
    machine.set_beacons([(f"198.51.100.{i}", 9001) for i in range(1, 40)], 2.0)
    assert len(machine.beacons()) == 16
