"""Event stream, port 1002: events of a topic to everybody who subscribed to it (services.md section 4).

The first event of a stream is its subscription, every later one is published: to the other streams with exactly its
topic, and to those with `*`. Nothing is kept and nothing acknowledged; the order of one publisher is kept.

A subscriber has a queue and a task of its own, so a slow one holds up nobody. Events are shared between queues; a
queue that grows over QUEUE_BYTES, or all together over TOTAL_BYTES, ends the subscription that is behind most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pilot.services.frames import IDLE_S, ByteStream, FrameSource
from pilot.services.ratelimit import NodeRates
from pilot.wire import services as wire
from pilot.wire.address import Address, SocketAddress

if TYPE_CHECKING:
    from pilot.services.stream import StreamHub

log = logging.getLogger(__name__)

EVENTS_PER_S = 100.0  # of one publishing node
BURST = 200.0
QUEUE_BYTES = 32 << 20
TOTAL_BYTES = 128 << 20
READING_BYTES = 64 << 20  # of events that are arriving
SMALL_EVENT = 64 << 10  # not counted as arriving: as much as a stream may hold anyway
PER_NODE = 64  # streams of one node
EVENT_COST = 128
ALL = wire.ALL_TOPICS.encode()


class Subscriber:
    """One stream: its topic, and the frames that wait to be written to it."""

    def __init__(self, stream: ByteStream, topic: bytes) -> None:
        self.stream = stream
        self.topic = topic
        self.remote = str(SocketAddress(Address(stream.remote_net, stream.node), stream.remote_port))
        self.queued = 0
        self._frames: deque[bytes] = deque()
        self._wake = asyncio.Event()

    @staticmethod
    def cost(frame: bytes) -> int:
        """What a queued frame counts."""
        return len(frame) + EVENT_COST

    def put(self, frame: bytes) -> None:
        """Queues one event."""
        self._frames.append(frame)
        self.queued += self.cost(frame)
        self._wake.set()

    def clear(self) -> int:
        """Forgets what is queued; its cost."""
        cost = sum(map(self.cost, self._frames))
        self._frames.clear()
        self.queued -= cost
        return cost

    async def write(self, written: Callable[[int], None]) -> None:
        """Writes what is queued, for ever. written(cost) per frame. ConnectionError."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                try:
                    await self.stream.write(frame)
                finally:
                    self.queued -= self.cost(frame)
                    written(self.cost(frame))
            self._wake.clear()
            await self._wake.wait()


class EventStream:
    """The broker of one node. `dropped`: events over the rate; `ended`: subscriptions that were too slow."""

    def __init__(
        self,
        emit: Callable[[str, Mapping[str, Any]], None],
        is_trusted: Callable[[int], bool],
        clock: Callable[[], float],
    ) -> None:
        """emit: events for the webhook. clock: seconds, monotonic."""
        self.dropped = 0
        self.ended = 0
        self._emit = emit
        self._is_trusted = is_trusted
        self._clock = clock
        self._rates = NodeRates(EVENTS_PER_S, BURST)
        self._topics: dict[bytes, dict[Subscriber, None]] = {}  # in order of subscription
        self._streams: dict[int, int] = {}  # node: its streams
        self._queued = 0
        self._reading = 0
        self._hub: StreamHub | None = None

    def start(self, hub: StreamHub) -> None:
        """Listens on port 1002. Raises PilotError(already_exists) if it is taken."""
        hub.listen(wire.PORT_EVENTS, self.serve)
        self._hub = hub

    def close(self) -> None:
        """Stops listening; the hub ends the streams."""
        if self._hub is not None:
            self._hub.unlisten(wire.PORT_EVENTS)

    @property
    def subscribers(self) -> int:
        """Streams that are subscribed."""
        return sum(map(len, self._topics.values()))

    async def serve(self, stream: ByteStream) -> None:
        """Runs one inbound stream to its end. ConnectionError, TimeoutError, IncompleteReadError: reset it."""
        node = stream.node
        if not self._is_trusted(node) or self._streams.get(node, 0) >= PER_NODE:
            raise ConnectionAbortedError("not trusted, or too many streams")
        self._streams[node] = self._streams.get(node, 0) + 1
        try:
            source = FrameSource(stream)
            if (first := await self._event(source, IDLE_S)) is not None:
                await self._run(stream, source, first[0])
        finally:
            self._streams[node] -= 1
            if not self._streams[node]:
                del self._streams[node]

    async def _run(self, stream: ByteStream, source: FrameSource, topic: bytes) -> None:
        subscriber = Subscriber(stream, topic)
        shown = topic.decode("utf-8", "replace")
        self._topics.setdefault(topic, {})[subscriber] = None
        self._emit("pubsub.subscribed", {"topic": shown, "remote": subscriber.remote})
        writer = asyncio.get_running_loop().create_task(subscriber.write(self._written))
        writer.add_done_callback(lambda done: None if done.cancelled() or not done.exception() else stream.abort())
        try:
            while (event := await self._event(source, None)) is not None:
                self._publish(subscriber, *event)
        finally:
            self._leave(subscriber)
            self._queued -= subscriber.clear()
            self._emit("pubsub.unsubscribed", {"topic": shown, "remote": subscriber.remote})
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    # ---- reading ----

    async def _event(self, source: FrameSource, idle_s: float | None) -> tuple[bytes, bytes] | None:
        """The next event as (topic, frame); None at the end of the stream. idle_s: longest wait for its start."""
        if await source.ended(idle_s):
            return None
        size = await source.exactly(2)
        topic_size = int.from_bytes(size, "big")
        if topic_size > wire.MAX_TOPIC:
            raise ConnectionAbortedError("topic too long")
        rest = await source.exactly(topic_size + 4)
        data_size = int.from_bytes(rest[topic_size:], "big")
        if data_size > wire.MAX_EVENT:
            raise ConnectionAbortedError("event too large")
        return rest[:topic_size], size + rest + await self._data(source, data_size)

    async def _data(self, source: FrameSource, size: int) -> bytes:
        if size <= SMALL_EVENT:
            return await source.exactly(size)
        data = bytearray()
        try:
            while len(data) < size:
                piece = await source.some(size - len(data))
                self._reading += len(piece)
                data += piece
                if self._reading > READING_BYTES:
                    raise ConnectionAbortedError("too many large events at once")
            return bytes(data)
        finally:
            self._reading -= len(data)

    # ---- publishing ----

    def _publish(self, publisher: Subscriber, topic: bytes, frame: bytes) -> None:
        node, now = publisher.stream.node, self._clock()
        if not self._is_trusted(node):
            raise ConnectionAbortedError("not trusted any more")
        shown = topic.decode("utf-8", "replace")
        size = len(frame) - len(topic) - 6
        if not self._rates.allows(node, now):
            self.dropped += 1
            if self._rates.may_tell(node, now):
                self._emit("pubsub.rate_limited", {"topic": shown, "from": publisher.remote})
            return
        self._emit("pubsub.published", {"topic": shown, "size": size, "from": publisher.remote})
        receivers = list(self._topics.get(topic, ()))
        if topic != ALL:
            receivers += self._topics.get(ALL, ())
        for subscriber in receivers:
            if subscriber is not publisher and subscriber in self._topics.get(subscriber.topic, ()):
                self._send(subscriber, frame)

    def _send(self, subscriber: Subscriber, frame: bytes) -> None:
        if not self._is_trusted(subscriber.stream.node):
            return self._drop(subscriber)
        cost = subscriber.cost(frame)
        if subscriber.queued and subscriber.queued + cost > QUEUE_BYTES:
            return self._drop(subscriber)
        self._queued += cost
        subscriber.put(frame)
        while self._queued > TOTAL_BYTES and self._topics:
            everybody = [s for topic in self._topics.values() for s in topic]
            self._drop(max(everybody, key=lambda s: s.queued))

    def _drop(self, subscriber: Subscriber) -> None:
        """Ends a subscription: it would get events with gaps that nobody tells it of."""
        self.ended += 1
        log.info("subscriber dropped", extra={"remote": subscriber.remote, "queued": subscriber.queued})
        self._leave(subscriber)
        self._queued -= subscriber.clear()
        subscriber.stream.abort()

    def _leave(self, subscriber: Subscriber) -> None:
        of_topic = self._topics.get(subscriber.topic, {})
        of_topic.pop(subscriber, None)
        if not of_topic:
            self._topics.pop(subscriber.topic, None)

    def _written(self, cost: int) -> None:
        self._queued -= cost
