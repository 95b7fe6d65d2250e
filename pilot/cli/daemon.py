"""daemon start, stop, status (cli.md section 2)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from pilot.cli import daemon_process as process
from pilot.cli.output import clean, clock, number
from pilot.cli.session import Session
from pilot.cli.settings import Settings
from pilot.errors import PilotError

if TYPE_CHECKING:
    from subprocess import Popen

READY = 15.0
# Flags of the daemon that are handed on as they are; the others are decided by _command_line.
_VALUES = (
    "advertise-endpoint", "keepalive", "idle-timeout", "congestion", "max-segment", "spin", "received-quota",
    "dataexchange-max-frame", "registry-fingerprint", "registry-trust", "transport", "proxy", "compat-beacon", "tls-trust",
    "compat-fingerprint",
)  # fmt: skip
_SWITCHES = ("trust-same-network", "relay-only", "no-echo", "no-dataexchange", "no-eventstream", "registry-tls", "accept-era1")
_SETTINGS = ("endpoint", "hostname", "webhook", "networks")  # flag, environment or config file


def start(s: Session) -> int:
    """Starts the daemon in the background and returns when it answers; nothing is left running otherwise."""
    from pathlib import Path

    from pilot.files import make_private_dir

    settings = s.settings
    binary = process.program(settings.env)
    socket_path = settings.new_socket
    if s.args.has("dry-run"):
        return _dry_run(s, [binary, *_command_line(s, socket_path)])
    try:
        make_private_dir(Path(settings.home))
    except OSError as e:
        raise PilotError("permission_denied", f"cannot create {settings.home}: {e.strerror}") from None
    with _one_at_a_time(settings):
        _refuse_second(settings, socket_path)
        command = [binary, *_command_line(s, socket_path)]
        env = dict(settings.env)
        if s.args.text("admin-token"):
            env["PILOT_ADMIN_TOKEN"] = s.args.text("admin-token")
        if s.args.has("foreground"):
            process.write_pid(settings, os.getpid())
            sys.stdout.flush()
            os.execve(binary, command, env)
        child, log = _spawn(settings, command, env)
        try:
            s.out.note(f"starting daemon (pid {child.pid})...")
            live = _await_ready(s, child, socket_path, log)
        except BaseException:
            process.end(child.pid, 5.0)
            child.wait()
            process.forget(settings)
            raise
    info = live.info
    data = {
        "pid": child.pid,
        "node_id": info["node_id"],
        "address": str(info.get("address", "")),
        "hostname": str(info.get("hostname", "")),
        "socket": socket_path,
        "log_file": log,
    }
    if s.args.text("transport"):
        data["transport"] = str(info.get("transport", ""))
    lines = [*_startup(info, settings), f"Daemon running (pid {child.pid})", f"  Address:  {data['address']}"]
    lines += [f"  Hostname: {clean(data['hostname'])}"] if data["hostname"] else []
    lines += [f"  Socket:   {socket_path}", f"  Logs:     {log}"]
    s.out.done(data, "\n".join(lines))
    return 0


def _dry_run(s: Session, command: list[str]) -> int:
    """What the daemon would use. Status 1 if it would not start."""
    import json
    import subprocess

    env = dict(s.settings.env)
    try:
        known = subprocess.run([command[0], "-help"], capture_output=True, text=True, timeout=READY, env=env)
        if "-dry-run" not in known.stdout + known.stderr:
            raise PilotError("not_supported", f"{command[0]} has no dry run", "choose another with PILOT_DAEMON_BIN")
        wanted = ["--dry-run", "--json"] if s.out.json else ["--dry-run"]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=READY, env=env)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise PilotError("internal", f"cannot run {command[0]}: {e}") from None
    if not done.stdout:
        said = [line for line in done.stderr.splitlines() if line] or ["it wrote no reason"]
        hint = said[-1].removeprefix("hint: ") if said[-1].startswith("hint: ") else ""
        raise PilotError("invalid_argument", said[0].removeprefix(f"{process.PROGRAM}: "), hint)
    s.out.done(json.loads(done.stdout) if s.out.json else {}, done.stdout.rstrip("\n"))
    return done.returncode


def _startup(info: dict[str, Any], settings: Settings) -> list[str]:
    """What the daemon found out when it came up; put together here for daemons that do not say."""
    told = info.get("startup")
    if isinstance(told, list):
        return [clean(str(line)) for line in told]
    name, address, endpoint = (clean(str(info.get(k) or "")) for k in ("hostname", "address", "endpoint"))
    lines = []
    if settings.get("endpoint"):
        lines.append("Registered with fixed endpoint (STUN skipped)")
    elif endpoint:
        lines.append(f"STUN: discovered public endpoint {endpoint}")
    return [*lines, f"Registered as {name} ({address})" if name else f"Registered as {address}"]


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    import fcntl

    descriptor = os.open(os.path.join(settings.home, "start.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_second(settings: Settings, socket_path: str) -> None:
    live = process.answering(socket_path)
    pid = live.pid if live else process.recorded(settings)
    if pid or live:
        what = f"pid {pid}" if pid else f"it answers on {socket_path}"
        raise PilotError("already_exists", f"daemon is already running ({what})", "stop it with: pilotctl daemon stop")
    process.forget(settings)


def _command_line(s: Session, socket_path: str) -> list[str]:
    """Flags for pilot-daemon, each `--flag value` that both generations of daemons take."""
    settings = s.settings
    if not settings.registry and not s.args.text("config"):
        raise PilotError(
            "invalid_argument",
            "no registry configured",
            "pilotctl daemon start --registry HOST:9000, or once: pilotctl init --registry HOST:9000",
        )
    old, new = (os.path.join(settings.home, n) for n in ("identity.key", "identity.json"))
    identity = settings.get("identity") or (old if os.path.exists(old) and not os.path.exists(new) else new)
    out = ["--registry", settings.registry, "--beacon", settings.beacon] if settings.registry else []
    out += ["--listen", settings.get("listen", ":0"), "--socket", socket_path]
    out += ["--identity", os.path.abspath(os.path.expanduser(identity))]
    out += ["--log-level", settings.get("log_level", "info"), "--log-format", settings.get("log_format", "text")]
    if s.args.has("no-encrypt") or settings.get("encrypt", "true").lower() in ("false", "0", "no", "off"):
        out.append("--encrypt=false")
    email = s.args.text("email") or s.args.text("owner") or settings.get("email")
    out += ["--email", email] if email else []
    for name in _SETTINGS:
        value = settings.get(name)
        out += [f"--{name}", value] if value else []
    if s.args.text("config"):
        out += ["--config", os.path.abspath(s.args.text("config"))]
    for name in ("public", "trust_auto_approve"):
        out += [f"--{name.replace('_', '-')}"] if settings.on(name) else []
    for name in _VALUES:
        out += [f"--{name}", s.args.text(name)] if s.args.text(name) else []
    return out + [f"--{name}" for name in _SWITCHES if s.args.has(name)]


def _spawn(settings: Settings, command: list[str], env: dict[str, str]) -> tuple[Popen[bytes], str]:
    """The process in a session of its own, and its log file."""
    import subprocess

    temporary = os.path.join(settings.home, f".log-{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, env=env,
                cwd=settings.home, start_new_session=True, umask=0o077,
            )  # fmt: skip
        finally:
            os.close(descriptor)
    except OSError as e:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise PilotError("internal", f"cannot run {command[0]}: {e.strerror}", "is it the pilot-daemon program?") from None
    process.write_pid(settings, child.pid)
    return child, process.adopt_log(settings, temporary, child.pid)


def _await_ready(s: Session, child: Popen[bytes], socket_path: str, log: str) -> process.Live:
    limit = s.args.duration("wait", READY)
    deadline, next_dot = monotonic() + limit, monotonic() + 1.0
    dots = False
    try:
        while monotonic() < deadline:
            live = process.answering(socket_path) if os.path.exists(socket_path) else None
            if live is not None and live.pid in (0, child.pid):
                return live
            status = child.poll()
            if status is not None:
                reason = process.last_error(log) or "it wrote no reason"
                ended = f"status {status}" if status >= 0 else f"signal {-status}"
                raise PilotError("internal", f"the daemon ended ({ended}): {reason}", f"see {log}")
            if monotonic() >= next_dot and not s.out.json:
                print(".", end="", file=sys.stderr, flush=True)
                next_dot += 1.0
                dots = True
            sleep(0.03)
    finally:
        if dots:
            print(file=sys.stderr, flush=True)
    reason = process.last_error(log)
    message = f"the daemon was not ready within {limit:g}s" + (f": {reason}" if reason else "")
    raise PilotError("timeout", message, f"see {log}; a longer wait: --wait 60s", True)


def stop(s: Session) -> None:
    """Ends the daemon: SIGTERM, after 10 s SIGKILL."""
    settings = s.settings
    live = process.answering(settings.socket)
    pid = (live.pid if live else 0) or process.recorded(settings)
    if not pid:
        process.forget(settings)
        raise PilotError("not_running", "daemon is not running", "start the daemon with: pilotctl daemon start")
    forced = process.end(pid)
    process.forget(settings)
    data: dict[str, Any] = {"pid": pid, "forced": True} if forced else {"pid": pid}
    s.out.done(data, f"daemon {'force-' if forced else ''}stopped (pid {pid})")


def status(s: Session) -> int:
    """Whether the daemon runs, and how it is. `--check`: exit status only."""
    settings = s.settings
    live = process.answering(settings.socket)
    if s.args.has("check"):
        return 0 if live else 1
    pid = (live.pid if live else 0) or process.recorded(settings)
    data: dict[str, Any] = {
        "running": bool(pid or live),
        "pid": pid,
        "pid_file": settings.pid_path,
        "socket": settings.socket,
        "responsive": live is not None,
    }
    if live is None:
        text = f"Daemon: running (pid {pid}), but it does not answer on {settings.socket}" if pid else "Daemon: stopped"
        s.out.done(data, text)
        if not pid:
            s.out.note("  start it with: pilotctl daemon start")
        return 0
    info = live.info
    keys = ("node_id", "address", "hostname", "uptime_secs", "peers", "connections")
    data |= {k: info.get(k) for k in keys}
    lines = [f"Daemon: running (pid {pid})"]
    shown = [
        ("Node ID", str(int(number(info.get("node_id"))))),
        ("Address", str(info.get("address", ""))),
        ("Hostname", str(info.get("hostname", ""))),
        ("Uptime", clock(info.get("uptime_secs"))),
        ("Peers", str(int(number(info.get("peers"))))),
        ("Connections", str(int(number(info.get("connections"))))),
    ]
    lines += [f"  {name + ':':<13}{clean(value)}" for name, value in shown if value]
    s.out.done(data, "\n".join(lines))
    return 0
