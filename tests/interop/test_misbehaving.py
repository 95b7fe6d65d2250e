"""A published daemon is killed, frozen, comes back as somebody else, or has a wrong clock: ours goes on with everybody else, says
what is wrong, and works with it again when it returns.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import published
import pytest
from lab import Lab, compiled
from operations import ensure_trust, ping_until
from testbed import OURS, THEIRS, Background, Machine, Testbed, wait_for
from traffic import echo

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

STALL_S = 5.0  # others' exchanges take milliseconds; on a loaded machine some more
GIVE_UP_S = 150.0  # a sender may wait for a silent peer as long as the idle timeout of a stream, 120 s
HOUR_S = 3600


class Scene(NamedTuple):
    ours: Machine
    bad: Machine
    good: Machine


class Shifted(Machine):
    """A machine whose daemon sees another time. shift_s: 0 = the right one."""

    shift_s = 0

    def daemon_argv(self, make: str) -> list[str]:
        argv = super().daemon_argv(make)
        clock = [str(compiled(Path(__file__).with_name("shifted_clock.c"))), str(self.shift_s)]
        return clock + argv if self.shift_s else argv


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    try:
        published.bin_dir()
    except published.Unavailable as error:
        published.missing(error)
    with Lab() as lab:
        bed = Testbed(lab)
        ours = bed.machine(lab.public("ours"), "ours", OURS, OURS)
        bad = Shifted(bed, lab.public("bad"), "bad", THEIRS, THEIRS)
        bad.start()
        good = bed.machine(lab.public("good"), "good", THEIRS, THEIRS)
        for peer in (bad, good):
            ensure_trust(ours, peer)
            ping_until(ours, peer)
        yield Scene(ours, bad, good)


@contextlib.contextmanager
def others_go_on(scene: Scene) -> Iterator[None]:
    """Around the misbehaviour: exchanges of ours with the good peer continue, and its users are answered."""
    with echo(scene.ours, scene.good) as traffic:
        traffic.wait(5, 20)
        yield
        began = time.monotonic()
        assert scene.ours.json("health")["status"] == "ok"
        assert scene.ours.json("info")["node_id"] == scene.ours.node
        assert time.monotonic() - began < STALL_S
        traffic.wait(20, 20)
    assert traffic.result["worst_s"] < STALL_S, traffic.result
    assert "Traceback" not in scene.ours.log


@contextlib.contextmanager
def big_file(a: Machine, b: Machine) -> Iterator[Background]:
    """A transfer that is under way when the block begins."""
    path = a.home / "big.bin"
    with path.open("wb") as f:
        f.truncate(200 << 20)
    with a.background("--json", "send-file", b.name, str(path)) as sending:
        wait_for(lambda: moved(a, b) > 1 << 20 or sending.process.poll() is not None, lambda: f"{sending.err} bytes", 30, 0.02)
        assert sending.process.poll() is None, f"over too early: {sending.out}{sending.err}"
        yield sending


def moved(a: Machine, b: Machine) -> int:
    """Bytes of the file transfer between the two so far, as our daemon counts them."""
    ours, peer = (a, b) if a.make == OURS else (b, a)
    rows = ours.json("connections", tools=OURS)["connections"] or []
    mine = [r for r in rows if r["remote_addr"] == peer.address and 1001 in (r["remote_port"], r["local_port"])]
    return max((int(r["bytes_sent"]) + int(r["bytes_recv"]) for r in mine), default=0)


def complaint(m: Machine, *args: str, timeout: float = 60) -> str:
    """What a user is told by a command that has to fail."""
    done = m.ctl("--json", *args, check=False, timeout=timeout)
    if done.stdout:  # ping reports each probe
        (row,) = json.loads(done.stdout)["data"]["results"]
        assert "error" in row, done.stdout
        return str(row["error"])
    error = json.loads(done.stderr.strip().splitlines()[-1])
    assert error["code"] != "internal" and error["message"], error
    return f"{error['message']} {error.get('hint', '')}"


def works(scene: Scene) -> None:
    """Both directions, messages and files."""
    ours, bad, _ = scene
    ping_until(ours, bad, 60)
    ping_until(bad, ours, 60)
    for a, b in ((ours, bad), (bad, ours)):
        messages, files = len(b.inbox()), len(b.received())
        a.json("send-message", b.name, "--data", "well again")
        note = a.home / "note.txt"
        note.write_text("well again")
        a.json("send-file", b.name, str(note))
        wait_for(lambda b=b, n=messages, f=files: len(b.inbox()) > n and len(b.received()) > f, f"delivery at {b}", 10)  # type: ignore[misc]


@pytest.mark.interop
@pytest.mark.timeout(300)
def test_killed_in_the_middle_of_a_transfer(scene: Scene) -> None:
    ours, bad, _ = scene
    with others_go_on(scene), big_file(ours, bad) as sending:
        bad.kill()
        said = complaint(ours, "connect", bad.address, "7", "--message", "x", "--timeout", "3s")
        assert bad.address in said or bad.name in said, said
        wait_for(lambda: sending.process.poll() is not None, "the sender gives up", GIVE_UP_S, 0.2)
        error = json.loads(sending.err.strip().splitlines()[-1])
        assert sending.process.returncode == 1 and error["code"] in ("connection_failed", "timeout"), sending.err
        print(f"sender of a file: {error['message']}; dialler: {said}")
    bad.start()
    works(scene)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("direction", ["to-it", pytest.param("from-it", marks=pytest.mark.interop)])
def test_frozen_in_the_middle_of_a_transfer(scene: Scene, direction: str) -> None:
    ours, bad, _ = scene
    a, b = (ours, bad) if direction == "to-it" else (bad, ours)
    with big_file(a, b) as sending:
        with others_go_on(scene):
            bad.freeze()
            try:
                said = complaint(ours, "ping", bad.address, "--count", "1", "--timeout", "3s")
                assert said
                time.sleep(10)
                assert ours.json("peers")["peers"]
            finally:
                bad.thaw()
        print(f"ping of a frozen peer: {said}; the transfer: {sending.process.poll()} {sending.err}")
        if sending.process.poll() is None:  # it goes on
            before = moved(a, b)
            wait_for(lambda: sending.process.poll() is not None or moved(a, b) > before, "the transfer goes on", 60, 0.2)
    works(scene)


@pytest.mark.timeout(300)
def test_restarted_with_another_key(scene: Scene) -> None:
    """A stranger at the address of a friend gets nothing meant for the friend; the friend comes back without a handshake."""
    ours, bad, _ = scene
    kept = {name: (bad.dot / name).read_bytes() for name in ("identity.json", "trust.json", "account.json")}
    number, address = bad.node, bad.address
    trust = ours.json("trust")["trusted"]
    with others_go_on(scene):
        bad.stop()
        try:
            for name in kept:
                (bad.dot / name).unlink()
            bad.start()
            assert bad.node != number
            said = complaint(ours, "ping", address, "--count", "1", "--timeout", "3s")
            print(f"ping of the number whose key is gone: {said}")
            ensure_trust(ours, bad)
            ping_until(ours, bad, 60)
        finally:
            bad.stop()
            for name, content in kept.items():
                (bad.dot / name).write_bytes(content)
            bad.start()
    assert (bad.node, bad.address) == (number, address)
    assert [row for row in ours.json("trust")["trusted"] if row in trust] == trust
    works(scene)


@pytest.mark.interop
@pytest.mark.timeout(300)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the wall clock of a Go program is shifted on x86-64 only")
@pytest.mark.parametrize("hours", [1, -1])
def test_its_clock_is_off_by_an_hour(scene: Scene, hours: int) -> None:
    """Trust that stands carries traffic. Its handshake messages are refused, as by its own make, and our log says why; the
    registry carries requests all the same."""
    ours, bad, _ = scene
    assert isinstance(bad, Shifted)
    named = re.compile(rf"the clock of the peer differs ahead_s={'-' if hours < 0 else ''}(3599|3600|3601) ")
    try:
        with others_go_on(scene):
            bad.stop()
            bad.shift_s = hours * HOUR_S
            bad.start()
            works(scene)
            bad.json("untrust", str(ours.node))
            wait_for(lambda: named.search(ours.log), lambda: f"our log names the clock\n{ours.log[-2000:]}", 15, 0.2)
            ours.ctl("untrust", str(bad.node), check=False)
            wait_for(lambda: not ours.trusts(bad) and not bad.trusts(ours), "trust has ended", 15, 0.2)
            meet(bad, ours)
            works(scene)
    finally:
        bad.stop()
        bad.shift_s = 0
        bad.start()
        meet(ours, bad)


def meet(a: Machine, b: Machine) -> None:
    """Both ask for trust: each other's request is the answer."""
    if not (a.trusts(b) and b.trusts(a)):
        for x, y in ((a, b), (b, a)):
            x.json("handshake", str(y.node), "let us talk")
        wait_for(lambda: a.trusts(b) and b.trusts(a), f"{a} and {b} trust each other", 60, 0.2)
