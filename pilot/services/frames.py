"""Frames of a stream without holding them: a payload is read in pieces as the bytes arrive.

Memory per stream is one read (READ_BYTES), whatever a frame announces. A stream that is silent for IDLE_S raises
TimeoutError, one that ends inside a frame asyncio.IncompleteReadError; the hub resets it then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from pilot.wire.errors import WireError

IDLE_S = 120.0
READ_BYTES = 256 << 10


class ByteStream(Protocol):
    """What services use of a stream (pilot.services.stream.OverlayStream)."""

    @property
    def node(self) -> int: ...
    @property
    def remote_net(self) -> int: ...
    @property
    def remote_port(self) -> int: ...
    async def read(self, max_bytes: int = READ_BYTES) -> bytes: ...
    async def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class FrameSource:
    """The reading half of a stream."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._data = b""
        self._at = 0

    async def ended(self, idle_s: float | None = IDLE_S) -> bool:
        """Waits for more bytes, at most `idle_s`, None = for ever; True at the end of the stream."""
        if self._at < len(self._data):
            return False
        async with asyncio.timeout(idle_s):
            self._data, self._at = await self._stream.read(READ_BYTES), 0
        return not self._data

    async def some(self, most: int) -> memoryview:
        """The next bytes, 1..most."""
        if await self.ended():
            raise asyncio.IncompleteReadError(b"", most)
        piece = memoryview(self._data)[self._at : self._at + most]
        self._at += len(piece)
        return piece

    async def exactly(self, count: int) -> bytes:
        """`count` bytes; the caller bounds it."""
        if self._at + count <= len(self._data):
            self._at += count
            return self._data[self._at - count : self._at]
        out = bytearray()
        while len(out) < count:
            out += await self.some(count - len(out))
        return bytes(out)


class Payload:
    """The payload of one frame; what the reader leaves is skipped by `skip`. `left`: bytes not read."""

    def __init__(self, source: FrameSource, size: int) -> None:
        self._source = source
        self.left = size

    async def exactly(self, count: int) -> bytes:
        """`count` bytes; WireError if the payload is shorter."""
        if count > self.left:
            raise WireError("short")
        data = await self._source.exactly(count)
        self.left -= count
        return data

    async def pieces(self) -> AsyncIterator[memoryview]:
        """The rest, as it arrives."""
        while self.left:
            piece = await self._source.some(self.left)
            self.left -= len(piece)
            yield piece

    async def skip(self, count: int | None = None) -> None:
        """Reads and forgets `count` bytes, all that is left without one."""
        keep = 0 if count is None else max(0, self.left - count)
        while self.left > keep:
            self.left -= len(await self._source.some(self.left - keep))
