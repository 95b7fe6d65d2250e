"""Two agents, each at a beacon of its own, that reach each other by relay alone: the real programs on loopback."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from cluster import BIN, Agent, Cluster, cluster, free_port, wait_for

from pilot.sdk.aio import Client
from pilot.wire.address import parse

MARKER = b"\x00PILOT-MARKER-" + hashlib.sha256(b"a relay reads nothing").digest() + b"\xff"
ETH_P_ALL = 3


class SecondBeacon:
    """A beacon without a registry."""

    def __init__(self, root: Path, addr: str, peer: str) -> None:
        self.argv = [str(BIN / "pilot-rendezvous"), "-beacon-only", "-beacon-addr", addr, "-peers", peer]
        self.log = root / f"beacon-{addr.rpartition(':')[2]}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        before = self.text.count("beacon listening")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log)
        wait_for(lambda: self.text.count("beacon listening") > before, f"the beacon listens: {self.text[-500:]}")

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Pair:
    """A registry without a beacon, two beacons, two hidden agents that trust each other."""

    def __init__(self, net: Cluster, one: SecondBeacon, two: SecondBeacon, a: Agent, b: Agent) -> None:
        self.net, self.one, self.two, self.a, self.b = net, one, two, a, b


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with cluster(tmp_path) as net:  # its own beacon serves nobody here
        ports = [f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}" for _ in range(2)]
        beacons = [SecondBeacon(tmp_path, ports[0], ports[1]), SecondBeacon(tmp_path, ports[1], ports[0])]
        try:
            agents = []
            for beacon, name, addr in zip(beacons, ("alpha", "bravo"), ports, strict=True):
                beacon.start()
                at = copy.copy(net)
                at.beacon = addr
                agents.append(at.agent(name, "-relay-only"))
            net.trust(agents[0], agents[1])
            yield Pair(net, beacons[0], beacons[1], agents[0], agents[1])
        finally:
            for agent in net.agents:
                agent.stop()
            for beacon in beacons:
                if beacon.process is not None and beacon.process.poll() is None:
                    beacon.kill()


async def stream(a: Agent, b: Agent, port: int, seconds: float, midway: threading.Event) -> list[float]:
    """A numbered record with the marker every 20 ms; when each arrived, all in order. `midway` is set when it flows."""
    async with Client(str(a.socket)) as x, Client(str(b.socket)) as y:
        peer = parse((await y.info())["address"])
        assert peer
        async with await y.listen(port) as listener:
            conn = await x.dial_addr(peer, port)
            other = await asyncio.wait_for(listener.accept(), 10)
            times: list[float] = []
            sent = 0
            size = 8 + len(MARKER)

            async def receive() -> None:
                buffer = b""
                while data := await other.read():
                    buffer += data
                    while len(buffer) >= size:
                        assert buffer[:size] == len(times).to_bytes(8, "big") + MARKER, "a record is lost, doubled or changed"
                        buffer = buffer[size:]
                        times.append(time.monotonic())
                        if len(times) == 25:
                            midway.set()

            reading = asyncio.create_task(receive())
            try:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    await conn.write(sent.to_bytes(8, "big") + MARKER)
                    sent += 1
                    await asyncio.sleep(0.02)
                await conn.close()
                await asyncio.wait_for(reading, 20)
            finally:
                reading.cancel()
            assert len(times) == sent
            return times


@pytest.mark.parametrize("which", ["one", "two"])
def test_a_stream_survives_the_restart_of_either_beacon(pair: Pair, which: str) -> None:
    pair.a.ctl("ping", "bravo", "--count", "2")
    path = pair.a.json("path", "bravo")["path"]
    assert path["kind"] == "relay"
    midway = threading.Event()
    beacon = getattr(pair, which)
    failed: list[BaseException] = []

    def restart() -> None:
        try:
            assert midway.wait(15), "the stream does not flow"
            beacon.kill()
            beacon.start()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=restart)
    thread.start()
    times = asyncio.run(stream(pair.a, pair.b, 5001, 9.0, midway))
    thread.join()
    assert not failed, failed
    gap = max(b - a for a, b in pairwise(times))
    print(f"longest pause {gap:.2f} s")
    assert gap < 5.0


def memory(pid: int) -> Iterator[bytes]:
    """The writable and private memory of a process, in pieces that overlap."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (r.\S+)", line)
            if not match or "[v" in line:
                continue
            at, end = int(match[1], 16), int(match[2], 16)
            tail = b""
            while at < end:
                try:
                    mem.seek(at)
                    piece = mem.read(min(end - at, 1 << 22))
                except (OSError, ValueError):
                    break
                if not piece:
                    break
                yield tail + piece
                tail = piece[-128:]
                at += len(piece)


def holds(pid: int, what: bytes) -> bool:
    return any(what in piece for piece in memory(pid))


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="captures packets, reads other processes: root on Linux")
def test_a_relay_reads_nothing(pair: Pair) -> None:
    """What two agents tell each other is neither on the wire to and from the beacons nor in their memory."""
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    capture.bind(("lo", 0))
    capture.settimeout(0.2)
    capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    ports = {int(a.rpartition(":")[2]).to_bytes(2, "big") for a in (pair.one.argv[3], pair.two.argv[3])}
    relayed: list[bytes] = []
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            try:
                packet = capture.recv(65535)
            except TimeoutError:
                continue
            udp = packet[14 + 20 :]
            if packet[12:14] == b"\x08\x00" and packet[23] == 17 and ports & {udp[:2], udp[2:4]}:
                relayed.append(udp[8:])

    listening = threading.Thread(target=listen)
    listening.start()
    searched: dict[str, bool] = {}
    flows = threading.Event()

    def search() -> None:
        if flows.wait(15):
            programs = {"one": pair.one, "two": pair.two, "alpha": pair.a, "bravo": pair.b}
            for name, program in programs.items():
                assert program.process is not None
                searched[name] = holds(program.process.pid, MARKER)

    searching = threading.Thread(target=search)
    searching.start()
    try:
        asyncio.run(stream(pair.a, pair.b, 5001, 4.0, flows))
        asyncio.run(stream(pair.b, pair.a, 5002, 1.0, threading.Event()))
    finally:
        searching.join()
        over.set()
        listening.join()
        capture.close()
    assert searched.pop("alpha") and searched.pop("bravo"), "the search finds the marker where it must be"
    assert searched == {"one": False, "two": False}
    frames = b"".join(relayed)
    assert frames.count(b"PILS") > 200 and any(data[0] == 5 for data in relayed) and any(data[0] == 6 for data in relayed)
    assert MARKER not in frames and MARKER[1:14] not in frames
