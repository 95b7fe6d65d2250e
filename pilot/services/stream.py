"""Streams for Python code of the node: asyncio over connections of the native data plane.

StreamHub turns data-plane events into streams: `listen` runs a handler per inbound stream, `dial` opens
one. Bytes
wait in the native buffers until they are read, so a slow handler slows its peer and costs Python nothing.
All methods belong to the event loop that feeds `handle`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from pilot._core import (
    DIAL_NO_KEY,
    DIAL_REFUSED,
    EV_ACCEPT,
    EV_CONN_CLOSED,
    EV_CONN_FAILED,
    EV_CONN_OPEN,
    EV_READABLE,
    EV_WRITABLE,
    OWNER_APP,
    CoreError,
    Event,
)
from pilot.errors import PilotError

READ_BYTES = 256 << 10
T = TypeVar("T")
_EEXIST = -9


class Plane(Protocol):
    """What a hub needs of a data plane (pilot._core: DataPlane or Engine)."""

    def listen(self, port: int, owner: int, client: int = 0, open_port: bool = False) -> None: ...
    def unlisten(self, port: int) -> None: ...
    def dial(
        self,
        node: int,
        port: int,
        *,
        local_net: int = 0,
        remote_net: int = 0,
        client: int = 0,
        timeout: float = 30.0,
    ) -> int: ...
    def own(self, conn: int, owner: int, client: int = 0) -> None: ...
    def write(self, conn: int, data: bytes | bytearray | memoryview) -> int: ...
    def read(self, conn: int, max_bytes: int = 65536) -> bytes | None: ...
    def read_into(self, conn: int, buffer: bytearray | memoryview) -> int | None: ...
    def unacked(self, conn: int) -> int: ...
    def close(self, conn: int) -> None: ...
    def abort(self, conn: int) -> None: ...


class DialError(PilotError):
    """A dial failed. The texts are those of ipc.md section 2: clients know some of them."""

    def __init__(self, reason: int, node: int) -> None:
        if reason == DIAL_REFUSED:
            super().__init__("connection_failed", "connection refused", "nothing listens on that port")
        elif reason == DIAL_NO_KEY:
            text = f"dial timeout: key exchange with node {node} did not finish"
            super().__init__("timeout", text, "is the peer online?", retryable=True)
        else:
            super().__init__("timeout", "dial timeout", "is the peer online, and does it trust you?", True)


class OverlayStream:
    """One stream. `node`, `remote_net`, `remote_port`: the peer; `local_port`: ours. One reader and one
    writer at a time."""

    def __init__(self, hub: StreamHub, plane: Plane, ev: Event) -> None:
        self._hub = hub
        self._plane = plane
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._reset: bool | None = None  # None while the connection lives
        self._closed = False
        self.conn = ev.conn
        self.node = ev.node
        self.local_net = ev.local_net
        self.local_port = ev.local_port
        self.remote_net = ev.remote_net
        self.remote_port = ev.remote_port

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """The next bytes, at most `max_bytes`; b"" after the peer's end. ConnectionResetError if the
        stream died."""
        return await self._read(lambda: self._plane.read(self.conn, max_bytes), b"")

    async def read_into(self, buffer: bytearray | memoryview) -> int:
        """The next bytes, into `buffer` (writable, not empty): how many; 0 after the peer's end. ConnectionResetError."""
        return await self._read(lambda: self._plane.read_into(self.conn, buffer), 0)

    async def _read(self, take: Callable[[], T | None], end: T) -> T:
        while not self._closed:
            self._readable.clear()
            try:
                got = take()
            except CoreError:
                if self._reset is None:  # gone already; the event that says how is on its way
                    await self._readable.wait()
                if self._reset:
                    raise ConnectionResetError(f"stream {self.conn} was reset") from None
                return end
            if got is not None:
                return got
            await self._readable.wait()
        raise ConnectionResetError(f"stream {self.conn} is closed")

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Returns once the data plane has taken all of `data` (which it sends by itself).
        ConnectionResetError."""
        view = memoryview(data)
        while len(view):
            if self._closed or self._reset is not None:
                raise ConnectionResetError(f"stream {self.conn} is closed")
            self._writable.clear()
            try:
                view = view[self._plane.write(self.conn, view) :]
            except CoreError as e:
                raise ConnectionResetError(f"stream {self.conn}: {e.name}") from None
            if len(view):
                await self._writable.wait()

    @property
    def unacked(self) -> int:
        """Bytes written that the peer has not acknowledged."""
        with contextlib.suppress(CoreError):
            return self._plane.unacked(self.conn)
        return 0

    def close(self) -> None:
        """Orderly end: what was written still arrives, then FIN. Later reads and writes fail."""
        if not self._finish():
            self._plane.close(self.conn)

    def abort(self) -> None:
        """Resets the stream; unsent bytes are dropped."""
        if not self._finish():
            self._plane.abort(self.conn)

    def _finish(self) -> bool:
        """Marks the stream closed; True if there is nothing left to tell the data plane."""
        if self._closed:
            return True
        self._closed = True
        self._hub.forget(self.conn)
        self._wake()
        return self._reset is not None

    def _wake(self) -> None:
        self._readable.set()
        self._writable.set()

    def on_event(self, ev: Event) -> None:
        """Called by the hub."""
        if ev.type == EV_READABLE:
            self._readable.set()
        elif ev.type == EV_WRITABLE:
            self._writable.set()
        else:
            self._reset = bool(ev.a)
            self._wake()


Handler = Callable[[OverlayStream], Awaitable[None]]


class StreamHub:
    """Streams and dials of one data plane. Feed every event to `handle`; the ones it does not know it
    leaves."""

    def __init__(self, plane: Plane, on_error: Callable[[int, Exception], None]) -> None:
        """on_error(port, exception): a handler failed with something other than a lost connection."""
        self._plane = plane
        self._on_error = on_error
        self._streams: dict[int, OverlayStream] = {}
        self._dials: dict[int, asyncio.Future[Event]] = {}
        self._handlers: dict[int, Callable[[OverlayStream], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ports(self) -> frozenset[int]:
        """Ports that Python handlers listen on."""
        return frozenset(self._handlers)

    def listen(self, port: int, handler: Handler, *, open_port: bool = False) -> None:
        """Runs `handler(stream)` as a task per inbound stream; the stream is closed when it returns.

        open_port: strangers with a session may connect. Raises PilotError(already_exists) if the port is
        taken.
        """

        def serve(stream: OverlayStream) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(handler, stream))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self.listen_raw(port, serve, open_port=open_port)

    def listen_raw(self, port: int, arrived: Callable[[OverlayStream], None], *, open_port: bool = False) -> None:
        """Calls `arrived(stream)` per inbound stream, which is the callee's to close. Otherwise as `listen`."""
        try:
            self._plane.listen(port, OWNER_APP, 0, open_port)
        except CoreError as e:
            if e.code == _EEXIST:
                raise PilotError("already_exists", f"port {port} already bound") from None
            raise
        self._handlers[port] = arrived

    def unlisten(self, port: int) -> None:
        """Frees a port; streams already open go on."""
        if self._handlers.pop(port, None):
            self._plane.unlisten(port)

    async def dial_conn(
        self,
        node: int,
        port: int,
        *,
        local_net: int = 0,
        remote_net: int = 0,
        client: int = 0,
        timeout: float = 30.0,  # noqa: ASYNC109
    ) -> Event:
        """Opens a connection and leaves it parked: the CONN_OPEN event, whose `conn` the caller gives an
        owner.

        Raises DialError, or CoreError when a limit is reached. Cancelling it ends the dial.
        """
        conn = self._plane.dial(node, port, local_net=local_net, remote_net=remote_net, client=client, timeout=timeout)
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._dials[conn] = future
        try:
            ev = await future
        except asyncio.CancelledError:
            self._plane.abort(conn)
            raise
        finally:
            self._dials.pop(conn, None)
        if ev.type == EV_CONN_FAILED:
            raise DialError(ev.a, node)
        return ev

    async def dial(
        self,
        node: int,
        port: int,
        *,
        local_net: int = 0,
        remote_net: int = 0,
        timeout: float = 30.0,  # noqa: ASYNC109
    ) -> OverlayStream:
        """Opens a stream for Python. Raises as `dial_conn`."""
        ev = await self.dial_conn(node, port, local_net=local_net, remote_net=remote_net, timeout=timeout)
        return self.adopt(ev)

    def handle(self, ev: Event) -> bool:
        """Takes one data-plane event; False if it belongs to somebody else (a local client's connection,
        a peer)."""
        if ev.type in (EV_READABLE, EV_WRITABLE, EV_CONN_CLOSED):
            stream = self._streams.get(ev.conn)
            if stream is None:
                return False
            if ev.type == EV_CONN_CLOSED:
                del self._streams[ev.conn]
            stream.on_event(ev)
            return True
        if ev.type in (EV_CONN_OPEN, EV_CONN_FAILED):
            future = self._dials.get(ev.conn)
            if future is not None and not future.done():
                future.set_result(ev)
            elif ev.type == EV_CONN_OPEN:  # its dial was cancelled meanwhile
                self._plane.abort(ev.conn)
            return True
        if ev.type == EV_ACCEPT and ev.local_port in self._handlers:
            try:
                stream = self.adopt(ev)
            except CoreError:  # reset before we got to it
                return True
            self._handlers[ev.local_port](stream)
            return True
        return False

    def forget(self, conn: int) -> None:
        """The stream of `conn` wants no more events."""
        self._streams.pop(conn, None)

    async def close(self) -> None:
        """Frees the ports, ends handlers and their streams, fails dials."""
        for port in list(self._handlers):
            self.unlisten(port)
        for future in self._dials.values():
            future.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in list(self._streams.values()):
            stream.close()

    def adopt(self, ev: Event) -> OverlayStream:
        """The stream of a connection that was dialled or accepted, Python's from now on. CoreError if it is gone."""
        stream = OverlayStream(self, self._plane, ev)
        self._streams[ev.conn] = stream
        try:
            self._plane.own(ev.conn, OWNER_APP)
        except CoreError:
            del self._streams[ev.conn]
            raise
        return stream

    async def _serve(self, handler: Handler, stream: OverlayStream) -> None:
        try:
            await handler(stream)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            stream.abort()
        except Exception as e:
            stream.abort()
            self._on_error(stream.local_port, e)
        finally:
            stream.close()
