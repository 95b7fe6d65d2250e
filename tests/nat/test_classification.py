"""A daemon says by itself what kind of NAT it sits behind: in Info, at its start, to its peers, and again after a change.

One laboratory for all: a rendezvous with a second address, one daemon behind each kind of NAT.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import BIN, Agent, Fleet, Program, wait_for
from lab import DOUBLE, Lab, Link

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

KINDS = ("none", "full_cone", "restricted_cone", "port_restricted_cone", "symmetric", "symmetric_sequential", DOUBLE)
CLASS = {"none": "open", "symmetric_sequential": "symmetric", DOUBLE: "port_restricted_cone"}
DELAY_MS = 10.0
LISTEN = ("-listen", ":4000")  # a fixed port: a restarted daemon meets the mapping of its former life


def info(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(agent.ctl("--json", "info").stdout)["data"]
    return found


def nat_is(agent: Agent, expected: str, seconds: float = 5.0) -> None:
    wait_for(lambda: info(agent)["nat_type"] == expected, f"{agent.name} says {expected}", seconds)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Lab() as lab:
        fleet = Fleet(lab, second_address=True)
        for i, kind in enumerate(KINDS):
            host = lab.place(f"s{i}", kind, Link(delay_ms=DELAY_MS))
            fleet.agent(host, kind, "-public", *LISTEN, start=False).begin()
        for agent in fleet.agents.values():
            agent.ready()
        yield fleet


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_named(fleet: Fleet, kind: str) -> None:
    agent, expected = fleet.agents[kind], CLASS.get(kind, kind)
    said = info(agent)
    assert said["nat_type"] == expected, "known as soon as the daemon can be asked"
    line = "none (open internet or local network)" if expected == "open" else expected
    assert f"NAT type: {line}" in said["startup"]
    assert f"NAT type: {line}" in agent.log


def test_a_daemon_started_again_on_the_same_port_says_the_same(fleet: Fleet) -> None:
    """The NAT still lets in what the former daemon had asked for."""
    before = {kind: info(agent)["endpoint"] for kind, agent in fleet.agents.items()}
    fleet.restart()
    for kind, agent in fleet.agents.items():
        nat_is(agent, CLASS.get(kind, kind))
        if not kind.startswith("symmetric"):
            assert info(agent)["endpoint"] == before[kind], "the same mapping: otherwise this test shows nothing"


def test_a_peer_is_told(fleet: Fleet) -> None:
    a, b = fleet.agents["restricted_cone"], fleet.agents["symmetric"]
    theirs = str(info(b)["node_id"])
    a.ctl("handshake", theirs, "test")
    asking = wait_for(lambda: json.loads(b.ctl("--json", "pending").stdout)["data"]["pending"], "the handshake arrives")
    b.ctl("approve", str(asking[0]["node_id"]))
    wait_for(lambda: '"node_id"' in a.ctl("--json", "trust").stdout, "trust")
    a.ctl("ping", theirs, "--count", "1")
    path = json.loads(a.ctl("--json", "path", theirs).stdout)["data"]
    assert (path["nat"], path["peer_nat"]) == ("restricted_cone", "symmetric")
    path = json.loads(b.ctl("--json", "path", str(info(a)["node_id"])).stdout)["data"]
    assert (path["nat"], path["peer_nat"]) == ("symmetric", "restricted_cone")


def test_measured_again_when_the_network_changes(fleet: Fleet) -> None:
    """A laptop moves from one kind of NAT to another: same host, the router is replaced."""
    agent = fleet.agents["full_cone"]
    site = next(s for s in fleet.lab.sites if agent.host in s.hosts)
    time.sleep(10)  # measured at most that often
    site.nat = "symmetric"
    site.move()
    site.renumber(agent.host)
    nat_is(agent, "symmetric", 20)


def test_a_fixed_endpoint_is_not_discovered(fleet: Fleet) -> None:
    host = fleet.lab.public("fixed")
    agent = fleet.agent(host, "fixed", "-endpoint", f"{host.ip}:4000", *LISTEN)
    said = info(agent)
    assert said["startup"][0] == "Registered with fixed endpoint (STUN skipped)" and said["endpoint"] == f"{host.ip}:4000"
    assert not any("NAT type" in line or "STUN: discovered" in line for line in said["startup"])
    assert "STUN: discovered" not in agent.log and "Registered with fixed endpoint (STUN skipped)" in agent.log


def test_one_address_tells_what_it_can(fleet: Fleet) -> None:
    """A beacon without another address cannot tell full from address-restricted: the stricter is said."""
    lab = fleet.lab
    host = lab.public("single")
    beacon = Program(host, fleet.root / "single.log")
    beacon.spawn(str(BIN / "pilot-rendezvous"), "-beacon-only", "-beacon-addr", f"{host.ip}:9001")
    wait_for(lambda: beacon.alive() and "beacon listening" in beacon.log, "the single beacon", 30)
    said = {}
    for kind in ("full_cone", "port_restricted_cone", "symmetric"):
        home = lab.place(f"o-{kind[:4]}", kind)
        agent = fleet.agent(home, f"one-{kind}", *LISTEN, beacon=f"{host.ip}:9001")
        said[kind] = info(agent)["nat_type"]
    assert said == {"full_cone": "restricted_cone", "port_restricted_cone": "port_restricted_cone", "symmetric": "symmetric"}


FOREIGN = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 9001))
print("ready", flush=True)
while True:
    data, at = s.recvfrom(2048)
    if data[0] == 1:
        s.sendto(b"\\x02\\x04" + socket.inet_aton(at[0]) + at[1].to_bytes(2, "big"), at)
"""


def test_a_foreign_beacon_leaves_it_unknown(fleet: Fleet) -> None:
    host = fleet.lab.public("foreign")
    beacon = Program(host, fleet.root / "foreign.log")
    beacon.spawn(shutil.which("python3") or "python3", "-c", FOREIGN, host.ip)
    wait_for(lambda: beacon.alive() and "ready" in beacon.log, "the foreign beacon")
    home = fleet.lab.place("o-fore", "full_cone")
    begun = time.monotonic()
    agent = fleet.agent(home, "with-foreign", *LISTEN, beacon=f"{host.ip}:9001")
    said = info(agent)
    assert said["nat_type"] == "unknown" and said["stun"] and said["endpoint"]
    assert "NAT type: unknown (needs a second observer)" in said["startup"]
    assert time.monotonic() - begun < 10, "it does not wait for ever"
