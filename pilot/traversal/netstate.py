"""What paths depend on in this host's network, and when a difference is worth telling. Reading is apart from deciding.

A path depends on the source address that the kernel chooses toward its far end and on the router behind it. Interfaces of
containers, links that flap and come back the same, and renewed address lifetimes make the kernel talk and change neither,
so they reset no path.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from pilot.traversal.decisions import Addr
from pilot.traversal.interfaces import lan_hosts

ANYWHERE = (("192.0.2.1", 9), ("2001:db8::1", 9))  # nobody is there: the way to the world
MAX_TARGETS = 48
SETTLE_S = 0.1  # one change arrives as a volley of messages
GONE_HOLD_S = 2.0  # a network that went away altogether may be back: without one no path can be better
FLAP_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # least time between reports that follow each other; the last one repeats
CALM_S = 30.0  # after so long without a report the next one goes at once again


@dataclass(frozen=True, slots=True)
class NetState:
    """sources: the own address toward each target, "" if it cannot be reached. routers: default routes in force. lan: addresses
    that peers on the same network may use."""

    sources: Mapping[Addr, str] = field(default_factory=dict)
    routers: frozenset[tuple[str, str]] = frozenset()
    lan: frozenset[str] = frozenset()

    @property
    def offline(self) -> bool:
        """Nothing can be reached."""
        return not any(self.sources.values())

    def moved_from(self, before: NetState) -> bool:
        """Paths of `before` may not work now, or better ones may. Targets that only one of the two knows say nothing."""
        common = self.sources.keys() & before.sources.keys()
        return self.routers != before.routers or any(self.sources[t] != before.sources[t] for t in common)


def read_state(targets: Iterable[Addr]) -> NetState:
    """Asks the kernel; sends nothing. targets: ends of paths in use, numeric."""
    wanted = list(dict.fromkeys((*ANYWHERE, *targets)))[:MAX_TARGETS]
    return NetState({t: _source(t) for t in wanted}, _routers(), frozenset(lan_hosts()))


def _source(target: Addr) -> str:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.connect(target)
            return str(asking.getsockname()[0])
    except OSError:
        return ""


def _routers() -> frozenset[tuple[str, str]]:
    """(interface, router) of the IPv4 default route with the least metric; the source address tells enough of IPv6."""
    try:
        lines = Path("/proc/self/net/route").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return frozenset()
    rows = [row for line in lines if len(row := line.split()) >= 8 and row[1] == row[7] == "00000000"]
    best = min((int(row[6]) for row in rows if row[6].isdigit()), default=0)
    return frozenset((row[0], row[2]) for row in rows if row[6] == str(best))


class Report(Enum):
    """What to tell."""

    PATHS = "paths"  # try all of them again
    ADDRESSES = "addresses"  # only what others may be told about us


class Debounce:
    """Decides what a series of states is worth. Call `stirred` when something may have changed, `look` at `due`."""

    def __init__(self, state: NetState) -> None:
        self.due: float | None = None
        self._told = state  # what the paths were chosen in
        self._offline_since: float | None = None
        self._told_at = float("-inf")
        self._in_a_row = 0

    def stirred(self, now: float) -> None:
        """The kernel said something."""
        soon = now + SETTLE_S
        self.due = soon if self.due is None or self.due > soon else self.due

    def look(self, state: NetState, now: float) -> Report | None:
        """What the state at `due` is worth."""
        self.due = None
        if state.offline and not self._told.offline:
            if self._offline_since is None:
                self._offline_since = now
            left = self._offline_since + GONE_HOLD_S - now
            if left > 0:
                self.due = now + left
                return None
        else:
            self._offline_since = None
        if not state.moved_from(self._told):
            lan = self._told.lan
            self._told = NetState({**self._told.sources, **state.sources}, state.routers, state.lan)
            return Report.ADDRESSES if state.lan != lan else None
        if now - self._told_at >= CALM_S:
            self._in_a_row = 0
        wait = self._told_at + FLAP_S[min(self._in_a_row, len(FLAP_S) - 1)] - now
        if wait > 0 and self._in_a_row:
            self.due = now + wait
            return None
        self._in_a_row += 1
        self._told, self._told_at = state, now
        return Report.PATHS
