"""Bytes of the daemon to replies, streams, accepts and datagrams (ipc.md sections 1 and 2). Sans-I/O.

Both clients feed it: `get_buffer`, read into that, `buffer_updated`. Four codes are pushes and are routed by
connection or port; at most one request is in flight, so the reply is the next frame with its code or Error.
Bytes of a Recv frame are delivered as they come: a frame need not fit the buffer.

Bounds: EARLY_* for pushes that overtake the reply which announces them, ACCEPTS per listener, DATAGRAMS per
port. A frame that breaks the protocol raises PilotError: the stream of frames is lost with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from pilot.errors import PilotError
from pilot.wire.address import Address, unpack
from pilot.wire.ipc_frames import MAX_FRAME, Cmd

SOFT_LIMIT = 4 << 20  # unread bytes of one stream, above which nothing is read that nobody waits for
HARD_LIMIT = 64 << 20  # unread bytes of one stream, above which its client reads nothing at all
ACCEPTS = 1024
DATAGRAMS = 256
EARLY_STREAMS = 64
EARLY_BYTES = 1 << 20
CLOSED_IDS = 4096
BUFFER = 256 << 10
LARGE = 16 << 10  # from here on a read more costs less than a copy

_HEAD = 9  # of a Recv frame

_RECV = int(Cmd.RECV)  # compared for every frame
_HEAD_ID = Struct(">IBI").pack
_u32 = Struct(">I").unpack_from
_u16 = Struct(">H").unpack_from


class Stream:
    """Received bytes of one connection. wake: called when bytes or the end arrive, if set."""

    __slots__ = ("conn_id", "ended", "parts", "size", "wake")

    def __init__(self, conn_id: int) -> None:
        self.conn_id = conn_id
        self.parts: deque[bytes | memoryview] = deque()
        self.size = 0
        self.ended = False
        self.wake: Callable[[], None] | None = None

    @property
    def cost(self) -> int:
        """Memory held, bytes: many small parts weigh more than their bytes."""
        return self.size + 96 * len(self.parts)

    def take(self, limit: int) -> bytes:
        """At most `limit` bytes; b"" if there are none."""
        if not self.parts or limit <= 0:
            return b""
        if self.size <= limit:
            data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
            self.parts.clear()
            self.size = 0
            return data if isinstance(data, bytes) else bytes(data)
        out = bytearray(limit)
        self.take_into(memoryview(out))
        return bytes(out)

    def take_into(self, target: memoryview) -> int:
        """Fills `target` (a byte view) from the front; the number of bytes moved."""
        room, done = len(target), 0
        parts = self.parts
        while parts and done < room:
            part = parts[0]
            n = min(len(part), room - done)
            target[done : done + n] = part[:n]
            done += n
            if n == len(part):
                parts.popleft()
            else:
                parts[0] = memoryview(part)[n:]
        self.size -= done
        return done


class Accepted(NamedTuple):
    """A connection that came for a bound port."""

    stream: Stream
    remote: Address
    remote_port: int


class AcceptQueue:
    """Connections that came for one bound port and wait for `accept`."""

    __slots__ = ("items", "port", "wake")

    def __init__(self, port: int) -> None:
        self.port = port
        self.items: deque[Accepted] = deque()
        self.wake: Callable[[], None] | None = None


class DatagramQueue:
    """Datagrams for one port as (source, source port, data). dropped: those that found it full."""

    __slots__ = ("dropped", "items", "port", "wake")

    def __init__(self, port: int) -> None:
        self.port = port
        self.items: deque[tuple[Address, int, bytes]] = deque()
        self.dropped = 0
        self.wake: Callable[[], None] | None = None


def send_head(conn_id: int, size: int) -> bytes:
    """What stands before `size` stream bytes of a Send frame, which are not copied."""
    return _HEAD_ID(size + 5, Cmd.SEND, conn_id)


def broken(text: str) -> PilotError:
    """The daemon sent something that is not the protocol."""
    return PilotError(
        "internal", f"malformed data from the daemon: {text}", "is this socket a pilot daemon's?"
    )


class Router:
    """State of one socket. `refused` collects connection ids the owner must send Close for."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.accepts: dict[int, AcceptQueue] = {}
        self.datagrams: dict[int, DatagramQueue] = {}
        self.expect = 0  # reply code of the request in flight, 0 = none
        self.reply: tuple[int, bytes] | None = None
        self.reply_wake: Callable[[], None] | None = None
        self.refused: list[int] = []
        self._heavy: dict[int, Stream] = {}  # streams that were above SOFT_LIMIT
        self.unexpected = 0  # frames nobody asked for
        self._early: dict[int, Stream] = {}
        self._early_accepts: dict[int, list[Accepted]] = {}
        self._closed: dict[int, None] = {}  # an ordered set
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._left = 0  # bytes missing of the Recv frame being read
        self._large = False  # the last one was long
        self._into: Stream | None = None  # where they go; None: nowhere

    # ---- feeding ----

    def get_buffer(self) -> memoryview:
        """Where to read the next bytes to; never empty."""
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._end < 4096:
            rest = bytes(self._view[self._start : self._end])
            need = 4 + _u32(rest)[0] if len(rest) >= 4 else 0
            if need > len(self._buffer):
                self._buffer = bytearray(need)
                self._view = memoryview(self._buffer)
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._view[self._end :]

    def targets(self, stream: Stream, view: memoryview) -> tuple[list[memoryview], int]:
        """Where to read the next bytes to while `view` waits for those of `stream`, and how many of them go to `view`: those of a
        large frame pass by the buffer, which then takes no more than the next head."""
        buffer = self.get_buffer()
        if self._start != self._end or stream.parts or not self._large:
            return [buffer], 0
        if not self._left:
            return [buffer[:_HEAD]], 0
        if self._into is not stream:
            return [buffer], 0
        room = min(self._left, len(view))
        return ([view[:room], buffer[:_HEAD]] if room == self._left else [view[:room]]), room

    def bypassed(self, count: int) -> None:
        """`count` bytes went to the view that `targets` was asked for."""
        self._left -= count

    def buffer_updated(self, count: int) -> None:
        """`count` bytes were read into the buffer. Raises PilotError if they are not the protocol."""
        self._end += count
        buffer, view, pos, end = self._buffer, self._view, self._start, self._end
        while pos < end:
            if self._left:
                take = min(self._left, end - pos)
                if self._into is not None:
                    self._deliver(self._into, bytes(view[pos : pos + take]))
                pos += take
                self._left -= take
                continue
            if end - pos < 4:
                break
            length: int = _u32(buffer, pos)[0]
            if length == 0:
                pos += 4
                continue
            if length > MAX_FRAME:
                raise broken(f"frame of {length} bytes")
            if end - pos < 9 and end - pos < 4 + length:
                break
            if buffer[pos + 4] == _RECV:
                if length < 5:
                    raise broken("Recv without a connection")
                self._into = self._stream_for(_u32(buffer, pos + 5)[0])
                self._left = length - 5
                self._large = length >= LARGE
                pos += 9
                continue
            if end - pos < 4 + length:
                break
            body = bytes(view[pos + 5 : pos + 4 + length])
            pos += 4 + length
            self._frame(buffer[pos - len(body) - 1], body)
        self._start = pos

    # ---- what the owner does ----

    def listen(self, port: int) -> AcceptQueue:
        """The queue for connections to `port`, with those that came before it existed."""
        queue = self.accepts.get(port)
        if queue is None:
            queue = self.accepts[port] = AcceptQueue(port)
            queue.items.extend(self._early_accepts.pop(port, ()))
        return queue

    def forget(self, conn_id: int) -> None:
        """The owner closed this connection: what still comes for it is dropped."""
        self.streams.pop(conn_id, None)
        self._closed[conn_id] = None
        if len(self._closed) > CLOSED_IDS:
            del self._closed[next(iter(self._closed))]

    def heavier_than(self, limit: int) -> Stream | None:
        """A stream with more than `limit` (at least SOFT_LIMIT) bytes unread, if there is one."""
        for conn_id, stream in list(self._heavy.items()) if self._heavy else ():
            if stream.cost <= SOFT_LIMIT or conn_id not in self.streams:
                del self._heavy[conn_id]
            elif stream.cost > limit:
                return stream
        return None

    def begin(self, reply: int) -> None:
        """A request was sent whose reply has this code."""
        self.expect = reply
        self.reply = None

    def settle(self) -> None:
        """No dial is in flight: early bytes of connections nobody announced are worthless."""
        if self.expect != Cmd.DIAL_OK and not self.accepts:
            self._early.clear()

    # ---- routing ----

    def _frame(self, code: int, body: bytes) -> None:
        if code == Cmd.CLOSE_OK:
            if len(body) < 4:
                raise broken("CloseOK without a connection")
            stream = self._stream_for(_u32(body)[0])
            if stream is not None:
                stream.ended = True
                if stream.wake is not None:
                    stream.wake()
        elif code == Cmd.ACCEPT:
            self._accept(body)
        elif code == Cmd.RECV_FROM:
            self._datagram(body)
        elif self.expect and code in (self.expect, Cmd.ERROR):
            if code == Cmd.DIAL_OK:
                if len(body) < 4:
                    raise broken("DialOK without a connection")
                self._adopt(_u32(body)[0])
            elif code == Cmd.BIND_OK:
                if len(body) < 2:
                    raise broken("BindOK without a port")
                self.listen(_u16(body)[0])  # now: the first Accept may stand right behind it
            self.expect = 0
            self.reply = (code, body)
            if self.reply_wake is not None:
                self.reply_wake()
        else:
            self.unexpected += 1

    def _adopt(self, conn_id: int) -> Stream:
        self._closed.pop(conn_id, None)
        stream = self._early.pop(conn_id, None) or Stream(conn_id)
        self.streams[conn_id] = stream
        return stream

    def _stream_for(self, conn_id: int) -> Stream | None:
        stream = self.streams.get(conn_id)
        if stream is None and conn_id not in self._closed and (self.expect == Cmd.DIAL_OK or self.accepts):
            stream = self._early.get(conn_id)
            if stream is None and len(self._early) < EARLY_STREAMS:
                stream = self._early[conn_id] = Stream(conn_id)
        return stream

    def _deliver(self, stream: Stream, data: bytes) -> None:
        if stream.size + len(data) > EARLY_BYTES and stream.conn_id in self._early:
            raise broken(f"{stream.size + len(data)} bytes for connection {stream.conn_id}, never announced")
        stream.parts.append(data)
        stream.size += len(data)
        if stream.cost > SOFT_LIMIT:
            self._heavy[stream.conn_id] = stream
        if stream.wake is not None:
            stream.wake()

    def _accept(self, body: bytes) -> None:
        if len(body) < 14:
            raise broken("short Accept")
        port, conn_id = _u16(body)[0], _u32(body, 2)[0]
        queue = self.accepts.get(port)
        early = None if queue is not None else self._early_accepts.setdefault(port, [])
        waiting = len(queue.items) if queue is not None else len(early or ())
        if waiting >= ACCEPTS or (early is not None and self.expect != Cmd.BIND_OK):
            self.refused.append(conn_id)
            if not early:
                self._early_accepts.pop(port, None)
            return
        item = Accepted(self._adopt(conn_id), unpack(body, 6), _u16(body, 12)[0])
        if queue is None:
            self._early_accepts[port].append(item)
            return
        queue.items.append(item)
        if queue.wake is not None:
            queue.wake()

    def _datagram(self, body: bytes) -> None:
        if len(body) < 10:
            raise broken("short RecvFrom")
        queue = self.datagrams.get(_u16(body, 8)[0])
        if queue is None:
            return  # every client gets every datagram; this one did not ask for the port
        if len(queue.items) >= DATAGRAMS:
            queue.dropped += 1
            return
        queue.items.append((unpack(body), _u16(body, 6)[0], body[10:]))
        if queue.wake is not None:
            queue.wake()
