"""iroh by its Python interface, without its public relays and discovery: the client knows the server's key and address."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import Any

import iroh

ALPN = b"bench"
PORT = 6006
SERVER_KEY = bytes(range(32))
READ_BYTES = 256 << 10


class Iroh:
    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.arrived: asyncio.Queue[_Stream] = asyncio.Queue()
        self._connection: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        server = self.args.role == "server"
        options = iroh.EndpointOptions(
            preset=iroh.preset_minimal(), bind_addr=f"{self.args.name}:{PORT if server else 0}",
            secret_key=SERVER_KEY if server else None, alpns=[ALPN],
        )  # fmt: skip
        self.endpoint = await iroh.Endpoint.bind(options)
        if server:
            self._tasks.append(asyncio.create_task(self._serve()))

    async def connect(self) -> _Stream:
        if self._connection is None:
            key = iroh.SecretKey.from_bytes(SERVER_KEY).public()
            peer = iroh.EndpointAddr(key, None, [f"{self.args.peer}:{PORT}"])
            self._connection = await self.endpoint.connect(peer, ALPN)
        return _Stream(await self._connection.open_bi())

    async def accept(self) -> _Stream:
        return await asyncio.wait_for(self.arrived.get(), 60)

    async def forget(self) -> None:
        if self._connection:
            self._connection.close(0, b"")
        self._connection = None

    def path(self) -> str:
        return "direct"

    async def _serve(self) -> None:
        while incoming := await self.endpoint.accept_next():
            accepting = await incoming.accept()
            self._tasks.append(asyncio.create_task(self._streams(await accepting.connect())))

    async def _streams(self, connection: Any) -> None:
        while True:
            try:
                self.arrived.put_nowait(_Stream(await connection.accept_bi()))
            except iroh.IrohError:  # the connection has ended
                return


class _Stream:
    def __init__(self, both: Any) -> None:
        self._send, self._recv = both.send(), both.recv()

    async def write(self, data: Any) -> None:
        await self._send.write_all(bytes(data))

    async def read(self) -> bytes:
        return bytes(await self._recv.read(READ_BYTES))

    async def close(self) -> None:
        await self._send.finish()
