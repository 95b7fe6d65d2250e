"""The benchmark suite: measures, then writes raw JSON, a Markdown table and an HTML page with plots.

    python bench/run.py [--quick | --smoke] [--only PART ...] [--contenders NAME ...] [--baseline compare|check|write]

Needs root (network namespaces) and the installed programs beside the running Python; peers that are not installed are left out
with the reason in the report. At most 20 minutes, with --quick 3, with --smoke seconds. Being slow is no failure, except that
--baseline check ends with 1 when a ratio to the reference loop fell below the committed one (bench/baseline.json).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import goals
import pages
from micro import operations
from net import machine, scenarios
from net.record import Plan, Record
from table import paths, published

HERE = Path(__file__).parent
PARTS: dict[str, Callable[[Record, Plan], None]] = {
    "direct": scenarios.direct,
    "software": scenarios.software,
    "relayed": scenarios.relayed,
    "finish": scenarios.to_the_end,
    "across": scenarios.across,
    "loopback": scenarios.loopback,
    "table": published.run,
    "lossy": paths.lossy,
    "wide": paths.wide,
    "fair": paths.fair,
    "idle": scenarios.idle,
    "micro": operations.run,
}
QUICK = ("direct", "software", "relayed", "across", "loopback", "micro")
SMOKE = ("software", "across")


def plan_of(args: argparse.Namespace) -> tuple[Plan, tuple[str, ...]]:
    """How much is measured, and which parts."""
    if args.smoke:
        plan, parts = Plan(runs=1, seconds=0.1, round_trips=20, peers=False, budget_s=60), SMOKE
    elif args.quick:
        plan, parts = Plan(runs=3, seconds=0.7, round_trips=1000, peers=False, budget_s=180), QUICK
    else:
        plan, parts = Plan(runs=5, seconds=1.5, round_trips=2000, peers=True, budget_s=1200), tuple(PARTS)
    changed = {"only": tuple(args.contenders), "runs": args.runs or plan.runs, "budget_s": args.budget or plan.budget_s}
    return dataclasses.replace(plan, **changed), tuple(args.only or parts)


def measure(plan: Plan, parts: tuple[str, ...]) -> dict[str, Any]:
    record, begun = Record(), time.time()
    for name in parts:
        if plan.late(0.95):
            record.note(name, "all", "out of time")
            continue
        start = time.monotonic()
        try:
            with record.attempt(name, "all"):
                PARTS[name](record, plan)
        except SystemExit:  # told to stop: what was measured is written all the same
            record.note(name, "all", "stopped before its end")
            break
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    here = machine.describe()
    run = {
        "machine": here,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begun)),
        "took_s": round(time.time() - begun),
        "command": " ".join(["bench/run.py", *sys.argv[1:]]),
    }
    return {
        "machine": here,
        "runs": [run],
        "rows": record.as_rows(),
        "missing": record.missing,
        "limits": record.limits,
    }


def combined(files: list[Path]) -> dict[str, Any]:
    """One result out of the raw files of several runs; of a figure in two of them all values count."""
    results = [json.loads(path.read_text()) for path in files]
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in (row for result in results for row in result["rows"]):
        key = (row["scenario"], row["contender"], row["metric"])
        rows[key] = row | {"values": rows[key]["values"] + row["values"]} if key in rows else row
    out: dict[str, Any] = {"machine": results[0]["machine"], "rows": list(rows.values())}
    return out | {key: [entry for result in results for entry in result[key]] for key in ("runs", "missing", "limits")}


def write(result: dict[str, Any], baseline: dict[str, float], out: Path) -> None:
    """raw/TIME.json holds every sample, the others what people read."""
    (out / "raw").mkdir(parents=True, exist_ok=True)
    stamp = result["runs"][-1]["begun"].replace(":", "").replace("-", "")
    (out / "raw" / f"{stamp}.json").write_text(json.dumps(result))
    (out / "results.json").write_text(json.dumps(pages.summary(result), indent=1) + "\n")
    (out / "results.md").write_text(pages.markdown(result, baseline))
    (out / "results.html").write_text(pages.html(result, baseline))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="3 minutes: no peers but TLS, fewer and shorter runs")
    size.add_argument("--smoke", action="store_true", help="seconds: does the suite work at all? Fails when something does not")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="these parts")
    parser.add_argument("--contenders", nargs="+", default=[], help="these, by name: reference inproc daemon tls published ...")
    parser.add_argument("--runs", type=int, default=0, help="repetitions of each measurement")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds; no round begins late in it")
    parser.add_argument("--combine", nargs="+", type=Path, help="raw results of several runs: measure nothing, write the pages")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--baseline", choices=("compare", "check", "write"), default="compare", help="write: this run becomes it")
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("bench: needs root for network namespaces", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # namespaces and programs are to end with it
    plan, parts = plan_of(args)
    result = combined(args.combine) if args.combine else measure(plan, parts)
    path = HERE / "baseline.json"
    if args.baseline == "write":
        path.write_text(json.dumps(goals.ratios(result), indent=2, sort_keys=True) + "\n")
    baseline = json.loads(path.read_text()) if path.exists() else {}
    write(result, baseline, args.out)
    print(pages.markdown(result, baseline))
    if args.smoke:
        return 1 if result["missing"] or not result["rows"] else 0
    worse = any(verdict == "worse" for *_, verdict in goals.compared(result, baseline))
    return 1 if args.baseline == "check" and worse else 0


if __name__ == "__main__":
    sys.exit(main())
