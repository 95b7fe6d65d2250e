"""CPU time of a process by thread, from /proc: resolution one clock tick (10 ms)."""

from __future__ import annotations

import os
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
NATIVE = ("pilot-data", "pilot-relay")


def _seconds(stat: str) -> float:
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def of_process(pid: int | str) -> tuple[float, float]:
    """(native, other) seconds: the threads named NATIVE, and the rest with those that have ended. (0, 0) if it is gone."""
    native = 0.0
    try:
        total = _seconds(Path(f"/proc/{pid}/stat").read_text())
        for task in Path(f"/proc/{pid}/task").iterdir():
            stat = (task / "stat").read_text()
            if stat[stat.index("(") + 1 : stat.rindex(")")] in NATIVE:
                native += _seconds(stat)
    except OSError:  # it, or one of its threads, has ended
        return 0.0, 0.0
    return native, max(total - native, 0.0)
