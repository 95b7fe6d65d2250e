"""Network changes are noticed from the kernel's own messages."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.traversal.netwatch import is_relevant


def message(kind: int, body: bytes) -> bytes:
    pad = -len(body) % 4
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + bytes(pad)


def route(table: int, prefix: int) -> bytes:
    return message(24, bytes([2, prefix, 0, 0, table, 0, 0, 0, 0, 0, 0, 0]))


def link(change: int) -> bytes:
    return message(16, struct.pack("=BBHiII", 0, 0, 1, 2, 0x1003, change))


def test_which_messages_matter() -> None:
    assert is_relevant(message(20, bytes(8))) and is_relevant(message(21, bytes(8)))
    assert is_relevant(route(254, 0)), "the default route"
    assert not is_relevant(route(254, 32)) and not is_relevant(route(255, 0))
    assert is_relevant(link(0x1)) and not is_relevant(link(0)), "up or down, not statistics"
    assert is_relevant(link(0) + route(254, 32) + message(21, bytes(5)))


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data: bytes) -> None:
    is_relevant(data)


SCRIPT = """
import asyncio, subprocess
from pilot.traversal.netwatch import NetWatch

async def main():
    seen = []
    event = asyncio.Event()
    watch = NetWatch(lambda: (seen.append(1), event.set()))
    watch.start()
    for command in ("ip link set lo up", "ip addr add 10.9.9.9/24 dev lo", "ip addr del 10.9.9.9/24 dev lo"):
        event.clear()
        subprocess.run(command.split(), check=True)
        await asyncio.wait_for(event.wait(), 5)
    await asyncio.sleep(0.3)
    before = len(seen)
    await asyncio.sleep(0.5)
    assert len(seen) == before, "silence is silent"
    watch.stop()
    watch.stop()

asyncio.run(main())
"""


@pytest.mark.netns
def test_in_a_real_network() -> None:
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs root, unshare and ip")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
