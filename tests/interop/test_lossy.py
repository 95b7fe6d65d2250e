"""Files between our daemon and the published one over a long line that loses packets arrive whole, both ways.

What rate they reach, against that of two published daemons: tests/interop/lossy.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import lossy
import published
import pytest
from lab import Link
from testbed import OURS, THEIRS, Machine

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

SIZE = 3_000_000


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[tuple[str, str], tuple[Machine, Machine]]]:
    try:
        published.bin_dir()
    except published.Unavailable as error:
        published.missing(error)
    with lossy.line(Link(delay_ms=15, mbit=100, loss=0.01)) as pairs:
        yield pairs


@pytest.mark.parametrize("pair", [(OURS, THEIRS), (THEIRS, OURS)], ids=["to-published", "to-ours"])
def test_files_arrive_whole(pairs: dict[tuple[str, str], tuple[Machine, Machine]], pair: tuple[str, str]) -> None:
    took = lossy.transfer(*pairs[pair], SIZE, seed=1)
    print(f"{pair[0]} -> {pair[1]}: {SIZE * 8e-6 / took:.2f} Mbit/s")
