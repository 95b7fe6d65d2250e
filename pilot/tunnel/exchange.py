"""Key exchange with every peer of a node, without I/O (transport.md 3.3, 3.4, 3.6, 3.7, 9.2).

Frames, registry answers and timers come in; actions come out of `take()`. Invariants:

* A session key is derived only from a PILA signed by the identity we know: the pinned key if there is one, else the registry's.
  Nothing is ever installed from a PILK.
* A live session is replaced only by a key which the peer has proved (proof.py). So an old PILA, replayed, moves nothing.
  One that was only foretold by the registry gives way to what the peer says.
* A peer gets at most 5 frames a second from us per route, whatever it or a stranger pretending to be it sends.
* Every table is bounded.

What follows from the inputs is in judging.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pilot.tunnel.actions import Action, Addr
from pilot.tunnel.judging import Judging, parse_frame
from pilot.tunnel.records import FOR_EVER
from pilot.wire.frames import Capabilities, KeyLink

WANT_S = 30.0  # how long one request for a session is worth repeating
NO_SESSION_EVERY_S = 3.0
ROTATE_EVERY_S = 60.0
ROLLOVER_S = 0.05  # between two peers that move to a rotated key


class KeyExchange(Judging):
    """The exchange machine of one node. Call `take()` after every input; call `tick(now)` at `deadline()`."""

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
        parsed = parse_frame(data)
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
        parsed = parse_frame(data)
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
