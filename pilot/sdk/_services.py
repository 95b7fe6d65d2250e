"""Services of a peer as single calls of LocalClient. What they return is what the published SDK returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilot.errors import PilotError
from pilot.sdk._commands import Commands

if TYPE_CHECKING:
    from pilot.sdk.events import Subscription
    from pilot.sdk.exchange import Progress
    from pilot.sdk.streams import Connection
    from pilot.wire.address import Address


class Services(Commands):
    """Base of LocalClient. peer: address, node number or name."""

    def dial_addr(self, to: Address, port: int, timeout: float | None = 30.0) -> Connection:
        raise NotImplementedError

    def send_message(self, peer: str, data: bytes, kind: str = "text") -> dict[str, Any]:
        """A message into the peer's inbox. kind: text, json, binary.

        Returns {sent, type, target, ack}; ack is "" if the peer answered nothing.
        """
        from pilot.sdk import exchange

        if kind not in exchange.MESSAGE_TYPES:
            raise PilotError("invalid_argument", f"unknown message type: {kind}", "text, json or binary")
        to = self.resolve(peer)
        with self.dial_addr(to, exchange.PORT) as conn:
            ack = exchange.send_message(conn, exchange.MESSAGE_TYPES[kind], data)
        return {"sent": len(data), "type": kind, "target": str(to), "ack": ack}

    def send_file(self, peer: str, path: str, progress: Progress | None = None) -> dict[str, Any]:
        """A file into the peer's received files; returns when it is stored and verified there.

        Returns {sent, filename, target, ack, sha256, resumed}; ack is "" when the SHA-256 vouches for it.
        """
        from pilot.sdk import exchange

        to = self.resolve(peer)
        done = exchange.send_file(lambda: self.dial_addr(to, exchange.PORT), path, progress)
        return {
            "sent": done.size,
            "filename": done.name,
            "target": str(to),
            "ack": done.ack,
            "sha256": done.sha256.hex(),
            "resumed": done.bytes_resumed,
        }

    def publish_event(self, peer: str, topic: str, data: bytes) -> dict[str, Any]:
        """An event to the subscribers at a peer. Nobody acknowledges events."""
        from pilot.sdk import events

        with self.dial_addr(self.resolve(peer), events.PORT) as conn:
            events.publish(conn, topic, data)
        return {"status": "published", "topic": topic, "bytes": len(data)}

    def subscribe_event(self, peer: str, topic: str) -> Subscription:
        """The events of one topic at a peer; `*` = all topics."""
        from pilot.sdk import events

        return events.Subscription(self.dial_addr(self.resolve(peer), events.PORT), topic)
