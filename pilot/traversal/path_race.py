"""What a path machine knows, and its races: who is probed when, who carries, what a silence means.

The table of phases, the inputs and the clock are in path.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from pilot.traversal.candidates import Candidate, CandidateSet, Tier, better
from pilot.traversal.decisions import RELAY, Addr, Step
from pilot.traversal.health import GONE_S, Health
from pilot.traversal.nat import NAT_CODES, NatType, Scope, scope, show
from pilot.traversal.path_actions import AskAddresses, CheckBeacons, PathAction, Phase, Probe, SetPath
from pilot.traversal.punching import Punching
from pilot.traversal.story import Story, kind_of, punch_failure
from pilot.tunnel.packing import NEVER, long, pack, short, unpack

BURST_S = (0.0, 0.2, 0.5)  # three attempts per candidate
RELAY_BURST_S = (0.0, 0.3, 0.8)
PUNCH_S = (0.0, 0.4, 0.9)
RACE_S = 1.0  # plus three round trips of the relay
RACE_MAX_S = 4.0
PROBE_RATE, PROBE_BURST = 8.0, 24.0  # per second and at once, to addresses that carry nothing, whatever happens
HIDDEN_IDLE_ASKS = 16  # without traffic, so many times more rarely
LOST_RETRY_S = 2.0  # at first: streams wait for an answer
RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 45.0)  # the last one repeats


class PathRace:
    """State of one peer's path machine, and the steps that its inputs and its clock lead to."""

    __slots__ = (  # a node may have ten thousand of these
        "_addressed", "_asked_at", "_died_idle", "_doubted", "_hidden", "_now", "_opening", "_out", "_punching", "_race_from",
        "_relay_at", "_retries", "_retry_at", "_suspended", "_token", "_tokens", "_tokens_at", "_ways", "active",
        "health", "lost_at", "node", "own_nat", "peer_nat", "relay_only", "session", "story", "wanted_until",
    )

    def __init__(self, node: int, *, token: Callable[[], int], hidden: bool = False) -> None:
        """token: yields numbers that are unique in this process. hidden: this node does not show its address
        (relay only)."""
        self.node = node
        self.active: Candidate | None = None
        self.relay_only = hidden
        self.session = False
        self.wanted_until = NEVER
        self.lost_at = NEVER  # when nothing answered any more
        self.own_nat = NatType.UNKNOWN
        self.peer_nat = NatType.UNKNOWN
        self.story = Story(node)
        self.health = Health()
        self._hidden = hidden
        self._token = token
        self._ways = CandidateSet()
        self._addressed = False  # the registry has answered
        self._opening = False
        self._race_from: float | None = None
        self._punching = Punching()
        self._tokens, self._tokens_at = PROBE_BURST, NEVER  # probes that may go at once
        self._relay_at: float | None = None
        self._retry_at: float | None = None
        self._retries = 0
        self._suspended = NEVER
        self._doubted: float | None = None  # the unanswered probe for which the beacons were asked
        self._asked_at = NEVER
        self._died_idle = NEVER
        self._now = NEVER  # of the last tick
        self._out: list[PathAction] = []

    # ---- what is known ----

    @property
    def phase(self) -> Phase:
        """Where the machine stands."""
        if not self.session:
            return Phase.OPENING if self._opening else Phase.IDLE
        path = self.active
        if path and not path.relay and path.answered:
            return Phase.DIRECT
        if self._race_from is not None:
            return Phase.RACING
        return Phase.RELAYED if path and path.answered else Phase.LOST

    @property
    def kind(self) -> str:
        """Kind of the active path, "" if there is none."""
        return kind_of(self.active, self.own_nat, self.peer_nat) if self.active else ""

    @property
    def overhead(self) -> float | None:
        """What the relay costs in round-trip time, seconds: against a measured direct path if there was one,
        else the nearer leg
        of the detour."""
        relay = self.active if self.active and self.active.relay else None
        if not relay or relay.srtt is None:
            return None
        direct = min((c.srtt for c in self._ways.direct() if c.srtt is not None), default=None)
        if direct is not None:
            return max(0.0, relay.srtt - direct)
        leg = self._ways.beacon_rtt(relay.addr)
        return None if leg is None else max(0.0, min(leg, relay.srtt - leg))

    @property
    def settled(self) -> bool:
        """No race is under way: what carries traffic now is the best there is for the moment."""
        return self.session and self._race_from is None

    def candidates(self) -> list[Candidate]:
        """All known ways, the active one first, then by tier and round-trip time."""
        return self._ways.ranked(self.active)

    def direct_targets(self, now: float) -> list[Addr]:
        """Where key exchange frames go directly: at most 4 addresses, none if either side is relay-only."""
        ways = [] if self.relay_only else self.candidates()
        return [c.addr for c in ways if not c.relay and not self._punching.wait(c, now)][:4]

    # ---- sleep ----

    def packed(self, now: float) -> bytes | None:
        """All of the machine that outlives a quiet time, in a tenth of its memory; None unless a path answers and nothing is due
        but the next probe of it or the next look for a better one. Wake it with `unpacked` before any input, at the latest at
        `deadline()`."""
        path = self.active
        if not self.session or not path or not path.answered or path.waiting:
            return None
        if self._race_from is not None or self._relay_at is not None or self._suspended > now or self._out or self.story.fresh:
            return None
        ways, punching, health = self._ways.packed(now), self._punching.packed(), self.health.packed(now)
        if ways is None or punching is None or health is None:
            return None
        flags = self._addressed | self.relay_only << 1
        full = self._tokens + (now - self._tokens_at) * PROBE_RATE >= PROBE_BURST
        tokens, tokens_at = (None, NEVER) if full else (self._tokens, self._tokens_at)
        times = short((self._asked_at, self._died_idle, self._now, tokens_at, self.lost_at, self.wanted_until))
        numbers = (flags, tokens, self._retries, self._retry_at, self._doubted, NAT_CODES.index(self.peer_nat))
        own = (self._ways.place(path), *numbers, *times)
        return bytes((path.relay,)) + pack((own, self.story.packed(), ways, punching, health))

    @staticmethod
    def packed_relayed(data: bytes) -> bool:
        """Whether the path of a packed machine is one through a beacon."""
        return data[0] == 1

    @classmethod
    def unpacked(
        cls, data: bytes, node: int, relays: Sequence[tuple[Addr, float | None]], *, token: Callable[[], int], hidden: bool
    ) -> Self:
        """The machine that `packed` saw, but for `own_nat`. relays: the beacons that are usable now, as in `set_relays`; one
        whose path goes through a beacon has to be awake when they change."""
        own, story, ways, punching, health = unpack(memoryview(data)[1:])
        out = cls(node, token=token, hidden=hidden)
        place, flags, tokens, out._retries, out._retry_at, out._doubted, peer_nat, *times = own
        out._tokens = PROBE_BURST if tokens is None else tokens
        out._asked_at, out._died_idle, out._now, out._tokens_at, out.lost_at, out.wanted_until = long(times)
        out._addressed, out.relay_only = bool(flags & 1), bool(flags & 2)
        out.peer_nat = NAT_CODES[peer_nat]
        out.session = True
        out.story = Story.unpacked(node, story)
        out.health = Health.unpacked(health)
        out._punching = Punching.unpacked(punching)
        out._ways = CandidateSet.unpacked(ways)
        out.active = out._ways.at(place)
        out._ways.set_beacons(dict(relays), out.active, out._now)
        return out

    # ---- races ----

    @property
    def _race_end(self) -> float:
        relay = self._ways.best_relay()
        extra = 3 * relay.srtt if relay and relay.srtt else 0.0
        return (self._race_from or 0.0) + min(RACE_MAX_S, RACE_S + extra)

    def _start_race(self, now: float, first: bool) -> None:
        """Everything at once. first: the race of a new session, told step by step."""
        if first:
            self.story.restart()
        self._race_from = now
        self._retry_at = None
        self._retries = 0
        self._ways.drop_stale(self.active, now)
        self._plan_punches(PUNCH_S, now)
        relays = 0
        for candidate in self.candidates():
            candidate.sent = 0
            if candidate.relay:
                relays += 1
                if relays > 2:
                    continue
            self._burst(candidate, RELAY_BURST_S if candidate.relay else BURST_S, now)

    def _direct_attempts(self) -> int:
        """Direct probes of this race; those beyond the burst belong to punches."""
        return min(len(BURST_S), max((c.sent for c in self._ways.direct()), default=0))

    def _conclude(self, now: float) -> None:
        """The race is over. What answers directly was told when it did."""
        self._race_from = None
        path = self.active
        if path and not path.relay and path.answered:
            return
        direct = self._ways.direct()
        attempts = self._direct_attempts()
        reason = punch_failure(direct, self.own_nat, self.peer_nat, self.story.punch_arranged)
        self.story.not_direct(attempts, reason, self.relay_only, now)
        if path and path.relay and path.answered:
            self.story.connected(path, RELAY, self.overhead, attempts, now)
        else:
            tried = max((c.sent for c in self._ways if c.relay), default=0)
            text = (
                f"Trying relay... failed ({tried} attempts)"
                if tried
                else "Trying relay... failed (no beacon answers)"
            )
            self.story.tell(Step.RELAY_FAILED, text, now, kind=RELAY)
            self._out.append(CheckBeacons())
            self.lost_at = now
        self._retry_at = now + RETRY_S[0]

    @property
    def _retry_gap(self) -> float:
        return RETRY_S[min(self._retries, len(RETRY_S) - 1)]

    def _retry(self, now: float) -> None:
        """Cheap and for ever: the next attempt at something better than what there is."""
        self._retry_at = None
        lost = self.phase is Phase.LOST
        if self.phase is Phase.DIRECT or (self._hidden and not lost):
            return
        self._retries += 1
        gap = self._retry_gap
        if self.relay_only and not lost:
            # The registry says so, until UDP comes back to the peer. If the peer hears the same of us, neither speaks up first.
            self._retry_at = now + gap
            if self.health.busy(now) or self._retries % HIDDEN_IDLE_ASKS == 0:
                self._ask_addresses(now)
            return
        self._retry_at = now + (min(gap, LOST_RETRY_S) if lost and now - self.lost_at < GONE_S else gap)
        self._ways.drop_stale(self.active, now)
        self._plan_punches((0.0,), now)
        for candidate in self._ways:
            if not candidate.relay or lost:
                self._burst(candidate, (0.0,), now)
        if lost or self._retries % 4 == 0:
            self._ask_addresses(now)

    def _plan_punches(self, offsets: tuple[float, ...], now: float) -> None:
        # Before the registry has answered nobody knows whether the peer wants to be punched.
        direct = self._ways.direct()
        reachable = any(scope(c.addr[0]) is not Scope.LOOPBACK for c in direct)
        beacon = self._ways.best_relay()
        if self._addressed and not self.relay_only and beacon and (reachable or not direct):
            self._punching.plan(offsets, self._ways.beacon_rtt(beacon.addr), now)

    def _burst(self, candidate: Candidate, offsets: tuple[float, ...], now: float) -> None:
        candidate.burst(offsets, now + self._punching.wait(candidate, now))

    def _ask_addresses(self, now: float) -> None:
        if now - self._asked_at >= 10.0:
            self._asked_at = now
            self._out.append(AskAddresses())

    # ---- choosing ----

    def _choose(self, answered: Candidate, now: float) -> None:
        """A candidate has answered."""
        if self.active is not answered and (self.active is None or better(answered, self.active, now)):
            self._activate(answered, now)
        if self.active is not answered:
            return
        if not answered.relay:
            self._punching.cancel()
            self._retry_at = None
            attempts = max(1, self._direct_attempts())
            self.story.connected(answered, self.kind, None, attempts, now)
            if answered.tier is Tier.LAN or not any(c.tier is Tier.LAN for c in self._ways.direct()):
                self._race_from = None
        elif self._race_from is None:
            self.story.connected(answered, RELAY, self.overhead, 0, now)
            if self._retry_at is None and not self._hidden:
                self._retry_at = now + RETRY_S[0]

    def _activate(self, candidate: Candidate, now: float) -> None:
        self._relay_at = None
        self.active = candidate
        self._out.append(SetPath(candidate.addr, candidate.relay))

    def _carry_by_relay(self, now: float) -> None:
        """The relay takes the traffic unless a direct path already answers."""
        self._relay_at = None
        relay = self._ways.best_relay()
        if (
            relay
            and relay is not self.active
            and (self.active is None or self.active.relay or not self.active.answered)
        ):
            self._activate(relay, now)
            relay.burst((0.0,), now)

    def _check_active(self, now: float) -> None:
        path = self.active
        if not path or path.dead:
            return
        if self.health.is_dead(path, now):
            self._died(path, now)
            return
        if path.doubtful(now):
            if self._doubted != path.unanswered_since():
                self._doubted = path.unanswered_since()
                self._out.append(CheckBeacons())  # it may be our own address that changed
            for other in self.candidates():
                if other is not path and better(other, path, now):
                    self._activate(other, now)
                    self.story.connected(other, self.kind, self.overhead, 0, now)
                    return
        if not path.due and now >= self.health.next_probe(path, now):
            path.burst((0.0,), now)

    def _died(self, path: Candidate, now: float) -> None:
        """The active path does not answer: the relay takes over, and the race for a better one begins
        anew."""
        kind = self.kind
        if path.answered:
            self.story.lost(kind, f"The {kind} path stopped answering ({show(path.addr)})", now)
            if not path.relay and not self.health.busy(now):
                self._died_idle = now
        path.dead = True
        path.waiting.clear()
        path.due.clear()
        path.punched = False
        self._out.append(CheckBeacons())
        fresh = [c for c in self.candidates() if c is not path and c.fresh(now, 3.0)]
        if fresh:
            self._activate(fresh[0], now)
        else:
            self._carry_by_relay(now)
        self._ask_addresses(now)
        if self._race_from is None:
            self._start_race(now, first=False)

    def _may_probe(self, now: float) -> bool:
        self._tokens = min(PROBE_BURST, self._tokens + (now - self._tokens_at) * PROBE_RATE)
        self._tokens_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _probe(self, candidate: Candidate, now: float) -> None:
        token = self._token()
        candidate.probed(token, now)
        self.health.probe_sent(now, candidate is self.active or candidate.answered or self.active is None)
        self._out.append(Probe(candidate.addr, candidate.relay, token))
