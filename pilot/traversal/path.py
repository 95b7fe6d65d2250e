"""The path machine: one per peer, without I/O (design.md 5, transport.md 6).

Everything starts at once: probes to the registered and LAN addresses, a punch request, and the relay. The
first that answers
carries traffic, the best that answers keeps it. The relay may carry from the moment a session exists: it is
the one path that
needs no proof, because a beacon reads nothing and knows peers by number. A direct address carries only after
the peer answered
an encrypted probe sent there, so nobody's traffic goes to an unproved address.

phase     input                      next
idle      want                       opening
opening   session                    racing
opening   gave up                    idle
racing    direct answers             direct
racing    time over, relay answers   relayed
racing    time over, nothing         lost
direct    active path goes silent    racing   (the relay carries meanwhile)
relayed   direct answers             direct   (tried again after 1, 2, 4 .. 45 s and on every event)
relayed   relay goes silent          lost
lost      anything answers           direct or relayed
any       session gone               opening if wanted, else idle
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pilot.traversal.candidates import NEVER, Candidate, CandidateSet, Source, Tier, better
from pilot.traversal.decisions import RELAY, Addr, Step
from pilot.traversal.health import GONE_S, IDLE_S, Health
from pilot.traversal.nat import NatType, Scope, scope, show
from pilot.traversal.path_actions import (
    AskAddresses,
    CheckBeacons,
    Decided,
    ExchangeAgain,
    PathAction,
    Phase,
    Probe,
    PunchTo,
    RequestPunch,
    ResetStreams,
    SetPath,
)
from pilot.traversal.punching import HOLD_S, Punching
from pilot.traversal.story import Story, kind_of, punch_failure

BURST_S = (0.0, 0.2, 0.5)  # three attempts per candidate
RELAY_BURST_S = (0.0, 0.3, 0.8)
PUNCH_S = (0.0, 0.4, 0.9)
OPENING_PUNCH_S = (0.0, 1.0, 3.0, 7.0)
RACE_S = 1.0  # plus three round trips of the relay
RACE_MAX_S = 4.0
RELAY_GRACE_S = 0.05  # a direct answer is under way: not worth a detour
SUSPECT_S = 3.0  # after a network change
LEFT_S = 0.3  # a direct path that answered so lately is not dead, whatever way the peer sends
SAME_PUNCH_S = 0.25
PROBE_RATE, PROBE_BURST = 8.0, 24.0  # per second and at once, to addresses that carry nothing, whatever happens
LOST_RETRY_S = 2.0  # at first: streams wait for an answer
RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 45.0)  # the last one repeats


class PathMachine:
    """Chooses the path to one peer. Call `take()` after every input; call `tick(now)` at `deadline()`."""

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

    # ---- facts ----

    def set_addresses(
        self, registered: Sequence[Addr], lan: Sequence[Addr], relay_only: bool, now: float
    ) -> None:
        """The registry's answer. relay_only: the peer shows no address; it is reached through beacons and
        never punched."""
        self.relay_only = self._hidden or relay_only
        if self.relay_only:
            self._addressed = True
            self._ways.drop_direct()
            self._punching.cancel()
            if self.active and not self.active.relay:
                self.active = None
                self._carry_by_relay(now)
            return
        named = [self._ways.add(a, False, Source.REGISTERED, now) for a in registered[:2]]
        named += [self._ways.add(a, False, Source.LAN, now) for a in lan[:4]]
        self._ways.keep_only(set(registered), Source.REGISTERED, self.active)
        self._ways.keep_only(set(lan), Source.LAN, self.active)
        if self._ways.has_beacon() and not self._addressed:
            self._punching.hold(now + HOLD_S, now)  # whoever looks for whom: the one that looks asks for a punch
        self._addressed = True
        if self._opening and self._punching.asked == NEVER:
            self._plan_punches(OPENING_PUNCH_S, now)
        if self.session and any(c and c.added == now for c in named):
            if self.phase is not Phase.DIRECT:
                self._plan_punches(PUNCH_S, now)
                if self._race_from is not None:
                    self._race_from = now  # the race cannot be over before the addresses were tried
            for candidate in named:
                if candidate and candidate.added == now:
                    self._burst(candidate, BURST_S, now)

    def set_relays(self, relays: Sequence[tuple[Addr, float | None]], now: float) -> None:
        """The usable beacons, best first, with their round-trip times (seconds, None if unknown)."""
        for added in self._ways.set_beacons(dict(relays), self.active, now):
            if self.session and self.phase is not Phase.DIRECT:
                added.burst(RELAY_BURST_S, now)
        stranded = self.active and self.active.relay and not self._ways.has_beacon(self.active.addr)
        if self.session and self._relay_at is None and (self.active is None or stranded):
            self._carry_by_relay(now)
        if self._opening and self._punching.asked == NEVER and self._punching.deadline() is None:
            self._plan_punches(OPENING_PUNCH_S, now)

    # ---- demand and session ----

    def want(self, now: float, hold: float = 30.0) -> None:
        """A path is wanted for the next `hold` seconds."""
        fresh = self.wanted_until < now
        self.wanted_until = max(self.wanted_until, now + hold)
        if not self.session:
            if not self._opening:
                self._opening = True
                self.story.restart()
                self._punching.asked = NEVER
                self._plan_punches(OPENING_PUNCH_S, now)
        elif fresh and self.phase is Phase.LOST:
            self._start_race(now, first=True)

    def gave_up(self, attempts: int, reason: str, now: float) -> None:
        """The key exchange got no session."""
        if not self.session and self._opening:
            self._opening = False
            self._punching.cancel()
            self.story.tell(
                Step.GAVE_UP, f"Trying to reach the peer... failed ({reason}, {attempts} attempts)", now
            )

    def session_ready(self, direct: bool, now: float) -> None:
        """A key is installed. direct: the exchange came over a direct path, which is therefore likely to
        answer probes."""
        if self.session:
            return
        self.session = True
        self._opening = False
        self._suspended = NEVER
        if self.active is None or not self.active.answered:
            if direct and self._ways.direct():
                self._relay_at = now + RELAY_GRACE_S
            else:
                self._carry_by_relay(now)
        self._start_race(now, first=True)

    def session_gone(self, now: float) -> None:
        """The key is gone: probing is impossible until the next one."""
        self.session = False
        self._race_from = self._retry_at = self._relay_at = None
        self._suspended = NEVER
        for candidate in self._ways:
            candidate.due.clear()
            candidate.waiting.clear()
        self._opening = self.wanted_until > now
        if self._opening:
            self._plan_punches(OPENING_PUNCH_S, now)

    def key_pending(self, until: float) -> None:
        """Until then pings go out under a key that is not proved: they say nothing about paths."""
        self._suspended = until
        for candidate in self._ways:
            candidate.waiting.clear()

    def key_settled(self, changed: bool, now: float) -> None:
        """The pending key was proved (changed) or withdrawn."""
        self._suspended = NEVER
        if changed and self.session:
            self._start_race(now, first=False)  # a restarted peer may have lost its mappings

    # ---- input ----

    def seen(self, addr: Addr, relayed: bool, now: float) -> None:
        """An authenticated frame came from elsewhere than the active path."""
        if self.relay_only:
            if not relayed and not self._hidden:
                self._ask_addresses(now)  # the peer shows its address again: UDP may have come back to it
            return
        if relayed:
            self._left_by_peer(now)
            return
        candidate = self._ways.add(addr, False, Source.OBSERVED, now)
        if not candidate or candidate.fresh(now, 10.0):
            return
        candidate.burst((0.0, 0.25), now)
        if self.active and self.active is not candidate and not self.active.relay:
            self.active.burst((0.0,), now)  # which of the two still answers?

    def moved(self, addr: Addr, now: float) -> None:
        """The peer has replaced its key and speaks directly from there, not from the active path: it has restarted. The
        data plane has followed it already; the relay takes over unless the address answers."""
        candidate = self._ways.add(addr, False, Source.OBSERVED, now)
        if not candidate:
            if self.active:
                self._out.append(SetPath(self.active.addr, self.active.relay))
            return
        if candidate is not self.active:
            self._activate(candidate, now)
        if not candidate.fresh(now, 1.0):
            self._relay_at = now + RELAY_GRACE_S
            candidate.burst((0.0, 0.25), now)

    def _left_by_peer(self, now: float) -> None:
        """The peer sends through a beacon while we send directly: perhaps because the direct path is dead."""
        path = self.active
        if path and not path.relay and path.answered and self._race_from is None and not path.fresh(now, LEFT_S):
            self.health.suspect_until = max(self.health.suspect_until, now + LEFT_S + 3 * (path.srtt or 0.1))
            path.burst((0.0,), now)

    def hint(self, addr: Addr, now: float) -> None:
        """A frame that proves nothing came from there: an address worth a probe."""
        if self.relay_only:
            return
        candidate = self._ways.add(addr, False, Source.HINT, now)
        if candidate and self.session and not candidate.answered and now - candidate.last_sent > 0.15:
            candidate.burst((0.0,), now)

    def knows_host(self, host: str) -> bool:
        """One of the direct addresses is at this host."""
        return any(c.addr[0] == host for c in self._ways.direct())

    def awaits_punch(self, now: float) -> bool:
        """A punch was asked for lately and the peer is not reached directly."""
        return self._punching.awaited(now) and self.phase is not Phase.DIRECT

    def punch_command(self, addr: Addr, now: float) -> None:
        """A beacon told both sides to punch now. Probes follow the opening packets, spaced by the measured
        round trip, because
        the first may arrive before the peer has opened its side."""
        if self.relay_only:
            return
        self._punching.command(now)
        self.story.punch_arranged = True
        candidate = self._ways.add(addr, False, Source.PUNCH, now)
        if candidate:
            if now - candidate.commanded < SAME_PUNCH_S:
                return  # another beacon's command, or the one that the peer asked for at the same time
            candidate.commanded = now
        for c in self._ways.direct():
            if c.addr[0] == addr[0] and not c.answered:
                c.punched = True
        self._out.append(PunchTo(addr))
        if self._retry_at is not None and not self.awaits_punch(now) and self.phase is not Phase.LOST:
            # The peer's attempt is as good as our own; the factor keeps the two from falling into step. While nothing answers our
            # own attempts have to come: they try the relays too, which the peer's do not.
            self._retry_at = max(self._retry_at, now + 1.25 * self._retry_gap)
        if not self.session:
            self._out.append(ExchangeAgain())
        elif candidate and not candidate.fresh(now, 1.0):
            relay = self._ways.best_relay()
            gap = min(0.3, max(0.03, relay.srtt / 2 if relay and relay.srtt else 0.08))
            steps = (0.0, gap, 2.5 * gap, 5 * gap) if self._race_from is not None else (0.0, 2.5 * gap)
            candidate.burst(steps, now)

    def pong(self, token: int, relayed: bool, rtt: float, now: float) -> None:
        """A probe of this machine was answered."""
        candidate = self._ways.by_token(token)
        if not candidate:
            return
        if relayed and not candidate.relay:
            # Sent directly, answered through a beacon: the way there works. Other implementations come round
            # after 3 direct frames.
            candidate.detours += 1
            if candidate.detours < 3:
                candidate.burst((0.1,), now)
                return
        back = candidate.dead or candidate.last_pong == NEVER  # at the former port if only the filter forgot
        if not candidate.pong(token, rtt, now):
            return
        if back and not candidate.relay and now - self._died_idle < 10.0:
            self._died_idle = NEVER
            self.health.mapping_expired()
        self._choose(candidate, now)

    def traffic(self, last_recv: float, last_send: float, packets_sent: int, now: float) -> bool:
        """The data plane's counters of this peer, while there is traffic twice a second. True: the deadline has moved."""
        was_busy = self.health.busy(now)
        path = self.active
        gone = self.health.gone(now, last_recv) and not (path and path.answered)
        if gone:
            self._out.append(ResetStreams())
        silent = self.health.traffic(now, last_recv, last_send, packets_sent)
        # Who is heard while nothing answers is there again, and knows a way.
        heard = self.phase is Phase.LOST and last_recv > self.lost_at
        ask = heard or (silent and not (path and path.waiting))
        if ask and path and self.session and now - path.last_sent > 0.8:
            path.burst((0.0,), now)
            return True
        return gone or (not was_busy and self.health.busy(now))

    def network_changed(self, now: float) -> None:
        """Own addresses changed, or the host slept: every path is in doubt, all are tried again at once."""
        if not self.session:
            return
        self.story.tell(Step.NETWORK, "The network changed, trying all paths again", now)
        self.health.idle_s = IDLE_S
        self.health.suspect_until = now + SUSPECT_S
        self._asked_at = NEVER
        self._start_race(now, first=False)

    def known_again(self, now: float) -> None:
        """The registry and the beacons know where this node is now: what failed because they did not is tried again at once."""
        if self.session and self.phase is not Phase.DIRECT:
            self._start_race(now, first=False)

    def retry(self, now: float) -> None:
        """All ways are raced again, with fresh addresses; traffic stays where it is meanwhile."""
        if self.session:
            self._asked_at = NEVER
            self._ask_addresses(now)
            self._start_race(now, first=False)

    # ---- time ----

    def deadline(self) -> float | None:
        """When `tick` has something to do; None for never."""
        times: list[float] = []
        path = self.active
        punch = self._punching.deadline()
        if punch is not None:
            times.append(punch)
        if self.session:
            times += [max(c.due[0], self._suspended) for c in self._ways if c.due]
            times += [t for t in (self._relay_at, self._retry_at) if t is not None]
            if self._race_from is not None:
                times.append(self._race_end)
            if path and not path.dead:
                if not path.due:
                    times.append(max(self._suspended, self.health.next_probe(path, self._now)))
                doubt = path.doubt_at()
                if doubt is not None and doubt > self._now:
                    times.append(doubt)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Sends what is due and draws conclusions from what did not come."""
        self._now = now
        if self._punching.request_due(now) and self.phase is not Phase.DIRECT and not self.relay_only:
            self._punching.asked = now
            self._out.append(RequestPunch())
        if self._punching.hold_ends(now) and self._opening:
            self._out.append(ExchangeAgain())
        if not self.session:
            return
        if self._relay_at is not None and self._relay_at <= now:
            self._carry_by_relay(now)
        if now >= self._suspended:
            self._check_active(now)
            for candidate in self._ways:
                if candidate.due and candidate.due[0] <= now:
                    later = [t for t in candidate.due if t > now]
                    if candidate is self.active or self._may_probe(now):
                        candidate.due = later
                        self._probe(candidate, now)
                    else:
                        candidate.due = [now + 1.0 / PROBE_RATE, *later[1:]]
        if self._race_from is not None and self._race_end <= now:
            self._conclude(now)
        if self._retry_at is not None and self._retry_at <= now:
            self._retry(now)

    def take(self) -> list[PathAction]:
        """The actions since last asked, in order."""
        out, self._out = self._out, []
        told, self.story.fresh = self.story.fresh, []
        return [*out, *(Decided(d) for d in told)]

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
        if self.phase is Phase.DIRECT or (self.relay_only and not lost):
            return
        self._retries += 1
        gap = self._retry_gap
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
            if self._retry_at is None and not self.relay_only:
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
        self.health.probe_sent(now)
        self._out.append(Probe(candidate.addr, candidate.relay, token))
