"""One end of a measurement on an asyncio event loop: for nodes and peers whose interface is asyncio's. Commands as in driver.py.

    python -m net.asyncdriver TRANSPORT server|client [options]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from net import ends
from net.ends import CHUNK, FIRST

BLOCK = bytes(CHUNK)


class Stream(Protocol):
    async def write(self, data: Any) -> None: ...
    async def read(self) -> bytes:
        """b"" at the end."""
        ...

    async def close(self) -> None: ...


class Transport(Protocol):
    async def start(self) -> None: ...
    async def connect(self) -> Stream: ...
    async def accept(self) -> Stream: ...
    async def forget(self) -> None:
        """The next `connect` begins with nothing."""
        ...

    def path(self) -> str: ...


async def run() -> None:
    args = ends.arguments(__doc__).parse_args()
    transport: Transport = ends.load(args.transport)(args)
    await transport.start()
    ends.say({"ready": True})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        spent = ends.Spent()
        try:
            reply = await COMMANDS[command.pop("op")](transport, **command)
        except Exception as error:
            traceback.print_exc()
            ends.say({"error": f"{args.transport} {args.role}: {type(error).__name__}: {error}"})
            continue
        ends.say(reply | spent.figures())
    os._exit(0)


async def drain(stream: Stream) -> tuple[int, float, float]:
    """(bytes, when the first came, when the last came)."""
    total, first, last = 0, 0.0, 0.0
    while data := await stream.read():
        last = time.monotonic()
        first = first or last
        total += len(data)
    await stream.close()
    return total, first, last


async def fill(stream: Stream, seconds: float, total: int) -> int:
    """Sends for so long, or so much if `total`."""
    block = memoryview(BLOCK)
    sent, end = 0, time.monotonic() + seconds
    while sent < total if total else time.monotonic() < end:
        piece = block[: total - sent] if total else block
        await stream.write(piece)
        sent += len(piece)
    await stream.close()
    return sent


async def sink(transport: Transport, streams: int = 1, window: Sequence[float] = ()) -> dict[str, Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(drain(await transport.accept())) for _ in range(streams)]
    got = [task.result() for task in tasks]
    return {"bytes": sum(g[0] for g in got), "seconds": max(g[2] for g in got) - min(g[1] for g in got)}


async def source(transport: Transport, streams: int = 1, seconds: float = 1.0, total: int = 0) -> dict[str, Any]:
    """total: bytes of each stream, instead of a time."""
    opened = [await transport.connect() for _ in range(streams)]
    return {"bytes": sum(await asyncio.gather(*[fill(s, seconds, total) for s in opened]))}


async def echo(transport: Transport, streams: int = 1) -> dict[str, Any]:
    """Sends back what comes, stream after stream."""
    for _ in range(streams):
        stream = await transport.accept()
        while data := await stream.read():
            await stream.write(data)
        await stream.close()
    return {}


async def rtt(transport: Transport, count: int, size: int = 64, pause: float = 0.0) -> dict[str, Any]:
    """Round trips on one stream, microseconds each. pause: seconds between them."""
    stream = await transport.connect()
    message, samples = bytes(size), []
    for i in range(count + count // 10):
        start = time.perf_counter_ns()
        await stream.write(message)
        left = size
        while left:
            data = await stream.read()
            if not data:
                raise EOFError("the echo ended")
            left -= len(data)
        if i >= count // 10:  # the first are for warming up
            samples.append((time.perf_counter_ns() - start) / 1000)
        if pause:
            await asyncio.sleep(pause)
    await stream.close()
    return {"us": samples}


async def dial(transport: Transport, count: int, cold: bool = False) -> dict[str, Any]:
    """From the wish to connect: open_ms until that is answered, ms until the first echoed byte."""
    samples, opened = [], []
    for _ in range(count):
        if cold:
            await transport.forget()
        start = time.perf_counter_ns()
        stream = await transport.connect()
        opened.append((time.perf_counter_ns() - start) / 1e6)
        await stream.write(FIRST)
        if not await stream.read():
            raise EOFError("the echo ended")
        samples.append((time.perf_counter_ns() - start) / 1e6)
        await stream.close()
    return {"open_ms": opened, "ms": samples}


async def path(transport: Transport) -> dict[str, Any]:
    return {"path": transport.path()}


COMMANDS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "sink": sink, "source": source, "echo": echo, "rtt": rtt, "dial": dial, "path": path,
}  # fmt: skip

if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:  # not in the environment of the peers
        asyncio.run(run())
    else:
        uvloop.run(run())
