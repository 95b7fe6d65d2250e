"""The beacons of one node: where their names lead, whether they answer, and the bridge to one where no UDP gets out.

A name that does not resolve keeps its former addresses. Over a bridge (beacon.md section 11) a beacon has a local address,
the bridge's end on this host, and users read the URL instead.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from pilot.traversal.decisions import Addr
from pilot.traversal.discovery import Discovery
from pilot.traversal.nat import parse_addr, show

log = logging.getLogger("pilot.traversal")

UNRESOLVED_S = 1.0


class Beacons:
    """names: `host:port` texts. udp: what they mean. bridge: local address of the bridge, bridge_name: its URL; bridge_only: no
    beacon is asked over UDP."""

    def __init__(self, names: Sequence[str], discovery: Discovery, clock: Callable[[], float]) -> None:
        """discovery: asks them. clock: seconds, monotonic."""
        self.names = names
        self.udp: list[Addr] = []
        self.bridge: Addr | None = None
        self.bridge_name = ""
        self.bridge_only = False
        self._discovery = discovery
        self._clock = clock
        self._started = 0.0

    def start(self) -> None:
        """From now on a name may be expected to resolve."""
        self._started = self._clock()

    async def resolve(self) -> None:
        """Asks what the names mean now."""
        loop = asyncio.get_running_loop()
        found: list[Addr] = []
        for text in self.names:
            numeric = parse_addr(text)
            if numeric:
                found.append(numeric)
                continue
            host, _, port = text.rpartition(":")
            try:
                infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
            except (OSError, ValueError) as error:
                log.warning("beacon name does not resolve", extra={"beacon": text, "error": str(error)})
                continue
            found += [(str(i[4][0]), int(i[4][1])) for i in infos[:2]]
        if found:
            self.udp = list(dict.fromkeys(found))

    def use_bridge(self, bridge: Addr | None, name: str, with_udp: bool) -> None:
        """See Traversal.use_bridge."""
        self.bridge, self.bridge_name = bridge, name
        self.bridge_only = bridge is not None and not with_udp
        self._discovery.set_blocked(self.bridge_only)

    def in_use(self) -> list[Addr]:
        """Those to ask now."""
        beacons = [] if self.bridge_only else list(self.udp)
        if self.bridge:
            beacons.append(self.bridge)
        return beacons

    @property
    def silent(self) -> bool:
        """See Traversal.udp_silent."""
        if self.bridge_only:
            return True
        if not self.udp:
            return bool(self.names) and self._clock() - self._started >= UNRESOLVED_S
        return self._discovery.silent

    def states(self) -> list[dict[str, Any]]:
        """See Traversal.beacons."""
        return [
            {
                "addr": self.bridge_name if b.addr == self.bridge else show(b.addr),
                "alive": b.alive,
                "rtt_ms": None if b.rtt is None else round(b.rtt * 1e3, 3),
                "observed": show(b.observed) if b.observed else None,
            }
            for b in self._discovery.beacons()
        ]
