"""One connection to the beacon's WebSocket door (beacon.md section 11): a health check, a node, or a stream to the registry.

Until a client has proved who it is, it may make us hold and look at little: a request and one answer. What a node sends later is
looked at in slices and at the rate of its budget, so that nobody keeps the loop busy that the registry runs on as well.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from pilot.registry.endpoint import ip_group, plain_ip
from pilot.registry.limits import Buckets
from pilot.websocket import MAX_FRAME, QUIET, UNREAD_MAX, StreamSocket

if TYPE_CHECKING:
    from pilot.beacon.wss import WssServer

PATH = "/v1/compat"
REGISTRY_PATH = "/v1/registry"
SUBPROTOCOL = Subprotocol("pilot.v1")
POLICY = 1008
GOING_AWAY = 1001
SLICE = 16 << 10  # bytes looked at in a row
EARLY_BYTES = 96 << 10  # before the proof: a request, and one answer of any size that a message can have
EARLY_FRAMES = 64
UNREAD_EARLY = 64 << 10  # bytes held for a client that does not read, before the proof
UNREAD_PROVED = 1 << 20  # behind it; a stream to the registry holds what the registry lets it
NOTIFY = "notify"  # what a client of ours says that it accepts besides 0x06


def signed_text(node: int, ts: int, nonce: str) -> bytes:
    """What a client signs to be taken for `node`."""
    return f"compat_auth:{node}:{ts}:{nonce}".encode()


class Session(StreamSocket):
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
        self.group = ""  # of addresses that counts as one
        self._early = 0  # bytes before the proof
        self._left = b""  # arrived, and waits for the budget
        self._budget = Buckets(server.config.frames_per_s, server.config.frames_burst, 1)
        self._resume: asyncio.TimerHandle | None = None
        self.unread_max = UNREAD_EARLY

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self.ip = plain_ip(name[0]) if name else ""
        self.group = ip_group(self.ip)
        self.peer = (self.ip, name[1] if name else 0)
        if not name or not self._server.admit(self):
            self.abort()
            return
        self._timer = asyncio.get_running_loop().call_later(self._server.config.auth_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if not self._proved:
            self._early += len(data)
            if self._early > EARLY_BYTES:
                self._talkative()
                return
        self._left += data
        if self._resume is None:
            self._go_on()

    def _go_on(self) -> None:
        """Deals with what has arrived, a slice at a time, as fast as the budget lets it: frames cost time, not bytes."""
        self._resume = None
        loop = asyncio.get_running_loop()
        while self._left and self.transport is not None:
            part, self._left = self._left[:SLICE], self._left[SLICE:]
            before = self.frames
            super().data_received(part)
            if not self._proved and self.frames > EARLY_FRAMES:
                self._talkative()
                return
            wait = self._budget.spend("", loop.time(), self.frames - before)
            if wait > 0:
                self._server.counts["throttled"] += 1
                self.hold("budget")
                self._resume = loop.call_later(wait, self._go_on)
                return
        self.release("budget")

    @property
    def _proved(self) -> bool:
        return bool(self.node) or self._inner is not None

    def _talkative(self) -> None:
        self._server.counts["talkative"] += 1
        self._left = b""
        self.abort()

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
            self.unread_max = UNREAD_MAX
            self._server.settled(self)
            self._server.counts["registry_streams"] += 1
            self.carry(self._server.registry_connection(), self.peer)
            return
        self._ts = int(time.time())
        self.send_text(json.dumps({"type": "auth_challenge", "nonce": self._nonce, "ts": self._ts}))

    def on_end(self, reason: str) -> None:
        super().on_end(reason)
        self._stop_timer()
        if self._resume is not None:
            self._resume.cancel()
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
        self.unread_max = UNREAD_PROVED
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


def _select(_: Any, offered: Any) -> Subprotocol | None:
    """A client that names no subprotocol is let in; one that names only others is told none."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None
