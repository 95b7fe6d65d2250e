"""A registry client for short-lived programs: one connection, no event loop, few imports (registry.md sections 1, 5)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from types import TracebackType

from pilot.errors import PilotError
from pilot.registry import calls
from pilot.registry.calls import DEADLINE_S, HINT, Message, Signer
from pilot.wire import registry as wire
from pilot.wire.errors import WireError


class BlockingRegistry:
    """Calls to a registry, one after the other. Use as a context manager. Methods raise PilotError."""

    def __init__(
        self, host: str, port: int, *, tls_trust: str = "", fingerprint: str = "", deadline_s: float = DEADLINE_S
    ) -> None:
        """tls_trust: "" for plain TCP, "pinned" (by `fingerprint`) or "system". deadline_s: for each call."""
        self._host = host
        self._port = port
        self._trust = tls_trust
        self._pin = fingerprint
        self._deadline_s = deadline_s
        self._socket: socket.socket | None = None

    def __enter__(self) -> BlockingRegistry:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. Idempotent."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def lookup(self, node: int) -> Message:
        """What everybody may know about a node."""
        return self.call("lookup", {"node_id": node})

    def resolve_hostname(self, hostname: str) -> Message:
        """The node of a name."""
        return self.call("resolve_hostname", {"hostname": hostname})

    def register(
        self, identity: Signer, listen_addr: str = "", *, hostname: str = "", owner: str = "", lan_addrs: Sequence[str] = ()
    ) -> Message:
        """Registers an identity: node_id, address, observed_addr, hostname or hostname_error."""
        optional = {"hostname": hostname, "owner": owner, "lan_addrs": list(lan_addrs)}
        return self.call("register", calls.register(identity, listen_addr, optional))

    def call(self, command: str, fields: Message) -> Message:
        """Sends a command and returns the reply. Repeats itself once on a new connection when an old one has broken."""
        frame = calls.frame(command, fields)
        until = time.monotonic() + self._deadline_s
        for last_try in (self._socket is None, True):
            try:
                return calls.check(command, self._exchange(frame, until))
            except WireError as error:
                self.close()
                raise PilotError("internal", f"the registry broke the protocol: {error}") from error
            except TimeoutError:
                self.close()
                message = f"the registry {self._host}:{self._port} does not answer in time"
                raise PilotError("timeout", message, HINT, True) from None
            except OSError as error:
                self.close()
                if last_try:
                    message = f"cannot reach the registry {self._host}:{self._port}: {error.strerror or error}"
                    raise PilotError("connection_failed", message, HINT, True) from error
        raise AssertionError("unreachable")

    def _exchange(self, frame: bytes, until: float) -> Message:
        if self._socket is None:
            self._socket = self._connect(until)
        self._socket.settimeout(_left(until))
        self._socket.sendall(frame)
        size = wire.body_size(self._read(wire.HEAD_SIZE, until))
        return wire.decode(self._read(size, until))[0]

    def _connect(self, until: float) -> socket.socket:
        plain = socket.create_connection((self._host, self._port), timeout=_left(until))
        if not self._trust:
            return plain
        from pilot.registry import tls  # the ssl module is dear to import

        try:
            secure = tls.client_context(self._trust == "pinned").wrap_socket(plain, server_hostname=self._host)
            if self._trust == "pinned":
                tls.check_pin(secure.getpeercert(binary_form=True), self._pin)
        except BaseException:
            plain.close()
            raise
        return secure

    def _read(self, size: int, until: float) -> bytes:
        assert self._socket is not None
        parts: list[bytes] = []
        while size:
            self._socket.settimeout(_left(until))
            part = self._socket.recv(min(size, 1 << 16))
            if not part:
                raise ConnectionResetError("the registry closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
