"""The NAT report: measures what docs/nat.md promises, prints it as a table, and writes JSON (every single value) and Markdown.

    python tests/nat/report.py --out build/nat-report [--rounds 20] [--cells none-symmetric,...] [--parts matrix,...] [--add]

Needs root. The exit status is 1 if a bar is missed. Results are written after every round; --add puts them to those that the
folder holds already, so that a long measurement can be made in pieces.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix
from lab import Lab
from matrix import Cell
from measure import Opening, quantile
from scenarios import SCENARIOS, Scenario

Json = dict[str, Any]


def measured_cells(results: Json) -> dict[Cell, list[Opening]]:
    """The openings in `results`, in the order of the matrix."""
    held = results["matrix"]
    return {c: [Opening(**o) for o in held["-".join(c)]] for c in matrix.every_cell() if "-".join(c) in held}


def play_matrix(results: Json, cells: list[Cell], rounds: int) -> Iterator[str]:
    """Plays rounds; yields after each."""
    with Lab() as lab:
        played = matrix.Matrix(lab, cells)
        for number in range(rounds):
            for cell, opening in played.play(results["matrix_rounds"]):
                results["matrix"].setdefault("-".join(cell), []).append(dataclasses.asdict(opening))
            results["matrix_rounds"] += 1
            yield f"matrix: round {number + 1} of {rounds}"


def play_scenario(results: Json, scenario: Scenario, rounds: int) -> Iterator[str]:
    """Plays a scenario; yields after each trial, and when it waits for something to become old."""
    held = results["scenarios"].setdefault(scenario.name, {"values": [], "faults": [], "gaps": []})
    wanted, done = min(rounds, scenario.most), 0
    for trial in scenario.play(wanted):
        if trial is None:
            yield f"{scenario.name}: begun"
            continue
        if trial.fault:
            held["faults"].append(trial.fault)
        else:
            held["values"].append(trial.seconds)
            held["gaps"] += [] if trial.gap is None else [trial.gap]
        done += 1
        yield f"{scenario.name}: {done} of {wanted}"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"


def spread(values: list[float]) -> str:
    """Median / p95, milliseconds."""
    return f"{ms(statistics.median(values))} / {ms(quantile(values, 0.95))}" if values else "-"


def matrix_rows(cells: dict[Cell, list[Opening]]) -> list[list[str]]:
    rows = []
    for cell, openings in cells.items():
        fine = [o for o in openings if not o.fault]
        best = matrix.best_tier(cell)
        reached = sum(o.tier == best for o in fine)
        rows.append([
            " - ".join(cell), f"{len(fine)}/{len(openings)}", f"{best} {reached}/{len(openings)}",
            spread([o.first_byte for o in fine]), spread([o.direct for o in fine if o.direct is not None]),
            ms(max((o.gap for o in fine), default=0)),
        ])  # fmt: skip
    return rows


def scenario_rows(results: Json) -> list[list[str]]:
    rows = []
    for scenario in SCENARIOS:
        held = results["scenarios"].get(scenario.name)
        if held:
            tried = len(held["values"]) + len(held["faults"])
            gap = ms(max(held["gaps"])) if held["gaps"] else "-"
            bar = f"{ms(scenario.p95_s)}" + (f", median {ms(scenario.median_s)}" if scenario.median_s else "")
            rows.append([scenario.title, f"{len(held['values'])}/{tried}", spread(held["values"]), bar, gap])
    return rows


MATRIX_HEAD = ["pair of NATs", "connected", "tier", "first byte, ms", "best path, ms", "longest gap, ms"]
SCENARIO_HEAD = ["what happens", "held", "until it works, ms", "bar (p95), ms", "longest gap, ms"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown whose columns also line up in a terminal."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = [[c.ljust(w) for c, w in zip(r, widths, strict=True)] for r in [head, ["-" * w for w in widths], *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(results: Json) -> str:
    parts = [f"Measured on {results['machine']}, {results['date']}. Times are median / p95."]
    cells = measured_cells(results)
    if cells:
        gaps = [o.gap for openings in cells.values() for o in openings if not o.fault]
        parts += [
            f"One way {ms(matrix.DELAY_S)} ms on the link of each site: {ms(matrix.RTT_S)} ms for a round trip between two. "
            f"Bars: first byte within {ms(matrix.FIRST_BYTE_S)} ms of the dial (4 round trips + 20 ms), best path within "
            f"{ms(matrix.UPGRADE_MEDIAN_S)} ms (median) and {ms(matrix.UPGRADE_P95_S)} ms (p95) of it, no pause of the stream "
            f"above {ms(matrix.GAP_S)} ms.",
            table(MATRIX_HEAD, matrix_rows(cells)),
            f"{len(gaps)} openings, longest gap {ms(max(gaps, default=0))} ms. Every stream was checked to the last byte.",
        ]
    rows = scenario_rows(results)
    if rows:
        parts.append(table(SCENARIO_HEAD, rows))
    missed = misses(results)
    parts.append("Every bar is kept." if not missed else "Missed:\n\n" + "\n".join(f"* {m}" for m in missed))
    return "\n\n".join(parts) + "\n"


def misses(results: Json) -> list[str]:
    """Bars that were missed, in words."""
    found = []
    for cell, openings in measured_cells(results).items():
        found += [f"{' - '.join(cell)}: {what}" for what in matrix.failures(cell, openings)]
        found += [f"{' - '.join(cell)}: a gap of {ms(o.gap)} ms" for o in openings if not o.fault and o.gap > matrix.GAP_S]
    for scenario in SCENARIOS:
        held = results["scenarios"].get(scenario.name, {"values": [], "faults": [], "gaps": []})
        found += [f"{scenario.title}: {what}" for what in [*held["faults"], *scenario.missed(held["values"], held["gaps"])]]
    return found


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}, Linux {platform.release().partition('-')[0]}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure connections through NATs")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and report.md")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cells", default="", help="such as none-symmetric,double-double; default: all")
    parser.add_argument("--parts", default="", help="of: matrix, " + ", ".join(s.name for s in SCENARIOS) + "; default: all")
    parser.add_argument("--add", action="store_true", help="to the results in the folder")
    args = parser.parse_args()
    cells = {"-".join(c): c for c in matrix.every_cell()} | {f"{b}-{a}": (a, b) for a, b in matrix.every_cell()}
    names = ["matrix", *(s.name for s in SCENARIOS)]
    chosen = [n for n in args.cells.split(",") if n]
    parts = [n for n in args.parts.split(",") if n] or names
    unknown = [n for n in chosen if n not in cells] + [n for n in parts if n not in names]
    if unknown or args.rounds < 1:
        parser.error(f"no such cells or parts: {', '.join(unknown)}" if unknown else "--rounds must be positive")
    args.cells = [cells[n] for n in chosen] or matrix.every_cell()
    args.parts = parts
    return args


def main() -> int:
    args = options()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    results: Json = {"matrix": {}, "matrix_rounds": 0, "scenarios": {}}
    if args.add and file.exists():
        results = json.loads(file.read_text())
    results |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    chosen = [s for s in SCENARIOS if s.name in args.parts]
    slow = [play_scenario(results, s, args.rounds) for s in chosen if s.slow]
    work = [play_matrix(results, args.cells, args.rounds)] if "matrix" in args.parts else []
    work += [play_scenario(results, s, args.rounds) for s in chosen if not s.slow]
    begun = time.monotonic()

    def note(step: str) -> None:
        file.write_text(json.dumps(results, indent=1))
        (args.out / "report.md").write_text(markdown(results))
        print(f"{time.monotonic() - begun:6.0f} s  {step}", file=sys.stderr, flush=True)

    for part in slow:
        note(next(part))
    for part in [*work, *slow]:
        for step in part:
            note(step)
    print(markdown(results))
    return 1 if misses(results) else 0


if __name__ == "__main__":
    sys.exit(main())
