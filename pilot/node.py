"""A node inside the application: the daemon's parts and the same data plane, without the hop over a Unix socket.

    async with Node(registry="rendezvous:9000", identity="agent.json", hostname="agent-a") as node:
        stream = await node.dial("agent-b", 1000)
        await stream.write(b"hello")

The control plane runs on the application's event loop, packets in the native thread. Threads take
pilot.blocking.blocking(node, stream); a program without an event loop takes pilot.blocking.BlockingNode.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pilot.daemon.config import load
from pilot.daemon.node import Node as Parts
from pilot.daemon.opening import open_conn
from pilot.errors import PilotError
from pilot.services.stream import OverlayStream
from pilot.wire.address import Address, parse, parse_node

log = logging.getLogger("pilot.node")

DIAL_S = 30.0
MAX_WAITING = 64  # accepted streams that nobody took; the next ones are reset
_LISTENER_CLOSED = PilotError("connection_failed", "the listener is closed")


class Listener:
    """Inbound streams of one port; also an asynchronous iterator over them."""

    def __init__(self, node: Node, port: int) -> None:
        self.port = port
        self._node = node
        self._waiting: deque[OverlayStream] = deque()
        self._come = asyncio.Event()
        self.closed = False

    async def accept(self) -> OverlayStream:
        """The next stream; it is the caller's to close. Raises PilotError after close."""
        while not self._waiting:
            if self.closed:
                raise _LISTENER_CLOSED
            self._come.clear()
            await self._come.wait()
        return self._waiting.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OverlayStream:
        try:
            return await self.accept()
        except PilotError:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Frees the port; streams that nobody took are reset, the others go on. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._node.parts.hub.unlisten(self.port)
        while self._waiting:
            self._waiting.popleft().abort()
        self._come.set()

    def arrived(self, stream: OverlayStream) -> None:
        """Called by the node for each inbound stream."""
        if self.closed or len(self._waiting) >= MAX_WAITING:
            stream.abort()
            return
        self._waiting.append(stream)
        self._come.set()


class Node:
    """One node of the overlay. `async with`, or `start` and `stop`. parts: the daemon's assembly below it."""

    def __init__(
        self,
        *,
        registry: str = "",
        identity: str | os.PathLike[str] = "",
        hostname: str = "",
        socket: str | os.PathLike[str] = "",
        no_dataexchange: bool = True,
        no_eventstream: bool = True,
        **settings: str | int | float | bool,
    ) -> None:
        """registry: `host:port`; without it PILOT_REGISTRY. identity: file, made when missing; "" = a fresh one that is
        not kept. socket: where clients such as pilotctl are served as a daemon would; "" = nowhere. settings: the other
        flags of pilot-daemon by name, with `_` for `-` (pilot-daemon -help). Needs a running event loop. Raises PilotError.
        """
        given: dict[str, str | int | float | bool] = {
            "registry": registry or os.environ.get("PILOT_REGISTRY", ""),
            "identity": os.fspath(identity),
            "hostname": hostname,
            "no_dataexchange": no_dataexchange,
            "no_eventstream": no_eventstream,
            **settings,
        }
        config = load([f"-{name.replace('_', '-')}={_text(value)}" for name, value in given.items()], os.environ)
        path = os.fspath(socket)
        config = dataclasses.replace(config, socket=Path(path).absolute() if path else None)
        self.parts = Parts(config)
        self._running: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._listeners: set[Listener] = set()

    # ---- life ----

    async def start(self) -> None:
        """Returns when the node is registered. Raises PilotError; then everything is closed again."""
        try:
            await self.parts.start()
        except BaseException:
            await self.parts.stop()
            raise
        self._running = asyncio.get_running_loop().create_task(self.parts.run(self._stop))
        self._running.add_done_callback(_ended)

    async def stop(self) -> None:
        """Leaves the network and closes everything. Idempotent."""
        for listener in list(self._listeners):
            listener.close()
        if self._running:
            self._stop.set()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
            await self.parts.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ---- who ----

    @property
    def address(self) -> Address:
        """Own virtual address."""
        return self.parts.registration.address

    @property
    def hostname(self) -> str:
        """As registered."""
        return self.parts.registration.hostname

    async def resolve(self, peer: str | int | Address) -> Address:
        """The address of a name, a node number or an address. Raises PilotError(not_found) and what the registry says."""
        if isinstance(peer, Address):
            return peer
        number = peer if isinstance(peer, int) else parse_node(peer)
        if number is not None:
            return Address(self.address.network, number)
        known = parse(str(peer))
        if known is not None:
            return known
        text = (await self.parts.names.resolve(str(peer))).get("address")
        found = parse(text) if isinstance(text, str) else None
        if found is None:
            raise PilotError("internal", f"the registry names no usable address for {peer}", retryable=True)
        return found

    # ---- trust ----

    async def handshake(self, peer: str | int | Address, justification: str = "") -> str:
        """Asks a peer for trust: `sent`, or `trusted` already. Raises PilotError."""
        return await self.parts.trust.send((await self.resolve(peer)).node, justification)

    async def approve(self, peer: str | int | Address) -> None:
        """Grants what a peer asked for. Raises PilotError(not_found)."""
        await self.parts.trust.approve((await self.resolve(peer)).node)

    async def wait_for_trust(self, peer: str | int | Address, seconds: float = DIAL_S) -> bool:
        """Whether trust with the peer stands within `seconds`."""
        return await self.parts.trust.wait((await self.resolve(peer)).node, seconds)

    # ---- streams and datagrams ----

    async def dial(self, peer: str | int | Address, port: int, *, seconds: float = DIAL_S) -> OverlayStream:
        """A stream to a port of a peer. Raises PilotError: not_found, connection_failed, timeout."""
        to = await self.resolve(peer)
        return self.parts.hub.adopt(await open_conn(self.parts, to, port, seconds=seconds))

    def listen(self, port: int) -> Listener:
        """Binds a port for trusted peers. Raises PilotError(already_exists)."""
        listener = Listener(self, port)
        self.parts.hub.listen_raw(port, listener.arrived)
        self._listeners.add(listener)
        return listener

    async def send_datagram(self, peer: str | int | Address, port: int, data: bytes | bytearray | memoryview) -> None:
        """One datagram, which may be lost. Waits for a session with the peer. Raises PilotError; CoreError if too large."""
        to = await self.resolve(peer)
        await self.parts.traversal.connect(to.node, DIAL_S)
        self.parts.plane.send_datagram(
            to.node, port, data, local_net=self.parts.local_net(to.network), remote_net=to.network
        )

    def stats(self) -> dict[str, Any]:
        """Counters of the data plane (csrc/engine.h, csrc/loop.h)."""
        return dict(self.parts.plane.stats())


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ended(running: asyncio.Task[None]) -> None:
    """A part of the node failed: streams go on as long as their sessions live."""
    if not running.cancelled() and running.exception() is not None:
        log.error("the node's control plane ended", exc_info=running.exception())
