"""The daemon as a process: finding its program, its pid file, its log, who owns the socket. Linux."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, NamedTuple

from pilot.cli.settings import Settings
from pilot.errors import PilotError

PROGRAM = "pilot-daemon"
KEPT_LOGS = 10
_LOG_TAIL = 64 << 10


class Live(NamedTuple):
    """A daemon that answers: its pid (0 if hidden) and its Info."""

    pid: int
    info: dict[str, Any]


def program(env: Mapping[str, str]) -> str:
    """Path of pilot-daemon: $PILOT_DAEMON_BIN, beside pilotctl, or on PATH. Raises PilotError(not_found)."""
    given = env.get("PILOT_DAEMON_BIN")
    if given:
        if not os.access(given, os.X_OK) or os.path.isdir(given):
            raise PilotError("not_found", f"PILOT_DAEMON_BIN: cannot run {given}", "set it to the pilot-daemon program")
        return os.path.abspath(given)
    beside = [os.path.dirname(os.path.abspath(sys.argv[0])), os.path.dirname(sys.executable)]
    for directory in (*beside, *env.get("PATH", "").split(os.pathsep)):
        path = os.path.join(directory, PROGRAM)
        if directory and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise PilotError("not_found", f"{PROGRAM} is not installed", "install it, or set PILOT_DAEMON_BIN")


def answering(path: str, timeout: float = 2.0) -> Live | None:
    """The daemon behind a socket, if it answers Info with a node number in time."""
    from pilot.sdk._commands import decode
    from pilot.sdk.client import LocalClient
    from pilot.wire.ipc_requests import Info

    try:
        with LocalClient(path) as client:
            info = decode("info", client._call(Info(), timeout))
    except PilotError:
        return None
    if not isinstance(info.get("node_id"), int):
        return None
    return Live(_listener_pid(path), info)


def _listener_pid(path: str) -> int:
    """Pid of the process that listens on a Unix socket, 0 if the kernel does not tell."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, suppress(OSError, struct.error):
        sock.connect(path)
        pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid
    return 0


def read_pid(settings: Settings) -> int:
    """The pid file's number, 0 if there is none or it is broken."""
    with suppress(OSError, ValueError), open(settings.pid_path, encoding="ascii") as f:
        pid = int(f.read(32))
        return pid if 1 < pid < 1 << 31 else 0
    return 0


def recorded(settings: Settings) -> int:
    """The pid file's number if that process is a daemon, else 0: numbers are reused by others."""
    pid = read_pid(settings)
    return pid if pid and is_daemon(pid, settings.env) else 0


def is_daemon(pid: int, env: Mapping[str, str]) -> bool:
    """Whether a process runs and is the daemon's program, an interpreter in front of it allowed."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read(8192).split(b"\0")
    except OSError:
        return False
    names = {PROGRAM, "daemon", os.path.basename(env.get("PILOT_DAEMON_BIN") or PROGRAM)}
    return any(os.path.basename(os.fsdecode(w)) in names for w in words[:3])


def start_time(pid: int) -> str:
    """When a process started, "" if it is gone or a zombie: with the pid it names a process for ever."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def end(pid: int, graceful: float = 10.0) -> bool:
    """SIGTERM, then SIGKILL; returns when the process is gone. True if it had to be killed."""
    import signal

    born = start_time(pid)
    for number, wait in ((signal.SIGTERM, graceful), (signal.SIGKILL, 5.0)):
        if not born or start_time(pid) != born:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise PilotError("permission_denied", f"process {pid} belongs to another user") from None
        deadline = monotonic() + wait
        while monotonic() < deadline:
            if start_time(pid) != born:
                return number is signal.SIGKILL
            sleep(0.02)
    raise PilotError("timeout", f"process {pid} does not end", "", True)


def forget(settings: Settings) -> None:
    """Removes the pid file."""
    with suppress(FileNotFoundError):
        os.unlink(settings.pid_path)


def write_pid(settings: Settings, pid: int) -> None:
    """Records the daemon's pid, mode 0600."""
    from pathlib import Path

    from pilot.files import write_atomic

    write_atomic(Path(settings.pid_path), f"{pid}\n".encode(), 0o600)


def adopt_log(settings: Settings, temporary: str, pid: int) -> str:
    """Names the log after the process and lets pilot.log point to it; old logs beyond KEPT_LOGS are removed."""
    path = os.path.join(settings.home, f"pilot-{pid}.log")
    os.rename(temporary, path)
    link = f"{settings.log_path}.{pid}"
    with suppress(FileNotFoundError):
        os.unlink(link)
    os.symlink(os.path.basename(path), link)
    os.rename(link, settings.log_path)
    logs = [n for n in os.listdir(settings.home) if n.startswith("pilot-") and n[6:-4].isdigit() and n.endswith(".log")]
    paths = [os.path.join(settings.home, n) for n in logs]
    for old in sorted(paths, key=lambda p: os.lstat(p).st_mtime_ns)[:-KEPT_LOGS]:
        with suppress(OSError):
            os.unlink(old)
    return path


def last_error(path: str) -> str:
    """Why the daemon ended: the last error of its log, else its last line, "" if it wrote nothing."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.path.getsize(path) - _LOG_TAIL))
            lines = [line.strip() for line in f.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    said = [line for line in lines if not line.lower().startswith("hint:")]
    errors = [line for line in said if "error" in line.lower() or "fatal" in line.lower()]
    return (errors or said or [""])[-1].removeprefix("error: ")[:500]
