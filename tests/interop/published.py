"""The published programs, from the package index into a virtual environment of their own.

They are cached in build/interop-venv of the working tree (PILOT_INTEROP_VENV names another place). Nothing of them is imported by
the tests: they run as programs, without a route out and with everything switched off that would report home.
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path

VERSION = "1.18.0"
PACKAGE = f"pilotprotocol=={VERSION}"
ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 180

# What the published daemon does beyond the network: all of it off.
QUIET = ("-telemetry-url=", "-motd-feed-url=", "-no-skillinject")
ENVIRONMENT = {"PILOT_NO_SKILLINJECT": "1", "PILOT_TELEMETRY_URL": "", "PILOT_MOTD_URL": "", "NO_COLOR": "1"}


class Unavailable(Exception):
    """The published programs cannot be had; the text says why."""


def venv() -> Path:
    return Path(os.environ.get("PILOT_INTEROP_VENV") or ROOT / "build" / "interop-venv").absolute()


@functools.cache
def bin_dir() -> Path:
    """The folder of pilotctl, pilot-daemon and libpilot.so; installs them first if need be. Raises Unavailable."""
    where = venv()
    where.parent.mkdir(parents=True, exist_ok=True)
    with open(where.with_name(where.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _find(where)
        if found is None:
            _install(where)
            found = _find(where)
    if found is None:
        raise Unavailable(f"{PACKAGE} brings no pilot-daemon for this machine")
    done = subprocess.run([str(found / "pilot-daemon"), "-version"], capture_output=True, text=True, timeout=20, check=False)
    if VERSION not in done.stdout + done.stderr:
        raise Unavailable(f"pilot-daemon -version says {done.stdout!r}{done.stderr!r}, wanted {VERSION}; remove {where}")
    return found


def python() -> Path:
    """The interpreter that can `import pilotprotocol`."""
    bin_dir()
    return venv() / "bin" / "python"


def _find(where: Path) -> Path | None:
    for path in where.glob("lib/python*/site-packages/pilotprotocol/bin/pilot-daemon"):
        if os.access(path, os.X_OK):
            return path.parent
    return None


def _install(where: Path) -> None:
    pip = [str(where / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries=1"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(where)], check=True, capture_output=True, text=True, timeout=INSTALL_S)
        subprocess.run([*pip, PACKAGE], check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the package index did not deliver {PACKAGE} in {INSTALL_S} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:] or [str(error)]
        raise Unavailable(f"{PACKAGE} cannot be installed: {last[0]}") from None
