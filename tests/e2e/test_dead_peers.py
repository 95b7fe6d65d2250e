"""A killed peer costs its streams after some 15 s, a stopped one nothing; one that comes back ends its old streams at once."""

from __future__ import annotations

import signal
import threading
import time

from cluster import Agent, Cluster, wait_for

from pilot.errors import PilotError
from pilot.sdk import Connection, LocalClient

ECHO = 7


def open_stream(client: LocalClient, peer: Agent) -> Connection:
    conn = client.dial(f"{peer.json('info')['address']}:{ECHO}")
    conn.write(b"hello")
    assert conn.read_exactly(5, 10) == b"hello"
    return conn


def ended(conn: Connection, limit_s: float) -> float:
    """Seconds until the stream ended, by reset or by its end."""
    began = time.monotonic()
    try:
        assert conn.read(timeout=limit_s) == b""
    except PilotError as error:
        assert error.code != "timeout", "the stream did not end"
    return time.monotonic() - began


def end_writing(conn: Connection) -> None:
    """Keeps something unacknowledged in the stream, as a sender does."""
    try:
        while True:
            conn.write(b"x", timeout=60)
            time.sleep(0.2)
    except PilotError:
        pass


def test_killed_stopped_and_restarted_peers(net: Cluster) -> None:
    """Three peers of one agent at the same time, each with its own fate."""
    a, killed, stopped, again = (net.agent(name) for name in ("alpha", "bravo", "charlie", "delta"))
    for peer in (killed, stopped, again):
        net.trust(a, peer)
    with LocalClient(str(a.socket)) as client, LocalClient(str(a.socket)) as other:
        dead, alive = open_stream(client, killed), open_stream(client, stopped)
        anew = open_stream(other, again)
        assert stopped.process and killed.process
        stopped.process.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        killed.kill()
        writer = threading.Thread(target=end_writing, args=(dead,), daemon=True)
        writer.start()
        began = time.monotonic()
        alive.write(b"wait for me")
        again.kill()
        again.start()
        again.ctl("ping", a.name, "--count", "1")
        back = time.monotonic()
        ended(anew, 20.0)
        assert time.monotonic() - back < 10.0  # at once; without the peer's word it would have taken more than a minute
        time.sleep(max(0.0, frozen_at + 9.0 - time.monotonic()))
        stopped.process.send_signal(signal.SIGCONT)
        assert alive.read_exactly(11, 30) == b"wait for me"
        ended(dead, 60.0)
        assert 12.0 < time.monotonic() - began < 40.0
        writer.join(10.0)
        alive.write(b"still here")
        assert alive.read_exactly(10, 10) == b"still here"
    wait_for(lambda: "its streams were ended" in a.log(), "the log says why")
