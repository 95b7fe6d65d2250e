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

from collections.abc import Sequence

from pilot.traversal.candidates import Source
from pilot.traversal.decisions import Addr, Step
from pilot.traversal.health import IDLE_S
from pilot.traversal.path_actions import (
    Decided,
    ExchangeAgain,
    PathAction,
    Phase,
    PunchTo,
    RequestPunch,
    ResetStreams,
    SetPath,
)
from pilot.traversal.path_race import BURST_S, PROBE_RATE, PUNCH_S, RELAY_BURST_S, PathRace
from pilot.traversal.punching import HOLD_S
from pilot.tunnel.packing import NEVER

OPENING_PUNCH_S = (0.0, 1.0, 3.0, 7.0)
RELAY_GRACE_S = 0.05  # a direct answer is under way: not worth a detour
SUSPECT_S = 3.0  # after a network change
LEFT_S = 0.3  # a direct path that answered so lately is not dead, whatever way the peer sends
SAME_PUNCH_S = 0.25


class PathMachine(PathRace):
    """Chooses the path to one peer. Call `take()` after every input; call `tick(now)` at `deadline()`."""

    __slots__ = ()

    # ---- facts ----

    def set_addresses(
        self, registered: Sequence[Addr], lan: Sequence[Addr], relay_only: bool, now: float
    ) -> None:
        """The registry's answer. relay_only: the peer shows no address; it is reached through beacons and
        never punched."""
        shown = self.relay_only and not (self._hidden or relay_only)
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
        if shown and self.session and self.phase is not Phase.DIRECT:
            self._start_race(now, first=False)

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

    def moved_behind_relay(self, now: float) -> None:
        """The peer has replaced its key and speaks through a beacon: it has restarted, perhaps elsewhere. The data plane has
        followed it already; the direct path takes over again when it answers."""
        path, relay = self.active, self._ways.best_relay()
        if path and not path.relay:
            path.burst((0.0,), now)
            if relay:
                self._activate(relay, now)
            else:
                self._out.append(SetPath(path.addr, path.relay))

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
        self.health.heard(now)
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
