"""A set of deadlines, one per key, of which the earliest is wanted: a heap whose outdated entries are
skipped.

O(log n) to set, O(1) amortised to ask. Time is the caller's, in seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Earliest-first deadlines by key. Setting a key again replaces its deadline."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0  # breaks ties, so that keys need no order

    def set(self, key: K, at: float | None) -> None:
        """Sets the deadline of `key`, or removes it when `at` is None."""
        if at is None:
            self._at.pop(key, None)
            return
        if self._at.get(key) == at:
            return
        self._at[key] = at
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, key))
        if len(self._heap) > 64 + 4 * len(self._at):
            self._rebuild()

    def earliest(self) -> float | None:
        """The earliest deadline, None when there is none."""
        self._skip()
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[K]:
        """Removes and yields the keys whose deadline is at or before `now`. Keys set again meanwhile are left
        for the next call
        unless they are due as well; the caller must move a key's deadline past `now`."""
        while True:
            self._skip()
            if not self._heap or self._heap[0][0] > now:
                return
            _, _, key = heapq.heappop(self._heap)
            del self._at[key]
            yield key

    def __len__(self) -> int:
        return len(self._at)

    def _skip(self) -> None:
        heap, at = self._heap, self._at
        while heap and at.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)

    def _rebuild(self) -> None:
        self._heap = [(at, i, key) for i, (key, at) in enumerate(self._at.items())]
        self._serial = len(self._heap)
        heapq.heapify(self._heap)
