"""Two published daemons exchange messages; each in turn is replaced by ours on the same state directory and socket, and back.

The program that sends is the published Python client and runs all the time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import published
import pytest
from lab import Lab
from operations import ensure_trust, ping_until
from testbed import OURS, THEIRS, Machine, Testbed, wait_for
from traffic import messages

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

RESUME_S = 90.0  # a published sender may hold on to a dead tunnel for some time


@pytest.fixture
def pair() -> Iterator[tuple[Machine, Machine]]:
    try:
        published.bin_dir()
    except published.Unavailable as error:
        published.missing(error)
    with Lab() as lab:
        bed = Testbed(lab)
        a, b = (bed.machine(lab.public(name), name, THEIRS, THEIRS) for name in ("sender", "receiver"))
        ensure_trust(a, b)
        ping_until(a, b)
        yield a, b


def trust_rows(m: Machine) -> list[tuple[int, int]]:
    return sorted((row["node_id"], row["approved_at"]) for row in m.json("trust", tools=OURS)["trusted"])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("end", ["stop", pytest.param("kill", marks=pytest.mark.interop)])
def test_no_acknowledged_message_is_lost(pair: tuple[Machine, Machine], end: str) -> None:
    a, b = pair
    nodes, trust = (a.node, b.node), (trust_rows(a), trust_rows(b))
    with messages(a, b) as stream:
        stream.wait(20, RESUME_S)
        for machine, make in ((b, OURS), (a, OURS), (b, THEIRS), (a, THEIRS)):
            began = time.monotonic()
            getattr(machine, end)()
            machine.start(make)
            up = time.monotonic()
            stream.wait(1, RESUME_S)
            print(f"{machine} took over in {up - began:.1f} s; first message {time.monotonic() - up:.1f} s later")
            stream.wait(19, RESUME_S)
            assert (a.node, b.node) == nodes and (trust_rows(a), trust_rows(b)) == trust, "no new handshake"
    count, unanswered = stream.result["count"], stream.result["unanswered"]
    wait_for(lambda: len(b.inbox()) >= count, "every message", 10)
    stored = [row["data"] for row in b.inbox()]
    lost = {f"message {n}" for n in range(count)} - set(stored)
    duplicates = len(stored) - len(set(stored))
    print(f"{count} acknowledged, {len(stored)} stored, {unanswered} attempts unanswered, {duplicates} duplicates")
    assert not lost, f"acknowledged and not in the inbox: {sorted(lost)}"
    assert duplicates <= unanswered, "only a message whose answer was lost may come twice"
