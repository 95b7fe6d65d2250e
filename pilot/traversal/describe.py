"""A peer's path as a dictionary, for `pilotctl path`, `ping` and JSON."""

from __future__ import annotations

from typing import Any

from pilot.traversal.beacons import Beacons
from pilot.traversal.candidates import Candidate, Source
from pilot.traversal.decisions import DIRECT, LAN, PUNCHED, Decision, Step
from pilot.traversal.nat import NatType, show
from pilot.traversal.path import PathMachine
from pilot.traversal.path_actions import Phase
from pilot.traversal.story import kind_of

_REASONS = {
    LAN: "both nodes are on one local network",
    DIRECT: "the peer's address answers without help",
    PUNCHED: "a hole-punch arranged by the beacon opened the way",
}
_NOTHING = "nothing was sent yet"


def describe_path(
    node: int, machine: PathMachine | None, info: dict[str, Any] | None, nat: NatType, beacons: Beacons, now: float
) -> dict[str, Any]:
    """Path, reason, alternatives and history of one peer. Ages in seconds, times in milliseconds. All values fit JSON.
    machine: None if there was no reason to reach the peer yet. A beacon behind a bridge is shown by its URL."""
    if not machine:
        return {
            "node": node,
            "phase": Phase.IDLE.value,
            "path": None,
            "why": _NOTHING,
            "history": [],
        }
    path = machine.active
    described: dict[str, Any] = {
        "node": machine.node,
        "phase": machine.phase.value,
        "session": bool(info and info["session"]),
        "proved": bool(info and info["proved"]),
        "path": None
        if path is None
        else {**_way(path, machine, nat, now), "overhead_ms": _ms(machine.overhead)},
        "why": why(machine, beacons),
        "nat": nat.value,
        "peer_nat": machine.peer_nat.value,
        "relay_only": machine.relay_only,
        "candidates": [_way(c, machine, nat, now) for c in machine.candidates()],
        "history": [decision_dict(d, now) for d in machine.story.history],
    }
    for way in (described["path"], *described["candidates"]):
        if way and beacons.bridge and way["addr"] == show(beacons.bridge):
            way["addr"], way["transport"] = beacons.bridge_name, "websocket"
    return described


def why(machine: PathMachine | None, beacons: Beacons) -> str:
    """The reason for the present path, in one sentence. machine: None if there was no reason to reach the peer yet."""
    if not machine:
        return _NOTHING
    phase = machine.phase
    if beacons.bridge_only and phase is Phase.RELAYED:
        return "no UDP gets out of this network: the relay is reached by WebSocket"
    if phase is Phase.DIRECT:
        return _REASONS[machine.kind]
    if phase is Phase.RACING:
        return "direct, hole-punch and relay are being tried"
    if phase is Phase.OPENING:
        return "waiting for the peer's key"
    if phase is Phase.IDLE:
        return "no session"
    if machine.relay_only:
        return "relay-only: no address is shown"
    steps = {d.step: d.text for d in machine.story.history}
    failed = [steps[s] for s in (Step.DIRECT_FAILED, Step.PUNCH_FAILED) if s in steps]
    if phase is Phase.LOST:
        failed.append(steps.get(Step.RELAY_FAILED, "the relay does not answer"))
    return "; ".join(failed) or "no direct path answers"


def decision_dict(decision: Decision, now: float) -> dict[str, Any]:
    """A decision for JSON."""
    return {
        "age_s": round(now - decision.at, 3),
        "step": decision.step.value,
        "text": decision.text,
        "kind": decision.kind,
        "addr": show(decision.addr) if decision.addr else None,
        "rtt_ms": decision.rtt_ms,
        "overhead_ms": decision.overhead_ms,
    }


def _way(c: Candidate, machine: PathMachine, nat: NatType, now: float) -> dict[str, Any]:
    return {
        "kind": kind_of(c, nat, machine.peer_nat),
        "addr": show(c.addr),
        "relay": c.relay,
        "rtt_ms": _ms(c.srtt),
        "answers": c.answered,
        "answered_s": round(now - c.last_pong, 3) if c.answered else None,
        "sources": [str(s.name).lower() for s in Source if s in c.sources],
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
