"""Every pair of NATs, opened cold: who meets whom, what theory promises for the pair, and the bars for every opening.

Two agents behind each kind of NAT, one on the left of a pair and one on the right, so that six pairs can be opened at once.
All daemons start anew for every round: no tunnel, no path and no answer of the registry is left.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Collection, Sequence

from fleet import Fleet
from lab import DOUBLE, Lab, Link
from measure import Opening, open_cold, quantile

TYPES = ("none", "full_cone", "restricted_cone", "port_restricted_cone", "symmetric", DOUBLE)
DELAY_S = 0.020  # one way, on the link of each site
RTT_S = 4 * DELAY_S
FIRST_BYTE_S = 4 * RTT_S + 0.020
UPGRADE_MEDIAN_S, UPGRADE_P95_S = 1.0, 3.0
GAP_S = 0.1
STREAM_S = 1.8  # longer than a race: what carries then is what stays
PATIENCE_S = 5.0  # for the best tier
STAGGER_S = 0.35  # between the openings of one step: set-up times are measured one by one

Cell = tuple[str, str]
_FILTERS_BY_PORT = {"port_restricted_cone", "symmetric", DOUBLE}
_UNFILTERED = {"none", "full_cone"}


def every_cell() -> list[Cell]:
    """The 21 unordered pairs, in the order of TYPES."""
    return [(a, b) for i, a in enumerate(TYPES) for b in TYPES[i:]]


def best_tier(cell: Cell) -> str:
    """What theory allows. A symmetric NAT shows the peer another port than the beacon: who filters by port does not let it in,
    and the relay is all there is. Who filters nothing is reached without help; everybody else by a punch."""
    if "symmetric" in cell and set(cell) <= _FILTERS_BY_PORT:
        return "relay"
    return "direct" if _UNFILTERED & set(cell) else "hole-punched"


def schedule(cells: Collection[Cell], number: int) -> list[list[tuple[str, str]]]:
    """The openings of round `number` as steps of (left type, right type), no agent twice in one step."""
    steps: list[list[tuple[str, str]]] = []
    n = len(TYPES)
    for distance in range(n // 2 + 1):
        starts = range(n) if distance < n // 2 else range(n // 2)
        step = []
        for i in starts:
            left, right = TYPES[i], TYPES[(i + distance) % n]
            if (left, right) in cells or (right, left) in cells:
                step.append((left, right) if number % 2 else (right, left))
        if step:
            steps.append(step)
    return steps


class Matrix:
    """The fleet that plays the rounds."""

    def __init__(self, lab: Lab, cells: Collection[Cell]) -> None:
        self.cells = cells
        self.fleet = Fleet(lab, second_address=True)
        wanted = {kind for cell in cells for kind in cell}
        for side in "ab":
            for i, kind in enumerate(TYPES):
                if kind in wanted:
                    host = lab.place(f"{side}{i}", kind, Link(delay_ms=DELAY_S * 1e3))
                    self.fleet.agent(host, f"{side}-{kind}", "-public", start=False)

    def play(self, number: int) -> list[tuple[Cell, Opening]]:
        """Each cell once, everything cold. Which side dials changes from round to round."""
        self.fleet.restart()
        return asyncio.run(self._play(number))

    async def _play(self, number: int) -> list[tuple[Cell, Opening]]:
        done: list[tuple[Cell, Opening]] = []

        async def opening(at: int, step: int, left: str, right: str) -> None:
            a, b = self.fleet.agents[f"a-{left}"], self.fleet.agents[f"b-{right}"]
            if (number // 2 + at) % 2:
                a, b = b, a
            low, high = sorted((left, right), key=TYPES.index)
            await asyncio.sleep(at * STAGGER_S)
            done.append(((low, high), await open_cold(a, b, 5000 + step, STREAM_S, best_tier((low, high)), PATIENCE_S)))

        for step, pairs in enumerate(schedule(self.cells, number)):
            await asyncio.gather(*(opening(at, step, *pair) for at, pair in enumerate(pairs)))
        return done


def failures(cell: Cell, openings: Sequence[Opening], slack: float = 1.0) -> list[str]:
    """What the openings of one cell owe to the bars, in words; empty: nothing. slack: times may be so many times the bars."""
    best = best_tier(cell)
    bad = [o.fault or f"{o.tier or 'no path'} instead of {best}: {o.told}" for o in openings if o.fault or o.tier != best]
    fine = [o for o in openings if not o.fault]
    if fine:
        first = statistics.median(o.first_byte for o in fine)
        if first > slack * FIRST_BYTE_S:
            bad.append(f"first byte after {first * 1e3:.0f} ms (median)")
        upgrades = [o.direct for o in fine if o.direct is not None]
        if upgrades:
            median, late = statistics.median(upgrades), quantile(upgrades, 0.95)
            if median > slack * UPGRADE_MEDIAN_S or late > slack * UPGRADE_P95_S:
                bad.append(f"best path after {median:.2f} s (median), {late:.2f} s (p95)")
    return bad
