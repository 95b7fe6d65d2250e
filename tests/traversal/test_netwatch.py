"""Network changes are noticed from the kernel's own messages."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.traversal.netstate import ANYWHERE, CALM_S, GONE_HOLD_S, SETTLE_S, Debounce, NetState, Report
from pilot.traversal.netwatch import SLEPT_S, NetWatch, is_relevant


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


HOME = NetState({ANYWHERE[0]: "192.168.1.7", ANYWHERE[1]: ""}, frozenset({("wlan0", "0101A8C0")}), frozenset({"192.168.1.7"}))
MOBILE = NetState({ANYWHERE[0]: "10.8.0.2", ANYWHERE[1]: ""}, frozenset({("wwan0", "0100080A")}), frozenset({"10.8.0.2"}))
NOTHING = NetState({ANYWHERE[0]: "", ANYWHERE[1]: ""})


class Host:
    """A network that changes on virtual time, and what is reported of it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = HOME
        self.debounce = Debounce(HOME)
        self.reports: list[tuple[float, Report]] = []

    def set(self, state: NetState) -> None:
        self.state = state
        self.debounce.stirred(self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.debounce.due is not None and self.debounce.due <= end:
            self.now = max(self.now, self.debounce.due)
            report = self.debounce.look(self.state, self.now)
            if report:
                self.reports.append((round(self.now - 1000.0, 3), report))
        self.now = end


def test_another_network_is_told_at_once() -> None:
    host = Host()
    host.set(MOBILE)
    host.run(1.0)
    assert host.reports == [(SETTLE_S, Report.PATHS)]


def test_containers_come_and_go() -> None:
    """Their interfaces make the kernel talk all the time. Addresses of theirs are told to the registry at most."""
    host = Host()
    for i in range(200):
        host.set(HOME)
        if i == 100:
            host.set(replace(HOME, lan=HOME.lan | {"172.17.0.1"}))
            host.run(1.0)
        host.run(0.05)
    assert [r for _, r in host.reports] == [Report.ADDRESSES, Report.ADDRESSES]


def test_a_link_that_comes_back_the_same_resets_nothing() -> None:
    host = Host()
    for _ in range(10):
        host.set(NOTHING)
        host.run(1.0)
        host.set(HOME)
        host.run(1.0)
    assert not host.reports


def test_a_network_that_is_gone_is_told_when_it_stays_away() -> None:
    host = Host()
    host.set(NOTHING)
    host.run(10.0)
    assert host.reports == [(SETTLE_S + GONE_HOLD_S, Report.PATHS)]
    host.set(HOME)
    host.run(1.0)
    assert [r for _, r in host.reports] == [Report.PATHS, Report.PATHS]


def test_from_one_network_over_none_to_another() -> None:
    host = Host()
    host.set(NOTHING)
    host.run(1.0)
    host.set(MOBILE)
    host.run(5.0)
    assert host.reports == [(1.0 + SETTLE_S, Report.PATHS)]


def test_flapping_is_told_less_and_less_often_and_its_end_for_certain() -> None:
    host = Host()
    for i in range(201):
        host.set((MOBILE, HOME)[i % 2])
        host.run(0.3)
    assert len(host.reports) < 20
    host.run(10.0)
    assert host.debounce.look(MOBILE, host.now) is None, "the last state is the one that was told"
    host.run(CALM_S)
    host.set(HOME)
    at = host.now - 1000.0
    host.run(1.0)
    assert host.reports[-1] == (round(at + SETTLE_S, 3), Report.PATHS)


def test_new_targets_are_no_change_but_another_way_to_an_old_one_is() -> None:
    host = Host()
    peer = ("198.51.100.9", 4000)
    host.set(replace(HOME, sources={**HOME.sources, peer: "192.168.1.7"}))
    host.run(1.0)
    assert not host.reports
    host.set(replace(HOME, sources={**HOME.sources, peer: "10.9.0.1"}))  # a tunnel took over that part of the world
    host.run(1.0)
    assert [r for _, r in host.reports] == [Report.PATHS]


async def test_sleep_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.traversal.netwatch.POLL_S", 0.01)
    slept, seen, woken = [0.0], [], asyncio.Event()
    watch = NetWatch(lambda why: (seen.append(why), woken.set()), slept=lambda: slept[0])
    watch.start()
    try:
        await asyncio.sleep(0.05)
        slept[0] = SLEPT_S / 2
        await asyncio.sleep(0.05)
        assert not seen, "a moment changes nothing"
        slept[0] = 100.0
        async with asyncio.timeout(10):
            await woken.wait()
        await asyncio.sleep(0.05)
        assert seen == [True]
    finally:
        watch.stop()


SCRIPT = """
import asyncio, subprocess
from pilot.traversal.netwatch import NetWatch

def ip(text):
    subprocess.run(["ip", *text.split()], check=True)

async def main():
    paths, addresses = [], []
    event = asyncio.Event()
    ip("link add up0 type veth peer name far0")
    ip("link set far0 up")
    ip("addr add 10.1.1.2/24 dev up0")
    ip("link set up0 up")
    ip("route add default via 10.1.1.1")
    watch = NetWatch(lambda slept: (paths.append(slept), event.set()), lambda: (addresses.append(1), event.set()))
    watch.start()
    for i in range(15):
        ip(f"link add v{i} type veth peer name w{i}")
        ip(f"link set v{i} up")
        ip(f"link set w{i} up")
        ip(f"link del v{i}")
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.4)
    assert not paths and not addresses, "containers"
    ip("link set up0 down")
    await asyncio.sleep(0.3)
    ip("link set up0 up")
    ip("route add default via 10.1.1.1")
    await asyncio.sleep(0.5)
    assert not paths, "a link that flaps"
    for command in ("addr add 10.9.9.9/24 dev up0", "addr del 10.9.9.9/24 dev up0"):
        event.clear()
        ip(command)
        await asyncio.wait_for(event.wait(), 10)
    assert not paths and len(addresses) == 2
    event.clear()
    ip("route replace default via 10.1.1.9")
    await asyncio.wait_for(event.wait(), 10)
    assert paths == [False] and len(addresses) == 2
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
