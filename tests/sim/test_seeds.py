"""A few of the random networks that `make sim` plays by the thousand. PILOT_SIM_SEEDS=N plays N, PILOT_SIM_FIRST=K from K on."""

from __future__ import annotations

import os

import pytest

from run import play

FIRST = int(os.environ.get("PILOT_SIM_FIRST", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("PILOT_SIM_SEEDS", "40")))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_network(seed: int) -> None:
    """Streams keep their bytes and find their way, whatever happens; the failure shows the trace and the seed."""
    play(seed, 1.0)
