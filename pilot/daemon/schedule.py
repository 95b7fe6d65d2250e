"""When the registry has to be told something: heartbeats, early ones, changes, and how often a node may register
(registry.md 8).

It asks nobody anything: registration.py reports what came of its calls, and waits here for the next one. Times are those of the
event loop, in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random

# Between attempts that fail, each of which tries to connect for some seconds; the last one repeats. Short for the first
# minute: the restart of a registry is soon over.
AGAIN_S = (0.5, 1.0, 1.0, 1.0, 2.0, 2.0, 5.0, 10.0, 20.0, 30.0)
SETTLE_S = 0.3  # endpoint changes come in volleys
BURST, GAP_S = 4, 7.0  # registrations at once, then one per gap: registries count them, 10 a minute
FALSE_ALARM_S = 60.0  # for so long a registry that closes connections and yet knows us gets no early heartbeats
DOUBT_S = (0.1, 2.0)  # after a lost connection to the heartbeat: all nodes of a registry lose theirs at once


class Schedule:
    """stale: what the registry knows about us is not true any more. new_key: it does not know our present tunnel key.
    failures: heartbeats in a row without an answer."""

    def __init__(self, keepalive: float) -> None:
        """keepalive: between heartbeats, seconds."""
        self.stale = False
        self.new_key = False
        self.failures = 0
        self._keepalive = keepalive
        self._wake = asyncio.Event()  # stale, new_key or _beat_at has changed
        self._beat_at = math.inf  # before that a heartbeat is due
        self._doubting = False  # the next heartbeat is early
        self._calm_until = -math.inf  # no early heartbeats before
        self._spent_until = -math.inf  # each registration spends a gap; BURST - 1 of them may be spent ahead

    # ---- waiting ----

    async def due(self) -> None:
        """Returns when the registry has to be told something, at the latest at the time of the next heartbeat. Sooner while
        heartbeats fail."""
        loop = asyncio.get_running_loop()
        pause = self._keepalive
        if self.failures:
            pause = min(pause, pause_after(self.failures))
        self._beat_at = min(self._beat_at, loop.time() + pause)
        while not (self.stale or self.new_key) and (left := self._beat_at - loop.time()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
        if self.new_key and not self.stale:
            return
        self._beat_at = math.inf
        if self.stale:
            await asyncio.sleep(SETTLE_S)

    async def room(self) -> None:
        """Returns when the registry takes another registration."""
        await asyncio.sleep(max(0.0, self._spent_until - (BURST - 1) * GAP_S - asyncio.get_running_loop().time()))

    # ---- what has happened ----

    def endpoint_changed(self) -> None:
        """The node is to be found elsewhere now."""
        self.stale = True
        self._wake.set()

    def key_changed(self) -> None:
        """The registry does not know our tunnel key."""
        self.new_key = True
        self._wake.set()

    def doubt(self) -> None:
        """The registry closed a connection: a heartbeat is due soon."""
        now = asyncio.get_running_loop().time()
        if now < self._calm_until:
            return
        self._doubting = True
        self._beat_at = min(self._beat_at, now + random.uniform(*DOUBT_S))
        self._wake.set()

    def registered(self) -> None:
        """The registry took a registration."""
        self._spent_until = max(self._spent_until, asyncio.get_running_loop().time()) + GAP_S

    def failed(self) -> None:
        """A heartbeat failed."""
        self.failures += 1
        self._doubting = False

    def answered(self) -> None:
        """A heartbeat was answered."""
        if not self.failures and self._doubting:
            self._calm_until = asyncio.get_running_loop().time() + FALSE_ALARM_S
        self._doubting = False
        self.failures = 0


def pause_after(failures: int) -> float:
    """Seconds before the next attempt, after so many that failed (1 or more)."""
    return AGAIN_S[min(failures, len(AGAIN_S)) - 1]
