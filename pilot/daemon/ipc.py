"""Requests of local clients: order, concurrency and limits (ipc.md section 1). What they mean: ipc_streams, ipc_node.

The native thread reads the frames and moves stream bytes; what arrives here are requests. Each runs by itself, so a
slow Dial holds up nothing else; replies with the same code leave in the order of their requests, because clients
tell replies apart by code only.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

from pilot._core import EV_CLIENT_CLOSED, EV_CLIENT_FRAME, EV_CLIENT_OPEN, CoreError, Event
from pilot.errors import PilotError
from pilot.wire.errors import WireError
from pilot.wire.ipc import ERROR_CODE, MAX_FRAME, Cmd
from pilot.wire.ipc_message import Request
from pilot.wire.ipc_requests import parse_request

log = logging.getLogger("pilot.ipc")

MAX_IN_FLIGHT = 1024
MAX_WAITING = 8192
MAX_WAITING_BYTES = 16 << 20
MAX_ERROR_BYTES = 4096


class Refusal(Exception):
    """A request that gets an Error frame with exactly this text (ipc.md section 2, table of texts)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Reply(NamedTuple):
    """payload: of the reply frame. conn: a connection that is the client's from the moment it reads the reply."""

    payload: bytes = b""
    conn: int = 0


# Takes the client and its request, of the class it is registered for.
Handler = Callable[["Client", Any], Reply | Coroutine[Any, Any, Reply]]


class Plane(Protocol):
    """What the server needs of the data plane."""

    def client_send(self, client: int, cmd: int, payload: bytes = b"") -> bool: ...
    def client_close(self, client: int) -> None: ...
    def dial_answered(self, client: int) -> None: ...


class Owner(Protocol):
    """Who keeps account of what clients hold."""

    def hand_over(self, client: Client, conn: int, code: int, payload: bytes) -> None:
        """Sends the frame and gives the connection to the client."""

    def discard(self, client: Client, conn: int) -> None:
        """The client left before it could take the connection."""

    def gone(self, client: Client) -> None:
        """A client left; its requests are cancelled."""


class Client:
    """One local client. ports: bound by it. conns: connections it holds or opens."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.ports: set[int] = set()
        self.conns = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.last: dict[int, asyncio.Task[None]] = {}  # reply code: the newest request that will send it
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.waiting_bytes = 0


class IpcServer:
    """The clients of one daemon."""

    def __init__(self, plane: Plane, handlers: Mapping[type[Request], Handler | None], owner: Owner) -> None:
        """handlers: by request; None = taken and not answered. Codes without any are unknown commands."""
        self.clients: dict[int, Client] = {}
        self.requests = 0
        self._plane = plane
        self._handlers = handlers
        self._codes = frozenset(kind.code for kind in handlers)
        self._owner = owner

    def handle(self, event: Event) -> bool:
        """Takes an event of the data plane. False if it is not about a client."""
        if event.type == EV_CLIENT_FRAME:
            client = self.clients.get(event.client)
            if client:
                self._arrived(client, int(event.a), event.data)
        elif event.type == EV_CLIENT_OPEN:
            self.clients[event.client] = Client(event.client)
        elif event.type == EV_CLIENT_CLOSED:
            client = self.clients.pop(event.client, None)
            if client:
                self._left(client)
        else:
            return False
        return True

    async def stop(self) -> None:
        """Cancels every request and waits for that."""
        tasks = [task for client in self.clients.values() for task in client.tasks]
        for client in list(self.clients.values()):
            self._left(client)
        self.clients.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- requests ----

    def _arrived(self, client: Client, code: int, payload: bytes) -> None:
        if len(client.tasks) < MAX_IN_FLIGHT and not client.waiting:
            self._start(client, code, payload)
            return
        client.waiting.append((code, payload))
        client.waiting_bytes += len(payload)
        if len(client.waiting) > MAX_WAITING or client.waiting_bytes > MAX_WAITING_BYTES:
            log.warning("local client asks faster than it can be answered: disconnected")
            self._plane.client_close(client.id)
            client.waiting.clear()
            client.waiting_bytes = 0

    def _start(self, client: Client, code: int, payload: bytes) -> None:
        self.requests += 1
        if code not in self._codes:
            self._error(client, f"unknown command: 0x{code:02X}")
            return
        reply, label = code + 1, ""
        work: Reply | str | Coroutine[Any, Any, Reply]
        try:
            request = parse_request(code, payload)
            label = _label(request)
            handler = self._handlers[type(request)]
            if handler is None:
                return
            work = handler(client, request)
        except WireError as error:
            work = str(error)
        except Exception as error:
            work = _text(label, error)
        before = client.last.get(reply)
        if before is None and not isinstance(work, Coroutine):
            self._answer(client, reply, work)
            return
        task = asyncio.get_running_loop().create_task(self._run(client, reply, label, work, before))
        client.tasks.add(task)
        client.last[reply] = task

        def done(finished: asyncio.Task[None]) -> None:
            if isinstance(work, Coroutine):
                work.close()  # it never began if the task was cancelled at once
            self._done(client, reply, finished)

        task.add_done_callback(done)

    async def _run(
        self,
        client: Client,
        reply: int,
        label: str,
        work: Reply | str | Coroutine[Any, Any, Reply],
        before: asyncio.Task[None] | None,
    ) -> None:
        result: Reply | str
        try:
            result = await work if isinstance(work, Coroutine) else work
        except Exception as error:
            result = _text(label, error)
        try:
            if before is not None:
                await asyncio.wait({before})
        except asyncio.CancelledError:
            if isinstance(result, Reply) and result.conn:
                self._owner.discard(client, result.conn)
            raise
        self._answer(client, reply, result)

    def _done(self, client: Client, reply: int, task: asyncio.Task[None]) -> None:
        client.tasks.discard(task)
        if client.last.get(reply) is task:
            del client.last[reply]
        if not task.cancelled() and task.exception():
            log.error("a request failed", exc_info=task.exception())
        while client.waiting and len(client.tasks) < MAX_IN_FLIGHT and client.id in self.clients:
            code, payload = client.waiting.popleft()
            client.waiting_bytes -= len(payload)
            self._start(client, code, payload)

    # ---- replies ----

    def _answer(self, client: Client, reply: int, result: Reply | str) -> None:
        if isinstance(result, str):
            self._error(client, result)
        elif result.conn:
            self._owner.hand_over(client, result.conn, reply, result.payload)
        elif len(result.payload) < MAX_FRAME:
            self._plane.client_send(client.id, reply, result.payload)
        else:
            log.error("reply does not fit one frame", extra={"reply_code": reply})
            self._error(client, "the answer is too large")
        if reply == Cmd.DIAL_OK:
            self._plane.dial_answered(client.id)

    def _error(self, client: Client, text: str) -> None:
        raw = text.encode("utf-8", "replace")[:MAX_ERROR_BYTES]
        self._plane.client_send(client.id, Cmd.ERROR, ERROR_CODE.to_bytes(2, "big") + raw)

    def _left(self, client: Client) -> None:
        client.waiting.clear()
        for task in list(client.tasks):
            task.cancel()
        self._owner.gone(client)


def _label(request: Request) -> str:
    """What leads an error text that comes from below."""
    if request.code != Cmd.HANDSHAKE:
        return request.label
    return f"handshake {'request' if request.label == 'handshake' else request.label}"


def _text(label: str, error: Exception) -> str:
    """What the client reads about a failed request."""
    if isinstance(error, Refusal):
        return error.text
    if isinstance(error, PilotError):
        return f"{label}: {error.message}"
    if isinstance(error, CoreError):
        return f"{label}: {error.strerror}"
    log.error("a request failed", exc_info=error, extra={"request": label})
    return f"{label}: internal error"
