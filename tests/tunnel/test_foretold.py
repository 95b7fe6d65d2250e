"""Keys that the registry told before the peer did (docs/wire-extensions.md 9), on virtual time."""

from __future__ import annotations

import pytest
from test_exchange import ADDR_A, ADDR_B, CAPS, A, B, Side

from pilot.tunnel import actions as act
from pilot.wire.frames import build_pila


@pytest.fixture
def a() -> Side:
    side = Side(A, 1)
    side.machine.pin(B, Side(B, 2).identity.public_key)
    return side


@pytest.fixture
def b() -> Side:
    side = Side(B, 2)
    side.machine.pin(A, Side(A, 1).identity.public_key)
    return side


def test_the_dialler_needs_not_wait_for_the_peer(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    (pila,) = a.frames()
    a.machine.foretold(B, b.pila(), 0.02)
    (early,) = a.take(act.InstallKey)
    assert early.foretold and not early.pending and not early.direct and early.caps == CAPS
    b.machine.frame(pila, ADDR_A, False, 0, 0.02)
    (installed,) = b.take(act.InstallKey)
    assert installed.key == early.key
    b.machine.proved(A, installed.key_id, 0.04)  # what A sent under it
    (reply,) = b.frames()
    a.machine.proved(B, early.key_id, 0.06)
    a.machine.frame(reply, ADDR_B, False, 0, 0.06)
    (said,) = a.take(act.InstallKey)
    assert said.key_id == early.key_id and not said.foretold and said.direct
    assert not a.frames() and a.machine.deadline() is None and a.machine.is_proved(B)


def test_the_peers_own_word_comes_first(a: Side, b: Side) -> None:
    """Nothing was proved yet: the data plane hears that the key is certain, and the peer gets our PILA as ever."""
    a.machine.want(B, 0.0)
    a.frames()
    a.machine.foretold(B, b.pila(), 0.02)
    (early,) = a.take(act.InstallKey)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 0.04)
    (said,) = a.take(act.InstallKey)
    assert (said.key_id, said.foretold, said.anew) == (early.key_id, False, False)
    assert a.frames() == [a.pila()]
    a.machine.frame(b.pila(), ADDR_B, False, 0, 0.05)
    assert not a.take(act.InstallKey)


def test_a_peer_that_has_started_anew_is_believed_at_once(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    a.machine.foretold(B, b.pila(), 0.02)
    (early,) = a.take(act.InstallKey)
    anew = Side(B, 2, process=1)
    a.machine.frame(anew.pila(), ADDR_B, False, 0, 0.04)
    (installed,) = a.take(act.InstallKey)
    assert installed.anew and not installed.pending and not installed.foretold and installed.key_id != early.key_id


def test_a_foretold_key_in_vain_is_dropped_and_not_taken_twice(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    a.machine.foretold(B, b.pila(), 0.02)
    assert a.take(act.InstallKey)
    a.machine.tick(1.0)
    assert [d.node for d in a.take(act.DropKey)] == [B] and not a.machine.has_session(B)
    assert [f[:4] for f in a.frames()] == [b"PILA", b"PILK"], "the exchange goes on as without it"
    a.machine.foretold(B, b.pila(), 1.1)
    assert not a.take(act.InstallKey)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 1.5)
    (installed,) = a.take(act.InstallKey)
    assert not installed.foretold and not installed.anew
    while (at := a.machine.deadline()) is not None:
        a.machine.tick(at)
    (gave_up,) = a.take(act.ExchangeGaveUp)
    assert "did not prove" in gave_up.reason


def test_it_is_judged_like_any_other_pila(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    good = b.pila()
    stranger = Side(B, 66)
    other = build_pila(A + 1, bytes(range(32)), b.identity, CAPS)
    weak = build_pila(B, bytes(32), b.identity, CAPS)
    for wrong in (b"", good[:135], good[:90] + bytes((good[90] ^ 1,)) + good[91:], stranger.pila(), other, weak):
        a.machine.foretold(B, wrong, 0.1)
        assert not a.take(act.InstallKey) and not a.machine.has_session(B)
    a.machine.foretold(B, good, 0.1)
    assert len(a.take(act.InstallKey)) == 1


def test_it_needs_a_wish_and_an_identity(b: Side) -> None:
    a = Side(A, 1)
    a.machine.foretold(B, b.pila(), 0.0)
    a.machine.want(B, 0.0)
    a.machine.peer_key(B, b.identity.public_key, 0.1)
    assert not a.take(act.InstallKey), "nobody wanted a session when it came"
    c = Side(A, 1)
    c.machine.want(B, 0.0)
    c.machine.foretold(B, b.pila(), 0.0)
    assert not c.take(act.InstallKey), "nobody is believed before the registry has named the identity"
    c.machine.peer_key(B, b.identity.public_key, 0.1)
    assert len(c.take(act.InstallKey)) == 1


def test_a_live_session_stays(a: Side, b: Side) -> None:
    a.machine.want(B, 0.0)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 0.1)
    assert a.take(act.InstallKey)
    a.machine.foretold(B, Side(B, 2, process=1).pila(), 0.2)
    assert not a.take(act.InstallKey)


def test_a_replaced_key_is_not_foretold_again(a: Side, b: Side) -> None:
    """The registry's copy is older than what the peer itself has proved since."""
    a.machine.want(B, 0.0)
    a.machine.frame(b.pila(), ADDR_B, False, 0, 0.1)
    (first,) = a.take(act.InstallKey)
    a.machine.proved(B, first.key_id, 0.2)
    anew = Side(B, 2, process=1)
    a.machine.frame(anew.pila(), ADDR_B, False, 0, 5.0)
    (second,) = a.take(act.InstallKey)
    a.machine.proved(B, second.key_id, 5.1)
    a.machine.session_gone(B)
    a.machine.want(B, 6.0)
    a.machine.foretold(B, b.pila(), 6.1)
    assert not a.take(act.InstallKey)
    a.machine.foretold(B, anew.pila(), 6.1)
    assert len(a.take(act.InstallKey)) == 1
