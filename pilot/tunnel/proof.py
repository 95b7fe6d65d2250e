"""A new key beside a live session: probed, proved or given up (transport.md 9.2, section 10 on replayed
PILA).

The new key waits as pending in the data plane. Encrypted pings go out under it; whoever answers holds it.
After four seconds
without an answer it is withdrawn, and if the live key was in use meanwhile, the frame that brought the new
one was a replay.
"""

from __future__ import annotations

from pilot.tunnel.actions import Action, Addr, InstallKey, ProbeKey
from pilot.tunnel.records import PeerRecord, Session

PENDING_S = 4.0  # time for the peer to prove a new key
PENDING_MIN_S = 1.0  # time that no other key may cut short
PROBES_S = (0.0, 0.3, 0.9, 2.0)  # 4 in all: a peer that cannot open them would drop its session at 5
REFUSED_S = 600.0


def start(peer: PeerRecord, session: Session, addr: Addr | None, era1: bytes | None = None) -> list[Action]:
    """Puts `session` beside the live one. addr: where its frame came from, None if relayed. era1: its key of era 1,
    if any. Follow with `step`."""
    peer.pending = session
    peer.pending_from = addr
    peer.probes = 0
    return [InstallKey(peer.node, session.key, session.key_id, session.caps, True, addr is not None, era1)]


def busy(peer: PeerRecord, now: float) -> bool:
    """A pending key is young enough that another one has to wait. Not so if it came of our own rotation: the peer may
    rotate in the same moment, and then only its new key with ours makes one that both sides have."""
    pending, live = peer.pending, peer.live
    return pending is not None and now - pending.at < PENDING_MIN_S and not (live and pending.public == live.public)


def step(peer: PeerRecord, now: float, heard: float | None) -> tuple[list[Action], bool]:
    """What is due: probes, or the end. heard: when a frame of the peer last opened. Second value: the key was
    found stale."""
    session = peer.pending
    if not session:
        return [], False
    out: list[Action] = []
    while peer.probes < len(PROBES_S) and session.at + PROBES_S[peer.probes] <= now:
        # By turns where the frame came from and where the session lives: a restarted peer may have moved, or
        # not.
        out.append(ProbeKey(peer.node, peer.pending_from if peer.probes % 2 == 0 else None))
        peer.probes += 1
    live = peer.live
    if now < session.at + PENDING_S or not live:
        return out, False
    peer.pending = None
    # Withdrawn from the data plane too, or it would go on probing under a key that nobody holds.
    out.append(InstallKey(peer.node, live.key, live.key_id, live.caps, False, False))
    stale = session.public != live.public and heard is not None and heard > session.at
    if stale:
        peer.remember_old(session.public, now + REFUSED_S)
    return out, stale


def next_at(peer: PeerRecord) -> float | None:
    """When `step` has something to do."""
    if not peer.pending:
        return None
    return peer.pending.at + (PROBES_S[peer.probes] if peer.probes < len(PROBES_S) else PENDING_S)
