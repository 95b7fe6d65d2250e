"""One end of a measurement, with a thread for each stream: obeys one line of JSON at a time on its standard input.

    python -m net.driver TRANSPORT server|client [options]

Replies carry what ends.Spent says.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from net import ends
from net.ends import CHUNK, FIRST, Stream, Transport

BLOCK = bytes(CHUNK)


def main() -> int:
    parser = ends.arguments(__doc__)
    args = parser.parse_args()
    transport: Transport = ends.load(args.transport)(args)
    ends.say({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        spent = ends.Spent()
        try:
            reply = COMMANDS[command.pop("op")](transport, **command)
        except Exception as error:
            traceback.print_exc()
            ends.say({"error": f"{args.transport} {args.role}: {type(error).__name__}: {error}"})
            continue
        ends.say(reply | spent.figures())
    os._exit(0)


def each(work: Callable[[Stream], Any], streams: list[Stream]) -> list[Any]:
    """`work` on every stream at once, a thread each; the results in order."""
    out: list[Any] = [None] * len(streams)
    failed: list[BaseException] = []

    def run(i: int) -> None:
        try:
            out[i] = work(streams[i])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(streams))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return out


def drain(stream: Stream, window: Sequence[float] = (0.0, 0.0)) -> tuple[int, float, float, int]:
    """(bytes, when the first came, when the last came, bytes that came so long after the first)."""
    buffer = bytearray(1 << 20)
    total, first, last, inside = 0, 0.0, 0.0, 0
    while n := stream.recv_into(buffer):
        last = time.monotonic()
        first = first or last
        total += n
        if window[0] <= last - first < window[1]:
            inside += n
    stream.close()
    return total, first, last, inside


def fill(stream: Stream, seconds: float, total: int) -> int:
    """Sends for so long, or so much if `total`."""
    block = memoryview(BLOCK)
    sent, end = 0, time.monotonic() + seconds
    while sent < total if total else time.monotonic() < end:
        piece = block[: total - sent] if total else block
        stream.sendall(piece)
        sent += len(piece)
    stream.close()
    return sent


def sink(transport: Transport, streams: int = 1, window: Sequence[float] = (0.0, 0.0)) -> dict[str, Any]:
    got = each(lambda s: drain(s, window), [transport.accept() for _ in range(streams)])
    seconds = max(g[2] for g in got) - min(g[1] for g in got)
    return {"bytes": sum(g[0] for g in got), "seconds": seconds, "window_bytes": sum(g[3] for g in got)}


def source(transport: Transport, streams: int = 1, seconds: float = 1.0, total: int = 0) -> dict[str, Any]:
    """total: bytes of each stream, instead of a time."""
    opened = [transport.connect() for _ in range(streams)]
    return {"bytes": sum(each(lambda s: fill(s, seconds, total), opened))}


def duplex(transport: Transport, seconds: float, server: bool) -> dict[str, Any]:
    """A stream each way at once. The reply counts what came in."""
    first, second = (transport.accept(), transport.accept()) if server else (transport.connect(), transport.connect())
    incoming, outgoing = (first, second) if server else (second, first)
    outgoing.sendall(FIRST)
    got: list[tuple[int, float, float, int]] = []
    reading = threading.Thread(target=lambda: got.append(drain(incoming)))
    reading.start()
    fill(outgoing, seconds, 0)
    reading.join()
    return {"bytes": got[0][0], "seconds": got[0][2] - got[0][1]}


def echo(transport: Transport, streams: int = 1) -> dict[str, Any]:
    """Sends back what comes, stream after stream."""
    buffer = bytearray(64 << 10)
    view = memoryview(buffer)
    count = 0
    for _ in range(streams):
        stream = transport.accept()
        while n := stream.recv_into(buffer):
            stream.sendall(view[:n])
            count += 1
        stream.close()
    return {"messages": count}


def rtt(transport: Transport, count: int, size: int = 64, pause: float = 0.0) -> dict[str, Any]:
    """Round trips on one stream, microseconds each. pause: seconds between them."""
    stream = transport.connect()
    message, buffer = bytes(size), bytearray(size)
    samples = []
    for i in range(count + count // 10):
        start = time.perf_counter_ns()
        stream.sendall(message)
        left = size
        while left:
            n = stream.recv_into(buffer)
            if not n:
                raise EOFError("the echo ended")
            left -= n
        if i >= count // 10:  # the first are for warming up
            samples.append((time.perf_counter_ns() - start) / 1000)
        if pause:
            time.sleep(pause)
    stream.close()
    return {"us": samples}


def dial(transport: Transport, count: int, cold: bool = False) -> dict[str, Any]:
    """From the wish to connect: open_ms until that is answered, ms until the first echoed byte. cold: nothing stands
    yet, as is always so here."""
    buffer = bytearray(1)
    samples, opened = [], []
    for _ in range(count):
        start = time.perf_counter_ns()
        stream = transport.connect()
        opened.append((time.perf_counter_ns() - start) / 1e6)
        stream.sendall(FIRST)
        if not stream.recv_into(buffer):
            raise EOFError("the echo ended")
        samples.append((time.perf_counter_ns() - start) / 1e6)
        stream.close()
    return {"open_ms": opened, "ms": samples}


def path(transport: Transport) -> dict[str, Any]:
    return {"path": transport.path()}


def send_datagrams(transport: Transport, seconds: float, size: int) -> dict[str, Any]:
    data, count, end = bytes(size), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(16):
            transport.send_datagram(data)
        count += 16
    return {"count": count}


def count_datagrams(transport: Transport, patience: float) -> dict[str, Any]:
    """Until none came for `patience` seconds after the first."""
    count, first, last = 0, 0.0, 0.0
    while transport.recv_datagram(patience if count else 30.0):
        last = time.monotonic()
        first = first or last
        count += 1
    return {"count": count, "seconds": last - first}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "sink": sink, "source": source, "duplex": duplex, "echo": echo, "rtt": rtt, "dial": dial, "path": path,
    "send_datagrams": send_datagrams, "count_datagrams": count_datagrams,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
