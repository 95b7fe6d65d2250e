"""The asyncio client: what differs from the blocking one is concurrency, cancellation and back-pressure."""

from __future__ import annotations

import asyncio
import struct
import threading
from pathlib import Path

import pytest
from fakedaemon import ACCEPT, CLOSE, CLOSE_OK, RECV, FakeNode, Peer, Scripted, error, frame, wait_for

from pilot.errors import PilotError
from pilot.sdk import Client
from pilot.wire.address import Address

PEER = Address(1, 9)


def ident(n: int) -> bytes:
    return struct.pack(">I", n)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.sock"


async def test_no_daemon(path: Path) -> None:
    with pytest.raises(PilotError) as e:
        await Client.connect(str(path))
    assert e.value.code == "not_running"


async def test_streams_and_requests_at_the_same_time(path: Path) -> None:
    with FakeNode(path) as d:
        async with Client(d.path) as c:

            async def echo(n: int) -> None:
                async with await c.dial("home-agent-2:7") as conn:
                    data = bytes([n]) * 100_000
                    await conn.write(data)
                    assert await conn.read_exactly(len(data)) == data

            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                for n in range(20):
                    tasks.create_task(echo(n))
                    tasks.create_task(c.info())


async def test_a_slow_dial_does_not_delay_other_requests(path: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            code, _ = peer.frame()
            if code == 0x03:
                go.wait(10)
                peer.send(error("dial timeout"))
            else:
                peer.send(frame(0x0E, b'{"node_id":8}'))

    go = threading.Event()
    with Scripted(path, script) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            dial = asyncio.create_task(c.dial_addr(PEER, 7))
            assert await c.info() == {"node_id": 8}
            assert not dial.done()
            go.set()
            with pytest.raises(PilotError) as e:
                await dial
            assert e.value.code == "timeout"


async def test_a_cancelled_dial_leaves_nothing_behind(path: Path) -> None:
    gone = threading.Event()

    def script(peer: Peer) -> None:
        try:
            while True:
                peer.frame()
                started.set()
        except EOFError:
            if started.is_set():
                gone.set()

    started = threading.Event()
    with Scripted(path, script) as d:
        async with Client(d.path) as c:
            dial = asyncio.create_task(c.dial_addr(PEER, 7))
            await asyncio.to_thread(started.wait, 5)
            dial.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dial
            assert await asyncio.to_thread(gone.wait, 5)


async def test_a_cancelled_request_does_not_hand_its_reply_to_the_next(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        started.set()
        go.wait(10)
        peer.send(frame(0x0E, b'{"which":1}'))
        peer.frame()
        peer.send(frame(0x0E, b'{"which":2}'))
        peer.frame()

    started, go = threading.Event(), threading.Event()
    with Scripted(path, script) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            first = asyncio.create_task(c.info())
            await asyncio.to_thread(started.wait, 5)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            go.set()
            assert await c.info() == {"which": 2}


async def test_listener_takes_early_connections_and_ends(path: Path) -> None:
    def script(peer: Peer) -> None:
        while peer.frame()[0] != 0x01:
            pass
        body = struct.pack(">HI", 7001, 3) + PEER.pack() + struct.pack(">H", 50000)
        peer.send(frame(ACCEPT, body), frame(RECV, ident(3) + b"hi"), frame(0x02, b"\x1b\x59"), frame(CLOSE_OK, ident(3)))
        peer.frame()

    with Scripted(path, script) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            async with await c.listen(7001) as listener:
                async for conn in listener:
                    assert (conn.remote, await conn.read(), await conn.read()) == (PEER, b"hi", b"")
                    break
            with pytest.raises(PilotError):
                await listener.accept()


async def test_a_stream_nobody_reads_stops_the_sender_and_loses_nothing(path: Path) -> None:
    sent = [0]

    def script(peer: Peer) -> None:
        code, _ = peer.frame()
        if code != 0x03:
            return
        peer.send(frame(0x04, ident(1)))
        for n in range(400):
            peer.send(frame(RECV, ident(1) + bytes([n % 256]) * 65536))
            sent[0] += 65536
        peer.send(frame(CLOSE_OK, ident(1)))
        peer.frame()

    with Scripted(path, script) as d:
        async with Client(d.path) as c, asyncio.timeout(30):
            conn = await c.dial_addr(PEER, 7)
            before = -1
            while sent[0] != before or not sent[0]:  # until the sender makes no more progress
                before = sent[0]
                await asyncio.sleep(0.2)
            assert sent[0] < 12 << 20
            got = 0
            while data := await conn.read(1 << 20):
                got += len(data)
            assert got == 400 * 65536


async def test_the_daemon_goes_away(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()

    with Scripted(path, script) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            with pytest.raises(PilotError) as e:
                await c.info()
            assert e.value.code == "not_running"
            with pytest.raises(PilotError):
                await c.health()


async def test_malformed_data_fails_the_client(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(struct.pack(">I", 1 << 30))
        peer.frame()

    with Scripted(path, script) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            with pytest.raises(PilotError) as e:
                await c.info()
            assert e.value.code == "internal"


async def test_time_limit_of_a_dial(path: Path) -> None:
    with Scripted(path, lambda peer: peer.frame() and peer.frame() and None) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            with pytest.raises(PilotError) as e:
                await c.dial_addr(PEER, 7, timeout=0.1)
            assert e.value.code == "timeout"


async def test_closing_a_connection_closes_it_at_the_daemon(path: Path) -> None:
    with FakeNode(path) as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            conn = await c.dial_addr(PEER, 7)
            await conn.close()
            await conn.close()
            with pytest.raises(PilotError, match="closed"):
                await conn.read()
        await asyncio.to_thread(wait_for, lambda: CLOSE in d.codes(), "Close")


async def test_services(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(range(256)) * 1000)
    with FakeNode(path) as d:
        async with Client(d.path) as c, asyncio.timeout(20):
            assert (await c.send_message("home-agent-2", b"hi"))["ack"] == "ACK TEXT 2 bytes"
            assert (await c.send_file("home-agent-2", str(file)))["sent"] == 256_000
            assert d.stored["model.bin"] == file.read_bytes()
            async with await c.subscribe_event("home-agent-2", "demo") as events:
                event = await events.next()
                assert (event.topic, event.data) == ("demo", b"evt-1")
