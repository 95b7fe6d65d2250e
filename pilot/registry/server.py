"""The registry's TCP server (registry.md sections 1, 2, 9).

A reply that reports success of a change leaves when the change is on disk; all other traffic goes on meanwhile. While the disk
cannot be written changes are refused; reading and heartbeats work.

When there is no room for another connection, the one gives way that has proved nothing and was silent longest: whoever fills the
table with connections keeps nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot.errors import PilotError
from pilot.registry import endpoint
from pilot.registry.commands import COMMANDS
from pilot.registry.config import RegistryConfig
from pilot.registry.connection import Connection
from pilot.registry.core import Peer, Registry
from pilot.registry.fields import Refused, text
from pilot.registry.limits import Buckets
from pilot.registry.listener import Limits, Listener
from pilot.registry.store import MemoryStore, Store

log = logging.getLogger("pilot.registry")

HIDDEN = "request failed"
_TOLD = (
    "rate limited", "enterprise feature", "expired", "already", "not a member", "cannot", "too many", "too long", "not found",
    "invalid", "require", "signature",
)  # fmt: skip
REASON_MAX = 300  # characters; reasons quote the request
# "requester" holds "require", but these two have always been hidden.
_HIDDEN_STARTS = ("resolve denied:", "punch denied:")


def told(reason: str) -> str:
    """What the client reads for a reason: the reason if it holds a word that may be told (section 2)."""
    if not reason.startswith(_HIDDEN_STARTS) and any(word in reason for word in _TOLD):
        return reason[:REASON_MAX]
    return HIDDEN


@dataclass(slots=True)
class Counts:
    """What happened since the start. Keys are commands of our table or "other", never words of strangers."""

    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    refused_connections: int = 0
    idle_closed: int = 0
    displaced: int = 0  # connections that gave way to others
    throttled: int = 0
    bad_frames: int = 0
    expired_nodes: int = 0
    faults: int = 0  # commands that broke; each has a traceback in the log


@dataclass(frozen=True, slots=True)
class Answer:
    """seq: what must be on disk before `reply` may go out, None if nothing; `refusal` goes out if it cannot get there."""

    reply: dict[str, Any]
    seq: int | None = None
    refusal: dict[str, Any] = field(default_factory=dict)


def _error(reason: str) -> dict[str, Any]:
    return {"type": "error", "error": told(reason)}


_STORAGE = "storage is failing"


class RegistryServer:
    """Serves a registry on one or more TCP addresses. Belongs to the event loop that start() ran in."""

    def __init__(
        self,
        store: Store | MemoryStore,
        *,
        network: int = 0,
        config: RegistryConfig | None = None,
        admin_token: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_mail: Callable[[int], None] = lambda node: None,
        on_endpoint: Callable[[int, str | None], None] = lambda node, ip: None,
    ) -> None:
        """See core.Registry. The server closes the store when it stops. Raises PilotError if the store is damaged."""
        self.config = config or RegistryConfig()
        self.core = Registry(
            store, network=network, config=self.config, admin_token=admin_token, clock=clock, wall=wall, on_mail=on_mail,
            on_endpoint=on_endpoint,
        )  # fmt: skip
        self.stats_counts = Counts()
        self._store = store
        self._clock = clock
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._connections: OrderedDict[Connection, float] = OrderedDict()  # -> clock of the last request, oldest first
        self._strangers: OrderedDict[Connection, None] = OrderedDict()  # of these, who proved nothing
        self._by_ip: Counter[str] = Counter()
        self._by_ip_budget = Buckets(self.config.requests_per_s_ip, self.config.requests_burst_ip)
        self._unfinished = 0
        self._awaiting: deque[Connection] = deque()  # in order of their seq

    # Life

    async def start(self, host: str = "", port: int = 9000, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Listens on `host`:`port` ("" = all addresses, 0 = a free port); may be called again for further addresses. Returns
        where. Raises PilotError when the address is not to be had."""
        self._loop = asyncio.get_running_loop()
        opens = Limits(opens_per_s=self.config.opens_per_s_ip, opens_burst=self.config.opens_burst_ip)
        listener = Listener(lambda: Connection(self), tls, opens)
        try:
            bound = await listener.start(host, port)
        except OSError as error:
            raise PilotError(
                "connection_failed", f"registry cannot listen on {host or '*'}:{port}: {error.strerror or error}",
                "another program uses the port, or the address is not one of this host",
            ) from error  # fmt: skip
        self._listeners.append(listener)
        if self._reaper is None:
            self._store.start(lambda: self._in_loop(self._progress))
            self._reaper = asyncio.create_task(self._reap(), name="registry-reaper")
        log.info("registry listening", extra={"addr": endpoint.join(*bound), "tls": bool(tls)})
        return bound

    async def stop(self) -> None:
        """Closes all connections, writes what is left, closes the store. Idempotent."""
        for listener in self._listeners:
            listener.close()
        if self._reaper is not None:
            self._reaper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reaper
            self._reaper = None
        await asyncio.get_running_loop().run_in_executor(None, self._store.close)
        self._progress()
        for connection in list(self._connections):
            connection.close()
        self._listeners.clear()

    def _in_loop(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop may be gone when the last batch is written
            self._loop.call_soon_threadsafe(call)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self.config.reap_s)
            self.stats_counts.expired_nodes += self.core.reap()
            self._store.flush()
            oldest_allowed = self._clock() - self.config.idle_s
            while self._connections and next(iter(self._connections.values())) < oldest_allowed:
                idle, _ = self._connections.popitem(last=False)
                self._forget(idle)
                self.stats_counts.idle_closed += 1
                idle.abort()

    # For connections

    def admit(self, connection: Connection) -> bool:
        """Takes a new connection into the tables; False if there are too many."""
        ip = endpoint.ip_group(connection.ip)
        if self._by_ip[ip] >= self.config.max_connections_per_ip or not self._make_room():
            self.stats_counts.refused_connections += 1
            return False
        self.stats_counts.connections += 1
        self._by_ip[ip] += 1
        self._connections[connection] = self._clock()
        self._strangers[connection] = None
        return True

    def _make_room(self) -> bool:
        if len(self._connections) < self.config.max_connections:
            return True
        oldest = next(iter(self._strangers), None)
        if oldest is None:
            oldest, used = next(iter(self._connections.items()))
            if self._clock() - used < self.config.settled_s:
                return False
        self.stats_counts.displaced += 1
        self.gone(oldest)
        oldest.abort()
        return True

    def gone(self, connection: Connection) -> None:
        """The connection is closed."""
        if self._connections.pop(connection, None) is not None:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._strangers.pop(connection, None)
        ip = endpoint.ip_group(connection.ip)
        self._by_ip[ip] -= 1
        if self._by_ip[ip] <= 0:
            del self._by_ip[ip]

    def confirm(self, peer: Peer) -> None:
        """The client sends again: it has the reply before."""
        if peer.unconfirmed:
            self.core.confirm(peer)
            self._store.flush()

    def charge(self, more: int) -> bool:
        """Moves the common budget of half-received requests by `more` bytes; False if there is not enough."""
        if more > 0 and self._unfinished + more > self.config.max_unfinished_bytes:
            return False
        self._unfinished += more
        return True

    def delay(self, groups: Sequence[tuple[str, float]], budget: Buckets, cost: float) -> float:
        """Takes a request out of the budgets of a connection and its address (endpoint.ip_groups); seconds until the next may be
        served. cost: 1 for a small one."""
        now = self._clock()
        wait = max(budget.spend("", now, cost), *(self._by_ip_budget.spend(group, now, cost * share) for group, share in groups))
        if wait > 0:
            self.stats_counts.throttled += 1
        return wait

    def answer(self, connection: Connection, request: dict[str, Any]) -> Answer:
        """Runs a command."""
        if connection in self._connections:
            self._connections[connection] = self._clock()
            self._connections.move_to_end(connection)
            if connection in self._strangers:
                self._strangers.move_to_end(connection)
        name = text(request, "type")
        entry = COMMANDS.get(name)
        label = name if entry else "other"
        self.stats_counts.requests[label] += 1
        try:
            if entry is None:
                raise Refused(f'unknown message type: "{name[:64]}"')
            if entry.stores and self._store.failing:
                raise Refused(_STORAGE)
            reply = {"type": f"{name}_ok", **entry.run(self.core, connection.peer, request)}
            if connection.peer.proved:
                self._strangers.pop(connection, None)
        except Refused as refused:
            self.stats_counts.errors[label] += 1
            log.debug("refused %s from %s: %r", label, connection.ip, refused.reason[:REASON_MAX])
            reply = _error(refused.reason)
        except Exception:
            # A bug of ours must not become an outage for everybody; the traceback makes it seen.
            self.stats_counts.faults += 1
            log.exception("command %s broke", label)
            return Answer(_error("internal error"))
        self._store.flush()
        if entry is None or not entry.stores or self._store.durable >= self._store.seq:
            return Answer(reply)
        self._awaiting.append(connection)
        return Answer(reply, self._store.seq, _error(_STORAGE))

    def _progress(self) -> None:
        durable, failing = self._store.durable, bool(self._store.failing)
        if failing:
            log.error("registry storage: %s", self._store.failing)
        while self._awaiting and self._awaiting[0].stored(durable, failing):
            self._awaiting.popleft()

    # For operators

    def stats(self) -> dict[str, Any]:
        """Numbers for metrics and the dashboard; names are fixed, nothing in it comes from strangers."""
        state, counts = self.core.state, self.stats_counts
        return {
            "uptime_secs": int(self._clock() - self.core.started),
            "nodes_total": len(state.nodes),
            "nodes_online": len(state.online),
            "trust_links": state.links,
            "task_executors": sum(1 for node in state.online.values() if node.task_exec),
            "connections_open": len(self._connections),
            "connections_paused": sum(1 for connection in self._connections if connection.paused),
            "connections_total": counts.connections,
            "connections_refused": counts.refused_connections,
            "connections_idle_closed": counts.idle_closed,
            "connections_displaced": counts.displaced,
            "connections_too_fast": sum(listener.counts["refused"] for listener in self._listeners),
            "handshakes_unfinished": sum(listener.handshakes for listener in self._listeners),
            "unfinished_bytes": self._unfinished,
            "requests": dict(counts.requests),
            "errors": dict(counts.errors),
            "throttled": counts.throttled,
            "bad_frames": counts.bad_frames,
            "expired_nodes": counts.expired_nodes,
            "faults": counts.faults,
            "storage_failing": self._store.failing,
            "changes_pending": self._store.seq - self._store.durable,
        }
