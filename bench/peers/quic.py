"""QUIC by aioquic and by its descendant qh3: one interface, two packages."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ssl
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from net.ends import PORTS
from peers.certificate import self_signed

ALPN = ["bench"]
WINDOW = 16 << 20  # bytes, of a stream and of a connection
READ_BYTES = 256 << 10


class Quic:
    """A stream is a QUIC stream of one connection. `write` does not wait in these packages: bound what is sent at once."""

    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.api = importlib.import_module(f"{args.transport}.asyncio")
        configuration = importlib.import_module(f"{args.transport}.quic.configuration").QuicConfiguration
        server = args.role == "server"
        self.configuration = configuration(is_client=not server, alpn_protocols=ALPN, max_data=WINDOW, max_stream_data=WINDOW)
        if server:
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder) / name for name in ("key", "certificate")]
                for path, text in zip(paths, self_signed(), strict=True):
                    path.write_bytes(text)
                self.configuration.load_cert_chain(paths[1], paths[0])
        else:
            self.configuration.verify_mode = ssl.CERT_NONE
        self.arrived: asyncio.Queue[_Stream] = asyncio.Queue()
        self._connection = contextlib.AsyncExitStack()
        self._protocol: Any = None
        self._server: Any = None

    async def start(self) -> None:
        if self.args.role == "server":
            self._server = await self.api.serve(
                self.args.name,
                PORTS[self.args.transport],
                configuration=self.configuration,
                stream_handler=lambda reader, writer: self.arrived.put_nowait(_Stream(reader, writer)),
            )

    async def connect(self) -> _Stream:
        if self._protocol is None:
            connection = self.api.connect(self.args.peer, PORTS[self.args.transport], configuration=self.configuration)
            self._protocol = await self._connection.enter_async_context(connection)
        return _Stream(*await self._protocol.create_stream())

    async def accept(self) -> _Stream:
        return await asyncio.wait_for(self.arrived.get(), 60)

    async def forget(self) -> None:
        self._protocol = None
        await self._connection.aclose()

    def path(self) -> str:
        return "direct"


class _Stream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.ended = False

    async def write(self, data: Any) -> None:
        self.writer.write(bytes(data))
        await asyncio.sleep(0)  # `drain` never waits, and fails in qh3

    async def read(self) -> bytes:
        return await self.reader.read(READ_BYTES)

    async def close(self) -> None:
        if not self.ended:
            self.ended = True
            self.writer.write_eof()
