"""A node of the first releases beside a real daemon: understood with -accept-era1 once it has spoken, a stranger without."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator

import pytest
from cluster import Cluster, free_port, socket, wait_for
from era1_node import Era1Node


@pytest.fixture
def node(net: Cluster) -> Iterator[Era1Node]:
    made = Era1Node(net.registry)
    yield made
    made.close()


def counters(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        rows = [line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_a_node_of_era_1(net: Cluster, node: Era1Node) -> None:
    """One daemon with the switch, one without. The node pings, dials, and is dialled."""
    ports = [free_port(socket.SOCK_STREAM) for _ in range(2)]
    on = net.agent("alpha", "-public", "-accept-era1", "-metrics-addr", f"127.0.0.1:{ports[0]}")
    off = net.agent("bravo", "-public", "-metrics-addr", f"127.0.0.1:{ports[1]}")
    first, second = (int(a.json("info")["node_id"]) for a in (on, off))

    node.meet(first)
    pong = node.ping(first)
    assert pong and pong.payload == b"12345678" and pong.src[1] == first
    data = os.urandom(20_000)
    assert node.echo(first, data) == data
    (row,) = [p for p in on.json("peers")["peers"] if p["node_id"] == node.node]
    assert row["encrypted"] and row["authenticated"] and row["era"] == 1
    assert "AES-256-GCM, era 1" in on.ctl("peers").stdout.decode()
    results = on.json("ping", str(node.node), "--count", "2", "--no-auto-handshake")["results"]
    assert len(results) == 2 and all("error" not in r and r["bytes"] == 6 for r in results), results
    seen = counters(ports[0])
    assert seen["pilot_frames_opened_era1_total"] > 40 and seen['pilot_drops_total{reason="era1"}'] == 0
    assert seen['pilot_drops_total{reason="plaintext"}'] >= 1, "the plaintext copy of its SYN"

    # The node restarts and says nothing: the daemon notices that nobody answers, and states its key anew.
    node.restart()
    once = ("--json", "ping", str(node.node), "--count", "1", "--no-auto-handshake")
    wait_for(lambda: b'"bytes"' in on.ctl(*once, check=False).stdout, "a pong of the restarted node", 30)

    node.meet(second)
    assert node.ping(second) is None
    seen = counters(ports[1])
    assert seen['pilot_drops_total{reason="auth"}'] >= 4 and seen["pilot_frames_opened_era1_total"] == 0
    assert off.json("peers")["peers"][0]["authenticated"] is False

    # The daemon forgets everything; the node repeats what was on its way, and its session is found again.
    on.stop()
    on.start()
    node.meet(first)
    wait_for(lambda: node.ping(first), "a pong of the new process")
    assert on.json("ping", str(node.node), "--count", "1", "--no-auto-handshake")["results"][0]["bytes"] == 6
