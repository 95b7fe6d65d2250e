"""A listening TCP address for strangers: who gets in is decided before anything is done for him.

asyncio begins the TLS handshake of a connection before its protocol hears of it; whoever opens connections and never finishes
the handshake would cost memory and descriptors that nobody counts. Here a connection is counted when it is accepted, per address
and in all; how fast one address may open connections has a limit; and when too many handshakes are unfinished the oldest one
gives way, so that those who finish theirs always get in.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pilot.registry.endpoint import ip_group, plain_ip

BACKLOG = 1024
AT_ONCE = 64  # connections accepted in a row
CLOSE_S = 5.0  # for the other side's part in closing TLS
REST_S = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one address (IPv6: /64), unless said otherwise."""

    handshake_s: float = 10.0
    handshakes: int = 64  # unfinished ones
    handshakes_all: int = 1024  # of all addresses
    opens_per_s: float = 100.0  # new connections
    opens_burst: float = 500.0
    addresses: int = 50_000  # whose rate is remembered


class Listener:
    """counts: `refused` (too fast, or too many handshakes from one address), `displaced` and `failed` handshakes, `exhausted`
    (the process has no descriptors left)."""

    def __init__(
        self, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None, limits: Limits | None = None,
        trusted: Callable[[str], bool] = lambda ip: False,
    ) -> None:  # fmt: skip
        """make: the protocol of one more connection. trusted: addresses without a limit, such as that of a TLS terminator."""
        self.limits = limits or Limits()
        self.counts: Counter[str] = Counter()
        self._make = make
        self._tls = tls
        self._trusted = trusted
        self._sockets: list[socket.socket] = []
        self._handshakes: OrderedDict[asyncio.Task[None], str] = OrderedDict()  # -> the address group, oldest first
        self._by_ip: Counter[str] = Counter()  # handshakes
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()  # opens: tokens, when
        self._pause: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listens on `host` ("" = all addresses) and `port` (0 = a free one); returns where. OSError."""
        try:
            for family, addr in await _places(host, port):
                bound = self._sockets[0].getsockname()[1] if self._sockets else addr[1]
                dual = family == socket.AF_INET6 and not host
                made = socket.create_server((addr[0], bound), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
                made.setblocking(False)
                self._sockets.append(made)
        except OSError:
            self.close()
            raise
        self._listen()
        name = self._sockets[0].getsockname()
        return str(name[0]), int(name[1])

    def close(self) -> None:
        """No new connections; unfinished handshakes end. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for listening in self._sockets:
            if listening.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            listening.close()
        self._sockets.clear()
        for task in self._handshakes:
            task.cancel()

    @property
    def handshakes(self) -> int:
        """Connections that are not ready yet: with TLS, unfinished handshakes."""
        return len(self._handshakes)

    # Inside

    def _listen(self) -> None:
        self._pause = None
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._rest()
                return
            self._knock(connection, plain_ip(name[0]))

    def _rest(self) -> None:
        """No descriptor or no memory for one more connection: those that wait do so for a moment."""
        self.counts["exhausted"] += 1
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            loop.remove_reader(listening.fileno())
        if self._pause is None:
            self._pause = loop.call_later(REST_S, self._listen)

    def _knock(self, connection: socket.socket, ip: str) -> None:
        group = ip_group(ip)
        if not self._trusted(ip) and not (self._may_open(group) and self._by_ip[group] < self.limits.handshakes):
            self.counts["refused"] += 1
            connection.close()
            return
        if len(self._handshakes) >= self.limits.handshakes_all:
            self.counts["displaced"] += 1
            oldest = next(iter(self._handshakes))
            oldest.cancel()
            self._forget(oldest)
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._welcome(connection))
        self._handshakes[task] = group
        self._by_ip[group] += 1
        task.add_done_callback(self._forget)

    async def _welcome(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._tls is None:
                await loop.connect_accepted_socket(self._make, connection)
                return
            await loop.connect_accepted_socket(
                self._make, connection, ssl=self._tls, ssl_handshake_timeout=self.limits.handshake_s, ssl_shutdown_timeout=CLOSE_S
            )
        except OSError:  # ssl.SSLError, TimeoutError and a lost connection are ones
            self.counts["failed"] += 1

    def _forget(self, task: asyncio.Task[None]) -> None:
        group = self._handshakes.pop(task, None)
        if group is not None:
            self._by_ip[group] -= 1
            if self._by_ip[group] <= 0:
                del self._by_ip[group]

    def _may_open(self, group: str) -> bool:
        now, limits = asyncio.get_running_loop().time(), self.limits
        level, at = self._level.get(group, (limits.opens_burst, now))
        level = min(limits.opens_burst, level + (now - at) * limits.opens_per_s)
        self._level[group] = (level - 1.0 if level >= 1.0 else level, now)
        self._level.move_to_end(group)
        if len(self._level) > limits.addresses:
            self._level.popitem(last=False)
        return level >= 1.0


async def _places(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Where to listen. OSError."""
    if not host:
        return [(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET, ("", port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((entry[0], (str(entry[4][0]), port)) for entry in found))
