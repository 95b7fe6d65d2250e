"""Traversal: the asyncio shell around the machines of one node.

It owns the clock, the timer, the questions to the registry and the waiting callers; every decision is made
below, in
peer_paths.py. Events of the data plane are handed in by whoever reads them (`handle`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot._core import EV_PEER_WANTED, EngineBase, Event
from pilot.errors import PilotError
from pilot.traversal import discovery as disc
from pilot.traversal.address_book import AddressBook, RegistryClient
from pilot.traversal.decisions import Addr, Decision, Step
from pilot.traversal.describe import describe_path, why
from pilot.traversal.interfaces import local_hosts
from pilot.traversal.nat import NatType, parse_addr, show
from pilot.traversal.path import PathMachine
from pilot.traversal.path_actions import Phase
from pilot.traversal.peer_paths import PeerPaths
from pilot.tunnel.exchange import WANT_S, KeyExchange
from pilot.tunnel.key_life import CHECK_EVERY_S, KeyLife
from pilot.tunnel.own_key import Identity
from pilot.wire.frames import Capabilities, KeyLink

log = logging.getLogger("pilot.traversal")

DISCOVER_S = 5.0
UNRESOLVED_S = 1.0


@dataclass(slots=True)
class TraversalConfig:
    """beacons: `host:port` texts, names allowed. endpoint: the fixed public endpoint, which skips discovery.
    local_port: of the
    tunnel socket. relay_only: show our address to no peer. caps: what our PILA announces. accept_era1: also keys of era 1, for a
    data plane with that option. clock: seconds, the data plane's own (monotonic)."""

    beacons: Sequence[str] = ()
    endpoint: Addr | None = None
    local_port: int = 0
    relay_only: bool = False
    caps: Capabilities = field(default_factory=Capabilities)
    accept_era1: bool = False
    clock: Callable[[], float] = time.monotonic
    random: Callable[[int], bytes] = os.urandom
    local_hosts: Callable[[], list[str]] = local_hosts


class Traversal:
    """Sessions and paths to all peers. Use it as an async context manager, or call start and stop."""

    def __init__(
        self, plane: EngineBase, registry: RegistryClient, identity: Identity, config: TraversalConfig
    ) -> None:
        self.observers: list[Callable[[Decision], None]] = []
        self.on_endpoint: list[Callable[[Addr], None]] = []
        self.on_new_key: list[Callable[[], None]] = []
        self._plane = plane
        self._config = config
        self._clock = config.clock
        self._book = AddressBook(registry, config.clock)
        self._exchange = KeyExchange(
            identity, caps=config.caps, random=config.random, last_heard=self._last_heard, accept_era1=config.accept_era1
        )
        self._discovery = disc.Discovery(fixed=config.endpoint)
        self.paths = PeerPaths(
            plane,
            self,
            self._exchange,
            self._discovery,
            tell=self._tell,
            discovered=self._discovered,
            hidden=config.relay_only,
        )
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}
        self._endpoint_waiters: set[asyncio.Future[Addr]] = set()
        self._failures: dict[int, PilotError] = {}
        self._key_life = KeyLife(config.clock(), self._moved())
        self._unrest = asyncio.Event()
        self._running = False
        self._started = 0.0
        self._udp_beacons: list[Addr] = []  # what the names mean
        self._bridge: Addr | None = None
        self._bridge_name = ""
        self._bridge_only = False

    # ---- life ----

    async def __aenter__(self) -> Traversal:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Resolves the beacons and begins discovery. Beacons that do not resolve now are tried again
        later."""
        self._running = True
        self._started = self._clock()
        self._discovery.set_local(self._config.local_hosts(), self._config.local_port)
        await self.refresh_beacons()
        self._spawn(self._retire_keys())
        self._arm()

    async def stop(self) -> None:
        """Ends timers and tasks; waiting callers get an error. Idempotent."""
        self._running = False
        if self._timer:
            self._timer.cancel()
        self._book.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        gone = PilotError("not_running", "the node is shutting down")
        for waiter in [w for waiters in self._waiters.values() for w in waiters] + list(
            self._endpoint_waiters
        ):
            if not waiter.done():
                waiter.set_exception(gone)

    def set_node(self, node: int) -> None:
        """Own number after registration: the beacons learn it at once."""
        self.paths.set_node(node, self._clock())
        self._arm()

    def pin(self, node: int, public_key: bytes | None) -> None:
        """Fixes the Ed25519 key (32 bytes) of a trusted node; None removes the pin. A registry cannot swap a
        pinned key."""
        self._exchange.pin(node, public_key)

    # ---- data plane ----

    def handle(self, event: Event) -> bool:
        """Takes an event of the data plane. False if it is not for traversal."""
        if not self._running:
            return False
        if event.type == EV_PEER_WANTED:
            self._unrest.set()
        taken = self.paths.handle(event, self._clock())
        if taken:
            self._wake(event.node)
            self._arm()
        return taken

    # ---- peers ----

    def peer_wanted(self, node: int) -> None:
        """A session and a path to `node` will be needed: starts at once, returns at once."""
        self._want(node)

    async def connect(self, node: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Returns when the session with `node` is proved and a path answers.

        Raises PilotError: invalid_argument (own or zero number), not_found (the registry does not know it),
        connection_failed
        (nothing answers), timeout.
        """
        if node == 0 or node == self._discovery.node:
            raise PilotError("invalid_argument", "a node cannot connect to itself")
        self._failures.pop(node, None)
        self._want(node, timeout)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(node, set()).add(waiter)
        try:
            self._wake(node)
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            raise self._no_path(node) from None
        finally:
            waiters = self._waiters.get(node, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(node, None)

    async def settled(self, node: int, timeout: float = 5.0) -> dict[str, Any]:  # noqa: ASYNC109
        """Waits until the race for the best path is over (or the time is), then describes the path."""
        deadline = self._clock() + timeout
        while self._clock() < deadline:
            machine = self.paths.machine(node)
            if machine is None or machine.settled:
                break
            await asyncio.sleep(0.02)
        return self.describe(node)

    def describe(self, node: int) -> dict[str, Any]:
        """The present path of a peer, why it is this one, the alternatives and the latest decisions. Times in
        milliseconds."""
        machine = self.paths.machine(node)
        info = self._plane.peer_info(node)
        if not machine:
            return {
                "node": node,
                "phase": Phase.IDLE.value,
                "path": None,
                "why": "nothing was sent yet",
                "history": [],
            }
        described = describe_path(machine, info, self._discovery.nat, self._clock())
        for way in (described["path"], *described["candidates"]):
            if way and self._bridge and way["addr"] == show(self._bridge):
                way["addr"], way["transport"] = self._bridge_name, "websocket"
        described["why"] = self._why(machine)
        return described

    def why(self, node: int) -> str:
        """The reason for the present path, in one sentence."""
        machine = self.paths.machine(node)
        return self._why(machine) if machine else "nothing was sent yet"

    def _why(self, machine: PathMachine) -> str:
        if self._bridge_only and machine.phase is Phase.RELAYED:
            return "no UDP gets out of this network: the relay is reached by WebSocket"
        return why(machine)

    def forget(self, node: int) -> None:
        """Drops session, path, cached registry answers; connections to `node` are reset."""
        self.paths.forget(node)
        self._book.forget(node)
        self._arm()

    def ask_again(self, node: int) -> None:
        """The registry may answer now what it has just refused: trust was given."""
        self._book.ask_again(node)

    def want(self, node: int) -> None:
        """A stream to `node` was opened without connect()."""
        self._want(node)

    def _want(self, node: int, hold: float = WANT_S) -> None:
        self._unrest.set()
        self.paths.want(node, self._clock(), hold)
        self._arm()

    def prefer_direct(self, node: int) -> None:
        """Every way to `node` is tried again at once, also after what failed before."""
        self._book.ask_again(node)
        self.paths.retry(node, self._clock())
        self._arm()

    def identity_changed(self, links: Sequence[KeyLink]) -> None:
        """The identity signs with another key now: what is announced from here on carries it, and what its former keys, `links`,
        have signed for it. Sessions stay."""
        self._exchange.identity_changed(links)

    @property
    def announcement(self) -> bytes:
        """What the registry may tell peers of our tunnel key: a PILA, b"" while not registered."""
        return self._exchange.announcement

    def rotate_keys(self) -> bool:
        """New tunnel key for this process; peers move over without losing packets. False if the last was less
        than a minute ago."""
        rotated = self._exchange.rotate(self._clock())
        if rotated:
            self._key_life.renew(self._clock(), self._moved())
            for observer in list(self.on_new_key):
                observer()
        self.paths.flush(self._clock())
        self._arm()
        return rotated

    async def _retire_keys(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            if self._key_life.over(self._clock(), self._moved()) and self.rotate_keys():
                log.info("tunnel key replaced: it had served its time")

    def _moved(self) -> int:
        stats = self._plane.stats()
        return stats["bytes_sent"] + stats["bytes_recv"]

    # ---- network ----

    @property
    def endpoint(self) -> Addr | None:
        """The own endpoint as others see it, None while unknown."""
        return self._discovery.endpoint

    @property
    def forged_replies(self) -> int:
        """Replies that a beacon of ours cannot have given."""
        return self._discovery.forged

    @property
    def nat_type(self) -> NatType:
        """NAT class as far as it is known."""
        return self._discovery.nat

    def beacons(self) -> list[dict[str, Any]]:
        """State of each beacon. addr: `host:port`, the URL of one behind a bridge."""
        return [
            {
                "addr": self._bridge_name if b.addr == self._bridge else show(b.addr),
                "alive": b.alive,
                "rtt_ms": None if b.rtt is None else round(b.rtt * 1e3, 3),
                "observed": show(b.observed) if b.observed else None,
            }
            for b in self._discovery.beacons()
        ]

    async def discover(self, timeout: float = DISCOVER_S) -> Addr | None:  # noqa: ASYNC109
        """Waits for the own endpoint; None if no beacon answered in time."""
        if self._discovery.endpoint:
            return self._discovery.endpoint
        waiter: asyncio.Future[Addr] = asyncio.get_running_loop().create_future()
        self._endpoint_waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._endpoint_waiters.discard(waiter)

    async def nat_measured(self, timeout: float) -> NatType:  # noqa: ASYNC109
        """The NAT class, as soon as a measurement that is under way has ended."""
        deadline = self._clock() + timeout
        while self._discovery.measuring and self._clock() < deadline:  # noqa: ASYNC110 (a machine without I/O cannot wake us)
            await asyncio.sleep(0.01)
        return self._discovery.nat

    def targets(self) -> list[Addr]:
        """Where datagrams go now: beacons, and peers that are reached directly."""
        return [*self._udp_beacons[:8], *self.paths.direct_ends(32)]

    def addresses_changed(self) -> None:
        """The host has other addresses, but the paths do not depend on them."""
        self._discovery.set_local(self._config.local_hosts(), self._config.local_port)

    def network_changed(self) -> None:
        """Interfaces or routes changed, or the host slept: every path is tried again at once."""
        self._discovery.set_local(self._config.local_hosts(), self._config.local_port)
        self.paths.network_changed(self._clock())
        self._spawn(self.refresh_beacons())
        self._arm()

    async def refresh_beacons(self) -> None:
        """Resolves the beacons' names again and uses what they mean now; a name that fails keeps its former
        address."""
        loop = asyncio.get_running_loop()
        found: list[Addr] = []
        for text in self._config.beacons:
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
            self._udp_beacons = list(dict.fromkeys(found))
        self._apply_beacons()

    def _apply_beacons(self) -> None:
        beacons = [] if self._bridge_only else list(self._udp_beacons)
        if self._bridge:
            beacons.append(self._bridge)
        self.paths.set_beacons(beacons, self._clock())
        self._arm()

    def set_beacons(self, beacons: Sequence[str]) -> None:
        """Replaces the configured beacons (`host:port`), for instance by the registry's list."""
        self._config.beacons = tuple(beacons)
        self._spawn(self.refresh_beacons())

    # ---- transport ----

    @property
    def udp_silent(self) -> bool:
        """No beacon answers over UDP: each left several questions in a row unanswered, or no name of one resolves."""
        if self._bridge_only:
            return True
        if not self._udp_beacons:
            return bool(self._config.beacons) and self._clock() - self._started >= UNRESOLVED_S
        return self._discovery.silent

    async def udp_beacons(self) -> list[Addr]:
        """Where the beacons are, asked anew if no name has resolved yet."""
        if not self._udp_beacons:
            await self.refresh_beacons()
        return list(self._udp_beacons)

    async def unrest(self, pause: float) -> None:
        """For those who watch over the beacons: returns when there may be something to see, `pause` seconds after it began or
        after the last call. That is while their answers are missing, or a peer that is wanted is not reached."""
        if not (self._discovery.uneasy or self.paths.in_trouble(self._clock())):
            self._unrest.clear()
            await self._unrest.wait()
        await asyncio.sleep(pause)

    def suspect(self) -> None:
        """Asks the beacons whether they are there if a peer that is wanted cannot be reached by any path. Cheap."""
        now = self._clock()
        if self.paths.in_trouble(now):
            self.check_beacons()

    def check_beacons(self) -> None:
        """Asks all beacons now, at most once a second."""
        self._discovery.check(self._clock())
        self._arm()

    def use_bridge(self, bridge: Addr | None, name: str = "", with_udp: bool = False) -> None:
        """The beacon is reached through `bridge`, a local address (name: what users read for it), and over UDP only
        if with_udp. None: over UDP alone. Every path is tried again."""
        self._bridge, self._bridge_name = bridge, name
        self._bridge_only = bridge is not None and not with_udp
        self._discovery.set_blocked(self._bridge_only)
        self._apply_beacons()
        self.paths.network_changed(self._clock())
        self._arm()

    # ---- questions to the registry (peer_paths.Questions) ----

    def ask_key(self, node: int, fresh: bool) -> None:
        """See peer_paths.Questions."""
        self._spawn(self._find_key(node, fresh))

    def ask_addresses(self, node: int, fresh: bool) -> None:
        """See peer_paths.Questions."""
        self._spawn(self._find_addresses(node, fresh))

    async def _find_key(self, node: int, fresh: bool) -> None:
        public: bytes | None = None
        try:
            public = await self._book.public_key(node, fresh)
        except PilotError as error:
            self._failed(node, error)
            if error.code == "not_found" and not self._exchange.has_session(node):
                for waiter in self._waiters.get(node, ()):  # an answer: nobody can ever connect
                    if not waiter.done():
                        waiter.set_exception(error)
        self.paths.key_answer(node, public, self._clock())
        self._wake(node)
        self._arm()

    async def _find_addresses(self, node: int, fresh: bool) -> None:
        own = self._discovery.endpoint
        try:
            found = await self._book.addresses(
                node, self._config.local_hosts(), own[0] if own else None, fresh
            )
        except PilotError as error:
            self._failed(node, error)
            return
        self.paths.addresses_answer(node, found, self._clock())
        self._wake(node)
        self._arm()

    # ---- inside ----

    def _failed(self, node: int, error: PilotError) -> None:
        if node in self._waiters:
            self._failures[node] = error

    def _no_path(self, node: int) -> PilotError:
        failure = self._failures.pop(node, None)
        if failure and failure.code == "not_found" and not self._exchange.has_session(node):
            return failure
        hint = f"registry: {failure.message}" if failure else ""
        if self._exchange.is_proved(node):
            return PilotError("connection_failed", f"no path to node {node} answers", hint, retryable=True)
        return PilotError("timeout", f"node {node} did not answer the key exchange", hint, retryable=True)

    def _wake(self, node: int) -> None:
        waiters = self._waiters.get(node)
        if waiters and self.paths.connected(node):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _tell(self, decision: Decision) -> None:
        if decision.step is Step.GAVE_UP:
            error = PilotError("connection_failed", decision.text, retryable=True)
            for waiter in self._waiters.get(decision.node, ()):
                if not waiter.done():
                    waiter.set_exception(error)
        for observer in list(self.observers):
            try:
                observer(decision)
            except Exception:
                log.exception("an observer of path decisions failed")

    def _discovered(self, action: disc.DiscoveryAction) -> None:
        if isinstance(action, disc.ResolveBeacons):
            self._spawn(self.refresh_beacons())
        elif isinstance(action, disc.EndpointChanged):
            for waiter in self._endpoint_waiters:
                if not waiter.done():
                    waiter.set_result(action.new)
            for observer in list(self.on_endpoint):
                observer(action.new)

    def _last_heard(self, node: int) -> float | None:
        info = self._plane.peer_info(node)
        return info["last_recv_ns"] / 1e9 if info and info["last_recv_ns"] else None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._running:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("a traversal task failed", exc_info=task.exception())

    def _arm(self) -> None:
        if not self._running:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        at = self.paths.deadline()
        if at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, at - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        try:
            self.paths.tick(self._clock())
            if self._discovery.uneasy:
                self._unrest.set()
        finally:
            self._arm()
        for node in list(self._waiters):
            self._wake(node)
