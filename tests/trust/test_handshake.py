"""Who becomes trusted and who does not: the receiver's checks and the rules of the handshake."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pilot.errors import PilotError
from pilot.trust import handshake as hs
from pilot.trust.handshake import (
    ACCEPT,
    REJECT,
    REQUEST,
    REVOKE,
    Emit,
    Forget,
    Grant,
    HandshakeMachine,
    Policy,
    Report,
    Respond,
    Send,
    Withdraw,
)  # fmt: skip
from pilot.trust.message import HandshakeMessage, MessageError
from pilot.trust.store import TrustStore

NOW = 1_767_225_600
VECTORS = Path(__file__).parents[1] / "vectors" / "services.json"


class Person:
    def __init__(self, node: int, policy: Policy | None = None) -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([node]) * 32)
        self.public = self.key.public_key().public_bytes_raw()
        self.node = node
        self.machine = HandshakeMachine(TrustStore(None), policy or Policy())
        self.machine.own_node = node

    def message(self, type_: str, to: int, *, at: float = NOW, **kw: str) -> HandshakeMessage:
        return HandshakeMessage.build(
            type_, self.node, to, self.public, self.key.sign, timestamp=int(at), **kw
        )

    def hears(
        self, who: Person, msg: HandshakeMessage, now: float = NOW, **kw: Any
    ) -> list[hs.Action] | None:
        """None: dropped by the checks."""
        checked = self.machine.check(msg.encode(), who.node, now)
        if checked is None:
            return None
        return self.machine.receive(checked, now, **{"peer_key": who.public, **kw})

    def trusts(self, other: Person) -> bool:
        return self.machine.store.is_trusted(other.node)


@pytest.fixture
def ann() -> Person:
    return Person(1)


@pytest.fixture
def bob() -> Person:
    return Person(2)


def without_emits(actions: list[hs.Action] | None) -> list[hs.Action]:
    assert actions is not None
    return [a for a in actions if not isinstance(a, Emit)]


def events(actions: list[hs.Action] | None) -> list[str]:
    return [a.event for a in actions or [] if isinstance(a, Emit)]


def test_ask_and_approve(ann: Person, bob: Person) -> None:
    assert ann.machine.start(2, NOW)
    actions = bob.hears(ann, ann.message(REQUEST, 2, justification="work"))
    assert events(actions) == ["handshake.received", "handshake.pending"]
    assert without_emits(actions) == []
    assert bob.machine.store.pending[1].justification == "work"
    assert not bob.trusts(ann)
    approved = bob.machine.approve(1, NOW)
    assert without_emits(approved) == [Grant(1, ann.public), Report(1), Respond(1, True), Send(1, ACCEPT)]
    assert bob.trusts(ann) and not bob.machine.store.pending
    assert not bob.machine.store.trusted[1].mutual
    actions = ann.hears(bob, bob.message(ACCEPT, 1))
    assert without_emits(actions) == [Grant(2, bob.public), Report(2)]
    assert ann.machine.store.trusted[2].mutual
    assert ann.machine.store.requested == {}


def test_both_ask_each_other(ann: Person, bob: Person) -> None:
    ann.machine.start(2, NOW)
    bob.machine.start(1, NOW)
    actions = bob.hears(ann, ann.message(REQUEST, 2))
    assert without_emits(actions) == [Grant(1, ann.public), Report(1), Send(1, ACCEPT)]
    assert "handshake.auto_approved" in events(actions)
    assert bob.machine.store.trusted[1].mutual


def test_reject(ann: Person, bob: Person) -> None:
    ann.machine.start(2, NOW)
    bob.hears(ann, ann.message(REQUEST, 2))
    assert without_emits(bob.machine.reject(1, "not now")) == [Respond(1, False), Send(1, REJECT, "not now")]
    ann.hears(bob, bob.message(REJECT, 1, reason="not now"))
    assert ann.machine.store.requested == {}
    assert not ann.trusts(bob) and not bob.trusts(ann)


def test_revoke_reaches_both_sides_notice_first(ann: Person, bob: Person) -> None:
    for a, b in ((ann, bob), (bob, ann)):
        a.machine.start(b.node, NOW)
        a.hears(b, b.message(ACCEPT, a.node))
    actions = without_emits(ann.machine.revoke(2, NOW))
    assert actions == [Send(2, REVOKE, "trust revoked"), Withdraw(2, True), Forget(2)]
    assert without_emits(bob.hears(ann, ann.message(REVOKE, 2))) == [Withdraw(1, True), Forget(1)]
    assert not bob.trusts(ann)
    with pytest.raises(PilotError, match="node 2 was not trusted"):
        ann.machine.revoke(2, NOW)
    # An accept that was under way when the user revoked must not bring trust back.
    ann.machine.store.requested[2] = NOW
    assert ann.hears(bob, bob.message(ACCEPT, 1, at=NOW + 9), NOW + 10) == []
    assert not ann.trusts(bob)
    ann.machine.start(2, NOW + 20)
    ann.hears(bob, bob.message(ACCEPT, 1, at=NOW + 21), NOW + 22)
    assert ann.trusts(bob)


def test_nobody_approves_himself(ann: Person, bob: Person) -> None:
    """The known hole: an accept nobody asked for, also after the peer's own request."""
    assert bob.hears(ann, ann.message(ACCEPT, 2)) == []
    bob.hears(ann, ann.message(REQUEST, 2))
    assert bob.hears(ann, ann.message(ACCEPT, 2, reason="x")) == []
    assert bob.machine.relayed_response(1, True, NOW) == []
    assert not bob.trusts(ann)
    assert bob.machine.stats.dropped["unsolicited"] == 3


def test_a_repeated_request_of_a_trusted_peer_is_accepted_again(ann: Person, bob: Person) -> None:
    bob.hears(ann, ann.message(REQUEST, 2))
    bob.machine.approve(1, NOW)
    assert without_emits(bob.hears(ann, ann.message(REQUEST, 2, at=NOW + 1))) == [Send(1, ACCEPT)]


@pytest.mark.parametrize(
    ("age", "ok"), [(0, True), (300, True), (301, False), (400, False), (-30, True), (-31, False)]
)
def test_age(ann: Person, bob: Person, age: float, ok: bool) -> None:
    assert (bob.hears(ann, ann.message(REQUEST, 2, at=NOW - age)) is not None) is ok


def test_replay_is_dropped_for_ten_minutes(ann: Person, bob: Person) -> None:
    msg = ann.message(REVOKE, 2)
    assert bob.hears(ann, msg) is not None
    assert bob.hears(ann, msg, NOW + 299) is None
    assert bob.machine.stats.dropped == {"replay": 1}


def test_replay_memory_is_bounded_per_peer(ann: Person, bob: Person) -> None:
    heard = [bob.hears(ann, ann.message(REQUEST, 2, justification=str(i))) is not None for i in range(100)]
    assert sum(heard) == hs.REPLAY_PER_NODE
    assert bob.hears(Person(3), Person(3).message(REQUEST, 2)) is not None
    later = NOW + hs.REPLAY_S + 1
    assert bob.hears(ann, ann.message(REQUEST, 2, at=later), later) is not None


def test_strangers_who_fill_the_replay_memory_do_not_shut_out_who_is_expected(
    ann: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hs, "REPLAY_MAX", 3)
    bob.machine.start(1, NOW)
    for node in (3, 4, 5):
        assert bob.hears(Person(node), Person(node).message(REQUEST, 2)) is not None
    assert bob.hears(Person(6), Person(6).message(REQUEST, 2)) is None
    assert bob.hears(ann, ann.message(ACCEPT, 2)) is not None and bob.trusts(ann)
    assert bob.hears(ann, ann.message(REVOKE, 2)) is not None and not bob.trusts(ann)


def test_forged_messages(ann: Person, bob: Person) -> None:
    mallory = Person(3)
    good = ann.message(REQUEST, 2)
    other_receiver = ann.message(REQUEST, 9)
    own_key = HandshakeMessage.build(REQUEST, 1, 2, mallory.public, mallory.key.sign, timestamp=NOW)
    keyless = HandshakeMessage(REQUEST, 1, "", "", "", "", NOW)
    unsigned = HandshakeMessage(REQUEST, 1, good.public_key, "", "", "", NOW)
    assert bob.machine.check(good.encode(), 3, NOW) is None  # not from the node it names
    for msg in (other_receiver, keyless, unsigned):
        assert bob.machine.check(msg.encode(), 1, NOW) is None
    assert events(bob.hears(ann, own_key)) == ["security.key_mismatch"]
    assert bob.hears(ann, good, peer_key=None) == []  # nobody vouches for the key
    assert bob.machine.store.pending == {}
    assert bob.machine.stats.dropped == {"wrong_node": 1, "signature": 3, "key_mismatch": 1, "unknown_key": 1}


def test_a_pinned_key_outweighs_the_registry(ann: Person, bob: Person) -> None:
    bob.hears(ann, ann.message(REQUEST, 2))
    bob.machine.approve(1, NOW)
    swapped = Person(3)
    msg = HandshakeMessage.build(REVOKE, 1, 2, swapped.public, swapped.key.sign, timestamp=NOW)
    assert events(bob.hears(ann, msg, peer_key=swapped.public)) == ["security.key_mismatch"]
    assert bob.trusts(ann)


def test_through_the_registry(ann: Person, bob: Person) -> None:
    ann.machine.start(2, NOW)
    assert without_emits(bob.machine.relayed_request(1, "why", NOW)) == []
    assert bob.machine.store.pending[1].public_key == b""
    approved = without_emits(bob.machine.approve(1, NOW))
    assert approved[0] == Grant(1, b"")
    assert without_emits(ann.machine.relayed_response(2, True, NOW)) == [Grant(2, b""), Report(2)]
    assert without_emits(bob.machine.relayed_request(1, "again", NOW)) == [Respond(1, True)]
    assert bob.machine.store.pin(1, ann.public)


def test_a_relayed_request_does_not_lose_the_key_of_a_direct_one(ann: Person, bob: Person) -> None:
    bob.hears(ann, ann.message(REQUEST, 2))
    bob.machine.relayed_request(1, "again", NOW)
    assert bob.machine.store.pending[1].public_key == ann.public


@pytest.mark.parametrize(("policy", "shared", "network", "trusted"), [
    (Policy(), 0, 0, False), (Policy(), 7, 0, False), (Policy(same_network=True), 7, 7, True),
    (Policy(same_network=True), 0, 0, False), (Policy(auto_approve=True), 0, 0, True),
])  # fmt: skip
def test_automatic_rules_are_off_unless_asked_for(
    policy: Policy, shared: int, network: int, trusted: bool
) -> None:
    bob, ann = Person(2, policy), Person(1)
    bob.hears(ann, ann.message(REQUEST, 2), shared_network=shared)
    assert bob.trusts(ann) is trusted
    if trusted:
        assert bob.machine.store.trusted[1].network == network


def test_pending_is_bounded_and_old_entries_go(bob: Person) -> None:
    for node in range(10, 10 + hs.MAX_PENDING + 5):
        bob.machine.relayed_request(node, "x", NOW)
    assert len(bob.machine.store.pending) == hs.MAX_PENDING and bob.machine.stats.dropped == {"pending_full": 5}
    bob.machine.start(5, NOW)
    bob.machine.expire(NOW + 29 * 86400)
    assert len(bob.machine.store.pending) == hs.MAX_PENDING and bob.machine.store.requested
    bob.machine.expire(NOW + 31 * 86400)
    assert not bob.machine.store.pending and not bob.machine.store.requested


def test_a_crowd_of_requests_neither_drives_out_nor_keeps_out(bob: Person) -> None:
    """Hundreds of nodes, however often they ask: who asked early is there, and who asks late is seen."""
    crowd = range(1000, 1600)
    pending = bob.machine.store.pending
    bob.machine.relayed_request(10, "early", NOW)
    for at, node in enumerate([*crowd, *crowd]):
        bob.machine.relayed_request(node, "x", NOW + at)
    assert 10 in pending
    bob.machine.relayed_request(11, "late", NOW + 2000)
    assert 11 in pending
    for at, node in enumerate([*crowd, *crowd]):  # those that gave way have had their turn, the others are in the list
        bob.machine.relayed_request(node, "x", NOW + 2000 + at)
    assert 10 in pending and 11 in pending and len(pending) == hs.MAX_PENDING
    assert bob.machine.reject(crowd[0], "")
    bob.machine.relayed_request(crowd[-1], "x", NOW + 5000)  # there is room again, for everybody
    assert crowd[-1] in pending


def test_our_requests_survive_a_restart(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "trust.json")
    first = HandshakeMachine(store)
    first.start(2, NOW)
    assert first.changed
    store.save()
    second = HandshakeMachine(TrustStore.load(tmp_path / "trust.json"))
    assert without_emits(second.relayed_response(2, True, NOW)) == [Grant(2, b""), Report(2)]


def test_justification_is_cut_to_what_may_be_shown(ann: Person, bob: Person) -> None:
    bob.hears(ann, ann.message(REQUEST, 2, justification="a\x1b[31m\n" + "ü" * 2000))
    text = bob.machine.store.pending[1].justification
    assert text.startswith("a[31mü") and len(text.encode()) <= 1024


def test_nothing_is_done_for_approve_or_reject_of_a_stranger(bob: Person) -> None:
    assert bob.machine.approve(9, NOW) == []
    assert bob.machine.reject(9, "x") == []
    with pytest.raises(PilotError):
        bob.machine.start(2, NOW)  # oneself


def test_recorded_messages() -> None:
    data = json.loads(VECTORS.read_text())
    assert data["handshake_messages"]
    for row in data["handshake_messages"]:
        msg = HandshakeMessage.parse(row["json"].encode())
        assert msg == HandshakeMessage(**row["message"])
        assert msg.encode().decode() == row["json"]
        assert msg.replay_hash().hex() == row["replay_hash_sha256"]
        assert msg.verify(int(row["signed_string"].rsplit(":", 1)[1]))
        assert not msg.verify(77)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        HandshakeMessage.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)  # fmt: skip


@given(st.fixed_dictionaries({}, optional={
    "type": st.sampled_from([REQUEST, ACCEPT, "x"]) | json_values, "node_id": st.just(1) | json_values,
    "public_key": json_values, "justification": json_values, "signature": json_values, "timestamp": st.just(NOW) | json_values,
}))  # fmt: skip
def test_any_object_is_dropped_or_handled(obj: dict[str, Any]) -> None:
    bob = Person(2)
    bob.machine.check(json.dumps(obj).encode(), 1, NOW)
    assert not bob.machine.store.trusted


@given(st.text(), st.text())
def test_encode_and_parse_agree(justification: str, reason: str) -> None:
    msg = HandshakeMessage(REQUEST, 5, "", justification, "", reason, NOW)
    again = HandshakeMessage.parse(msg.encode())
    assert again.encode() == msg.encode()
    assert json.loads(msg.encode())["reason"] == reason


def test_a_trusted_node_takes_another_key(ann: Person, bob: Person) -> None:
    """It says so in its own session and the registry agrees; from then on the old key counts for nothing."""
    bob.hears(ann, ann.message(REQUEST, 2))
    bob.machine.approve(1, NOW)
    renewed = Person(7)
    accept = HandshakeMessage.build(ACCEPT, 1, 2, renewed.public, renewed.key.sign, timestamp=NOW)
    later = HandshakeMessage.build(ACCEPT, 1, 2, renewed.public, renewed.key.sign, timestamp=NOW + 1)
    assert events(bob.hears(ann, accept, peer_key=ann.public)) == ["security.key_mismatch"]  # the registry does not say so
    assert events(bob.hears(ann, later, peer_key=renewed.public)) == ["trust.key_replaced"]
    assert bob.machine.store.trusted[1].public_key == renewed.public
    old = ann.message(REVOKE, 2)
    assert events(bob.hears(ann, old, peer_key=ann.public)) == ["security.key_mismatch"]
    assert bob.trusts(ann)
