"""Receiving chunked files, FILESTREAM (services.md section 3; docs/wire-extensions.md section 6).

One transfer per stream at a time:

    state      frame      effect
    idle       INIT       partial file opened, INIT-ACK with its size
    receiving  CHUNK      written and hashed in a thread, then ACK
    receiving  DONE       size and SHA-256 checked, file gets its final name, COMPLETE
    receiving  ABORT, end of the stream     the partial file stays, to go on later
    any        what has no place here       ABORT; frames of that transfer are skipped from then on
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

from pilot.services.diskwriter import DiskWriter, Slots
from pilot.services.frames import ByteStream, Payload
from pilot.services.mailbox import Mailbox, StoreError, check_name, reason
from pilot.services.partial import Partial
from pilot.wire import services as wire
from pilot.wire.errors import WireError

MAX_CHUNK = 1 << 20
WINDOW = 32 << 20  # unacknowledged bytes that our own senders may have under way
AHEAD_BYTES = 16 * wire.CHUNK_BYTES  # held of chunks that came before their turn
AHEAD_CHUNKS = 16
MAX_CONTROL = 4096  # bytes of any frame but CHUNK
ROOM = wire.Room(MAX_CHUNK, WINDOW)
T = TypeVar("T")

STALLED_S = 2.0  # without a byte: the sender may come again on another stream, after its daemon died, and goes on

Running = dict[bytes, "FileReceiver"]  # transfer id: who receives it
Stored = Callable[[str, int, Path], None]  # name as sent, bytes, where it lies


class FileReceiver:
    """The FILESTREAM side of one stream. Use it as an async context manager."""

    def __init__(
        self, stream: ByteStream, mailbox: Mailbox, pool: Executor, *, running: Running, slots: Slots, stored: Stored
    ) -> None:
        """running: shared by the streams of the node. slots: transfers that may run. stored: told of each file."""
        self._stream = stream
        self._mailbox = mailbox
        self._pool = pool
        self._others = running
        self._slots = slots
        self._stored = stored
        self._running: _Transfer | None = None
        self._refused = b""  # id of the transfer whose frames are skipped

    async def __aenter__(self) -> FileReceiver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def is_left_by(self, node: int) -> bool:
        """The transfer is of `node`, and nothing came for so long that it may go on elsewhere."""
        return self._stream.node == node and self._running is not None and self._running.is_stalled()

    async def frame(self, payload: Payload) -> None:
        """Takes one FILESTREAM frame. Raises WireError if it is none; ConnectionError."""
        head = await payload.exactly(1 + wire.TRANSFER_ID)
        kind, transfer_id = head[0], head[1:]
        current = self._running if self._running and self._running.id == transfer_id else None
        if kind == wire.StreamKind.CHUNK:
            offset = int.from_bytes(await payload.exactly(8), "big")
            if current is not None:
                await self._guard(current, current.chunk(offset, payload))
            elif transfer_id != self._refused:
                await self._refuse(transfer_id, "no such transfer")
            return
        if payload.left > MAX_CONTROL:
            raise WireError("file transfer: frame too long")
        raw = head + await payload.exactly(payload.left)
        try:
            frame = wire.parse_stream(raw)
        except WireError as e:
            return await self._refuse(transfer_id, e.reason)
        if frame.init is not None:
            await self._begin(transfer_id, frame.init)
        elif frame.kind is wire.StreamKind.ABORT:
            if current is not None:
                await self._end()
        elif frame.kind is wire.StreamKind.DONE:
            if current is not None:
                await self._guard(current, self._complete(current))
            elif transfer_id != self._refused:
                await self._refuse(transfer_id, "no such transfer")

    async def _begin(self, transfer_id: bytes, init: wire.Init) -> None:
        await self._end()
        try:
            check_name(init.name)
            if init.sha256[: wire.TRANSFER_ID] != transfer_id:
                raise StoreError("the transfer id is not that of the content")
            other = self._others.get(transfer_id)
            if other is not None and other.is_left_by(self._stream.node):
                await other._end()
            self._slots.take(self._stream.node)
            try:
                part = await self._in_pool(lambda: self._mailbox.open_transfer(transfer_id, self._stream.node, init.size))
            except BaseException:
                self._slots.give(self._stream.node)
                raise
        except (StoreError, OSError) as e:
            return await self._refuse(transfer_id, reason(e))
        self._refused = b""
        self._running = await _Transfer(self._stream, self._pool, transfer_id, init, part).start()
        self._others.setdefault(transfer_id, self)
        await self._stream.write(wire.init_ack(transfer_id, part.size, ROOM))

    async def _guard(self, transfer: _Transfer, work: Awaitable[None]) -> None:
        """A full disk or a senseless frame ends the transfer, not the stream."""
        try:
            await work
        except (ConnectionError, TimeoutError):
            raise
        except (StoreError, OSError) as e:
            await self._end()
            if transfer.told:
                self._refused = transfer.id
            else:
                await self._refuse(transfer.id, reason(e))

    async def _complete(self, transfer: _Transfer) -> None:
        transfer.all_here = True
        await transfer.drain()
        part, init = transfer.part, transfer.init
        if part.size != init.size:
            await self._end()
            text = f"incomplete: {part.size} of {init.size} bytes"
            return await self._stream.write(wire.complete(transfer.id, 1, text))
        if await self._in_pool(part.digest) != init.sha256:
            await self._end(discard=True)
            return await self._stream.write(wire.complete(transfer.id, 1, "sha256 mismatch"))
        path = await self._in_pool(lambda: self._mailbox.finish(part, init.name))
        await self._end()
        self._stored(init.name, init.size, path)
        await self._stream.write(wire.complete(transfer.id))

    async def _refuse(self, transfer_id: bytes, text: str) -> None:
        self._refused = transfer_id
        await self._stream.write(wire.abort(transfer_id, text))

    async def _end(self, discard: bool = False) -> None:
        transfer, self._running = self._running, None
        if transfer is not None:
            if self._others.get(transfer.id) is self:
                del self._others[transfer.id]
            self._slots.give(self._stream.node)
            await transfer.stop()
            await self._in_pool(lambda: self._mailbox.release(transfer.part, discard=discard))

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


class _Transfer:
    """A transfer under way. `all_here`: its sender has sent DONE. `told`: its sender knows that it has failed."""

    def __init__(self, stream: ByteStream, pool: Executor, transfer_id: bytes, init: wire.Init, part: Partial) -> None:
        self.id = transfer_id
        self.init = init
        self.part = part
        self.all_here = self.told = False
        self._next = part.size  # everything before was given to the writer
        self._clock = asyncio.get_running_loop().time
        self._heard_at = self._clock()
        self._ahead: dict[int, bytes] = {}
        self._writer = DiskWriter(part.write, pool, stream.write, self._failed)
        self._stack = AsyncExitStack()

    async def start(self) -> _Transfer:
        await self._stack.enter_async_context(self._writer)
        return self

    async def stop(self) -> None:
        """Waits for the write under way."""
        await self._stack.aclose()

    def is_stalled(self) -> bool:
        return not self.all_here and self._clock() - self._heard_at > STALLED_S

    async def drain(self) -> None:
        await self._writer.drain()

    def _failed(self, error: Exception) -> bytes:
        """The sender may be waiting for the acknowledgement of its last chunk: it hears at once that there is none."""
        if not isinstance(error, StoreError | OSError) or isinstance(error, ConnectionError | TimeoutError):
            return b""
        self.told = True
        return wire.abort(self.id, reason(error))

    async def chunk(self, offset: int, payload: Payload) -> None:
        """Takes one chunk. Raises StoreError, OSError."""
        size = payload.left
        if offset + size > self.init.size:
            raise StoreError("chunk behind the end of the file")
        if offset > self._next:
            held = sum(map(len, self._ahead.values()))
            if held + size > AHEAD_BYTES or len(self._ahead) >= AHEAD_CHUNKS:
                raise StoreError("too many chunks before their turn")
            self._ahead[offset] = await payload.exactly(size)
        else:
            await payload.skip(min(size, self._next - offset))
            async for piece in payload.pieces():
                self._heard_at = self._clock()
                self._next += len(piece)
                await self._writer.put(piece)
            await self._take_ahead()
        self._writer.note(wire.ack(self.id, self._next))

    async def _take_ahead(self) -> None:
        """Chunks whose turn has come."""
        while ready := [at for at in self._ahead if at <= self._next]:
            at = min(ready)
            rest = memoryview(self._ahead.pop(at))[self._next - at :]
            if rest:
                self._next += len(rest)
                await self._writer.put(rest)
