"""What the path machine asks its owner to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pilot.traversal.decisions import Addr, Decision


class Phase(Enum):
    """Where a peer's path stands; the table of transitions is in path.py."""

    IDLE = "idle"
    OPENING = "opening"
    RACING = "racing"
    DIRECT = "direct"
    RELAYED = "relayed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class SetPath:
    """Traffic goes this way from now on. relay: `addr` is a beacon."""

    addr: Addr
    relay: bool


@dataclass(frozen=True, slots=True)
class ResetStreams:
    """The peer is not there any more: its streams end."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Send an encrypted ping this way; the answer comes back with `token`."""

    addr: Addr
    relay: bool
    token: int


@dataclass(frozen=True, slots=True)
class RequestPunch:
    """Ask the beacons for a punch with this peer."""


@dataclass(frozen=True, slots=True)
class PunchTo:
    """Send three PILP to `addr`: they open our own NAT for the peer."""

    addr: Addr


@dataclass(frozen=True, slots=True)
class ExchangeAgain:
    """A way to the peer may just have opened: say our key there."""


@dataclass(frozen=True, slots=True)
class AskAddresses:
    """The known addresses do not answer: ask the registry again, past the cache."""


@dataclass(frozen=True, slots=True)
class CheckBeacons:
    """A relay path went silent: register with the beacons at once, they may have restarted."""


@dataclass(frozen=True, slots=True)
class Decided:
    """Something a user may want to read."""

    decision: Decision


PathAction = SetPath | ResetStreams | Probe | RequestPunch | PunchTo | ExchangeAgain | AskAddresses | CheckBeacons | Decided
