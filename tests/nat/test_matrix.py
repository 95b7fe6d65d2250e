"""Every pair of NATs connects by the best path that theory allows, at once, and moves to it without a pause.

PILOT_NAT_ROUNDS sets how often every pair is opened (default 2). `make nat-report` does the same 20 times and writes the table.
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
def test_best_tier_and_first_byte_in_four_round_trips(cells: dict[Cell, list[Opening]], cell: Cell) -> None:
    """The first byte by the median: this machine is shared, and one late process is not the fault of a path."""
    assert len(cells[cell]) == ROUNDS
    assert not matrix.failures(cell, cells[cell])


def test_no_pause_that_a_user_would_notice(cells: dict[Cell, list[Opening]]) -> None:
    gaps = [o.gap for openings in cells.values() for o in openings]
    assert quantile(gaps, 0.95) <= matrix.GAP_S, sorted(gaps)[-8:]
