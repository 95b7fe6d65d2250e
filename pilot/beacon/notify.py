"""Notify (0x0A): a node's handshake mailbox has something (beacon.md 3.9)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

INTERVAL_S = 1.0
MAX_NODES = 65536


class Notifier:
    """Sends at most one notify per node and interval. What comes in between is told once, at the end of the interval: the node
    may have emptied its mailbox too early to see it."""

    def __init__(self, send: Callable[[int], bool], interval_s: float = INTERVAL_S, max_nodes: int = MAX_NODES) -> None:
        """send(node): one datagram; False if the node is not here. max_nodes: within one interval."""
        self._send = send
        self._interval_s = interval_s
        self._max = max_nodes
        self._resting: dict[int, tuple[asyncio.TimerHandle, bool]] = {}  # -> (end of its interval, one more is due)
        self.sent = 0
        self.merged = 0
        self.unknown = 0  # nodes that are not here, or too many at once: they ask by themselves every minute

    def notify(self, node: int) -> None:
        """Something was placed for the node. Call in the event loop."""
        resting = self._resting.get(node)
        if resting is not None:
            self.merged += 1
            self._resting[node] = (resting[0], True)
        elif len(self._resting) >= self._max or not self._send(node):
            self.unknown += 1
        else:
            self.sent += 1
            self._rest(node)

    def _rest(self, node: int) -> None:
        timer = asyncio.get_running_loop().call_later(self._interval_s, self._rested, node)
        self._resting[node] = (timer, False)

    def _rested(self, node: int) -> None:
        _, due = self._resting.pop(node)
        if due:
            self.notify(node)

    def close(self) -> None:
        """Forgets everything. Idempotent."""
        for timer, _ in self._resting.values():
            timer.cancel()
        self._resting.clear()
