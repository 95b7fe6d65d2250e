"""Candidate paths to a peer: what is known of each, and how they compare. Pure data; path.py decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any

from pilot.traversal.decisions import Addr
from pilot.traversal.nat import Scope, scope
from pilot.tunnel.packing import NEVER, Plain, long, short

PROBE_GAP_S = 0.05
TOKEN_BIT = 1 << 63  # probe tokens of the path machines; others may use the lower half
LATE_S = 10.0  # the data plane knows of no probe that is older
STALE_S = 120.0  # no NAT keeps the port of an address that answered so long ago and that nobody else names


class Source(IntFlag):
    """Who told us the address."""

    REGISTERED = 1  # the registry
    LAN = 2  # the registry's list of LAN addresses
    PUNCH = 4  # a beacon's punch command
    OBSERVED = 8  # an authenticated frame came from there
    HINT = 16  # an unauthenticated or replayable frame came from there
    RELAY = 32  # a beacon


class Tier(IntEnum):
    """Lower is better."""

    LAN = 0
    DIRECT = 1
    RELAY = 2


@dataclass(slots=True)
class Candidate:
    """One way to a peer. Times are seconds on the caller's clock, NEVER if it did not happen."""

    addr: Addr
    relay: bool
    sources: Source
    added: float
    due: list[float] = field(default_factory=list)  # probes to send, ascending
    waiting: dict[int, float] = field(default_factory=dict)  # unanswered probes: token, sent at
    sent: int = 0  # probes in the present race
    last_sent: float = NEVER
    last_pong: float = NEVER
    detours: int = 0  # direct probes answered through a beacon
    srtt: float | None = None
    rttvar: float = 0.0
    punched: bool = False  # a beacon arranged a punch toward its host before it first answered
    commanded: float = NEVER  # a beacon told both sides to punch
    dead: bool = False

    @property
    def tier(self) -> Tier:
        """What its kind is worth."""
        if self.relay:
            return Tier.RELAY
        return (
            Tier.LAN if Source.LAN in self.sources and Source.REGISTERED not in self.sources else Tier.DIRECT
        )

    @property
    def answered(self) -> bool:
        """It answered a probe and was not found dead since."""
        return self.last_pong > NEVER and not self.dead

    def fresh(self, now: float, age_s: float) -> bool:
        """It answered within the last `age_s` seconds."""
        return self.answered and now - self.last_pong <= age_s

    def burst(self, offsets: tuple[float, ...], now: float) -> None:
        """Schedules probes at `now` + offsets, besides those scheduled earlier, at most 6 in all and PROBE_GAP_S apart: what asks
        for one (a punch command of each beacon, a hint, a race) often comes in volleys."""
        last = self.last_sent
        due: list[float] = []
        for at in sorted({*self.due, *(now + o for o in offsets)}):
            if due and at - last < PROBE_GAP_S:
                continue
            last = max(at, last + PROBE_GAP_S)
            due.append(last)
        self.due = due[:6]

    def probed(self, token: int, now: float) -> None:
        """A probe was sent."""
        self.waiting[token] = now
        if len(self.waiting) > 8:
            self.waiting.pop(next(iter(self.waiting)))
        self.sent += 1
        self.last_sent = now

    def pong(self, token: int, rtt: float, now: float) -> bool:
        """A probe was answered. False if it is not one of the unanswered ones (a second copy)."""
        sent = self.waiting.get(token)
        if sent is None:
            return False
        # Older probes are settled as well: lost or late, the path works.
        self.waiting = {t: at for t, at in self.waiting.items() if at > sent}
        self.last_pong = now
        self.dead = False
        if self.srtt is None:
            self.srtt, self.rttvar = rtt, rtt / 2
        else:
            self.rttvar += (abs(self.srtt - rtt) - self.rttvar) / 4
            self.srtt += (rtt - self.srtt) / 8
        return True

    def packed(self, now: float) -> tuple[Plain, ...] | None:
        """All there is to know, for `unpacked`; None while probes are planned. Those that nobody can answer now are left out."""
        if self.due:
            return None
        keep = self.answered or now - self.last_sent < LATE_S
        waiting = tuple((token - TOKEN_BIT, at) for token, at in self.waiting.items()) if keep else ()
        times = short((self.added, self.last_sent, self.last_pong, self.commanded))
        flags = self.relay | self.punched << 1 | self.dead << 2
        return (*self.addr, flags, int(self.sources), self.sent, self.detours, self.srtt, self.rttvar, waiting, *times)

    @classmethod
    def unpacked(cls, state: Sequence[Any]) -> Candidate:
        """The candidate that `packed` saw."""
        host, port, flags, sources, sent, detours, srtt, rttvar, waiting, *times = state
        out = cls((host, port), bool(flags & 1), Source(sources), NEVER)
        out.punched, out.dead = bool(flags & 2), bool(flags & 4)
        out.sent, out.detours, out.srtt, out.rttvar = sent, detours, srtt, rttvar
        out.waiting = {token + TOKEN_BIT: at for token, at in waiting}
        out.added, out.last_sent, out.last_pong, out.commanded = long(times)
        return out

    def unanswered_since(self) -> float | None:
        """When the oldest unanswered probe was sent, None if there is none."""
        return next(iter(self.waiting.values()), None)

    def timeout(self) -> float:
        """How long to wait for an answer before it counts as missing, seconds."""
        if self.srtt is None:
            return 0.5
        return min(1.0, max(0.2, self.srtt + 4 * self.rttvar))

    def doubt_at(self) -> float | None:
        """When the oldest unanswered probe becomes a reason to look elsewhere; None if there is none."""
        since = self.unanswered_since()
        return None if since is None else since + 0.05 + 1.5 * (self.srtt or 0.1)

    def doubtful(self, now: float) -> bool:
        """A probe should have been answered by now and was not."""
        at = self.doubt_at()
        return self.dead or (at is not None and now >= at)


def better(new: Candidate, old: Candidate, now: float) -> bool:
    """Whether traffic should move from `old` to `new`. Both directions are never true at once, so paths do
    not flap."""
    if not new.answered:
        return False
    if old.dead or not old.answered:
        return old.dead or new.tier <= old.tier
    if new.tier != old.tier:
        return new.tier < old.tier
    if new.last_pong > old.last_pong and old.doubtful(now):
        return True  # the peer moved: it answers there and not here
    if new.srtt is None or old.srtt is None or old.doubtful(now) or not new.fresh(now, 5.0):
        return False
    return new.srtt < 0.7 * old.srtt - 0.002


class CandidateSet:
    """The ways to one peer, at most MAX_CANDIDATES."""

    MAX_CANDIDATES = 12
    __slots__ = ("_all", "_beacons")

    def __init__(self) -> None:
        self._all: dict[tuple[Addr, bool], Candidate] = {}
        self._beacons: dict[Addr, float | None] = {}  # best first, with round-trip times

    def __iter__(self) -> Iterator[Candidate]:
        return iter(list(self._all.values()))

    def packed(self, now: float) -> tuple[tuple[Plain, ...], ...] | None:
        """The candidates in order, without the beacons; None while one of them is to be probed."""
        out = tuple(p for c in self._all.values() if (p := c.packed(now)))
        return out if len(out) == len(self._all) else None

    @classmethod
    def unpacked(cls, state: Sequence[Sequence[Any]]) -> CandidateSet:
        """The set that `packed` saw. Follow with `set_beacons`."""
        out = cls()
        for candidate in map(Candidate.unpacked, state):
            out._all[candidate.addr, candidate.relay] = candidate
        return out

    def place(self, candidate: Candidate) -> int:
        """Where in the order a candidate is."""
        return list(self._all).index((candidate.addr, candidate.relay))

    def at(self, place: int) -> Candidate:
        """The candidate at a place of the order."""
        return list(self._all.values())[place]

    def direct(self) -> list[Candidate]:
        """Those that need no beacon."""
        return [c for c in self._all.values() if not c.relay]

    def ranked(self, active: Candidate | None) -> list[Candidate]:
        """All, the active one first, then what answers, then by tier and round-trip time."""
        return sorted(
            self._all.values(),
            key=lambda c: (c is not active, not c.answered, c.tier, c.srtt if c.srtt is not None else 9.0),
        )

    def beacon_rtt(self, addr: Addr) -> float | None:
        """Round-trip time to a beacon, seconds; None if unknown."""
        return self._beacons.get(addr)

    def has_beacon(self, addr: Addr | None = None) -> bool:
        """A beacon (this beacon) is usable."""
        return bool(self._beacons) if addr is None else addr in self._beacons

    def best_relay(self) -> Candidate | None:
        """The relay to use: one that answered before one that did not, one not tried before a dead one."""
        order = {addr: i for i, addr in enumerate(self._beacons)}
        relays = [c for c in self._all.values() if c.relay and c.addr in order]
        return min(relays, key=lambda c: (c.dead, not c.answered, order[c.addr]), default=None)

    def set_beacons(
        self, beacons: dict[Addr, float | None], active: Candidate | None, now: float
    ) -> list[Candidate]:
        """Replaces the usable beacons (at most 4 count); returns the candidates that are new."""
        self._beacons = dict(list(beacons.items())[:4])
        new = [
            c
            for a in self._beacons
            if (c := self.add(a, True, Source.RELAY, now)) and c.added == now and not c.sent
        ]
        for key, c in list(self._all.items()):
            if c.relay and c.addr not in self._beacons and c is not active:
                del self._all[key]
        return new

    def add(self, addr: Addr, relay: bool, source: Source, now: float) -> Candidate | None:
        """The candidate for an address, made if need be; None if the address is unusable or the set is full
        of better ones."""
        known = self._all.get((addr, relay))
        if known:
            known.sources |= source
            return known
        if scope(addr[0]) is Scope.NONE or not 0 < addr[1] < 65536:
            return None
        if len(self._all) >= self.MAX_CANDIDATES and not self._make_room():
            return None
        candidate = self._all[(addr, relay)] = Candidate(addr, relay, source, now)
        # A punch toward the host opened this port too, unless the NAT filters by port.
        candidate.punched = not relay and any(c.punched for c in self.direct() if c.addr[0] == addr[0])
        return candidate

    def keep_only(self, addresses: set[Addr], source: Source, active: Candidate | None) -> None:
        """Addresses that `source` no longer names lose it, and go if nobody else named them."""
        for key, c in list(self._all.items()):
            if source in c.sources and c.addr not in addresses:
                c.sources &= ~source
                if not c.sources and c is not active:
                    del self._all[key]

    def drop_stale(self, active: Candidate | None, now: float) -> None:
        """Forgets addresses that neither the registry nor an answer of late speaks for."""
        keep = Source.REGISTERED | Source.LAN | Source.RELAY
        for key, c in list(self._all.items()):
            if not c.sources & keep and c is not active and now - max(c.added, c.last_pong, c.commanded) > STALE_S:
                del self._all[key]

    def drop_direct(self) -> None:
        """Forgets every address of the peer."""
        self._all = {key: c for key, c in self._all.items() if c.relay}

    def by_token(self, token: int) -> Candidate | None:
        """Whom a probe was sent to."""
        return next((c for c in self._all.values() if token in c.waiting), None)

    def _make_room(self) -> bool:
        keep = Source.REGISTERED | Source.LAN | Source.RELAY
        spare = [k for k, c in self._all.items() if not c.sources & keep and not c.answered]
        if not spare:
            return False
        del self._all[min(spare, key=lambda k: self._all[k].added)]
        return True
