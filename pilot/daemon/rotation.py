"""A new identity key for a running node (registry.md section 5, rotate_key), safe against a crash at any moment.

From the moment the registry is asked until it is known what came of it there are two keys, and either may be the node's. Neither
is given up before that: the new one lies beside the identity file, a second attempt asks for the same key again, and nothing
registers with the old one meanwhile, which would make another node of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from pilot.daemon.identity import IdentityFile, NodeIdentity
from pilot.errors import PilotError
from pilot.registry.client import RegistryClient
from pilot.tunnel.continuity import hand_over
from pilot.wire.frames import MAX_LINKS

log = logging.getLogger("pilot.identity")

LATE_S = 60.0  # so long after its last repetition a request may still reach the registry


class Rotation:
    """Replaces the key in the registry, in the file and in everything that signs with the identity."""

    def __init__(
        self,
        identity: NodeIdentity,
        file: IdentityFile | None,
        registry: RegistryClient,
        changed: Callable[[], None],
    ) -> None:
        """file: None when the identity is not kept. changed: called when `identity` has become another."""
        self._identity = identity
        self._file = file
        self._registry = registry
        self._changed = changed
        self._lock = asyncio.Lock()
        self._running: asyncio.Task[Mapping[str, Any]] | None = None
        self._kept: tuple[NodeIdentity, int] | None = None  # without a file: the key that was asked for, and own number
        self._asked_at = -math.inf

    async def rotate(self) -> Mapping[str, Any]:
        """Gives the node a new key; returns the registry's reply. Raises PilotError. Whoever waits for it may go away.

        Peers that have pinned the old key hear of the new one, now or when they meet the node again; published ones need new
        trust.
        """
        if self._running and not self._running.done():
            raise PilotError("already_exists", "the key is being replaced already", retryable=True)
        self._running = asyncio.get_running_loop().create_task(self._rotate())
        self._running.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, also if nobody waits any more
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """Ends an exchange under way; the next start finds out what came of it."""
        if self._running:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def settled(self) -> AsyncIterator[None]:
        """Inside, the identity is the one that the registry has, and stays so.

        A crash, or an outage, may have come between the registry's yes and us: then the registry is asked first. PilotError if it
        cannot be: with the wrong key the node would get another number."""
        async with self._lock:
            unsure = self._unsure
            if unsure:
                new, node = unsure
                if await self._present_key(node) == new.public_text:
                    with contextlib.suppress(PilotError):  # the log has it, and the file beside the identity keeps the key
                        self._take(new, node)
                    log.info("an interrupted change of the identity key was completed")
                elif asyncio.get_running_loop().time() - self._asked_at > LATE_S:
                    self._drop()
            yield

    @property
    def _unsure(self) -> tuple[NodeIdentity, int] | None:
        return self._file.prepared if self._file else self._kept

    async def _rotate(self) -> Mapping[str, Any]:
        async with self._lock:
            node = self._registry.node
            unsure = self._unsure
            new = unsure[0] if unsure and unsure[1] == node else NodeIdentity.generate()
            self._kept = new, node
            if self._file:
                self._file.prepare(new, node)
            reply: Mapping[str, Any]
            try:
                reply = await self._registry.rotate_key(new)
            except PilotError as error:
                reply = await self._after_all(new, node, error)
            finally:
                self._asked_at = asyncio.get_running_loop().time()
            self._take(new, node)
            log.info("the identity key was replaced")
            return reply

    async def _after_all(self, new: NodeIdentity, node: int, error: PilotError) -> Mapping[str, Any]:
        """No answer, or a no to what may have been asked for the second time: the registry knows which key it has."""
        failed = PilotError(error.code, f"registry: {error.message}", error.hint, error.retryable)
        try:
            found = await self._registry.lookup(node)
        except PilotError:
            raise failed from None  # nobody knows
        if found.get("public_key") == new.public_text:
            return {**found, "type": "rotate_key_ok"}
        if not error.retryable:
            self._drop()
        raise failed from None

    async def _present_key(self, node: int) -> object:
        try:
            return (await self._registry.lookup(node)).get("public_key")
        except PilotError as error:
            if error.code != "not_found":
                raise
            return None

    def _take(self, new: NodeIdentity, node: int) -> None:
        """The registry has `new`: it is the identity, whether or not it can be written now. Raises PilotError if it cannot."""
        links = self._identity.links
        if self._identity.public_key != new.public_key:
            links = (*links, hand_over(self._identity, node, new.public_key))[-MAX_LINKS:]
        self._identity.become(new, links)
        self._registry.use_identity(self._identity)
        self._kept = None
        self._changed()
        if self._file:
            try:
                self._file.commit()
            except PilotError as error:
                log.error("the new identity key is not in its file yet", extra={"reason": error.message})
                raise PilotError(
                    error.code, f"the key was replaced, but {error.message}", "when that is mended, the next start completes it"
                ) from None

    def _drop(self) -> None:
        self._kept = None
        if self._file:
            self._file.drop()
