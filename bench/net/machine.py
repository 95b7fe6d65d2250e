"""The machine that a run took place on, as far as figures depend on it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    cpu = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = set(info.split("flags", 1)[-1].split("\n", 1)[0].split())
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "vaes": "vaes" in flags,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "commit": _git("rev-parse", "--short", "HEAD"),
    }


def _git(*argv: str) -> str:
    done = subprocess.run(["git", *argv], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()
