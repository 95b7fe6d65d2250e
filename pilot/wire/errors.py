"""The fault of every codec in pilot.wire."""

from __future__ import annotations


class WireError(ValueError):
    """Bytes or values that have no place on the wire. `reason` says why in a few words, without the data."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
