"""A beacon with a WebSocket door in this process, identities, and clients that say whatever a test wants."""

from __future__ import annotations

import asyncio
import base64
import json
import select
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from pilot.beacon import Beacon, BeaconConfig, WssConfig, WssServer
from pilot.errors import PilotError
from pilot.wire import beacon as wire

Addr = tuple[str, int]
WAIT_S = 10.0


class Identity:
    def __init__(self, seed: bytes | None = None) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed) if seed else Ed25519PrivateKey.generate()
        self.public_key = self._key.public_key().public_bytes_raw()
        self.public_text = base64.b64encode(self.public_key).decode()

    def sign(self, text: bytes) -> bytes:
        return self._key.sign(text)


async def until(condition: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    return value


class Udp:
    """A node on UDP; what it receives is waited for without stopping the loop."""

    def __init__(self, beacon: Addr) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.connect(beacon)

    async def receive(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    async def register(self, node: int) -> Udp:
        self.socket.send(wire.discover(node))
        assert isinstance(wire.parse(await self.receive()), wire.DiscoverReply)
        return self

    def arrived(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        self.socket.close()


class Door:
    """A running beacon: `nodes` are those that its registry knows."""

    def __init__(self, **fields: Any) -> None:
        self.nodes: dict[int, Identity] = {}
        self.registry_down = False
        self.connection: Callable[[], asyncio.Protocol] | None = None
        self._fields = fields
        self.beacon = Beacon(BeaconConfig(("127.0.0.1", 0), notify_s=0.05))
        self.udp: Addr = ("", 0)
        self.wss: WssServer
        self._at: Addr = ("", 0)

    async def __aenter__(self) -> Door:
        async def key_of(node: int) -> bytes | None:
            if self.registry_down:
                raise PilotError("connection_failed", "the registry is down", retryable=True)
            known = self.nodes.get(node)
            return known.public_key if known else None

        self.wss = self.beacon.wss = WssServer(WssConfig(("127.0.0.1", 0), **self._fields), key_of, self.connection)
        started = self.wss.start

        async def start(relay: Any) -> Addr:
            self._at = await started(relay)
            return self._at

        self.wss.start = start  # type: ignore[method-assign]
        self.udp = await self.beacon.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.beacon.stop()

    def url(self, path: str = "/v1/compat") -> str:
        scheme = "wss" if self.wss.config.tls else "ws"
        return f"{scheme}://127.0.0.1:{self._at[1]}{path}"

    @property
    def port(self) -> int:
        return self._at[1]

    async def open(self, **options: Any) -> ClientConnection:
        """A connection that has not said who it is."""
        return await connect(self.url(), subprotocols=["pilot.v1"], compression=None, proxy=None, **options)  # type: ignore[list-item]

    async def node(self, node: int, identity: Identity | None = None, **options: Any) -> ClientConnection:
        """A node that the registry knows, and that has proved itself."""
        key = self.nodes.setdefault(node, identity or Identity())
        client = await self.open(**options)
        await client.send(json.dumps(answer(await challenge(client), node, key)))
        assert json.loads(await client.recv()) == {"type": "auth_ok"}
        return client


async def challenge(client: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await client.recv())
    assert message["type"] == "auth_challenge" and len(bytes.fromhex(message["nonce"])) == 32
    assert abs(message["ts"] - time.time()) < 5
    return message


def answer(asked: dict[str, Any], node: int, key: Identity, **changed: Any) -> dict[str, Any]:
    signature = key.sign(f"compat_auth:{node}:{asked['ts']}:{asked['nonce']}".encode())
    plain = {"type": "auth_reply", "node_id": node, "public_key": key.public_text, "sig": base64.b64encode(signature).decode()}
    return plain | changed


async def closed_with(client: ClientConnection) -> int:
    """The code that the server closes with."""
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                await client.recv()
    except ConnectionClosed:
        return client.close_code or 0


async def quiet(waiting: Awaitable[Any], seconds: float = 0.15) -> bool:
    """Nothing comes of `waiting` in that time."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return True
    return False
