"""How many processors this program may use."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the control group that a container sees as its root


def own_processors(quota: Path = _QUOTA) -> float:
    """Processors by affinity and by the control group's quota, whichever is less."""
    count: float = len(os.sched_getaffinity(0))
    try:
        share, period = quota.read_text().split()
        if share != "max":
            count = min(count, int(share) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no such limit, or one that is kept elsewhere
    return count
