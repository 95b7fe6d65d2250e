"""A few connections to one registry, each with one request at a time (registry.md section 1).

A call connects if it must, repeats itself once on another connection when one breaks under it (the protocol makes that safe), and
ends within its deadline. Names are resolved whenever a connection is made. After a failed attempt the next one waits, longer each
time, so that a registry that comes back is not run over.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

from pilot.errors import PilotError
from pilot.registry import tls
from pilot.registry.calls import DEADLINE_S, HINT, Message
from pilot.wire import registry as wire
from pilot.wire.errors import WireError

MAX_CONNECTIONS = 3
CONNECT_S = 4.0  # for one attempt over all addresses of the name
MAX_ADDRESSES = 4  # of one name
REUSED_S = 3.0  # patience with a connection that was made earlier; then the request goes out on a new one
DETOUR_AFTER_S = 0.3  # without a direct connection
BACK_OFF_S = (0.5, 1.0, 2.0, 4.0)


# Connects a fresh protocol to the registry by other means than TCP to its port. Raises OSError or PilotError.
Detour = Callable[[asyncio.Protocol], Awaitable[None]]


class _Link(asyncio.Protocol):
    """One connection: bytes in, one reply future at a time."""

    def __init__(self, lost: Callable[[], None]) -> None:
        """lost: called when the other end closes the connection."""
        self.transport: asyncio.Transport | None = None
        self.open = False
        self._lost = lost
        self._reader = wire.FrameReader()
        self._reply: asyncio.Future[Message] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.open:  # not ended here
            self.open = False
            self._lost()
        self._fail(exc or ConnectionResetError("closed by the registry"))

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                message, _ = wire.decode(body)
                if self._reply is None or self._reply.done():
                    raise WireError("a reply that nobody asked for")
                self._reply.set_result(message)
        except WireError as error:
            self._fail(PilotError("internal", f"the registry broke the protocol: {error}"))
            self.abort()

    async def ask(self, frame: bytes) -> Message:
        """Sends a request and waits for its reply. Whoever is cancelled here must abort the connection."""
        assert self.transport is not None
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(frame)
        try:
            return await self._reply
        finally:
            self._reply = None

    def abort(self) -> None:
        self.open = False
        if self.transport is not None:
            self.transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


class Pool:
    """Exchanges of a request for a reply. Belongs to one event loop."""

    def __init__(self, host: str, port: int, *, tls_trust: str = "", fingerprint: str = "") -> None:
        """See RegistryClient."""
        if tls_trust not in ("", "pinned", "system"):
            raise PilotError("invalid_argument", f'registry trust "{tls_trust}" is neither pinned nor system')
        if tls_trust == "pinned" and not fingerprint:
            message = "TLS with a pinned certificate needs its fingerprint"
            raise PilotError("invalid_argument", message, "give -registry-fingerprint")
        self._host = host
        self._port = port
        self._where = f"{host}:{port}"
        self._pin = fingerprint if tls_trust == "pinned" else ""
        self._tls = tls.client_context(tls_trust == "pinned") if tls_trust else None
        self.on_lost: Callable[[], None] | None = None  # the registry closed a connection, or its host reset it
        self.detour: Detour | None = None  # tried where the direct way takes long or fails; without it there is none
        self._idle: list[_Link] = []
        self._busy: set[_Link] = set()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._failures = 0
        self._retry_at = 0.0  # loop time before which no connection is tried
        self._last_failure = ""
        self._closed = False

    @property
    def secure(self) -> bool:
        """Connections are TLS."""
        return self._tls is not None

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return any(link.open for link in (*self._idle, *self._busy))

    def close(self) -> None:
        """Ends all connections; exchanges under way fail with connection_failed. Idempotent."""
        self._closed = True
        for link in self._busy:
            link.abort()
        self.drop_idle()

    def _lost(self) -> None:
        if self.on_lost is not None and not self._closed:
            self.on_lost()

    def drop_idle(self) -> None:
        """Ends the connections that nobody uses."""
        for link in self._idle:
            link.abort()
        self._idle.clear()

    def reset(self) -> None:
        """Takes all connections for dead and drops the back-off; a request under way repeats itself on a new connection."""
        self.drop_idle()
        for link in self._busy:
            link.abort()
        self._failures = 0
        self._retry_at = 0.0

    async def exchange(self, frame: bytes, deadline_s: float = DEADLINE_S) -> Message:
        """The reply to a request. Raises PilotError: timeout or connection_failed, both retryable."""
        try:
            async with asyncio.timeout(deadline_s), self._slots:
                return await self._exchange(frame)
        except TimeoutError:
            self.drop_idle()
            why = f": {self._last_failure}" if self._failures else " in time"
            code = "connection_failed" if self._failures else "timeout"
            raise PilotError(code, f"the registry {self._where} does not answer{why}", HINT, True) from None

    async def _exchange(self, frame: bytes) -> Message:
        last: OSError | None = None
        for _ in range(2):
            link, fresh = await self._take()
            self._busy.add(link)
            try:
                async with asyncio.timeout(None if fresh else REUSED_S):
                    reply = await link.ask(frame)
            except OSError as error:  # a TimeoutError is one: an old connection that has died silently
                last = error
                link.abort()
                self.drop_idle()
                continue
            except BaseException:
                link.abort()  # a reply may still come: nobody else must take it for theirs
                raise
            finally:
                self._busy.discard(link)
            if self._closed:
                link.abort()
            elif link.open:
                self._idle.append(link)
            return reply
        raise PilotError("connection_failed", f"the registry {self._where} closed the connection: {last}", HINT, True)

    async def _take(self) -> tuple[_Link, bool]:
        """(connection, made just now)."""
        loop = asyncio.get_running_loop()
        while True:
            if self._closed:
                raise PilotError("connection_failed", "the registry client is closed")
            while self._idle:
                link = self._idle.pop()
                if link.open:
                    return link, False
            if loop.time() < self._retry_at:
                await asyncio.sleep(self._retry_at - loop.time())
                continue
            made = await self._connect(loop)
            if made is not None:
                return made, True

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Link | None:
        """One attempt at each address of the name, and by the detour. None, and a time to wait, if nothing answers."""
        ways = [asyncio.ensure_future(self._direct(loop))]
        try:
            if self.detour is not None:
                await asyncio.wait(ways, timeout=DETOUR_AFTER_S)
                if not (ways[0].done() and ways[0].result()):
                    ways.append(asyncio.ensure_future(self._by_detour(self.detour)))
            while ways:
                done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in done:
                    ways.remove(way)
                    link = way.result()
                    if link is not None:
                        self._failures = 0
                        return link
        finally:
            for way in ways:
                way.cancel()
                way.add_done_callback(_abandon)
        wait = BACK_OFF_S[min(self._failures, len(BACK_OFF_S) - 1)]
        self._failures += 1
        self._retry_at = loop.time() + wait * random.uniform(0.8, 1.2)
        return None

    async def _by_detour(self, detour: Detour) -> _Link | None:
        link = _Link(self._lost)
        try:
            async with asyncio.timeout(CONNECT_S):
                await detour(link)
        except (OSError, PilotError) as error:
            self._last_failure = error.message if isinstance(error, PilotError) else _reason(error)
            link.abort()
            return None
        return link

    async def _direct(self, loop: asyncio.AbstractEventLoop) -> _Link | None:
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            for info in found[:MAX_ADDRESSES]:
                ip = str(info[4][0])
                try:
                    async with asyncio.timeout(CONNECT_S / min(len(found), MAX_ADDRESSES)):
                        transport, link = await loop.create_connection(
                            partial(_Link, self._lost), ip, self._port, ssl=self._tls,
                            server_hostname=self._host if self._tls else None,
                        )  # fmt: skip
                except OSError as error:
                    self._last_failure = _reason(error)
                    continue
                if self._pin:
                    self._check_pin(transport, link)
                return link
        except OSError as error:
            self._last_failure = f"the name does not resolve ({error.strerror or error})"
        return None

    def _check_pin(self, transport: asyncio.Transport, link: _Link) -> None:
        ssl_object = transport.get_extra_info("ssl_object")
        try:
            tls.check_pin(ssl_object.getpeercert(binary_form=True), self._pin)
        except PilotError:
            link.abort()
            raise


def _abandon(way: asyncio.Future[_Link | None]) -> None:
    """Another way was faster."""
    if not way.cancelled() and not way.exception():
        link = way.result()
        if link is not None:
            link.abort()


def _reason(error: OSError) -> str:
    if error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)  # asyncio's own text names the call, not the reason
    return str(error) or "no answer"
