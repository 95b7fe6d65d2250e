"""Hostnames of other nodes, as the registry resolved them: fresh for a minute, kept for an hour for when it is down."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pilot.errors import PilotError

FRESH_S = 60.0
KEPT_S = 3600.0
MAX_NAMES = 4096

Reply = Mapping[str, Any]


class Resolver(Protocol):
    """The part of the registry client that resolves names. Failures are PilotError."""

    async def resolve_hostname(self, hostname: str) -> Reply: ...


class Names:
    """A cache in front of the registry. Refusals are never cached: trust may have come meanwhile."""

    def __init__(
        self,
        registry: Resolver,
        own_name: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """own_name: never answered from the cache. clock: seconds, monotonic."""
        self._registry = registry
        self._own_name = own_name
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Reply]] = OrderedDict()

    async def resolve(self, name: str) -> Reply:
        """The registry's reply for `name`. Raises PilotError."""
        now = self._clock()
        known = self._known.get(name)
        if known and now - known[0] < FRESH_S and name != self._own_name():
            return known[1]
        try:
            reply = await self._registry.resolve_hostname(name)
        except PilotError as error:
            if known and error.retryable and now - known[0] < KEPT_S:
                return known[1]
            self._known.pop(name, None)
            raise
        self._known[name] = (self._clock(), reply)
        self._known.move_to_end(name)
        if len(self._known) > MAX_NAMES:
            self._known.popitem(last=False)
        return reply

    def flush(self) -> None:
        """Forgets everything: names have changed."""
        self._known.clear()
