"""Real parts in one process: registry, beacon and nodes on loopback, and raw clients of their local sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pilot._core import RelayLoop
from pilot.daemon.config import load
from pilot.daemon.node import Node
from pilot.registry.server import RegistryServer
from pilot.registry.store import MemoryStore
from pilot.traversal.nat import show
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address
from pilot.wire.ipc import Cmd, FrameReader
from pilot.wire.ipc_message import Request

LIMIT_S = 15.0


async def until(condition: Callable[[], object], what: str, seconds: float = LIMIT_S) -> None:
    """Waits for a condition; says what did not come."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


class RawClient:
    """A client that sends bytes and reads frames; nothing is matched, reordered or hidden."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.frames = FrameReader()
        self.ready: list[tuple[int, bytes]] = []

    @classmethod
    async def connect(cls, path: Path) -> RawClient:
        return cls(*await asyncio.open_unix_connection(str(path)))

    def send(self, request: Request | bytes) -> None:
        self.writer.write(request if isinstance(request, bytes) else request.frame())

    async def frame(self, seconds: float = LIMIT_S) -> tuple[int, bytes]:
        """The next frame. EOFError when the daemon has closed the socket."""
        async with asyncio.timeout(seconds):
            while not self.ready:
                data = await self.reader.read(1 << 16)
                if not data:
                    raise EOFError
                self.ready += self.frames.feed(data)
        return self.ready.pop(0)

    async def ask(self, request: Request | bytes) -> Any:
        """The next frame as JSON, text of an Error, or (code, payload)."""
        self.send(request)
        return decode(*await self.frame())

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


def decode(code: int, payload: bytes) -> Any:
    if code == Cmd.ERROR:
        assert payload[:2] == b"\x00\x01"
        return payload[2:].decode()
    return json.loads(payload) if payload[:1] == b"{" else (code, payload)


class Agent:
    """A node and where its files are."""

    def __init__(self, node: Node, stop: asyncio.Event, running: asyncio.Task[None]) -> None:
        self.node = node
        self.stop_event = stop
        self.running = running
        self.clients: list[RawClient] = []

    @property
    def number(self) -> int:
        return self.node.node_id

    @property
    def address(self) -> Address:
        return self.node.registration.address

    async def client(self) -> RawClient:
        client = await RawClient.connect(self.node.config.socket)
        self.clients.append(client)
        return client

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        self.stop_event.set()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.node.stop()


class World:
    """`network`: the registry's -network. `shift`: seconds its clock is ahead."""

    network = 1

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = MemoryStore()
        self.beacon = RelayLoop(("127.0.0.1", 0))
        self.registry: RegistryServer | None = None
        self.port = 0
        self.shift = 0.0
        self.agents: list[Agent] = []

    async def open(self) -> None:
        self.beacon.start()
        await self.open_registry()

    async def open_registry(self) -> None:
        """Starts the registry, on the port it had before; it knows nobody."""
        loop = asyncio.get_running_loop()
        self.registry = RegistryServer(MemoryStore(), network=self.network, clock=lambda: loop.time() + self.shift)
        _, self.port = await self.registry.start("127.0.0.1", self.port)

    async def close_registry(self) -> None:
        assert self.registry
        await self.registry.stop()
        self.registry = None

    def argv(self, name: str, *extra: str) -> list[str]:
        home = self.root / name
        beacon = show(self.beacon.local_addr)
        return [
            "-registry", f"127.0.0.1:{self.port}", "-beacon", beacon, "-listen", "127.0.0.1:0", "-hostname", name,
            "-socket", str(home / "sock"), "-identity", str(home / "identity.json"), *extra,
        ]  # fmt: skip

    async def agent(self, name: str, *extra: str) -> Agent:
        node = Node(load(self.argv(name, *extra), {"PILOT_HOME": str(self.root / name)}))
        try:
            await node.start()
        except BaseException:
            await node.stop()
            raise
        stop = asyncio.Event()
        agent = Agent(node, stop, asyncio.create_task(node.run(stop)))
        self.agents.append(agent)
        return agent

    async def trust(self, a: Agent, b: Agent) -> None:
        """Both ask: each other's request is the answer."""
        for x, y in ((a, b), (b, a)):
            client = await x.client()
            reply = await client.ask(rq.Handshake(y.number, "test"))
            assert reply == {"status": "sent", "node_id": y.number}
        for x, y in ((a, b), (b, a)):
            await until(lambda x=x, y=y: x.node.trust.store.is_trusted(y.number), "trust on both sides")  # type: ignore[misc]
            # The data plane opens its door once the store is on the disk; until then it drops what the peer sends.
            await until(lambda x=x, y=y: (x.node.plane.peer_info(y.number) or {}).get("trusted"), "an open door")  # type: ignore[misc]

    async def close(self) -> None:
        for agent in self.agents:
            await agent.stop()
        if self.registry:
            await self.registry.stop()
        self.beacon.stop()


@contextlib.contextmanager
def umask_zero() -> Iterator[None]:
    """The widest rights that files can get by themselves."""
    old = os.umask(0)
    try:
        yield
    finally:
        os.umask(old)
