"""Streams in memory with the interface of OverlayStream, as two ends of a pipe; a hub that hands them out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pilot.errors import PilotError

ROOM = 1 << 20  # bytes that an end takes before its reader must read


class PipeEnd:
    """One end. `node`, `remote_port`: who is at the other one."""

    def __init__(self, node: int, remote_port: int, *, segment: int = 0) -> None:
        """segment: most bytes of one read, 0 = all there are."""
        self.node, self.remote_net, self.remote_port = node, 0, remote_port
        self.local_port = 0
        self.unacked = 0
        self.peer: PipeEnd
        self.segment = segment
        self._data = bytearray()
        self._end = self._reset = self.closed = False
        self._changed = asyncio.Event()

    async def read(self, max_bytes: int = 1 << 18) -> bytes:
        while True:
            if self.closed or self._reset:
                raise ConnectionResetError
            if self._data:
                n = min(max_bytes, len(self._data), self.segment or len(self._data))
                out = bytes(self._data[:n])
                del self._data[:n]
                self.peer.wake()
                return out
            if self._end:
                return b""
            self._changed.clear()
            await self._changed.wait()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            if self.closed or self._reset or self.peer.closed:
                raise ConnectionResetError
            room = ROOM - len(self.peer._data)
            if room <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self.peer._data += view[:room]
            view = view[room:]
            self.peer.wake()

    def wake(self) -> None:
        self._changed.set()

    def close(self) -> None:
        if not self.closed:
            self.closed = self.peer._end = True
            self.wake()
            self.peer.wake()

    def abort(self) -> None:
        if not self.closed:
            self.closed = self.peer._reset = True
            self.wake()
            self.peer.wake()

    @property
    def was_reset(self) -> bool:
        return self._reset

    async def exactly(self, n: int) -> bytes:
        out = b""
        while len(out) < n:
            part = await self.read(n - len(out))
            assert part, f"the stream ended after {len(out)} of {n} bytes"
            out += part
        return out


def pipe(client: int, server: int, port: int, *, segment: int = 0) -> tuple[PipeEnd, PipeEnd]:
    """(client's end, server's end)."""
    ours, theirs = PipeEnd(server, port), PipeEnd(client, 50000, segment=segment)
    theirs.local_port = port
    ours.peer, theirs.peer = theirs, ours
    return ours, theirs


Handler = Callable[[PipeEnd], Awaitable[None]]


async def serve(handler: Handler, stream: PipeEnd) -> None:
    """What StreamHub does around a handler."""
    try:
        await handler(stream)
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        stream.abort()
    finally:
        stream.close()


class Network:
    """Nodes whose hubs are joined. `down`: nodes that cannot be reached directly."""

    def __init__(self) -> None:
        self.hubs: dict[int, FakeHub] = {}
        self.down: set[int] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.dials: list[tuple[int, int, int]] = []


class FakeHub:
    """listen, unlisten and dial of StreamHub."""

    def __init__(self, net: Network, node: int) -> None:
        self.net, self.node = net, node
        self.handlers: dict[int, Handler] = {}
        self.open_ports: set[int] = set()
        net.hubs[node] = self

    def listen(self, port: int, handler: Handler, *, open_port: bool = False) -> None:
        self.handlers[port] = handler
        if open_port:
            self.open_ports.add(port)

    def unlisten(self, port: int) -> None:
        self.handlers.pop(port, None)

    async def dial(self, node: int, port: int, **options: object) -> PipeEnd:
        self.net.dials.append((self.node, node, port))
        hub = self.net.hubs.get(node)
        if hub is None or port not in hub.handlers or {node, self.node} & self.net.down:
            await asyncio.sleep(0)
            raise PilotError("timeout", "dial timeout")
        ours, theirs = pipe(self.node, node, port)
        task = asyncio.ensure_future(serve(hub.handlers[port], theirs))
        self.net.tasks.add(task)
        task.add_done_callback(self.net.tasks.discard)
        return ours
