"""When the process's tunnel key has served its time (design.md section 6).

One X25519 key serves all peers, so its life is counted over all of them: an upper bound for every single session. The
volume is that of RFC 8446 section 5.5 for AES-GCM, 2^24.5 records of 16 KB, rounded down.
"""

from __future__ import annotations

MAX_AGE_S = 12 * 3600.0
MAX_BYTES = 256 << 30
CHECK_EVERY_S = 10.0


class KeyLife:
    """Sans-I/O. moved: tunnel bytes of the node so far, both directions."""

    def __init__(self, now: float, moved: int = 0) -> None:
        self._since = now
        self._from = moved

    def over(self, now: float, moved: int) -> bool:
        """The key is to be replaced."""
        return now - self._since >= MAX_AGE_S or moved - self._from >= MAX_BYTES

    def renew(self, now: float, moved: int) -> None:
        """Another key is in use from here on."""
        self._since, self._from = now, moved
