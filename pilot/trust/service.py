"""The trust handshake at work: listens on port 444, sends messages, asks the registry, obeys the user.

The machine (handshake.py) decides; this file carries its actions out. The store is on disk before anything is
told to anybody. What concerns the own data plane happens at once; what needs the network runs in the background,
in order per peer, so that the tunnel is not torn down before the notice of a revocation has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pilot.errors import PilotError
from pilot.files import write_atomic
from pilot.trust.courier import PORT, Courier, ask, read_message
from pilot.trust.handshake import (
    ACCEPT,
    MAX_AGE_S,
    MAX_AHEAD_S,
    REJECT,
    Action,
    Emit,
    Forget,
    Grant,
    HandshakeMachine,
    Report,
    Respond,
    Send,
    Withdraw,
    clean_justification,
)
from pilot.trust.message import clock_ahead
from pilot.trust.relay import Relayed, RelayPoller, TrustRegistry, read_key, read_networks
from pilot.trust.store import PendingRequest, TrustedPeer

if TYPE_CHECKING:
    from pilot.services.stream import OverlayStream, StreamHub

log = logging.getLogger(__name__)

RECEIVE_S = 10.0
BLAME_EVERY_S = 60.0
MAX_OPEN = 256  # messages that are being received ...
MAX_OPEN_NODE = 8  # ... and of one node: strangers can open port 444 too
LOOKUP_S = 8.0
WAIT_MAX_S = 30.0
WAIT_POLL_S = 2.0
ON_DEMAND_S = 3.0
RETRY_S = (1.0, 5.0, 30.0)  # before the second and later calls to a registry that does not answer
EXPIRE_S = 60.0
MAX_BACKGROUND = 4096
CLOSE_S = 1.0


class TrustPlane(Protocol):
    """What trust does to the data plane."""

    def set_trusted(self, node: int, trusted: bool) -> None: ...
    def forget_peer(self, node: int) -> None: ...


class TrustPaths(Protocol):
    """What trust does to key exchange and paths (pilot.traversal.Traversal)."""

    def pin(self, node: int, public_key: bytes | None) -> None: ...
    def forget(self, node: int) -> None: ...


class TrustService:
    """Trust of one node. Methods belong to the event loop; faults of the user's calls are PilotError."""

    def __init__(
        self,
        machine: HandshakeMachine,
        *,
        public_key: bytes,
        sign: Callable[[bytes], bytes],
        hub: StreamHub,
        registry: TrustRegistry,
        plane: TrustPlane,
        paths: TrustPaths,
        emit: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """public_key (32 bytes), sign (plain Ed25519): the node's identity. emit: events for the webhook.

        clock: seconds, monotonic. now: Unix seconds."""
        self.machine = machine
        self.store = machine.store
        self._hub = hub
        self._registry = registry
        self._plane = plane
        self._paths = paths
        self._emit = emit
        self._now = now
        self._courier = Courier(hub, lambda: machine.own_node, public_key, sign, now, self.store.told)
        self._relay = RelayPoller(registry, self._relayed, lambda: bool(self.store.requested), clock)
        self._open: Counter[int] = Counter()  # by node
        self._blamed: tuple[int, float, float] = (0, 0.0, 0.0)  # the last wrong clock in the log: node, seconds ahead, when
        # One thread: a later state never loses to an earlier one that is still being written.
        self._writer = ThreadPoolExecutor(1, "trust-store")
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[int, asyncio.Task[None]] = {}  # per peer: the latest background actions
        self._answering: dict[int, asyncio.Task[bool]] = {}  # per peer: the answer that is on its way
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[int, set[asyncio.Event]] = {}  # who waits for trust of a node

    # ---- life ----

    def start(self, own_node: int) -> None:
        """Applies the stored trust to the data plane, listens on 444, begins to poll. Call after registration.

        Raises PilotError(already_exists) if the port is taken."""
        self.machine.own_node = own_node
        self._hub.listen(PORT, self._serve, open_port=True)
        for peer in self.store.trusted.values():
            self._plane.set_trusted(peer.node_id, True)
            if peer.public_key:
                self._paths.pin(peer.node_id, peer.public_key)
        if self.store.requested:
            self._relay.hurry()
        self._spawn(self._relay.run())
        self._spawn(self._expire())
        self._spawn(self._find_missing_keys())

    async def close(self) -> None:
        """Ends listening and background work. What has to be told to peers gets a second for it."""
        self._hub.unlisten(PORT)
        if self._last:
            await asyncio.wait(self._last.values(), timeout=CLOSE_S)
        tasks = [*self._tasks, *self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._relay.close()
        await self._save()
        await asyncio.to_thread(self._writer.shutdown)

    def set_public_key(self, public_key: bytes) -> None:
        """The node's identity key was replaced (32 bytes); `sign` signs with the new one already."""
        self._courier.public_key = public_key

    async def announce_key(self, nodes: Iterable[int]) -> None:
        """Tells trusted ones of `nodes` the new identity key, inside sessions that the old one authenticated: they pin it."""
        for node in nodes:
            if self.store.is_trusted(node):
                self._spawn(self._announce(node))

    async def _announce(self, node: int) -> None:
        await self._courier.deliver(node, ACCEPT)

    def key_vouched(self, node: int, pinned: bytes, offered: bytes) -> None:
        """The pinned key of `node` vouches for another one (pilot.tunnel.actions.KeyVouched): has the registry that one too?"""
        self._spawn(self._follow(node, pinned, offered))

    async def _follow(self, node: int, pinned: bytes, offered: bytes) -> None:
        if not self.store.is_trusted(node):
            return
        named, _ = await self._vouch(node)
        peer = self.store.trusted.get(node)  # trust may have ended meanwhile, or be another one
        if peer is not None and peer.public_key == pinned and named == offered:
            await self._apply(node, self.machine.key_replaced(peer, offered))

    def notify(self) -> None:
        """The beacon says that the registry holds something for us (0x0A, kind 1). May be forged: limited."""
        self._relay.notify()

    # ---- the user's wishes (ipc.md section 3, Handshake) ----

    async def send(self, node: int, justification: str = "") -> str:
        """Asks `node` for trust: "sent" (also when it is trusted already), or "in_flight" if this call is
        running for it already.

        Returns when the request has left for the peer or lies in its inbox at the registry. PilotError:
        invalid_argument; connection_failed (`handshake relay: ...`) if neither way works.
        """
        if node in self._asking:
            return "in_flight"
        again = node in self.store.requested
        if not self.machine.start(node, self._now()):
            return "sent"
        work = self._request(node, clean_justification(justification), again)
        task = self._asking[node] = asyncio.get_running_loop().create_task(work)

        def asked(done: asyncio.Task[None]) -> None:
            del self._asking[node]
            if not done.cancelled() and done.exception() is not None:
                log.info("handshake.not_sent", extra={"peer": node, "reason": str(done.exception())})

        task.add_done_callback(asked)
        await asyncio.shield(task)  # a client that goes away does not take its request back
        return "sent"

    async def approve(self, node: int) -> None:
        """Trusts a node that asked; without effect if it did not."""
        if node not in self.store.pending:
            await self._relay.poll(ON_DEMAND_S)
        await self._apply(node, self.machine.approve(node, self._now()))

    async def reject(self, node: int, reason: str = "") -> None:
        """Sends away a node that asked; without effect if it did not."""
        if node not in self.store.pending:
            await self._relay.poll(ON_DEMAND_S)
        await self._apply(node, self.machine.reject(node, clean_justification(reason)))

    async def revoke(self, node: int) -> None:
        """Ends trust at once on this node; peer and registry are told in the background.

        Raises PilotError(not_found) if the node was not trusted."""
        try:
            actions = self.machine.revoke(node, self._now())
        except PilotError:
            await self._save()  # other entries of the node are gone all the same
            raise
        await self._apply(node, actions)

    async def pending(self) -> list[PendingRequest]:
        """Requests that wait for the user, after a look into the registry's inbox."""
        await self._relay.poll(ON_DEMAND_S)
        return list(self.store.pending.values())

    @property
    def pending_dropped(self) -> int:
        """Requests that found the list full, or gave way to others, since the start."""
        return self.machine.stats.dropped.get("pending_full", 0)

    async def trusted(self) -> list[TrustedPeer]:
        """Trusted peers, after a look into the registry's inbox."""
        await self._relay.poll(ON_DEMAND_S)
        return list(self.store.trusted.values())

    async def wait(self, node: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Whether `node` is trusted, waiting for it at most `timeout` seconds (30 at most; 0: a plain test)."""
        timeout = max(0.0, min(timeout, WAIT_MAX_S))
        granted = asyncio.Event()
        self._waiting.setdefault(node, set()).add(granted)
        try:
            async with asyncio.timeout(timeout or ON_DEMAND_S):
                while not self._is_trusted(node):
                    await self._relay.poll(ON_DEMAND_S)
                    if not timeout or self._is_trusted(node):
                        break
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(granted.wait(), WAIT_POLL_S)
        except TimeoutError:
            pass
        finally:
            self._waiting[node].discard(granted)
            if not self._waiting[node]:
                del self._waiting[node]
        return self._is_trusted(node)

    def _is_trusted(self, node: int) -> bool:
        return node == self.machine.own_node or self.store.is_trusted(node)

    # ---- asking ----

    async def _request(self, node: int, justification: str, again: bool) -> None:
        """again: an earlier request is open, and stays so if this one fails."""
        await self._save()
        try:
            await ask(self._courier, self._registry, node, justification)
        except PilotError:
            if not again and self.store.requested.pop(node, None) is not None:
                self.machine.changed = True
                await self._save()
            raise
        self._relay.hurry()
        self.machine.changed = True  # the store holds when the request left
        await self._save()

    # ---- port 444 and the registry's inbox ----

    async def _serve(self, stream: OverlayStream) -> None:
        if self._open[stream.node] >= MAX_OPEN_NODE or self._open.total() >= MAX_OPEN:
            stream.abort()
            return
        self._open[stream.node] += 1
        try:
            async with asyncio.timeout(RECEIVE_S):
                data = await read_message(stream)
        finally:
            self._open[stream.node] -= 1
            self._open = +self._open
        node, dropped = stream.node, self.machine.stats.dropped
        msg = self.machine.check(data, node, self._now())
        if msg is None:
            log.debug("handshake.dropped", extra={"peer": node, "counts": dict(dropped)})
            self._blame_clock(data, node)
            return
        key, shared = await self._vouch(node)
        await self._apply(node, self.machine.receive(msg, self._now(), peer_key=key, shared_network=shared))

    def _blame_clock(self, data: bytes, node: int) -> None:
        """Tells the operator why a handshake does not get through: a line a second, the same one once a minute."""
        now = self._now()
        ahead = clock_ahead(data, node, self.machine.own_node, now)
        if -MAX_AGE_S <= ahead <= MAX_AHEAD_S:
            return
        last_node, last_ahead, told = self._blamed
        same = node == last_node and abs(ahead - last_ahead) < BLAME_EVERY_S
        if not 0 <= now - told < (BLAME_EVERY_S if same else 1.0):
            self._blamed = node, ahead, now
            log.warning("a handshake was refused: the clock of the peer differs", extra={"peer": node, "ahead_s": round(ahead)})

    async def _relayed(self, entry: Relayed) -> None:
        """An entry of the registry's inbox."""
        node = entry.node
        if entry.accept is not None:
            actions = self.machine.relayed_response(node, entry.accept, self._now())
        else:
            shared = (await self._vouch(node))[1] if self.machine.policy.same_network else 0
            actions = self.machine.relayed_request(node, entry.justification, self._now(), shared)
        await self._apply(node, actions)

    async def _vouch(self, node: int) -> tuple[bytes | None, int]:
        """Key of `node` by the registry, None if it cannot say; a network both are in, if that matters."""
        try:
            async with asyncio.timeout(LOOKUP_S):
                theirs = await self._registry.lookup(node)
                shared = 0
                if self.machine.policy.same_network:
                    own = await self._registry.lookup(self.machine.own_node)
                    shared = min(read_networks(own) & read_networks(theirs), default=0)
        except (PilotError, OSError) as e:
            log.debug("handshake.no_lookup", extra={"peer": node, "reason": str(e)})
            return None, 0
        return read_key(theirs), shared

    # ---- actions ----

    async def _apply(self, node: int, actions: Sequence[Action]) -> None:
        """Saves, does what can be done at once, leaves the rest to the background."""
        for action in actions:
            if isinstance(action, Withdraw):  # closing the door does not wait for the disk
                self._plane.set_trusted(action.node, False)
                self._paths.pin(action.node, None)
        await self._save()
        slow: list[Action] = []
        for action in actions:
            if isinstance(action, Emit):
                log.info(action.event, extra={"data": dict(action.data)})
                self._emit(action.event, action.data)
            elif isinstance(action, Grant):
                self._grant(action)
            else:
                slow.append(action)
        if any(isinstance(a, Send | Respond) for a in slow) and (overtaken := self._answering.get(node)):
            overtaken.cancel()  # the peer hears the later decision, and need not wait for the earlier one to arrive
        must = any(isinstance(a, Forget) for a in slow)
        if slow and (must or len(self._tasks) < MAX_BACKGROUND):
            task = self._last[node] = self._spawn(self._in_order(self._last.get(node), slow))
            task.add_done_callback(lambda done: self._last.pop(node) if self._last.get(node) is done else None)

    def _grant(self, action: Grant) -> None:
        if not self.store.is_trusted(action.node):  # revoked while the store was being saved
            return
        self._plane.set_trusted(action.node, True)
        if action.key:
            self._paths.pin(action.node, action.key)
        else:
            self._spawn(self._find_key(action.node))
        for waiter in self._waiting.get(action.node, ()):
            waiter.set()

    async def _in_order(self, before: asyncio.Task[None] | None, actions: Sequence[Action]) -> None:
        if before is not None:
            await asyncio.wait([before])
        for action in actions:
            match action:
                case Send(node, type_, reason):
                    await self._send_answer(node, type_, reason)
                case Report(node):
                    self._tell(node, True, partial(self._registry.report_trust, node))
                case Respond(node, accept):
                    self._respond(node, accept)
                case Withdraw(node, True):
                    self._tell(node, False, partial(self._registry.revoke_trust, node))
                case Forget(node) if not self.store.is_trusted(node):
                    self._paths.forget(node)
                    self._plane.forget_peer(node)

    async def _send_answer(self, node: int, type_: str, reason: str) -> None:
        if type_ == ACCEPT and not self.store.is_trusted(node):
            return  # revoked meanwhile
        repeated = type_ == ACCEPT and self._courier.lately(node, ACCEPT)
        delivery = asyncio.get_running_loop().create_task(self._courier.deliver(node, type_, reason=reason))
        if type_ in (ACCEPT, REJECT):
            self._answering[node] = delivery
        try:
            await asyncio.wait([delivery])
        finally:
            delivery.cancel()
            if self._answering.get(node) is delivery:
                del self._answering[node]
        if delivery.cancelled():
            return
        reached = delivery.result()
        self.machine.changed = True  # the store holds when it left
        await self._save()
        if not reached and type_ in (ACCEPT, REJECT):
            self._respond(node, type_ == ACCEPT)
        if repeated or (type_ == ACCEPT and not reached):
            # A published peer drops a repeated accept as a replay; older ones take no direct one from a node they do not trust.
            # All take a request by the node that they ask themselves for consent, and the registry carries requests where it
            # knows of none to answer.
            self._tell(node, True, partial(self._registry.request_handshake, node, ""))

    def _respond(self, node: int, accept: bool) -> None:
        self._tell(node, accept, partial(self._registry.respond_handshake, node, accept))

    def _tell(self, node: int, trusted: bool, call: Callable[[], Awaitable[object]]) -> None:
        """Tells the registry in the background, again later if it cannot be reached, as long as the trust in
        `node` is what the call says."""

        async def tell() -> None:
            for pause in (*RETRY_S, None):
                if self.store.is_trusted(node) is not trusted:
                    return
                try:
                    await call()
                    return
                except (PilotError, OSError) as e:
                    log.debug("handshake.registry_failed", extra={"peer": node, "reason": str(e)})
                    if pause is None or (isinstance(e, PilotError) and not e.retryable):
                        return
                await asyncio.sleep(pause)

        self._spawn(tell())

    # ---- keys that are not known yet ----

    async def _find_key(self, node: int) -> None:
        """Pins the registry's key for a peer that became trusted through the registry's relay."""
        for pause in (*RETRY_S, None):
            key, _ = await self._vouch(node)
            if not self.store.is_trusted(node) or self.store.trusted[node].public_key:
                return
            if key and self.store.pin(node, key):
                self.machine.changed = True
                self._paths.pin(node, key)
                return await self._save()
            if pause is not None:
                await asyncio.sleep(pause)

    async def _find_missing_keys(self) -> None:
        for node in [p.node_id for p in self.store.trusted.values() if not p.public_key]:
            await self._find_key(node)

    # ---- the store ----

    async def _save(self) -> None:
        """Writes the store off the event loop if it changed. If that fails the next change tries again."""
        path = self.store.path
        if not self.machine.changed or path is None:
            return
        self.machine.changed = False
        text = self.store.to_json().encode()
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write_atomic, path, text)
        except OSError as e:
            self.machine.changed = True
            log.error("trust.not_saved", extra={"path": str(path), "reason": e.strerror})
        except asyncio.CancelledError:
            self.machine.changed = True
            raise

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            self.machine.expire(self._now())
            await self._save()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("trust.task_failed", exc_info=error)
