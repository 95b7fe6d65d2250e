"""One Unix socket to the daemon under asyncio: requests one by one, pushes by the Router, back-pressure.

Requests have no ids: one whose caller has gone (time-out, cancellation) stays in flight, and the next one first takes
its reply. Reading pauses while a stream holds more than SOFT_LIMIT unread bytes and nobody waits for something else;
at HARD_LIMIT it pauses in any case, and whoever waits for something else is told.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pilot.errors import PilotError
from pilot.sdk._faults import disconnected, from_daemon, not_running, timed_out
from pilot.sdk._router import HARD_LIMIT, SOFT_LIMIT, Router, Stream
from pilot.wire import ipc_requests as rq
from pilot.wire.ipc_frames import Cmd
from pilot.wire.ipc_message import Request

WRITE_HIGH = 1 << 20  # bytes queued toward the daemon above which writers wait
_CONNECT_TIMEOUT = 5.0


@asynccontextmanager
async def within(seconds: float | None, label: str) -> AsyncIterator[None]:
    """A time limit whose end is PilotError(timeout). None = no limit."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise timed_out(label, seconds or 0.0) from None


class Link(asyncio.BufferedProtocol):
    """A connected socket. Made by `open`."""

    def __init__(self) -> None:
        self.router = Router()
        self.failed: PilotError | None = None
        self._transport: asyncio.Transport | None = None
        self._lock = asyncio.Lock()  # one request in flight
        self._late = False  # the request in flight has lost its caller
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False
        self._waiting_for: dict[Stream | None, int] = {}

    @classmethod
    async def open(cls, path: str) -> Link:
        """Connects. Raises PilotError: not_running, permission_denied."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await loop.sock_connect(sock, path)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
            _, link = await loop.create_unix_connection(cls, sock=sock)
        except (OSError, TimeoutError) as e:
            sock.close()
            raise not_running(path, e if isinstance(e, OSError) else None) from None
        except BaseException:
            sock.close()
            raise
        return link

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_HIGH)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.router.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.router.buffer_updated(nbytes)
        except PilotError as e:
            self.fail(e)
            return
        while self.router.refused:
            self.send(rq.Close(self.router.refused.pop()).frame())
        self.wake()
        self.regulate()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(disconnected("read"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # ---- state ----

    def fail(self, error: PilotError) -> None:
        """Ends the link: streams end, whoever waits gets the error."""
        if self.failed is None:
            self.failed = error
        for stream in self.router.streams.values():
            stream.ended = True
        self._writable.set()
        self.wake()
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Sends what is queued, then closes; the daemon ends all streams and releases all ports."""
        if self.failed is None:
            self.failed = PilotError("invalid_argument", "the client is closed")
            for stream in self.router.streams.values():
                stream.ended = True
            self._writable.set()
            self.wake()
            if self._transport is not None:
                if self._paused:
                    self._transport.resume_reading()  # a closing transport must see the end of the socket
                self._transport.close()

    def wake(self) -> None:
        """Everybody looks again at what he waits for."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def regulate(self) -> None:
        """Pauses or resumes reading by the memory that unread streams hold."""
        if self._transport is None or self._transport.is_closing():
            return
        heavy = self.router.heavier_than(HARD_LIMIT)
        others = any(n for what, n in self._waiting_for.items())
        if heavy is None and not others:
            heavy = self.router.heavier_than(SOFT_LIMIT)
        if heavy is not None and not self._paused:
            self._transport.pause_reading()
        elif heavy is None and self._paused:
            self._transport.resume_reading()
        self._paused = heavy is not None

    async def until(self, ready: Callable[[], bool], label: str, stream: Stream | None = None) -> None:
        """Waits until `ready()`. Raises why the link failed. stream: the one that is waited for."""
        if ready():
            return
        self._waiting_for[stream] = self._waiting_for.get(stream, 0) + 1
        try:
            self.regulate()
            while not ready():
                if self.failed is not None:
                    raise self.failure(label)
                heavy = self.router.heavier_than(HARD_LIMIT)
                if heavy is not None and heavy is not stream:
                    raise PilotError(
                        "internal",
                        f"connection {heavy.conn_id} holds {heavy.size} unread bytes",
                        "read or close it; waiting for anything else would need more memory",
                    )
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                try:
                    await waiter
                finally:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
        finally:
            self._waiting_for[stream] -= 1
            if not self._waiting_for[stream]:
                del self._waiting_for[stream]

    def failure(self, label: str) -> PilotError:
        """The error of the link for one caller."""
        assert self.failed is not None
        if self.failed.code == "not_running":
            return disconnected(label)
        return PilotError(self.failed.code, self.failed.message, self.failed.hint)

    # ---- sending ----

    def send(self, *parts: bytes | memoryview) -> None:
        """Queues one frame."""
        if self.failed is None and self._transport is not None:
            self._transport.writelines(parts)

    async def drain(self, label: str) -> None:
        """Waits while too much is queued. Raises if the link failed."""
        await self._writable.wait()
        if self.failed is not None:
            raise self.failure(label)

    async def call(self, request: Request, seconds: float | None) -> bytes:
        """A request and the payload of its reply. Raises PilotError with the daemon's text, timeout."""
        frame = request.frame()
        async with within(seconds, request.label), self._lock:
            if self._late:
                self._drop(await self._reply(request.label))
            await self.drain(request.label)
            self.router.begin(request.reply)
            self._late = True
            self.send(frame)
            code, body = await self._reply(request.label)
        if code == Cmd.ERROR:
            raise from_daemon(request.label, body)
        return body

    async def _reply(self, label: str) -> tuple[int, bytes]:
        await self.until(lambda: self.router.reply is not None, label)
        reply = self.router.reply
        assert reply is not None
        self.router.reply = None
        self.router.settle()
        self._late = False
        return reply

    def _drop(self, reply: tuple[int, bytes]) -> None:
        """A reply whose caller has gone; a connection it brings is closed."""
        code, body = reply
        if code == Cmd.DIAL_OK:
            self.forget(self.router.streams[int.from_bytes(body[:4], "big")])
        elif code == Cmd.BIND_OK:
            self.router.accepts.pop(int.from_bytes(body[:2], "big"), None)

    def forget(self, stream: Stream) -> None:
        """Closes a stream."""
        self.router.forget(stream.conn_id)
        stream.parts.clear()
        stream.size = 0
        self.send(rq.Close(stream.conn_id).frame())
        self.wake()
        self.regulate()
