"""One question to the registry over TCP, without the daemon (registry.md sections 1 and 2)."""

from __future__ import annotations

import socket
from typing import Any

from pilot.errors import PilotError
from pilot.wire import WireError
from pilot.wire.registry import HEAD_SIZE, body_size, decode, encode

TIMEOUT = 8.0


def ask(address: str, request: dict[str, Any]) -> dict[str, Any]:
    """The reply object. Raises PilotError: connection_failed, not_found, invalid_argument."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        if not address:
            raise PilotError(
                "invalid_argument", "no registry configured", "pilotctl config --set registry=HOST:9000"
            )
        raise PilotError("invalid_argument", f"registry: want host:port, got {address}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT) as sock:
            sock.sendall(encode(request))
            reply = decode(_exactly(sock, body_size(_exactly(sock, HEAD_SIZE))))[0]
    except (OSError, WireError) as e:
        message = f"cannot reach the registry at {address}: {e}"
        raise PilotError("connection_failed", message, "check that the registry is running", True) from None
    if "error" in reply:
        text = str(reply["error"])
        code = "not_found" if "not found" in text else "connection_failed"
        raise PilotError(code, f"registry: {text}")
    return reply


def _exactly(sock: socket.socket, count: int) -> bytes:
    out = bytearray()
    while len(out) < count:
        part = sock.recv(count - len(out))
        if not part:
            raise ConnectionError("the registry closed the connection")
        out += part
    return bytes(out)
