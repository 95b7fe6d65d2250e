"""Connections to a WebSocket URL: TLS by system trust or a pinned certificate, through an HTTP proxy where there is one."""

from __future__ import annotations

import asyncio
import base64
import ssl
import urllib.parse
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, cast

from pilot.errors import PilotError
from pilot.registry.tls import client_context, der_fingerprint

if TYPE_CHECKING:
    from websockets.uri import WebSocketURI

    from pilot.websocket import WebSocket

CONNECT_S = 8.0  # name, proxy, TCP and TLS together
MAX_HEAD = 8 << 10


@dataclass(frozen=True, slots=True)
class Door:
    """Where and how to connect. url: `wss://host[:port]/path`. pin: hex SHA-256 of the certificate, "" = system trust.
    proxy: `auto` (from the environment), `off`, or `http://[user:password@]host:port`."""

    url: str
    pin: str = ""
    proxy: str = "auto"

    def uri(self, path: str = "") -> WebSocketURI:
        """The parsed URL, with another path if given. PilotError if it is not a WebSocket URL."""
        from websockets.exceptions import InvalidURI
        from websockets.uri import parse_uri

        try:
            uri = parse_uri(self.url)
        except InvalidURI:
            raise PilotError("invalid_argument", f"not a WebSocket URL: {self.url}", "wss://host/v1/compat") from None
        if path:
            uri.path = path
        return uri


def proxy_for(proxy: str, host: str, secure: bool) -> str:
    """The proxy URL to use toward `host`, "" for none. Loopback is never reached through a proxy."""
    if proxy == "off" or host == "localhost" or _is_loopback(host):
        return ""
    if proxy != "auto":
        return proxy
    import urllib.request  # costs 3.7 MB, and few nodes come here

    known = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass(host):
        return ""
    return known.get("https" if secure else "http") or known.get("all") or ""


def check_proxy(text: str) -> str:
    """A value for Door.proxy. ValueError says what is wanted; the URL's password is not in it."""
    if text in ("", "auto"):
        return "auto"
    if text in ("off", "no", "none", "false", "direct"):
        return "off"
    _split_proxy(text)
    return text


def _split_proxy(url: str) -> tuple[str, int, str]:
    """(host, port, value of Proxy-Authorization or "")."""
    wanted = "want auto, off or http://[user:password@]host:port"
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or 80
    except ValueError:
        raise ValueError(wanted) from None
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(wanted)
    if parts.username is None:
        return parts.hostname, port, ""
    user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return parts.hostname, port, "Basic " + base64.b64encode(user.encode()).decode()


async def connect(door: Door, uri: WebSocketURI, socket: WebSocket) -> None:
    """Connects `socket`, whose machine speaks to `uri`; its HTTP exchange is under way then.

    Raises OSError (also TimeoutError, ssl.SSLError), or PilotError: permission_denied if the certificate is not the pinned one,
    connection_failed if the proxy refuses.
    """
    loop = asyncio.get_running_loop()
    context = client_context(bool(door.pin)) if uri.secure else None
    proxy = proxy_for(door.proxy, uri.host, uri.secure)
    async with asyncio.timeout(CONNECT_S):
        if proxy:
            transport = await _through(proxy, uri)
            if context is not None:
                secured = await loop.start_tls(transport, socket, context, server_hostname=uri.host)
                transport = cast(asyncio.Transport, secured)  # None only if the transport was closed meanwhile, which raises
            else:
                transport.set_protocol(socket)
            _check_pin(transport, door.pin, uri)
            socket.connection_made(transport)
            transport.resume_reading()
        else:
            transport, _ = await loop.create_connection(
                lambda: socket, uri.host, uri.port, ssl=context, server_hostname=uri.host if context else None
            )
            _check_pin(transport, door.pin, uri)


def _check_pin(transport: asyncio.Transport, pin: str, uri: WebSocketURI) -> None:
    if not pin or not uri.secure:
        return
    ssl_object: ssl.SSLObject = transport.get_extra_info("ssl_object")
    found = der_fingerprint(ssl_object.getpeercert(binary_form=True) or b"")
    if found != pin.lower():
        transport.abort()
        raise PilotError(
            "permission_denied", f"the certificate of {uri.host}:{uri.port} is not the pinned one (it has {found})",
            "if the beacon has a new certificate, set -compat-fingerprint to it; otherwise somebody is in between",
        )  # fmt: skip


class _Head(asyncio.Protocol):
    """Reads the head of one HTTP response and stops there."""

    def __init__(self) -> None:
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if self.done.done():
            return
        if end and not rest:
            assert self._transport is not None
            self._transport.pause_reading()
            self.done.set_result(head)
        elif end or len(self._data) > MAX_HEAD:  # the server behind it never speaks first
            self.done.set_exception(PilotError("connection_failed", "the proxy does not speak HTTP", retryable=True))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionResetError("closed by the proxy"))


async def _through(proxy: str, uri: WebSocketURI) -> asyncio.Transport:
    """A connection to the host of `uri` made by a proxy (RFC 9110 section 9.3.6), not read from yet."""
    try:
        host, port, authorization = _split_proxy(proxy)
    except ValueError as error:
        raise PilotError("invalid_argument", f"the proxy of the environment cannot be used: {error}") from None
    transport, head = await asyncio.get_running_loop().create_connection(_Head, host, port)
    target = f"[{uri.host}]:{uri.port}" if ":" in uri.host else f"{uri.host}:{uri.port}"
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if authorization:
        request += f"Proxy-Authorization: {authorization}\r\n"
    try:
        transport.write(f"{request}\r\n".encode())
        status = (await head.done).split(b"\r\n", 1)[0].split(b" ", 2)
        if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or status[1] != b"200":
            why = b" ".join(status[1:])[:80].decode(errors="replace")
            hint = "the proxy wants a user and a password: -proxy http://user:password@host:port" if why.startswith("407") else ""
            raise PilotError("connection_failed", f"the proxy {host}:{port} refuses: {why}", hint, retryable=True)
    except BaseException:
        transport.abort()
        raise
    return transport


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
