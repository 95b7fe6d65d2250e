"""Operations that stop, change or disturb a daemon or the rendezvous; they run after the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

from operations import ask, both_trust, ensure_trust, operation, ping_until
from testbed import OURS, PATIENCE, THEIRS, CommandFailed, Machine, wait_for


@operation("daemon-start-stop", local=True, separate=True)
def daemon_start_stop(a: Machine, b: Machine) -> None:
    """The tools start the other make's daemon, find it by its pid file and stop it."""
    a.stop()
    program = Path(a.daemon_argv(a.make)[0])
    env = {"PILOT_DAEMON_BIN": str(program)}
    try:
        started = a.ctl("--json", "daemon", "start", "--hostname", a.name, "--socket", a.socket, env=env, timeout=30).stdout
        assert f'"node_id":{a.node}' in started.replace(" ", ""), started
        status = a.json("daemon", "status")
        assert status["pid"] > 0 and status["running"] and status["node_id"] == a.node, status
        again = a.ctl("--json", "daemon", "start", "--socket", a.socket, env=env, check=False)
        assert again.returncode == 1 and "already_exists" in again.stderr, again
        if a.tools == THEIRS:  # writes 0 into the pid file before it notices the running daemon (cli.md section 2)
            (a.dot / "pilot.pid").write_text(f"{status['pid']}\n")
        stopped = a.json("daemon", "stop", timeout=30)
        assert stopped["pid"] == status["pid"] and not stopped.get("forced"), stopped
        assert not os.path.exists(a.socket)
        assert a.ctl("daemon", "status", "--check", check=False).returncode == 1
    finally:
        a.ctl("daemon", "stop", check=False, timeout=30)
        a.start()


@operation("untrust", separate=True)
def untrust(a: Machine, b: Machine) -> None:
    """Ends on both sides; trust can be made again and carries traffic at once. Between two published daemons perhaps only when
    the other side asks: they drop the second accept within ten minutes as a replay."""
    assert a.json("untrust", str(b.node))["node_id"] == b.node
    wait_for(lambda: not b.trusts(a), f"{b} learns that {a} ended trust", 15, 0.2)
    assert not a.trusts(b)
    ask(a, b)
    b.json("approve", str(a.node))
    try:
        both_trust(a, b)
    except AssertionError:
        if OURS in (a.make, b.make):
            raise
        ensure_trust(a, b)
    ping_until(a, b)


@operation("restart-peer", separate=True)
def restart_peer(a: Machine, b: Machine) -> None:
    """The peer restarts: same number, same trust, no new handshake, traffic goes on."""
    ping_until(a, b)
    node = b.node
    b.restart()
    assert b.node == node and b.trusts(a)
    ping_until(a, b)


@operation("restart-self", separate=True)
def restart_self(a: Machine, b: Machine) -> None:
    ping_until(a, b)
    node = a.node
    a.restart()
    assert a.node == node and a.trusts(b)
    ping_until(a, b)


@operation("kill-peer", separate=True)
def kill_peer(a: Machine, b: Machine) -> None:
    """Killed without a word: the caller gets an error in time, its daemon stays well, and the peer comes back."""
    ping_until(a, b)
    b.kill()
    started = time.monotonic()
    done = a.ctl("--json", "ping", b.address, "--count", "1", "--timeout", "3s", check=False, timeout=40)
    assert "error" in done.stdout + done.stderr and time.monotonic() - started < 35 * PATIENCE
    assert a.json("health")["status"] == "ok"
    b.start()
    ping_until(a, b)


@operation("freeze-peer", separate=True)
def freeze_peer(a: Machine, b: Machine) -> None:
    """Stopped for a while: nothing stalls, and it goes on after."""
    ping_until(a, b)
    b.freeze()
    try:
        a.ctl("--json", "ping", b.address, "--count", "1", "--timeout", "2s", check=False, timeout=40)
        started = time.monotonic()
        assert a.json("health")["status"] == "ok" and a.json("info")["node_id"] == a.node
        assert time.monotonic() - started < 2 * PATIENCE
    finally:
        b.thaw()
    ping_until(a, b)


@operation("rotate-key", separate=True)
def rotate_key(a: Machine, b: Machine) -> None:
    """The own key is exchanged at the registry; number, name and trust stay, and traffic goes on."""
    new_key(a)
    assert a.json("info")["node_id"] == a.node
    ping_until(a, b)
    ping_until(b, a)


@operation("rotate-key-restart", separate=True)
def rotate_key_restart(a: Machine, b: Machine) -> None:
    """The exchanged key is the one on disk: after a restart the node is still itself. Ours tells its peers of the new key and
    they follow; of a published daemon only the registry tells, so ours refuses it until trust is made again."""
    ping_until(a, b)
    key, node = new_key(a), a.node
    time.sleep(0.5)  # the peers hear of it in the background
    a.restart()
    assert a.node == node and a.json("info")["public_key"] == key
    if a.make == THEIRS and b.make == OURS:
        done = b.ctl("--json", "ping", a.address, "--count", "1", "--timeout", "3s", check=False)
        assert "rtt_ms" not in done.stdout, done.stdout
        b.json("untrust", str(a.node))
        a.ctl("untrust", str(b.node), check=False)  # it may have heard
        ensure_trust(b, a)
    ping_until(a, b)


def new_key(a: Machine) -> str:
    before = a.json("info")["public_key"]
    a.json("rotate-key")
    return str(wait_for(lambda: k if (k := a.json("info")["public_key"]) != before else None, "another public key", 5))


@operation("another-identity", separate=True)
def another_identity(a: Machine, b: Machine) -> None:
    """The peer comes back without its identity: it is a stranger with another number; trust can be made with it. The name stays
    with the old identity for a while, because the published daemon does not sign off when it ends: the stranger takes another."""
    ping_until(a, b)
    old = b.node
    b.stop()
    for name in ("identity.json", "trust.json", "account.json"):  # the last one names the owner of the old identity
        (b.dot / name).unlink(missing_ok=True)
    b.name += "-anew"
    b.start()
    assert b.node != old
    assert a.json("health")["status"] == "ok"
    ensure_trust(a, b)
    ping_until(a, b)


@operation("registry-restart", separate=True)
def registry_restart(a: Machine, b: Machine) -> None:
    """Data goes on while the registry is away; names and handshakes work when it is back."""
    ping_until(a, b)
    a.bed.stop_rendezvous()
    try:
        if a.path_to(b) == "direct" and b.path_to(a) == "direct":
            done = a.json("ping", b.address, "--count", "1", "--timeout", "5s")
            assert done["results"][0].get("bytes") == 6, done
        assert a.json("health")["status"] == "ok"
    finally:
        a.bed.start_rendezvous()

    def found() -> bool:
        try:
            return bool(a.json("find", b.name)["node_id"] == b.node)
        except CommandFailed:
            return False

    wait_for(found, lambda: f"{a} finds {b} again\n{a.log[-1500:]}", 30, 0.3)
    ping_until(a, b)
