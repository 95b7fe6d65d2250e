"""Key exchange and encrypted frames: recorded bytes, signatures, and what an attacker changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot import _core
from pilot.wire import WireError, keys
from pilot.wire.frames import (
    PILA_SIZE,
    Capabilities,
    FrameKind,
    build_pila,
    build_pilk,
    classify,
    open_pils,
    parse_pila,
    parse_pilk,
    parse_pils,
    seal_pils,
)
from pilot.wire.packet import parse_packet

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())
KEYS = VECTORS["keys"]
KEY = bytes.fromhex(KEYS["current_tunnel_key_hex"])
ERA1_KEY = bytes.fromhex(KEYS["baseline_tunnel_key_hex"])


class Identity:
    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def identity(side: str) -> Identity:
    return Identity(bytes.fromhex(KEYS[side]["ed25519_seed_hex"]))


def x25519_public(side: str) -> bytes:
    return bytes.fromhex(KEYS[side]["x25519_public_hex"])


def frame_named(name: str) -> bytes:
    (row,) = [row for row in VECTORS["key_exchange_frames"] if row["name"] == name]
    return bytes.fromhex(row["frame_hex"])


# ---- keys ----


@pytest.mark.parametrize("own,peer", ["ab", "ba"])
def test_both_sides_derive_the_recorded_key(own: str, peer: str) -> None:
    private = _core.AgreementKey(bytes.fromhex(KEYS[own]["x25519_private_hex"]))
    assert private.public_key == x25519_public(own)
    assert keys.shared_secret(private, x25519_public(peer)).hex() == KEYS["x25519_shared_hex"]
    assert keys.tunnel_key(private, x25519_public(peer)) == KEY
    assert keys.tunnel_key_era1(private, x25519_public(peer)) == ERA1_KEY


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31), bytes(31), bytes(33), b""])
def test_low_order_and_malformed_keys_give_no_session(public: bytes) -> None:
    with pytest.raises(WireError):
        keys.tunnel_key(_core.AgreementKey(bytes(range(32))), public)
    with pytest.raises(WireError):
        keys.tunnel_key_era1(_core.AgreementKey(bytes(range(32))), public)


@pytest.mark.parametrize("row", VECTORS["identity"]["signatures"], ids=lambda row: row["message_hex"][:16] or "empty")
def test_signatures(row: dict) -> None:
    message, signature = bytes.fromhex(row["message_hex"]), bytes.fromhex(row["signature_hex"])
    signer = identity(row["signer"])
    assert signer.sign(message) == signature
    assert keys.verify_signature(signer.public_key, signature, message)
    assert not keys.verify_signature(signer.public_key, signature, message + b"x")
    assert not keys.verify_signature(signer.public_key, signature[:63], message)
    assert not keys.verify_signature(signer.public_key[:31], signature, message)


# ---- PILK and PILA ----


@pytest.mark.parametrize("side", ["a", "b"])
def test_key_exchange_frames(side: str) -> None:
    node, public = KEYS[side]["node_id"], x25519_public(side)
    pilk, pila = frame_named(f"pilk_{side}"), frame_named(f"pila_{side}")
    assert build_pilk(node, public) == pilk
    assert build_pila(node, public, identity(side)) == pila
    parsed = parse_pilk(pilk)
    assert parsed and (parsed.node, parsed.x25519) == (node, public)
    signed = parse_pila(pila)
    assert signed and (signed.node, signed.x25519, signed.ed25519) == (node, public, identity(side).public_key)
    assert signed.verify() and signed.caps is None
    assert classify(pilk) is FrameKind.PILK and classify(pila) is FrameKind.PILA


@pytest.mark.parametrize("row", VECTORS["pila_verify"], ids=lambda row: row["name"])
def test_pila_verify(row: dict) -> None:
    pila = parse_pila(bytes.fromhex(row["frame_hex"]))
    registered = bytes.fromhex(row["registry_key_hex"])
    accepted = pila is not None and pila.ed25519 == registered and pila.verify()
    assert accepted == (row["verdict"] == "accept")


@pytest.mark.parametrize("row", VECTORS["pila_trailer_fork"], ids=lambda row: row["name"])
def test_trailer_of_the_fork_is_ignored(row: dict) -> None:
    pila = parse_pila(bytes.fromhex(row["frame_hex"]))
    assert pila and pila.verify() and pila.caps is None


# ---- capability trailer ----

CAPS = Capabilities(features=3, max_segment=8192, reorder_segments=65536)


def trailer_signed(body: bytes, *, head: bytes = b"\0\0PX\1", size: int | None = None) -> bytes:
    frame = frame_named("pila_a") + head + (len(body) if size is None else size).to_bytes(2, "big") + body
    return frame + identity("a").sign(b"pilot-caps-v1" + frame)


def caps_of(frame: bytes) -> Capabilities | None:
    pila = parse_pila(frame)
    assert pila and pila.verify(), "whatever the trailer is, the PILA in front of it stands by itself"
    return pila.caps


def test_trailer_layout() -> None:
    frame = build_pila(KEYS["a"]["node_id"], x25519_public("a"), identity("a"), CAPS)
    assert frame[:PILA_SIZE] == frame_named("pila_a")
    assert frame[136:143].hex() == "0000" "5058" "01" "0010"
    assert frame[143:-64].hex() == "0104" "00000003" "0202" "2000" "0304" "00010000"
    assert caps_of(frame) == CAPS and caps_of(frame + b"later") == CAPS
    assert frame == trailer_signed(CAPS.pack())


def test_a_trailer_that_was_touched_is_ignored_as_a_whole() -> None:
    frame = trailer_signed(CAPS.pack())
    for at in range(PILA_SIZE, len(frame)):
        assert caps_of(frame[:at] + bytes((frame[at] ^ 1,)) + frame[at + 1 :]) is None, at
        assert caps_of(frame[:at]) is None, at


def test_a_trailer_belongs_to_its_frame() -> None:
    """Moved behind another PILA of the same node (here: another X25519 key), it says nothing."""
    other = build_pila(KEYS["a"]["node_id"], x25519_public("b"), identity("a"))
    assert caps_of(other + trailer_signed(CAPS.pack())[PILA_SIZE:]) is None


@pytest.mark.parametrize(
    "body,expected",
    [
        ("", Capabilities()),
        ("0104ffffffff", Capabilities(features=0xFFFFFFFF)),
        ("040101" + "0500" + "fe03010203" + "020204e0", Capabilities(max_segment=1248)),  # unknown and reserved types
        ("01040000000101040000000" + "2", Capabilities(features=2)),
        ("0103000003", None),  # wrong length
        ("0202", None),  # cut off
        ("01", None),
        ("02020001", None),  # 1 byte is no segment
        ("0202ffff", None),
    ],
)
def test_capability_records(body: str, expected: Capabilities | None) -> None:
    assert caps_of(trailer_signed(bytes.fromhex(body))) == expected


def test_trailer_of_another_version_or_size() -> None:
    assert caps_of(trailer_signed(CAPS.pack(), head=b"\0\0PX\2")) is None
    assert caps_of(trailer_signed(CAPS.pack(), head=b"\0\1PX\1")) is None
    longest = b"\x09\xfe" + bytes(254) + b"\x09\xfe" + bytes(254)
    assert len(longest) == 512 and caps_of(trailer_signed(longest)) == Capabilities()
    assert caps_of(trailer_signed(longest + b"\x09\0")) is None
    assert caps_of(trailer_signed(CAPS.pack(), size=600)) is None


@pytest.mark.parametrize("caps", [Capabilities(max_segment=1151), Capabilities(max_segment=65001), Capabilities(1 << 32)])
def test_impossible_capabilities_are_not_sent(caps: Capabilities) -> None:
    with pytest.raises(WireError):
        build_pila(1, bytes(32), identity("a"), caps)


# ---- PILS ----


@pytest.mark.parametrize("row", VECTORS["pils_current"], ids=lambda row: row["name"])
def test_pils(row: dict) -> None:
    frame, packet = bytes.fromhex(row["frame_hex"]), bytes.fromhex(row["plaintext_hex"])
    node, nonce = KEYS[row["sender"]]["node_id"], bytes.fromhex(row["nonce_hex"])
    parsed = parse_pils(frame)
    assert parsed and (parsed.node, parsed.counter, parsed.nonce) == (node, row["counter"], nonce)
    assert open_pils(KEY, frame) == packet
    assert seal_pils(KEY, node, parsed.prefix, row["counter"], packet) == frame
    native = _core.pils_parse(frame)
    assert native == {"node": node, "prefix": parsed.prefix, "counter": row["counter"], "nonce": nonce, "body": parsed.body}
    aad = bytes.fromhex(row["aad_hex"])
    assert _core.aead_open(KEY, nonce, aad, parsed.body) == packet
    assert _core.aead_seal(KEY, nonce, aad, packet) == parsed.body
    assert parse_packet(packet).source.node in (node, 0)


@pytest.mark.parametrize("row", VECTORS["pils_baseline"], ids=lambda row: row["name"])
def test_pils_of_era_1(row: dict) -> None:
    frame, packet = bytes.fromhex(row["frame_hex"]), bytes.fromhex(row["plaintext_hex"])
    node = KEYS[row["sender"]]["node_id"]
    parsed = parse_pils(frame)
    assert parsed and (parsed.node, parsed.counter, parsed.nonce) == (node, row["counter"], bytes.fromhex(row["nonce_hex"]))
    assert open_pils(ERA1_KEY, frame, era=1) == packet
    assert seal_pils(ERA1_KEY, node, parsed.prefix, row["counter"], packet, era=1) == frame
    assert _core.aead_open(ERA1_KEY, parsed.nonce, b"", parsed.body) == packet
    assert _core.aead_seal(ERA1_KEY, parsed.nonce, b"", packet) == parsed.body
    assert open_pils(ERA1_KEY, frame) is None and open_pils(KEY, frame, era=1) is None, "nothing fits both eras"
    assert open_pils(ERA1_KEY, frame[:4] + b"\0\0\0\x09" + frame[8:], era=1) == packet, "the sender outside is bound by nothing"


def test_every_bit_of_pils_is_authenticated() -> None:
    frame = bytes.fromhex(VECTORS["pils_current"][1]["frame_hex"])
    for at in range(len(frame)):
        changed = frame[:at] + bytes((frame[at] ^ 0x10,)) + frame[at + 1 :]
        assert open_pils(KEY, changed) is None, at
        if at >= 4:
            with pytest.raises(_core.CoreError):
                _core.aead_open(KEY, changed[8:20], changed[4:8], changed[20:])
    assert open_pils(bytes(32), frame) is None
    assert all(open_pils(KEY, frame[:end]) is None for end in range(len(frame)))


def test_a_nonce_is_never_zero_or_out_of_range() -> None:
    for node, prefix, counter in ((1, 1, 0), (1, 1, 1 << 64), (1 << 32, 1, 1), (1, 1 << 32, 1)):
        with pytest.raises(WireError):
            seal_pils(KEY, node, prefix, counter, b"")


# ---- the others ----


def test_pilt_and_pilp() -> None:
    frame = bytes.fromhex(VECTORS["pilt"]["frame_hex"])
    assert classify(frame) is FrameKind.PILT
    (packet,) = [row for row in VECTORS["packets"] if row["name"] == VECTORS["pilt"]["inner_packet"]]
    assert frame[4:].hex() == packet["wire_hex"]
    assert classify(bytes.fromhex(VECTORS["pilp"]["frame_hex"])) is FrameKind.PILP
    assert classify(b"PILP\0\0\0\1") is FrameKind.PILP, "a later text appends the node number"


@pytest.mark.parametrize("data", [b"", b"P", b"PIL", b"PILX....", b"PILF....", b"\x10\0\0\0", b"pils"])
def test_anything_else_is_unknown(data: bytes) -> None:
    assert classify(data) is FrameKind.UNKNOWN


@pytest.mark.parametrize("first", range(16))
def test_beacon_messages_are_told_apart(first: int) -> None:
    assert classify(bytes((first,))) is FrameKind.BEACON


# ---- replay ----


def test_replay_window() -> None:
    window = keys.ReplayWindow(VECTORS["replay_window"]["window"])
    for step in VECTORS["replay_window"]["sequence"]:
        assert window.accept(step["counter"]) == step["accept"], step
        assert window.highest == step["highest_after"]


def test_replay_of_retired_prefixes() -> None:
    replay = keys.Replay(256)
    assert not replay.check(1, 0)
    for prefix in range(keys.REPLAY_LIVE + keys.REPLAY_PREFIXES):
        assert replay.check(prefix, 5) and not replay.exhausted
        replay.commit(prefix, 5)
        assert not replay.check(prefix, 5) and replay.check(prefix, 4)
    assert not replay.check(0, 6), "a retired prefix never comes back"
    assert replay.exhausted and not replay.check(1 << 31, 1), "the session must be renewed"
    assert replay.check(keys.REPLAY_PREFIXES, 6), "live prefixes go on"
