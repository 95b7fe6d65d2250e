"""The in-process node for threads: its control plane runs in a thread of its own, calls block without the GIL.

    with BlockingNode(registry="rendezvous:9000", hostname="agent-a") as node:
        with node.dial("agent-b", 1000) as stream:
            stream.sendall(data)
            n = stream.recv_into(buffer)

Bytes go straight between the caller's buffers and the data plane: one native call moves as much as there is, and a reader in a
conversation of small messages serves the tunnel socket itself (csrc/loop_wait.c).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from pilot._core import CoreError, DataPlane
from pilot.errors import PilotError
from pilot.node import DIAL_S, Listener, Node
from pilot.services.stream import OverlayStream
from pilot.wire.address import Address

Buffer = bytearray | memoryview
Data = bytes | bytearray | memoryview
T = TypeVar("T")

READ_BYTES = 256 << 10
_PL_EEXIST = -9


class BlockingStream:
    """A stream for threads; one reader and one writer at a time. Not for the thread of the node's event loop."""

    def __init__(self, plane: DataPlane, loop: asyncio.AbstractEventLoop, stream: OverlayStream) -> None:
        """stream: of a node whose event loop is `loop`; from now on it is read and written here only."""
        self._plane = plane
        self._loop = loop
        self._stream = stream
        self._ended = False
        self.conn = stream.conn
        self.node = stream.node
        self.remote_port = stream.remote_port

    def recv_into(self, buffer: Buffer, timeout: float | None = None) -> int:
        """The next bytes, into `buffer` (writable, contiguous, not empty): how many; 0 after the peer's end.

        Raises TimeoutError after `timeout` seconds, ConnectionResetError.
        """
        if self._ended:
            return 0
        try:
            n = self._plane.read_wait(self.conn, buffer, timeout)
        except CoreError as error:
            raise self._lost(error) from None
        if n is None:
            raise TimeoutError(f"nothing arrived within {timeout:g} s")
        self._ended = n == 0
        return n

    def recv(self, max_bytes: int = READ_BYTES, timeout: float | None = None) -> bytes:
        """As recv_into; b"" after the peer's end."""
        buffer = bytearray(max_bytes)
        n = self.recv_into(buffer, timeout)
        return bytes(memoryview(buffer)[:n])

    def sendall(self, data: Data, timeout: float | None = None) -> None:
        """Returns when the data plane has taken all of `data`, which it sends by itself.

        Raises TimeoutError when it took only a part within `timeout` seconds (the stream is of no use then),
        ConnectionResetError.
        """
        view = memoryview(data).cast("B")
        try:
            took = self._plane.write_wait(self.conn, view, timeout)
        except CoreError as error:
            raise self._lost(error) from None
        if took < len(view):
            raise TimeoutError(f"the peer took {took} of {len(view)} bytes within {timeout:g} s")

    @property
    def unacked(self) -> int:
        """Bytes written that the peer has not acknowledged."""
        with contextlib.suppress(CoreError):
            return self._plane.unacked(self.conn)
        return 0

    def close(self) -> None:
        """Orderly end: what was written still arrives. Readers and writers in other threads are woken. Idempotent."""
        self._on_loop(self._stream.close)

    def abort(self) -> None:
        """Resets the stream; unsent bytes are dropped."""
        self._on_loop(self._stream.abort)

    def _on_loop(self, call: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the node has stopped, and with it every stream
            self._loop.call_soon_threadsafe(call)

    def _lost(self, error: CoreError) -> Exception:
        if error.code == _PL_EEXIST:
            return PilotError("already_exists", "another thread uses this stream", "one reader and one writer at a time")
        return ConnectionResetError(f"stream {self.conn}: {error.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def blocking(node: Node, stream: OverlayStream) -> BlockingStream:
    """A stream of `node` for a thread beside the event loop that this is called on."""
    return BlockingStream(node.parts.plane, asyncio.get_running_loop(), stream)


class BlockingListener:
    """Inbound streams of one port."""

    def __init__(self, node: BlockingNode, listener: Listener) -> None:
        self._node = node
        self._listener = listener
        self.port = listener.port

    def accept(self, timeout: float | None = None) -> BlockingStream:
        """The next stream. Raises TimeoutError, PilotError after close."""
        return self._node.wrap(self._node.call(self._listener.accept(), timeout))

    def close(self) -> None:
        """Frees the port."""
        self._node.call(_later(self._listener.close), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class BlockingNode:
    """A node for programs without an event loop; thread-safe. `with`, or `start` and `stop`. inner: the node, on its thread."""

    def __init__(self, **settings: Any) -> None:
        """settings: of pilot.node.Node, which judges them in `start`."""
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.inner: Node | None = None

    def start(self) -> None:
        """Returns when the node is registered. Raises PilotError."""
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pilot-control", daemon=True)
        self._thread.start()
        try:
            self.call(self._start(), None)
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """Leaves the network and closes everything. Idempotent."""
        if self.inner:
            self.call(self.inner.stop(), None)
            self.inner = None
        self._end_loop()

    def dial(self, peer: str | int | Address, port: int, timeout: float = DIAL_S) -> BlockingStream:
        """A stream to a port of a peer. Raises PilotError: not_found, connection_failed, timeout."""
        return self.wrap(self.call(self._node().dial(peer, port, seconds=timeout), None))

    def listen(self, port: int) -> BlockingListener:
        """Binds a port for trusted peers. Raises PilotError(already_exists)."""
        node = self._node()
        return BlockingListener(self, self.call(_later(lambda: node.listen(port)), None))

    def wrap(self, stream: OverlayStream) -> BlockingStream:
        """A stream of the inner node for threads."""
        assert self._loop is not None
        return BlockingStream(self._node().parts.plane, self._loop, stream)

    def call(self, work: Coroutine[Any, Any, T], timeout: float | None) -> T:
        """Runs `work` on the node's event loop and waits for it. Raises TimeoutError, and what it raises."""
        if self._loop is None:
            work.close()
            raise PilotError("invalid_argument", "the node does not run", "use it inside `with`, or call start()")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            if future.done():  # it raised a TimeoutError itself
                raise
            future.cancel()
            raise TimeoutError(f"not done within {timeout:g} s") from None
        except BaseException:
            future.cancel()
            raise

    async def _start(self) -> None:
        self.inner = Node(**self._settings)
        try:
            await self.inner.start()
        except BaseException:
            self.inner = None
            raise

    def _node(self) -> Node:
        if self.inner is None:
            raise PilotError("invalid_argument", "the node does not run", "use it inside `with`, or call start()")
        return self.inner

    def _end_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        if self._thread:
            self._thread.join()
        loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


async def _later(call: Any) -> Any:
    return call()
