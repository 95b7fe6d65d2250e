"""How long agents notice that a beacon was restarted, or that their network lets no UDP out.

    python bench/net/outages.py restart|blocked [--runs 10] [--json FILE]

restart: two agents behind symmetric NATs (only the relay works), each at a beacon of its own; a beacon is killed at a random
moment and started again at once. Counted from the moment it listens: until the first byte of a cold dial to an agent that was
silent all the time, and until a stream flows again; for the dialler's beacon and for the other one.

blocked: an agent whose network lets nothing out but TCP 443, with nothing configured but the rendezvous' name: from the start
of its daemon to the first byte of a stream to a peer and from a peer; then a network that stops to let UDP through and lets it
through again: until the streams flow and until the daemon is back on UDP.

Prints median and maximum. Needs root, iproute2 and nftables; uses the laboratory of tests/nat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS / "nat"), str(TESTS / "wss")]

from blocked import WssFleet, allow_udp, drop_udp, transport  # noqa: E402
from fleet import wait_for  # noqa: E402
from lab import Lab  # noqa: E402
from outage import Cluster, first_byte, flowing  # noqa: E402

PACE_S = 3.0
Times = dict[str, list[float]]
PUBLIC = ("-public", "-trust-auto-approve")


async def restarts(runs: int, times: Times) -> None:
    with Lab() as lab:
        cluster = Cluster(lab)
        one, two = cluster.agents
        port = 2000
        for _ in range(runs):
            for which, whose in ((0, "dialler"), (1, "acceptor")):
                port += 2
                cluster.fleet.restart()
                await asyncio.sleep(random.uniform(1.0, 1.0 + PACE_S))
                back = cluster.restart(which)
                took = await first_byte(one, two, port) - back
                times.setdefault(f"cold dial, beacon of the {whose}", []).append(took)
                async with flowing(one, two, port + 1) as flow:
                    back = cluster.restart(which)
                    times.setdefault(f"stream, beacon of the {whose}", []).append(await flow.flows(back, 30.0))


async def blocked(runs: int, times: Times) -> None:
    for _ in range(runs):
        with Lab() as lab:
            fleet = WssFleet(lab)
            bob = fleet.agent(lab.site("b", nat="port_restricted_cone").host("b-h"), "bob", *PUBLIC)
            wall = lab.site("a", nat="port_restricted_cone", udp_blocked=True).host("a-h")
            alice = fleet.agent(wall, "alice", *PUBLIC, start=False)
            start = time.monotonic()
            alice.begin()
            alice.ready()
            times.setdefault("walled agent: start of the daemon", []).append(time.monotonic() - start)
            dialled = time.monotonic()
            there = await first_byte(alice, bob, 2000)
            times.setdefault("walled agent: first byte to a peer", []).append(there - dialled)
            times.setdefault("walled agent: from the start to that byte", []).append(there - start)
            alice.end()
            alice.ended()
            alice.begin()
            alice.ready()
            dialled = time.monotonic()
            times.setdefault("walled agent: first byte from a peer", []).append(await first_byte(bob, alice, 2000) - dialled)

            host = lab.public("carol-h")
            carol = fleet.agent(host, "carol", *PUBLIC)
            async with flowing(carol, bob, 2001) as flow:
                drop_udp(host)
                since = time.monotonic()
                times.setdefault("UDP goes: the stream flows", []).append(await flow.flows(since, 30.0))
                allow_udp(host)
                since = time.monotonic()
                await asyncio.to_thread(wait_for, lambda: transport(carol) == "udp", "back on UDP", 60.0, 0.1)  # noqa: B023
                times.setdefault("UDP returns: back on UDP", []).append(time.monotonic() - since)
                times.setdefault("longest pause of the stream", []).append(flow.gap(since))


WHAT: dict[str, Callable[[int, Times], Awaitable[None]]] = {"restart": restarts, "blocked": blocked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times: Times = {}
    asyncio.run(WHAT[options.what](options.runs, times))  # type: ignore[arg-type]
    for name, values in times.items():
        print(f"{name:40} median {statistics.median(values):6.2f} s   max {max(values):6.2f} s   n={len(values)}")
    if options.json:
        options.json.write_text(json.dumps(times, indent=1))


if __name__ == "__main__":
    main()
