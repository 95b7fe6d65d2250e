"""When to probe the path that carries traffic, and when to call it dead.

A busy path is probed every 0.8 s whatever comes in, because a path may die in one direction only; after the
first missing answer
probes follow quickly. A path that becomes silent while we send is probed at once. An idle path is probed
often enough to keep
NAT mappings (RFC 4787 allows two minutes, real ones 30 s), more often after one was seen to expire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pilot.traversal.candidates import Candidate
from pilot.tunnel.packing import NEVER, Plain, long, short

BUSY_S = 0.8
IDLE_S = 20.0
IDLE_MIN_S = 8.0
SILENCE_S = 0.7
UNANSWERED_S = 0.05  # what is sent this much later than the last receipt was no answer to it
BUSY_PACKETS = 5  # in a window: more than the pongs we owe a peer that probes us at the busy rate
WINDOW_S = 2.0
BUSY_HOLD_S = 4.0
DEAD_PROBES = 3
DEAD_S = 1.2
GONE_S = 15.0  # a peer that answers nothing on any path for so long is not there any more
PAUSE_S = 3.0  # between two looks: it was this process that stood still


@dataclass(slots=True)
class Health:
    """Traffic seen on a peer's active path and what follows for probing it."""

    idle_s: float = IDLE_S
    busy_until: float = NEVER
    suspect_until: float = NEVER  # the network changed: fewer missing answers are enough
    unheard_since: float = NEVER  # the first probe with a right to an answer that was followed by no frame of the peer
    _looked_at: float = NEVER
    _at: float = NEVER
    _packets: int = 0
    _probes: int = 0

    def heard(self, at: float) -> None:
        """A frame of the peer came then."""
        if at >= self.unheard_since:
            self.unheard_since = NEVER

    def busy(self, now: float) -> bool:
        """Traffic flowed within the last seconds."""
        return now < self.busy_until

    def packed(self, now: float) -> tuple[Plain, ...] | None:
        """For `unpacked`; None while there is traffic or a doubt about the path."""
        if self.busy(now) or self.suspect_until > now:
            return None
        times = short((self._looked_at, self._at, self.unheard_since))
        return (None if self.idle_s == IDLE_S else self.idle_s, self._packets, self._probes, *times)

    @classmethod
    def unpacked(cls, state: Sequence[Any]) -> Health:
        """What `packed` saw."""
        idle_s, packets, probes, *times = state
        out = cls(idle_s or IDLE_S)
        out._packets, out._probes = packets, probes
        out._looked_at, out._at, out.unheard_since = long(times)
        return out

    def probe_sent(self, now: float, awaited: bool) -> None:
        """Own probes are no traffic. awaited: an answer is to be expected, if the peer is there."""
        self._probes += 1
        if awaited and self.unheard_since == NEVER:
            self.unheard_since = now

    def gone(self, now: float, last_recv: float) -> bool:
        """Looks, a few times a minute at least while probes go out. True when the peer has answered nothing for GONE_S; then the
        time runs anew."""
        paused, self._looked_at = now - self._looked_at - PAUSE_S, now
        self.heard(last_recv)
        if self.unheard_since == NEVER:
            return False
        if 0 < paused < float("inf"):  # answers could not be seen meanwhile
            self.unheard_since = min(now, self.unheard_since + paused)
        if now - self.unheard_since < GONE_S:
            return False
        self.unheard_since = NEVER
        return True

    def traffic(self, now: float, last_recv: float, last_send: float, packets_sent: int) -> bool:
        """Takes the peer's counters (seconds on the clock of `now`; NEVER if nothing was). True: probe now,
        the peer is silent."""
        busy = packets_sent - self._packets - self._probes > BUSY_PACKETS
        if busy and now - self._at < 2 * WINDOW_S:
            self.busy_until = now + BUSY_HOLD_S
            self._at = NEVER
        if now - self._at >= WINDOW_S:
            self._at, self._packets, self._probes = now, packets_sent, 0
        return last_send > last_recv + UNANSWERED_S and now - last_recv > SILENCE_S

    def next_probe(self, path: Candidate, now: float) -> float:
        """When the active path is to be probed next."""
        if path.waiting:
            fast = 0.1 if now < self.suspect_until else 0.25
            return path.last_sent + max(fast, min(0.6, path.timeout() if fast > 0.1 else path.srtt or 0.1))
        return max(path.last_sent, path.last_pong) + (BUSY_S if self.busy(now) else self.idle_s)

    def is_dead(self, path: Candidate, now: float) -> bool:
        """Several probes in a row, over more than a second, brought nothing."""
        since = path.unanswered_since()
        if since is not None and now < self.suspect_until and len(path.waiting) > 1:
            return now - since >= 0.1 + 2 * (path.srtt or 0.1)
        if since is None or len(path.waiting) < DEAD_PROBES:
            return False
        return now - since >= min(2.5, DEAD_S + 2 * (path.srtt or 0.0))

    def mapping_expired(self) -> None:
        """A path died while it was idle and came back after a punch: its NAT forgets sooner than we
        refresh."""
        self.idle_s = max(IDLE_MIN_S, self.idle_s * 0.7)
