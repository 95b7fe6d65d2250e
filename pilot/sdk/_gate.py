"""A lock, and sleep until somebody wakes all who sleep: a condition without its cost where nobody does."""

from __future__ import annotations

import threading


class Gate:
    """`lock` is held for every call."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._condition = threading.Condition(self.lock)
        self._sleepers = 0

    def sleep(self, seconds: float | None) -> None:
        """Lets go of the lock until `wake`, or so long; may return early."""
        self._sleepers += 1
        try:
            self._condition.wait(seconds)
        finally:
            self._sleepers -= 1

    def wake(self) -> None:
        """Everybody who sleeps looks again."""
        if self._sleepers:
            self._condition.notify_all()
