"""The scenarios of bench/net: who competes with whom at what. The figures are explained in docs/benchmarks.md."""

from __future__ import annotations

import time
from typing import Any

from net import bed as beds
from net.bed import cpu
from net.contenders import Iperf, TcpPlain, Tls
from net.nodes import Asyncio, Daemons, InProcess, Published, Rendezvous
from net.race import Race, entry
from net.record import Plan, Record
from net.reference import Reference
from peers.packages import PACKAGES
from peers.turn import Turn

OFFLOAD, SOFTWARE = "veth, offload", "veth, software segmentation"
RELAYED, ACROSS, LOOPBACK = "relayed", "across beacons", "loopback"
BULK, BOTH_WAYS, ROUND_TRIP, SETUP = "one stream", "both ways", "64-byte round trip", "set-up"
DATAGRAMS = "datagrams of 1000 bytes"
COMMAND, COMMAND_MIB = "own `bench` command, 8 MiB through the peer's echo service", 8
TO_THE_END, CROWD_TASK, GIGABYTE_TASK = "to the end", "64 streams of 2 MB at once", "1 GB in one stream"
CROWD, CROWD_BYTES, GIGABYTE_BYTES = 64, 2_000_000, 10**9
SLOW_RUNS, SLOW_S = 2, 25.0  # of 1 GB by those with a cap: how often, and how long beyond their patience
RELAYED_PAYLOAD = 1393  # bytes of a stream in a full relayed datagram
MANY = (8, 64, 1000)  # streams
DIAL_TURNS = 3  # a series goes fast or slow as a whole, by where the scheduler has put the programs: one a round says little
THOUSAND_BYTES = 256 << 10  # of each of a thousand streams


def direct(record: Record, plan: Plan) -> None:
    """Two hosts, offload on: everything that is measured at all."""
    with beds.direct() as (bed, a, b):
        hosts = (bed, a, b)
        rendezvous = Rendezvous(*hosts[:2])
        entries = [entry(Reference, *hosts), *(entry(kind, *hosts, rendezvous) for kind in (InProcess, Daemons))]
        entries.append(entry(Tls, *hosts))
        if plan.peers:
            entries += [entry(Asyncio, *hosts, rendezvous), entry(Published, *hosts, rendezvous)]
            entries += [entry(kind, *hosts) for kind in (Iperf, TcpPlain, *PACKAGES)]
        race = Race(record, plan, OFFLOAD, entries)
        for _ in race.rounds():
            race.measure("bulk", BULK, lambda r: r.bulk(plan.seconds))
            race.measure("rtt", ROUND_TRIP, lambda r: {"rtt_us": r.rtt(plan.round_trips)})
            for _ in range(DIAL_TURNS):
                race.measure("dial", SETUP, lambda r: r.dial(10))
            race.measure("cold", SETUP, lambda r: r.cold())
            race.measure("command", COMMAND, lambda r: r.command(COMMAND_MIB))
        for run in race.rounds(1 if not plan.peers else max(1, plan.runs - 2)):
            race.measure("duplex", BOTH_WAYS, lambda r: r.duplex(plan.seconds))
            race.measure("datagrams", DATAGRAMS, lambda r: r.datagrams(plan.seconds))
            for count in MANY[: 3 if run else 2]:
                race.measure("streams", f"{count} streams", lambda r, n=count: streams(r, plan, n))


def streams(rival: Any, plan: Plan, count: int) -> dict[str, float]:
    total = THOUSAND_BYTES if count == MANY[-1] else 0
    return dict(rival.bulk(plan.seconds, streams=count, total=total))


def to_the_end(record: Record, plan: Plan) -> None:
    """Two hosts, offload on: work that has to be finished, however long it takes; the published daemon's time has an end."""
    with beds.direct() as (bed, a, b):
        rendezvous = Rendezvous(bed, a)
        race = Race(record, plan, TO_THE_END, [entry(kind, bed, a, b, rendezvous) for kind in (InProcess, Daemons, Published)])
        for run in race.rounds(warm_up=False):
            race.measure("streams", CROWD_TASK, lambda r: whole(r, CROWD_BYTES, CROWD), must_end=True)
            if run > SLOW_RUNS:
                race.leave_out(GIGABYTE_TASK, lambda r: bool(r.cap))
            race.measure("bulk", GIGABYTE_TASK, lambda r: whole(r, GIGABYTE_BYTES), must_end=True)


def whole(rival: Any, total: int, streams: int = 1) -> dict[str, float]:
    """total: bytes of each stream. transfer_s: from the wish for the first stream until the last byte is there."""
    seconds = SLOW_S if rival.cap and streams == 1 else 0.0
    got: dict[str, float] = rival.bulk(seconds, streams=streams, total=total)
    return got | {"transfer_s": got["took"]}


def software(record: Record, plan: Plan) -> None:
    """The sender's kernel cuts the trains, as with a network card that cannot."""
    with beds.direct(software_segmentation=True) as (bed, a, b):
        rendezvous = Rendezvous(bed, a)
        ours = [entry(kind, bed, a, b, rendezvous) for kind in (InProcess, Daemons)]
        race = Race(record, plan, SOFTWARE, [entry(Reference, bed, a, b), *ours, entry(Tls, bed, a, b)])
        for _ in race.rounds():
            race.measure("bulk", BULK, lambda r: r.bulk(plan.seconds))


def relayed(record: Record, plan: Plan) -> None:
    """Two hosts that reach only a third, where the beacon is."""
    with beds.apart() as (bed, a, b, r):
        rendezvous = Rendezvous(bed, r)
        entries = [entry(Reference, bed, a, b, r), *(entry(kind, bed, a, b, rendezvous, True) for kind in (InProcess, Daemons))]
        if plan.peers:
            entries += [entry(Published, bed, a, b, rendezvous, True), entry(Turn, bed, a, b, r)]
        race = Race(record, plan, RELAYED, entries)
        beacon = rendezvous.process.pid
        for _ in race.rounds():
            race.measure("bulk", BULK, lambda r: relay_bulk(r, plan.seconds, [beacon]))
            race.measure("rtt", ROUND_TRIP, lambda r: {"rtt_us": r.rtt(plan.round_trips // 2)})
            race.measure("dial", SETUP, lambda r: r.dial(10))
            race.measure("cold", SETUP, lambda r: r.cold())
        if plan.peers:
            for _ in race.rounds(2):
                for count in MANY[:2]:
                    race.measure("streams", f"{count} streams", lambda r, n=count: streams(r, plan, n))


def relay_bulk(rival: Any, seconds: float, beacons: list[int]) -> dict[str, float]:
    """What the beacon spends on it says how many datagrams it would forward with a core to itself."""
    before = sum(cpu(beacons))
    got: dict[str, float] = dict(rival.bulk(seconds))
    used = sum(cpu(beacons)) - before
    if isinstance(rival, InProcess | Daemons) and not rival.cap and used:
        datagrams = got["mbit_s"] * 1e6 / 8 * got["seconds"] / RELAYED_PAYLOAD
        got["mpps_core"] = datagrams * len(beacons) / used / 1e6
    return got


def across(record: Record, plan: Plan) -> None:
    """Each host reaches only a beacon of its own; the two beacons reach each other."""
    with beds.chain() as (bed, a, b, r, s):
        addresses = {"r": f"{r.ip['s']}:9001", "s": f"{s.ip['r']}:9001"}
        rendezvous = Rendezvous(bed, r, "-peers", addresses["s"], beacons={"b": f"{s.ip['b']}:9001"})
        second = Rendezvous(bed, s, "-peers", addresses["r"])
        race = Race(record, plan, ACROSS, [entry(kind, bed, a, b, rendezvous, True) for kind in (InProcess, Daemons)])
        for _ in race.rounds():
            race.measure("bulk", BULK, lambda r: relay_bulk(r, plan.seconds, [rendezvous.process.pid, second.process.pid]))
            race.measure("rtt", ROUND_TRIP, lambda r: {"rtt_us": r.rtt(plan.round_trips // 2)})


def loopback(record: Record, plan: Plan) -> None:
    """Both ends on one host, MTU 65536."""
    with beds.alone() as (bed, a):
        rendezvous = Rendezvous(bed, a)
        race = Race(
            record, plan, LOOPBACK, [entry(Reference, bed, a, a), entry(InProcess, bed, a, a, rendezvous), entry(Tls, bed, a, a)]
        )
        for _ in race.rounds():
            race.measure("bulk", BULK, lambda r: r.bulk(plan.seconds))


def idle(record: Record, plan: Plan) -> None:
    """A daemon that nobody uses."""
    scenario = "idle daemon"
    with beds.direct() as (bed, a, b), record.attempt(scenario, Daemons.label):
        daemons = Daemons(bed, a, b, Rendezvous(bed, a))
        daemons.start()
        time.sleep(2)
        pids = [p.pid for p in daemons.daemons]
        before, start = sum(cpu(pids)), time.monotonic()
        time.sleep(30 if plan.peers else 5)
        share = (sum(cpu(pids)) - before) / len(pids) / (time.monotonic() - start)
        record.add(scenario, Daemons.label, "rss_mb", *(beds.resident_mb(pid) for pid in pids))
        record.add(scenario, Daemons.label, "core_percent", 100 * share)
