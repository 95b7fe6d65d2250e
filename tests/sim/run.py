"""Thousands of random networks, each from its seed: `python -m tests.sim.run --seeds 1000 [--first 1] [--minutes 1.0]`.

Each network lives through trouble (restarts, roaming, sleep, cuts, expired mappings, blocked UDP, servers away) and has
to keep the invariants of siminvariants.py all the time. A seed that breaks one prints its trace and the command that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from siminvariants import Broken, Flow, Probes, check_tables
from simnet import Net
from simtrouble import Trouble

TICK_S = 0.25
MEND_S = 135.0  # after the last trouble: it ends by itself within 15 s, then recovery
CALM_S = 30.0
QUIET_PER_MINUTE = 90  # datagrams of one node per peer when applications are silent: two beacons, punches of both sides


def play(seed: int, minutes: float) -> Net:
    """One network. Raises Broken; its trace is in the exception."""
    net = Net(seed)
    try:
        _play(net, minutes)
    except AssertionError as broken:
        for node in net.world.nodes.values():
            for d in node.decisions:
                net.traces.append(f"{d.at + node._lag_ns / 1e9:8.2f}   node {node.number} about {d.node}: {d.text}")
        raise Broken("\n".join((str(broken), *sorted(net.traces), f"now {net.world.now:.2f}"))) from broken
    return net


def _play(net: Net, minutes: float) -> None:
    world, rng = net.world, net.rng
    trouble = Trouble(net)
    flows = [Flow(net, a, b) for a, b in net.pairs]
    probes = [Probes(node) for node in world.nodes.values()]

    def tick() -> None:
        for probe in probes:
            probe.hook()
        silent = world.now_ns < trouble.world_quiet_until
        for flow in flows:
            flow.quiet = silent
            flow.tick()
        world.run(TICK_S)

    end = world.now + 60.0 * minutes
    strike = world.now + rng.uniform(1.0, 6.0)
    while world.now < end:
        tick()
        if world.now >= strike:
            trouble.strike()
            strike = world.now + rng.uniform(0.5, 10.0)
    net.note("no more trouble")
    trouble.world_quiet_until = 0
    start = world.now
    while world.now - start < 20.0 or not all(flow.best() for flow in flows):
        tick()
        if world.now - start > MEND_S + 20.0:
            raise Broken(f"not on the best path: {[flow.name for flow in flows if not flow.best()]}")
    for flow in flows:
        flow.quiet = True
    start = world.now
    while not all(flow.intact() for flow in flows):
        for flow in flows:
            flow.quiet = True
            flow.tick()
        world.run(TICK_S)
        if world.now - start > 30.0:
            raise Broken(f"bytes are missing: {[flow.name for flow in flows if not flow.intact()]}")
    world.run(15.0)
    before = world.sent
    world.run(CALM_S)
    calm = (world.sent - before) * 60.0 / CALM_S / len(world.nodes) / (len(world.nodes) - 1)
    if calm > QUIET_PER_MINUTE:
        raise Broken(f"not quiet: {calm:.0f} datagrams a minute per peer")
    check_tables(net)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="networks to play")
    parser.add_argument("--first", type=int, default=1, metavar="S", help="seed of the first")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="trouble in virtual minutes")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="T", help="begin none after T real seconds")
    args = parser.parse_args()
    failed, began, played = [], time.monotonic(), 0
    for seed in range(args.first, args.first + args.seeds):
        if time.monotonic() - began > args.seconds:
            break
        played += 1
        try:
            play(seed, args.minutes)
        except AssertionError as broken:
            failed.append(seed)
            print(f"seed {seed}: {broken}")
            print(f"repeat: python -m tests.sim.run --seeds 1 --first {seed} --minutes {args.minutes}", flush=True)
    took = time.monotonic() - began
    kept = f"{played - len(failed)} kept every invariant, {len(failed)} failed {failed or ''}"
    print(f"seeds {args.first} to {args.first + played - 1}: {kept}, {took:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
