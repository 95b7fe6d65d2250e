"""Between the data plane and a WebSocket to the beacon (beacon.md 11): a UDP socket on loopback that the engine takes for its
beacon.

The engine and the path machines see an ordinary relay. Only the tunnel socket of this node can talk to the bridge: the kernel
drops what comes from elsewhere. Datagrams move in batches: a train of them is one read and one write.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from websockets.client import ClientProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from pilot.errors import PilotError
from pilot.websocket import MAX_FRAME, QUIET, StreamSocket, WebSocket
from pilot.wire.beacon import BeaconType, Discover, DiscoverReply, parse

Addr = tuple[str, int]
_T = TypeVar("_T")

READS = 32  # of the socket per wake-up
BUFFER = 4 << 20
PONG_S = 10.0
NOWHERE = ("0.0.0.0", 0)  # a beacon behind a stream cannot tell our endpoint
_UP = (BeaconType.DISCOVER, BeaconType.RELAY)
_DOWN = (BeaconType.DELIVER, BeaconType.NOTIFY)
_UDP_SEGMENT, _UDP_GRO = 103, 104
_TRAIN_BYTES, _TRAIN_SEGMENTS = 60_000, 60


class BeaconLink(WebSocket):
    """The WebSocket to the beacon. authenticate() once it is connected; ended: set when it is over, with the reason."""

    def __init__(self, uri: WebSocketURI, received: Callable[[list[bytes]], None], pong: Callable[[], None]) -> None:
        """received: datagrams from the beacon. pong: it has answered a ping."""
        super().__init__(
            ClientProtocol(uri, subprotocols=[Subprotocol("pilot.v1")], extensions=[], max_size=MAX_FRAME, logger=QUIET)
        )
        loop = asyncio.get_running_loop()
        self._received = received
        self._pong = pong
        self._challenge: asyncio.Future[tuple[str, int]] = loop.create_future()
        self._accepted: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()

    async def challenged(self) -> None:
        """Returns when the beacon has asked who we are: it serves nodes here. Raises PilotError if it does not."""
        await self._wait(self._challenge)

    async def authenticate(self, node: int, public_text: str, sign: Callable[[bytes], bytes]) -> None:
        """Proves that we are `node`. public_text: base64 of the key. Raises PilotError: what the beacon says against it."""
        nonce, ts = await self._wait(self._challenge)
        signature = sign(f"compat_auth:{node}:{ts}:{nonce}".encode())
        reply = {
            "type": "auth_reply", "node_id": node, "public_key": public_text,
            "sig": base64.b64encode(signature).decode(), "accept": ["notify"],
        }  # fmt: skip
        self.send_text(json.dumps(reply))
        await self._wait(self._accepted)

    async def _wait(self, wanted: asyncio.Future[_T]) -> _T:
        await asyncio.wait((wanted, self.ended), return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise PilotError("connection_failed", f"the beacon's WebSocket: {self.ended.result()}", retryable=True)
        return wanted.result()

    def on_text(self, text: str) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(text)
            kind = message.get("type") if isinstance(message, dict) else None
            if kind == "auth_challenge" and not self._challenge.done():
                nonce, ts = message.get("nonce"), message.get("ts")
                if isinstance(nonce, str) and len(nonce) <= 256 and type(ts) is int:
                    self._challenge.set_result((nonce, ts))
            elif kind == "auth_ok" and not self._accepted.done():
                self._accepted.set_result(None)

    def on_messages(self, messages: list[bytes]) -> None:
        self._received(messages)

    def on_pong(self, payload: bytes) -> None:
        self._pong()

    def on_end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)


class RegistryStream(StreamSocket):
    """A WebSocket to the registry. opened: done when it stands, with PilotError if it will not."""

    def __init__(self, uri: WebSocketURI) -> None:
        super().__init__(ClientProtocol(uri, extensions=[], max_size=MAX_FRAME, logger=QUIET))
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_open(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def on_end(self, reason: str) -> None:
        super().on_end(reason)
        if not self.opened.done():
            self.opened.set_exception(PilotError("connection_failed", f"no registry beside the beacon: {reason}", retryable=True))
            self.opened.exception()  # seen, also if nobody waits any more


class Bridge:
    """addr: the beacon as the engine sees it. dropped: datagrams that found no link, or a congested one."""

    def __init__(self, tunnel: Addr) -> None:
        """tunnel: where the tunnel socket is bound. Opens the socket; OSError."""
        host, port = tunnel
        own = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)
        self._socket = socket.socket(socket.AF_INET6 if ":" in own else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER)
            self._gro = self._try_option(_UDP_GRO)
            self._gso = self._gro
            self._socket.bind((own, 0))
            self._socket.connect((own, port))
        except OSError:
            self._socket.close()
            raise
        name = self._socket.getsockname()
        self.addr: Addr = (str(name[0]), int(name[1]))
        self.dropped = 0
        self._link: BeaconLink | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._nonce = b""  # of the engine's last discover
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Idempotent."""
        self.use(None)
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def use(self, link: BeaconLink | None) -> bool:
        """Datagrams go through `link` from here on; None: they are lost. False if it is in use already."""
        if link is self._link:
            return False
        self._link = link
        if self._watch:
            self._watch.cancel()
            self._watch = None
        return True

    # Outward

    def _readable(self) -> None:
        batch: list[bytes] = []
        try:
            for _ in range(READS):
                self._split(*self._receive(), batch)
        except BlockingIOError:
            pass
        except OSError:
            pass  # the tunnel socket is gone or was not there yet: the kernel says so once
        if not batch:
            return
        link = self._link
        taken = link.send(batch) if link else 0
        self.dropped += len(batch) - taken
        asked = next((d for d in reversed(batch) if d[0] == BeaconType.DISCOVER), None)
        if asked and isinstance(message := parse(asked), Discover):
            self._nonce = message.nonce
            if link and taken:
                self._ask(link)

    def _receive(self) -> tuple[bytes, int]:
        """One datagram or a train of them, and the size of each in a train."""
        if not self._gro:
            return self._socket.recv(65536), 0
        data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(4))
        for level, kind, value in ancillary:
            if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
                return data, int(struct.unpack("=i", value[:4])[0])
        return data, 0

    def _split(self, data: bytes, size: int, batch: list[bytes]) -> None:
        size = size or len(data)
        for at in range(0, len(data), size):
            if data[at] in _UP:  # the rest is of no use on this way: no punch, no endpoint
                batch.append(data[at : at + size])

    def _ask(self, link: BeaconLink) -> None:
        """The engine asks whether its beacon is there: so do we."""
        link.ping(b"pilot")
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(PONG_S, link.abort)

    # Inward

    def pong(self) -> None:
        """The beacon answered a ping: its answer to the engine's discover."""
        if self._watch:
            self._watch.cancel()
            self._watch = None
        self._send([DiscoverReply(NOWHERE, 0, self._nonce).build()])

    def deliver(self, datagrams: list[bytes]) -> None:
        """Datagrams from the beacon, for the engine. The kernel's buffer is the only queue."""
        self._send([d for d in datagrams if d and d[0] in _DOWN])

    def _send(self, datagrams: Sequence[bytes]) -> None:
        at = 0
        while at < len(datagrams):
            n = _train(datagrams, at) if self._gso else 1
            try:
                if n == 1:
                    self._socket.send(datagrams[at])
                else:
                    size = struct.pack("=H", len(datagrams[at]))
                    self._socket.sendmsg(datagrams[at : at + n], [(socket.IPPROTO_UDP, _UDP_SEGMENT, size)])
            except OSError as error:
                if n > 1 and not isinstance(error, BlockingIOError | ConnectionRefusedError):
                    self._gso = False  # a kernel without it
                    continue
                self.dropped += n
            at += n

    def _try_option(self, option: int) -> bool:
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, option, 1)
        except OSError:
            return False
        return True


def _train(datagrams: Sequence[bytes], at: int) -> int:
    """How many from `at` on can leave as one train: of one size, the last may be shorter."""
    size = total = len(datagrams[at])
    n = 1
    while at + n < len(datagrams) and n < _TRAIN_SEGMENTS:
        following = len(datagrams[at + n])
        if following > size or total + following > _TRAIN_BYTES:
            break
        total += following
        n += 1
        if following < size:
            break
    return n
