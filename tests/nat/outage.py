"""Beacons that die and come back, and what the agents that use them notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

from fleet import BIN, Agent, Fleet, Program, environment, wait_for
from lab import Lab, Link
from measure import Flow

RELAYED = "symmetric"  # on both sides: nothing but the relay works


class Cluster:
    """A registry, two beacons that know each other, and two agents, each at a beacon of its own."""

    def __init__(self, lab: Lab, kind: str = RELAYED, link: Link | None = None, secret: str = "") -> None:
        """kind: of both agents' NATs. secret: of the beacons."""
        self.fleet = Fleet(lab)  # its own beacon serves nobody here
        self._env = {"PILOT_BEACON_SECRET": secret} if secret else {}
        hosts = [lab.public("beacon1"), lab.public("beacon2")]
        self.addrs = [f"{host.ip}:9001" for host in hosts]
        self.beacons = [Program(host, self.fleet.root / f"{host.name}.log") for host in hosts]
        for which in (0, 1):
            self.start(which)
        self.agents = [
            self.fleet.agent(lab.place(name, kind, link), name, "-public", beacon=addr)
            for name, addr in zip(("one", "two"), self.addrs, strict=True)
        ]

    def start(self, which: int) -> float:
        """Starts a beacon; the monotonic time at which it listened."""
        beacon = self.beacons[which]
        before = beacon.log.count("beacon listening")
        beacon.spawn(
            str(BIN / "pilot-rendezvous"), "-beacon-only", "-beacon-addr", self.addrs[which], "-peers", self.addrs[1 - which],
            env={**environment(), **self._env},
        )  # fmt: skip
        wait_for(lambda: beacon.alive() and beacon.log.count("beacon listening") > before, "a beacon", 30, 0.005)
        return time.monotonic()

    def kill(self, which: int) -> None:
        """As a power cut does: it can tell nobody."""
        kill(self.beacons[which])

    def restart(self, which: int) -> float:
        """Kills a beacon and starts it; the monotonic time at which it listened again."""
        self.kill(which)
        return self.start(which)


def kill(program: Program) -> None:
    """Ends a program without a chance to say anything."""
    assert program.process is not None
    program.process.kill()
    with contextlib.suppress(AssertionError):
        program.ended()


def number(agent: Agent) -> str:
    """Node number."""
    return str(json.loads(agent.ctl("--json", "info").stdout)["data"]["node_id"])


async def first_byte(dialler: Agent, acceptor: Agent, port: int, seconds: float = 15.0) -> float:
    """Dials at once; the monotonic time at which the first byte was at the other side."""
    async with flowing(dialler, acceptor, port, seconds) as flow:
        return flow.arrived[0]


@contextlib.asynccontextmanager
async def flowing(dialler: Agent, acceptor: Agent, port: int, seconds: float = 15.0) -> AsyncIterator[Flow]:
    """A stream that has brought its first bytes."""
    async with asyncio.timeout(seconds):
        flow = await Flow(dialler, acceptor, port).__aenter__()
    try:
        await flow.flows(0.0, seconds)
        yield flow
    finally:
        await flow.__aexit__(None)
