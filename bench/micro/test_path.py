"""The path machine of one peer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from pilot.traversal.path import PathMachine
from pilot.traversal.path_actions import Phase, Probe

Measure = Callable[[str, Callable[[], Any]], Any]
PEER, BEACON = ("203.0.113.2", 4000), ("198.51.100.1", 9001)
RTT_S = 0.02


def opened() -> tuple[PathMachine, float]:
    """A machine that has just found its direct path, and the time."""
    machine, now = PathMachine(2, token=itertools.count(1).__next__), 100.0
    machine.set_relays([(BEACON, RTT_S)], now)
    machine.want(now)
    machine.set_addresses([PEER], [], False, now)
    machine.hint(PEER, now)
    machine.session_ready(True, now)
    for _ in range(50):
        probes = [a for a in machine.take() if isinstance(a, Probe)]
        now += RTT_S
        for probe in probes:
            machine.pong(probe.token, probe.relay, RTT_S, now)
        machine.tick(now)
        if machine.phase is Phase.DIRECT:
            return machine, now
    raise AssertionError(f"no direct path: {machine.phase}")


def test_opening(measure: Measure) -> None:
    measure("path machine, from the wish for a peer to its direct path", opened)


def test_life(measure: Measure) -> None:
    machine, now = opened()
    clock = itertools.count()

    def second() -> None:
        at = now + next(clock)
        machine.traffic(at, at, 1000, at)
        machine.tick(at)
        for action in machine.take():
            if isinstance(action, Probe):
                machine.pong(action.token, action.relay, RTT_S, at)

    measure("path machine, a second of a peer in use", second)
