"""A token bucket per node, with bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

MAX_NODES = 4096
TELL_S = 1.0


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float
    told_at: float = float("-inf")


class NodeRates:
    """Buckets of `burst` tokens that fill at `per_s`. Times: seconds, monotonic."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: dict[int, _Bucket] = {}

    def allows(self, node: int, now: float) -> bool:
        """Takes a token of `node`; False if it has none."""
        bucket = self._buckets.get(node)
        if bucket is None:
            if len(self._buckets) >= MAX_NODES:
                self._forget_full(now)
            bucket = self._buckets[node] = _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_s)
        bucket.at = now
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def may_tell(self, node: int, now: float) -> bool:
        """Whether it is time to report the excess of `node` again: once a second."""
        bucket = self._buckets.get(node)
        if bucket is None or now - bucket.told_at < TELL_S:
            return False
        bucket.told_at = now
        return True

    def _forget_full(self, now: float) -> None:
        """A bucket that is full again says no more than none."""
        fill_s = self._burst / self._per_s
        self._buckets = {n: b for n, b in self._buckets.items() if now - b.at < fill_s}
