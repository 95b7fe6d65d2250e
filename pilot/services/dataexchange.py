"""Data exchange, port 1001: messages into the inbox, files into received/ (services.md section 3).

Every frame but FILESTREAM is answered by one frame; "ACK" says that the content is on disk. A frame is never held
in memory as a whole, and a file never on disk under its final name before it is whole. Disk work has its own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from pilot.files import make_private_dir
from pilot.services.diskwriter import DiskWriter, Slots, Space
from pilot.services.filestream import MAX_CHUNK, FileReceiver, Running
from pilot.services.frames import ByteStream, FrameSource, Payload
from pilot.services.inbox import MAX_BYTES as INBOX_BYTES
from pilot.services.mailbox import Mailbox, StoreError, check_name, reason
from pilot.wire import services as wire
from pilot.wire.address import Address
from pilot.wire.errors import WireError
from pilot.wire.services import FrameType

if TYPE_CHECKING:
    from pilot.services.stream import StreamHub

log = logging.getLogger(__name__)

THREADS = 4
MAX_WRITERS = 64  # files and long messages that arrive at the same time; each takes about 4 MiB of memory
MAX_WRITERS_NODE = 48  # of one peer: the others find a place whatever it does
IN_MEMORY = 64 << 10  # a message up to this size needs no file before it is stored
SWEEP_S = 3600.0

MESSAGES = (FrameType.TEXT, FrameType.BINARY, FrameType.JSON)
T = TypeVar("T")


class DataExchange:
    """The service of one node."""

    def __init__(
        self,
        home: Path,
        emit: Callable[[str, Mapping[str, Any]], None],
        *,
        max_frame: int = wire.MAX_FRAME,
        received_quota: int = 2 << 30,
        base64_always: bool = False,
    ) -> None:
        """home: where `received` and `inbox` are. emit: events for the webhook. max_frame: bytes of the largest
        frame taken. received_quota: bytes, 0 = what is free. base64_always: how messages are stored."""
        self.emit = emit
        self.max_frame = max_frame
        self.mailbox = Mailbox(home, received_quota=received_quota, base64_always=base64_always, on_full=self._full)
        self.pool = ThreadPoolExecutor(THREADS, "dataexchange")
        self.slots = Slots(MAX_WRITERS, MAX_WRITERS_NODE)
        self._transfers: Running = {}
        self.spool = Space(INBOX_BYTES, INBOX_BYTES // 4 * 3)  # bytes of long messages that are arriving
        self._loop = asyncio.get_running_loop()
        self._hub: StreamHub | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def start(self, hub: StreamHub) -> None:
        """Listens on port 1001. Raises PilotError(already_exists) if it is taken."""
        hub.listen(wire.PORT_EXCHANGE, self.serve)
        self._hub = hub
        self._sweeper = self._loop.create_task(self._sweep())

    async def close(self) -> None:
        """Ends it. Close the hub first: its streams write their last bytes while they end."""
        if self._hub is not None:
            self._hub.unlisten(wire.PORT_EXCHANGE)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.to_thread(self.pool.shutdown)

    async def serve(self, stream: ByteStream) -> None:
        """Runs one inbound stream to its end."""
        files = FileReceiver(stream, self.mailbox, self.pool, running=self._transfers, slots=self.slots, stored=self.stored)
        async with files:
            await _Conversation(self, stream, files).run()

    async def in_pool(self, work: Callable[..., T], *args: Any) -> T:
        """Runs blocking work on the disk."""
        return await self._loop.run_in_executor(self.pool, work, *args)

    def stored(self, name: str, size: int, path: Path) -> None:
        """A file is there."""
        self.emit("file.received", {"filename": name, "size": size, "path": str(path)})

    def _full(self, event: str, data: Mapping[str, int]) -> None:
        log.warning(event, extra={"data": dict(data)})
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self.emit, event, data)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.in_pool(self.mailbox.sweep)
            except OSError as e:
                log.warning("partial files could not be swept", extra={"reason": e.strerror})
            await asyncio.sleep(SWEEP_S)


class _Ids(NamedTuple):
    """Of a TAGGED message."""

    message_id: str = ""
    reply_to: str = ""


_NO_IDS = _Ids()


class _Conversation:
    """Frames of one stream and their answers."""

    def __init__(self, service: DataExchange, stream: ByteStream, files: FileReceiver) -> None:
        self._service = service
        self._stream = stream
        self._files = files
        self._source = FrameSource(stream)

    async def run(self) -> None:
        """To the end of the stream. ConnectionError, TimeoutError, IncompleteReadError: it has to be reset."""
        while not await self._source.ended():
            head = await self._source.exactly(8)
            kind, size = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
            if size > (MAX_CHUNK + wire.CHUNK_HEAD if kind == FrameType.FILESTREAM else self._service.max_frame):
                raise ConnectionAbortedError(f"frame of {size} bytes")
            payload = Payload(self._source, size)
            answer = await self._frame(kind, payload)
            await payload.skip()
            if answer:
                await self._stream.write(answer)

    async def _frame(self, kind: int, payload: Payload) -> bytes:
        """The frame that answers; b"" for FILESTREAM, which answers by itself."""
        try:
            if kind == FrameType.FILESTREAM:
                await self._files.frame(payload)
                return b""
            if kind == FrameType.TRACE:
                return await self._trace(payload)
            if kind == FrameType.TAGGED:
                inner, ids = await self._tag(payload)
                if inner == FrameType.TRACE:
                    return await self._trace(payload, ids)
                answer = await self._content(inner, payload, ids)
            else:
                answer = await self._content(kind, payload)
        except WireError as e:
            if kind == FrameType.FILESTREAM:
                raise ConnectionAbortedError(e.reason) from None
            answer = wire.err_text(kind, e.reason)
        return wire.encode(FrameType.TEXT, answer)

    async def _trace(self, payload: Payload, ids: _Ids = _NO_IDS) -> bytes:
        received = time.time_ns()
        trace = wire.parse_trace(await payload.exactly(12))
        ack = await self._content(trace.kind, payload, ids)
        times = {
            "sent_at_ns": trace.sent_at_ns,
            "received_at_ns": received,
            "inbox_written_at_ns": time.time_ns(),
            "ack_sent_at_ns": time.time_ns(),
            "inner_ack": ack.decode(),
        }
        return wire.encode(FrameType.JSON, json.dumps(times, separators=(",", ":")).encode())

    async def _tag(self, payload: Payload) -> tuple[int, _Ids]:
        """Type of the inner frame, whose content follows, and its ids."""
        size = await payload.exactly(2)
        count = int.from_bytes(size, "big")
        if not 1 <= count <= wire.MAX_TAG_HEADER:
            raise WireError("tagged: header of impossible length")
        tagged = wire.parse_tagged(size + await payload.exactly(count + 4))
        return tagged.kind, _Ids(tagged.message_id, tagged.reply_to)

    async def _content(self, kind: int, payload: Payload, ids: _Ids = _NO_IDS) -> bytes:
        """Stores a message or a file; the text of the answer."""
        if kind not in (*MESSAGES, FrameType.FILE):
            known = kind in FrameType.__members__.values()
            return f"ERR {wire.type_name(kind)} {'not allowed inside another frame' if known else 'not supported'}".encode()
        try:
            if kind == FrameType.FILE:
                return await self._file(payload)
            return await self._message(kind, payload, ids)
        except (ConnectionError, TimeoutError):
            raise
        except (StoreError, OSError) as e:
            return wire.err_text(kind, reason(e))

    # ---- messages ----

    async def _message(self, kind: int, payload: Payload, ids: _Ids) -> bytes:
        size, name = payload.left, wire.type_name(kind)
        sender = str(Address(self._stream.remote_net, self._stream.node))
        if size <= IN_MEMORY:
            body = io.BytesIO(await payload.exactly(size))
            await self._store(name, sender, body, ids)
        else:
            await self._spool(name, sender, payload, ids)
        fields = {"type": name, "from": sender, "size": size}
        self._service.emit("message.received", fields | ({"message_id": ids.message_id} if ids.message_id else {}))
        return wire.ack_text(kind, size)

    async def _spool(self, name: str, sender: str, payload: Payload, ids: _Ids) -> None:
        """A long message goes through a nameless file: how to write it is known only at its end."""
        service, node = self._service, self._stream.node
        if payload.left > service.spool.per_node:
            raise StoreError("too long for the inbox")
        with service.slots.one(node), service.spool.some(node) as take:
            body = await service.in_pool(self._open_spool)
            with body:
                async with DiskWriter(body.writelines, service.pool) as writer:
                    async for piece in payload.pieces():
                        take(len(piece))
                        await writer.put(piece)
                    await writer.drain()
                await self._store(name, sender, body, ids)

    def _open_spool(self) -> IO[bytes]:
        import tempfile  # with shutil and its compressors 1 MB, for long messages only

        path = self._service.mailbox.inbox.path
        make_private_dir(path)
        return tempfile.TemporaryFile(dir=path)

    async def _store(self, name: str, sender: str, body: IO[bytes], ids: _Ids) -> None:
        store = partial(self._service.mailbox.store_message, message_id=ids.message_id, reply_to=ids.reply_to)
        await self._service.in_pool(store, name, sender, body)

    # ---- files ----

    async def _file(self, payload: Payload) -> bytes:
        service = self._service
        raw = await payload.exactly(int.from_bytes(await payload.exactly(2), "big"))
        size = payload.left
        if raw:
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                raise StoreError("file name is not UTF-8") from None
            check_name(name)
            with service.slots.one(self._stream.node):
                part = await service.in_pool(service.mailbox.open_file, self._stream.node, size)
                whole = False
                try:
                    async with DiskWriter(part.write, service.pool) as writer:
                        async for piece in payload.pieces():
                            await writer.put(piece)
                        await writer.drain()
                    path = await service.in_pool(service.mailbox.finish, part, name)
                    whole = True
                finally:
                    await service.in_pool(partial(service.mailbox.release, part, discard=not whole))
            service.stored(name, size, path)
        return wire.ack_text(FrameType.FILE, size)
