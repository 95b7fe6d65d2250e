"""Who gets which events, and what a flood or a slow subscriber costs the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memstream import PipeEnd, pipe, serve

from pilot.services import eventstream, ratelimit
from pilot.services.eventstream import EventStream
from pilot.wire import services as wire
from pilot.wire.services import encode_event

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
FRAMES = {row["name"]: bytes.fromhex(row["hex"]) for row in VECTORS["eventstream_frames"] if "hex" in row}
LIMIT_S = 10.0


class Broker:
    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.strangers: set[int] = set()
        self.now = 0.0
        self.service = EventStream(
            lambda event, data: self.events.append((event, data)),
            lambda node: node not in self.strangers,
            lambda: self.now,
        )
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self, node: int, topic: str | None = None, segment: int = 0) -> Client:
        ours, theirs = pipe(node, 1, wire.PORT_EVENTS, segment=segment)
        theirs.remote_port = 50000 + len(self.tasks)
        self.tasks.append(asyncio.ensure_future(serve(self.service.serve, theirs)))
        client = Client(ours, self.tasks[-1])
        if topic is not None:
            before = self.service.subscribers
            await client.send(topic)
            await until(lambda: self.service.subscribers > before)
        return client

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def count(self, event: str) -> int:
        return sum(name == event for name, _ in self.events)


class Client:
    def __init__(self, stream: PipeEnd, task: asyncio.Task[None]) -> None:
        self.stream = stream
        self.task = task
        self._reader = wire.EventReader()
        self._ready: list[wire.Event] = []

    async def send(self, topic: str, data: bytes = b"") -> None:
        await self.stream.write(encode_event(topic, data))

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(LIMIT_S):
            while not self._ready:
                data = await self.stream.read()
                assert data, "the broker ended the stream"
                self._ready = self._reader.feed(data)
        return tuple(self._ready.pop(0))

    async def leave(self) -> None:
        self.stream.close()
        async with asyncio.timeout(LIMIT_S):
            await self.task

    async def is_cut(self) -> bool:
        async with asyncio.timeout(LIMIT_S):
            await self.task
        return self.stream.was_reset


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - whatever it is, it is soon
            await asyncio.sleep(0.001)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    b = Broker()
    yield b
    await b.close()
    assert b.service.subscribers == 0 and b.service._queued == 0 and b.service._reading == 0


async def test_recorded_frames(broker: Broker) -> None:
    listener, publisher = await broker.join(2, "demo"), await broker.join(3)
    await publisher.stream.write(FRAMES["subscribe to 'demo'"] + FRAMES["publish demo 'evt'"])
    assert await listener.stream.exactly(13) == FRAMES["publish demo 'evt'"]
    await publisher.stream.write(FRAMES["publish empty payload"])
    assert await listener.next() == ("demo", b"")
    too_long = await broker.join(4)
    await too_long.stream.write(bytes.fromhex("0401"))
    assert await too_long.is_cut()


async def test_who_gets_what(broker: Broker) -> None:
    a, b, other = await broker.join(2, "a"), await broker.join(2, "a"), await broker.join(3, "b")
    everything, pattern = await broker.join(4, "*"), await broker.join(5, "a*")
    await a.send("a", b"1")
    assert await b.next() == ("a", b"1") and await everything.next() == ("a", b"1")
    await a.send("*", b"2")  # only to those that want everything
    assert await everything.next() == ("*", b"2")
    await everything.send("a", b"3")
    assert await a.next() == ("a", b"3")  # and not its own 1: nobody hears himself
    assert await b.next() == ("a", b"3")
    await a.send("b", b"4")
    assert await other.next() == ("b", b"4") and await everything.next() == ("b", b"4")
    await other.send("a*", b"5")
    assert await pattern.next() == ("a*", b"5")


async def test_events_of_the_webhook(broker: Broker) -> None:
    a = await broker.join(2, "demo")
    b = await broker.join(3, "demo")
    await a.send("demo", b"evt")
    await b.next()
    await a.leave()
    assert broker.events == [
        ("pubsub.subscribed", {"topic": "demo", "remote": "0:0000.0000.0002:50000"}),
        ("pubsub.subscribed", {"topic": "demo", "remote": "0:0000.0000.0003:50001"}),
        ("pubsub.published", {"topic": "demo", "size": 3, "from": "0:0000.0000.0002:50000"}),
        ("pubsub.unsubscribed", {"topic": "demo", "remote": "0:0000.0000.0002:50000"}),
    ]


@pytest.mark.parametrize("segment", [1, 7])
async def test_segment_boundaries_do_not_matter_and_order_is_kept(broker: Broker, segment: int) -> None:
    listener = await broker.join(2, "t")
    publisher = await broker.join(3, "t", segment=segment)
    for i in range(50):
        await publisher.send("t", b"%d" % i)
    assert [await listener.next() for _ in range(50)] == [("t", b"%d" % i) for i in range(50)]


async def test_the_subscription_carries_no_event(broker: Broker) -> None:
    listener, publisher = await broker.join(2, "t"), await broker.join(3)
    await publisher.send("t", b"ignored")
    await publisher.send("t", b"heard")
    assert await listener.next() == ("t", b"heard")


async def test_strangers_are_cut_off_and_so_is_who_loses_trust(broker: Broker) -> None:
    broker.strangers = {6}
    stranger = await broker.join(6)
    assert await stranger.is_cut()
    listener, publisher = await broker.join(2, "t"), await broker.join(3, "t")
    broker.strangers |= {2}
    await publisher.send("t", b"not for 2")
    assert await listener.is_cut()
    broker.strangers |= {3}
    await publisher.send("t", b"not from 3")
    assert await publisher.is_cut()


@pytest.mark.parametrize("head", ["00017401000001", "0401", "ffff"])
async def test_events_above_the_limits_end_the_stream(broker: Broker, head: str) -> None:
    listener, publisher = await broker.join(2, "t"), await broker.join(3, "t")
    await publisher.stream.write(bytes.fromhex(head))
    assert await publisher.is_cut()
    assert broker.service.subscribers == 1
    fresh = await broker.join(4, "t")
    await fresh.send("t", b"still alive")
    assert await listener.next() == ("t", b"still alive")


async def test_the_largest_event(broker: Broker) -> None:
    listener, publisher = await broker.join(2, "x" * 1024), await broker.join(3, "x" * 1024)
    data = bytes(16 << 20)
    sending = asyncio.ensure_future(publisher.send("x" * 1024, data))
    assert await listener.next() == ("x" * 1024, data)
    await sending


async def test_a_flood_is_cut_to_the_rate_per_node(broker: Broker) -> None:
    listener = await broker.join(2, "t")
    one, two = await broker.join(3, "t"), await broker.join(3, "t")  # two streams, one publisher
    calm = await broker.join(4, "other")
    for i in range(150):
        await one.send("t", b"%d" % i)
    await until(lambda: broker.count("pubsub.published") == 150)
    for i in range(150):
        await two.send("t", b"%d" % i)
    await until(lambda: broker.service.dropped == 100)
    assert broker.count("pubsub.published") == 200
    assert broker.count("pubsub.rate_limited") == 1  # a flood of events about a flood helps nobody
    await calm.send("t", b"calm")
    heard = [await listener.next() for _ in range(201)]
    assert heard[-1] == ("t", b"calm")  # the flood of one costs the others nothing
    broker.now += 1.0
    for i in range(150):
        await one.send("t", b"%d" % i)
    await until(lambda: broker.service.dropped == 150)


async def test_a_slow_subscriber_is_dropped_and_holds_up_nobody(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "QUEUE_BYTES", 4 << 20)
    slow, quick = await broker.join(2, "t"), await broker.join(3, "t")
    publisher = await broker.join(4, "t")
    data = bytes(1 << 20)
    for i in range(10):
        await publisher.send("t", data)
        assert await quick.next() == ("t", data), i
    assert await slow.is_cut()
    assert broker.service.ended == 1 and broker.service.subscribers == 2


async def test_all_queues_together_are_bounded(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "TOTAL_BYTES", 8 << 20)
    slow = [await broker.join(2, "t") for _ in range(4)]
    publisher = await broker.join(4, "t")
    for _ in range(6):
        await publisher.send("t", bytes(1 << 20))
    await until(lambda: broker.count("pubsub.published") == 6)
    assert broker.service._queued <= 8 << 20
    assert broker.service.ended >= 2
    for client in slow:
        client.stream.abort()


async def test_large_events_under_way_are_bounded(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "READING_BYTES", 3 << 20)
    senders = [await broker.join(2, "t") for _ in range(4)]
    head = encode_event("t", bytes(2 << 20))[: (1 << 20) + 7]
    for sender in senders:
        await sender.stream.write(head)
    await until(lambda: broker.service.subscribers < 4)
    assert broker.service._reading <= 4 << 20
    for sender in senders:
        sender.stream.abort()
    await until(lambda: broker.service.subscribers == 0)


async def test_streams_of_one_node_are_bounded(broker: Broker) -> None:
    for _ in range(eventstream.PER_NODE):
        await broker.join(2, "t")
    assert await (await broker.join(2)).is_cut()
    assert await (await broker.join(3, "t")).leave() is None


async def test_a_subscriber_may_be_silent_but_not_inside_an_event(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream.FrameSource.ended, "__defaults__", (0.05,))
    listener, publisher = await broker.join(2, "t"), await broker.join(3, "t")
    await asyncio.sleep(0.1)
    await publisher.send("t", b"x")
    assert await listener.next() == ("t", b"x")
    await publisher.stream.write(encode_event("t", b"half")[:-1])
    assert await publisher.is_cut()


async def test_topics_that_are_no_text_are_bytes_all_the_same(broker: Broker) -> None:
    a, b = await broker.join(2), await broker.join(3)
    await a.stream.write(b"\0\1\xff" + bytes(4))
    await until(lambda: broker.service.subscribers == 1)
    await b.stream.write(b"\0\1\xfe" + bytes(4) + b"\0\1\xff\0\0\0\1x")
    assert await a.stream.exactly(8) == b"\0\1\xff\0\0\0\1x"


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "MAX_NODES", 100)
    rates = ratelimit.NodeRates(10.0, 5.0)
    for node in range(1000):
        assert rates.allows(node, node * 0.01)
    assert len(rates._buckets) <= 151


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(list(FRAMES.values()))), max_size=6).map(b"".join))
def test_any_bytes_leave_the_broker_alive(data: bytes) -> None:
    async def run() -> None:
        broker = Broker()
        listener = await broker.join(2, "alive")
        mallory = await broker.join(3)
        await mallory.stream.write(data)
        await mallory.leave()
        publisher = await broker.join(4, "alive")
        await publisher.send("alive", b"yes")
        assert await listener.next() == ("alive", b"yes")
        await broker.close()
        assert broker.service.subscribers == 0 and broker.service._queued == 0

    asyncio.run(run())
