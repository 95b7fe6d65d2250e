"""A registry on loopback with a clock that tests move, and clients that speak raw frames from addresses of their choice."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.registry.config import RegistryConfig
from pilot.registry.server import RegistryServer
from pilot.registry.store import Store
from pilot.wire import registry as wire

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())


class Identity:
    """An Ed25519 key; from a seed, or new."""

    def __init__(self, seed: bytes | None = None) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed) if seed else Ed25519PrivateKey.generate()
        self.public_key = self._key.public_key().public_bytes_raw()
        self.key_text = base64.b64encode(self.public_key).decode()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def signature(self, text: str) -> str:
        return base64.b64encode(self._key.sign(text.encode())).decode()


KEYS = {name: Identity(bytes.fromhex(seed)) for name, seed in VECTORS["keys"].items()}


class Clock:
    """Real time plus what the test adds."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.offset

    def wall(self) -> float:
        return time.time() + self.offset


class Raw:
    """One connection that sends what a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def port(self) -> int:
        return int(self.writer.get_extra_info("sockname")[1])

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receive(self, encoding: wire.Encoding = wire.Encoding.JSON) -> dict[str, Any]:
        async with asyncio.timeout(10):
            head = await self.reader.readexactly(wire.HEAD_SIZE)
            message, found = wire.decode(await self.reader.readexactly(wire.body_size(head)))
        assert found is encoding
        return message

    async def ask(self, request: dict[str, Any], encoding: wire.Encoding = wire.Encoding.JSON) -> dict[str, Any]:
        self.send(wire.encode(request, encoding))
        return await self.receive(encoding)

    async def closed(self) -> bool:
        """Waits for the server to close; anything it sends before that is a failure."""
        try:
            async with asyncio.timeout(10):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


class Node:
    """A registered identity with a connection of its own; signs as a daemon does."""

    def __init__(self, raw: Raw, identity: Identity, number: int) -> None:
        self.raw = raw
        self.identity = identity
        self.number = number

    async def ask(self, command: str, signed: str = "", **fields: Any) -> dict[str, Any]:
        request = {"type": command, **fields}
        if signed:
            request["signature"] = self.identity.signature(signed)
        return await self.raw.ask(request)

    async def own(self, command: str, **fields: Any) -> dict[str, Any]:
        """heartbeat, set_*, deregister, poll_handshakes."""
        return await self.ask(command, f"{command}:{self.number}", node_id=self.number, **fields)

    async def resolve(self, other: int) -> dict[str, Any]:
        return await self.ask("resolve", f"resolve:{self.number}:{other}", node_id=other, requester_id=self.number)

    async def report(self, other: int) -> dict[str, Any]:
        return await self.ask("report_trust", f"report_trust:{self.number}:{other}", node_id=self.number, peer_id=other)

    async def revoke(self, other: int) -> dict[str, Any]:
        return await self.ask("revoke_trust", f"revoke_trust:{self.number}:{other}", node_id=self.number, peer_id=other)

    async def shake(self, other: int, **fields: Any) -> dict[str, Any]:
        signed = f"handshake:{self.number}:{other}"
        return await self.ask("request_handshake", signed, from_node_id=self.number, to_node_id=other, **fields)

    async def respond(self, other: int, accept: bool) -> dict[str, Any]:
        signed = f"respond:{self.number}:{other}"
        return await self.ask("respond_handshake", signed, node_id=self.number, peer_id=other, accept=accept)


class Lab:
    """Server and clients of one test."""

    def __init__(self, root: Path) -> None:
        self.path = root / "registry.db"
        self.clock = Clock()
        self.mail: list[int] = []
        self.endpoints: list[tuple[int, str | None]] = []
        self._servers: list[RegistryServer] = []
        self._raws: list[Raw] = []
        self.host, self.port = "127.0.0.1", 0

    @property
    def server(self) -> RegistryServer:
        return self._servers[-1]

    async def start(self, config: RegistryConfig | None = None, **kwargs: Any) -> RegistryServer:
        server = RegistryServer(
            Store(self.path),
            config=config or RegistryConfig(reap_s=0.02),
            clock=self.clock,
            wall=self.clock.wall,
            on_mail=self.mail.append,
            on_endpoint=lambda node, ip: self.endpoints.append((node, ip)),
            **kwargs,
        )
        self._servers.append(server)
        _, self.port = await server.start(self.host, 0)
        return server

    async def restart(self, config: RegistryConfig | None = None, **kwargs: Any) -> RegistryServer:
        await self.server.stop()
        return await self.start(config, **kwargs)

    async def connect(self, ip: str = "127.0.0.1", port: int = 0) -> Raw:
        if not self._servers:
            await self.start()
        raw = Raw(*await asyncio.open_connection(self.host, self.port, local_addr=(ip, port)))
        self._raws.append(raw)
        return raw

    async def node(self, ip: str = "127.0.0.1", identity: Identity | None = None, signed: bool = True, **fields: Any) -> Node:
        """A node that has just registered from `ip`."""
        identity = identity or Identity()
        raw = await self.connect(ip)
        fields.setdefault("listen_addr", ":4000")
        reply = await raw.ask(registration(identity, signed, **fields))
        assert "error" not in reply, reply
        return Node(raw, identity, reply["node_id"])

    async def close(self) -> None:
        for raw in self._raws:
            raw.close()
        for server in self._servers:
            await server.stop()


def registration(identity: Identity, signed: bool = True, listen_addr: str = ":4000", **fields: Any) -> dict[str, Any]:
    request = {"type": "register", "public_key": identity.key_text, "listen_addr": listen_addr, **fields}
    if signed:
        request["signature"] = identity.signature(f"register:{listen_addr}:{identity.key_text}")
    return request


async def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    """Waits for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
