"""WebSocket connections as asyncio protocols, client and server alike (RFC 6455; beacon.md 11).

The `websockets` library does the protocol without I/O; this shell moves bytes. It works in batches: everything that one read
of the socket brings is handed over at once, and what is sent together leaves in one write. Nothing queues here: what a congested
connection would have to hold back is refused, and the caller drops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable
from typing import Any, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

MAX_FRAME = 64 << 10
WRITE_HIGH = 256 << 10  # bytes the socket does not take before the connection counts as congested
UNSENT_LOW = 128 << 10  # bytes the kernel may hold unsent: more would only be delay
UNREAD_MAX = 4 << 20  # bytes the other side may make us hold; only pongs and long replies of a stream get that far
CLOSE_S = 2.0  # for the other side's part in closing

# The library would log every frame, contents included.
QUIET = logging.getLogger("pilot.websocket")
QUIET.setLevel(logging.CRITICAL)

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class WebSocket(asyncio.Protocol):
    """One connection. Subclasses override the on_ methods, which are called from the event loop and must not raise."""

    def __init__(self, protocol: ClientProtocol | ServerProtocol) -> None:
        """protocol: the machine of our side, fresh."""
        self.ws = protocol
        self.transport: asyncio.Transport | None = None
        self.congested = False
        self._closing: asyncio.TimerHandle | None = None
        self.unread_max = UNREAD_MAX
        self.frames = 0  # received
        self._parts = bytearray()  # of a message in several frames: empty ones cost nothing
        self._parts_kind: Opcode | None = None
        self._holds: set[str] = set()
        self._ended = False

    # For subclasses

    def on_request(self, request: Request) -> Response:
        """Server: the response; 101 opens the WebSocket."""
        raise NotImplementedError

    def on_open(self) -> None:
        """The WebSocket is open: messages may be sent."""

    def on_messages(self, messages: list[bytes]) -> None:
        """Binary messages, in order."""

    def on_text(self, text: str) -> None:
        """A text message."""

    def on_pong(self, payload: bytes) -> None:
        """The answer to ping()."""

    def on_end(self, reason: str) -> None:
        """The connection is over. Called once, also when it never opened."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        sock = transport.get_extra_info("socket")
        if sock is not None and _TCP_NOTSENT_LOWAT is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_LOW)
        if isinstance(self.ws, ClientProtocol):
            self.ws.send_request(self.ws.connect())
            self._flush()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self.ws.receive_data(data)
        self._work()

    def eof_received(self) -> bool:
        if not self._ended:
            self.ws.receive_eof()
            self._work()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._end(str(exc) if exc else "closed by the other side")

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    # Use

    def hold(self, who: str) -> None:
        """Nothing is read until everybody who holds the connection has released it."""
        if not self._holds and self.transport is not None:
            self.transport.pause_reading()
        self._holds.add(who)

    def release(self, who: str) -> None:
        """Undoes hold(). Idempotent."""
        if who in self._holds:
            self._holds.discard(who)
            if not self._holds and self.transport is not None:
                self.transport.resume_reading()

    @property
    def open(self) -> bool:
        """Messages can be sent."""
        return self.ws.state is State.OPEN and not self._ended

    def send(self, messages: Iterable[bytes]) -> int:
        """Sends binary messages in one write; the number taken. None are taken while the connection is congested or not open."""
        if self.congested or not self.open:
            return 0
        taken = 0
        for message in messages:
            self.ws.send_binary(message)
            taken += 1
        self._flush()
        return taken

    def send_text(self, text: str) -> None:
        """A text message; lost if the connection is not open."""
        if self.open:
            self.ws.send_text(text.encode())
            self._flush()

    def ping(self, payload: bytes) -> None:
        """Asks for a pong with `payload`, at most 125 bytes."""
        if self.open:
            self.ws.send_ping(payload)
            self._flush()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes in order; what was sent goes out before. Idempotent."""
        if self.transport is None:
            return
        if self.ws.state is State.CONNECTING:
            self.transport.close()
            return
        with contextlib.suppress(InvalidState):
            self.ws.send_close(code, reason)
        self._flush()

    def abort(self) -> None:
        """Closes at once."""
        if self.transport is not None:
            self.transport.abort()

    # Inside

    def _work(self) -> None:
        """Deals with what the machine made of the input. One flush at the end answers all of it."""
        messages: list[bytes] = []
        events = self.ws.events_received()
        self.frames += len(events)
        for event in events:
            if isinstance(event, Request):
                self._respond(event)
            elif isinstance(event, Response):
                if self.ws.handshake_exc is None:
                    self.on_open()
            elif event.opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                self._data(event, messages)
            elif event.opcode is Opcode.PONG:
                self.on_pong(bytes(event.data))
        if messages:
            self.on_messages(messages)
        self._flush()

    def _respond(self, request: Request) -> None:
        assert isinstance(self.ws, ServerProtocol)
        response = self.on_request(request)
        self.ws.send_response(response)
        if response.status_code == 101:
            self._flush()
            self.on_open()

    def _data(self, frame: Frame, messages: list[bytes]) -> None:
        # A middlebox may cut messages into frames; the machine has checked their order and total size.
        if frame.opcode is Opcode.TEXT and frame.fin:
            self._text(frame.data)
        elif frame.opcode is Opcode.BINARY and frame.fin:
            messages.append(bytes(frame.data))
        elif frame.opcode is Opcode.CONT:
            self._parts += frame.data
            if frame.fin:
                whole, self._parts = bytes(self._parts), bytearray()
                if self._parts_kind is Opcode.TEXT:
                    self._text(whole)
                else:
                    messages.append(whole)
        else:
            self._parts_kind, self._parts = frame.opcode, bytearray(frame.data)

    def _text(self, data: bytes | bytearray | memoryview) -> None:
        try:
            text = bytes(data).decode()
        except UnicodeDecodeError:
            self.ws.fail(1007)
            return
        self.on_text(text)

    def _flush(self) -> None:
        if self.transport is None:
            return
        writes = self.ws.data_to_send()
        data = b"".join(writes)
        if data and not self.transport.is_closing():
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > self.unread_max:
                self.transport.abort()
        if writes and writes[-1] == b"":  # the machine's word for the end of our side
            self.transport.close()
        elif self.ws.close_expected() and self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(CLOSE_S, self.abort)
        if self.ws.handshake_exc is not None and isinstance(self.ws, ClientProtocol):
            self.transport.close()

    def _end(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        if self._closing is not None:
            self._closing.cancel()
        if self.ws.handshake_exc is not None:
            reason = str(self.ws.handshake_exc)
        elif self.ws.close_rcvd is not None:
            reason = f"closed with {self.ws.close_rcvd.code} {self.ws.close_rcvd.reason}".rstrip()
        self.on_end(reason)


class StreamTransport(asyncio.Transport):
    """A byte stream inside a WebSocket, for a protocol that would otherwise sit on TCP. Message boundaries mean nothing."""

    def __init__(self, socket_: WebSocket, peer: tuple[str, int]) -> None:
        """peer: what get_extra_info("peername") says."""
        super().__init__({"peername": peer, "sslcontext": True})  # as with TLS there is no half-closed connection
        self._socket = socket_
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Sends whatever the state: the protocol heeds pause_writing."""
        socket_ = self._socket
        if self._closed or not socket_.open:
            return
        view = memoryview(data)
        for at in range(0, len(view), MAX_FRAME):
            socket_.ws.send_binary(view[at : at + MAX_FRAME])
        socket_._flush()

    def close(self) -> None:
        self._closed = True
        self._socket.close()

    def abort(self) -> None:
        self._closed = True
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._closed or not self._socket.open

    def pause_reading(self) -> None:
        self._socket.hold("stream")

    def resume_reading(self) -> None:
        self._socket.release("stream")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._socket.transport is not None:
            self._socket.transport.set_write_buffer_limits(high, low)


class StreamSocket(WebSocket):
    """A WebSocket that can carry the byte stream of another protocol."""

    def __init__(self, protocol: ClientProtocol | ServerProtocol) -> None:
        super().__init__(protocol)
        self._inner: asyncio.Protocol | None = None

    def carry(self, inner: asyncio.Protocol, peer: tuple[str, int]) -> StreamTransport:
        """The WebSocket is open: from here on its binary messages are the stream of `inner`, which gets its transport."""
        stream = StreamTransport(self, peer)
        self._inner = inner
        inner.connection_made(stream)
        return stream

    def on_messages(self, messages: list[bytes]) -> None:
        if self._inner is not None:
            self._inner.data_received(messages[0] if len(messages) == 1 else b"".join(messages))

    def on_end(self, reason: str) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connection_lost(None)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._inner is not None:
            self._inner.resume_writing()
