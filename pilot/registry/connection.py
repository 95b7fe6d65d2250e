"""One client of the registry: frames in, replies out, in the order of the requests.

A connection is read only as fast as it is served. It is not read while a reply waits for the disk, while the client does not take
its replies, and while the budget of the connection or of its address is spent; what has arrived meanwhile stays in one buffer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from pilot.registry.core import Peer
from pilot.registry.endpoint import ip_groups, plain_ip
from pilot.registry.limits import Buckets
from pilot.wire import registry as wire
from pilot.wire.errors import WireError

if TYPE_CHECKING:
    from pilot.registry.server import RegistryServer

WRITE_HIGH = 64 << 10  # bytes a client may leave unread before it is served no more
BYTES_PER_REQUEST = 4096  # of a body that cost the budget as much as one more request
UNFINISHED_FREE = 16 << 10  # bytes of a half-received request that need no share of the common budget


class Connection(asyncio.Protocol):
    """Created by the server for each client it accepts."""

    def __init__(self, server: RegistryServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._charged = 0  # bytes of the common budget
        self._budget = Buckets(server.config.requests_per_s, server.config.requests_burst, 1)
        self._resume: asyncio.TimerHandle | None = None
        self._awaiting: tuple[int, bytes, bytes] | None = None  # seq, reply when it is durable, reply when it cannot be
        self._write_paused = False
        self._reading = True
        self._eof = False
        self.peer = Peer("", 0)
        self.groups: list[tuple[str, float]] = []  # whose budgets its requests use: endpoint.ip_groups

    @property
    def ip(self) -> str:
        """Source address."""
        return self.peer.ip

    @property
    def paused(self) -> bool:
        """It is not read now, for one of the reasons above."""
        return not self._reading

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        name = transport.get_extra_info("peername")
        if not name:
            transport.abort()
            return
        self.peer = Peer(plain_ip(name[0]), name[1])
        self.groups = ip_groups(self.peer.ip)
        transport.set_write_buffer_limits(high=WRITE_HIGH)
        if not self._server.admit(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._resume is not None:
            self._resume.cancel()
        self._charge(0)
        self._buffer.clear()
        self._awaiting = None
        self._server.gone(self)

    def data_received(self, data: bytes) -> None:
        self._server.confirm(self.peer)
        self._buffer += data
        self._work()

    def eof_received(self) -> bool:
        self._eof = True
        if self._transport is None or self._transport.get_extra_info("sslcontext"):
            return False  # TLS has no half-closed connections
        return self._awaiting is not None or self._resume is not None  # the last replies still go out, then we close

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._work()

    # Service

    def close(self) -> None:
        """Closes after what was written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def stored(self, durable: int, failing: bool) -> bool:
        """The journal is on disk up to `durable`, or cannot be written now. True if nothing waits here any more."""
        if self._awaiting is None:
            return True
        seq, reply, refusal = self._awaiting
        if durable < seq and not failing:
            return False
        self._awaiting = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(reply if durable >= seq else refusal)
            self._work()
        return True

    def _work(self) -> None:
        """Serves what is in the buffer as far as nothing holds it up."""
        try:
            while self._ready():
                body = self._take()
                if body is None:
                    break
                self._serve(body)
        except WireError:
            self._server.stats_counts.bad_frames += 1
            self._buffer.clear()
            self.close()
        if self._transport is None or self._transport.is_closing():
            return
        if self._eof and self._ready():
            self.close()
            return
        if not self._charge(len(self._buffer)):
            self.abort()
            return
        if self._ready() != self._reading:
            self._reading = not self._reading
            (self._transport.resume_reading if self._reading else self._transport.pause_reading)()

    def _ready(self) -> bool:
        return not (
            self._transport is None
            or self._transport.is_closing()
            or self._write_paused
            or self._awaiting is not None
            or self._resume is not None
        )

    def _take(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < wire.HEAD_SIZE:
            return None
        end = wire.HEAD_SIZE + wire.body_size(buffer[: wire.HEAD_SIZE])
        if len(buffer) < end:
            return None
        body = bytes(buffer[wire.HEAD_SIZE : end])
        del buffer[:end]
        return body

    def _serve(self, body: bytes) -> None:
        assert self._transport is not None
        request, encoding = wire.decode(body)
        answer = self._server.answer(self, request)
        reply = wire.encode(answer.reply, encoding)
        if answer.seq is None:
            self._transport.write(reply)
        else:
            self._awaiting = (answer.seq, reply, wire.encode(answer.refusal, encoding))
        self._throttle(1 + len(body) / BYTES_PER_REQUEST)

    def _throttle(self, cost: float) -> None:
        delay = self._server.delay(self.groups, self._budget, cost)
        if delay > 0:
            self._resume = asyncio.get_running_loop().call_later(delay, self._resumed)

    def _resumed(self) -> None:
        self._resume = None
        self._work()

    def _charge(self, unfinished: int) -> bool:
        """Holds the share of the common budget that `unfinished` bytes need; False if there is not enough."""
        need = unfinished if unfinished > UNFINISHED_FREE else 0
        granted = self._server.charge(need - self._charged)
        if granted:
            self._charged = need
        return granted
