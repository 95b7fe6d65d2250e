"""Nodes inside the application: what a program sees that runs the overlay in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from world import RawClient, World

from pilot import BlockingNode, Node
from pilot.blocking import blocking
from pilot.errors import PilotError
from pilot.traversal.nat import show
from pilot.wire import ipc_requests as rq

LIMIT_S = 30.0
PORT = 1000


def settings(world: World, name: str) -> dict[str, str | bool]:
    return {
        "registry": f"127.0.0.1:{world.port}",
        "beacon": show(world.beacon.local_addr),
        "listen": "127.0.0.1:0",
        "hostname": name,
        "trust_auto_approve": True,
        "transport": "udp",
    }


@pytest.fixture
async def pair(world: World) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes in this process that trust each other."""
    async with Node(**settings(world, "left")) as a, Node(**settings(world, "right")) as b:
        await a.handshake("right", "test")
        assert await a.wait_for_trust("right", LIMIT_S)
        yield a, b


async def test_streams_both_ways(pair: tuple[Node, Node]) -> None:
    a, b = pair
    listener = b.listen(PORT)
    stream = await a.dial("right", PORT)
    inbound = await listener.accept()
    data = random.Random(3).randbytes(3 << 20)
    buffer, got = bytearray(100_000), bytearray()

    async def receive() -> None:
        while n := await inbound.read_into(buffer):
            got.extend(memoryview(buffer)[:n])

    receiving = asyncio.create_task(receive())
    await stream.write(data)
    stream.close()
    async with asyncio.timeout(LIMIT_S):
        await receiving
    assert got == data
    inbound.close()


async def test_threads_move_bulk_while_the_event_loop_lives(pair: tuple[Node, Node]) -> None:
    a, b = pair
    listener = b.listen(PORT)
    out = blocking(a, await a.dial("right", PORT))
    back = blocking(b, await listener.accept())
    data = random.Random(4).randbytes(16 << 20)

    def receive() -> bytes:
        buffer, digest = bytearray(1 << 20), hashlib.sha256()
        while n := back.recv_into(buffer, LIMIT_S):
            digest.update(memoryview(buffer)[:n])
        return digest.digest()

    def send() -> None:
        out.sendall(data, LIMIT_S)
        out.close()

    got, _ = await asyncio.gather(asyncio.to_thread(receive), asyncio.to_thread(send))
    assert got == hashlib.sha256(data).digest()


async def test_who_is_not_there_is_refused_by_name_and_by_port(pair: tuple[Node, Node]) -> None:
    a, b = pair
    with pytest.raises(PilotError) as fault:
        await a.dial("nobody", PORT)
    assert fault.value.code == "not_found"
    with pytest.raises(PilotError) as fault:
        await a.dial(b.address, PORT)
    assert fault.value.code == "connection_failed"


async def test_a_closed_listener_ends_its_loop_and_frees_the_port(pair: tuple[Node, Node]) -> None:
    a, b = pair
    listener = b.listen(PORT)
    with pytest.raises(PilotError) as fault:
        b.listen(PORT)
    assert fault.value.code == "already_exists"

    came = asyncio.Event()

    async def serve() -> int:
        count = 0
        async for _ in listener:
            count += 1
            came.set()
        return count

    serving = asyncio.create_task(serve())
    await a.dial("right", PORT)
    async with asyncio.timeout(LIMIT_S):
        await came.wait()
        listener.close()
        assert await serving == 1
    b.listen(PORT).close()


async def test_local_clients_are_served_where_the_program_says(world: World, tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    async with Node(**settings(world, "left"), socket=path) as node:
        client = await RawClient.connect(path)
        reply = await client.ask(rq.Info())
        assert reply["node_id"] == node.address.node and reply["socket"] == str(path)
        await client.close()
    assert not path.exists()


async def test_a_wrong_setting_is_named(world: World) -> None:
    with pytest.raises(PilotError, match="max-segment"):
        Node(**settings(world, "left"), max_segment=7)
    with pytest.raises(PilotError, match="no-such-thing"):
        Node(**settings(world, "left"), no_such_thing=7)


async def test_program_without_event_loop(world: World) -> None:
    """Blocking nodes in threads: conversation, timeout, end of stream, peer that stops."""

    def program() -> None:
        with BlockingNode(**settings(world, "left")) as a, BlockingNode(**settings(world, "right")) as b:
            a.call(a.inner.handshake("right"), LIMIT_S)  # type: ignore[union-attr]
            assert a.call(a.inner.wait_for_trust("right"), LIMIT_S)  # type: ignore[union-attr]
            with b.listen(PORT) as listener:
                with pytest.raises(TimeoutError):
                    listener.accept(0.05)

                def echo() -> None:
                    with listener.accept(LIMIT_S) as stream:
                        while data := stream.recv(timeout=LIMIT_S):
                            stream.sendall(data)

                server = threading.Thread(target=echo)
                server.start()
                stream = a.dial("right", PORT)
                for i in range(500):
                    stream.sendall(b"%08d" % i)
                    got = b""
                    while len(got) < 8:
                        got += stream.recv(timeout=LIMIT_S)
                    assert got == b"%08d" % i
                with pytest.raises(TimeoutError):
                    stream.recv(timeout=0.05)
                stream.close()
                server.join(LIMIT_S)
                assert not server.is_alive()
            with pytest.raises(ConnectionResetError):
                stream.recv(timeout=LIMIT_S)
        with pytest.raises(PilotError):
            a.dial("right", PORT)
        with contextlib.suppress(PilotError):
            b.stop()

    await asyncio.wait_for(asyncio.to_thread(program), 60)
