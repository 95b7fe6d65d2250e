"""TLS for strangers: handshakes that never end, that fail, and what arrives with their last bytes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import ssl
from pathlib import Path
from typing import cast

import pytest
import uvloop

from pilot.registry.listener import Limits, Listener
from pilot.registry.tls import ensure_certificate, server_context


class Echo(asyncio.Protocol):
    made: list[Echo] = []  # noqa: RUF012

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self.lost = False
        Echo.made.append(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The programs run on uvloop, programs of users with a node inside on whatever they like."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Echo.made = []


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    return server_context(*ensure_certificate(tmp_path))


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def until(condition: object, what: str) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def knock(port: int) -> socket.socket:
    s = socket.create_connection(("127.0.0.1", port))
    s.setblocking(False)
    return s


async def closed(s: socket.socket) -> bool:
    try:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(s, 1) == b""
    except OSError:
        return True


async def echoed(port: int, data: bytes) -> bytes:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
        writer.write(data)
        got = await reader.readexactly(len(data))
        writer.close()
        return got


@pytest.mark.parametrize("size", [1, 200_000])
async def test_bytes_pass(context: ssl.SSLContext, size: int) -> None:
    listener = Listener(Echo, context)
    _, port = await listener.start("127.0.0.1", 0)
    data = os.urandom(size)
    assert await echoed(port, data) == data
    await until(lambda: Echo.made[0].lost, "the end of the connection is told")
    assert listener.handshakes == 0
    listener.close()


async def test_data_behind_the_last_bytes_of_the_handshake(context: ssl.SSLContext) -> None:
    """A client may send its request in one packet with its part of the handshake."""
    listener = Listener(Echo, context)
    _, port = await listener.start("127.0.0.1", 0)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trusting().wrap_bio(incoming, outgoing)
    s, loop = knock(port), asyncio.get_running_loop()
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            await loop.sock_sendall(s, outgoing.read())
            incoming.write(await loop.sock_recv(s, 65536))
    tls.write(b"hello")
    await loop.sock_sendall(s, outgoing.read())
    async with asyncio.timeout(10):
        while True:
            try:
                assert tls.read() == b"hello"
                break
            except ssl.SSLWantReadError:
                incoming.write(await loop.sock_recv(s, 65536))
    s.close()
    listener.close()


async def test_handshakes_that_never_end(context: ssl.SSLContext) -> None:
    """Counted per address, ended after a while, and a full table makes room for those who finish theirs."""
    listener = Listener(Echo, context, Limits(handshake_s=0.5, handshakes=6, handshakes_all=5))
    _, port = await listener.start("127.0.0.1", 0)
    mute = [knock(port) for _ in range(5)]
    await until(lambda: listener.handshakes == 5, "all are waited for")
    assert await echoed(port, b"x") == b"x" and listener.counts["displaced"] == 1
    assert await closed(mute[0]), "the oldest gave way"
    for s in mute[1:]:
        assert await closed(s)
    assert listener.handshakes == 0 and len(Echo.made) == 1

    narrow = Listener(Echo, context, Limits(handshakes=3))
    _, port = await narrow.start("127.0.0.1", 0)
    mute += [knock(port) for _ in range(5)]
    await until(lambda: narrow.counts["refused"] == 2, "one address waits with three")
    assert await closed(mute[-1])
    assert narrow.handshakes == 3
    narrow.close()
    for s in mute:
        s.close()
    listener.close()


async def test_what_is_no_handshake_costs_no_line_in_the_log(context: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener(Echo, context)
    _, port = await listener.start("127.0.0.1", 0)
    with caplog.at_level(logging.INFO):
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + os.urandom(500), os.urandom(100_000), b""):
            s = knock(port)
            try:
                await asyncio.get_running_loop().sock_sendall(s, data)
                s.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            assert await closed(s) or await closed(s)
            s.close()
        await until(lambda: listener.counts["failed"] == 4, "all have failed")
        gc.collect()
        await asyncio.sleep(0.05)
    assert not caplog.records and not Echo.made
    assert await echoed(port, b"x") == b"x"
    listener.close()


async def test_the_end_of_the_listener_ends_handshakes(context: ssl.SSLContext) -> None:
    listener = Listener(Echo, context)
    _, port = await listener.start("127.0.0.1", 0)
    s = knock(port)
    await until(lambda: listener.handshakes == 1, "it is waited for")
    listener.close()
    assert await closed(s)
    s.close()
