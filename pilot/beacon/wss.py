"""The beacon's WebSocket door for nodes without UDP (beacon.md section 11; docs/wire-extensions.md section 7).

A node that has proved its identity is attached to the native relay: what it sends is injected there, a read of the socket at a
time, and what the relay has for it comes back in batches. This is the one place where packets of others pass through Python; the
native relay decides where they go and on whose word.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address

from pilot._core import CoreError, RelayLoop
from pilot.beacon.wss_session import GOING_AWAY, POLICY, Session
from pilot.errors import PilotError
from pilot.registry.endpoint import ip_group, join
from pilot.registry.listener import Limits, Listener
from pilot.registry.signatures import Verifier

log = logging.getLogger("pilot.beacon.wss")

TRY_LATER = 1013

KeyOf = Callable[[int], Awaitable[bytes | None]]


@dataclass(frozen=True, slots=True)
class WssConfig:
    """Times in seconds.

    bind: host "" = all addresses. tls: None = a TLS terminator on this host or in front of it speaks to us.
    """

    bind: tuple[str, int]
    tls: ssl.SSLContext | None = None
    auth_s: float = 10.0  # from the connection to auth_ok
    fresh_s: float = 30.0  # age of a challenge that is still answered
    idle_s: float = 90.0  # without a binary message
    max_connections: int = 20_000
    max_per_ip: int = 1000  # a company may sit behind one address (IPv6: /64)
    judged_per_ip: int = 16  # proofs that are looked at, at the same time
    frames_per_s: float = 20_000.0  # of one connection; beyond it is read no faster. 28 MB/s of full datagrams
    frames_burst: float = 20_000.0
    opens_per_s: float = 50.0  # connections from one address
    opens_burst: float = 500.0


class WssServer:
    """Listens, and ties sessions to the relay. Belongs to the event loop that start() runs in."""

    def __init__(
        self,
        config: WssConfig,
        key_of: KeyOf,
        registry_connection: Callable[[], asyncio.Protocol] | None = None,
    ) -> None:
        """key_of: the registered Ed25519 key of a node, None if there is none; PilotError if it cannot be had now.
        registry_connection: makes the protocol of one more client of the registry, which then is reachable here too."""
        self.config = config
        self.key_of = key_of
        self.registry_connection = registry_connection
        self.verifier = Verifier(0)  # every challenge is another
        self.counts: Counter[str] = Counter()
        self._relay: RelayLoop | None = None
        self._listener: Listener | None = None
        self._sessions: set[Session] = set()
        self._strangers: OrderedDict[Session, None] = OrderedDict()  # of these, who proved nothing yet, oldest first
        self._by_ip: Counter[str] = Counter()
        self._by_node: dict[int, Session] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}  # judgements -> whose
        self._judged: Counter[str] = Counter()
        self._trouble = False  # the registry was out of reach

    async def start(self, relay: RelayLoop) -> tuple[str, int]:
        """Listens; returns where. Raises PilotError when the address is not to be had."""
        loop = asyncio.get_running_loop()
        host, port = self.config.bind
        tls = self.config.tls
        opens = Limits(opens_per_s=self.config.opens_per_s, opens_burst=self.config.opens_burst, handshake_s=self.config.auth_s)
        listener = Listener(lambda: Session(self), tls, opens, self._behind_terminator)
        try:
            bound = await listener.start(host, port)
        except OSError as error:
            hint = "another program uses the port, or the address is not one of this host"
            if error.errno == errno.EACCES:
                hint = "ports below 1024 need the capability CAP_NET_BIND_SERVICE"
            reason = error.strerror or str(error)
            message = f"beacon cannot listen on {host or '*'}:{port} for WebSockets: {reason}"
            raise PilotError("connection_failed", message, hint) from error
        self._listener = listener
        self._relay = relay
        loop.add_reader(relay.hand_fd, self._deliver)
        log.info("WebSockets are served", extra={"addr": join(*bound), "tls": bool(tls)})
        return bound

    async def stop(self) -> None:
        """Closes everything. Idempotent."""
        if self._listener is None or self._relay is None:
            return
        self._listener.close()
        self._listener = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self._sessions):
            session.close(GOING_AWAY, "the beacon stops")
        asyncio.get_running_loop().remove_reader(self._relay.hand_fd)
        for node in list(self._by_node):
            self._detach(node)
        self._relay = None

    # For sessions

    def admit(self, session: Session) -> bool:
        """Takes a new connection; False if there are too many, in all or from its address. Of all, the oldest that has proved
        nothing gives way."""
        full = self._by_ip[session.group] >= self.config.max_per_ip and not self._behind_terminator(session.ip)
        if full or not self._make_room():
            self.counts["refused"] += 1
            return False
        self._sessions.add(session)
        self._strangers[session] = None
        self._by_ip[session.group] += 1
        self.counts["connections"] += 1
        return True

    def _make_room(self) -> bool:
        if len(self._sessions) < self.config.max_connections:
            return True
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            return False
        self.counts["displaced"] += 1
        self.gone(oldest)
        oldest.abort()
        return True

    def settled(self, session: Session) -> None:
        """It has proved who it is, or is the registry's business now."""
        self._strangers.pop(session, None)

    def _behind_terminator(self, ip: str) -> bool:
        return self.config.tls is None and ip_address(ip).is_loopback

    def gone(self, session: Session) -> None:
        """The connection is over."""
        if session in self._sessions:
            self._sessions.discard(session)
            self._strangers.pop(session, None)
            self._by_ip[session.group] -= 1
            if self._by_ip[session.group] <= 0:
                del self._by_ip[session.group]
        if session.node and self._by_node.get(session.node) is session:
            self._detach(session.node)

    def judge(self, session: Session, text: str) -> None:
        """Checks an answer to the challenge and attaches the node, or closes the connection."""
        whose = ip_group(session.peer[0])
        if self._judged[whose] >= self.config.judged_per_ip:
            self.counts["refused"] += 1
            session.close(TRY_LATER, "too many at once")
            return
        task = asyncio.get_running_loop().create_task(self._judge(session, text))
        self._tasks[task] = whose
        self._judged[whose] += 1
        task.add_done_callback(self._was_judged)

    def _was_judged(self, task: asyncio.Task[None]) -> None:
        whose = self._tasks.pop(task)
        self._judged[whose] -= 1
        if self._judged[whose] <= 0:
            del self._judged[whose]

    async def _judge(self, session: Session, text: str) -> None:
        try:
            wrong = await session.check(text)
        except PilotError as error:
            if not self._trouble:  # once: clients come back
                log.warning("WebSocket clients cannot be judged: the registry is out of reach", extra={"error": error.message})
            self._trouble = True
            self.counts["not_judged"] += 1
            session.close(TRY_LATER, "the registry is out of reach")
            return
        if self._trouble:
            self._trouble = False
            log.info("WebSocket clients are judged again")
        if not session.open:  # meanwhile it ended
            session.node = 0
            return
        if wrong:
            self.counts["auth_failed"] += 1
            log.debug("WebSocket client refused", extra={"ip": session.peer[0], "reason": wrong})
            session.close(POLICY, wrong)
            return
        before = self._by_node.pop(session.node, None)
        if before is not None:
            before.node = 0
            self.counts["replaced"] += 1
            before.close(1000, "replaced by a new connection")
        assert self._relay is not None
        try:
            self._relay.attach(session.node)
        except CoreError:
            session.node = 0
            self.counts["refused"] += 1
            session.close(TRY_LATER, "the beacon is full")
            return
        self._by_node[session.node] = session
        self.settled(session)
        session.proved()

    def sent(self, session: Session, messages: list[bytes]) -> None:
        """Datagrams of a proved node."""
        if self._relay is not None and self._by_node.get(session.node) is session:
            for at in range(0, len(messages), 4096):
                self._relay.inject(session.node, messages[at : at + 4096])

    # For the beacon

    def notify(self, node: int, datagram: bytes) -> bool:
        """Sends a notify to an attached node. False if it is not attached, or would not know what that is."""
        session = self._by_node.get(node)
        return session is not None and session.notifies and session.send((datagram,)) == 1

    def stats(self) -> dict[str, int]:
        """Counters since the start, and gauges. Nothing in it comes from strangers."""
        listener = self._listener
        own = {
            "connections_open": len(self._sessions), "nodes": len(self._by_node),
            "handshakes_unfinished": listener.handshakes if listener else 0,
            "too_fast": listener.counts["refused"] if listener else 0, **self.counts,
        }  # fmt: skip
        return {f"wss_{name}": value for name, value in own.items()}

    # Inside

    def _deliver(self) -> None:
        """The relay has datagrams for attached nodes. What a slow reader has no room for is lost, as on any full link."""
        assert self._relay is not None
        batches: dict[int, list[bytes]] = {}
        for node, datagram in self._relay.take():
            batches.setdefault(node, []).append(datagram)
        for node, datagrams in batches.items():
            session = self._by_node.get(node)
            taken = session.send(datagrams) if session else 0
            self.counts["delivered"] += taken
            self.counts["dropped"] += len(datagrams) - taken

    def _detach(self, node: int) -> None:
        self._by_node.pop(node, None)
        if self._relay is not None:
            self._relay.detach(node)
