"""No packet to an address that was not configured or learned: counted by the kernel, in a namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Agent, Cluster, cluster, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

NAME = f"pilot-egress-{os.getpid()}"
PORTS = (4001, 4002)
# From a stranger: punch commands and discover replies that name 203.0.113.7, and frames of the tunnel that mean nothing.
FORGED = (
    "0404cb0071090050", "04cb0071090050", "0204cb0071090050", "50494c5000000001cb0071090050", "50494c41" + "00" * 132,
)  # fmt: skip

# The namespace has a default route, so that a stray packet would leave. New flows are counted by where they go.
RULES = """
table inet watch {
  counter known { }
  counter stray { }
  chain out {
    type filter hook output priority 0; policy accept;
    ct state established,related accept
    icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } accept
    ip daddr 127.0.0.1 udp dport { 9001, 9002, 9003, 4001, 4002 } counter name known accept
    ip daddr 127.0.0.1 tcp dport 9000 counter name known accept
    counter name stray accept
  }
}
"""


def inside(*argv: str, stdin: str | None = None) -> str:
    return subprocess.run(
        ["ip", "netns", "exec", NAME, *argv], input=stdin, check=True, capture_output=True, text=True, timeout=30
    ).stdout


@pytest.fixture
def namespace() -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", NAME], check=True, timeout=10)
    try:
        inside("ip", "link", "set", "lo", "up")
        inside("ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
        inside("ip", "addr", "add", "198.51.100.2/24", "dev", "out0")
        inside("ip", "link", "set", "out0", "up")
        inside("ip", "link", "set", "out1", "up")
        inside("ip", "route", "add", "default", "via", "198.51.100.1")
        inside("nft", "-f", "-", stdin=RULES)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NAME], check=False, timeout=10)


def count(name: str) -> int:
    found = json.loads(inside("nft", "-j", "list", "counters", "table", "inet", "watch"))["nftables"]
    return next(int(row["counter"]["packets"]) for row in found if row.get("counter", {}).get("name") == name)


def test_a_whole_session_sends_nothing_elsewhere(namespace: None, tmp_path: Path) -> None:
    with cluster(tmp_path, netns=NAME, flags=("-probe-ports", "9002,9003")) as net:
        a, b = (net.agent(n, listen=f"127.0.0.1:{p}", netns=NAME) for n, p in zip(("alpha", "bravo"), PORTS, strict=True))
        use(net, a, b)
        inside("bash", "-c", "echo probe >/dev/udp/203.0.113.9/53")
        assert count("stray") == 1, "the counter works"
        assert count("known") > 5


def use(net: Cluster, a: Agent, b: Agent) -> None:
    """What users do, what strangers send, and an outage."""
    net.trust(a, b)
    wait_for(lambda: a.json("path", b.name, "--wait", "2s")["path"]["kind"] == "direct", "a direct path")
    a.ctl("ping", b.name, "--count", "2")
    a.json("bench", b.name, "4")
    a.ctl("dgram", b.name, "6000", "--data", "x", check=False)
    a.ctl("ping", "77", "--count", "1", "--timeout", "2s", check=False)
    forged = "import socket,sys;s=socket.socket(2,2)\n" + "".join(
        f"s.sendto(bytes.fromhex('{data}'),('127.0.0.1',{port}))\n"
        for port in PORTS
        for data in FORGED
    )
    inside("python3", "-c", forged)
    b.kill()
    a.ctl("ping", b.name, "--count", "1", "--timeout", "4s", check=False)
    b.start()
    wait_for(lambda: a.ctl("ping", b.name, "--count", "1", check=False).returncode == 0, "they talk again", 30)
    assert a.stop() == 0 and b.stop() == 0
    assert count("stray") == 0, inside("nft", "list", "counters", "table", "inet", "watch")
