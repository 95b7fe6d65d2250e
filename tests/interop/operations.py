"""What a user does, once for every pair of makes: `a` acts toward `b`. An operation fails by an assertion that says what the
user would miss; it uses only what both makes of tools offer and what both kinds of daemons store.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from testbed import OURS, THEIRS, CommandFailed, Machine, wait_for

Operation = Callable[[Machine, Machine], None]

OPERATIONS: dict[str, Operation] = {}
LOCAL: set[str] = set()  # concern one machine: the path to the other does not matter
SEPARATE: set[str] = set()  # stop or change a daemon: run last
LONG: set[str] = set()  # take minutes: only in the whole matrix
PORTS = iter(range(6000, 60000))


def operation(name: str, *, local: bool = False, separate: bool = False) -> Callable[[Operation], Operation]:
    def add(function: Operation) -> Operation:
        OPERATIONS[name] = function
        if local:
            LOCAL.add(name)
        if separate:
            SEPARATE.add(name)
        return function

    return add


# ---- one machine ----


@operation("info", local=True)
def info(a: Machine, b: Machine) -> None:
    data = a.json("info")
    assert data["node_id"] == a.node and data["address"] == a.address and data["hostname"] == a.name, data
    human = a.ctl("info").stdout
    assert a.address in human, human


@operation("health", local=True)
def health(a: Machine, b: Machine) -> None:
    assert a.json("health")["status"] == "ok"
    assert "ok" in a.ctl("health").stdout


@operation("daemon-status", local=True)
def daemon_status(a: Machine, b: Machine) -> None:
    data = a.json("daemon", "status")
    assert data["running"] and data["responsive"] and data["node_id"] == a.node, data
    assert a.ctl("daemon", "status", "--check").stdout == ""


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


@operation("set-hostname", local=True)
def set_hostname(a: Machine, b: Machine) -> None:
    other = f"{a.name}-renamed"
    assert a.json("set-hostname", other)["hostname"] == other
    try:
        wait_for(lambda: a.json("info")["hostname"] == other, "the new name in info", 2)  # may repeat an answer for 0.2 s
        assert a.json("clear-hostname")["hostname"] == ""
        wait_for(lambda: a.json("info")["hostname"] == "", "no name in info", 2)
    finally:
        a.json("set-hostname", a.name)


@operation("set-tags", local=True)
def set_tags(a: Machine, b: Machine) -> None:
    prefix = ["extras"] if a.tools == THEIRS else []
    assert a.json(*prefix, "set-tags", "robot", "mapper")["tags"] == ["robot", "mapper"]
    assert not a.json(*prefix, "clear-tags")["tags"]


@operation("visibility", local=True)
def visibility(a: Machine, b: Machine) -> None:
    assert a.json("set-public")["visibility"] == "public"
    assert a.json("lookup", str(a.node))["public"] is True
    assert a.json("set-private")["visibility"] == "private"


# ---- trust ----


@operation("handshake-reject")
def handshake_reject(a: Machine, b: Machine) -> None:
    ask(a, b)
    assert b.json("reject", str(a.node), "not today")["status"] == "rejected"
    assert not b.json("pending")["pending"]
    assert not b.trusts(a) and not a.trusts(b)


@operation("trust-required")
def trust_required(a: Machine, b: Machine) -> None:
    """A private node cannot be reached by a stranger."""
    done = a.ctl("--json", "ping", b.address, "--count", "1", "--timeout", "2s", check=False)
    assert done.returncode == 1, done.stdout


@operation("handshake-approve")
def handshake_approve(a: Machine, b: Machine) -> None:
    ask(a, b)
    rows = b.json("pending")["pending"]
    assert [r["justification"] for r in rows if r["node_id"] == a.node] == ["let us talk"], rows
    assert b.json("approve", str(a.node))["status"] == "approved"
    both_trust(a, b)


def ask(a: Machine, b: Machine) -> None:
    a.json("handshake", str(b.node), "let us talk")
    wait_for(
        lambda: any(r["node_id"] == a.node for r in b.json("pending")["pending"]), lambda: f"{a} pending at {b}", 15, 0.2
    )


def both_trust(a: Machine, b: Machine) -> None:
    wait_for(lambda: b.trusts(a), f"{b} trusts {a}", 15, 0.1)
    wait_for(lambda: a.trusts(b), f"{a} trusts {b}", 15, 0.1)


def ensure_trust(a: Machine, b: Machine) -> None:
    """So that one failed cell of trust does not fail all that come after it."""
    if not (a.trusts(b) and b.trusts(a)):
        ask(a, b)
        b.json("approve", str(a.node))
        both_trust(a, b)


@operation("untrust", separate=True)
def untrust(a: Machine, b: Machine) -> None:
    """Ends on both sides; trust can be made again and carries traffic at once."""
    assert a.json("untrust", str(b.node))["node_id"] == b.node
    wait_for(lambda: not b.trusts(a), f"{b} learns that {a} ended trust", 15, 0.2)
    assert not a.trusts(b)
    ask(a, b)
    b.json("approve", str(a.node))
    both_trust(a, b)
    ping_until(a, b)


# ---- finding ----


@operation("find")
def find(a: Machine, b: Machine) -> None:
    data = a.json("find", b.name)
    assert data["node_id"] == b.node and data["address"] == b.address, data


@operation("ping")
def ping(a: Machine, b: Machine) -> None:
    data = a.json("ping", b.name, "--count", "2")
    assert [r.get("bytes") for r in data["results"]] == [6, 6], data


@operation("traceroute")
def traceroute(a: Machine, b: Machine) -> None:
    data = a.json("traceroute", b.address)
    assert len(data["rtt_samples"]) == 3, data


@operation("path")
def path(a: Machine, b: Machine) -> None:
    """Traffic of both sides takes the way that the network allows. The published daemon looks for a better one every 15 s."""
    wanted = "relay" if a.bed.relayed(a, b) else "direct"

    def settled() -> bool:
        a.json("ping", b.address, "--count", "1")
        b.json("ping", a.address, "--count", "1")
        return a.path_to(b) == b.path_to(a) == wanted

    wait_for(settled, lambda: f"{wanted} path: {a} says {a.path_to(b)}, {b} says {b.path_to(a)}", 40, 0.5)


@operation("peers")
def peers(a: Machine, b: Machine) -> None:
    a.json("ping", b.address, "--count", "1")
    rows = a.json("peers")["peers"]
    row = next(r for r in rows if r["node_id"] == b.node)
    assert row["encrypted"] and row["authenticated"], row
    assert a.ctl("peers").stdout.strip()


@operation("bench")
def bench(a: Machine, b: Machine) -> None:
    data = a.json("bench", b.name, "1")
    assert data["sent_bytes"] == data["recv_bytes"] == 1 << 20, data


# ---- exchange ----


@operation("connect")
def connect(a: Machine, b: Machine) -> None:
    """stdin-like exchange: b answers nothing but echo does."""
    data = a.json("connect", b.address, "7", "--message", "hello there")
    assert data["response"] == "hello there", data


@operation("send-recv")
def send_recv(a: Machine, b: Machine) -> None:
    port, before = str(next(PORTS)), ports(b)
    with b.background("--json", "recv", port, "--count", "1", "--timeout", "20s", ready=lambda: ports(b) > before) as receiving:
        a.ctl("--json", "send", b.address, port, "--data", "over here", "--timeout", "3s", check=False)  # recv never answers
        assert "over here" in receiving.finish(), receiving.err


def ports(m: Machine) -> int:
    return int(m.json("info", tools=OURS)["ports"])


def message(kind: str, body: bytes) -> Operation:
    def send(a: Machine, b: Machine) -> None:
        stored = len(b.inbox())
        path = a.home / "message"
        path.write_bytes(body)
        data = a.json("send-message", b.name, "--data-file", str(path), "--type", kind)
        assert data["ack"] == f"ACK {kind.upper()} {len(body)} bytes", data
        new = wait_for(lambda: b.inbox()[stored:], f"the message in the inbox of {b}", 5)[0]
        assert new["type"] == kind.upper() and new["bytes"] == len(body) and new["from"] == a.address, new
        if kind != "binary":
            assert new["data"] == body.decode(), new

    return send


OPERATIONS["send-message-text"] = message("text", "grüße, 1 2 3".encode())
OPERATIONS["send-message-json"] = message("json", b'{"temperature": 21.5, "unit": "C"}')
OPERATIONS["send-message-binary"] = message("binary", bytes(range(256)))


@operation("send-message-many")
def send_message_many(a: Machine, b: Machine) -> None:
    stored = len(b.inbox())
    a.ctl("--json", "send-message", b.name, "--data", "again", "--count", "20", "--reuse-conn")
    wait_for(lambda: len(b.inbox()) == stored + 20, lambda: f"20 messages, got {len(b.inbox()) - stored}", 5)


def file_of(size: int) -> Operation:
    def send(a: Machine, b: Machine) -> None:
        path = a.home / f"file-{size}.bin"
        content = b"".join(hashlib.sha256(i.to_bytes(8, "big")).digest() for i in range(-(-size // 32)))[:size]
        path.write_bytes(content)
        known = set(b.received())
        started = time.monotonic()
        data = a.json("send-file", b.name, str(path), timeout=max(60, size / 1e6))
        took = time.monotonic() - started
        assert data["bytes"] == size, data
        new = wait_for(lambda: set(b.received()) - known, f"the file at {b}", 5).pop()
        assert hashlib.sha256(new.read_bytes()).digest() == hashlib.sha256(content).digest(), f"{new} differs"
        print(f"{a} -> {b}: {size} bytes in {took:.2f} s = {size * 8e-6 / took:.1f} Mbit/s")
        path.unlink()
        new.unlink()

    return send


OPERATIONS["send-file-1K"] = file_of(1024)
OPERATIONS["send-file-5M"] = file_of(5_000_000)
OPERATIONS["send-file-200M"] = file_of(200_000_000)
LONG.add("send-file-200M")


@operation("publish-subscribe")
def publish_subscribe(a: Machine, b: Machine) -> None:
    """Subscriber and publisher at a, broker at b. A subscription is not confirmed, so the publisher repeats itself."""
    with a.background("--json", "subscribe", b.address, "weather", "--count", "1", "--timeout", "20s") as work:
        deadline = time.monotonic() + 15
        while work.process.poll() is None and time.monotonic() < deadline:
            a.json("publish", b.address, "weather", "--data", "sunny")
            time.sleep(0.1)
        out = work.finish(5)
    assert '"sunny"' in out, out


@operation("dgram-listen")
def dgram_listen(a: Machine, b: Machine) -> None:
    """A listener needs no port of its own, so nothing tells when it is there: a repeats itself."""
    port = str(next(PORTS))
    with b.background("--json", "listen", port, "--count", "1", "--timeout", "20s") as work:
        deadline = time.monotonic() + 15
        while work.process.poll() is None and time.monotonic() < deadline:
            a.json("dgram", b.address, port, "--data", "quick note")
            time.sleep(0.1)
        out = work.finish(5)
    assert "quick note" in out and a.address in out, out


@operation("connections-disconnect")
def connections_disconnect(a: Machine, b: Machine) -> None:
    """A connection that stays, here that of a subscriber, shows in the list and can be cut."""
    with a.background("--json", "subscribe", b.address, "silence", "--timeout", "20s") as work:
        row = wait_for(lambda: subscription(a, b), lambda: f"the connection in the list of {a}: {work.err}", 10)
        assert a.json("disconnect", str(row["id"]))["conn_id"] == row["id"]
        wait_for(lambda: not subscription(a, b), "the connection is gone", 10)


def subscription(a: Machine, b: Machine) -> dict[str, object] | None:
    for row in a.json("connections")["connections"] or []:
        if row["remote_port"] == 1002 and row["remote_addr"] == b.address and row["state"] == "ESTABLISHED":
            return dict(row)
    return None


# ---- the published Python package, or our SDK, at the socket of a ----


def script(a: Machine) -> Callable[..., object]:
    return a.driver if a.tools == THEIRS else a.sdk


@operation("python-info", local=True)
def python_info(a: Machine, b: Machine) -> None:
    got = script(a)("print(json.dumps([driver.info(), driver.health()]))")
    assert got[0]["node_id"] == a.node and got[1]["status"] == "ok", got  # type: ignore[index]


@operation("python-trust")
def python_trust(a: Machine, b: Machine) -> None:
    ask = "driver.trusted_peers(), driver.pending_handshakes(), driver.resolve_hostname(sys.argv[2])"
    got = script(a)(f"print(json.dumps([{ask}]))", b.name)
    text = str(got)
    assert str(b.node) in text and b.address in text, text


@operation("python-stream")
def python_stream(a: Machine, b: Machine) -> None:
    """300 KB through the echo service and back, read whole."""
    got = script(a)(
        """
conn = driver.dial(sys.argv[2] + ":7")
data = bytes(i % 251 for i in range(300000))
back = b""
for i in range(0, len(data), 30000):
    conn.write(data[i:i + 30000])
    while len(back) < i + 30000:
        part = conn.read(65536)
        assert part, "stream ended"
        back += part
conn.close()
print(json.dumps(back == data))
""",
        b.address,
    )
    assert got is True


@operation("python-datagram")
def python_datagram(a: Machine, b: Machine) -> None:
    port = str(next(PORTS))
    ours = "driver.send_to(parse(sys.argv[2]), int(sys.argv[3]), b'from python')"
    theirs = "driver.send_to(sys.argv[2] + ':' + sys.argv[3], b'from python')"
    with b.background("--json", "listen", port, "--count", "1", "--timeout", "20s") as work:
        script(a)(
            f"""
for _ in range(20):
    {theirs if a.tools == THEIRS else ours}
    time.sleep(0.1)
print(json.dumps(None))
""",
            b.address, port,
        )  # fmt: skip
        out = work.finish(5)
    assert "from python" in out, out


@operation("python-exchange")
def python_exchange(a: Machine, b: Machine) -> None:
    stored, known = len(b.inbox()), set(b.received())
    path = a.home / "note.txt"
    path.write_bytes(b"a file from python")
    script(a)(
        """
driver.send_message(sys.argv[2], b"a message from python")
driver.send_file(sys.argv[2], sys.argv[3])
print(json.dumps(None))
""",
        b.name, str(path),
    )  # fmt: skip
    assert wait_for(lambda: b.inbox()[stored:], "the message", 5)[0]["data"] == "a message from python"
    assert wait_for(lambda: set(b.received()) - known, "the file", 5).pop().read_bytes() == b"a file from python"


# ---- faults and changes ----


def ping_until(a: Machine, b: Machine, seconds: float = 30.0) -> None:
    """A ping works again; what a user would type again and again."""

    def works() -> bool:
        done = a.ctl("--json", "ping", b.address, "--count", "1", "--timeout", "4s", check=False, timeout=30)
        return done.returncode == 0 and "rtt_ms" in done.stdout

    wait_for(works, lambda: f"{a} reaches {b} again\n{a.log[-1500:]}\n----\n{b.log[-1500:]}", seconds, 0.2)


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
    assert "error" in done.stdout + done.stderr and time.monotonic() - started < 35
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
        assert time.monotonic() - started < 2
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
