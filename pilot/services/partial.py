"""A file that is arriving: its bytes on disk, and how much room is kept for those to come."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

HASH_BYTES = 1 << 20
PROMISED_BYTES = 1 << 20  # kept free for a transfer that was announced ...
PROMISED_TIMES = 16  # ... and so many times what came of it lately
LATELY_S = 30.0  # after which half of it is forgotten


class HashState(NamedTuple):
    """sha: of a file's bytes, when its inode, size and time of change were `file`."""

    sha: hashlib._Hash
    file: tuple[int, int, int]


class Partial:
    """A file that is arriving from `node`. `size`: bytes there; `taken`: bytes that it has room for; `total`: announced."""

    def __init__(
        self, fd: int, path: Path, node: int, size: int, total: int, *, hashed: bool, grow: Callable[[Partial, int], None]
    ) -> None:
        """grow(self, n): finds room for n more bytes, or raises StoreError."""
        self.path = path
        self.node = node
        self.size = self.taken = size
        self.total = total
        self._grow = grow
        self._fd = fd
        self._sha = hashlib.sha256() if hashed else None
        self._hashed = 0
        self._lately = 0.0  # bytes taken, older ones forgotten
        self._lately_at = 0.0

    def take(self, count: int, now: float) -> None:
        """`count` bytes more have room."""
        self._lately = self._faded(now) + count
        self._lately_at = now
        self.taken += count

    def promised(self, now: float) -> int:
        """Bytes not come yet for which room is kept."""
        return max(0, min(self.total - self.taken, PROMISED_BYTES + int(PROMISED_TIMES * self._faded(now))))

    def _faded(self, now: float) -> float:
        return self._lately * float(0.5 ** ((now - self._lately_at) / LATELY_S))

    def write(self, pieces: Sequence[memoryview]) -> None:
        """Appends. StoreError (no room), OSError (disk full)."""
        self._grow(self, sum(map(len, pieces)))
        self._catch_up()
        for piece in pieces:
            rest = piece
            while rest:
                written = os.write(self._fd, rest)
                self.size += written
                rest = rest[written:]
            if self._sha is not None:
                self._sha.update(piece)
                self._hashed += len(piece)

    def digest(self) -> bytes:
        """SHA-256 of all that is there."""
        self._catch_up()
        return self._sha.digest() if self._sha is not None else b""

    def hash_state(self) -> HashState | None:
        """The hash so far, for `resume`; None if there is none of all bytes. Before `close`."""
        if self._sha is None or self._hashed != self.size or not self.size:
            return None
        state = os.fstat(self._fd)
        return HashState(self._sha.copy(), (state.st_ino, state.st_size, state.st_mtime_ns))

    def resume(self, known: HashState) -> None:
        """Goes on with a hash if the file is as it was then: not every sender that comes back makes us read gigabytes."""
        state = os.fstat(self._fd)
        if self._sha is not None and known.file == (state.st_ino, self.size, state.st_mtime_ns):
            self._sha, self._hashed = known.sha.copy(), self.size

    def sync(self) -> None:
        """Makes the content survive a power cut."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _catch_up(self) -> None:
        """Hashes what an earlier transfer left; only in a thread, it may be gigabytes."""
        while self._sha is not None and self._hashed < self.size:
            data = os.pread(self._fd, min(HASH_BYTES, self.size - self._hashed), self._hashed)
            if not data:
                raise OSError(errno.EIO, "the partial file shrank")
            self._sha.update(data)
            self._hashed += len(data)
