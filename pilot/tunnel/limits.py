"""Rate limits for input that strangers can make: token buckets in a bounded table.

When the table is full the bucket that was used longest ago is forgotten: an attacker with many addresses can
at worst refill
limits, never make memory grow or lock anybody out for good.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class RateLimit(Generic[K]):
    """At most `rate` per second and `burst` at once, per key. `size` keys are remembered."""

    def __init__(self, rate: float, burst: float, size: int = 4096) -> None:
        self.rate = rate
        self.burst = burst
        self.size = size
        self._buckets: OrderedDict[K, tuple[float, float]] = OrderedDict()  # key: (tokens, at)

    def take(self, key: K, now: float) -> bool:
        """True and one token less if `key` may go at `now` (seconds, any origin)."""
        tokens, at = self._buckets.pop(key, (self.burst, now))
        tokens = min(self.burst, tokens + max(0.0, now - at) * self.rate)
        ok = tokens >= 1.0
        self._buckets[key] = (tokens - 1.0 if ok else tokens, now)
        self._forget_full(now)
        if len(self._buckets) > self.size:
            self._buckets.popitem(last=False)
        return ok

    def _forget_full(self, now: float) -> None:
        """A bucket that has filled up since is as good as none."""
        for _ in range(2):
            key, (_, at) = next(iter(self._buckets.items()))
            if now - at < self.burst / self.rate:
                return
            del self._buckets[key]

    def ready_at(self, key: K, now: float) -> float:
        """When the next token for `key` will be there; `now` if one is."""
        tokens, at = self._buckets.get(key, (self.burst, now))
        tokens = min(self.burst, tokens + max(0.0, now - at) * self.rate)
        return now if tokens >= 1.0 else now + (1.0 - tokens) / self.rate
