"""Key exchange with every peer of a node, without I/O (transport.md 3.3, 3.4, 3.6, 3.7, 9.2).

Frames, registry answers and timers come in; actions come out of `take()`. Invariants:

* A session key is derived only from a PILA signed by the identity we know: the pinned key if there is one,
else the registry's.
  Nothing is ever installed from a PILK.
* A live session is replaced only by a key which the peer has proved (proof.py). So an old PILA, replayed,
moves nothing.
* A peer gets at most 5 frames a second from us per route, whatever it or a stranger pretending to be it
sends.
* Every table is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from pilot.tunnel.records import FOR_EVER, FRAMES_PER_S, PeerRecord, PeerTable, Session
from pilot.wire.frames import Capabilities, KeyLink, Pila, Pilk, parse_pila, parse_pilk

WANT_S = 30.0  # how long one request for a session is worth repeating
RESEND_S = (1.0, 2.0, 4.0)  # the last one repeats
REPLY_SILENCE_S = 6.0  # a known key is answered only after this much silence
REPLY_EVERY_S = 1.0
NO_SESSION_EVERY_S = 3.0
KEY_LOOKUP_EVERY_S = 3.0  # a failed registry lookup is not repeated sooner
KEY_REFRESH_EVERY_S = 10.0  # nor is a mismatch asked about again
REPORT_EVERY_S = 60.0
FORETOLD_S = 0.9  # a peer that has not spoken by then is not where the registry's word is from
ROTATE_EVERY_S = 60.0
ROLLOVER_S = 0.05  # between two peers that move to a rotated key


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


class KeyExchange:
    """The exchange machine of one node. Call `take()` after every input; call `tick(now)` at `deadline()`."""

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

    # ---- identity and policy ----

    def set_node(self, node: int) -> None:
        """Own node number; 0 = not registered: nothing is sent or accepted."""
        if node != self._node:
            self._node = node
            self._renew()

    def set_caps(self, caps: Capabilities) -> None:
        """What PILA frames announce from now on."""
        if caps != self._caps:
            self._caps = caps
            self._renew()

    def announce_nat(self, code: int) -> None:
        """The own NAT class (docs/wire-extensions.md 1, record 6) for PILA frames from now on, if they announce anything."""
        if self._caps != Capabilities():
            self.set_caps(replace(self._caps, nat=code))

    def pin(self, node: int, key: bytes | None) -> None:
        """Fixes the Ed25519 key of a trusted node (None unfixes it). The registry cannot introduce another
        any more."""
        self._peers.get(node).pin = key

    def known_key(self, node: int) -> bytes | None:
        """The Ed25519 key `node` is judged by; None if neither trust nor the registry told one."""
        peer = self._peers.find(node)
        return peer.identity if peer else None

    def has_session(self, node: int) -> bool:
        """A key is installed for `node`, proved or not."""
        if self._peers.rests(node):
            return True
        peer = self._peers.find(node)
        return peer is not None and peer.live is not None

    def is_proved(self, node: int) -> bool:
        """The peer has shown that it holds the key of its session."""
        if self._peers.rests(node):
            return True
        peer = self._peers.find(node)
        return peer is not None and peer.proved

    def is_pending(self, node: int, key_id: int) -> bool:
        """This key waits beside a live session for the peer's proof."""
        peer = self._peers.find(node)
        return peer is not None and peer.pending is not None and peer.pending.key_id == key_id

    @property
    def announcement(self) -> bytes:
        """The PILA that others may be told before they ask for it; b"" while not registered."""
        return self._own.announcement if self._own else b""

    # ---- demand ----

    def want(self, node: int, now: float, hold: float = WANT_S) -> None:
        """A session with `node` is wanted for the next `hold` seconds. Repeating this is cheap and sends
        nothing extra."""
        if not self._own or node in (0, self._node):
            return
        peer = self._peers.get(node)
        peer.want_until = max(peer.want_until, now + hold)
        if not peer.proved and peer.next_send is None:
            if peer.identity is None:
                self._ask_registry(peer, now)  # the answer to our frame will need it
            peer.attempts = 0
            self._send_round(peer, now)

    def address_known(self, node: int, now: float) -> None:
        """A direct address of `node` has just become known: the exchange under way goes there too."""
        if self._peers.rests(node):
            return
        peer = self._peers.find(node)
        if self._own and peer and peer.wanted(now) and peer.next_send is not None:
            self._send(peer, self._own.pila, now, relay=False)

    def foretold(self, node: int, pila: bytes, now: float) -> None:
        """The registry's copy of the PILA of `node` (docs/wire-extensions.md 9), judged like one of the peer's own. What is sent
        under it reaches the peer after our PILA, which `want` has sent; dials that come too early all the same begin
        again when the peer's PILA is here."""
        peer = self._peers.find(node)
        if peer and not peer.live and peer.wanted(now):
            peer.foretold = pila
            self._use_foretold(peer, now)

    def session_gone(self, node: int) -> None:
        """The data plane holds no session for `node` any more."""
        peer = self._peers.find(node)
        if peer:
            peer.live = peer.pending = None
            self._arm(peer)

    def forget(self, node: int) -> None:
        """Forgets everything about `node` but its pin."""
        peer = self._peers.pop(node)
        self._timers.set(node, None)
        if peer and peer.pin:
            self._peers.get(node).pin = peer.pin

    def rest(self, node: int, now: float) -> None:
        """The path to `node` is quiet: what is known of the peer may be put away until somebody asks."""
        self._peers.rest(node, now)

    # ---- input ----

    def frame(self, data: bytes, addr: Addr, relayed: bool, claimed: int, now: float) -> None:
        """A PILA or PILK. claimed: the source node that the beacon reported (relayed frames), else 0."""
        self.stats.frames += 1
        if not self._own:
            return
        parsed = _parse(data)
        if parsed is None:
            self.stats.malformed += 1
        elif parsed.node in (0, self._node):
            self.stats.own_frames += 1
        elif relayed and claimed != parsed.node:
            self.stats.wrong_source += 1
        elif not self._admit(parsed.node, addr, relayed, now):
            self.stats.limited += 1
        else:
            self._judge(parsed, data, addr, relayed, now)

    def peer_key(self, node: int, key: bytes | None, now: float) -> None:
        """The registry's word on the Ed25519 key of `node`, asked for or not; None if it has no key or cannot
        be reached."""
        peer = self._peers.find(node)
        if not peer:
            return
        if key is not None and len(key) == 32:
            if peer.pin and key != peer.pin:
                self._report(peer, key, "registry", now)
            peer.registered = key
        self._use_foretold(peer, now)
        waiting, peer.waiting = peer.waiting, None
        if not waiting or not self._own:
            return
        data, addr, relayed = waiting
        parsed = _parse(data)
        if not peer.identity:
            self.stats.no_peer_key += 1
        elif parsed:
            self._judge(parsed, data, addr, relayed, now)
        else:
            self._restate(peer, addr, relayed, now)

    def no_session(self, node: int, addr: Addr, relayed: bool, now: float) -> None:
        """The data plane got an encrypted frame of `node` and has no key for it (see also session_gone)."""
        if not self._own or node in (0, self._node):
            return
        peer = self._peers.get(node)
        if now - peer.hinted_at < NO_SESSION_EVERY_S:
            return
        if not relayed and not self._by_ip.take(addr[0], now):
            self.stats.limited += 1  # the answer is longer than the frame, and the frame may name any sender and any source
            return
        peer.hinted_at = now
        if peer.identity:  # strangers who are not even registered get no answer
            self._restate(peer, addr, relayed, now)
        else:
            self._need_key(peer, b"", addr, relayed, now)

    def proved(self, node: int, key_id: int, now: float) -> bool:
        """A frame of `node` opened under the key `key_id`, which is in force from now on. True: it is the first under another
        X25519 key of the peer than before."""
        peer = self._peers.find(node)
        if not peer:
            return False
        anew = False
        if peer.pending and peer.pending.key_id == key_id:
            if peer.live and peer.live.public != peer.pending.public:
                peer.remember_old(peer.live.public, FOR_EVER)
                anew = True
            peer.live, peer.pending = peer.pending, None
        if peer.live and peer.live.key_id == key_id:
            peer.live.proved = True
            peer.next_send = None
        self._arm(peer)
        return anew

    def broken(self, node: int, now: float) -> None:
        """Frames of `node` repeatedly do not open: both sides state their keys anew."""
        peer = self._peers.find(node)
        if self._own and peer and now - peer.hinted_at >= NO_SESSION_EVERY_S:
            peer.hinted_at = now
            self._send(peer, self._own.pila, now)
            self._send(peer, self._own.pilk, now)

    def identity_changed(self, links: Sequence[KeyLink] = ()) -> None:
        """The identity signs with another key: the announcement of our X25519 key is signed anew. links: its former ones."""
        self._links = tuple(links)
        self._renew()

    def rotate(self, now: float) -> bool:
        """Replaces the own X25519 key, make before break (transport.md 9.2): peers move over one after the
        other, each keeping
        its old key until it has proved the new one. False while a rotation is under way or less than a minute
        old."""
        if now - self._rotated_at < ROTATE_EVERY_S or self._rollovers or not self._node:
            return False
        self._rotated_at = self._rollover_at = now
        self._private = self._random(32)
        self._rotations += 1
        self._renew()
        self._rollovers.extend(self._peers.with_session())
        return True

    # ---- time ----

    def deadline(self) -> float | None:
        """When `tick` has something to do; None for never."""
        first = self._timers.earliest()
        if self._rollovers and (first is None or self._rollover_at < first):
            return self._rollover_at
        return first

    def tick(self, now: float) -> None:
        """Retransmits, probes pending keys, ends what was in vain."""
        while self._rollovers and self._rollover_at <= now:
            self._rollover_at += ROLLOVER_S
            self._roll_over(self._rollovers.popleft(), now)
        for node in list(self._timers.due(now)):
            peer = self._peers.find(node)
            if not peer:
                continue
            self._step_proof(peer, now)
            if peer.next_send is not None and peer.next_send <= now:
                self._retransmit(peer, now)
            self._arm(peer)

    def take(self) -> list[Action]:
        """The actions since last asked, in order."""
        out, self._out = self._out, []
        return out

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


def _parse(data: bytes) -> Pila | Pilk | None:
    return parse_pila(data) or parse_pilk(data)
