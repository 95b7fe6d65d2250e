"""The event stream of a peer, port 1002 (services.md section 4)."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from pilot.errors import PilotError
from pilot.wire.errors import WireError
from pilot.wire.services import PORT_EVENTS as PORT
from pilot.wire.services import Event, EventReader, encode_event

if TYPE_CHECKING:
    from pilot.sdk.streams import Connection

__all__ = ["PORT", "Event", "Subscription", "encode", "feed", "publish"]


def encode(topic: str, data: bytes = b"") -> bytes:
    """An event for the wire. Raises PilotError(invalid_argument) above the limits."""
    try:
        return encode_event(topic, data)
    except WireError as e:
        raise PilotError("invalid_argument", e.reason) from None


def feed(reader: EventReader, data: bytes) -> list[Event]:
    """Complete events, in order. Raises PilotError(connection_failed) above the limits."""
    try:
        return reader.feed(data)
    except WireError as e:
        raise PilotError("connection_failed", f"the peer sent no events: {e.reason}") from None


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
            self._ready = feed(self._reader, data)
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
