"""Operations: messages, files, events, datagrams, and the Python packages of both makes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import published
from operations import LONG, OPERATIONS, Operation, operation
from testbed import OURS, THEIRS, Machine, wait_for

PORTS = iter(range(6000, 60000))

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
        given = ("--data", body.decode()) if a.tools in published.OLDER else ("--data-file", str(path))
        data = a.json("send-message", b.name, *given, "--type", kind)
        assert data["ack"] == f"ACK {kind.upper()} {len(body)} bytes", data
        new = wait_for(lambda: b.inbox()[stored:], f"the message in the inbox of {b}", 5)[0]
        assert new["type"] == kind.upper() and new["bytes"] == len(body) and new["from"] == a.address, new
        if kind != "binary":
            assert new["data"] == body.decode(), new

    return send


OPERATIONS["send-message-text"] = message("text", "grüße, 1 2 3".encode())
OPERATIONS["send-message-json"] = message("json", b'{"temperature": 21.5, "unit": "C"}')
OPERATIONS["send-message-binary"] = message("binary", bytes(range(256)))


@operation("send-message-trace")
def send_message_trace(a: Machine, b: Machine) -> None:
    """The receiver says when it did what, and keeps the message under its id."""
    stored = len(b.inbox())
    data = a.json("send-message", b.name, "--data", "how long", "--trace")
    assert data["inner_ack"] == "ACK TEXT 8 bytes" and data["tagged"] is True, data
    assert all(isinstance(data[name], int | float) for name in ("to_receiver_ms", "receiver_process_ms", "return_trip_ms")), data
    assert 0 < data["total_ms"] < 30_000, data
    new = wait_for(lambda: b.inbox()[stored:], f"the message in the inbox of {b}", 5)[0]
    assert (new["data"], new["message_id"]) == ("how long", data["message_id"]), new
    said = a.ctl("send-message", b.name, "--data", "how long", "--trace").stderr
    steps = [line.split()[1] for line in said.splitlines() if line.startswith("TRACE ")]
    assert steps[-2:] == ["dataexchange.Dial", "outputOK"], said


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


@operation("inbox-received")
def inbox_received(a: Machine, b: Machine) -> None:
    """The tools at b list what its daemon has stored."""
    note = a.home / "a-note.txt"
    note.write_text("for the list")
    a.json("send-message", b.name, "--data", "for the list")
    a.json("send-file", b.name, str(note))
    assert b.json("inbox", "--limit", "1")["messages"][0]["from"] == a.address
    assert "for the list" in b.ctl("inbox").stdout
    files = b.json("received")["files"]
    assert any(row["name"].startswith("a-note") and row["bytes"] == 12 for row in files), files


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
