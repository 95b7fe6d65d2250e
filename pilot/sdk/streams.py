"""What LocalClient hands out: Connection, Listener, DatagramPort. Made by the client, not by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot.errors import PilotError
from pilot.sdk._router import AcceptQueue, DatagramQueue, Stream, send_head
from pilot.wire.address import Address

if TYPE_CHECKING:
    from pilot.sdk.client import LocalClient

WRITE_FRAME = 256 << 10  # stream bytes per Send frame; what upstream clients write at most is 1 048 512


class Datagram(NamedTuple):
    """One datagram: who sent it, from which port, and its bytes."""

    source: Address
    source_port: int
    data: bytes


class Connection:
    """A reliable byte stream to a peer. One thread may read while another writes.

    Timeouts are seconds for the whole call, None = wait for ever. After `close` every call raises.
    """

    def __init__(self, client: LocalClient, stream: Stream, remote: Address | None, remote_port: int) -> None:
        self._client = client
        self._stream = stream
        self.remote = remote
        self.remote_port = remote_port
        self.closed = False

    @property
    def conn_id(self) -> int:
        """The daemon's number of this connection."""
        return self._stream.conn_id

    def read(self, limit: int = 65536, timeout: float | None = None) -> bytes:
        """Waits for bytes and returns at most `limit` of them; b"" after the peer ended the stream.

        Raises PilotError: timeout; not_running if the daemon went away.
        """
        self._client._wait_stream(self, timeout)
        with self._client._lock:
            return self._stream.take(limit)

    def recv_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Like `read`, into a writable buffer; the number of bytes, 0 at the end of the stream."""
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        if count := self._client._wait_stream(self, timeout, view):
            return count
        with self._client._lock:
            return self._stream.take_into(view)

    def read_exactly(self, count: int, timeout: float | None = None) -> bytes:
        """Exactly `count` bytes. Raises PilotError(connection_failed) if the stream ends before."""
        deadline = None if timeout is None else monotonic() + timeout
        out = bytearray(count)
        view, got = memoryview(out), 0
        while got < count:
            n = self.recv_into(view[got:], None if deadline is None else max(0.0, deadline - monotonic()))
            if n == 0:
                message = f"the peer closed the stream after {got} of {count} bytes"
                raise PilotError("connection_failed", message, "", True)
            got += n
        return bytes(out)

    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> int:
        """Hands all of `data` to the daemon, which sends it in order. Blocks while the peer does not take it.

        Returns the number of bytes. Raises PilotError: connection_failed if the peer closed the stream;
        timeout, when a part may have been handed over.
        """
        self._open_for_writing()
        view = memoryview(data).cast("B")
        deadline = None if timeout is None else monotonic() + timeout
        for at in range(0, len(view), WRITE_FRAME):
            part = view[at : at + WRITE_FRAME]
            self._client._write(send_head(self.conn_id, len(part)), part, deadline, "write")
            self._open_for_writing()
        return len(view)

    def try_write(self, data: bytes | bytearray | memoryview) -> int:
        """Hands over what the socket takes at once, at most one frame; the number of bytes, 0 = not now.

        `LocalClient.wait` tells when to try again.
        """
        self._open_for_writing()
        part = memoryview(data).cast("B")[:WRITE_FRAME]
        return len(part) if self._client._try_write(send_head(self.conn_id, len(part)), part) else 0

    def try_read(self, limit: int = 1 << 20) -> bytes:
        """At most `limit` bytes of what has arrived, without waiting. b"": nothing, or the end (`ended`)."""
        self._open()
        self._client._pump_ready()
        with self._client._lock:
            return self._stream.take(limit)

    @property
    def ended(self) -> bool:
        """The peer closed the stream and everything it sent has been read."""
        return self._stream.ended and not self._stream.size

    def close(self) -> None:
        """Ends the stream; what was written before is still delivered. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self._client._close_stream(self._stream)

    def _open(self) -> None:
        if self.closed:
            raise PilotError("invalid_argument", "the connection is closed")

    def _open_for_writing(self) -> None:
        self._open()
        if self._stream.ended:  # the daemon would drop the bytes without a word
            raise PilotError("connection_failed", "the peer closed the stream", "", True)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(PilotError):
            self.close()


class Listener:
    """A bound port. The daemon releases it when the listener or the client is closed."""

    def __init__(self, client: LocalClient, queue: AcceptQueue) -> None:
        self._client = client
        self._queue = queue
        self.closed = False

    @property
    def port(self) -> int:
        """The bound port."""
        return self._queue.port

    def accept(self, timeout: float | None = None) -> Connection:
        """The next connection. Raises PilotError(timeout)."""
        if self.closed:
            raise PilotError("invalid_argument", "the listener is closed")
        self._client._wait(lambda: bool(self._queue.items), timeout, "accept")
        with self._client._lock:
            stream, remote, port = self._queue.items.popleft()
        return Connection(self._client, stream, remote, port)

    def close(self) -> None:
        """Releases the port and ends connections nobody accepted. Safe to call twice.

        A daemon without Unbind keeps the port until the client closes.
        """
        if not self.closed:
            self.closed = True
            self._client._close_listener(self._queue)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(PilotError):
            self.close()


class DatagramPort:
    """Datagrams that arrive for one port of this node; at most 256 wait, later ones are dropped."""

    def __init__(self, client: LocalClient, queue: DatagramQueue) -> None:
        self._client = client
        self._queue = queue
        self.port = queue.port

    @property
    def dropped(self) -> int:
        """Datagrams that found the queue full."""
        return self._queue.dropped

    def receive(self, timeout: float | None = None) -> Datagram:
        """The next datagram. Raises PilotError(timeout)."""
        self._client._wait(lambda: bool(self._queue.items), timeout, "receive")
        with self._client._lock:
            return Datagram(*self._queue.items.popleft())

    def __iter__(self) -> Iterator[Datagram]:
        while True:
            yield self.receive()
