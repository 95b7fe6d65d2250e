"""What the NAT in front of us maps and lets in, measured with one beacon of our kind (RFC 5780, docs/wire-extensions.md 7.1).

Filtering first: the beacon answers a probe also from a port and from an address that nobody ever sends to; what of that
arrives is let in unasked. Then mapping: an observer elsewhere is asked what it sees. Where the observer sits is chosen so that
asking it opens nothing that the next measurement looks at, also that of a daemon which is started again on the same port:
under address-dependent filtering it is another port of the beacon, otherwise its other address. Without I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pilot.traversal.decisions import Addr
from pilot.traversal.nat import may_punch
from pilot.wire.beacon import NONCE_SIZE, Probe, ProbeReply, ProbeSource

TRIES = 3  # answered by the beacon itself, before what did not arrive counts as filtered
LATE_S = 0.1  # the other answers may come so long after the beacon's own
SILENT_S = (0.25, 0.5, 1.0)  # no answer at all: asked again after; then it is another kind of beacon


class Filtering(Enum):
    """Whose packets come in, in the words of RFC 4787. The strictest that fits what was seen."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address- and port-dependent"


@dataclass(frozen=True, slots=True)
class Measured:
    """stable: another observer saw the same endpoint; None: it did not answer. by_address: the beacon has another address,
    so that endpoint-independent and address-dependent filtering could be told apart."""

    filtering: Filtering
    stable: bool | None
    by_address: bool


class NatProbe:
    """One measurement at a time. `out`: (address, datagram) to send, taken by the owner."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.beacon: Addr | None = None
        self.running = False
        self.result: Measured | None = None  # of the last measurement; None: that beacon cannot tell
        self.out: list[tuple[Addr, bytes]] = []
        self._random = random
        self._nonce = b""
        self._tries = 0  # probes that the one asked has answered
        self._misses = 0  # that it has not
        self._answered = False
        self._due = 0.0
        self._told: ProbeReply | None = None
        self._seen: set[ProbeSource] = set()
        self._filtering: Filtering | None = None
        self._observer: Addr | None = None

    def begin(self, beacon: Addr, now: float) -> None:
        """Measures anew. The former result stays until there is another one."""
        self.beacon = beacon
        self.running = True
        self._told = self._filtering = self._observer = None
        self._seen.clear()
        self._ask(now, first=True)

    def stop(self) -> None:
        """Gives up; the former result is forgotten."""
        self._told = None
        self._finish(None)

    def deadline(self) -> float | None:
        """When `tick` has something to do; None for never."""
        return self._due if self.running else None

    def reply(self, sender: Addr, message: ProbeReply, now: float) -> bool:
        """An answer. True: the measurement has ended."""
        if not self.running or message.nonce != self._nonce or self.beacon is None:
            return False
        if self._observer:
            if sender == self._observer and self._told:
                return self._finish(message.endpoint == self._told.endpoint)
            return False
        source = message.source
        here = sender[0] == self.beacon[0]
        fits = {
            ProbeSource.ASKED: sender == self.beacon,
            ProbeSource.OTHER_PORT: here and sender[1] != self.beacon[1],
            ProbeSource.OTHER_ADDRESS: not here,
        }
        if not fits[source]:
            return False
        self._seen.add(source)
        if source is ProbeSource.ASKED:
            self._told = message
            if not self._answered:
                self._answered = True
                self._due = now + LATE_S
        if self._told and (
            ProbeSource.OTHER_ADDRESS in self._seen
            or (ProbeSource.OTHER_PORT in self._seen and self._told.alternate is None)
        ):
            return self._filtering_known(now)
        return False

    def tick(self, now: float) -> bool:
        """Asks again or draws the conclusion. True: the measurement has ended."""
        if not self.running or now < self._due:
            return False
        if self._observer:
            if self._misses < len(SILENT_S):
                self._ask(now)
                return False
            return self._finish(None)
        if not self._answered:
            if self._misses < len(SILENT_S):
                self._ask(now)
                return False
            self._told = None
            return self._finish(None)
        self._tries += 1
        if self._tries < TRIES:
            self._misses = 0
            self._ask(now)
            return False
        return self._filtering_known(now)

    def _filtering_known(self, now: float) -> bool:
        assert self._told is not None and self.beacon is not None
        elsewhere = self._told.alternate
        if ProbeSource.OTHER_ADDRESS in self._seen:
            self._filtering = Filtering.ENDPOINT_INDEPENDENT
        elif ProbeSource.OTHER_PORT in self._seen:
            self._filtering = Filtering.ADDRESS_DEPENDENT
            elsewhere = None
        else:
            self._filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
        self._observer = elsewhere or (self.beacon[0], self._told.observer_port)
        if not may_punch(self._observer, self.beacon):  # nobody makes us send inside our own network
            return self._finish(None)
        self._ask(now, first=True)
        return False

    def _ask(self, now: float, first: bool = False) -> None:
        if first:
            self._nonce = self._random(NONCE_SIZE)
            self._tries = self._misses = 0
        self._answered = False
        self._due = now + SILENT_S[min(self._misses, len(SILENT_S) - 1)]
        self._misses += 1
        target = self._observer or self.beacon
        assert target is not None
        self.out.append((target, Probe(self._nonce).build()))

    def _finish(self, stable: bool | None) -> bool:
        self.running = False
        self.result = Measured(self._filtering, stable, bool(self._told.alternate)) if self._told and self._filtering else None
        return True
