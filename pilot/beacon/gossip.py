"""Telling the peers who is here (beacon.md section 7, docs/wire-extensions.md section 7.3).

The whole list goes to every peer every few seconds, and at once when somebody came: a node is reachable across beacons a
moment after its first word here. With each goes how long ago it was heard, which settles whose it is when several claim it. A
peer that is new to us is asked for its own list, a few times because datagrams get lost; so the restart of a beacon costs its
routes for one round trip.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from pilot._core import CoreError, RelayLoop
from pilot.beacon.peers import Addr, Peers
from pilot.registry.endpoint import join
from pilot.wire.beacon import MAX_SYNC, Sync

log = logging.getLogger("pilot.beacon")

PAUSE_S = 0.1  # at least, between two rounds because of news
BYTES_PER_S = 4_000_000  # of rounds because of news, all peers together
ASKS = 3
ASK_AGAIN_S = 1.0


class Gossip:
    """One beacon's word to its peers. sent, failed: datagrams. cut: rounds in which not all nodes fitted into the datagram."""

    def __init__(self, relay: RelayLoop, peers: Peers, beacon: int, letters: Callable[[], None] = lambda: None) -> None:
        """beacon: own number, for the peers' logs. letters: called when the relay has letters of the handshake with peers."""
        self._letters = letters
        self._relay = relay
        self._peers = peers
        self._beacon = beacon
        self._asks: dict[Addr, int] = {}  # peers that are still to be asked for their list, how often
        self._known: frozenset[Addr] = frozenset()
        self._timer: asyncio.TimerHandle | None = None
        self._last = float("-inf")
        self._pause = PAUSE_S
        self.sent = 0
        self.failed = 0
        self.cut = 0

    def start(self) -> None:
        """Watches for news. Call in the event loop."""
        asyncio.get_running_loop().add_reader(self._relay.news_fd, self._on_news)

    def stop(self) -> None:
        """Withdraws all nodes at the peers and ends. Idempotent."""
        asyncio.get_running_loop().remove_reader(self._relay.news_fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._asks.clear()
        self._tell(())

    def peers_changed(self) -> None:
        """The relay accepts another set of peers now: who is new is told at once, and asked."""
        targets = frozenset(self._peers.targets())
        new = targets - self._known
        self._known = targets
        self._asks = {addr: left for addr, left in self._asks.items() if addr in targets} | dict.fromkeys(new, ASKS)
        if new:
            self._soon(0.0)

    def round(self) -> None:
        """Tells every peer the whole list."""
        if not self._peers.targets():
            return
        self._last = asyncio.get_running_loop().time()
        nodes, ages = self._relay.nodes(MAX_SYNC + 1)
        if len(nodes) > MAX_SYNC:
            if not self.cut:
                log.warning("more nodes than gossip can tell: the rest is not reachable through peers", extra={"limit": MAX_SYNC})
            self.cut += 1
        told = self._tell(nodes[:MAX_SYNC], ages[:MAX_SYNC])
        self._pause = max(PAUSE_S, told / BYTES_PER_S)
        if self._asks:
            self._soon(ASK_AGAIN_S)

    def greet(self, peer: Addr) -> None:
        """There is a new session to the peer: it is told at once, and asked."""
        self._asks[peer] = ASKS
        self._soon(0.0)

    def _on_news(self) -> None:
        said = b""
        while True:
            try:
                said += os.read(self._relay.news_fd, 4096)
            except BlockingIOError:
                break
        if 1 in said:
            self._soon(0.0)
        if 2 in said:
            self._letters()

    def _soon(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        at = max(loop.time() + seconds, self._last + self._pause)
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        self.round()

    def _tell(self, nodes: Sequence[int], ages: bytes = b"") -> int:
        """Bytes sent."""
        sync = Sync(self._beacon, tuple(nodes))
        plain, asking = (sync.build(asks, ages) for asks in (False, True))
        total = 0
        for addr in self._peers.targets():
            left = self._asks.pop(addr, 0)
            if left > 1:
                self._asks[addr] = left - 1
            datagram = asking if left else plain
            try:
                if self._relay.send_peer(addr, datagram):
                    self.sent += 1
                    total += len(datagram)
                else:
                    self.failed += 1  # no session yet
            except CoreError as error:
                self.failed += 1
                log.debug("gossip not sent", extra={"peer": join(*addr), "error": str(error)})
        return total
