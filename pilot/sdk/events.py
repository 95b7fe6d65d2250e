"""The event stream of a peer, port 1002 (services.md section 4)."""

from __future__ import annotations

from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from pilot.errors import PilotError

if TYPE_CHECKING:
    from pilot.sdk.streams import Connection

PORT = 1002
MAX_TOPIC = 1024
MAX_PAYLOAD = 16 << 20

_U16 = Struct(">H")
_U32 = Struct(">I")


class Event(NamedTuple):
    """One event."""

    topic: str
    data: bytes


def encode(topic: str, data: bytes = b"") -> bytes:
    """`topic_len(2) topic payload_len(4) payload`. Raises PilotError(invalid_argument) above the limits."""
    raw = topic.encode()
    if not raw or len(raw) > MAX_TOPIC:
        raise PilotError("invalid_argument", f"a topic has 1 to {MAX_TOPIC} bytes, this one {len(raw)}")
    if len(data) > MAX_PAYLOAD:
        raise PilotError("invalid_argument", f"an event carries at most {MAX_PAYLOAD} bytes, not {len(data)}")
    return _U16.pack(len(raw)) + raw + _U32.pack(len(data)) + data


class EventReader:
    """Bytes to events. Raises PilotError(connection_failed) above the limits."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Event]:
        """Complete events, in order."""
        buffer = self._buffer
        buffer += data
        events, at = [], 0
        while len(buffer) - at >= 2:
            topic_end = at + 2 + _U16.unpack_from(buffer, at)[0]
            if topic_end - at - 2 > MAX_TOPIC:
                raise PilotError("connection_failed", "the peer sent a topic that is too long")
            if len(buffer) < topic_end + 4:
                break
            end = topic_end + 4 + _U32.unpack_from(buffer, topic_end)[0]
            if end - topic_end - 4 > MAX_PAYLOAD:
                raise PilotError("connection_failed", "the peer sent an event that is too large")
            if len(buffer) < end:
                break
            topic = buffer[at + 2 : topic_end].decode("utf-8", "replace")
            events.append(Event(topic, bytes(buffer[topic_end + 4 : end])))
            at = end
        del buffer[:at]
        return events


class Subscription:
    """Events of one topic of a peer (`*` = all). Close it, or use it in `with`."""

    def __init__(self, conn: Connection, topic: str) -> None:
        """Subscribes over a fresh connection to port 1002."""
        self._conn = conn
        self._reader = EventReader()
        self._ready: list[Event] = []
        conn.write(encode(topic), 30.0)

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None when the peer ended the subscription. Raises PilotError(timeout)."""
        deadline = None if timeout is None else monotonic() + timeout
        while not self._ready:
            data = self._conn.read(1 << 20, None if deadline is None else max(0.0, deadline - monotonic()))
            if not data:
                return None
            self._ready = self._reader.feed(data)
        return self._ready.pop(0)

    def close(self) -> None:
        """Ends the subscription."""
        self._conn.close()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: Any) -> None:
        self._conn.close()


def publish(conn: Connection, topic: str, data: bytes) -> None:
    """Publishes over a fresh connection to port 1002. Nobody acknowledges events."""
    # Two writes, as other clients do: the first event of a connection is its subscription.
    conn.write(encode(topic), 30.0)
    conn.write(encode(topic, data), 60.0)
