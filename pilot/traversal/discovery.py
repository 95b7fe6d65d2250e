"""Finding the own public endpoint and staying known to the beacons, without I/O (beacon.md 3.1, 3.2, 5).

All questions leave from the tunnel socket itself, so the answer is the endpoint peers see. The same message
registers the node
at the beacon (relay and punch need that) and keeps the NAT mapping; it is repeated every 20 s to every
beacon, whether or not
the registry can be reached. A beacon of our kind tells a shorter time as long as its population allows (docs/wire-extensions.md
7.4); the nearest ones are then asked that often, so a beacon that was restarted knows its nodes again after a few seconds.
A reply counts only from an address that was asked a moment ago, once for each question. Beacons of our kind repeat the nonce of
the question; from one that does so nothing else counts. Of others, whose replies anybody can make up, another endpoint is
believed when the next question is answered by the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pilot.traversal.decisions import Addr
from pilot.traversal.nat import NatType, Scope, scope
from pilot.traversal.natprobe import Filtering, NatProbe
from pilot.tunnel.packing import NEVER
from pilot.wire.beacon import NONCE_SIZE, ProbeReply

KEEPALIVE_S = 20.0  # below the 30 s after which many NATs forget
PACE_MIN_S = 3.0  # whatever a beacon tells
PACED = 3  # beacons asked at the pace they tell, the nearest; the others every KEEPALIVE_S
RETRY_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # after an unanswered question; the last one repeats
DEAD_MISSES = 3
SILENT_MISSES = 3  # in a row, 0.25 and 0.5 s apart
ANSWER_S = 5.0  # an answer later than this belongs to nothing we asked
CONFIRM_S = 0.1  # another endpoint, and nothing proves the reply: asked again after so long
CHECK_EVERY_S = 1.0
STALE_NAMES_S = 10.0
NAMES_EVERY_S = 30.0
MEASURE_EVERY_S = 10.0  # the NAT, at most; the first time at once
MAX_BEACONS = 16


@dataclass(frozen=True, slots=True)
class SendDiscover:
    """Send 0x01 with `node` and `nonce` (8 bytes) to a beacon."""

    beacon: Addr
    node: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send a NAT probe to a beacon or to one of its other sockets."""

    addr: Addr
    data: bytes


@dataclass(frozen=True, slots=True)
class EndpointChanged:
    """The endpoint that others see is another one now. old: None the first time."""

    old: Addr | None
    new: Addr


@dataclass(frozen=True, slots=True)
class BeaconsChanged:
    """Another set of beacons answers, or their round-trip times are known now."""


@dataclass(frozen=True, slots=True)
class NatChanged:
    """The NAT class was found out or is another one."""

    nat: NatType


@dataclass(frozen=True, slots=True)
class ResolveBeacons:
    """Beacons do not answer: resolve their names again, they may have moved."""


DiscoveryAction = SendDiscover | SendProbe | EndpointChanged | BeaconsChanged | NatChanged | ResolveBeacons


@dataclass(slots=True)
class Beacon:
    """What is known of one beacon. Times in seconds, NEVER if it did not happen."""

    addr: Addr
    next_send: float
    last_sent: float = NEVER
    last_reply: float = NEVER
    asked: int = 0  # questions since the last reply
    pace: float = KEEPALIVE_S  # how often it wants to be asked
    rtt: float | None = None
    observed: Addr | None = None
    nonce: bytes = b""  # of the questions since the last reply
    repeats: bool = False  # it puts the nonce into its replies
    doubted: Addr | None = None  # what the last reply said, if that is not believed yet

    @property
    def alive(self) -> bool:
        """It answered, and not more than two questions since went unanswered."""
        return self.last_reply > NEVER and self.asked <= DEAD_MISSES


class Discovery:
    """The machine of one node. Call `take()` after every input; call `tick(now)` at `deadline()`."""

    def __init__(self, *, fixed: Addr | None = None, random: Callable[[int], bytes] = os.urandom) -> None:
        """fixed: an endpoint the operator vouches for; beacons are then only told where we are. random: n bytes."""
        self.node = 0
        self.nat = NatType.UNKNOWN
        self.endpoint: Addr | None = fixed
        self.forged = 0  # replies that nobody asked for, or not of who was asked
        self._random = random
        self._fixed = fixed is not None
        self._blocked = False
        self._probe = NatProbe(random)
        self._tried: set[Addr] = set()  # beacons measured with since the last change
        self._measured_at = NEVER
        self._local: frozenset[Addr] = frozenset()
        self._beacons: dict[Addr, Beacon] = {}
        self._near: frozenset[Addr] = frozenset()
        self._checked = NEVER
        self._names_at = NEVER
        self._silent_since: float | None = None
        self._out: list[DiscoveryAction] = []

    def set_node(self, node: int, now: float) -> None:
        """Own number (0 before registration), after each registration. The beacons hear it at once: one that knew us elsewhere
        believes our new address from the moment the registry does."""
        self.node = node
        for beacon in self._beacons.values():
            beacon.next_send = now

    def set_local(self, hosts: Iterable[str], port: int) -> None:
        """Addresses of this host's interfaces and the port of the tunnel socket: an observed one among them
        means no NAT."""
        self._local = frozenset((host, port) for host in hosts)
        self._infer()

    def set_beacons(self, beacons: Sequence[Addr], now: float) -> None:
        """Replaces the beacons; new ones are asked at once, known ones keep their state."""
        wanted = list(dict.fromkeys(beacons))[:MAX_BEACONS]
        before = list(self._beacons)
        self._beacons = {a: self._beacons.get(a) or Beacon(a, now) for a in wanted}
        self._near = self._nearest()
        if before != wanted:
            self._out.append(BeaconsChanged())
            self._infer()

    def set_blocked(self, blocked: bool) -> None:
        """No UDP gets out: the beacon in use is reached by other means and knows no endpoint of ours."""
        if blocked != self._blocked:
            self._blocked = blocked
            if blocked and not self._fixed:
                self.endpoint = None
            self._probe.stop()
            self._tried.clear()
            self._infer()

    @property
    def measuring(self) -> bool:
        """The NAT class may be another one in a moment."""
        return self._probe.running

    @property
    def uneasy(self) -> bool:
        """Every beacon has left a question unanswered: they may be silent in a moment."""
        return all(b.asked > 1 for b in self._beacons.values())

    @property
    def silent(self) -> bool:
        """Every beacon has left several questions in a row unanswered."""
        return bool(self._beacons) and all(b.asked >= SILENT_MISSES for b in self._beacons.values())

    def beacons(self) -> list[Beacon]:
        """All beacons in the configured order."""
        return list(self._beacons.values())

    def usable(self) -> list[tuple[Addr, float | None]]:
        """Beacons that answer, nearest first, with their round-trip times; if none has answered yet, all of
        them."""
        alive = [b for b in self._beacons.values() if b.alive]
        alive.sort(key=lambda b: b.rtt if b.rtt is not None else 9.0)
        return [(b.addr, b.rtt) for b in (alive or self._beacons.values())]

    def reply(self, beacon: Addr, observed: Addr, now: float, pace: int = 0, nonce: bytes = b"") -> None:
        """A 0x02 from `beacon`. pace: seconds after which it wants the next question, 0 = not told. nonce: that of the question,
        or none."""
        known = self._beacons.get(beacon)
        if not known or now - known.last_sent > ANSWER_S or not known.asked:
            return
        proves = nonce == known.nonce
        if not proves and (nonce or (known.repeats and known.alive)):
            self.forged += 1
            return
        known.repeats = proves
        seen = observed if scope(observed[0]) is not Scope.NONE else None  # a beacon behind a stream tells none
        if not proves and known.alive and known.observed and seen and seen not in (known.observed, known.doubted):
            known.doubted = seen
            known.last_reply = now
            known.asked = 0
            known.next_send = now + CONFIRM_S
            return
        known.doubted = None
        news = not known.alive or known.observed != seen or known.rtt is None
        if known.asked == 1:  # otherwise nobody knows which question this answers
            rtt = now - known.last_sent
            known.rtt = rtt if known.rtt is None else known.rtt + (rtt - known.rtt) / 4
        known.last_reply = now
        known.asked = 0
        known.observed = seen
        known.pace = min(max(float(pace), PACE_MIN_S), KEEPALIVE_S) if pace else KEEPALIVE_S
        if news:
            self._near = self._nearest()
        known.next_send = now + (known.pace if beacon in self._near else KEEPALIVE_S)
        self._silent_since = None
        if news:
            self._out.append(BeaconsChanged())
        self._infer()

    def probe_reply(self, sender: Addr, message: ProbeReply, now: float) -> None:
        """A 0x0C, from wherever it came."""
        if self._probe.reply(sender, message, now):
            self._infer()
        self._collect()

    def network_changed(self, now: float) -> None:
        """Own addresses changed, or the host slept: the NAT may be another one."""
        self.check(now)
        self._tried.clear()

    def check(self, now: float) -> None:
        """Asks all beacons now: a relay path went silent, or the network changed. At most once a second."""
        if now - self._checked >= CHECK_EVERY_S:
            self._checked = now
            for beacon in self._beacons.values():
                beacon.next_send = now

    def deadline(self) -> float | None:
        """When `tick` has something to do; None for never."""
        times = [b.next_send for b in self._beacons.values()]
        times += [t for t in (self._probe.deadline(), self._measure_due()) if t is not None]
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Sends what is due."""
        for beacon in self._beacons.values():
            if beacon.next_send > now:
                continue
            was_alive = beacon.alive
            if not beacon.asked:
                beacon.nonce = self._random(NONCE_SIZE)
            beacon.asked += 1
            beacon.last_sent = now
            retry = RETRY_S[min(beacon.asked, len(RETRY_S)) - 1]
            beacon.next_send = now + (min(retry, beacon.pace) if beacon.addr in self._near else retry)
            self._out.append(SendDiscover(beacon.addr, self.node, beacon.nonce))
            if was_alive and not beacon.alive:
                self._out.append(BeaconsChanged())
        self._watch_names(now)
        if self._probe.tick(now):
            self._infer()
        due = self._measure_due()
        if due is not None and due <= now:
            self._measure(now)
        self._collect()

    def take(self) -> list[DiscoveryAction]:
        """The actions since last asked, in order."""
        out, self._out = self._out, []
        return out

    def _nearest(self) -> frozenset[Addr]:
        """The beacons whose pace is kept. One that died keeps its place: it may be back any moment."""
        order = sorted(self._beacons.values(), key=lambda b: b.rtt if b.rtt is not None else 9.0)
        return frozenset(b.addr for b in order[:PACED])

    def _candidate(self) -> Addr | None:
        """The beacon to measure with next: one that answers, the farthest first, as only one outside the NAT sees it. At the
        start, when none has answered yet, the first. None when all had their turn."""
        answering = [b for b in self._beacons.values() if b.alive and b.observed]
        if not answering:
            answering = list(self._beacons.values())[:1] if self._measured_at == NEVER else []
        answering.sort(key=lambda b: -scope(b.addr[0]).value)
        return next((b.addr for b in answering if b.addr not in self._tried), None)

    def _measure_due(self) -> float | None:
        if self._fixed or self._blocked or self._probe.running:
            return None
        if (self._probe.result and self._probe.beacon in self._tried) or self._candidate() is None:
            return None
        # A beacon of another kind costs one second: then the next one has its turn at once.
        return self._measured_at + (0.0 if self._tried else MEASURE_EVERY_S)

    def _measure(self, now: float) -> None:
        beacon = self._candidate()
        if beacon is not None:
            self._tried.add(beacon)
            self._measured_at = now
            self._probe.begin(beacon, now)

    def _collect(self) -> None:
        self._out += [SendProbe(addr, data) for addr, data in self._probe.out]
        self._probe.out.clear()

    def _watch_names(self, now: float) -> None:
        if not self._beacons or any(b.asked <= 1 and b.last_reply > NEVER for b in self._beacons.values()):
            self._silent_since = None
            return
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since >= STALE_NAMES_S and now - self._names_at >= NAMES_EVERY_S:
            self._names_at = now
            self._out.append(ResolveBeacons())

    def _infer(self) -> None:
        seen = [b for b in self._beacons.values() if b.observed and b.alive]
        first = seen[0].observed if seen else None
        if first and not self._fixed and first != self.endpoint:
            self._out.append(EndpointChanged(self.endpoint, first))
            if self.endpoint is not None:
                self._tried.clear()  # another NAT, or another mapping of it: measured anew
            self.endpoint = first
        nat = self._classify(seen)
        if nat is not self.nat:
            self.nat = nat
            self._out.append(NatChanged(nat))

    def _classify(self, seen: list[Beacon]) -> NatType:
        """By what the beacons see, and by what was measured with one of them."""
        if self._blocked:
            return NatType.BLOCKED
        observed = [b.observed for b in seen if b.observed]
        if not observed:
            return NatType.UNKNOWN
        measured = self._probe.result
        if all(o in self._local for o in observed):  # no translation; what is left is a firewall, and those look at ports
            if not measured or (measured.filtering is Filtering.ADDRESS_DEPENDENT and not measured.by_address):
                return NatType.OPEN
            return _BY_FILTERING[measured.filtering, False]
        # Only observers equally far away can be compared: one inside the NAT sees another address without any
        # symmetry.
        far = max(scope(b.addr[0]).value for b in seen)
        outside = {b.observed for b in seen if scope(b.addr[0]).value == far}
        if len(outside) > 1 or (measured and measured.stable is False):
            return NatType.SYMMETRIC
        others = sum(scope(b.addr[0]).value == far for b in seen) > 1
        if measured and (measured.stable or others):
            return _BY_FILTERING[measured.filtering, True]
        return NatType.UNKNOWN


_BY_FILTERING = {
    (Filtering.ENDPOINT_INDEPENDENT, False): NatType.OPEN,
    (Filtering.ENDPOINT_INDEPENDENT, True): NatType.FULL_CONE,
    **{(Filtering.ADDRESS_DEPENDENT, translated): NatType.RESTRICTED_CONE for translated in (False, True)},
    **{(Filtering.ADDRESS_AND_PORT_DEPENDENT, translated): NatType.PORT_RESTRICTED_CONE for translated in (False, True)},
}
