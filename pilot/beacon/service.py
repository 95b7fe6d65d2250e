"""The beacon: the native thread forwards packets; this decides who are the peers, what they are told, and whom to believe.

A packet never comes here. Faults of peers, names and the registry are counted; none of them stops the beacon.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pilot._core import CoreError, RelayLoop
from pilot.beacon.gossip import Gossip
from pilot.beacon.notify import Notifier
from pilot.beacon.peers import Addr, Announcement, Peers, resolve
from pilot.beacon.sessions import Sessions
from pilot.beacon.wss import WssServer
from pilot.errors import PilotError
from pilot.wire.beacon import NOTIFY_HANDSHAKE, Notify

log = logging.getLogger("pilot.beacon")

_REPORTED = (
    "discovers", "punches", "introduced", "probes", "relayed", "relayed_bytes", "forwarded", "not_found", "spoofed",
    "limited", "bad", "forged", "unsealed", "nodes", "routes",
)  # fmt: skip
_NOTIFY = Notify(NOTIFY_HANDSHAKE).build()


# 10 Gbit/s: what no single legitimate flow exceeds here; it keeps one sender from taking a faster machine for itself.
RELAY_BYTES_PER_S = 1_250_000_000


@dataclass(frozen=True, slots=True)
class BeaconConfig:
    """Times in seconds.

    bind: host "" = all addresses, IPv4 and IPv6; port 0 = a free one. alt: another IP of this host, "" = none, and probe_ports
    (observer, quiet; 0 = any): for NAT probes, docs/wire-extensions.md 7.1. peers: other beacons, names allowed.
    relay_bytes_per_s: what one node may send through this beacon, 0 = no limit. secret: shared with the peers, which are believed
    on its proof alone; "" = by their addresses, as published beacons do.
    """

    bind: Addr = ("", 9001)
    alt: str = ""
    probe_ports: tuple[int, int] = (0, 0)
    beacon: int = 0
    peers: tuple[Addr, ...] = ()
    announcement: Announcement | None = None
    secret: str = field(default="", repr=False)
    max_nodes: int = 500_000
    max_nodes_per_ip: int = 4096
    relay_bytes_per_s: int = RELAY_BYTES_PER_S
    gossip_s: float = 10.0
    refresh_s: float = 30.0  # of peers: names and the registry's list
    notify_s: float = 1.0
    report_s: float = 60.0  # counters in the log, when they have changed


class Beacon:
    """One beacon. Belongs to the event loop that start() runs in; vouch() and notify() may be called from there at any time."""

    def __init__(self, config: BeaconConfig) -> None:
        """Opens nothing yet."""
        self.wss: WssServer | None = None  # set before start(): serves nodes without UDP
        self.config = config
        self._relay: RelayLoop | None = None
        self._peers: Peers | None = None
        self._notifier = Notifier(self._notify_node, config.notify_s)
        self._tasks: list[asyncio.Task[None]] = []
        self._gossip: Gossip | None = None
        self._sessions: Sessions | None = None
        self._report: Callable[[], Awaitable[None]] | None = None
        self._vouch_refused = 0

    async def open(self) -> Addr:
        """Binds the socket and returns where. Nothing is served yet, but vouch() works from here on. PilotError if the address is
        not to be had."""
        host, port = self.config.bind
        config = self.config
        options = {name: getattr(config, name) for name in ("max_nodes", "max_nodes_per_ip", "relay_bytes_per_s")}
        try:
            if host:  # of a name like localhost the IPv4 address: more nodes can reach it
                candidates = sorted(await resolve(host, port, v6=True), key=lambda addr: ":" in addr[0])[:1]
            else:
                candidates = [("::", port), ("0.0.0.0", port)]
            self._relay = _bind(candidates, self.config, options)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error) or "the name does not resolve"
            raise PilotError(
                "connection_failed", f"beacon cannot listen on UDP {host or '*'}:{port}: {reason}",
                "another program uses a port, or an address is not one of this host",
            ) from error  # fmt: skip
        local = self._relay.local_addr
        self._peers = Peers(self.config.peers, ":" in local[0], local[1], self.config.announcement)
        self._peers.never([local])
        self._gossip = Gossip(self._relay, self._peers, self.config.beacon, self._letters)
        if self.config.secret:
            self._sessions = Sessions(self._relay, self._peers, self.config.secret, self._gossip.greet)
        return local

    async def start(self) -> Addr:
        """Serves from now on; opens first if that has not been done. Returns the address."""
        if self._relay is None:
            await self.open()
        relay, peers = self._relay, self._peers
        assert relay is not None and peers is not None
        relay.start()
        if self.wss is not None:
            await self.wss.start(relay)
        self._report = self._reporter()
        self._every(self.config.report_s, self._report, "beacon-report")
        if peers.possible and self._gossip is not None:
            self._gossip.start()
            self._every(self.config.refresh_s, self._resolve_peers, "beacon-peers", at_once=True)
            if self.config.announcement:
                self._every(self.config.refresh_s, self._ask_registry, "beacon-registry", at_once=True)
            self._every(self.config.gossip_s, self._gossip_round, "beacon-gossip")
        return relay.local_addr

    async def stop(self) -> None:
        """Withdraws this beacon's nodes at its peers, ends everything. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._relay is not None and self._report is not None:
            await self._report()
        self._notifier.close()
        if self.wss is not None:
            await self.wss.stop()
        if self._gossip is not None:
            self._gossip.stop()
            self._gossip = None
        if self._sessions is not None:
            self._sessions.stop()
            self._sessions = None
        if self._peers is not None:
            await self._peers.close()
            self._peers = None
        if self._relay is not None:
            relay = [self._relay]  # its sockets close with the last reference: a worker thread keeps its own a little longer
            self._relay = None
            await asyncio.get_running_loop().run_in_executor(None, lambda: relay.pop().stop())

    # What the registry tells

    def vouch(self, node: int, ip: str | None) -> None:
        """The node is registered from `ip`: its claims from there are believed; None: it is offline. Never raises."""
        if self._relay is None:
            return
        try:
            self._relay.vouch(node, ip)
        except (CoreError, ValueError):
            self._vouch_refused += 1

    def notify(self, node: int) -> None:
        """Something waits for the node in the registry: tells it, at most once a second."""
        if self._relay is not None:
            self._notifier.notify(node)

    def _notify_node(self, node: int) -> bool:
        assert self._relay is not None
        try:
            return self._relay.send_node(node, _NOTIFY) or (self.wss is not None and self.wss.notify(node, _NOTIFY))
        except CoreError:
            return False  # no room or no route just now: it asks by itself every minute

    # Peers

    async def _resolve_peers(self) -> None:
        assert self._peers is not None and self._relay is not None and self._gossip is not None
        await self._peers.resolve_names()
        self._relay.set_peers(self._peers.accepted())
        if self._sessions is not None:
            self._sessions.peers_changed()
        self._gossip.peers_changed()

    def _letters(self) -> None:
        if self._sessions is not None:
            self._sessions.letters()

    async def _ask_registry(self) -> None:
        """Apart from the names: given peers do not wait for a registry that does not answer."""
        assert self._peers is not None
        await self._peers.ask_registry()
        await self._resolve_peers()

    async def _gossip_round(self) -> None:
        assert self._gossip is not None
        self._gossip.round()

    # Time

    def _every(self, seconds: float, step: Callable[[], Awaitable[None]], name: str, at_once: bool = False) -> None:
        async def run() -> None:
            if not at_once:
                await asyncio.sleep(seconds)
            while True:
                try:
                    await step()
                except Exception:
                    # Forwarding goes on whatever happens here; the traceback makes it seen.
                    log.exception("%s failed", name)
                await asyncio.sleep(seconds)

        self._tasks.append(asyncio.create_task(run(), name=name))

    def _reporter(self) -> Callable[[], Awaitable[None]]:
        before: dict[str, int] = {}

        async def report() -> None:
            stats = self.stats()
            now = {name: value for name, value in stats.items() if name in _REPORTED or name.startswith("wss_")}
            if now != before:
                before.update(now)
                log.info("beacon counters", extra=now)

        return report

    def stats(self) -> dict[str, int]:
        """Counters since the start, and gauges: nodes, routes, peers, gso, gro. Nothing in it comes from strangers."""
        own = {
            "peers": len(self._peers.accepted()) if self._peers else 0,
            "peer_failures": self._peers.failures if self._peers else 0,
            "gossip_sent": self._gossip.sent if self._gossip else 0,
            "gossip_failed": self._gossip.failed if self._gossip else 0,
            "gossip_cut": self._gossip.cut if self._gossip else 0,
            "sessions": self._sessions.opened if self._sessions else 0,
            "notified": self._notifier.sent,
            "notify_merged": self._notifier.merged,
            "notify_unknown": self._notifier.unknown,
            "vouch_refused": self._vouch_refused,
        }
        return (self._relay.stats() if self._relay else {}) | own | (self.wss.stats() if self.wss else {})


def _bind(candidates: list[Addr], config: BeaconConfig, options: dict[str, int]) -> RelayLoop:
    """The first address that this host has; a host without IPv6 takes the next. OSError."""
    for addr in candidates[:-1]:
        try:
            return RelayLoop(addr, alt=config.alt or None, probe_ports=config.probe_ports, options=options)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return RelayLoop(candidates[-1], alt=config.alt or None, probe_ports=config.probe_ports, options=options)
