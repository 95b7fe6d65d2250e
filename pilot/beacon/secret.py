"""Keys between beacons that share a secret (docs/wire-extensions.md section 7.6), without I/O.

Each beacon opens a session of its own toward each peer: it sends a hello with a fresh nonce, the peer answers with a welcome that
holds a nonce of its own, and both nonces make the key. So neither side can be made to accept a key of another life, its own or
the other's: a recorded letter leads to a key that its recorder does not know, and what was sealed under former keys opens
nowhere. Letters are authenticated by the secret; the native relay checks that before they come here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pilot.wire.beacon import BeaconType

Addr = tuple[str, int]

NONCE_SIZE = 16
MAC_SIZE = 16
LETTER_SIZE = 54
STRAY = bytes((BeaconType.SEALED, 2))  # the relay's word that a peer uses a key which it does not know
AGAIN_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # between hellos that nobody answers; the last one repeats
RENEW_S = 300.0  # a session, at the latest
HELLO_GAP_S = 1.0  # hellos because a peer said something that suggests one
WELCOME_GAP_S = 0.2  # keys made for hellos of one peer


@dataclass(frozen=True, slots=True)
class Send:
    """A letter to a peer, as it is."""

    addr: Addr
    letter: bytes


@dataclass(frozen=True, slots=True)
class SealKey:
    """Seal with this key what goes to the peer. It can open it already."""

    addr: Addr
    session: int
    key: bytes


@dataclass(frozen=True, slots=True)
class OpenKey:
    """The peer may seal with this key from now on."""

    addr: Addr
    session: int
    key: bytes


Action = Send | SealKey | OpenKey


@dataclass(slots=True)
class _Peer:
    nonce: bytes = b""  # of the hello that waits for an answer
    tries: int = 0
    due: float = 0.0  # the next hello
    opened: float = float("-inf")  # the present session
    hello_at: float = float("-inf")
    greeted: bytes = b""  # nonce of the hello answered last
    answer: bytes = b""
    welcome_at: float = float("-inf")


class Handshakes:
    """The sessions of one beacon with its peers. Call take() after every input and tick(now) at deadline()."""

    def __init__(self, secret: str, random: Callable[[int], bytes]) -> None:
        """secret: long enough that nobody guesses it. random: n bytes."""
        master = secret.encode()
        self.letter_key = hmac.digest(master, b"pilot-beacon-v1 letters", hashlib.sha256)
        self._session_key = hmac.digest(master, b"pilot-beacon-v1 sessions", hashlib.sha256)
        self._random = random
        self._targets: dict[Addr, _Peer] = {}  # whom we open sessions to
        self._others: dict[Addr, _Peer] = {}  # further addresses that peers may send from
        self._out: list[Action] = []

    def set_peers(self, accepted: Iterable[Addr], targets: Iterable[Addr], now: float) -> None:
        """The peers, replacing the former ones; `targets` are those of `accepted` that are sent to."""
        before = self._targets | self._others
        self._targets = {addr: before.get(addr) or _Peer(due=now) for addr in targets}
        self._others = {addr: before.get(addr) or _Peer() for addr in accepted if addr not in self._targets}

    def receive(self, addr: Addr, letter: bytes, now: float) -> None:
        """A genuine letter of a peer, or STRAY."""
        peer = self._targets.get(addr) or self._others.get(addr)
        if peer is None:
            return
        if letter == STRAY:
            self._suggest(addr, peer, now)
        elif len(letter) == LETTER_SIZE and letter[1] == 0:
            self._welcome(addr, peer, letter[2 : 2 + NONCE_SIZE], now)
        elif len(letter) == LETTER_SIZE and letter[1] == 1:
            self._answered(addr, peer, letter, now)

    def tick(self, now: float) -> None:
        """Sends the hellos that are due."""
        for addr, peer in self._targets.items():
            if peer.due <= now:
                self._hello(addr, peer, now)

    def deadline(self) -> float | None:
        """When tick() has something to do; None for never."""
        return min((peer.due for peer in self._targets.values()), default=None)

    def take(self) -> list[Action]:
        """The actions since last asked, in order."""
        out, self._out = self._out, []
        return out

    # Inside

    def _hello(self, addr: Addr, peer: _Peer, now: float) -> None:
        if not peer.nonce:
            peer.nonce = self._random(NONCE_SIZE)
            peer.tries = 0
        peer.due = now + AGAIN_S[min(peer.tries, len(AGAIN_S) - 1)]
        peer.tries += 1
        peer.hello_at = now
        body = bytes((BeaconType.SEALED, 0)) + peer.nonce
        self._out.append(Send(addr, self._signed(body.ljust(LETTER_SIZE - MAC_SIZE, b"\0"))))

    def _suggest(self, addr: Addr, peer: _Peer, now: float) -> None:
        """The peer seems to have lost our session, or to be another one than before."""
        if addr in self._targets and not peer.nonce and now - peer.hello_at >= HELLO_GAP_S:
            peer.due = now
            self._hello(addr, peer, now)

    def _welcome(self, addr: Addr, peer: _Peer, nonce: bytes, now: float) -> None:
        if peer.greeted != nonce:
            if now - peer.welcome_at < WELCOME_GAP_S:
                return  # a recording at high speed; a peer asks again
            own, session = self._random(NONCE_SIZE), self._random(4)
            peer.greeted, peer.welcome_at = nonce, now
            peer.answer = self._signed(bytes((BeaconType.SEALED, 1)) + nonce + own + session)
            self._out.append(OpenKey(addr, int.from_bytes(session, "big"), self._key(nonce, own)))
            self._suggest(addr, peer, now)
        self._out.append(Send(addr, peer.answer))

    def _answered(self, addr: Addr, peer: _Peer, letter: bytes, now: float) -> None:
        nonce, own = letter[2 : 2 + NONCE_SIZE], letter[2 + NONCE_SIZE : 2 + 2 * NONCE_SIZE]
        if not peer.nonce or not hmac.compare_digest(nonce, peer.nonce):
            return  # not to our last question
        peer.nonce = b""
        peer.opened = now
        peer.due = now + RENEW_S
        session = int.from_bytes(letter[2 + 2 * NONCE_SIZE : LETTER_SIZE - MAC_SIZE], "big")
        self._out.append(SealKey(addr, session, self._key(nonce, own)))

    def _key(self, asker: bytes, answerer: bytes) -> bytes:
        return hmac.digest(self._session_key, asker + answerer, hashlib.sha256)

    def _signed(self, body: bytes) -> bytes:
        return body + hmac.digest(self.letter_key, body, hashlib.sha256)[:MAC_SIZE]
