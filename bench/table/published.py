"""The published table of latency, throughput and set-up time per connection type, each row on links of that row's delay."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from net.bed import BenchError
from net.nodes import InProcess
from net.record import Plan, Record
from table.places import laboratory

TITLE = "published table"
ROUND_TRIPS = 100


@dataclass(frozen=True, slots=True)
class Row:
    """delay_ms: of each uplink, one way. nat: of both hosts. published: Mbit/s and ms of set-up; also the goals."""

    name: str
    delay_ms: float
    nat: str
    relayed: bool
    published: tuple[float, float]
    beacons: int = 1


ROWS = (
    Row("direct, same region (2 ms)", 0.5, "none", False, (850, 50)),
    Row("direct, cross region (40 ms)", 10.0, "none", False, (400, 80)),
    Row("hole-punched (2 ms)", 0.5, "port_restricted_cone", False, (850, 600)),
    Row("relay, same beacon (15 ms)", 3.75, "symmetric", True, (200, 100)),
    Row("relay, across beacons (25 ms)", 6.25, "symmetric", True, (120, 150), beacons=2),
)


def run(record: Record, plan: Plan) -> None:
    """By in-process nodes: path, round trip, throughput, set-up with a cold tunnel."""
    for row in ROWS:
        if plan.late(0.85):
            raise BenchError("out of time")
        scenario = f"{TITLE}: {row.name}"
        record.add(scenario, "published figure", "mbit_s", row.published[0])
        record.add(scenario, "published figure", "open_ms", row.published[1])
        record.limit(scenario, "mbit_s", ">=", row.published[0])
        record.limit(scenario, "open_ms", "<=", row.published[1])
        if row.relayed:
            record.limit(scenario, "added_ms", "<=", 1.0)
        with record.attempt(scenario, InProcess.label):
            one(record, plan, row, scenario)


def one(record: Record, plan: Plan, row: Row, scenario: str) -> None:
    """added_ms: what the round trip takes beyond that of bare datagrams over the same links, which the beacon's host joins."""
    with laboratory(row.nat, row.delay_ms, beacons=row.beacons) as (bed, a, b, center, rendezvous):
        node = InProcess(bed, a, b, rendezvous, expected="relay" if row.relayed else "direct")
        node.start()
        links = a.links_ms(center) + b.links_ms(center)
        samples = node.rtt(ROUND_TRIPS)
        record.add(scenario, InProcess.label, "rtt_us", *samples)
        record.add(scenario, InProcess.label, "added_ms", statistics.median(samples) / 1000 - links)
        for _ in range(max(3, plan.runs)):
            record.add_all(scenario, InProcess.label, node.bulk(max(2.0, plan.seconds)))
        for _ in range(max(3, plan.runs)):
            record.add_all(scenario, InProcess.label, node.cold())
