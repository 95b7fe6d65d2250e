"""Many flows through one relay at once: how much passes, how fairly it is shared, and what the relay adds to a round trip.

    python bench/net/flows.py [--flows 10] [--seconds 4] [--runs 3] [--relay-rate 1250000000] [--json FILE]

Two hosts reach only a third, where the beacon is (veth, MTU 1500). Each flow is a stream between two nodes of its own, one on
each host, in processes of their own; all send at once. Counted in the same stretch of time: the sum, and the largest share over
the smallest. The relay's part of a round trip: 64-byte datagrams through the relay and back, less a round trip of plain UDP from
either host to the third, halved, as a datagram passes the relay twice. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from net import bed as beds
from net.bed import Bed, Driver, Namespace, cpu
from net.nodes import BEACON, InProcess, Rendezvous

WARM_S = 1.0
ROUND_TRIPS = 2000


class Flow(InProcess):
    """One of many pairs of nodes."""

    def __init__(self, bed: Bed, a: Namespace, b: Namespace, rendezvous: Rendezvous, number: int) -> None:
        super().__init__(bed, a, b, rendezvous, relayed=True)
        self.number = number

    def _end(self, host: Namespace, role: str) -> Driver:
        registry, beacon = self.rendezvous.addresses(host)
        home = self.home / f"{host.letter}{self.number}" / role
        return host.driver(
            home, self.name, role, "--name", f"flow-{self.number}-{role}", "--peer", f"flow-{self.number}-server",
            "--registry", registry, "--beacon", beacon, "--listen", f"{next(iter(host.ip.values()))}:0",
            "--setting", f"identity={home}/identity.json", "--setting", "relay_only=true", module=self.module,
        )  # fmt: skip

    def share(self, seconds: float, go: threading.Barrier) -> float:
        """Mbit/s of this flow while the others send too."""
        self.server.tell(op="sink", window=[WARM_S, WARM_S + seconds])
        go.wait()
        self.client.ask(seconds + 60, op="source", seconds=seconds + 2 * WARM_S)
        return float(self.server.hear(60)["window_bytes"]) * 8 / seconds / 1e6


def at_once(flows: list[Flow], seconds: float) -> list[float]:
    """Mbit/s of each."""
    go = threading.Barrier(len(flows))
    shares = [0.0] * len(flows)

    def run(i: int) -> None:
        shares[i] = flows[i].share(seconds, go)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(flows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return shares


# The relay's part of a round trip, between plain sockets


@contextlib.contextmanager
def inside(host: Namespace) -> Iterator[None]:
    """This thread is on the host. Sockets made there stay there."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{host.name}") as there:
        for fd in (there, home):
            if libc.setns(fd.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            if fd is there:
                yield


def udp(host: Namespace, port: int = 0) -> socket.socket:
    with inside(host):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        made.settimeout(5)
        return made


def echo(sock: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answers until the socket is closed."""
    with contextlib.suppress(OSError):
        while True:
            data, sender = sock.recvfrom(2048)
            sock.sendto(answer(data), sender)


def median_us(sock: socket.socket, to: tuple[str, int], message: bytes) -> float:
    """Of a round trip."""
    samples = []
    for i in range(ROUND_TRIPS + ROUND_TRIPS // 10):
        start = time.perf_counter_ns()
        sock.sendto(message, to)
        sock.recv(2048)
        if i >= ROUND_TRIPS // 10:
            samples.append((time.perf_counter_ns() - start) / 1000)
    return statistics.median(samples)


def added_us(a: Namespace, b: Namespace, r: Namespace) -> dict[str, float]:
    """Medians, microseconds. All ends are Python, on both sides of the comparison."""
    near, far, middle = udp(a), udp(b), udp(r)
    beacon = {host.letter: (r.ip[host.letter], BEACON) for host in (a, b)}
    for sock, host, node in ((near, a, 0xF0000001), (far, b, 0xF0000002)):
        sock.sendto(struct.pack(">BI", 1, node), beacon[host.letter])
        sock.recv(64)
    back = struct.pack(">BII", 5, 0xF0000002, 0xF0000001)
    threading.Thread(target=echo, args=(far, lambda d: back + d[5:]), daemon=True).start()
    threading.Thread(target=echo, args=(middle, lambda d: d), daemon=True).start()
    relayed = median_us(near, beacon["a"], struct.pack(">BII", 5, 0xF0000001, 0xF0000002) + b"PILS" + bytes(60))
    port = middle.getsockname()[1]
    plain = median_us(near, (r.ip["a"], port), bytes(64))
    with udp(b) as other:
        plain_far = median_us(other, (r.ip["b"], port), bytes(64))
    for sock in (near, far, middle):
        sock.close()
    return {"relayed_us": relayed, "plain_us": plain, "plain_far_us": plain_far, "added_us": (relayed - plain - plain_far) / 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--relay-rate", default="1250000000", help="of the beacon: bytes per second that one node may relay")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with beds.apart() as (bed, a, b, r):
        rendezvous = Rendezvous(bed, r, "-relay-rate", options.relay_rate)
        latency = added_us(a, b, r)
        flows = [Flow(bed, a, b, rendezvous, i) for i in range(options.flows)]
        for flow in flows:
            flow.start()
        for _ in range(options.runs):
            before = sum(cpu([rendezvous.process.pid]))
            shares = at_once(flows, options.seconds)
            runs.append({"mbit_s": shares, "beacon_cpu_s": sum(cpu([rendezvous.process.pid])) - before})
    total = statistics.median(sum(run["mbit_s"]) for run in runs)
    spread = statistics.median(max(run["mbit_s"]) / max(min(run["mbit_s"]), 1e-9) for run in runs)
    setting = f"{options.flows} flows, {os.cpu_count()} cores, {len(runs)} runs"
    print(f"{setting}: {total:.0f} Mbit/s, largest over smallest share {spread:.2f}")
    print(
        f"round trip of 64 bytes: {latency['relayed_us']:.0f} us through the relay, {latency['plain_us']:.0f} and "
        f"{latency['plain_far_us']:.0f} us plain UDP to its host: the relay adds {latency['added_us']:.0f} us each time"
    )
    if options.json:
        options.json.write_text(json.dumps({"runs": runs, "latency": latency}, indent=1))


if __name__ == "__main__":
    main()
