"""Budgets of strangers: token buckets per source IP in a bounded table (registry.md section 9)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Buckets:
    """Token buckets by key, refilled continuously, starting full. Takes the clock as an argument, seconds."""

    def __init__(self, rate: float, burst: float, max_keys: int = 50_000) -> None:
        """rate: tokens per second; burst: capacity; max_keys: the least recently used bucket beyond it is forgotten."""
        self.rate = rate
        self.burst = burst
        self._max = max_keys
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _tokens(self, key: str, now: float) -> float:
        level, at = self._level.get(key, (self.burst, now))
        return min(self.burst, level + (now - at) * self.rate)

    def take(self, key: str, now: float, tokens: float = 1.0) -> bool:
        """Takes the tokens if they are there; otherwise takes none and says no."""
        have = self._tokens(key, now)
        enough = have >= tokens
        self._store(key, have - tokens if enough else have, now)
        return enough

    def take_all(self, charges: Sequence[tuple[str, float]], now: float) -> bool:
        """Takes (key, tokens) of several buckets if all have them; otherwise none."""
        if any(self._tokens(key, now) < tokens for key, tokens in charges):
            return False
        for key, tokens in charges:
            self._store(key, self._tokens(key, now) - tokens, now)
        return True

    def spend(self, key: str, now: float, tokens: float) -> float:
        """Takes the tokens, into debt of at most one burst; returns the seconds until the level is back at zero."""
        have = max(self._tokens(key, now) - tokens, -self.burst)
        self._store(key, have, now)
        return -have / self.rate if have < 0 else 0.0

    def _store(self, key: str, level: float, now: float) -> None:
        self._level[key] = (level, now)
        self._level.move_to_end(key)
        if len(self._level) > self._max:
            self._level.popitem(last=False)

    def __len__(self) -> int:
        return len(self._level)
