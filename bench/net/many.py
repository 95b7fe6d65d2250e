"""One node with many streams to many peers, all at once, on loopback.

    python bench/net/many.py [--peers 100] [--streams 10] [--megabytes 1] [--json FILE]

One process holds the node, another one all its peers; every stream carries its bytes and the peer counts and sums them. Prints
what the node needs: bytes of memory per idle peer and per stream while all of them send, CPU seconds per GB, and the spread
between streams.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from pilot.errors import PilotError
from pilot.node import Node
from pilot.services.stream import OverlayStream

PORT = 1000
BIN = Path(sys.executable).parent
AT_ONCE = 10  # nodes that start together
SETTLE_S = 3.0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def node(registry: str, beacon: str, name: str) -> Node:
    return Node(registry=registry, beacon=beacon, hostname=name, listen="127.0.0.1:0", trust_auto_approve=True)


async def peers(asked: argparse.Namespace) -> None:
    """The other process: answers each stream with the number and checksum of its bytes. Ends with standard input."""
    nodes = [node(asked.registry, asked.beacon, f"many-{i}") for i in range(asked.peers)]
    for at in range(0, len(nodes), AT_ONCE):
        await asyncio.gather(*(n.start() for n in nodes[at : at + AT_ONCE]))
    serving = [asyncio.create_task(serve(n)) for n in nodes]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, *(n.stop() for n in nodes), return_exceptions=True)


async def serve(one: Node) -> None:
    answering = set()
    async for stream in one.listen(PORT):
        task = asyncio.create_task(count(stream))
        answering.add(task)
        task.add_done_callback(answering.discard)


async def count(stream: OverlayStream) -> None:
    """Four bytes tell how many follow."""
    with contextlib.suppress(PilotError):
        while head := await stream.read(4):
            left, total = int.from_bytes(head, "big"), 0
            while left:
                data = await stream.read(min(left, 1 << 20))
                if not data:
                    break
                left, total = left - len(data), zlib.crc32(data, total)
            await stream.write(total.to_bytes(4, "big"))
    stream.close()


async def send(stream: OverlayStream, payload: bytes) -> float:
    """Seconds until the peer has confirmed all of it."""
    started = time.perf_counter()
    await stream.write(len(payload).to_bytes(4, "big"))
    await stream.write(payload)
    if await stream.read(4) != zlib.crc32(payload).to_bytes(4, "big"):
        raise SystemExit("the peer has other bytes")
    stream.close()
    return time.perf_counter() - started


async def measure(asked: argparse.Namespace) -> dict[str, Any]:
    async with node(asked.registry, asked.beacon, "many") as hub:
        before = resident()
        names = [f"many-{i}" for i in range(asked.peers)]
        for name in names:
            await hub.handshake(name, "benchmark")
            if not await hub.wait_for_trust(name):
                raise SystemExit(f"no trust with {name}")
            (await hub.dial(name, PORT)).close()
        await asyncio.sleep(SETTLE_S)
        met = resident()
        streams = [await hub.dial(name, PORT) for _ in range(asked.streams) for name in names]
        opened = resident()
        payload = os.urandom(asked.megabytes << 20)
        cpu, started = time.process_time(), time.perf_counter()
        sending = [asyncio.create_task(send(stream, payload)) for stream in streams]
        peak = opened
        while not all(task.done() for task in sending):
            peak = max(peak, resident())
            await asyncio.wait(sending, timeout=0.05)
        took = sorted(task.result() for task in sending)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        size = len(payload) * len(streams)
        return {
            "peers": asked.peers,
            "streams": len(streams),
            "gbit_per_s": 8 * size / seconds / 1e9,
            "cpu_s_per_gb": cpu / size * 1e9,
            "bytes_per_peer": (met - before) / asked.peers,
            "bytes_per_open_stream": (opened - met) / len(streams),
            "bytes_per_sending_stream": (peak - met) / len(streams),
            "first_done_s": took[0],
            "median_done_s": took[len(took) // 2],
            "last_done_s": took[-1],
        }


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Starts the rendezvous and the other process, measures, ends both."""
    asked.registry = f"127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    asked.beacon = f"127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with tempfile.TemporaryDirectory() as home:
        os.environ["PILOT_HOME"] = os.environ["HOME"] = home
        log = Path(home) / "rendezvous.log"
        flags = ["-registry-addr", asked.registry, "-beacon-addr", asked.beacon, "-registration-rate", "100000"]
        with log.open("w") as out:
            rendezvous = subprocess.Popen([str(BIN / "pilot-rendezvous"), *flags], stdout=out, stderr=out)
        others = None
        try:
            end = time.monotonic() + 20
            while "beacon listening" not in log.read_text():
                if time.monotonic() > end:
                    raise SystemExit(f"no rendezvous: {log.read_text()[-400:]}")
                time.sleep(0.05)
            words = [__file__, "--peers", str(asked.peers), "--registry", asked.registry, "--beacon", asked.beacon, "--others"]
            others = subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert others.stdout and others.stdin
            if others.stdout.readline() != "ready\n":
                raise SystemExit("the peers did not start")
            return asyncio.run(measure(asked))
        finally:
            if others:
                others.communicate(timeout=60)
            rendezvous.terminate()
            rendezvous.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--streams", type=int, default=10, help="to each peer")
    parser.add_argument("--megabytes", type=int, default=1, help="on each stream")
    parser.add_argument("--json", type=Path)
    for hidden in ("--registry", "--beacon"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--others", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.others:
        asyncio.run(peers(asked))
        return
    found = run(asked)
    for key, value in found.items():
        print(f"{key.replace('_', ' '):26}{value:>14,.4g}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
