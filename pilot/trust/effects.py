"""What the machine's actions do: to the store, the own data plane, the peer and the registry (services.md section 2).

The store is on disk before anything is told to anybody. What concerns the own data plane happens at once; what needs the
network runs in the background, in order per peer, so that the tunnel is not torn down before the notice of a revocation has
left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from pilot.errors import PilotError
from pilot.files import write_atomic
from pilot.trust.courier import Courier
from pilot.trust.handshake import (
    ACCEPT,
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
)
from pilot.trust.relay import TrustRegistry, vouch

log = logging.getLogger(__name__)

RETRY_S = (1.0, 5.0, 30.0)  # before the second and later calls to a registry that does not answer
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


class Effects:
    """Of one node's trust, and the tasks that they take."""

    def __init__(
        self,
        machine: HandshakeMachine,
        courier: Courier,
        registry: TrustRegistry,
        plane: TrustPlane,
        paths: TrustPaths,
        emit: Callable[[str, Mapping[str, Any]], None],
        granted: Callable[[int], None],
    ) -> None:
        """emit: events for the webhook. granted: gets each node that is trusted from now on."""
        self._machine = machine
        self._store = machine.store
        self._courier = courier
        self._registry = registry
        self._plane = plane
        self._paths = paths
        self._emit = emit
        self._granted = granted
        # One thread: a later state never loses to an earlier one that is still being written.
        self._writer = ThreadPoolExecutor(1, "trust-store")
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[int, asyncio.Task[None]] = {}  # per peer: the latest background actions
        self._answering: dict[int, asyncio.Task[bool]] = {}  # per peer: the answer that is on its way

    # ---- life ----

    def restore(self) -> None:
        """Applies the stored trust to the data plane."""
        for peer in self._store.trusted.values():
            self._plane.set_trusted(peer.node_id, True)
            if peer.public_key:
                self._paths.pin(peer.node_id, peer.public_key)

    async def settle(self) -> None:
        """What has to be told to peers gets a second for it."""
        if self._last:
            await asyncio.wait(self._last.values(), timeout=CLOSE_S)

    async def cancel(self) -> None:
        """Ends background work."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Saves what has changed, and writes no more. Call last."""
        await self.save()
        await asyncio.to_thread(self._writer.shutdown)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs work of the trust service in the background; `cancel` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("trust.task_failed", exc_info=error)

    # ---- actions ----

    async def apply(self, node: int, actions: Sequence[Action]) -> None:
        """Carries out what the machine decided about `node`: saves, does what can be done at once, leaves the rest to the
        background."""
        for action in actions:
            if isinstance(action, Withdraw):  # closing the door does not wait for the disk
                self._plane.set_trusted(action.node, False)
                self._paths.pin(action.node, None)
        await self.save()
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
            task = self._last[node] = self.spawn(self._in_order(self._last.get(node), slow))
            task.add_done_callback(lambda done: self._last.pop(node) if self._last.get(node) is done else None)

    def _grant(self, action: Grant) -> None:
        if not self._store.is_trusted(action.node):  # revoked while the store was being saved
            return
        self._plane.set_trusted(action.node, True)
        if action.key:
            self._paths.pin(action.node, action.key)
        else:
            self.spawn(self._find_key(action.node))
        self._granted(action.node)

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
                case Forget(node) if not self._store.is_trusted(node):
                    self._paths.forget(node)
                    self._plane.forget_peer(node)

    async def _send_answer(self, node: int, type_: str, reason: str) -> None:
        if type_ == ACCEPT and not self._store.is_trusted(node):
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
        self._machine.changed = True  # the store holds when it left
        await self.save()
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
                if self._store.is_trusted(node) is not trusted:
                    return
                try:
                    await call()
                    return
                except (PilotError, OSError) as e:
                    log.debug("handshake.registry_failed", extra={"peer": node, "reason": str(e)})
                    if pause is None or (isinstance(e, PilotError) and not e.retryable):
                        return
                await asyncio.sleep(pause)

        self.spawn(tell())

    # ---- keys that are not known yet ----

    async def _find_key(self, node: int) -> None:
        """Pins the registry's key for a peer that became trusted through the registry's relay."""
        for pause in (*RETRY_S, None):
            key, _ = await vouch(self._registry, self._machine, node)
            if not self._store.is_trusted(node) or self._store.trusted[node].public_key:
                return
            if key and self._store.pin(node, key):
                self._machine.changed = True
                self._paths.pin(node, key)
                return await self.save()
            if pause is not None:
                await asyncio.sleep(pause)

    async def find_missing_keys(self) -> None:
        """Pins the keys of peers that are trusted without one."""
        for node in [p.node_id for p in self._store.trusted.values() if not p.public_key]:
            await self._find_key(node)

    # ---- the store ----

    async def save(self) -> None:
        """Writes the store off the event loop if it changed. If that fails the next change tries again."""
        path = self._store.path
        if not self._machine.changed or path is None:
            return
        self._machine.changed = False
        text = self._store.to_json().encode()
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write_atomic, path, text)
        except OSError as e:
            self._machine.changed = True
            log.error("trust.not_saved", extra={"path": str(path), "reason": e.strerror})
        except asyncio.CancelledError:
            self._machine.changed = True
            raise
