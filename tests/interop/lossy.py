"""Files over a long, lossy line: ours to published, published to ours, and published to published beside them.

    .venv/bin/python tests/interop/lossy.py [--mb 200] [--runs 3] [--rtt-ms 30] [--mbit 100] [--loss 0.01] [--json FILE]
        [--only 'theirs->ours' ...]

One line of the lab's link emulator carries all of them, one transfer at a time, the pairs taking turns. The receiver's file is
compared by SHA-256. Prints each transfer, the medians, and the ratio of each pair to two published daemons. Needs root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "nat")]

from lab import Lab, Link
from operations import ensure_trust, ping_until
from testbed import OURS, THEIRS, Machine, Testbed, wait_for

BASELINE = (THEIRS, THEIRS)
PAIRS = (BASELINE, (OURS, THEIRS), (THEIRS, OURS))
BLOCK = hashlib.shake_256(b"lossy").digest(1 << 20)


@contextmanager
def line(link: Link) -> Iterator[dict[tuple[str, str], tuple[Machine, Machine]]]:
    """Sender and receiver of each pair of makes; all senders are on a host behind `link`, all receivers on another host."""
    with Lab() as lab:
        bed = Testbed(lab)
        hosts = lab.public("near", link), lab.public("far")
        senders = {make: bed.machine(hosts[0], f"from-{make}", make, make) for make in (OURS, THEIRS)}
        receivers = {make: bed.machine(hosts[1], f"to-{make}", make, make) for make in (OURS, THEIRS)}
        pairs = {(a, b): (senders[a], receivers[b]) for a, b in PAIRS}
        for a, b in pairs.values():
            ensure_trust(a, b)
            ping_until(a, b)
        yield pairs


def content(size: int, seed: int) -> bytes:
    """`size` bytes, different for each seed."""
    head = seed.to_bytes(8, "big")
    return (head + BLOCK * (size // len(BLOCK) + 1))[:size]


def transfer(a: Machine, b: Machine, size: int, seed: int) -> float:
    """Seconds that `pilotctl send-file` took; the receiver has the same bytes."""
    path = a.home / f"lossy-{seed}.bin"
    data = content(size, seed)
    path.write_bytes(data)
    known = set(b.received())
    started = time.monotonic()
    a.json("send-file", b.name, str(path), timeout=120 + size / 50e3)
    took = time.monotonic() - started
    new = wait_for(lambda: set(b.received()) - known, f"the file at {b}", 10).pop()
    with new.open("rb") as f:
        assert hashlib.file_digest(f, "sha256").digest() == hashlib.sha256(data).digest(), f"{new} differs from what {a} sent"
    path.unlink()
    new.unlink()
    return took


def measure(link: Link, size: int, runs: int, chosen: list[tuple[str, str]]) -> dict[tuple[str, str], list[float]]:
    """Mbit/s of each run of each pair."""
    rates: dict[tuple[str, str], list[float]] = {pair: [] for pair in chosen}
    with line(link) as pairs:
        for run in range(runs):
            for pair in chosen:
                took = transfer(*pairs[pair], size, run * len(PAIRS) + PAIRS.index(pair))
                rates[pair].append(size * 8e-6 / took)
                print(f"{run + 1}/{runs} {pair[0]} -> {pair[1]}: {took:.1f} s, {rates[pair][-1]:.2f} Mbit/s", flush=True)
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description="Rates of files between our daemon and the published one over a lossy line.")
    parser.add_argument("--mb", type=float, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rtt-ms", type=float, default=30)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--loss", type=float, default=0.01)
    names = ["->".join(pair) for pair in PAIRS]
    parser.add_argument("--only", choices=names, action="append", help="a pair of sender and receiver; again for another one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: network namespaces")
    link = Link(delay_ms=args.rtt_ms / 2, mbit=args.mbit, loss=args.loss)
    rates = measure(link, int(args.mb * 1e6), args.runs, [p for p in PAIRS if "->".join(p) in (args.only or names)])
    medians = {pair: statistics.median(values) for pair, values in rates.items()}
    print(f"{args.mb:g} MB, {args.rtt_ms:g} ms round trip, {args.mbit:g} Mbit/s, {args.loss:.1%} loss each way, {args.runs} runs")
    for pair, median in medians.items():
        spread = f"{min(rates[pair]):.2f}-{max(rates[pair]):.2f}"
        ratio = f"  {median / medians[BASELINE]:.2f} of two published" if BASELINE in medians else ""
        print(f"{pair[0]:>7} -> {pair[1]:7} {median:8.2f} Mbit/s ({spread}){ratio}")
    if args.json:
        args.json.write_text(json.dumps({" -> ".join(pair): values for pair, values in rates.items()}, indent=2) + "\n")
    return 0 if min(medians.values()) >= medians.get(BASELINE, 0.0) else 1


if __name__ == "__main__":
    sys.exit(main())
