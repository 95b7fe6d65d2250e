"""The trust handshake at work: listens on port 444, looks into the inbox at the registry, obeys the user.

What comes in goes to the machine (handshake.py), which decides; what it decides, effects.py carries out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pilot.errors import PilotError
from pilot.trust.courier import PORT, Courier, ask, read_message
from pilot.trust.effects import Effects, TrustPaths, TrustPlane
from pilot.trust.handshake import ACCEPT, MAX_AGE_S, MAX_AHEAD_S, HandshakeMachine, clean_justification
from pilot.trust.message import clock_ahead
from pilot.trust.relay import Relayed, RelayPoller, TrustRegistry, vouch
from pilot.trust.store import PendingRequest, TrustedPeer

if TYPE_CHECKING:
    from pilot.services.stream import OverlayStream, StreamHub

log = logging.getLogger(__name__)

RECEIVE_S = 10.0
BLAME_EVERY_S = 60.0
MAX_OPEN = 256  # messages that are being received ...
MAX_OPEN_NODE = 8  # ... and of one node: strangers can open port 444 too
WAIT_MAX_S = 30.0
WAIT_POLL_S = 2.0
ON_DEMAND_S = 3.0
EXPIRE_S = 60.0


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
        self._now = now
        self._courier = Courier(hub, lambda: machine.own_node, public_key, sign, now, self.store.told)
        self._effects = Effects(machine, self._courier, registry, plane, paths, emit, self._granted)
        self._relay = RelayPoller(registry, self._relayed, lambda: bool(self.store.requested), clock)
        self._open: Counter[int] = Counter()  # by node
        self._blamed: tuple[int, float, float] = (0, 0.0, 0.0)  # the last wrong clock in the log: node, seconds ahead, when
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[int, set[asyncio.Event]] = {}  # who waits for trust of a node

    # ---- life ----

    def start(self, own_node: int) -> None:
        """Applies the stored trust to the data plane, listens on 444, begins to poll. Call after registration.

        Raises PilotError(already_exists) if the port is taken."""
        self.machine.own_node = own_node
        self._hub.listen(PORT, self._serve, open_port=True)
        self._effects.restore()
        if self.store.requested:
            self._relay.hurry()
        self._effects.spawn(self._relay.run())
        self._effects.spawn(self._expire())
        self._effects.spawn(self._effects.find_missing_keys())

    async def close(self) -> None:
        """Ends listening and background work. What has to be told to peers gets a second for it."""
        self._hub.unlisten(PORT)
        await self._effects.settle()
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await self._effects.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await self._relay.close()
        await self._effects.close()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            self.machine.expire(self._now())
            await self._effects.save()

    def set_public_key(self, public_key: bytes) -> None:
        """The node's identity key was replaced (32 bytes); `sign` signs with the new one already."""
        self._courier.public_key = public_key

    async def announce_key(self, nodes: Iterable[int]) -> None:
        """Tells trusted ones of `nodes` the new identity key, inside sessions that the old one authenticated: they pin it."""
        for node in nodes:
            if self.store.is_trusted(node):
                self._effects.spawn(self._announce(node))

    async def _announce(self, node: int) -> None:
        await self._courier.deliver(node, ACCEPT)

    def key_vouched(self, node: int, pinned: bytes, offered: bytes) -> None:
        """The pinned key of `node` vouches for another one (pilot.tunnel.actions.KeyVouched): has the registry that one too?"""
        self._effects.spawn(self._follow(node, pinned, offered))

    async def _follow(self, node: int, pinned: bytes, offered: bytes) -> None:
        if not self.store.is_trusted(node):
            return
        named, _ = await vouch(self._registry, self.machine, node)
        peer = self.store.trusted.get(node)  # trust may have ended meanwhile, or be another one
        if peer is not None and peer.public_key == pinned and named == offered:
            await self._effects.apply(node, self.machine.key_replaced(peer, offered))

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
        await self._effects.apply(node, self.machine.approve(node, self._now()))

    async def reject(self, node: int, reason: str = "") -> None:
        """Sends away a node that asked; without effect if it did not."""
        if node not in self.store.pending:
            await self._relay.poll(ON_DEMAND_S)
        await self._effects.apply(node, self.machine.reject(node, clean_justification(reason)))

    async def revoke(self, node: int) -> None:
        """Ends trust at once on this node; peer and registry are told in the background.

        Raises PilotError(not_found) if the node was not trusted."""
        try:
            actions = self.machine.revoke(node, self._now())
        except PilotError:
            await self._effects.save()  # other entries of the node are gone all the same
            raise
        await self._effects.apply(node, actions)

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

    def _granted(self, node: int) -> None:
        for waiter in self._waiting.get(node, ()):
            waiter.set()

    # ---- asking ----

    async def _request(self, node: int, justification: str, again: bool) -> None:
        """again: an earlier request is open, and stays so if this one fails."""
        await self._effects.save()
        try:
            await ask(self._courier, self._registry, node, justification)
        except PilotError:
            if not again and self.store.requested.pop(node, None) is not None:
                self.machine.changed = True
                await self._effects.save()
            raise
        self._relay.hurry()
        self.machine.changed = True  # the store holds when the request left
        await self._effects.save()

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
        key, shared = await vouch(self._registry, self.machine, node)
        await self._effects.apply(node, self.machine.receive(msg, self._now(), peer_key=key, shared_network=shared))

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
            shared = (await vouch(self._registry, self.machine, node))[1] if self.machine.policy.same_network else 0
            actions = self.machine.relayed_request(node, entry.justification, self._now(), shared)
        await self._effects.apply(node, actions)
