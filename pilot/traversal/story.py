"""The decisions about one peer in the words of the user, in order, bounded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pilot.traversal.candidates import Candidate, Source, Tier
from pilot.traversal.decisions import CONNECTED_TEXT, DIRECT, LAN, PUNCHED, RELAY, Addr, Decision, Step, connected_text
from pilot.traversal.nat import FILTERED, UNFILTERED, NatType, Scope, scope
from pilot.tunnel.packing import Plain

HISTORY = 64


def kind_of(path: Candidate, own: NatType, peer: NatType) -> str:
    """The name of a path. Direct or punched: told by the NATs where both are known, else by whether a punch came
    first. A punch may also have been arranged for the other side alone, or for an earlier life of this one."""
    if path.relay:
        return RELAY
    if path.tier is Tier.LAN:
        return LAN
    if own in UNFILTERED or peer in UNFILTERED:
        return DIRECT
    if own in FILTERED and peer in FILTERED and scope(path.addr[0]) is Scope.PUBLIC:
        return PUNCHED
    return PUNCHED if path.punched else DIRECT


def punch_failure(direct: Iterable[Candidate], own: NatType, peer: NatType, arranged: bool) -> str:
    """Why a hole-punch did not work, as far as this side can know."""
    if peer is not NatType.SYMMETRIC and _port_moved(list(direct)):
        peer = NatType.SYMMETRIC
    if own is NatType.SYMMETRIC and peer is NatType.SYMMETRIC:
        return "symmetric NAT on both sides"
    if peer is NatType.SYMMETRIC:
        return "symmetric NAT on remote"
    if own is NatType.SYMMETRIC:
        return "symmetric NAT here"
    return "no answer" if arranged else "no beacon knows the peer"


def _port_moved(direct: list[Candidate]) -> bool:
    """The peer was seen at its registered host, but at another port."""
    registered = {c.addr for c in direct if Source.REGISTERED in c.sources}
    seen = {c.addr for c in direct if c.sources & (Source.OBSERVED | Source.HINT)}
    return any(s not in registered and any(s[0] == r[0] for r in registered) for s in seen)


class Story:
    """History of decisions. `fresh` holds those the owner has not collected yet."""

    __slots__ = ("_told", "fresh", "history", "node", "punch_arranged")

    def __init__(self, node: int) -> None:
        self.node = node
        self.history: list[Decision] = []  # a deque would cost every peer 600 bytes
        self.fresh: list[Decision] = []
        self.punch_arranged = False  # a beacon sent a command in the present race
        self._told = ""  # kind of path last announced

    def packed(self) -> tuple[Plain, ...]:
        """For `unpacked`: the history and what is needed to go on with it."""
        before = [None, *(decision.at for decision in self.history)]
        return (self._told, self.punch_arranged, tuple(map(_packed, self.history, before)))

    @classmethod
    def unpacked(cls, node: int, state: Sequence[Any]) -> Story:
        """What `packed` saw."""
        out = cls(node)
        out._told, out.punch_arranged, history = state
        for row in history:
            out.history.append(_unpacked(node, out.history[-1].at if row[0] is None else row[0], *row[1:]))
        return out

    def tell(
        self,
        step: Step,
        text: str,
        now: float,
        *,
        kind: str = "",
        addr: Addr | None = None,
        rtt: float | None = None,
        overhead: float | None = None,
    ) -> None:
        """Adds a decision. rtt, overhead: seconds."""
        decision = Decision(
            now,
            self.node,
            step,
            text,
            kind,
            addr,
            None if rtt is None else round(rtt * 1e3, 3),
            None if overhead is None else round(overhead * 1e3, 3),
        )
        self.history.append(decision)
        del self.history[:-HISTORY]
        self.fresh.append(decision)

    def connected(
        self, path: Candidate, kind: str, overhead: float | None, attempts: int, now: float
    ) -> None:
        """Traffic flows over `path`, which answered. The first time all that failed before it is told too."""
        if kind == self._told:
            return
        if self._told:
            change = "Switched" if path.relay else "Upgraded"
            text = f"{change} to {kind}: " + connected_text(kind, path.srtt, overhead).partition(" (")[
                2
            ].rstrip(")")
            self.tell(Step.CHANGED, text, now, kind=kind, addr=path.addr, rtt=path.srtt, overhead=overhead)
        else:
            if kind == PUNCHED:
                self.tell(
                    Step.DIRECT_FAILED, f"Trying direct... failed ({_attempts(attempts)})", now, kind=DIRECT
                )
            text = connected_text(kind, path.srtt, overhead)
            self.tell(Step.CONNECTED, text, now, kind=kind, addr=path.addr, rtt=path.srtt, overhead=overhead)
        self._told = kind

    def not_direct(self, attempts: int, reason: str, relay_only: bool, now: float) -> None:
        """The race is over and nothing direct answered."""
        if self._told:
            return
        if relay_only:
            self.tell(Step.DIRECT_FAILED, "Trying direct... skipped (relay-only)", now, kind=DIRECT)
        else:
            self.tell(
                Step.DIRECT_FAILED, f"Trying direct... failed ({_attempts(attempts)})", now, kind=DIRECT
            )
            self.tell(Step.PUNCH_FAILED, f"Trying hole-punch... failed ({reason})", now, kind=PUNCHED)
        self.tell(Step.RELAY_FALLBACK, "Falling back to relay...", now, kind=RELAY)

    def lost(self, kind: str, text: str, now: float) -> None:
        """The path that was announced does not work any more."""
        self.tell(Step.LOST, text, now, kind=kind)

    def restart(self) -> None:
        """A new connect: everything is told again."""
        self._told = ""
        self.punch_arranged = False


_STEPS = tuple(Step)
_KINDS = ("", *CONNECTED_TEXT)
_OPENINGS = (  # of the texts that most peers' stories are made of
    "Trying direct... failed (",
    "Trying hole-punch... failed (",
    "Falling back to relay...",
    *(f"{text} (encrypted, " for text in CONNECTED_TEXT.values()),
)


def _packed(told: Decision, before: float | None) -> tuple[Plain, ...]:
    """before: the time of the decision before this one."""
    opening = next((i for i, words in enumerate(_OPENINGS) if told.text.startswith(words)), None)
    text = told.text if opening is None else told.text[len(_OPENINGS[opening]) :]
    measured = (None if ms is None else round(ms * 1000) for ms in (told.rtt_ms, told.overhead_ms))
    at = None if told.at == before else told.at
    return (at, _STEPS.index(told.step), opening, text, _KINDS.index(told.kind), told.addr, *measured)


def _unpacked(
    node: int, at: float, step: int, opening: int | None, text: str, kind: int, addr: list[Any] | None, *measured: int | None
) -> Decision:
    text = text if opening is None else _OPENINGS[opening] + text
    rtt_ms, overhead_ms = (None if us is None else us / 1000 for us in measured)
    return Decision(at, node, _STEPS[step], text, _KINDS[kind], (addr[0], addr[1]) if addr else None, rtt_ms, overhead_ms)


def _attempts(n: int) -> str:
    return f"{n} attempt" if n == 1 else f"{n} attempts"
