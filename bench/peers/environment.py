"""The peers' own virtual environment, with pinned versions (requirements.txt): they are never dependencies of the product."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from net.bed import BenchError

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSTALL_S = 300


def where() -> Path:
    return Path(os.environ.get("PILOT_PEERS_VENV") or ROOT / "build" / "peers").absolute()


def python(package: str) -> str:
    """An interpreter that can import `package`, one of requirements.txt; installs it first if need be. Raises BenchError."""
    folder = where()
    folder.parent.mkdir(parents=True, exist_ok=True)
    program = folder / "bin" / "python"
    pins = {line.partition("==")[0]: line for line in REQUIREMENTS.read_text().split()}
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _run(sys.executable, "-m", "venv", str(folder))
        name, _, version = pins[package].partition("==")
        known = f"import importlib.metadata as m; assert m.version({name!r}) == {version!r}"
        if subprocess.run([str(program), "-c", known], capture_output=True, check=False).returncode:
            pip = (str(program), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries=1")
            _run(*pip, pins[package], pins["cryptography"])
    return str(program)


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise BenchError(f"not within {INSTALL_S} s: {' '.join(argv)}") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [""]
        raise BenchError(f"{' '.join(argv[-2:])} cannot be installed: {last[0]}")
