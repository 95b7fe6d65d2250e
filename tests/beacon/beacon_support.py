"""Nodes and beacons as plain UDP sockets on loopback."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from pilot.wire import beacon as wire

Addr = tuple[str, int]
WAIT_S = 10.0


async def until(condition: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)
    return value


class Udp:
    """A socket that speaks raw datagrams."""

    def __init__(self, beacon: Addr, ip: str = "127.0.0.1", port: int = 0) -> None:
        self.beacon = beacon
        self.socket = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((ip, port))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    @property
    def addr(self) -> Addr:
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, self.beacon)

    def receive(self, seconds: float = WAIT_S) -> tuple[bytes, Addr]:
        """The next datagram and who sent it."""
        assert select.select([self.socket], [], [], seconds)[0], f"nothing came to {self.addr}"
        data, sender = self.socket.recvfrom(65536)
        return data, (str(sender[0]), int(sender[1]))

    def arrived(self) -> bool:
        """Whether something can be received. For what the event loop sends: waiting in receive() would stop it."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def waiting(self) -> list[bytes]:
        """Everything that has arrived by now."""
        out = []
        while self.arrived():
            out.append(self.socket.recv(65536))
        return out

    def fence(self) -> None:
        """Returns when the beacon has dealt with all that was sent to it before, from whatever socket."""
        self.send(wire.discover(0))
        data, _ = self.receive()
        assert data == wire.DiscoverReply(self.addr).build()

    def register(self, node: int) -> Udp:
        """Discover; the reply names our own address."""
        self.send(wire.discover(node))
        data, _ = self.receive()
        assert data == wire.DiscoverReply(self.addr).build()
        return self

    def relay(self, node: int, target: int, frame: bytes) -> None:
        self.send(wire.relay(node, target, frame))

    def close(self) -> None:
        self.socket.close()
