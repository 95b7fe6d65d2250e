"""Traversal: the asyncio shell around the machines of one node.

It owns the clock, the timer and the questions to the registry; every decision is made below, in peer_paths.py. Events of
the data plane are handed in by whoever reads them (`handle`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pilot._core import EV_PEER_WANTED, EngineBase, Event
from pilot.errors import PilotError
from pilot.traversal import discovery as disc
from pilot.traversal.address_book import AddressBook, RegistryClient
from pilot.traversal.beacons import Beacons
from pilot.traversal.config import TraversalConfig
from pilot.traversal.decisions import Addr, Decision, Step
from pilot.traversal.describe import describe_path
from pilot.traversal.nat import NatType
from pilot.traversal.peer_paths import PeerPaths
from pilot.traversal.waiting import Waiting
from pilot.tunnel.exchange import WANT_S, KeyExchange
from pilot.tunnel.key_life import CHECK_EVERY_S, KeyLife
from pilot.tunnel.own_key import Identity
from pilot.wire.frames import KeyLink

log = logging.getLogger("pilot.traversal")

DISCOVER_S = 5.0


class Traversal:
    """Sessions and paths to all peers. Use it as an async context manager, or call start and stop."""

    def __init__(self, plane: EngineBase, registry: RegistryClient, identity: Identity, config: TraversalConfig) -> None:
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
        self._beacons = Beacons(config.beacons, self._discovery, config.clock)
        self.paths = PeerPaths(
            plane,
            self,
            self._exchange,
            self._discovery,
            tell=self._tell,
            discovered=self._discovered,
            hidden=config.relay_only,
        )
        self._waiting = Waiting(self._exchange, self.paths.connected)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._key_life = KeyLife(config.clock(), self._moved())
        self._unrest = asyncio.Event()
        self._running = False

    # ---- life ----

    async def __aenter__(self) -> Traversal:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Resolves the beacons and begins discovery. Beacons that do not resolve now are tried again later."""
        self._running = True
        self._beacons.start()
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
        self._waiting.close()

    def set_node(self, node: int) -> None:
        """Own number after registration: the beacons learn it at once."""
        self.paths.set_node(node, self._clock())
        self._arm()

    def pin(self, node: int, public_key: bytes | None) -> None:
        """Fixes the Ed25519 key (32 bytes) of a trusted node; None removes the pin. A registry cannot swap a pinned key."""
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
            self._waiting.look(event.node)
            self._arm()
        return taken

    # ---- peers ----

    async def connect(self, node: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        """Returns when the session with `node` is proved and a path answers.

        Raises PilotError: invalid_argument (own or zero number), not_found (the registry does not know it), connection_failed
        (nothing answers), timeout.
        """
        if node == 0 or node == self._discovery.node:
            raise PilotError("invalid_argument", "a node cannot connect to itself")
        self.want(node, timeout)
        await self._waiting.connection(node, timeout)

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
        """The present path of a peer, why it is this one, the alternatives and the latest decisions. Times in milliseconds."""
        machine, info = self.paths.machine(node), self._plane.peer_info(node)
        return describe_path(node, machine, info, self._discovery.nat, self._beacons, self._clock())

    def forget(self, node: int) -> None:
        """Drops session, path, cached registry answers; connections to `node` are reset."""
        self.paths.forget(node)
        self._book.forget(node)
        self._arm()

    def ask_again(self, node: int) -> None:
        """The registry may answer now what it has just refused: trust was given."""
        self._book.ask_again(node)

    def connected(self, node: int) -> bool:
        """Whether the session with `node` is proved and its path answers."""
        return self.paths.connected(node)

    def want(self, node: int, hold: float = WANT_S) -> None:
        """A session and a path to `node` will be needed, for `hold` seconds at least: starts at once, returns at once."""
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
        """New tunnel key for this process; peers move over without losing packets. False if the last was less than a minute
        ago."""
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
        return self._beacons.states()

    async def discover(self, timeout: float = DISCOVER_S) -> Addr | None:  # noqa: ASYNC109
        """Waits for the own endpoint; None if no beacon answered in time."""
        if self._discovery.endpoint:
            return self._discovery.endpoint
        return await self._waiting.endpoint(timeout)

    async def nat_measured(self, timeout: float) -> NatType:  # noqa: ASYNC109
        """The NAT class, as soon as a measurement that is under way has ended."""
        deadline = self._clock() + timeout
        while self._discovery.measuring and self._clock() < deadline:  # noqa: ASYNC110 (a machine without I/O cannot wake us)
            await asyncio.sleep(0.01)
        return self._discovery.nat

    def targets(self) -> list[Addr]:
        """Where datagrams go now: beacons, and peers that are reached directly."""
        return [*self._beacons.udp[:8], *self.paths.direct_ends(32)]

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
        """Resolves the beacons' names again and uses what they mean now; a name that fails keeps its former address."""
        await self._beacons.resolve()
        self._apply_beacons()

    def _apply_beacons(self) -> None:
        self.paths.set_beacons(self._beacons.in_use(), self._clock())
        self._arm()

    def set_beacons(self, beacons: Sequence[str]) -> None:
        """Replaces the configured beacons (`host:port`), for instance by the registry's list."""
        self._beacons.names = tuple(beacons)
        self._spawn(self.refresh_beacons())

    # ---- transport ----

    @property
    def udp_silent(self) -> bool:
        """No beacon answers over UDP: each left several questions in a row unanswered, or no name of one resolves."""
        return self._beacons.silent

    async def udp_beacons(self) -> list[Addr]:
        """Where the beacons are, asked anew if no name has resolved yet."""
        if not self._beacons.udp:
            await self.refresh_beacons()
        return list(self._beacons.udp)

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
        self._beacons.use_bridge(bridge, name, with_udp)
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
            self._waiting.failed(node, error)
            if error.code == "not_found":
                self._waiting.unknown(node, error)
        self.paths.key_answer(node, public, self._clock())
        self._waiting.look(node)
        self._arm()

    async def _find_addresses(self, node: int, fresh: bool) -> None:
        own = self._discovery.endpoint
        try:
            found = await self._book.addresses(node, self._config.local_hosts(), own[0] if own else None, fresh)
        except PilotError as error:
            self._waiting.failed(node, error)
            return
        self.paths.addresses_answer(node, found, self._clock())
        self._waiting.look(node)
        self._arm()

    # ---- inside ----

    def _tell(self, decision: Decision) -> None:
        if decision.step is Step.GAVE_UP:
            self._waiting.refuse(decision.node, PilotError("connection_failed", decision.text, retryable=True))
        for observer in list(self.observers):
            try:
                observer(decision)
            except Exception:
                log.exception("an observer of path decisions failed")

    def _discovered(self, action: disc.DiscoveryAction) -> None:
        if isinstance(action, disc.ResolveBeacons):
            self._spawn(self.refresh_beacons())
        elif isinstance(action, disc.EndpointChanged):
            self._waiting.found(action.new)
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
        self._waiting.look_at_all()
