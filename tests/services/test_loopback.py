"""The services over real data planes on loopback: the path that users' bytes take, without the daemon around it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._core import CAP_NOCRC, CAP_STREAM_OPTS, DataPlane
from pilot.errors import PilotError
from pilot.services import counter
from pilot.services.dataexchange import DataExchange
from pilot.services.eventstream import EventStream
from pilot.services.stream import OverlayStream, StreamHub
from pilot.trust.courier import Courier, read_message
from pilot.trust.message import HandshakeMessage
from pilot.wire import services as wire
from pilot.wire.services import StreamKind

LIMIT_S = 30.0


class Node:
    """A data plane whose events go to a hub."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.plane = DataPlane(("127.0.0.1", 0))
        self.plane.set_node(number)
        self.errors: list[tuple[int, Exception]] = []
        self.hub = StreamHub(self.plane, lambda port, error: self.errors.append((port, error)))
        self.plane.start()
        asyncio.get_running_loop().add_reader(self.plane.event_fd, self._events)

    def _events(self) -> None:
        while batch := self.plane.events():
            for event in batch:
                self.hub.handle(event)
            if len(batch) < 1024:
                break

    async def close(self) -> None:
        await self.hub.close()
        asyncio.get_running_loop().remove_reader(self.plane.event_fd)
        await asyncio.to_thread(self.plane.stop)
        assert self.errors == []


def introduce(a: Node, b: Node, *, trust: bool = True) -> None:
    key = os.urandom(32)
    key_id = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    for x, y in ((a, b), (b, a)):
        x.plane.set_trusted(y.number, trust)
        features = CAP_NOCRC | CAP_STREAM_OPTS
        x.plane.install_key(y.number, key, key_id, features=features, max_segment=8192, reorder_segments=65536)
        x.plane.set_path(y.number, y.plane.local_addr, False)


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[Node, Node]]:
    a, b = Node(1), Node(2)
    yield a, b
    await a.close()
    await b.close()


class Frames:
    """Frames that come back on a stream."""

    def __init__(self, stream: OverlayStream) -> None:
        self.stream = stream
        self._reader = wire.FrameReader()
        self._ready: list[tuple[int, bytes]] = []

    async def next(self) -> tuple[int, bytes]:
        async with asyncio.timeout(LIMIT_S):
            while not self._ready:
                data = await self.stream.read()
                assert data, "the peer ended the stream"
                self._ready = self._reader.feed(data)
        return self._ready.pop(0)


async def test_a_file_and_a_message(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = nodes
    introduce(a, b)
    events: list[str] = []
    exchange = DataExchange(tmp_path, lambda event, data: events.append(event))
    exchange.start(b.hub)
    content = random.Random(3).randbytes(8 << 20)
    sha = hashlib.sha256(content).digest()
    stream = await a.hub.dial(2, wire.PORT_EXCHANGE)
    frames = Frames(stream)
    await stream.write(wire.encode(1, b"hi"))
    assert await frames.next() == (1, b"ACK TEXT 2 bytes")
    await stream.write(wire.Init(len(content), sha, "model.bin").build())
    assert wire.parse_stream((await frames.next())[1]).kind is StreamKind.INIT_ACK

    async def send() -> None:
        for at in range(0, len(content), 1 << 18):
            await stream.write(wire.chunk_head(sha[:16], at, 1 << 18) + content[at : at + (1 << 18)])
        await stream.write(wire.done(sha[:16]))

    sending = asyncio.ensure_future(send())
    while (frame := wire.parse_stream((await frames.next())[1])).kind is StreamKind.ACK:
        pass
    await sending
    assert (frame.kind, frame.status) == (StreamKind.COMPLETE, 0)
    (file,) = (p for p in (tmp_path / "received").iterdir() if p.is_file())
    assert file.read_bytes() == content
    assert events == ["message.received", "file.received"]
    stream.close()
    await b.hub.close()
    await exchange.close()


async def test_the_counter_says_how_much_came(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    introduce(a, b)
    counter.start(b.hub)
    stream = await a.hub.dial(2, wire.PORT_COUNTER)
    for sent, size in ((1, 1), ((10 << 20) + 1, 10 << 20)):
        await stream.write(bytes(size))
        answers = b""
        async with asyncio.timeout(LIMIT_S):
            while int.from_bytes(answers[-8:], "big") != sent or len(answers) % 8:
                answers += await stream.read()
    stream.close()


async def test_the_counter_answers_a_full_buffer_that_is_the_last() -> None:
    """Nothing more may come after it, and the other side waits for the total."""

    class Stream:
        def __init__(self) -> None:
            self.sizes = [counter.READ_BYTES, 5, counter.READ_BYTES, 0]
            self.said: list[int] = []

        async def read_into(self, buffer: bytearray) -> int:
            return self.sizes.pop(0)

        async def write(self, data: bytes) -> None:
            self.said.append(int.from_bytes(data, "big"))

    stream = Stream()
    await counter.serve(stream)  # type: ignore[arg-type]
    assert stream.said == [counter.READ_BYTES, counter.READ_BYTES + 5, 2 * counter.READ_BYTES + 5]


async def test_strangers_reach_the_handshake_and_nothing_else(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = nodes
    introduce(a, b, trust=False)
    exchange = DataExchange(tmp_path, lambda event, data: None)
    exchange.start(b.hub)
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(stream: OverlayStream) -> None:
        heard.set_result(await read_message(stream))

    b.hub.listen(444, listen, open_port=True)
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = key.public_key().public_bytes_raw()
    courier = Courier(a.hub, lambda: 1, public, key.sign, lambda: 0, OrderedDict())
    assert await courier.deliver(2, "handshake_request", justification="x")
    async with asyncio.timeout(LIMIT_S):
        message = HandshakeMessage.parse(await heard)
    assert message.verify(2) and message.justification == "x"
    with pytest.raises(PilotError, match=r"refused|timeout"):
        await a.hub.dial(2, wire.PORT_EXCHANGE, timeout=1.0)
    await b.hub.close()
    await exchange.close()


async def test_events(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    introduce(a, b)
    seen: list[Any] = []
    broker = EventStream(lambda event, data: seen.append(event), lambda node: node == 1, lambda: 0.0)
    broker.start(b.hub)
    listener = await a.hub.dial(2, wire.PORT_EVENTS)
    await listener.write(wire.encode_event("demo"))
    async with asyncio.timeout(LIMIT_S):
        while not broker.subscribers:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    publisher = await a.hub.dial(2, wire.PORT_EVENTS)
    data = random.Random(5).randbytes(1 << 20)
    await publisher.write(wire.encode_event("demo") + wire.encode_event("demo", data))
    reader, got = wire.EventReader(), []
    async with asyncio.timeout(LIMIT_S):
        while not got:
            got = reader.feed(await listener.read())
    assert got == [("demo", data)]
    publisher.close()
    listener.close()
    async with asyncio.timeout(LIMIT_S):
        while broker.subscribers:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert seen.count("pubsub.unsubscribed") == 2
