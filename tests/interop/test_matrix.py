"""The published programs and ours in every mixture: one cell for each operation, role and path.

Roles, by whose daemon and whose tools stand at the acting side and at the other:
  clients   published tools at our daemons            tools     our tools at published daemons
  registry  published both, at our rendezvous         outward   ours toward published      inward   published toward ours

By default the relayed and the punched path run the operations that the path can change. PILOT_INTEROP=full runs every cell.
The table of all cells is printed at the end of the run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import published
import pytest
from lab import Lab
from operations import LOCAL, OPERATIONS, SEPARATE, ensure_trust
from testbed import DIRECT, OURS, PUNCHED, RELAYED, THEIRS, Machine, Testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

ROLES = {
    "clients": (OURS, THEIRS, OURS, THEIRS),
    "tools": (THEIRS, OURS, THEIRS, OURS),
    "registry": (THEIRS, THEIRS, THEIRS, THEIRS),
    "outward": (OURS, OURS, THEIRS, THEIRS),
    "inward": (THEIRS, THEIRS, OURS, OURS),
}
PATHS = (DIRECT, RELAYED, PUNCHED)
FULL = os.environ.get("PILOT_INTEROP") == "full"
BY_PATH = ("handshake-approve", "ping", "path", "connect", "send-message-text", "send-file-5M", "dgram-listen", "restart-peer")
UNTRUSTED = {"handshake-reject", "trust-required", "handshake-approve"}


def cells() -> Iterator[tuple[str, str, str]]:
    """(role, path, operation), those of one pair of machines together."""
    order = [n for n in OPERATIONS if n not in SEPARATE] + [n for n in OPERATIONS if n in SEPARATE]
    for path in PATHS:
        for role in ROLES:
            for name in order:
                if path == DIRECT or (name not in LOCAL and (FULL or name in BY_PATH)):
                    yield role, path, name


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    try:
        published.bin_dir()
    except published.Unavailable as error:
        pytest.skip(str(error))
    with Lab() as lab:
        yield Testbed(lab)


@pytest.fixture(scope="module")
def pairs(bed: Testbed) -> Iterator[dict[tuple[str, str], tuple[Machine, Machine]]]:
    yield {}


@pytest.mark.parametrize(("role", "path", "name"), [pytest.param(*cell, id="-".join(cell)) for cell in cells()])
def test_cell(bed: Testbed, pairs: dict[tuple[str, str], tuple[Machine, Machine]], role: str, path: str, name: str) -> None:
    if (role, path) not in pairs:
        for machine in [m for pair in pairs.values() for m in pair]:
            machine.stop()
        pairs.clear()
        pairs[role, path] = bed.pair(f"{role}-{path}-", path, ROLES[role])
    a, b = pairs[role, path]
    for machine in (a, b):
        if machine.process is None or machine.process.poll() is not None:
            machine.process = None
            machine.start()
    if name not in UNTRUSTED and name not in LOCAL:
        ensure_trust(a, b)
    OPERATIONS[name](a, b)
