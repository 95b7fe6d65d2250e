"""Older releases of the published programs with ours: what a mixed fleet needs while it is being updated.

They fetch handshakes only with their heartbeats, which these tests make frequent (testbed.Machine).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import exchanges  # noqa: F401 - adds operations
import faults  # noqa: F401
import published
import pytest
from lab import Lab
from operations import OPERATIONS
from testbed import DIRECT, OURS, Machine, Testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

OLDER_ROLES = ("clients", "tools", "registry", "outward", "inward")
NAMES = ("info", "handshake-approve", "ping", "send-message-text", "send-file-1K", "restart-peer")


def makes(role: str, old: str) -> tuple[str, str, str, str]:
    """As in the matrix, with an older release in the place of the present one."""
    daemon, tools = {"clients": (OURS, old), "tools": (old, OURS)}.get(role, (old, old))
    other = (daemon, tools)
    if role == "outward":
        daemon, tools = OURS, OURS
    if role == "inward":
        other = (OURS, OURS)
    return (daemon, tools, *other)


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    with Lab() as lab:
        yield Testbed(lab)


@pytest.fixture(scope="module")
def pairs() -> dict[tuple[str, str], tuple[Machine, Machine]]:
    return {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", OLDER_ROLES)
@pytest.mark.parametrize("path", published.OLDER)
def test_older(bed: Testbed, pairs: dict[tuple[str, str], tuple[Machine, Machine]], path: str, role: str, name: str) -> None:
    """`path` is the release: the table of the matrix has a place for it."""
    try:
        published.bin_dir(path)
    except published.Unavailable as error:
        pytest.skip(str(error))
    if (role, path) not in pairs:
        for machine in [m for pair in pairs.values() for m in pair]:
            machine.stop()
        pairs.clear()
        pairs[role, path] = bed.pair(f"{role}-{path.replace('.', '-')}-", DIRECT, makes(role, path))
    OPERATIONS[name](*pairs[role, path])
