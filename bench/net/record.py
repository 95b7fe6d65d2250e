"""What a run of the suite collects: values by scenario, contender and metric, and what could not be measured, with the reason."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

UNITS = {
    "mbit_s": "Mbit/s", "cpu_s_gb": "CPU-s/GB", "python_share": "Python, share of CPU", "rss_mb": "MB resident",
    "rtt_us": "us", "dial_ms": "ms, dial", "warm_ms": "ms to a byte", "open_ms": "ms, cold dial",
    "cold_ms": "ms to a byte, cold", "mpps": "Mpps", "mpps_core": "Mpps per core",
    "added_ms": "ms added", "transfer_s": "s", "lost_percent": "% lost", "share_percent": "% of the bottleneck",
    "core_percent": "% of a core", "ns": "ns", "finished": "finished, of tries",
}  # fmt: skip
SKIPPED = {"seconds", "took"}  # of what contenders report


@dataclass(slots=True)
class Plan:
    """How much is measured. runs: interleaved repetitions. seconds: of each bulk run. budget_s: no new part begins after it."""

    runs: int
    seconds: float
    round_trips: int
    peers: bool
    budget_s: float
    only: tuple[str, ...] = ()  # names of contenders; none: all
    started: float = field(default_factory=time.monotonic)

    def late(self, share: float) -> bool:
        """Whether this share of the budget is used up."""
        return time.monotonic() - self.started > self.budget_s * share


class Record:
    """rows: {scenario, contender, metric, unit, values}. missing: {scenario, contender, reason}."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], list[float]] = {}
        self.missing: list[dict[str, str]] = []
        self.limits: list[tuple[str, str, str, float]] = []

    def add(self, scenario: str, contender: str, metric: str, *values: float) -> None:
        self.rows.setdefault((scenario, contender, metric), []).extend(values)

    def limit(self, scenario: str, metric: str, op: str, value: float) -> None:
        """What is wanted of our figure there: op is >= or <=."""
        self.limits.append((scenario, metric, op, value))

    def note(self, scenario: str, contender: str, reason: str) -> None:
        """Something that was not measured, for the report."""
        self.missing.append({"scenario": scenario, "contender": contender, "reason": reason[:500]})

    def add_all(self, scenario: str, contender: str, values: Mapping[str, float | list[float]]) -> None:
        for metric, value in values.items():
            if metric not in SKIPPED:
                self.add(scenario, contender, metric, *(value if isinstance(value, list) else [value]))

    @contextlib.contextmanager
    def attempt(self, scenario: str, contender: str) -> Iterator[None]:
        """What fails inside is noted, and the run goes on."""
        try:
            yield
        except Exception as error:  # a peer that cannot be had or that breaks must not cost the other figures
            reason = f"{type(error).__name__}: {error}"
            self.note(scenario, contender, reason)
            print(f"  {scenario}, {contender}: {reason[:300]}", file=sys.stderr, flush=True)

    def as_rows(self) -> list[dict[str, Any]]:
        return [
            {"scenario": s, "contender": c, "metric": m, "unit": UNITS[m], "values": v} for (s, c, m), v in self.rows.items() if v
        ]


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
