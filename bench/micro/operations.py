"""Parts of the product by themselves: pytest-benchmark for what Python calls, a C program where Python would hide the figure."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from net.bed import BenchError
from net.record import Plan, Record
from net.reference import compile_c

HERE = Path(__file__).parent
SOURCES = (
    "aead.c", "aead_vaes.c", "cc.c", "cc_bbr.c", "cc_cubic.c", "crc32.c", "recovery.c", "replay.c", "stream.c", "stream_ack.c",
    "stream_recv.c", "stream_ring.c", "stream_send.c", "wire_beacon.c", "wire_option.c", "wire_packet.c",
)  # fmt: skip
NATIVE, PYTHON = "native code", "Python code"


def run(record: Record, plan: Plan) -> None:
    """Nanoseconds of each operation."""
    with record.attempt(NATIVE, "all"):
        native(record)
    with record.attempt(PYTHON, "all"):
        python(record, plan)


def native(record: Record) -> None:
    done = subprocess.run([str(compile_c(HERE / "core.c", SOURCES))], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise BenchError(f"core.c: {done.stderr.strip()}")
    for row in json.loads(done.stdout):
        record.add(NATIVE, row["name"], "ns", *row["ns"])


def python(record: Record, plan: Plan) -> None:
    """test_*.py under pytest-benchmark; each function's docstring names what it measures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "benchmark.json"
        options = [f"--benchmark-json={out}", f"--benchmark-max-time={0.3 if plan.peers else 0.1}", "--benchmark-min-rounds=5"]
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *options, str(HERE)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, cwd=folder)
        if done.returncode:
            raise BenchError(f"pytest: {done.stdout[-400:]}{done.stderr[-200:]}")
        for bench in json.loads(out.read_text())["benchmarks"]:
            record.add(PYTHON, bench["extra_info"]["what"], "ns", *(1e9 * s for s in quantiles(bench["stats"])))


def quantiles(stats: dict[str, float]) -> list[float]:
    """Three values whose median, minimum and upper end are those of the samples, which are too many to keep."""
    return [stats["min"], stats["median"], stats["q3"]]
