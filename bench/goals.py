"""What a run says about the goals, and about the last run that was taken as baseline."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from net.contenders import Tls
from net.nodes import Daemons, InProcess, Published
from net.reference import Reference
from net.scenarios import BULK, CROWD_TASK, GIGABYTE_TASK, OFFLOAD, RELAYED, ROUND_TRIP, SETUP, SOFTWARE, TO_THE_END
from peers.turn import Turn

INPROC, DAEMON, TLS, PUBLISHED, COTURN = InProcess.label, Daemons.label, Tls.label, Published.label, Turn.label
LOOP, RELAY_LOOP = Reference.label, "reference relay loop"
DIRECT, CUT, THROUGH = f"{OFFLOAD}: {BULK}", f"{SOFTWARE}: {BULK}", f"{RELAYED}: {BULK}"
TALK, DIAL = f"{OFFLOAD}: {ROUND_TRIP}", f"{OFFLOAD}: {SETUP}"
CROWD, GIGABYTE = f"{TO_THE_END}: {CROWD_TASK}", f"{TO_THE_END}: {GIGABYTE_TASK}"
TOLERANCE = 0.85  # of the baseline's ratio

Rows = dict[tuple[str, str, str], list[float]]
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Goal:
    """value `op` limit. value: None when a part was not measured."""

    text: str
    value: float | None
    op: str
    limit: float

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value >= self.limit if self.op == ">=" else self.value <= self.limit) else "missed"


def rows(result: dict[str, Any]) -> Rows:
    return {(r["scenario"], r["contender"], r["metric"]): r["values"] for r in result["rows"]}


def goals(result: dict[str, Any]) -> list[Goal]:
    """In the order of docs/benchmarks.md; the limits of shaped links come with the run."""
    found = rows(result)

    def median(*key: str) -> float | None:
        values = found.get(key)  # type: ignore[arg-type]
        return statistics.median(values) if values else None

    def finished(scenario: str) -> float | None:
        values = found.get((scenario, DAEMON, "finished"))
        return statistics.fmean(values) if values else None

    def ratio(metric: str, scenario: str, ours: str, theirs: str) -> float | None:
        x, y = median(scenario, ours, metric), median(scenario, theirs, metric)
        return x / y if x is not None and y else None

    out = [
        Goal("one stream, in-process: times TLS over TCP", ratio("mbit_s", DIRECT, INPROC, TLS), ">=", 1.2),
        Goal("the same: share of the reference loop", ratio("mbit_s", DIRECT, INPROC, LOOP), ">=", 0.6),
        Goal("through two daemons and Unix sockets: times TLS over TCP", ratio("mbit_s", DIRECT, DAEMON, TLS), ">=", 1.0),
        Goal("the same with software segmentation: share of the reference loop", ratio("mbit_s", CUT, INPROC, LOOP), ">=", 0.6),
        Goal("relayed, in-process: times coturn", ratio("mbit_s", THROUGH, INPROC, COTURN), ">=", 4.0),
        Goal("relayed, in-process: share of the reference relay loop", ratio("mbit_s", THROUGH, INPROC, RELAY_LOOP), ">=", 0.6),
        Goal("relay: Mpps per core", median(THROUGH, INPROC, "mpps_core"), ">=", 1.5),
        Goal("64-byte round trip p50, in-process: times TLS over TCP", ratio("rtt_us", TALK, INPROC, TLS), "<=", 1.0),
        Goal("CPU per GB, in-process: times TLS over TCP", ratio("cpu_s_gb", DIRECT, INPROC, TLS), "<=", 1.0),
        Goal("against the published daemon, one stream: times", ratio("mbit_s", DIRECT, DAEMON, PUBLISHED), ">=", 25.0),
        Goal("against the published daemon, relayed: times", ratio("mbit_s", THROUGH, DAEMON, PUBLISHED), ">=", 20.0),
        Goal("against the published daemon, round trip: share", ratio("rtt_us", TALK, DAEMON, PUBLISHED), "<=", 0.5),
        Goal("against the published daemon, warm dial: share", ratio("dial_ms", DIAL, DAEMON, PUBLISHED), "<=", 0.25),
        Goal("64 streams at once through daemons: share of tries that finish", finished(CROWD), ">=", 1.0),
        Goal("1 GB through daemons: share of tries that finish", finished(GIGABYTE), ">=", 1.0),
        Goal("idle daemon: % of a core", median("idle daemon", DAEMON, "core_percent"), "<=", 0.1),
        Goal("idle daemon: MB resident", median("idle daemon", DAEMON, "rss_mb"), "<=", 40.0),
    ]
    for scenario, metric, op, limit in result["limits"]:
        out.append(Goal(f"{scenario}: {metric}", median(scenario, INPROC, metric), op, limit))
    return out


# ---- regression check ----


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Our figures over the reference loop of the same run: the machine's mood moves them less. Higher is better."""
    found = rows(result)
    out: dict[str, float] = {}
    for (scenario, contender, metric), values in found.items():
        loop = found.get((scenario, LOOP, metric)) or found.get((scenario, RELAY_LOOP, metric))
        if contender not in (INPROC, DAEMON) or not loop or metric not in ("mbit_s", "rtt_us", "cpu_s_gb"):
            continue
        ours, its = statistics.median(values), statistics.median(loop)
        if ours > 0 and its > 0:
            out[f"{scenario}, {contender}, {metric}"] = round(ours / its if metric == "mbit_s" else its / ours, 3)
    return out


def compared(result: dict[str, Any], baseline: dict[str, float]) -> Iterator[tuple[str, float, float, str]]:
    """(what, ratio now, ratio of the baseline, verdict: worse, as before, better)."""
    now = ratios(result)
    for what, then in sorted(baseline.items()):
        if what in now:
            verdict = "worse" if now[what] < TOLERANCE * then else "better" if now[what] > then / TOLERANCE else "as before"
            yield what, now[what], then, verdict
