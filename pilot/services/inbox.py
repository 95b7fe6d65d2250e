"""The bounds of the inbox: at most MAX_FILES messages and MAX_BYTES, the oldest go first."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

MAX_FILES = 10_000
MAX_BYTES = 256 << 20
TRUSTED_STORES = 64  # messages removed before the directory is looked at again: the user deletes files too


class Inbox:
    """The directory of messages. Thread-safe. Only `*.json` files count, and only they are removed."""

    def __init__(self, path: Path, on_full: Callable[[int], None]) -> None:
        """on_full(files): so many messages had to go."""
        self.path = path
        self._on_full = on_full
        self._lock = threading.Lock()
        self._known: deque[tuple[str, int]] | None = None  # name, bytes; oldest first
        self._bytes = 0
        self._removed_since_scan = 0

    def added(self, path: Path, size: int) -> None:
        """A message was stored; removes the oldest ones if there are too many."""
        with self._lock:
            if self._known is None:
                self._scan()
            else:
                self._known.append((path.name, size))
                self._bytes += size
            removed = 0
            while self._too_many():
                if self._removed_since_scan % TRUSTED_STORES == 0:
                    self._scan()
                    if not self._too_many():
                        break
                removed += self._remove_oldest()
        if removed:
            self._on_full(removed)

    def _too_many(self) -> bool:
        assert self._known is not None
        return len(self._known) > 1 and (len(self._known) > MAX_FILES or self._bytes > MAX_BYTES)

    def _remove_oldest(self) -> int:
        """1 if there was something to remove."""
        assert self._known is not None
        name, size = self._known.popleft()
        self._bytes -= size
        self._removed_since_scan += 1
        try:
            os.unlink(self.path / name)
        except FileNotFoundError:
            self._removed_since_scan = 0  # the user has been here: look again
            return 0
        except OSError:
            return 0
        return 1

    def _scan(self) -> None:
        rows: list[tuple[str, int]] = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(".json") and entry.is_file(follow_symlinks=False):
                        rows.append((entry.name, entry.stat(follow_symlinks=False).st_size))
        rows.sort(key=lambda row: row[0].partition("-")[2])
        self._known = deque(row for row in rows if not row[0].startswith("."))
        self._bytes = sum(size for _, size in self._known)
        self._removed_since_scan = 1
