"""Operations of operators and of programs around the network: networks, broadcast, signed requests, webhooks."""

from __future__ import annotations

import json
import sys
import time

from operations import operation, ping_until
from testbed import THEIRS, CommandFailed, Machine, wait_for

RECORDER = """
import http.server, sys
class Recorder(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sys.stdout.write(body.decode().strip() + chr(10))
        sys.stdout.flush()
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Recorder).serve_forever()
"""


@operation("webhook")
def webhook(a: Machine, b: Machine) -> None:
    """Events of a daemon reach the URL that its user sets, and no more after it is cleared."""
    record = a.home / "events"
    with record.open("wb") as out:
        server = a.host.spawn(sys.executable, "-c", RECORDER, "8099", stdout=out)
        try:
            assert a.json("set-webhook", "http://127.0.0.1:8099/hook")["applied"] is True
            b.json("send-message", a.address, "--data", "an event")
            wait_for(lambda: _events(record), "an event at the webhook", 20, 0.2)
            assert a.json("clear-webhook")["applied"] is True
        finally:
            server.terminate()
            server.wait(10)
            a.host.processes.remove(server)
    event = _events(record)[0]
    assert event["node_id"] == a.node and event["event"] and event["timestamp"], event


def _events(record: object) -> list[dict[str, object]]:
    with open(str(record), encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


@operation("networks")
def networks(a: Machine, b: Machine) -> None:
    """Both join a network with a token, see each other in it, and leave it."""
    made = a.json("network", "create", "--name", f"fleet-{a.name}", "--join-rule", "token", "--token", "door")
    number = str(made["network_id"])
    try:
        a.ctl("network", "join", number, "--token", "door", check=False)  # it may be the owner already
        with_wrong = b.ctl("--json", "network", "join", number, "--token", "window", check=False)
        assert with_wrong.returncode == 1, with_wrong.stdout
        b.json("network", "join", number, "--token", "door")
        rows = a.json("network", "members", number)["nodes"]
        assert {row["node_id"] for row in rows} >= {a.node, b.node}, rows
        assert any(row["name"] == f"fleet-{a.name}" for row in b.json("network", "list")["networks"])
        data = a.json("ping", _in_network(b, number), "--count", "1")
        assert data["results"][0].get("bytes") == 6, data
        broadcast(a, b, number)
        b.json("network", "leave", number)
    finally:
        prefix = ("extras",) if a.tools == THEIRS else ()
        a.ctl(*prefix, "network", "delete", number, check=False)


def _in_network(m: Machine, number: str) -> str:
    return f"{number}:{int(number):04X}.{m.node >> 16:04X}.{m.node & 0xFFFF:04X}"


def broadcast(a: Machine, b: Machine, number: str) -> None:
    """A datagram to every member."""
    with b.background("--json", "listen", "1000", "--count", "1", "--timeout", "20s") as work:
        deadline = time.monotonic() + 15
        while work.process.poll() is None and time.monotonic() < deadline:
            a.ctl("broadcast", number, "to all")
            time.sleep(0.2)
        out = work.finish(5)
    assert "to all" in out, out


@operation("sign-verify")
def sign_verify(a: Machine, b: Machine) -> None:
    """What a signs, b ascribes to it; a changed text to nobody."""
    made = a.json("sign-request", "--audience", "shop", "--body", "one pizza")
    found = b.json("verify-request", "--envelope", made["envelope"], "--signature", made["signature"])
    assert found["valid"] is True and found["node_id"] == a.node and found["trusted"] is True, found
    changed = made["envelope"].replace("shop", "bank")
    done = b.ctl("--json", "verify-request", "--envelope", changed, "--signature", made["signature"], check=False)
    assert done.returncode == 1 and '"valid":false' in done.stdout.replace(" ", ""), done


@operation("deregister", separate=True)
def deregister(a: Machine, b: Machine) -> None:
    """A node that its user takes out of the registry is found no more, and again after a restart."""
    a.json("deregister")
    try:
        wait_for(lambda: not _finds(b, a), f"{b} finds {a} no more", 90, 1)  # the published daemon remembers names for 60 s
    finally:
        a.restart()
    wait_for(lambda: _finds(b, a), f"{b} finds {a} again", 30, 0.5)
    ping_until(b, a)


def _finds(a: Machine, b: Machine) -> bool:
    try:
        return bool(a.json("find", b.name)["node_id"] == b.node)
    except CommandFailed:
        return False


