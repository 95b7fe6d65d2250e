"""Handshake messages over streams of their own: one message a stream, no answer on it (services.md section 2)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pilot.errors import PilotError
from pilot.trust.handshake import REQUEST, REVOKE
from pilot.trust.message import MAX_BYTES, HandshakeMessage, MessageError
from pilot.trust.relay import TrustRegistry
from pilot.trust.store import MAX_TOLD

if TYPE_CHECKING:
    from pilot.services.stream import OverlayStream, StreamHub

log = logging.getLogger(__name__)

PORT = 444
ONE_SEGMENT = 4000  # bytes of a message; receivers take one segment, below 4096
DIAL_S = 10.0
HEAD_START_S = 1.0  # a request goes directly; after that the registry is asked to carry it as well
REVOKE_DIAL_S = 5.0  # the peer's connections end after the notice, so it must not be able to hold it up
REPLAY_S = 610
AHEAD_S = 20  # receivers take clocks that are up to 30 s ahead
LINGER_S = 0.5
LINGER_STEPS = 25


class Courier:
    """Sends the messages of one node."""

    def __init__(
        self,
        hub: StreamHub,
        own_node: Callable[[], int],
        public_key: bytes,
        sign: Callable[[bytes], bytes],
        now: Callable[[], float],
        told: OrderedDict[tuple[int, str], int],
    ) -> None:
        """own_node: this node's number at present. public_key (32 bytes), sign (plain Ed25519): its identity.
        now: Unix seconds. told: times of the last messages by node and type; kept here, and by the owner across restarts."""
        self._own_node = own_node
        self._hub = hub
        self.public_key = public_key
        self._sign = sign
        self._now = now
        self._stamps = told

    async def deliver(self, node: int, type_: str, *, justification: str = "", reason: str = "") -> bool:
        """One message to `node`; False if it was not reached. True says that the message has left."""
        data = self.message(node, type_, justification=justification, reason=reason)
        try:
            timeout = REVOKE_DIAL_S if type_ == REVOKE else DIAL_S
            stream = await self._hub.dial(node, PORT, timeout=timeout)
        except (PilotError, OSError) as e:
            log.debug("handshake.not_reached", extra={"peer": node, "kind": type_, "reason": str(e)})
            return False
        try:
            async with asyncio.timeout(DIAL_S):
                await stream.write(data)
            # The published daemons read once and may lose a message that has the end of the stream behind it.
            for _ in range(LINGER_STEPS):
                if not stream.unacked:
                    break
                await asyncio.sleep(LINGER_S / LINGER_STEPS)
        except OSError as e:
            log.debug("handshake.not_sent", extra={"peer": node, "kind": type_, "reason": str(e)})
            return False
        finally:
            stream.close()
        return True

    def lately(self, node: int, type_: str) -> bool:
        """Whether a message of this type was made for `node` in the last 10 minutes. Published daemons take the next one for a
        replay, whatever its text and time."""
        return self._stamps.get((node, type_), 0) > self._now() - REPLAY_S

    def message(self, node: int, type_: str, *, justification: str = "", reason: str = "") -> bytes:
        """The bytes of a signed message; texts are cut so that it fits one segment."""
        timestamp = self._timestamp(node, type_)
        while True:
            data = HandshakeMessage.build(
                type_,
                self._own_node(),
                node,
                self.public_key,
                self._sign,
                timestamp=timestamp,
                justification=justification,
                reason=reason,
            ).encode()
            if len(data) <= ONE_SEGMENT:
                return data
            # Escapes make a text up to six times as long, so the size is known only afterwards.
            justification, reason = (t[: len(t) * 3 // 4] for t in (justification, reason))

    def _timestamp(self, node: int, type_: str) -> int:
        """Unix seconds, another one for each message: receivers take two equal messages for a replay."""
        now = int(self._now())
        last = self._stamps.pop((node, type_), 0)
        stamp = min(max(now, last + 1), now + AHEAD_S)
        self._stamps[node, type_] = stamp
        while len(self._stamps) > MAX_TOLD or next(iter(self._stamps.values())) <= now - REPLAY_S:
            self._stamps.popitem(last=False)
        return stamp


async def ask(courier: Courier, registry: TrustRegistry, node: int, justification: str) -> None:
    """A request for the trust of `node`: directly, and through the registry too if that takes long or if the peer may take the
    direct one for a replay.

    Raises PilotError (`handshake relay: ...`) if both fail."""
    repeated = courier.lately(node, REQUEST)
    direct = asyncio.ensure_future(courier.deliver(node, REQUEST, justification=justification))
    ways: set[asyncio.Future[Any]] = {direct}
    try:
        if not repeated:
            await asyncio.wait(ways, timeout=HEAD_START_S)
            if direct.done() and direct.result():
                return
        relay = asyncio.ensure_future(_ask_registry(registry, node, justification))
        ways.add(relay)
        waiting = set(ways)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if (relay in done and relay.exception() is None) or (direct in done and direct.result() and not repeated):
                return
        if not direct.result():
            await relay
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _ask_registry(registry: TrustRegistry, node: int, justification: str) -> None:
    try:
        await registry.request_handshake(node, justification)
    except PilotError as e:
        if "already pending" not in e.message:  # else an earlier request has not been fetched yet
            raise PilotError(e.code, f"handshake relay: {e.message}", e.hint, e.retryable) from None
    except OSError as e:
        text = f"handshake relay: {str(e) or 'no answer'}"
        raise PilotError("connection_failed", text, "is the registry reachable?", True) from None


async def read_message(stream: OverlayStream) -> bytes:
    """The bytes of one message: to the end of its JSON object or of the stream, at most one byte above
    MAX_BYTES. ConnectionError if the stream dies."""
    data = b""
    while len(data) <= MAX_BYTES:
        part = await stream.read(MAX_BYTES + 1 - len(data))
        if not part:
            break
        data += part
        if data.rstrip().endswith(b"}"):
            with contextlib.suppress(MessageError):
                HandshakeMessage.parse(data)
                break
    return data
