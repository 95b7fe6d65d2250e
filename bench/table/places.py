"""Hosts of the NAT laboratory (tests/nat/lab.py) as the drivers of bench/net want them.

The emulator of the laboratory's links is a program on this machine: it needs a core for itself at 1 Gbit/s.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from net.bed import Bed, Namespace
from net.nodes import BEACON, Rendezvous

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "nat"))
from lab import Host, Lab, Link

GBIT, QUEUE_KB = 1000.0, 4096
PINGS = 20


class Place(Namespace):
    """One address, whoever the neighbour is."""

    def __init__(self, bed: Bed, letter: str, host: Host, behind_nat: bool) -> None:
        self.bed, self.letter, self.behind_nat = bed, letter, behind_nat
        self.name = host.name
        self.host = host
        self.ip = defaultdict(lambda: host.ip, {"": host.ip})

    def links_ms(self, other: Place) -> float:
        """The round trip of a bare datagram to `other` and back, median."""
        samples = []
        with self.host.socket() as here, other.host.socket() as there:
            for _ in range(PINGS):
                start = time.perf_counter()
                here.sendto(b"ping", (other.ip[""], there.getsockname()[1]))
                data, back = there.recvfrom(64)
                there.sendto(data, back)
                here.recv(64)
                samples.append((time.perf_counter() - start) * 1000)
        return statistics.median(samples)


@contextlib.contextmanager
def laboratory(
    nat: str, delay_ms: float, *, loss: float = 0.0, mbit: float = GBIT, beacons: int = 1, queue_kb: int = QUEUE_KB
) -> Iterator[tuple[Bed, Place, Place, Place, Rendezvous]]:
    """Hosts a and b behind such NATs and uplinks (delay_ms: one way, of each), and between them the rendezvous on a third; with
    two beacons, b uses the second."""
    link = Link(delay_ms=delay_ms, mbit=mbit, queue_kb=queue_kb, loss=loss)
    with Lab() as lab, Bed() as bed:
        hosts = {letter: Place(bed, letter, lab.place(letter, nat, link), nat != "none") for letter in "ab"}
        center = Place(bed, "r", lab.public("r"), False)
        if beacons == 1:
            yield bed, hosts["a"], hosts["b"], center, Rendezvous(bed, center)
            return
        second = Place(bed, "s", lab.public("s"), False)
        ours, other = (f"{place.ip['']}:{BEACON}" for place in (center, second))
        rendezvous = Rendezvous(bed, center, "-peers", other, beacons={"b": other})
        Rendezvous(bed, second, "-peers", ours)
        yield bed, hosts["a"], hosts["b"], center, rendezvous
