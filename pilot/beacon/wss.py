"""The beacon's WebSocket door for nodes without UDP (beacon.md section 11; docs/wire-extensions.md section 7).

A node that has proved its identity is attached to the native relay: what it sends is injected there, a read of the socket at a
time, and what the relay has for it comes back in batches. This is the one place where packets of others pass through Python; the
native relay decides where they go and on whose word.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import json
import logging
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from pilot._core import CoreError, RelayLoop
from pilot.errors import PilotError
from pilot.registry.endpoint import join, plain_ip
from pilot.registry.signatures import Verifier
from pilot.websocket import MAX_FRAME, QUIET, StreamSocket

log = logging.getLogger("pilot.beacon.wss")

PATH = "/v1/compat"
REGISTRY_PATH = "/v1/registry"
SUBPROTOCOL = Subprotocol("pilot.v1")
POLICY = 1008
GOING_AWAY = 1001
TRY_LATER = 1013
NOTIFY = "notify"  # what a client of ours says that it accepts besides 0x06

KeyOf = Callable[[int], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class WssConfig:
    """Times in seconds.

    bind: host "" = all addresses. tls: None = a TLS terminator on this host or in front of it speaks to us.
    """

    bind: tuple[str, int]
    tls: ssl.SSLContext | None = None
    auth_s: float = 10.0  # from the connection to auth_ok
    fresh_s: float = 30.0  # age of a challenge that is still answered
    idle_s: float = 90.0  # without a binary message
    max_connections: int = 20_000
    max_per_ip: int = 1000  # a company may sit behind one address


def signed_text(node: int, ts: int, nonce: str) -> bytes:
    """What a client signs to be taken for `node`."""
    return f"compat_auth:{node}:{ts}:{nonce}".encode()


class _Session(StreamSocket):
    """One connection: a health check, a node, or a stream to the registry; which, its request says."""

    def __init__(self, server: WssServer) -> None:
        super().__init__(
            ServerProtocol(
                subprotocols=[SUBPROTOCOL], select_subprotocol=_select, extensions=[], max_size=MAX_FRAME, logger=QUIET
            )
        )
        self._server = server
        self._path = ""
        self._timer: asyncio.TimerHandle | None = None
        self._nonce = secrets.token_bytes(32).hex()
        self._ts = 0
        self._asked = False  # a reply to the challenge is being judged
        self.ip = ""  # of the TCP connection
        self.peer: tuple[str, int] = ("", 0)  # the client, as far as we are told
        self.node = 0  # proved
        self.notifies = False
        self.heard = 0.0  # loop time of the last binary message

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self.ip = plain_ip(name[0]) if name else ""
        self.peer = (self.ip, name[1] if name else 0)
        if not name or not self._server.admit(self):
            self.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._server.config.auth_s, self._too_slow)

    def on_request(self, request: Request) -> Response:
        assert isinstance(self.ws, ServerProtocol)
        self._path = request.path.partition("?")[0]
        if self._path == "/health":
            return self.ws.reject(200, "ok\n")
        if self._path != PATH and not (self._path == REGISTRY_PATH and self._server.registry_connection):
            return self.ws.reject(404, "not found\n")
        self._forwarded(request)
        return self.ws.accept(request)

    def _forwarded(self, request: Request) -> None:
        """Behind a TLS terminator on this host the client is the last one that it names."""
        if self._server.config.tls is not None or not ip_address(self.ip).is_loopback:
            return
        names = request.headers.get_all("X-Forwarded-For")
        if names:
            try:
                self.peer = (plain_ip(names[-1].rpartition(",")[2].strip()), self.peer[1])
            except ValueError:
                self._server.counts["bad_forwarded"] += 1

    def on_open(self) -> None:
        if self._path == REGISTRY_PATH:
            assert self._server.registry_connection is not None
            self._stop_timer()  # the registry has its own limits
            self._server.counts["registry_streams"] += 1
            self.carry(self._server.registry_connection(), self.peer)
            return
        self._ts = int(time.time())
        self.send_text(json.dumps({"type": "auth_challenge", "nonce": self._nonce, "ts": self._ts}))

    def on_end(self, reason: str) -> None:
        super().on_end(reason)
        self._stop_timer()
        self._server.gone(self)

    # Proof

    def on_text(self, text: str) -> None:
        if self._path == PATH and not self._asked:  # later ones are ignored
            self._asked = True
            self._server.judge(self, text)

    async def check(self, text: str) -> str:
        """Why the answer to the challenge does not do, "" if it does; then the node and its wishes are set."""
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            return "not JSON"
        if not isinstance(reply, dict) or reply.get("type") != "auth_reply":
            return "not an auth_reply"
        node, signature = reply.get("node_id"), reply.get("sig")
        if type(node) is not int or not 0 < node < 1 << 32 or not isinstance(signature, str):
            return "malformed auth_reply"
        try:
            signature_bytes = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            return "malformed signature"
        key = await self._server.key_of(node)
        if key is None:
            return "unknown node"
        if abs(time.time() - self._ts) > self._server.config.fresh_s:
            return "challenge expired"
        if not self._server.verifier.fits(key, signed_text(node, self._ts, self._nonce), signature_bytes):
            return "wrong signature"
        accepts = reply.get("accept")
        self.notifies = isinstance(accepts, list) and NOTIFY in accepts
        self.node = node
        return ""

    def proved(self) -> None:
        """The node is attached."""
        self._stop_timer()
        self.heard = asyncio.get_running_loop().time()
        self._watch()
        self.send_text('{"type":"auth_ok"}')

    # Traffic

    def on_messages(self, messages: list[bytes]) -> None:
        if self._path == REGISTRY_PATH:
            super().on_messages(messages)
        elif self.node:
            self.heard = asyncio.get_running_loop().time()
            self._server.sent(self, messages)
        else:
            self._server.counts["early"] += len(messages)

    # Time

    def _too_slow(self) -> None:
        self._server.counts["auth_timeout"] += 1
        self.close(POLICY, "authentication took too long")

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        left = self.heard + self._server.config.idle_s - loop.time()
        if left <= 0:
            self._server.counts["idle_closed"] += 1
            self.close(GOING_AWAY, "idle")
        else:
            self._timer = loop.call_later(left, self._watch)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WssServer:
    """Listens, and ties sessions to the relay. Belongs to the event loop that start() runs in."""

    def __init__(
        self,
        config: WssConfig,
        key_of: KeyOf,
        registry_connection: Callable[[], asyncio.Protocol] | None = None,
    ) -> None:
        """key_of: the registered Ed25519 key of a node, None if there is none; PilotError if it cannot be had now.
        registry_connection: makes the protocol of one more client of the registry, which then is reachable here too."""
        self.config = config
        self.key_of = key_of
        self.registry_connection = registry_connection
        self.verifier = Verifier(0)  # every challenge is another
        self.counts: Counter[str] = Counter()
        self._relay: RelayLoop | None = None
        self._server: asyncio.Server | None = None
        self._sessions: set[_Session] = set()
        self._by_ip: Counter[str] = Counter()
        self._by_node: dict[int, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, relay: RelayLoop) -> tuple[str, int]:
        """Listens; returns where. Raises PilotError when the address is not to be had."""
        loop = asyncio.get_running_loop()
        host, port = self.config.bind
        tls = self.config.tls
        try:
            self._server = await loop.create_server(
                lambda: _Session(self), host or None, port, ssl=tls, backlog=1024, ssl_handshake_timeout=10 if tls else None
            )
        except OSError as error:
            hint = "another program uses the port, or the address is not one of this host"
            if error.errno == errno.EACCES:
                hint = "ports below 1024 need the capability CAP_NET_BIND_SERVICE"
            reason = error.strerror or str(error)
            message = f"beacon cannot listen on {host or '*'}:{port} for WebSockets: {reason}"
            raise PilotError("connection_failed", message, hint) from error
        self._relay = relay
        loop.add_reader(relay.hand_fd, self._deliver)
        bound = self._server.sockets[0].getsockname()
        log.info("WebSockets are served", extra={"addr": join(bound[0], bound[1]), "tls": bool(tls)})
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Closes everything. Idempotent."""
        if self._server is None or self._relay is None:
            return
        self._server.close()
        self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self._sessions):
            session.close(GOING_AWAY, "the beacon stops")
        asyncio.get_running_loop().remove_reader(self._relay.hand_fd)
        for node in list(self._by_node):
            self._detach(node)

    # For sessions

    def admit(self, session: _Session) -> bool:
        """Takes a new connection; False if there are too many, in all or from its address."""
        if len(self._sessions) >= self.config.max_connections or self._by_ip[session.ip] >= self._limit_of(session.ip):
            self.counts["refused"] += 1
            return False
        self._sessions.add(session)
        self._by_ip[session.ip] += 1
        self.counts["connections"] += 1
        return True

    def _limit_of(self, ip: str) -> int:
        behind_terminator = self.config.tls is None and ip_address(ip).is_loopback
        return self.config.max_connections if behind_terminator else self.config.max_per_ip

    def gone(self, session: _Session) -> None:
        """The connection is over."""
        if session in self._sessions:
            self._sessions.discard(session)
            self._by_ip[session.ip] -= 1
            if self._by_ip[session.ip] <= 0:
                del self._by_ip[session.ip]
        if session.node and self._by_node.get(session.node) is session:
            self._detach(session.node)

    def judge(self, session: _Session, text: str) -> None:
        """Checks an answer to the challenge and attaches the node, or closes the connection."""
        task = asyncio.get_running_loop().create_task(self._judge(session, text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, session: _Session, text: str) -> None:
        try:
            wrong = await session.check(text)
        except PilotError as error:
            log.warning("WebSocket client cannot be judged: the registry is out of reach", extra={"error": error.message})
            session.close(TRY_LATER, "the registry is out of reach")
            return
        if not session.open:  # meanwhile it ended
            session.node = 0
            return
        if wrong:
            self.counts["auth_failed"] += 1
            log.info("WebSocket client refused", extra={"ip": session.peer[0], "reason": wrong})
            session.close(POLICY, wrong)
            return
        before = self._by_node.pop(session.node, None)
        if before is not None:
            before.node = 0
            self.counts["replaced"] += 1
            before.close(1000, "replaced by a new connection")
        assert self._relay is not None
        try:
            self._relay.attach(session.node)
        except CoreError:
            session.node = 0
            self.counts["refused"] += 1
            session.close(TRY_LATER, "the beacon is full")
            return
        self._by_node[session.node] = session
        session.proved()

    def sent(self, session: _Session, messages: list[bytes]) -> None:
        """Datagrams of a proved node."""
        if self._relay is not None and self._by_node.get(session.node) is session:
            for at in range(0, len(messages), 4096):
                self._relay.inject(session.node, messages[at : at + 4096])

    # For the beacon

    def notify(self, node: int, datagram: bytes) -> bool:
        """Sends a notify to an attached node. False if it is not attached, or would not know what that is."""
        session = self._by_node.get(node)
        return session is not None and session.notifies and session.send((datagram,)) == 1

    def stats(self) -> dict[str, int]:
        """Counters since the start, and gauges. Nothing in it comes from strangers."""
        own = {"connections_open": len(self._sessions), "nodes": len(self._by_node), **self.counts}
        return {f"wss_{name}": value for name, value in own.items()}

    # Inside

    def _deliver(self) -> None:
        """The relay has datagrams for attached nodes. What a slow reader has no room for is lost, as on any full link."""
        assert self._relay is not None
        batches: dict[int, list[bytes]] = {}
        for node, datagram in self._relay.take():
            batches.setdefault(node, []).append(datagram)
        for node, datagrams in batches.items():
            session = self._by_node.get(node)
            taken = session.send(datagrams) if session else 0
            self.counts["delivered"] += taken
            self.counts["dropped"] += len(datagrams) - taken

    def _detach(self, node: int) -> None:
        self._by_node.pop(node, None)
        if self._relay is not None:
            self._relay.detach(node)


def _select(_: Any, offered: Any) -> Subprotocol | None:
    """A client that names no subprotocol is let in; one that names only others is told none."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None
