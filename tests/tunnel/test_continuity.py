"""A new identity key is believed when the pinned one vouches for it and the registry has it; neither alone will do."""

from __future__ import annotations

import pytest
from test_exchange import ADDR_B, CAPS, B, Identity, Side

from pilot.tunnel import actions as act
from pilot.tunnel.continuity import hand_over, leads, sound
from pilot.wire.frames import MAX_LINKS, Capabilities, KeyLink, build_pila, parse_pila

KEYS = [Identity(100 + i) for i in range(8)]
PUBLIC = [key.public_key for key in KEYS]


def chain(first: int, last: int, node: int = B) -> tuple[KeyLink, ...]:
    return tuple(hand_over(KEYS[i], node, PUBLIC[i + 1]) for i in range(first, last))


def announced(key: int, links: tuple[KeyLink, ...], seed: int = 7) -> bytes:
    return build_pila(B, bytes([9]) + bytes(30) + bytes([seed]), KEYS[key], CAPS, links)


def test_a_chain_leads_from_the_pinned_key_to_the_offered_one() -> None:
    assert leads(chain(0, 1), B, PUBLIC[0], PUBLIC[1])
    for start in range(4):
        assert leads(chain(0, 4), B, PUBLIC[start], PUBLIC[4]), "whichever change the peer missed first"
    assert leads(chain(0, 6), B, PUBLIC[6 - MAX_LINKS], PUBLIC[6])
    assert not leads(chain(0, 6), B, PUBLIC[0], PUBLIC[6]), "too many changes ago"


@pytest.mark.parametrize("links", [
    (), chain(0, 2), chain(1, 3), chain(0, 3, node=B + 1), chain(0, 3)[:-1], chain(0, 3)[1:], chain(0, 3)[::-1],
    (chain(0, 1)[0], chain(2, 3)[0]), (KeyLink(PUBLIC[0], bytes(64)),),
    (*chain(0, 2), KeyLink(PUBLIC[2], chain(0, 1)[0].signature)), (KeyLink(PUBLIC[0], chain(1, 2)[0].signature), *chain(1, 3)),
])  # fmt: skip
def test_a_chain_that_does_not(links: tuple[KeyLink, ...]) -> None:
    assert not leads(links, B, PUBLIC[0], PUBLIC[3])


def test_what_is_left_of_a_chain() -> None:
    assert sound(chain(0, 3), B, PUBLIC[3]) == chain(0, 3)
    assert sound(chain(0, 6), B, PUBLIC[6]) == chain(2, 6), "the newest"
    assert sound(chain(0, 3), B, PUBLIC[2]) == () and sound(chain(0, 3), B + 1, PUBLIC[3]) == ()
    broken = (KeyLink(PUBLIC[0], bytes(64)), *chain(1, 3))
    assert sound(broken, B, PUBLIC[3]) == chain(1, 3)


def test_links_travel_in_the_trailer() -> None:
    pila = parse_pila(announced(4, chain(0, 4)))
    assert pila and pila.verify() and pila.caps == CAPS and pila.links == chain(0, 4) and len(pila.frame) < 700
    pila = parse_pila(announced(6, chain(0, 6)))
    assert pila and pila.links == chain(2, 6)
    assert (plain := parse_pila(build_pila(B, bytes(32), KEYS[0], CAPS))) and plain.links == () and plain.caps == CAPS
    frame = bytearray(announced(1, chain(0, 1)))
    frame[180] ^= 1
    pila = parse_pila(bytes(frame))
    assert pila and pila.verify() and pila.links == () and pila.caps is None, "the trailer is not what the key has signed"
    assert (bare := parse_pila(build_pila(B, bytes(32), KEYS[0], Capabilities(), chain(0, 0)))) and bare.links == ()


def test_the_exchange_tells_and_changes_nothing() -> None:
    a = Side(0xA001, 1)
    a.machine.pin(B, PUBLIC[0])
    for frame in (announced(1, ()), announced(1, chain(0, 1, node=9)), announced(2, chain(0, 1)), announced(7, chain(0, 1))):
        a.machine.frame(frame, ADDR_B, False, 0, 1.0)
    assert not a.take(act.KeyVouched) and len(a.take(act.KeyRefused)) == 1
    a.machine.frame(announced(2, chain(0, 2)), ADDR_B, False, 0, 2.0)
    assert a.take(act.KeyVouched) == [act.KeyVouched(B, PUBLIC[0], PUBLIC[2])]
    assert a.machine.known_key(B) == PUBLIC[0] and not a.take(act.InstallKey)
    a.machine.frame(announced(2, chain(0, 2)), ADDR_B, False, 0, 3.0)
    assert not a.take(act.KeyVouched), "the registry is not asked for every frame"
    a.machine.pin(B, PUBLIC[2])
    a.machine.frame(announced(2, chain(0, 2), seed=8), ADDR_B, False, 0, 4.0)
    assert a.take(act.InstallKey)
    a.machine.frame(announced(1, chain(0, 1)), ADDR_B, False, 0, 20.0)
    assert not a.take(act.KeyVouched), "the way back leads nowhere"


def test_a_node_announces_its_chain_and_only_that_of_its_number() -> None:
    b = Side(B, 1)
    b.identity = b.machine._identity = KEYS[2]  # type: ignore[assignment]
    b.machine.identity_changed(chain(0, 2))
    pila = parse_pila(b.pila())
    assert pila and pila.links == chain(0, 2)
    short = parse_pila(b.machine.announcement)
    assert short and short.links == () and short.x25519 == pila.x25519
    b.machine.set_node(B + 1)
    pila = parse_pila(b.pila())
    assert pila and pila.links == ()
