"""Notices that the network changed or that the host slept.

Addresses, links and default routes: the kernel tells (rtnetlink). Sleep: the clock that counts it (CLOCK_BOOTTIME)
ran ahead of the one that does not (CLOCK_MONOTONIC). Elsewhere the addresses are compared from time to time.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable

from pilot.traversal.interfaces import local_hosts

POLL_S = 5.0
SLEPT_S = 3.0
SETTLE_S = 0.1  # one change arrives as a volley of messages

_NETLINK_ROUTE = 0
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # link, IPv4 address, IPv4 route, IPv6 address, IPv6 route
_NEWLINK, _DELLINK = 16, 17
_LINK_FLAGS = 0x1 | 0x40 | 0x10000  # up, running, carrier: statistics and wireless scans mean nothing
_ADDR = {20, 21}  # RTM_NEWADDR, RTM_DELADDR
_ROUTE = {24, 25}  # RTM_NEWROUTE, RTM_DELROUTE
_HEADER = struct.Struct("=IHHII")
_RT_TABLE_MAIN = 254


class NetWatch:
    """Calls `changed` from the event loop, at most once per SETTLE_S, after a change."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._settle: asyncio.TimerHandle | None = None
        self._hosts: list[str] = []

    def start(self) -> None:
        """Begins to watch; needs a running event loop."""
        self._hosts = sorted(local_hosts())
        self._socket = _open()
        loop = asyncio.get_running_loop()
        if self._socket:
            loop.add_reader(self._socket, self._on_message)
        self._task = loop.create_task(self._poll())

    def stop(self) -> None:
        """Ends watching. Idempotent."""
        if self._settle:
            self._settle.cancel()
        if self._task:
            self._task.cancel()
            self._task = None
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _on_message(self) -> None:
        relevant = False
        while self._socket:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:  # messages were lost: something changed
                relevant = True
                break
            relevant |= is_relevant(data)
        if relevant and not self._settle:
            self._settle = asyncio.get_running_loop().call_later(SETTLE_S, self._report)

    def _report(self) -> None:
        self._settle = None
        self._hosts = sorted(local_hosts())
        self._changed()

    async def _poll(self) -> None:
        ahead = _asleep_s()
        while True:
            await asyncio.sleep(POLL_S)
            now = _asleep_s()
            slept = now - ahead > SLEPT_S
            ahead = now
            if slept or (not self._socket and sorted(local_hosts()) != self._hosts):
                self._report()


def is_relevant(data: bytes) -> bool:
    """Whether a buffer of rtnetlink messages tells of a change that paths depend on."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size or length > len(data):
            return False
        body = data[_HEADER.size : length]
        if kind in _ADDR or kind == _DELLINK:
            return True
        if kind == _NEWLINK and len(body) >= 16 and struct.unpack_from("=I", body, 12)[0] & _LINK_FLAGS:
            return True
        # Only routes of the main table that are no host routes: neighbours and caches come and go.
        if (
            kind in _ROUTE
            and len(body) >= 12
            and body[4] == _RT_TABLE_MAIN
            and body[1] < (32 if body[0] == 2 else 128)
        ):
            return True
        data = data[(length + 3) & ~3 :]
    return False


def _open() -> socket.socket | None:
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        return None
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        sock.bind((0, _GROUPS))
    except OSError:
        sock.close()
        return None
    return sock


def _asleep_s() -> float:
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) - time.monotonic() if boot is not None else 0.0
