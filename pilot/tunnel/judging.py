"""What the key exchange makes of frames, keys and time; the inputs are in exchange.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pilot.tunnel import proof
from pilot.tunnel.actions import (
    Action,
    Addr,
    AddressHint,
    DropKey,
    ExchangeGaveUp,
    InstallKey,
    KeyRefused,
    KeyVouched,
    NeedPeerKey,
    SendDirect,
    SendRelay,
    SendTo,
)
from pilot.tunnel.continuity import leads
from pilot.tunnel.deadlines import Deadlines
from pilot.tunnel.limits import RateLimit
from pilot.tunnel.own_key import Identity, OwnKey
from pilot.tunnel.packing import NEVER
from pilot.tunnel.records import FRAMES_PER_S, PeerRecord, PeerTable, Session
from pilot.wire.frames import Capabilities, KeyLink, Pila, Pilk, parse_pila, parse_pilk

RESEND_S = (1.0, 2.0, 4.0)  # the last one repeats
REPLY_SILENCE_S = 6.0  # a known key is answered only after this much silence
REPLY_EVERY_S = 1.0
KEY_LOOKUP_EVERY_S = 3.0  # a failed registry lookup is not repeated sooner
KEY_REFRESH_EVERY_S = 10.0  # nor is a mismatch asked about again
REPORT_EVERY_S = 60.0
FORETOLD_S = 0.9  # a peer that has not spoken by then is not where the registry's word is from


@dataclass(slots=True)
class ExchangeStats:
    """Counters for metrics: frames that came, and why some were dropped."""

    frames: int = 0
    malformed: int = 0
    limited: int = 0
    own_frames: int = 0
    wrong_source: int = 0
    bad_signature: int = 0
    wrong_identity: int = 0
    no_peer_key: int = 0
    weak_key: int = 0
    stale_key: int = 0
    installed: int = 0
    foretold: int = 0


class Judging:
    """State of one node's key exchange, and what follows from inputs."""

    def __init__(
        self,
        identity: Identity,
        *,
        caps: Capabilities,
        random: Callable[[int], bytes],
        last_heard: Callable[[int], float | None],
        accept_era1: bool = False,
    ) -> None:
        """random: n secret random bytes. last_heard: when a frame of a node last opened, on the clock of
        `now`; None = never. accept_era1: peers that announce no features get a key of era 1 beside theirs."""
        self.stats = ExchangeStats()
        self._identity = identity
        self._caps = caps
        self._links: tuple[KeyLink, ...] = ()
        self._random = random
        self._last_heard = last_heard
        self._accept_era1 = accept_era1
        self._node = 0
        self._private = random(32)
        self._rotations = 0
        self._own: OwnKey | None = None
        self._rotated_at = NEVER
        self._rollovers: deque[int] = deque()
        self._rollover_at = NEVER
        self._peers = PeerTable()
        self._timers: Deadlines = Deadlines()
        self._all: RateLimit[str] = RateLimit(1000.0, 2000.0, 1)
        self._all_known: RateLimit[str] = RateLimit(1000.0, 2000.0, 1)  # of its own: strangers cannot use it up
        self._by_ip: RateLimit[str] = RateLimit(50.0, 100.0)
        self._by_peer: RateLimit[tuple[int, str]] = RateLimit(FRAMES_PER_S, FRAMES_PER_S)
        self._lookups: RateLimit[str] = RateLimit(50.0, 100.0, 1)
        self._chains: RateLimit[str] = RateLimit(50.0, 100.0, 1)
        self._out: list[Action] = []

    # ---- judging frames ----

    def _admit(self, node: int, addr: Addr, relayed: bool, now: float) -> bool:
        source = "" if relayed else addr[0]
        if not relayed and not self._by_ip.take(source, now):
            return False
        if not self._by_peer.take((node, source), now):
            return False
        peer = self._peers.find(node)
        known = peer is not None and (peer.pin or peer.live or peer.wanted(now))
        return (self._all_known if known else self._all).take("", now)

    def _judge(self, parsed: Pila | Pilk, data: bytes, addr: Addr, relayed: bool, now: float) -> None:
        peer = self._peers.get(parsed.node)
        if peer.identity is None:
            self._need_key(peer, data, addr, relayed, now)
        elif isinstance(parsed, Pilk):
            # A registered node has a key, so its PILK installs nothing: it asks for our PILA.
            if now - peer.replied_at >= REPLY_EVERY_S:
                self._reply(peer, addr, relayed, now)
        elif parsed.ed25519 != peer.identity:
            self.stats.wrong_identity += 1
            if peer.pin is None and now - peer.refreshed_at >= KEY_REFRESH_EVERY_S:
                self._need_key(peer, data, addr, relayed, now, fresh=True)
            elif peer.pin and self._vouched(peer, peer.pin, parsed, now):
                self._out.append(KeyVouched(peer.node, peer.pin, parsed.ed25519))
            else:
                self._report(peer, parsed.ed25519, "frame", now)
        elif not parsed.verify():
            self.stats.bad_signature += 1
        else:
            self._accept(peer, parsed, addr, relayed, now)

    def _vouched(self, peer: PeerRecord, pin: bytes, pila: Pila, now: float) -> bool:
        """The pinned key vouches for the other one: a question for the registry, not asked at every frame."""
        if now - peer.vouched_at < KEY_REFRESH_EVERY_S or not self._chains.take("", now):
            return False
        if not pila.verify() or not leads(pila.links, peer.node, pin, pila.ed25519):
            return False
        peer.vouched_at = now
        return True

    def _accept(self, peer: PeerRecord, pila: Pila, addr: Addr, relayed: bool, now: float) -> None:
        assert self._own
        if not relayed:
            self._out.append(AddressHint(peer.node, addr))
        for known in (peer.live, peer.pending):
            if known and known.public == pila.x25519 and known.own == self._rotations:
                self._same_key(peer, known, pila, addr, relayed, now)
                return
        if peer.is_old(pila.x25519, now):
            self.stats.stale_key += 1
            return
        if proof.busy(peer, now):
            return
        session = self._agree(pila.x25519, pila.caps, now)
        if not session:
            self.stats.weak_key += 1
            return
        self.stats.installed += 1
        if not peer.agreed:
            # Before our answer leaves: what the peer sends when it has that may come faster than the next command of ours, and a
            # datagram is not repeated. What waits here for the peer waited with a PILA of ours on the way.
            anew = peer.live is not None
            peer.live = session
            era1 = self._era1(session)
            self._out.append(
                InstallKey(peer.node, session.key, session.key_id, session.caps, False, not relayed, era1, anew=anew)
            )
            self._reply(peer, addr, relayed, now)
        else:
            self._reply(peer, addr, relayed, now)  # first: the peer needs our key to open the probes
            self._out += proof.start(peer, session, None if relayed else addr, self._era1(session))
            self._step_proof(peer, now)
        if peer.next_send is not None:
            peer.next_send = now + RESEND_S[0]
        self._arm(peer)

    def _use_foretold(self, peer: PeerRecord, now: float) -> None:
        if not peer.foretold or peer.live or not peer.identity or not self._own:
            return
        pila, peer.foretold = parse_pila(peer.foretold), b""
        if not pila or pila.node != peer.node or pila.ed25519 != peer.identity or not pila.verify():
            return
        if pila.x25519 == peer.doubted or peer.is_old(pila.x25519, now):
            return
        session = self._agree(pila.x25519, pila.caps, now)
        if session:
            session.foretold = True
            peer.live = session
            self.stats.foretold += 1
            self._out.append(InstallKey(peer.node, session.key, session.key_id, session.caps, False, False, foretold=True))

    def _same_key(
        self, peer: PeerRecord, known: Session, pila: Pila, addr: Addr, relayed: bool, now: float
    ) -> None:
        if known.foretold:
            known.foretold = False
            self._out.append(InstallKey(peer.node, known.key, known.key_id, known.caps, False, not relayed))
            if not known.proved:
                self._reply(peer, addr, relayed, now)  # as to a key that is new to us
        # A frame without its trailer is what somebody on the way makes of it: capabilities are never taken
        # back under one key.
        if known is peer.live and pila.caps is not None and pila.caps != known.caps:
            known.caps = pila.caps
            if not peer.pending:
                self._out.append(
                    InstallKey(peer.node, known.key, known.key_id, known.caps, False, not relayed)
                )
        heard = self._last_heard(peer.node)
        silent = now - max(known.at, NEVER if heard is None else heard) >= REPLY_SILENCE_S
        if (silent or known is peer.pending) and now - peer.replied_at >= REPLY_EVERY_S:
            self._reply(peer, addr, relayed, now)

    def _need_key(
        self, peer: PeerRecord, data: bytes, addr: Addr, relayed: bool, now: float, fresh: bool = False
    ) -> None:
        if not peer.waiting or len(data) >= len(
            peer.waiting[0]
        ):  # a PILA says more than a PILK, and that more than a hint
            peer.waiting = (data, addr, relayed)
        self._ask_registry(peer, now, fresh)

    def _ask_registry(self, peer: PeerRecord, now: float, fresh: bool = False) -> None:
        if not fresh and now - peer.asked_at < KEY_LOOKUP_EVERY_S:
            return
        if not peer.wanted(now) and not self._lookups.take("", now):  # what this node wants is not a stranger's doing
            self.stats.limited += 1
            return
        peer.asked_at = now
        if fresh:
            peer.refreshed_at = now
        self._out.append(NeedPeerKey(peer.node, fresh))

    def _report(self, peer: PeerRecord, offered: bytes, source: str, now: float) -> None:
        if now - peer.reported_at >= REPORT_EVERY_S:
            peer.reported_at = now
            self._out.append(KeyRefused(peer.node, peer.identity or b"", offered, source))

    # ---- keys ----

    def _renew(self) -> None:
        self._own = OwnKey(self._identity, self._node, self._private, self._caps, self._links) if self._node else None

    def _agree(self, public: bytes, caps: Capabilities | None, now: float) -> Session | None:
        assert self._own
        try:
            key, key_id = self._own.agree(public)
        except ValueError:
            return None
        return Session(public, self._rotations, key, key_id, now, caps)

    def _era1(self, session: Session) -> bytes | None:
        """The session's key of era 1; None if the peer announces what no node of that era has."""
        return self._own.agree_era1(session.public) if self._own and self._accept_era1 and session.caps is None else None

    def _step_proof(self, peer: PeerRecord, now: float) -> None:
        actions, stale = proof.step(peer, now, self._last_heard(peer.node) if peer.pending else None)
        self._out += actions
        self.stats.stale_key += stale

    def _roll_over(self, node: int, now: float) -> None:
        peer = self._peers.find(node)
        if not peer or not peer.live or not self._own or peer.live.own == self._rotations:
            return
        session = self._agree(peer.live.public, peer.live.caps, now)
        if session:
            self._send(peer, self._own.pila, now)
            self._out += proof.start(peer, session, None, self._era1(session))
            self._step_proof(peer, now)
            self._arm(peer)

    # ---- sending ----

    def _retransmit(self, peer: PeerRecord, now: float) -> None:
        live = peer.live
        if live and not peer.agreed and now - live.at >= FORETOLD_S:
            peer.live = None
            peer.doubted = live.public
            self._out.append(DropKey(peer.node))
        if peer.want_until >= now:
            self._send_round(peer, now)
            return
        peer.next_send = None
        if not peer.proved:
            reason = "the peer did not prove its key" if peer.live else "no answer to the key exchange"
            self._out.append(ExchangeGaveUp(peer.node, peer.attempts, reason))

    def _send_round(self, peer: PeerRecord, now: float) -> None:
        assert self._own
        peer.attempts += 1
        self._send(peer, self._own.pila, now)
        if peer.attempts > 1 and not peer.agreed:
            # The peer may hold our key already and take our PILA for a keepalive; a PILK is always answered.
            self._send(peer, self._own.pilk, now)
        peer.next_send = now + RESEND_S[min(peer.attempts, len(RESEND_S)) - 1]
        self._arm(peer)

    def _restate(self, peer: PeerRecord, addr: Addr, relayed: bool, now: float) -> None:
        """Says our key and asks for the peer's, where its frame came from."""
        assert self._own
        for data in (self._own.pila, self._own.pilk):
            if peer.may_send(relayed, now):
                self._out.append(SendRelay(peer.node, data) if relayed else SendTo(peer.node, data, addr))

    def _reply(self, peer: PeerRecord, addr: Addr, relayed: bool, now: float) -> None:
        assert self._own
        peer.replied_at = now
        if relayed:
            self._send(peer, self._own.pila, now)
            return
        if peer.may_send(False, now):
            self._out.append(SendTo(peer.node, self._own.pila, addr))
        self._send(peer, self._own.pila, now, direct=False)

    def _send(
        self, peer: PeerRecord, data: bytes, now: float, direct: bool = True, relay: bool = True
    ) -> None:
        if direct and peer.may_send(False, now):
            self._out.append(SendDirect(peer.node, data))
        if relay and peer.may_send(True, now):
            self._out.append(SendRelay(peer.node, data))

    def _arm(self, peer: PeerRecord) -> None:
        times = [t for t in (peer.next_send, proof.next_at(peer)) if t is not None]
        self._timers.set(peer.node, min(times, default=None))


def parse_frame(data: bytes) -> Pila | Pilk | None:
    """The frame, None if it is neither or too short."""
    return parse_pila(data) or parse_pilk(data)
