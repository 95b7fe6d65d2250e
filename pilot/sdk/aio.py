"""Client: the local daemon under asyncio (ipc.md). Everything of LocalClient, as coroutines.

Each dialled stream and each listener has a socket of its own: a slow dial delays nothing else, and a stream that
nobody reads holds up only itself. Requests share one socket and go one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from pilot.errors import PilotError
from pilot.sdk._aio_commands import AioCommands
from pilot.sdk._link import Link
from pilot.sdk._router import AcceptQueue, DatagramQueue, Stream, send_head
from pilot.sdk._socket import default_socket
from pilot.sdk.client import DIAL_TIMEOUT, LocalClient
from pilot.sdk.streams import WRITE_FRAME, Datagram
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address, split_target
from pilot.wire.ipc_message import Request

T = TypeVar("T")


class Client(AioCommands):
    """A connection to the daemon. `async with Client() as client:`, or `await Client.connect()` and `close`."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or default_socket()
        self._requests: Link | None = None
        self._links: set[Link] = set()

    @classmethod
    async def connect(cls, path: str | None = None) -> Client:
        """A connected client. Raises PilotError: not_running, permission_denied."""
        client = cls(path)
        await client.__aenter__()
        return client

    async def __aenter__(self) -> Client:
        if self._requests is None:
            self._requests = await Link.open(self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all sockets: streams end, ports are released. Safe to call twice."""
        for link in (*self._links, *([self._requests] if self._requests else ())):
            await link.close()
        self._links.clear()

    async def _call(self, request: Request, seconds: float | None = 60.0) -> bytes:
        if self._requests is None:
            raise PilotError("invalid_argument", "the client is not connected", "use `async with Client() as c`")
        return await self._requests.call(request, seconds)

    async def _own_link(self) -> Link:
        if self._requests is not None and self._requests.failed is not None:
            raise self._requests.failure("connect")
        link = await Link.open(self.path)
        self._links.add(link)
        return link

    # ---- streams ----

    async def dial(self, target: str, timeout: float | None = DIAL_TIMEOUT) -> Connection:  # noqa: ASYNC109
        """A stream to `peer:port`; peer is an address, a node number or a name.

        Raises PilotError: connection_failed, timeout, not_found, invalid_argument.
        """
        peer, port = split_target(target)
        return await self.dial_addr(await self.resolve(peer), port, timeout)

    async def dial_addr(self, to: Address, port: int, timeout: float | None = DIAL_TIMEOUT) -> Connection:  # noqa: ASYNC109
        """A stream to a port of an address; returns when the peer accepted. Cancelling ends the attempt."""
        link = await self._own_link()
        try:
            body = await link.call(rq.Dial(to, port), timeout)
        except BaseException:
            await self._drop(link)
            raise
        return Connection(self, link, link.router.streams[int.from_bytes(body[:4], "big")], to, port, True)

    async def listen(self, port: int) -> Listener:
        """Binds a port. Raises PilotError(already_exists)."""
        link = await self._own_link()
        try:
            await link.call(rq.Bind(port), DIAL_TIMEOUT)
        except BaseException:
            await self._drop(link)
            raise
        return Listener(self, link, link.router.listen(port))

    async def _drop(self, link: Link) -> None:
        self._links.discard(link)
        await link.close()

    # ---- datagrams ----

    def datagrams(self, port: int) -> DatagramPort:
        """Datagrams for a port; no bind is needed. Those that came before this call are lost."""
        if self._requests is None:
            raise PilotError("invalid_argument", "the client is not connected", "use `async with Client() as c`")
        queue = self._requests.router.datagrams.setdefault(port, DatagramQueue(port))
        return DatagramPort(self._requests, queue)

    async def send_to(self, to: Address, port: int, data: bytes) -> None:
        """Hands a datagram to the daemon. It may be lost; no error is reported."""
        frame = rq.SendTo(to, port, data).frame()
        if self._requests is None:
            raise PilotError("invalid_argument", "the client is not connected", "use `async with Client() as c`")
        await self._requests.drain("sendto")
        self._requests.send(frame)

    async def disconnect(self, conn_id: int) -> None:
        """Closes any connection of the daemon by its number."""
        if self._requests is not None:
            await self._requests.drain("disconnect")
            self._requests.send(rq.Close(conn_id).frame())

    # ---- services of a peer ----

    async def send_message(self, peer: str, data: bytes, kind: str = "text") -> dict[str, Any]:
        """A message into the peer's inbox (LocalClient.send_message)."""
        return await self._in_thread(lambda c: c.send_message(peer, data, kind))

    async def send_file(
        self, peer: str, path: str, progress: Callable[[str, int, int], None] | None = None
    ) -> dict[str, Any]:
        """A file into the peer's received files (LocalClient.send_file). progress is called in another thread."""
        return await self._in_thread(lambda c: c.send_file(peer, path, progress))

    async def publish_event(self, peer: str, topic: str, data: bytes) -> dict[str, Any]:
        """An event to the subscribers at a peer."""
        return await self._in_thread(lambda c: c.publish_event(peer, topic, data))

    async def subscribe_event(self, peer: str, topic: str) -> Subscription:
        """The events of one topic at a peer; `*` = all topics."""
        from pilot.sdk import events

        conn = await self.dial_addr(await self.resolve(peer), events.PORT)
        await conn.write(events.encode(topic))
        return Subscription(conn)

    async def _in_thread(self, work: Callable[[LocalClient], T]) -> T:
        """Runs blocking work over a client of its own; cancelling closes that client, which ends the work."""
        client = await asyncio.to_thread(LocalClient, self.path)
        try:
            return await asyncio.to_thread(work, client)
        finally:
            client.close()


class Connection:
    """A reliable byte stream to a peer. One task may read while another writes. Use asyncio.timeout for limits."""

    def __init__(self, client: Client, link: Link, stream: Stream, remote: Address, port: int, own_link: bool) -> None:
        self._client, self._link, self._stream, self._own_link = client, link, stream, own_link
        self.remote = remote
        self.remote_port = port
        self.closed = False

    @property
    def conn_id(self) -> int:
        """The daemon's number of this connection."""
        return self._stream.conn_id

    async def read(self, limit: int = 65536) -> bytes:
        """Waits for bytes and returns at most `limit` of them; b"" after the peer ended the stream."""
        self._open()
        stream = self._stream
        await self._link.until(lambda: bool(stream.size) or stream.ended or self.closed, "read", stream)
        self._open()
        data = stream.take(limit)
        self._link.regulate()
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises PilotError(connection_failed) if the stream ends before."""
        out = bytearray()
        while len(out) < count:
            part = await self.read(count - len(out))
            if not part:
                message = f"the peer closed the stream after {len(out)} of {count} bytes"
                raise PilotError("connection_failed", message, "", True)
            out += part
        return bytes(out)

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        """Hands all of `data` to the daemon, in order; waits while the peer does not take it. The number of bytes.

        Raises PilotError: connection_failed if the peer closed the stream.
        """
        view = memoryview(data).cast("B")
        for at in range(0, len(view), WRITE_FRAME):
            self._open()
            if self._stream.ended:  # the daemon would drop the bytes without a word
                raise PilotError("connection_failed", "the peer closed the stream", "", True)
            part = view[at : at + WRITE_FRAME]
            await self._link.drain("write")
            self._link.send(send_head(self.conn_id, len(part)), part)
        await self._link.drain("write")
        return len(view)

    async def close(self) -> None:
        """Ends the stream; what was written before is still delivered. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self._link.forget(self._stream)
            if self._own_link:
                await self._client._drop(self._link)

    def _open(self) -> None:
        if self.closed:
            raise PilotError("invalid_argument", "the connection is closed")

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Listener:
    """A bound port: `async for conn in listener`. The daemon releases it when the listener is closed."""

    def __init__(self, client: Client, link: Link, queue: AcceptQueue) -> None:
        self._client, self._link, self._queue = client, link, queue
        self.closed = False

    @property
    def port(self) -> int:
        """The bound port."""
        return self._queue.port

    async def accept(self) -> Connection:
        """The next connection."""
        if self.closed:
            raise PilotError("invalid_argument", "the listener is closed")
        await self._link.until(lambda: bool(self._queue.items), "accept")
        stream, remote, port = self._queue.items.popleft()
        return Connection(self._client, self._link, stream, remote, port, False)

    async def close(self) -> None:
        """Releases the port and ends the connections that came through it. Safe to call twice."""
        if not self.closed:
            self.closed = True
            await self._client._drop(self._link)

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Connection]:
        while not self.closed:
            yield await self.accept()


class DatagramPort:
    """Datagrams that arrive for one port of this node; at most 256 wait, later ones are dropped."""

    def __init__(self, link: Link, queue: DatagramQueue) -> None:
        self._link, self._queue = link, queue
        self.port = queue.port

    @property
    def dropped(self) -> int:
        """Datagrams that found the queue full."""
        return self._queue.dropped

    async def receive(self) -> Datagram:
        """The next datagram."""
        await self._link.until(lambda: bool(self._queue.items), "receive")
        return Datagram(*self._queue.items.popleft())

    async def __aiter__(self) -> AsyncIterator[Datagram]:
        while True:
            yield await self.receive()


class Subscription:
    """Events of one topic of a peer: `async for event in subscription`."""

    def __init__(self, conn: Connection) -> None:
        from pilot.sdk.events import Event, feed
        from pilot.wire.services import EventReader

        self._conn = conn
        self._reader = EventReader()
        self._feed = feed
        self._ready: list[Event] = []

    async def next(self) -> Any:
        """The next Event; None when the peer ended the subscription."""
        while not self._ready:
            data = await self._conn.read(1 << 20)
            if not data:
                return None
            self._ready = self._feed(self._reader, data)
        return self._ready.pop(0)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (event := await self.next()) is not None:
            yield event

    async def close(self) -> None:
        """Ends the subscription."""
        await self._conn.close()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
