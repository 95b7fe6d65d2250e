"""The fault of every codec in pilot.wire."""

from __future__ import annotations

from pilot.errors import PilotError


class WireError(PilotError, ValueError):
    """Bytes or values that have no place on the wire. `reason` (also `message`) says why, without the data.

    For a value of the user this is the error to show. Bytes of a remote that raise it are to be counted and dropped,
    or the stream they came on is to be closed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("invalid_argument", reason)

    @property
    def reason(self) -> str:
        """Why, in a few words."""
        return self.message
