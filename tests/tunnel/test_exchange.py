"""Key exchange rules, one by one (transport.md 3.3, 3.6, 3.7), on virtual time, frames carried by hand."""

from __future__ import annotations

import hashlib
import random
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.tunnel import actions as act
from pilot.tunnel.exchange import KeyExchange
from pilot.tunnel.records import MAX_STRANGERS
from pilot.wire import keys
from pilot.wire.frames import Capabilities, build_pila, build_pilk, parse_pila

A, B = 0xA001, 0xB0000002
ADDR_A, ADDR_B = ("203.0.113.1", 4000), ("203.0.113.2", 4000)
CAPS = Capabilities(features=3, max_segment=8192, reorder_segments=65536)
T = TypeVar("T")


class Identity:
    def __init__(self, seed: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(random.Random(seed).randbytes(32))

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


class Side:
    """One machine and what it asked for."""

    def __init__(self, node: int, seed: int, process: int = 0, accept_era1: bool = False) -> None:
        self.node = node
        self.identity = Identity(seed)
        self.heard: dict[int, float] = {}
        self.machine = KeyExchange(
            self.identity,
            caps=CAPS,
            random=random.Random(seed * 1000 + process).randbytes,
            last_heard=self.heard.get,
            accept_era1=accept_era1,
        )
        self.machine.set_node(node)
        self.log: list[act.Action] = []

    def take(self, kind: type[T]) -> list[T]:
        """New actions of one kind; the rest stays in `log`."""
        self.log += self.machine.take()
        found = [a for a in self.log if isinstance(a, kind)]
        self.log = [a for a in self.log if not isinstance(a, kind)]
        return found

    def frames(self) -> list[bytes]:
        """Frames sent since last asked, each once however many routes it took."""
        sent = [*self.take(act.SendDirect), *self.take(act.SendTo), *self.take(act.SendRelay)]
        return list(dict.fromkeys(s.data for s in sent))

    def pila(self) -> bytes:
        """The frame this process announces itself with."""
        assert self.machine._own
        return self.machine._own.pila


@pytest.fixture
def a() -> Side:
    return Side(A, 1)


@pytest.fixture
def b() -> Side:
    return Side(B, 2)


def meet(a: Side, b: Side, now: float) -> None:
    """A complete exchange: both hold the other's key, proved."""
    for x, y, addr in ((a, b, ADDR_B), (b, a, ADDR_A)):
        x.machine.want(y.node, now)
        x.machine.frame(y.pila(), addr, False, 0, now)
        x.machine.peer_key(y.node, y.identity.public_key, now)
        for install in x.take(act.InstallKey):
            x.machine.proved(y.node, install.key_id, now)
        x.take(object)


def test_both_sides_derive_the_same_key(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    (pila,) = a.frames()
    b.machine.frame(pila, ADDR_A, False, 0, 0.1)
    assert [k.node for k in b.take(act.NeedPeerKey)] == [A]
    assert not b.take(act.InstallKey), "nothing is believed before the registry has answered"
    b.machine.peer_key(A, a.identity.public_key, 0.2)
    (installed_b,) = b.take(act.InstallKey)
    (reply,) = b.frames()
    a.machine.peer_key(B, b.identity.public_key, 0.2)
    a.machine.frame(reply, ADDR_B, False, 0, 0.3)
    (installed_a,) = a.take(act.InstallKey)
    assert installed_a.key == installed_b.key and len(installed_a.key) == 32
    assert installed_a.caps == CAPS and not installed_a.pending and installed_a.direct
    assert installed_a.key_id != installed_b.key_id, "the id is local: peer key first"


def test_the_reply_goes_where_the_frame_came_from_and_by_relay(a: Side, b: Side) -> None:
    b.machine.want(A, 0.0)
    b.take(object)
    b.machine.peer_key(A, a.identity.public_key, 0.0)
    b.machine.frame(a.pila(), ("203.0.113.9", 999), False, 0, 1.5)
    assert [s.addr for s in b.take(act.SendTo)] == [("203.0.113.9", 999)]
    assert len(b.take(act.SendRelay)) == 1


def test_retransmission_backs_off_and_asks_for_the_key(a: Side) -> None:
    a.machine.want(B, 0.0, hold=30.0)
    rounds: list[tuple[float, list[bytes]]] = [(0.0, [f[:4] for f in a.frames()])]
    while (at := a.machine.deadline()) is not None:
        a.machine.tick(at)
        frames = [f[:4] for f in a.frames()]
        if frames:
            rounds.append((at, frames))
    assert [r[0] for r in rounds] == [0, 1, 3, 7, 11, 15, 19, 23, 27]
    assert rounds[0][1] == [b"PILA"]
    assert all(r[1] == [b"PILA", b"PILK"] for r in rounds[1:])
    (gave_up,) = a.take(act.ExchangeGaveUp)
    assert gave_up.attempts == 9 and "no answer" in gave_up.reason


def test_proof_ends_the_retransmission(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    assert a.machine.is_proved(B)
    assert a.machine.deadline() is None
    a.machine.want(B, 1.0)
    assert not a.frames()


@pytest.mark.parametrize("cut", [0, 4, 39, 135])
def test_short_frames_are_counted(a: Side, b: Side, cut: int) -> None:
    a.machine.frame(b.pila()[:cut], ADDR_B, False, 0, 0.0)
    assert a.machine.stats.malformed == 1 and not a.machine.take()


def test_wrong_signature_key_or_source(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    a.machine.peer_key(B, b.identity.public_key, 0.0)
    a.take(object)
    good = b.pila()
    flipped = good[:80] + bytes([good[80] ^ 1]) + good[81:]
    a.machine.frame(flipped, ADDR_B, False, 0, 1.0)
    assert a.machine.stats.bad_signature == 1
    moved = good[:4] + A.to_bytes(4, "big") + good[8:]
    a.machine.frame(moved, ADDR_B, False, 0, 1.0)
    assert a.machine.stats.own_frames == 1
    a.machine.frame(good, ("198.51.100.1", 9001), True, 77, 1.0)
    assert a.machine.stats.wrong_source == 1, "a beacon that reports another sender than the frame names"
    mallory = Side(B, 66)
    a.machine.frame(mallory.pila(), ADDR_B, False, 0, 1.0)
    (ask,) = a.take(act.NeedPeerKey)
    assert ask.fresh, "another identity: the registry is asked once more, past the cache"
    a.machine.peer_key(B, b.identity.public_key, 1.1)
    (refused,) = a.take(act.KeyRefused)
    assert refused.source == "frame" and refused.offered == mallory.identity.public_key
    assert not a.take(act.InstallKey)
    a.machine.frame(good, ADDR_B, False, 0, 2.0)
    assert len(a.take(act.InstallKey)) == 1


def test_low_order_point_is_refused(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    a.machine.peer_key(B, b.identity.public_key, 0.0)
    a.take(object)
    a.machine.frame(build_pila(B, bytes(32), b.identity, CAPS), ADDR_B, False, 0, 0.5)
    assert a.machine.stats.weak_key == 1 and not a.take(act.InstallKey)


def test_pin_beats_the_registry(a: Side, b: Side) -> None:
    mallory = Side(B, 66)
    a.machine.pin(B, b.identity.public_key)
    a.machine.peer_key(B, mallory.identity.public_key, 0.0)
    (refused,) = a.take(act.KeyRefused)
    assert refused.source == "registry" and refused.expected == b.identity.public_key
    a.machine.frame(mallory.pila(), ADDR_B, False, 0, 1.0)
    assert not a.take(act.InstallKey) and not a.take(act.NeedPeerKey)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 2.0)
    assert len(a.take(act.InstallKey)) == 1
    assert a.machine.known_key(B) == b.identity.public_key


def test_pilk_installs_nothing_but_is_answered(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    pilk = build_pilk(B, bytes(range(32)))
    a.machine.frame(pilk, ADDR_B, False, 0, 10.0)
    assert not a.take(act.InstallKey)
    assert a.frames() == [a.pila()]
    a.machine.frame(pilk, ADDR_B, False, 0, 10.5)
    assert not a.frames(), "once a second"


def test_same_key_is_answered_only_after_silence(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    a.heard[B] = 9.0
    a.machine.frame(b.pila(), ADDR_B, False, 0, 10.0)
    assert not a.frames() and not a.take(act.InstallKey), "counters and windows must not restart"
    a.machine.frame(b.pila(), ADDR_B, False, 0, 15.5)
    assert a.frames() == [a.pila()]
    a.machine.frame(b.pila(), ADDR_B, False, 0, 16.0)
    assert not a.frames()
    a.machine.frame(b.pila(), ADDR_B, False, 0, 17.0)
    assert a.frames() == [a.pila()]


def test_capabilities_are_not_taken_back(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    a.machine.frame(b.pila()[:136], ADDR_B, False, 0, 3.0)
    assert not a.take(act.InstallKey), "a stripped trailer changes nothing"
    more = build_pila(B, parse_pila(b.pila()).x25519, b.identity, Capabilities(3, 9000, 70000))
    a.machine.frame(more, ADDR_B, False, 0, 4.0)
    (update,) = a.take(act.InstallKey)
    assert update.caps.max_segment == 9000 and not update.pending


def test_new_key_waits_for_its_proof(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    restarted = Side(B, 2, process=1)
    a.machine.frame(restarted.pila(), ADDR_B, False, 0, 10.0)
    (install,) = a.take(act.InstallKey)
    assert install.pending
    assert a.frames() == [a.pila()], "a changed key is answered at once"
    probes = a.take(act.ProbeKey)
    while (at := a.machine.deadline()) is not None and at < 13.0:
        a.machine.tick(at)
        probes += a.take(act.ProbeKey)
    assert [p.addr for p in probes] == [ADDR_B, None, ADDR_B, None], (
        "at most four: a peer drops its session at five"
    )
    a.machine.proved(B, install.key_id, 12.5)
    assert a.machine.deadline() is None
    a.machine.frame(b.pila(), ADDR_B, False, 0, 20.0)
    assert a.machine.stats.stale_key == 1 and not a.take(act.InstallKey), (
        "the key that was replaced never returns"
    )


def test_unproved_key_is_withdrawn_and_remembered(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    old = Side(B, 2, process=1)
    live = a.machine
    a.machine.frame(old.pila(), ADDR_B, False, 0, 10.0)
    (install,) = a.take(act.InstallKey)
    a.heard[B] = 12.0
    while (at := live.deadline()) is not None:
        live.tick(at)
    (withdrawn,) = a.take(act.InstallKey)
    assert not withdrawn.pending and withdrawn.key_id != install.key_id
    a.machine.frame(old.pila(), ADDR_B, False, 0, 20.0)
    assert not a.take(act.InstallKey) and live.stats.stale_key == 2
    # Without traffic under the live key nobody can tell which of the two is the old one: another chance.
    other = Side(B, 2, process=2)
    a.machine.frame(other.pila(), ADDR_B, False, 0, 30.0)
    a.take(object)
    while (at := live.deadline()) is not None:
        live.tick(at)
    a.take(object)
    a.machine.frame(other.pila(), ADDR_B, False, 0, 40.0)
    assert [i.pending for i in a.take(act.InstallKey)] == [True]


def test_no_session_is_answered_where_it_came_from(a: Side, b: Side) -> None:
    a.machine.no_session(B, ADDR_B, False, 0.0)
    assert not a.frames(), "nobody we know"
    assert len(a.take(act.NeedPeerKey)) == 1
    a.machine.peer_key(B, b.identity.public_key, 0.1)
    sent = a.take(act.SendTo)
    assert [s.data[:4] for s in sent] == [b"PILA", b"PILK"] and {s.addr for s in sent} == {ADDR_B}
    a.machine.no_session(B, ADDR_B, False, 1.0)
    assert not a.frames(), "once in three seconds"
    a.machine.no_session(B, ("198.51.100.1", 9001), True, 3.2)
    assert [s.data[:4] for s in a.take(act.SendRelay)] == [b"PILA", b"PILK"]


def test_unregistered_strangers_get_no_answer(a: Side, b: Side) -> None:
    a.machine.no_session(B, ADDR_B, False, 0.0)
    a.machine.peer_key(B, None, 0.1)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 0.2)
    a.machine.peer_key(B, None, 0.3)
    assert not a.frames()
    assert a.machine.stats.no_peer_key == 2


def test_never_more_than_five_frames_a_second(a: Side, b: Side) -> None:
    """Whatever is thrown at the machine, a peer receives at most five frames per second on each route."""
    rng = random.Random(7)
    a.machine.peer_key(B, b.identity.public_key, 0.0)
    sent: dict[type, list[float]] = {act.SendDirect: [], act.SendTo: [], act.SendRelay: []}
    now = 0.0
    for step in range(3000):
        now += rng.random() * 0.02
        process = Side(B, 2, process=rng.randrange(50)) if step % 40 == 0 else b
        what = rng.randrange(6)
        if what == 0:
            a.machine.want(B, now)
        elif what == 1:
            a.machine.frame(process.pila(), ADDR_B, False, 0, now)
        elif what == 2:
            a.machine.frame(build_pilk(B, bytes(32)), ("203.0.113.9", rng.randrange(1, 999)), False, 0, now)
        elif what == 3:
            a.machine.no_session(B, ADDR_B, rng.random() < 0.5, now)
        elif what == 4:
            a.machine.broken(B, now)
        a.machine.tick(now)
        for action in a.machine.take():
            if type(action) in sent:
                sent[type(action)].append(now)
    direct = sorted(sent[act.SendDirect] + sent[act.SendTo])
    for times in (direct, sent[act.SendRelay]):
        assert len(times) > 20
        assert all(later - earlier >= 1.0 for earlier, later in zip(times, times[5:], strict=False))


def test_strangers_cannot_make_the_tables_grow(a: Side) -> None:
    """Frames of many invented nodes: bounded memory, bounded questions to the registry."""
    stranger = Side(B, 3)
    frame = bytearray(stranger.pila())
    now = 0.0
    for n in range(3 * MAX_STRANGERS):
        now += 0.001
        frame[4:8] = (n + 10).to_bytes(4, "big")
        a.machine.frame(bytes(frame), (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1), False, 0, now)
    assert len(a.machine._peers) <= MAX_STRANGERS
    assert len(a.take(act.NeedPeerKey)) <= 100 + 50 * now + 1


def test_live_sessions_survive_a_flood_of_strangers(a: Side, b: Side) -> None:
    meet(a, b, 0.0)
    a.machine.pin(77, bytes(32))
    for n in range(2 * MAX_STRANGERS):
        a.machine.no_session(n + 1000, ADDR_B, False, 1.0)
    assert a.machine.is_proved(B) and a.machine.known_key(77) == bytes(32)


def test_what_rests_is_not_forgotten(a: Side, b: Side) -> None:
    """The record of an idle peer: packed only while nothing is under way, and the same afterwards."""
    meet(a, b, 0.0)
    a.machine.rest(B, 0.5)
    peers = a.machine._peers
    assert B in peers._records, "a session was wanted a moment ago"
    a.machine.pin(B, b.identity.public_key)
    before = peers.get(B)
    before.remember_old(bytes(32), 1e9)
    a.machine.rest(B, 100.0)
    assert B not in peers._records and len(peers) == 1
    assert a.machine.is_proved(B) and a.machine.has_session(B) and B not in peers._records, "asking that wakes nobody"
    assert a.machine.known_key(B) == b.identity.public_key
    after = peers.get(B)
    assert after is not before
    for gone in ("want_until", "attempts", "_sent", "_sent_relay"):
        setattr(after, gone, getattr(before, gone))
    assert after == before
    assert after.registered == after.pin == b.identity.public_key
    a.machine.rest(B, 100.0)
    assert a.machine.rotate(100.0)
    a.machine.tick(101.0)
    assert [i.pending for i in a.take(act.InstallKey)] == [True], "a rotation reaches those that rest"


def test_forget_keeps_the_pin(a: Side, b: Side) -> None:
    a.machine.pin(B, b.identity.public_key)
    meet(a, b, 0.0)
    a.machine.forget(B)
    assert not a.machine.has_session(B)
    assert a.machine.known_key(B) == b.identity.public_key
    assert a.machine.deadline() is None


def test_nothing_happens_without_a_number(b: Side) -> None:
    fresh = KeyExchange(
        Identity(5), caps=CAPS, random=random.Random(5).randbytes, last_heard=lambda node: None
    )
    fresh.want(B, 0.0)
    fresh.frame(b.pila(), ADDR_B, False, 0, 0.0)
    fresh.no_session(B, ADDR_B, False, 0.0)
    assert not fresh.take() and fresh.deadline() is None


def test_the_key_is_in_force_before_the_answer_leaves(a: Side, b: Side) -> None:
    """The peer may send the moment it has our answer, and a datagram that nobody can open yet is lost."""
    b.machine.want(A, 0.0)
    b.take(object)
    b.machine.peer_key(A, a.identity.public_key, 0.0)
    b.machine.frame(a.pila(), ADDR_A, False, 0, 1.0)
    kinds = [type(action) for action in b.machine.take()]
    sends = [kinds.index(k) for k in (act.SendTo, act.SendRelay) if k in kinds]
    assert sends and kinds.index(act.InstallKey) < min(sends)


def test_a_flood_of_strangers_does_not_shut_out_who_is_wanted(a: Side, b: Side) -> None:
    """Small frames with forged sources, more than are looked at: the peer this node dials gets through all the same."""
    flood = bytearray(build_pilk(1, bytes(range(32))))

    def storm(now: float) -> None:
        for n in range(3000):
            flood[4:8] = (n + 10).to_bytes(4, "big")
            a.machine.frame(bytes(flood), (f"10.{int(now)}.{n >> 8}.{n & 255}", 1), False, 0, now)

    storm(0.0)
    a.take(object)
    a.machine.want(B, 0.0)
    assert [k.node for k in a.take(act.NeedPeerKey)] == [B]
    a.machine.peer_key(B, b.identity.public_key, 0.1)
    storm(0.2)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 0.2)
    assert [k.node for k in a.take(act.InstallKey)] == [B]


def test_nobody_is_flooded_with_our_answers_in_the_name_of_peers(a: Side, b: Side) -> None:
    """Encrypted frames that claim to be of many nodes and of one source: what we answer is longer than they are."""
    for n in range(2000):
        a.machine.pin(n + 1000, bytes(32))
        a.machine.no_session(n + 1000, ADDR_B, False, 1.0)
    assert len({s.node for s in a.take(act.SendTo)}) <= 100
    a.machine.no_session(5000, ("203.0.113.9", 1), False, 1.0)
    assert a.machine.stats.limited == 1900


# ---- peers of era 1 ----


def era1_install(side: Side, peer: Side, frame: bytes, now: float) -> act.InstallKey:
    side.machine.want(peer.node, now)
    side.machine.peer_key(peer.node, peer.identity.public_key, now)
    side.machine.frame(frame, ADDR_B, False, 0, now)
    (install,) = side.take(act.InstallKey)
    return install


def test_a_key_of_era_1_only_with_the_switch_and_without_an_announcement(b: Side) -> None:
    off, on = Side(A, 1), Side(A, 1, accept_era1=True)
    plain = b.pila()[:136]  # as a release without our trailer sends it
    assert era1_install(off, b, plain, 0.0).era1 is None
    install = era1_install(on, b, plain, 0.0)
    shared = keys.shared_secret(b.machine._own._private, parse_pila(on.pila()).x25519)  # type: ignore[union-attr]
    assert install.era1 == hashlib.sha256(b"pilot-tunnel-v1:" + shared).digest() != install.key
    again = Side(A, 1, accept_era1=True)
    assert era1_install(again, b, b.pila(), 0.0).era1 is None, "our own kind announces itself"
    other = Side(B, 9)
    forged = plain + other.pila()[136:]  # somebody else's trailer says nothing
    assert era1_install(Side(A, 1, accept_era1=True), b, forged, 0.0).era1 is not None


def test_new_keys_of_a_peer_of_era_1_have_one_too(b: Side) -> None:
    on = Side(A, 1, accept_era1=True)
    first = era1_install(on, b, b.pila()[:136], 0.0)
    on.machine.proved(B, first.key_id, 0.0)
    restarted = Side(B, 2, process=1)
    on.machine.frame(restarted.pila()[:136], ADDR_B, False, 0, 5.0)
    (pending,) = on.take(act.InstallKey)
    assert pending.pending and pending.era1 not in (None, first.era1)
    on.machine.proved(B, pending.key_id, 5.0)
    assert on.machine.rotate(100.0)
    on.machine.tick(100.0)
    (rotated,) = on.take(act.InstallKey)
    assert rotated.pending and rotated.era1 not in (None, pending.era1)
    on.machine.tick(104.5)  # not proved in time: withdrawn
    (withdrawn,) = on.take(act.InstallKey)
    assert withdrawn.key_id == pending.key_id and withdrawn.era1 is None, "the data plane has it"
