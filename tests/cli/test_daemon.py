"""daemon start, stop, status with programs that work, fail, hang and lie (cli.md section 2)."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakedaemon import FakeNode, wait_for

SDK_TESTS = Path(__file__).parent.parent / "sdk"

WORKING = f"""#!{sys.executable}
import json, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before there are threads: it is waited for below
sys.path.insert(0, {str(SDK_TESTS)!r})
from pathlib import Path
from fakedaemon import INFO, FakeNode
argv = sys.argv[1:]
path = Path(argv[argv.index("--socket") + 1])
INFO["startup"] = ["STUN: discovered public endpoint 203.0.113.7:4000", "NAT type: full cone",
                   "Registered as home-agent-1 (1:0001.0000.0008)"]
node = FakeNode(path)
Path("argv.json").write_text(json.dumps(argv))
print("listening", flush=True)
signal.sigwait([signal.SIGTERM])
node.close()
"""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_REGISTRY", "rendezvous.example.com:9000")


@pytest.fixture(autouse=True)
def nothing_left(home: Path) -> Iterator[None]:
    """Whatever a test started is gone afterwards."""
    yield
    from pilot.cli import daemon_process
    from pilot.cli.settings import Settings

    settings = Settings({}, dict(os.environ))
    pid = daemon_process.recorded(settings)
    if pid:
        daemon_process.end(pid, 1.0)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a script the pilot-daemon that is run."""

    def make(text: str) -> Path:
        path = tmp_path / "bin" / "pilot-daemon"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        monkeypatch.setenv("PILOT_DAEMON_BIN", str(path))
        return path

    return make


def reap(pid: int) -> None:
    """The command line's children are ours here, since it runs in this process."""
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_start_status_stop(run, home: Path, program) -> None:
    program(WORKING)
    ran = run("daemon", "start")
    assert ran.status == 0, ran.err
    pid = int((home / ".pilot" / "pilot.pid").read_text())
    log = home / ".pilot" / f"pilot-{pid}.log"
    assert ran.out == (
        "STUN: discovered public endpoint 203.0.113.7:4000\nNAT type: full cone\n"
        "Registered as home-agent-1 (1:0001.0000.0008)\n"
        f"Daemon running (pid {pid})\n  Address:  1:0001.0000.0008\n  Hostname: home-agent-1\n"
        f"  Socket:   {home}/p.sock\n"
        f"  Logs:     {log}\n"
    )
    assert ran.err.startswith(f"starting daemon (pid {pid})...\n")
    assert os.getsid(pid) == pid, "the daemon must outlive the terminal"
    assert os.readlink(home / ".pilot" / "pilot.log") == log.name
    for path in (log, home / ".pilot" / "pilot.pid"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    status = run("--json", "daemon", "status").data
    assert status == {
        "running": True, "pid": pid, "pid_file": f"{home}/.pilot/pilot.pid", "socket": f"{home}/p.sock", "responsive": True,
        "node_id": 8, "address": "1:0001.0000.0008", "hostname": "home-agent-1", "uptime_secs": 3723, "peers": 1,
        "connections": 1,
    }  # fmt: skip
    assert run("daemon", "status").out.splitlines()[:2] == [f"Daemon: running (pid {pid})", "  Node ID:     8"]
    assert run("daemon", "status", "--check") == (0, "", "")

    second = run("--json", "daemon", "start")
    assert (second.status, second.error["code"]) == (1, "already_exists")
    assert str(pid) in second.error["message"]
    assert int((home / ".pilot" / "pilot.pid").read_text()) == pid, "a second start leaves the first alone"

    assert run("daemon", "stop").out == f"daemon stopped (pid {pid})\n"
    reap(pid)
    assert not (home / ".pilot" / "pilot.pid").exists()
    assert run("--json", "daemon", "stop").error["code"] == "not_running"
    assert run("daemon", "status", "--check").status == 1
    assert run("daemon", "status").out == "Daemon: stopped\n"


def test_json_of_start_and_the_command_line_of_the_daemon(run, home: Path, program) -> None:
    program(WORKING)
    run("init", "--hostname", "home-agent-1", "--public")
    data = run("--json", "daemon", "start", "--endpoint", "34.148.103.117:4000", "--relay-only").data
    assert set(data) == {"pid", "node_id", "address", "hostname", "socket", "log_file"}
    argv = json.loads((home / ".pilot" / "argv.json").read_text())
    assert argv == [
        "--registry", "rendezvous.example.com:9000", "--beacon", "rendezvous.example.com:9001", "--listen", ":0",
        "--socket", f"{home}/p.sock", "--identity", f"{home}/.pilot/identity.json", "--log-level", "info", "--log-format", "text",
        "--endpoint", "34.148.103.117:4000", "--hostname", "home-agent-1", "--public", "--relay-only",
    ]  # fmt: skip
    run("daemon", "stop")
    reap(data["pid"])


def test_flags_are_handed_on_or_refused(run, home: Path, program) -> None:
    program(WORKING)
    run("init")
    flags = ["--compat-beacon", "wss://b.example/x", "--tls-trust", "system", "--accept-era1"]
    pid = run("--json", "daemon", "start", *flags).data["pid"]
    assert json.loads((home / ".pilot" / "argv.json").read_text())[-5:] == flags
    run("daemon", "stop")
    reap(pid)
    error = run("--json", "daemon", "start", "--proxy-cmd", "cat proxy").error
    assert error["code"] == "not_supported" and "--proxy" in error["hint"]


def test_an_existing_identity_of_an_older_installation_is_used(run, home: Path, program) -> None:
    program(WORKING)
    (home / ".pilot").mkdir()
    (home / ".pilot" / "identity.key").write_text("{}")
    pid = run("--json", "daemon", "start").data["pid"]
    assert f"{home}/.pilot/identity.key" in json.loads((home / ".pilot" / "argv.json").read_text())
    run("daemon", "stop")
    reap(pid)


def test_a_daemon_that_fails_says_why(run, home: Path, program) -> None:
    text = "error: cannot reach the registry at rendezvous.example.com:9000"
    program(f"#!/bin/sh\necho starting\necho '{text}' >&2\necho 'hint: x'\nexit 1\n")
    ran = run("--json", "daemon", "start")
    assert (ran.status, ran.error["code"]) == (1, "internal")
    assert ran.error["message"] == "the daemon ended (status 1): cannot reach the registry at rendezvous.example.com:9000"
    assert not (home / ".pilot" / "pilot.pid").exists()


def test_a_silent_failure_and_a_death_by_signal(run, program) -> None:
    program("#!/bin/sh\nexit 3\n")
    assert run("--json", "daemon", "start").error["message"] == "the daemon ended (status 3): it wrote no reason"
    program("#!/bin/sh\nkill -9 $$\n")
    assert "signal 9" in run("--json", "daemon", "start").error["message"]


def test_a_program_that_cannot_run(run, program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("#!/no/such/interpreter\n")
    assert "cannot run" in run("--json", "daemon", "start").error["message"]
    monkeypatch.setenv("PILOT_DAEMON_BIN", "/no/such/program")
    assert run("--json", "daemon", "start").error["code"] == "not_found"


def test_a_daemon_that_never_gets_ready_is_not_left_behind(run, home: Path, program) -> None:
    program("#!/bin/sh\necho $$ > pid.txt\necho 'error: still trying' >&2\nexec sleep 60\n")
    ran = run("--json", "daemon", "start", "--wait", "1s")
    assert (ran.status, ran.error["code"]) == (1, "timeout")
    assert "not ready within 1s: still trying" in ran.error["message"]
    pid = int((home / ".pilot" / "pid.txt").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (home / ".pilot" / "pilot.pid").exists()


def test_another_daemon_on_the_socket_is_not_taken_for_the_new_one(run, home: Path, program) -> None:
    program(WORKING)
    with FakeNode(home / "p.sock"):
        ran = run("--json", "daemon", "start")
    assert (ran.status, ran.error["code"]) == (1, "already_exists")


def test_no_registry(run, monkeypatch: pytest.MonkeyPatch, program) -> None:
    program(WORKING)
    monkeypatch.delenv("PILOT_REGISTRY")
    ran = run("--json", "daemon", "start")
    assert (ran.status, ran.error["code"], ran.error["message"]) == (1, "invalid_argument", "no registry configured")


@pytest.mark.parametrize("content", ["", "nonsense", "-1", "0", "999999999", "99999999999999999999"])
def test_stale_pid_files(run, home: Path, program, content: str) -> None:
    (home / ".pilot").mkdir()
    (home / ".pilot" / "pilot.pid").write_text(content)
    data = run("--json", "daemon", "status").data
    assert (data["running"], data["pid"], data["responsive"]) == (False, 0, False)
    assert run("--json", "daemon", "stop").error["code"] == "not_running"
    assert not (home / ".pilot" / "pilot.pid").exists()


def test_a_pid_that_now_belongs_to_somebody_else_is_not_touched(run, home: Path) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        (home / ".pilot").mkdir()
        (home / ".pilot" / "pilot.pid").write_text(str(other.pid))
        assert run("--json", "daemon", "status").data["running"] is False
        assert run("--json", "daemon", "stop").error["code"] == "not_running"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_stop_kills_what_ignores_it(run, home: Path, program, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilot.cli import daemon_process

    original = daemon_process.end
    monkeypatch.setattr(daemon_process, "end", lambda pid: original(pid, 0.3))
    path = program("#!/bin/sh\ntrap '' TERM\necho up\nwhile :; do sleep 0.1; done\n")
    child = subprocess.Popen([str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()  # the trap is set
    (home / ".pilot").mkdir()
    (home / ".pilot" / "pilot.pid").write_text(str(child.pid))
    status = run("daemon", "status")
    assert status.out == f"Daemon: running (pid {child.pid}), but it does not answer on {home}/p.sock\n"
    assert run("--json", "daemon", "stop").data == {"pid": child.pid, "forced": True}
    child.wait(5)
    child.stdout.close()


def test_a_socket_that_answers_nothing_is_not_responsive(run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilot.cli import daemon_process

    original = daemon_process.answering
    monkeypatch.setattr(daemon_process, "answering", lambda path: original(path, 0.2))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(home / "p.sock"))
        silent.listen()
        assert run("--json", "daemon", "status").data["responsive"] is False


def test_stop_finds_a_daemon_that_was_started_by_hand(run, home: Path, program) -> None:
    path = program(WORKING)
    child = subprocess.Popen([str(path), "--socket", str(home / "p.sock")], cwd=home, stdout=subprocess.DEVNULL)
    wait_for((home / "p.sock").exists, "the socket")
    wait_for(lambda: run("daemon", "status", "--check").status == 0, "it answers")
    assert run("--json", "daemon", "status").data["pid"] == child.pid
    stopping = subprocess.Popen([sys.executable, "-m", "pilot.cli.main", "daemon", "stop"], stdout=subprocess.PIPE)
    assert child.wait(10) == 0
    assert stopping.communicate(timeout=10)[0].decode() == f"daemon stopped (pid {child.pid})\n"


def test_foreground_becomes_the_daemon(home: Path, program) -> None:
    program("#!/bin/sh\necho $$ \"$@\"\n")
    command = [sys.executable, "-m", "pilot.cli.main", "daemon", "start", "--foreground"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    out = child.communicate(timeout=10)[0].decode()
    assert out.startswith(f"{child.pid} --registry rendezvous.example.com:9000")


def test_old_logs_are_removed(run, home: Path, program) -> None:
    program("#!/bin/sh\nexit 1\n")
    (home / ".pilot").mkdir()
    for n in range(2, 30):
        path = home / ".pilot" / f"pilot-{n}.log"
        path.write_text("old")
        os.utime(path, (n, n))
    run("daemon", "start")
    kept = sorted(home.glob(".pilot/pilot-*.log"))
    assert len(kept) == 10
    assert (home / ".pilot" / "pilot-29.log") in kept
    assert (home / ".pilot" / "pilot-20.log") not in kept


def test_two_starts_at_once_make_one_daemon(home: Path, program) -> None:
    program(WORKING)
    command = [sys.executable, "-m", "pilot.cli.main", "--json", "daemon", "start"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    done = [(c.communicate(timeout=30), c.returncode) for c in children]
    assert sorted(code for _, code in done) == [0, 1, 1]
    for (_, err), code in done:
        if code:
            assert json.loads(err)["code"] == "already_exists"


def test_dry_run_hands_on_what_the_daemon_says_and_starts_nothing(run, home: Path, program) -> None:
    program(
        f"#!{sys.executable}\nimport json, sys\n"
        "if '-help' in sys.argv: sys.exit(print('  -dry-run'))\n"
        "assert '--dry-run' in sys.argv, sys.argv\n"
        "print(json.dumps({'would_start': False, 'argv': sys.argv[1:]}) if '--json' in sys.argv else 'Nothing was changed.')\n"
        "sys.exit(1)\n"
    )
    ran = run("--json", "daemon", "start", "--dry-run", "--hostname", "bot")
    assert ran.status == 1 and ran.data["would_start"] is False
    argv = ran.data["argv"]
    assert argv[argv.index("--hostname") + 1] == "bot" and argv[argv.index("--identity") + 1] == f"{home}/.pilot/identity.json"
    assert run("daemon", "start", "--dry-run").out == "Nothing was changed.\n"
    assert not (home / ".pilot").exists()


def test_a_daemon_without_a_dry_run_is_not_run(run, home: Path, program) -> None:
    program(f"#!{sys.executable}\nimport sys\nif '-help' not in sys.argv: open({str(home / 'ran')!r}, 'w')\n")
    assert run("--json", "daemon", "start", "--dry-run").error["code"] == "not_supported"
    assert not (home / "ran").exists()


def test_the_reason_of_a_daemon_that_cannot_even_tell(run, program) -> None:
    program(
        f"#!{sys.executable}\nimport sys\nif '-help' in sys.argv: sys.exit(print('-dry-run'))\n"
        "sys.exit('pilot-daemon: config file x: not JSON\\nhint: mend it')\n"
    )
    error = run("--json", "daemon", "start", "--dry-run").error
    assert "config file x: not JSON" in error["message"] and error["hint"] == "mend it"
