"""Where a node is to be found: what it registers, and which beacons it believes (registration.Where)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from pilot.daemon.config import DaemonConfig
from pilot.traversal import Traversal
from pilot.traversal.interfaces import lan_hosts
from pilot.traversal.nat import Scope, parse_addr, scope, show
from pilot.trust import TrustStore


class Whereabouts:
    """Answers registration's questions about one node."""

    def __init__(
        self,
        config: DaemonConfig,
        traversal: Traversal,
        port: int,
        trust: TrustStore,
        registered: Callable[[bool], None],
    ) -> None:
        """port: of the tunnel socket. registered(again): called after each registration."""
        self._config = config
        self._traversal = traversal
        self._port = port
        self._trust = trust
        self._registered = registered
        self.hidden = config.relay_only  # nobody can, or may, reach this node directly
        self._beacons: list[str] = []
        self._told_lan: list[str] = []

    def listen_addr(self) -> str:
        """Where peers find this node; "" when nobody may know, `0.0.0.0:port` when it is not known."""
        if self.hidden:
            return ""
        found = self._config.advertise_endpoint or self._traversal.endpoint
        return show(found or ("0.0.0.0", self._port))

    def lan_addrs(self) -> list[str]:
        """Private addresses for peers on the same LAN; none when the node hides."""
        self._told_lan = self._find_lan()
        return self._told_lan

    def moved(self) -> bool:
        """Whether the private addresses are others than those last told."""
        return self._find_lan() != self._told_lan

    def announcement(self) -> bytes:
        """See registration.Where."""
        return self._traversal.announcement

    def trusted(self) -> Iterable[int]:
        """Trusted peers."""
        return self._trust.trusted.keys()

    def registered(self, again: bool) -> None:
        """See registration.Where."""
        self._registered(again)

    def use_beacons(self, beacons: Sequence[str]) -> None:
        """The registry's beacons, and the configured one. Local addresses only if the configured one is local."""
        own = self._config.beacon
        local = own[0] == "localhost" or scope(own[0]) is Scope.LOOPBACK
        usable = [text for text in beacons if usable_beacon(text, local)]
        wanted = list(dict.fromkeys([*usable, show(own)]))
        if wanted != self._beacons:
            self._beacons = wanted
            self._traversal.set_beacons(wanted)

    def _find_lan(self) -> list[str]:
        if self.hidden:
            return []
        bound = self._config.listen[0]
        reach = scope(bound)
        hosts = lan_hosts() if reach is Scope.NONE else [bound] if reach is Scope.PRIVATE else []
        return [show((host, self._port)) for host in hosts]


def usable_beacon(text: str, local: bool) -> bool:
    """`host:port` with a name, or with an address that a registry may send its nodes to. local: also this host."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return False
    addr = parse_addr(text)
    if addr:
        return local or scope(addr[0]) is not Scope.LOOPBACK
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return local or host.lower() != "localhost"
    return False  # an address where nobody can be reached
