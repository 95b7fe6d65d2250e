"""When to ask the beacons for a punch with one peer, and what has to wait for it.

A frame that reaches the peer's router before the peer has sent anything toward us may spoil the port the peer is known by:
many routers take it for themselves, remember the pair of endpoints, and give what the peer sends to us another port. So
nothing goes to an address behind a NAT before a beacon has told both sides to send; then the first frames cross on the way.
The wait costs nothing, because the relay carries traffic meanwhile, and it is short: if no command comes, the beacon does not
know the peer.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilot.traversal.candidates import Candidate, Source
from pilot.traversal.nat import Scope, scope
from pilot.tunnel.packing import NEVER, long, short

HOLD_S = 0.3  # the wait for a command that the peer asks for, or we from a beacon at unknown distance
SPARE_S = 0.03
RECENT_S = 5.0  # a punch so recent still holds the NATs open
CROSSED_S = 0.2  # the peer asked at the same time: one punch is enough
ANSWER_S = 3.0


class Punching:
    """Times in seconds on the machine's clock."""

    __slots__ = ("_due", "_hold_until", "asked", "commanded")

    def __init__(self) -> None:
        self.asked = NEVER
        self.commanded = NEVER
        self._due: list[float] = []
        self._hold_until = NEVER

    def plan(self, offsets: tuple[float, ...], beacon_rtt: float | None, now: float) -> None:
        """Requests at `now` + offsets, instead of those planned earlier."""
        self._due = [now + offset for offset in offsets]
        wait = HOLD_S if beacon_rtt is None else min(2 * HOLD_S, 1.5 * beacon_rtt + SPARE_S)
        self.hold(self._due[0] + wait, now)

    def hold(self, until: float, now: float) -> None:
        """A command may come until then."""
        if now - self.commanded >= RECENT_S:
            self._hold_until = max(self._hold_until, until)

    def cancel(self) -> None:
        """No more requests, and nothing waits."""
        self._due.clear()
        self._hold_until = NEVER

    def command(self, now: float) -> None:
        """A beacon said: now."""
        self.commanded = now
        self._hold_until = NEVER

    def packed(self) -> tuple[float | None, ...] | None:
        """For `unpacked`; None while a request is planned or something waits for a command."""
        return None if self._due or self._hold_until > NEVER else short((self.asked, self.commanded))

    @classmethod
    def unpacked(cls, state: Sequence[float | None]) -> Punching:
        """What `packed` saw."""
        out = cls()
        out.asked, out.commanded = long(state)
        return out

    def awaited(self, now: float) -> bool:
        """A request is under way."""
        return now - self.asked < ANSWER_S

    def deadline(self) -> float | None:
        """When `request_due` or `hold_ends` will say something else; None for never."""
        times = [*self._due[:1], *([self._hold_until] if self._hold_until > NEVER else [])]
        return min(times, default=None)

    def request_due(self, now: float) -> bool:
        """Ask the beacons now."""
        if not self._due or self._due[0] > now:
            return False
        self._due = [t for t in self._due if t > now]
        return now - self.commanded >= CROSSED_S

    def hold_ends(self, now: float) -> bool:
        """True once, when a command that was waited for has not come."""
        if self._hold_until == NEVER or self._hold_until > now:
            return False
        self._hold_until = NEVER
        return True

    def wait(self, candidate: Candidate, now: float) -> float:
        """How long nothing may be sent to this address, 0 for send."""
        opened = candidate.answered or candidate.sources & (Source.OBSERVED | Source.HINT | Source.PUNCH)
        if candidate.relay or opened or scope(candidate.addr[0]) is not Scope.PUBLIC:
            return 0.0
        return max(0.0, self._hold_until - now)
