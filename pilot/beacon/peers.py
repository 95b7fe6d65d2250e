"""Which other beacons there are (beacon.md section 7.1).

Two sources: addresses given by the operator, and the registry's list, in which a beacon with a number announces itself. Names are
resolved at every round; what cannot be resolved or fetched just now keeps its last answer. A given peer stays a peer whatever
the registry lists.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from pilot.errors import PilotError
from pilot.registry.client import RegistryClient
from pilot.registry.endpoint import join, split

log = logging.getLogger("pilot.beacon")

Addr = tuple[str, int]  # host name or IP text, port

MAX_PEERS = 256  # as many as the native table takes
MAX_ADDRESSES = 8  # of one name
RESOLVE_S = 5.0
CALL_S = 10.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """How this beacon appears in the registry's list.

    registry: where. beacon: own number, not 0. addr: own address as others reach it; None = the address of this host that
    talks to the registry. token: the registry's admin token, "" if it wants none.
    """

    registry: Addr
    beacon: int
    addr: Addr | None = None
    token: str = ""


async def resolve(host: str, port: int, v6: bool) -> list[Addr]:
    """Numeric addresses of a name; v6: the socket can reach IPv6 too. Raises OSError (TimeoutError after 5 s)."""
    loop = asyncio.get_running_loop()
    family = socket.AF_UNSPEC if v6 else socket.AF_INET
    async with asyncio.timeout(RESOLVE_S):
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
    return [(str(entry[4][0]).partition("%")[0], port) for entry in found][:MAX_ADDRESSES]


class Peers:
    """The present set of peer beacons."""

    def __init__(self, given: Sequence[Addr], v6: bool, port: int, announcement: Announcement | None = None) -> None:
        """v6: the beacon's socket is dual-stack. port: its own, for the announcement."""
        self._given = tuple(given)
        self._v6 = v6
        self._port = port
        self._announcement = announcement
        self._listed: tuple[Addr, ...] = ()
        self._resolved: dict[Addr, list[Addr]] = {}
        self._own: set[Addr] = set()
        self._client: RegistryClient | None = None
        self._trouble = ""  # the last failure of the registry, "" when all is well
        self.failures = 0  # names not resolved, registry calls that failed

    @property
    def possible(self) -> bool:
        """Whether there can be peers at all."""
        return bool(self._given or self._announcement)

    async def resolve_names(self) -> None:
        """Resolves all names. Takes up to 5 s when the resolver is out of reach; that raises nothing."""
        wanted = dict.fromkeys((*self._given, *self._listed))
        names = list(wanted)[:MAX_PEERS]
        answers = await asyncio.gather(*(self._resolve(name) for name in names))
        self._resolved = {name: addrs for name, addrs in zip(names, answers, strict=True) if addrs}

    async def _resolve(self, name: Addr) -> list[Addr]:
        try:
            return await resolve(*name, self._v6)
        except (OSError, UnicodeError) as error:
            self.failures += 1
            log.debug("peer beacon not resolved", extra={"peer": join(*name), "error": str(error)})
            return self._resolved.get(name, [])

    async def ask_registry(self) -> None:
        """Announces this beacon and fetches the list. Takes up to 10 s when the registry is out of reach; that raises nothing."""
        announcement = self._announcement
        if announcement is None:
            return
        if self._client is None:
            self._client = RegistryClient(*announcement.registry, admin_token=announcement.token)
        try:
            async with asyncio.timeout(CALL_S):
                addr = announcement.addr or (await self._local_host(announcement.registry), self._port)
                self._own.add(addr)
                await self._client.beacon_register(announcement.beacon, join(*addr))
                reply = await self._client.call("beacon_list", {})
        except (PilotError, OSError) as error:
            self._note(str(error) or type(error).__name__)
            return
        self._note("")
        self._listed = tuple(listed(reply.get("beacons"), announcement.beacon))

    async def _local_host(self, registry: Addr) -> str:
        """The address of this host on the way to the registry. Connecting a UDP socket sends nothing."""
        host, port = (await resolve(*registry, v6=True))[0]
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((host, port))
            return str(s.getsockname()[0])

    def _note(self, trouble: str) -> None:
        """Says once what is wrong, and once that it is over."""
        self.failures += bool(trouble)
        if trouble and trouble != self._trouble:
            log.warning("registry does not take part in finding beacons", extra={"error": trouble})
        elif self._trouble and not trouble:
            log.info("registry lists this beacon again")
        self._trouble = trouble

    def accepted(self) -> list[Addr]:
        """All addresses that peers may send from."""
        every = dict.fromkeys(addr for addrs in self._resolved.values() for addr in addrs if addr not in self._own)
        return list(every)[:MAX_PEERS]

    def targets(self) -> list[Addr]:
        """One address per peer, to send to."""
        return list(dict.fromkeys(addrs[0] for addrs in self._resolved.values() if addrs[0] not in self._own))

    def never(self, own: Iterable[Addr]) -> None:
        """These addresses are this beacon itself."""
        self._own.update(own)

    async def close(self) -> None:
        """Ends the connection to the registry. Idempotent."""
        if self._client is not None:
            await self._client.close()


def listed(beacons: object, own: int) -> list[Addr]:
    """The other beacons of a `beacon_list` reply; entries that make no sense are left out."""
    out: list[Addr] = []
    for entry in beacons if isinstance(beacons, list) else []:
        if not isinstance(entry, dict) or entry.get("id") == own or not isinstance(entry.get("addr"), str):
            continue
        parts = split(entry["addr"])
        if parts is None or not parts[0] or parts[1] == 0:
            continue
        try:
            ip = ip_address(parts[0])
        except ValueError:
            out.append(parts)
        else:
            if not (ip.is_unspecified or ip.is_multicast):
                out.append((str(ip), parts[1]))
    return out[:MAX_PEERS]
