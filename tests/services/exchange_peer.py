"""A peer of the data exchange: sends bytes, reads frames, looks at what lies on the receiver's disk."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from memstream import PipeEnd, pipe, serve

from pilot.services.dataexchange import DataExchange
from pilot.wire import services as wire

LIMIT_S = 20.0


class Receiver:
    """A data exchange and its events."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.home = home
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.service = DataExchange(home, lambda event, data: self.events.append((event, data)), **options)
        self.tasks: list[asyncio.Task[None]] = []

    def connect(self, node: int = 2, segment: int = 0) -> Peer:
        ours, theirs = pipe(node, 1, wire.PORT_EXCHANGE, segment=segment)
        self.tasks.append(asyncio.ensure_future(serve(self.service.serve, theirs)))
        return Peer(ours, self.tasks[-1])

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.service.close()

    def received(self) -> list[Path]:
        return _files(self.home / "received")

    def partials(self) -> dict[str, int]:
        return {p.name: p.stat().st_size for p in _files(self.home / "received" / ".partial")}

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_bytes()) for p in _files(self.home / "inbox")]

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


class Peer:
    """One stream to a receiver."""

    def __init__(self, stream: PipeEnd, task: asyncio.Task[None]) -> None:
        self.stream = stream
        self.task = task
        self._reader = wire.FrameReader()
        self._ready: list[tuple[int, bytes]] = []

    async def send(self, data: bytes) -> None:
        await self.stream.write(data)

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(LIMIT_S):
            while not self._ready:
                data = await self.stream.read()
                assert data, "the receiver ended the stream"
                self._ready = self._reader.feed(data)
            return self._ready.pop(0)

    async def ask(self, data: bytes) -> str:
        """Sends one frame; the text of its answer."""
        await self.send(data)
        kind, payload = await self.frame()
        assert kind == wire.FrameType.TEXT
        return payload.decode()

    async def stream_frame(self) -> wire.StreamFrame:
        kind, payload = await self.frame()
        assert kind == wire.FrameType.FILESTREAM, payload
        return wire.parse_stream(payload)

    async def leave(self) -> None:
        """Ends the stream and waits for the receiver's side of it."""
        self.stream.close()
        await self.done()

    async def lose(self) -> None:
        """The connection dies."""
        self.stream.abort()
        await self.done()

    async def done(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.task

    async def is_cut(self) -> bool:
        """The receiver reset the stream."""
        async with asyncio.timeout(LIMIT_S):
            with contextlib.suppress(ConnectionResetError):
                while await self.stream.read():
                    pass
        return self.stream.was_reset

    # ---- FILESTREAM ----

    async def offer(self, name: str, content: bytes) -> int:
        """INIT; the offset of INIT-ACK."""
        await self.send(wire.Init(len(content), hashlib.sha256(content).digest(), name).build())
        frame = await self.stream_frame()
        assert frame.kind is wire.StreamKind.INIT_ACK, frame.text
        return frame.offset

    async def push(self, content: bytes, start: int, end: int, step: int = wire.CHUNK_BYTES) -> None:
        """Chunks of content[start:end] and their acknowledgements."""
        for at in range(start, end, step):
            await self.send(chunk(content, at, min(at + step, end)))
            frame = await self.stream_frame()
            assert (frame.kind, frame.offset) == (wire.StreamKind.ACK, min(at + step, end)), frame.text

    async def finish(self, content: bytes) -> wire.StreamFrame:
        """DONE; the answer."""
        await self.send(wire.done(transfer_id(content)))
        return await self.stream_frame()

    async def transfer(self, name: str, content: bytes) -> wire.StreamFrame:
        """A whole transfer; its COMPLETE."""
        start = await self.offer(name, content)
        await self.push(content, start, len(content))
        return await self.finish(content)


def transfer_id(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


def chunk(content: bytes, start: int, end: int) -> bytes:
    return wire.chunk_head(transfer_id(content), start, end - start) + content[start:end]


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.is_file()) if directory.is_dir() else []


@contextlib.asynccontextmanager
async def receiver(home: Path, **options: Any) -> AsyncIterator[Receiver]:
    r = Receiver(home, **options)
    try:
        yield r
    finally:
        await r.close()
