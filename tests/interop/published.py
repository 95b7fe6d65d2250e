"""The published programs, from the package index into virtual environments of their own, one for each release.

They are cached in build/interop-venv of the working tree (PILOT_INTEROP_VENV names another place; older releases stand beside it
with their number behind the name). Nothing of them is imported by the tests: they run as programs, without a route out and with
everything switched off that would report home.
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

VERSION = "1.18.0"
ERA1 = "0.1.0"  # its daemon speaks the tunnel encryption of era 1 (transport.md 3.4); later wheels do not
OLDER = ("1.13.11", "1.9.1", ERA1)
PACKAGE = "pilotprotocol"
ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 180

# What the published daemon does beyond the network: all of it off, as far as a release has the switch.
QUIET = ("-telemetry-url=", "-motd-feed-url=", "-no-skillinject")
ENVIRONMENT = {"PILOT_NO_SKILLINJECT": "1", "PILOT_TELEMETRY_URL": "", "PILOT_MOTD_URL": "", "NO_COLOR": "1"}


class Unavailable(Exception):
    """The published programs cannot be had; the text says why."""


def missing(error: Unavailable) -> NoReturn:
    """Skips the test; where CI runs it, it fails: a run without the programs has shown nothing."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


def venv(version: str = VERSION) -> Path:
    where = Path(os.environ.get("PILOT_INTEROP_VENV") or ROOT / "build" / "interop-venv").absolute()
    return where if version == VERSION else where.with_name(f"{where.name}-{version}")


@functools.cache
def bin_dir(version: str = VERSION) -> Path:
    """The folder of pilotctl, pilot-daemon and libpilot.so; installs them first if need be. Raises Unavailable."""
    where = venv(version)
    where.parent.mkdir(parents=True, exist_ok=True)
    with open(where.with_name(where.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _find(where)
        if found is None:
            _install(where, version)
            found = _find(where)
    if found is None:
        raise Unavailable(f"{PACKAGE}=={version} brings no pilot-daemon for this machine")
    if not list(found.parents[1].glob(f"{PACKAGE}-{version}.dist-info")):
        raise Unavailable(f"{where} holds another release than {version}; remove it")
    done = subprocess.run([str(found / "pilot-daemon"), "-help"], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise Unavailable(f"pilot-daemon of {version} does not run here: {done.stdout}{done.stderr}")
    return found


@functools.cache
def quiet(version: str = VERSION) -> tuple[str, ...]:
    """The flags of QUIET that this release's daemon has."""
    argv = [str(bin_dir(version) / "pilot-daemon"), "-help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    text = done.stdout + done.stderr
    return tuple(flag for flag in QUIET if f"  {flag.removesuffix('=')}" in text)


def python() -> Path:
    """The interpreter that can `import pilotprotocol`."""
    bin_dir()
    return venv() / "bin" / "python"


def _find(where: Path) -> Path | None:
    for path in where.glob("lib/python*/site-packages/pilotprotocol/bin/pilot-daemon"):
        if os.access(path, os.X_OK):
            return path.parent
    return None


def _install(where: Path, version: str) -> None:
    package = f"{PACKAGE}=={version}"
    pip = [str(where / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries=1"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(where)], check=True, capture_output=True, text=True, timeout=INSTALL_S)
        subprocess.run([*pip, package], check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the package index did not deliver {package} in {INSTALL_S} s") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:] or [str(error)]
        raise Unavailable(f"{package} cannot be installed: {last[0]}") from None
