"""Two agents behind NATs, each at a beacon of its own: the beacons introduce them, and the punch goes through."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import BIN, Agent, Fleet, Program, wait_for
from lab import Lab, Link

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

KIND = "port_restricted_cone"


@pytest.fixture
def cluster() -> Iterator[tuple[Agent, Agent, list[Program]]]:
    with Lab() as lab:
        fleet = Fleet(lab)  # its beacon serves nobody here
        hosts = [lab.public("beacon1"), lab.public("beacon2")]
        beacons = []
        addrs = [f"{host.ip}:9001" for host in hosts]
        for i, host in enumerate(hosts):
            beacon = Program(host, fleet.root / f"beacon{i}.log")
            beacons.append(beacon)
            beacon.spawn(str(BIN / "pilot-rendezvous"), "-beacon-only", "-beacon-addr", addrs[i], "-peers", addrs[1 - i])
            wait_for(lambda b=beacon: b.alive() and "beacon listening" in b.log, "a beacon", 30)  # type: ignore[misc]
        made = [
            fleet.agent(lab.place(name, KIND, Link(delay_ms=10.0)), name, "-public", beacon=addr)
            for name, addr in zip(("one", "two"), addrs, strict=True)
        ]
        yield made[0], made[1], beacons


def data(agent: Agent, *args: str) -> Any:
    return json.loads(agent.ctl("--json", *args).stdout)["data"]


def test_the_punch_is_arranged_by_both_beacons(cluster: tuple[Agent, Agent, list[Program]]) -> None:
    a, b, beacons = cluster
    number = str(data(b, "info")["node_id"])
    a.ctl("ping", number, "--count", "1")
    wait_for(lambda: data(a, "path", number)["path"]["kind"] != "relay", "a better path than the relay", 10)
    path = data(a, "path", number)
    assert path["path"]["kind"] == "hole-punched" and (path["nat"], path["peer_nat"]) == (KIND, KIND)
    a.ctl("ping", number, "--count", "3")
    for beacon in beacons:
        beacon.end()
        beacon.ended()
        assert re.findall(r"introduced=([1-9])", beacon.log), f"its counters say that it introduced somebody: {beacon.log}"
