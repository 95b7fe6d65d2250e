"""Agents that have met: addresses change, ways die and open, mappings expire, and the stream goes on.

Limits are generous here, because the machine may be busy; `make nat-report` holds the figures against the bars.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from lab import Lab
from scenarios import IDLE_PAIRS, PING_S, SCENARIOS, TIMEOUT_S, Idle, Scenario

pytestmark = [
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

TRIALS = 2  # once in each direction
SLACK = 8.0  # of the bars
# Two routers that keep the port of an early punch leave no direct way at all when it comes too early for both: the relay goes on.
ONE_MAY_STAY = {"faulty"}


@pytest.fixture(scope="module", autouse=True)
def idle() -> Iterator[Idle]:
    """Falls silent before all other tests and is asked after them."""
    with Lab() as lab:
        yield Idle(lab, IDLE_PAIRS[:2])


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if not s.slow], ids=lambda s: s.name)
def test_a_stream_survives(scenario: Scenario) -> None:
    trials = [t for t in scenario.play(TRIALS) if t]
    assert len(trials) == TRIALS
    faults = [t.fault for t in trials if t.fault]
    if scenario.name in ONE_MAY_STAY and len(faults) == 1 and faults[0].startswith("relay instead of"):
        trials = [t for t in trials if not t.fault]
    else:
        assert not faults
    assert max(t.seconds for t in trials) <= SLACK * scenario.p95_s
    gaps = [t.gap for t in trials if t.gap is not None]
    assert not scenario.gap_s or max(gaps) <= SLACK * scenario.gap_s


def test_an_idle_pair_answers_at_once_and_without_the_relay(idle: Idle) -> None:
    trials = list(idle.ask(2.2 * TIMEOUT_S))
    assert [t.fault for t in trials] == ["", ""]
    assert max(t.seconds for t in trials) <= SLACK * PING_S
