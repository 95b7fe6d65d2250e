"""What the path machine decided, as data and as the sentence a user reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Addr = tuple[str, int]  # numeric IP text, port

DIRECT = "direct"
LAN = "lan"
PUNCHED = "hole-punched"
RELAY = "relay"

CONNECTED_TEXT = {
    DIRECT: "Connected directly",
    LAN: "Connected over the local network",
    PUNCHED: "Connected via hole-punch",
    RELAY: "Connected via relay",
}


class Step(Enum):
    """Kinds of decision. The values are stable: they appear in JSON."""

    DIRECT_FAILED = "direct_failed"
    PUNCH_FAILED = "punch_failed"
    RELAY_FALLBACK = "relay_fallback"
    RELAY_FAILED = "relay_failed"
    CONNECTED = "connected"
    CHANGED = "changed"
    LOST = "lost"
    STREAMS_ENDED = "streams_ended"
    NETWORK = "network"
    KEY_REFUSED = "key_refused"
    GAVE_UP = "gave_up"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision about one peer. at: seconds on the machine's clock. kind: the path kind it is about, "" if
    none.
    rtt_ms, overhead_ms: measured values, None if unknown."""

    at: float
    node: int
    step: Step
    text: str
    kind: str = ""
    addr: Addr | None = None
    rtt_ms: float | None = None
    overhead_ms: float | None = None


def ms(seconds: float) -> str:
    """A duration for people: `15ms`, `0.4ms`."""
    value = seconds * 1000.0
    return f"{value:.1f}ms" if value < 9.95 and round(value, 1) != round(value) else f"{value:.0f}ms"


def connected_text(kind: str, rtt_s: float | None, overhead_s: float | None) -> str:
    """`Connected via relay (encrypted, 15ms overhead)`, `Connected directly (encrypted, 2ms)`."""
    details = ["encrypted"]
    if kind == RELAY:
        if overhead_s is not None:
            details.append(f"{ms(overhead_s)} overhead")
    elif rtt_s is not None:
        details.append(ms(rtt_s))
    return f"{CONNECTED_TEXT[kind]} ({', '.join(details)})"
