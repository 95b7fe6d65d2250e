"""A new identity key for a running node (registry.md section 5, rotate_key), safe against a crash at any moment."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from pilot.daemon.identity import IdentityFile, NodeIdentity
from pilot.errors import PilotError
from pilot.registry.client import RegistryClient

log = logging.getLogger("pilot.identity")


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
        self._running = False

    async def rotate(self) -> Mapping[str, Any]:
        """Gives the node a new key; returns the registry's reply. Raises PilotError.

        Peers that have pinned the old key refuse the new one for new sessions until trust is established again.
        """
        if self._running:
            raise PilotError("already_exists", "the key is being replaced already", retryable=True)
        self._running = True
        try:
            return await self._rotate(NodeIdentity.generate())
        finally:
            self._running = False

    async def finish(self) -> None:
        """At start: a crash may have come between the registry's yes and our file. The registry says which key it has.

        Raises PilotError if it cannot be asked: with the wrong key the node would get another number."""
        if self._file is None or self._file.prepared is None:
            return
        new, node = self._file.prepared
        try:
            found = await self._registry.lookup(node)
        except PilotError as error:
            if error.code != "not_found":
                raise
            found = {}
        if found.get("public_key") == new.public_text:
            self._file.commit()
            self._changed()
            log.info("an interrupted change of the identity key was completed")
        else:
            self._file.drop()

    async def _rotate(self, new: NodeIdentity) -> Mapping[str, Any]:
        node = self._registry.node
        if self._file:
            self._file.prepare(new, node)
        try:
            reply: Mapping[str, Any] = await self._registry.rotate_key(new)
        except PilotError as error:
            reply = await self._after_all(new, node) if error.retryable else {}
            if not reply:
                if self._file and not error.retryable:
                    self._file.drop()
                raise PilotError(error.code, f"registry: {error.message}", error.hint, error.retryable) from None
        if self._file:
            self._file.commit()
        else:
            self._identity.become(new)
        self._changed()
        log.info("the identity key was replaced")
        return reply

    async def _after_all(self, new: NodeIdentity, node: int) -> Mapping[str, Any]:
        """The answer was lost: the registry's record says whether it took the key. Empty: no, or nobody knows."""
        with contextlib.suppress(PilotError):
            found = await self._registry.lookup(node)
            if found.get("public_key") == new.public_text:
                self._registry.use_identity(new)
                return {**found, "type": "rotate_key_ok"}
        return {}
