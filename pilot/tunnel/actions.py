"""What the key exchange asks its owner to do. Values, not callbacks: the machine itself never sends."""

from __future__ import annotations

from dataclasses import dataclass

from pilot.wire.frames import Capabilities

Addr = tuple[str, int]  # numeric IP text, port


@dataclass(frozen=True, slots=True)
class SendDirect:
    """Send `data` to the addresses known for `node` (none known: drop it)."""

    node: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send `data` to `addr`, where a frame of `node` just came from."""

    node: int
    data: bytes
    addr: Addr


@dataclass(frozen=True, slots=True)
class SendRelay:
    """Send `data` to `node` through the beacons (none usable: drop it)."""

    node: int
    data: bytes


@dataclass(frozen=True, slots=True)
class NeedPeerKey:
    """Ask the registry for the Ed25519 key of `node` and answer with KeyExchange.peer_key. `fresh`: a cached
    answer will not do."""

    node: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class InstallKey:
    """Give the data plane a session key (32 bytes). `pending`: a live session exists, the key waits until the
    peer proves it.
    `direct`: the exchange came directly, so a direct path may work. Same `key_id` as the live session: only
    `caps` are new,
    and a pending key is withdrawn. `era1`: the key of era 1, where the peer may be of it. `foretold`: the peer itself has not
    said the key yet. `anew`: the session that exists was foretold wrongly, it goes."""

    node: int
    key: bytes
    key_id: int
    caps: Capabilities | None
    pending: bool
    direct: bool
    era1: bytes | None = None
    foretold: bool = False
    anew: bool = False


@dataclass(frozen=True, slots=True)
class DropKey:
    """The data plane's session with `node` was foretold wrongly: it goes."""

    node: int


@dataclass(frozen=True, slots=True)
class ProbeKey:
    """Send one encrypted ping, so that the answer proves the pending key: to `addr`, or over the active path
    if None."""

    node: int
    addr: Addr | None


@dataclass(frozen=True, slots=True)
class AddressHint:
    """A correctly signed frame of `node` came directly from `addr`. It may be a replay: worth a probe, no
    proof of anything."""

    node: int
    addr: Addr


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """`node` was presented with another identity than the one known. `source`: "frame" or "registry". Nothing
    was changed."""

    node: int
    expected: bytes
    offered: bytes
    source: str


@dataclass(frozen=True, slots=True)
class KeyVouched:
    """`node` was presented with another identity than the pinned one, and the pinned one vouches for it (continuity.py).
    Nothing was changed: whoever pins has to ask the registry whether that is the node's key now."""

    node: int
    pinned: bytes
    offered: bytes


@dataclass(frozen=True, slots=True)
class ExchangeGaveUp:
    """Nobody proved a session with `node` while one was wanted."""

    node: int
    attempts: int
    reason: str


Action = (
    SendDirect
    | SendTo
    | SendRelay
    | NeedPeerKey
    | InstallKey
    | DropKey
    | ProbeKey
    | AddressHint
    | KeyRefused
    | KeyVouched
    | ExchangeGaveUp
)
