"""Two agents behind NATs, each at a beacon of its own: the beacons introduce them, relay for them, and may be restarted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import Agent, wait_for
from lab import Lab, Link
from outage import RELAYED, Cluster, first_byte, flowing, kill, number

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

KIND = "port_restricted_cone"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def data(agent: Agent, *args: str) -> Any:
    return json.loads(agent.ctl("--json", *args).stdout)["data"]


def test_the_punch_is_arranged_by_both_beacons(lab: Lab) -> None:
    cluster = Cluster(lab, KIND, Link(delay_ms=10.0))
    a, b = cluster.agents
    peer = number(b)
    a.ctl("ping", peer, "--count", "1")
    wait_for(lambda: data(a, "path", peer)["path"]["kind"] != "relay", "a better path than the relay", 10)
    path = data(a, "path", peer)
    assert path["path"]["kind"] == "hole-punched" and (path["nat"], path["peer_nat"]) == (KIND, KIND)
    a.ctl("ping", peer, "--count", "3")
    for beacon in cluster.beacons:
        beacon.end()
        beacon.ended()
        assert re.findall(r"introduced=([1-9])", beacon.log), f"its counters say that it introduced somebody: {beacon.log}"


@pytest.mark.parametrize(("which", "secret"), [(0, ""), (1, "known to the beacons alone")], ids=["dialler's", "acceptor's"])
async def test_the_restart_of_a_beacon_is_over_soon(lab: Lab, which: int, secret: str) -> None:
    """Nothing but the relay works between the two. A silent node is found by a cold dial a few seconds after its beacon is back,
    and a stream goes on. `make bench-outages` prints the times."""
    cluster = Cluster(lab, secret=secret)
    one, two = cluster.agents
    back = cluster.restart(which)
    assert await first_byte(one, two, 2000) - back < 8.0
    async with flowing(two, one, 2100) as flow:
        back = cluster.restart(which)
        assert await flow.flows(back, 8.0) < 8.0
        assert {p["path"]["kind"] for p in await flow.paths()} == {"relay"}


async def test_a_rendezvous_that_is_restarted_finds_its_nodes_again(lab: Lab) -> None:
    """Registry and beacon in one process: who was silent all the time is looked up and reached."""
    cluster = Cluster(lab)
    fleet = cluster.fleet
    three = fleet.agent(lab.place("three", RELAYED), "three", "-public")
    four = fleet.agent(lab.place("four", RELAYED), "four", "-public")
    kill(fleet.rendezvous)
    fleet.rendezvous.log_path.unlink()
    fleet.start_rendezvous()
    wait_for(lambda: three.ctl("ping", "four", "--count", "1", check=False).returncode == 0, "the two meet", 12)
    assert data(four, "info")["registered"]
