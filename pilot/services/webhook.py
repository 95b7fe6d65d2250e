"""Webhook: events of the node, POSTed one at a time as JSON (services.md section 6).

A queue of 1024, three attempts for what may pass, a breaker when the receiver is down. The receiver's address is checked at
the moment of connecting, so that a name cannot lead to a link-local (metadata) service. Of the answer nothing but the head is
read: a receiver, however slow or talkative, has a request's attention for REQUEST_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import re
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pilot.errors import PilotError

QUEUE = 1024
REQUEST_S = 5.0  # from the connection to the answer
MAX_HEAD = 64 << 10  # of the answer, interim answers included
RETRY_S = (1.0, 2.0)  # before the second and the third attempt
BREAKER_FAILURES = 5
BREAKER_S = 30.0
METADATA_HOSTS = frozenset({"metadata.google.internal", "metadata.goog", "instance-data"})
METADATA_ADDRESSES = frozenset({"fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"})
_TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))  # the last 32 bits are an IPv4 address
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: [^\r\n]*)?\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")


def check_url(url: str) -> None:
    """Raises PilotError(invalid_argument) unless `url` is an http(s) URL that may be a receiver."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # what the resolver does: no label is empty or too long
    except ValueError:
        raise PilotError("invalid_argument", f"invalid URL {url!r}") from None
    if parts.scheme not in ("http", "https"):
        raise PilotError("invalid_argument", f'URL must use http or https scheme, got "{parts.scheme}"')
    if not host:
        raise PilotError("invalid_argument", f"URL has no host: {url!r}")
    if any(c.isspace() or ord(c) < 0x20 or ord(c) == 0x7F for c in url):
        raise PilotError("invalid_argument", "URL must not contain blanks or control characters")
    if not url.isascii() or port == 0:
        raise PilotError("invalid_argument", f"invalid URL {url!r}", "percent-encode its path; write its host as xn--...")
    if host.rstrip(".").lower() in METADATA_HOSTS:
        raise PilotError("invalid_argument", f"URL cannot target metadata host {host}")
    with contextlib.suppress(ValueError):
        _check_address(host)


def _check_address(ip_text: str) -> None:
    """PilotError for link-local addresses; ValueError if `ip_text` is not an address."""
    ip = ipaddress.ip_address(ip_text.partition("%")[0])
    for meant in (ip, _inner(ip)):
        if meant is not None and (meant.is_link_local or str(meant) in METADATA_ADDRESSES):
            raise PilotError("invalid_argument", f"URL cannot target link-local address {ip_text}")


def _inner(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for, mapped, translated or tunnelled."""
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if any(ip in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour


def timestamp(ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds, as the bodies carry it."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:09d}Z"


def signature(secret: str, body: bytes) -> str:
    """Value of `X-Pilot-Signature-256`: hex HMAC-SHA-256 of the body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _left(until: float) -> float:
    """Seconds until the end of a request (monotonic clock); TimeoutError after it."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"no answer within {REQUEST_S:g} s")
    return left


def _connect(host: str, port: int, until: float) -> socket.socket:
    """Connects to the first address of `host` that answers and is allowed."""
    error: OSError | None = None
    for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        _check_address(str(address[0]))
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(_left(until))
            sock.connect(address)
            return sock
        except OSError as e:
            sock.close()
            error = e
    raise error or OSError(f"no address for {host}")


def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """One POST without redirects; the status code. Blocks at most REQUEST_S after the name is resolved. OSError, also if the
    answer is not HTTP; PilotError."""
    parts = urlsplit(url)
    assert parts.hostname
    tls = parts.scheme == "https"
    until = time.monotonic() + REQUEST_S
    sock = _connect(parts.hostname, parts.port or (443 if tls else 80), until)
    try:
        sock.settimeout(_left(until))
        if tls:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
            sock.settimeout(_left(until))
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        fields = {
            "Host": host if parts.port is None else f"{host}:{parts.port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = (f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", "")
        sock.sendall("\r\n".join(lines).encode("ascii") + body)
        return _status(sock, until)
    finally:
        sock.close()


def _status(sock: socket.socket, until: float) -> int:
    """The status code of the answer; interim ones are passed over."""
    head, size = b"", 0
    while True:
        line, end = _STATUS.match(head), _HEAD_END.search(head)
        if line is None and b"\n" in head:
            raise OSError("not an HTTP response")
        if line and end:
            if (code := int(line[1])) >= 200:
                return code
            head = head[end.end() :]
            continue
        if size > MAX_HEAD:
            raise OSError("an answer with too long a head")
        sock.settimeout(_left(until))
        data = sock.recv(16384)
        if not data:
            raise OSError("the connection was closed before the answer")
        head += data
        size += len(data)


@dataclass(slots=True)
class WebhookStats:
    """delivered, failed: events. dropped: the queue was full. skipped: the breaker was open."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    skipped: int = 0


class Webhook:
    """The sender of one node. `emit` never blocks and never fails; `run` delivers until cancelled."""

    def __init__(
        self,
        *,
        url: str = "",
        secret: str = "",
        on_failure: Callable[[str, str], None] = lambda event, reason: None,
        send: Callable[[str, bytes, Mapping[str, str]], int] = post,
    ) -> None:
        """url: checked by the caller (check_url), "" = off. on_failure(event, reason): an event was given
        up."""
        self.stats = WebhookStats()
        self.node_id = 0
        self._url = url
        self._secret = secret
        self._on_failure = on_failure
        self._send = send
        self._queue: deque[tuple[str, bytes]] = deque()
        self._wake = asyncio.Event()
        self._next_id = 1
        self._failures = 0
        self._open_until = 0.0
        self._idle = asyncio.Event()  # nothing queued, nothing on its way
        self._idle.set()

    @property
    def url(self) -> str:
        return self._url

    def set_url(self, url: str) -> None:
        """Swaps the receiver at once; "" turns the webhook off. PilotError for a URL that is not allowed."""
        if url:
            check_url(url)
        self._url = url
        self._failures, self._open_until = 0, 0.0
        if not url:
            self._queue.clear()

    def emit(self, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Queues one event; a full queue drops it and counts."""
        if not self._url:
            return
        if len(self._queue) >= QUEUE:
            self.stats.dropped += 1
            return
        body: dict[str, Any] = {
            "event_id": self._next_id,
            "event": event,
            "node_id": self.node_id,
            "timestamp": timestamp(time.time_ns()),
        }
        if data is not None:
            body["data"] = dict(data)
        self._next_id += 1
        self._idle.clear()
        self._queue.append((event, json.dumps(body, separators=(",", ":")).encode()))
        self._wake.set()

    async def run(self) -> None:
        """Delivers queued events in order, for ever."""
        while True:
            while not self._queue:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            event, body = self._queue.popleft()
            if time.monotonic() < self._open_until:
                self.stats.skipped += 1
                continue
            await self._deliver(event, body)

    async def drain(self, seconds: float) -> None:
        """Waits for the queue to empty, at most `seconds`; for the last events before the program ends."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def _deliver(self, event: str, body: bytes) -> None:
        reason = await self._attempts(body)
        if not reason:
            self._failures = 0
            self.stats.delivered += 1
            return
        self.stats.failed += 1
        self._on_failure(event, reason)
        self._failures += 1
        if self._failures >= BREAKER_FAILURES:
            self._failures = 0
            self._open_until = time.monotonic() + BREAKER_S

    async def _attempts(self, body: bytes) -> str:
        """Tries up to three times; "" when delivered, else why not."""
        headers = {"X-Pilot-Signature-256": signature(self._secret, body)} if self._secret else {}
        for pause in (*RETRY_S, None):
            url = self._url
            if not url:
                return "webhook was turned off"
            try:
                status = await asyncio.to_thread(self._send, url, body, headers)
            except PilotError as e:
                return e.message
            except (OSError, ValueError) as e:
                reason = f"{type(e).__name__}: {e}"
            else:
                if status < 300:
                    return ""
                reason = f"HTTP status {status}"
                if status < 500:
                    return reason
            if pause is not None:
                await asyncio.sleep(pause)
        return reason
