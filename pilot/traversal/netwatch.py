"""Notices that the network changed or that the host slept.

Addresses, links and default routes: the kernel tells (rtnetlink), netstate.py judges. Sleep: the clock that counts it
(CLOCK_BOOTTIME) ran ahead of the one that does not (CLOCK_MONOTONIC). Without rtnetlink the state is compared from time to time.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterable

from pilot.traversal.decisions import Addr
from pilot.traversal.netstate import Debounce, Report, read_state

POLL_S = 2.0
REFRESH_S = 30.0  # targets that are new since the last change are looked at
SLEPT_S = 3.0

_NETLINK_ROUTE = 0
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # link, IPv4 address, IPv4 route, IPv6 address, IPv6 route
_NEWLINK, _DELLINK = 16, 17
_LINK_FLAGS = 0x1 | 0x40 | 0x10000  # up, running, carrier: statistics and wireless scans mean nothing
_ADDR = {20, 21}  # RTM_NEWADDR, RTM_DELADDR
_ROUTE = {24, 25}  # RTM_NEWROUTE, RTM_DELROUTE
_HEADER = struct.Struct("=IHHII")
_RT_TABLE_MAIN = 254


def slept_s() -> float:
    """How long this host has slept since it was started, seconds; only differences mean something."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) - time.monotonic() if boot is not None else 0.0


class NetWatch:
    """Calls `changed` from the event loop when paths have to be tried again: True if the host slept."""

    def __init__(
        self,
        changed: Callable[[bool], None],
        addresses: Callable[[], None] = lambda: None,
        targets: Callable[[], Iterable[Addr]] = tuple,
        slept: Callable[[], float] = slept_s,
    ) -> None:
        """addresses: called when only the own LAN addresses are others. targets: numeric ends of the paths in use."""
        self._changed = changed
        self._addresses = addresses
        self._targets = targets
        self._slept = slept
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._debounce: Debounce | None = None

    def start(self) -> None:
        """Begins to watch; needs a running event loop."""
        self._debounce = Debounce(read_state(self._targets()))
        self._socket = _open()
        loop = asyncio.get_running_loop()
        if self._socket:
            loop.add_reader(self._socket, self._on_message)
        self._task = loop.create_task(self._poll())

    def stop(self) -> None:
        """Ends watching. Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
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
        if relevant and self._debounce:
            self._debounce.stirred(asyncio.get_running_loop().time())
            self._arm()

    def _arm(self) -> None:
        due = self._debounce.due if self._debounce else None
        if due is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        assert self._debounce
        report = self._debounce.look(read_state(self._targets()), asyncio.get_running_loop().time())
        self._arm()
        if report is Report.PATHS:
            self._changed(False)
        elif report is Report.ADDRESSES:
            self._addresses()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        before, refreshed = self._slept(), loop.time()
        while True:
            await asyncio.sleep(POLL_S)
            now = self._slept()
            slept, before = now - before > SLEPT_S, now
            if slept:
                self._changed(True)
            if self._debounce and (slept or not self._socket or loop.time() - refreshed >= REFRESH_S):
                refreshed = loop.time()
                self._debounce.stirred(refreshed)
                self._arm()


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
