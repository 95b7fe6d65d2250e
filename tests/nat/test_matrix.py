"""Every pair of NATs connects by the best path that theory allows, at once, and moves to it without a pause.

PILOT_NAT_ROUNDS sets how often every pair is opened (default 2). `make nat-report` does the same 20 times, holds the times
against the bars and writes the table; here only gross misses count, because the machine may be busy with other things.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import matrix
import pytest
from lab import Lab
from matrix import Cell
from measure import Opening, quantile

pytestmark = [
    pytest.mark.netns,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

ROUNDS = int(os.environ.get("PILOT_NAT_ROUNDS", "2"))
SLACK = 8.0  # of the bars


@pytest.fixture(scope="module")
def cells() -> Iterator[dict[Cell, list[Opening]]]:
    found: dict[Cell, list[Opening]] = {}
    with Lab() as lab:
        played = matrix.Matrix(lab, matrix.every_cell())
        for number in range(ROUNDS):
            for cell, opening in played.play(number):
                found.setdefault(cell, []).append(opening)
        yield found


def named(cell: Cell) -> str:
    return f"{cell[0]}-{cell[1]}"


@pytest.mark.parametrize("cell", matrix.every_cell(), ids=named)
def test_best_tier_without_delay(cells: dict[Cell, list[Opening]], cell: Cell) -> None:
    assert len(cells[cell]) == ROUNDS
    assert not matrix.failures(cell, cells[cell], SLACK)


def test_no_pause_that_a_user_would_notice(cells: dict[Cell, list[Opening]]) -> None:
    gaps = [o.gap for openings in cells.values() for o in openings]
    assert quantile(gaps, 0.95) <= SLACK * matrix.GAP_S, sorted(gaps)[-8:]
