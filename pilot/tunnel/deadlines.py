"""A set of deadlines, one per key, of which the earliest is wanted: a heap whose outdated entries are
skipped.

O(log n) to set, O(1) amortised to ask. Time is the caller's, in seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator


class Deadlines:
    """Earliest-first deadlines by number. Setting a key again replaces its deadline."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def set(self, key: int, at: float | None) -> None:
        """Sets the deadline of `key`, or removes it when `at` is None."""
        if at is None:
            self._at.pop(key, None)
            return
        if self._at.get(key) == at:
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 64 + 2 * len(self._at):
            self._rebuild()

    def earliest(self) -> float | None:
        """The earliest deadline, None when there is none."""
        self._skip()
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[int]:
        """Removes and yields the keys whose deadline is at or before `now`. Keys set again meanwhile are left
        for the next call
        unless they are due as well; the caller must move a key's deadline past `now`."""
        while True:
            self._skip()
            if not self._heap or self._heap[0][0] > now:
                return
            _, key = heapq.heappop(self._heap)
            del self._at[key]
            yield key

    def __len__(self) -> int:
        return len(self._at)

    def _skip(self) -> None:
        heap, at = self._heap, self._at
        while heap and at.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)

    def _rebuild(self) -> None:
        self._heap = [(at, key) for key, at in self._at.items()]
        heapq.heapify(self._heap)
