"""Tunnel frames: PILA with our capability trailer, PILK, PILS, PILT, PILP (transport.md 3, docs/wire-extensions.md 1)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from pilot.wire.errors import WireError
from pilot.wire.keys import KEY_SIZE, verify_signature

PILT = b"PILT"  # plaintext packet; refused wherever encryption is on
PILS = b"PILS"  # encrypted packet
PILK = b"PILK"  # unauthenticated key, in practice the request for a PILA
PILA = b"PILA"  # signed key
PILP = b"PILP"  # NAT punch: the whole frame

PILK_SIZE = 40
PILA_SIZE = 136
PILS_HEAD = 20  # magic, node, nonce
PILS_OVERHEAD = 36  # head and tag
TAG_SIZE = 16
SIGNATURE_SIZE = 64
MAX_NODE = 0xFFFFFFFF

MIN_SEGMENT = 1152
MAX_SEGMENT = 65000
MAX_CAPS_BODY = 512
MAX_LINKS = 4  # of a chain of identity keys: what fits beside the capabilities

_TRAILER = b"\x00\x00PX\x01"  # the two zeros are "nothing" to the May-2026 fork
_TRAILER_HEAD = 7
_TRAILER_DOMAIN = b"pilot-caps-v1"
_CAP_FEATURES, _CAP_MAX_SEGMENT, _CAP_REORDER, _CAP_NAT = 1, 2, 3, 6
_CAP_SIZE = {_CAP_FEATURES: 4, _CAP_MAX_SEGMENT: 2, _CAP_REORDER: 4, _CAP_NAT: 1}
_KEY_LINK = 7
_LINK_SIZE = KEY_SIZE + 64
_RECORD_SIZE = {**_CAP_SIZE, _KEY_LINK: _LINK_SIZE}


class FrameKind(enum.IntEnum):
    """What a datagram is by its first bytes. Values as in csrc/wire.h."""

    UNKNOWN = 0
    BEACON = 1
    PILT = 2
    PILS = 3
    PILK = 4
    PILA = 5
    PILP = 6


_KINDS = {
    PILT: FrameKind.PILT,
    PILS: FrameKind.PILS,
    PILK: FrameKind.PILK,
    PILA: FrameKind.PILA,
    PILP: FrameKind.PILP,
}


def classify(data: bytes) -> FrameKind:
    """The kind of a datagram; says nothing about whether the rest of it is well formed."""
    if data and data[0] < 0x10:
        return FrameKind.BEACON
    return _KINDS.get(bytes(data[:4]), FrameKind.UNKNOWN)


class Signer(Protocol):
    """The holder of an Ed25519 identity."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64 bytes, plain Ed25519."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a node of our own kind can take. 0 = not announced.

    features: bit 0 NOCRC, bit 1 STREAM_OPTS. max_segment: bytes, 1152..65000. reorder_segments: out-of-order segments
    held per stream. nat: class of the own NAT, docs/wire-extensions.md 1.
    """

    features: int = 0
    max_segment: int = 0
    reorder_segments: int = 0
    nat: int = 0

    def pack(self) -> bytes:
        """The records of the trailer's body. Raises WireError for values that do not fit."""
        if self.max_segment and not MIN_SEGMENT <= self.max_segment <= MAX_SEGMENT:
            raise WireError("max_segment is not 1152..65000")
        body = b""
        values = (self.features, self.max_segment, self.reorder_segments, self.nat)
        for kind, value in zip(_CAP_SIZE, values, strict=True):
            size = _CAP_SIZE[kind]
            if not 0 <= value < 1 << 8 * size:
                raise WireError("capability out of range")
            if value:
                body += bytes((kind, size)) + value.to_bytes(size, "big")
        return body

    @staticmethod
    def unpack(body: bytes) -> Capabilities | None:
        """From the records of a trailer; None if a record is cut off, has the wrong length or an impossible value.

        Unknown records are skipped; of a repeated one the last counts.
        """
        records = _records(body)
        if records is None:
            return None
        values = dict.fromkeys(_CAP_SIZE, 0)
        values.update((kind, int.from_bytes(value, "big")) for kind, value in records if kind in values)
        segment = values[_CAP_MAX_SEGMENT]
        if segment and not MIN_SEGMENT <= segment <= MAX_SEGMENT:
            return None
        return Capabilities(values[_CAP_FEATURES], segment, values[_CAP_REORDER], values[_CAP_NAT])


@dataclass(frozen=True, slots=True)
class KeyLink:
    """A former identity key (32 bytes) and its signature (64 bytes) that hands over to the next one (pilot.tunnel.continuity)."""

    old: bytes
    signature: bytes


@dataclass(frozen=True)
class Pila:
    """A signed key frame as it came, nothing judged yet. `frame` is the datagram."""

    node: int
    x25519: bytes
    ed25519: bytes
    signature: bytes
    frame: bytes

    def verify(self) -> bool:
        """The signature is right under `ed25519`, which the caller has compared with the key it knows."""
        return verify_signature(self.ed25519, self.signature, _signed_part(self.frame))

    @property
    def caps(self) -> Capabilities | None:
        """What the trailer announces; None without a trailer or if anything is wrong with it. Ask after `verify`."""
        return None if self._body is None else Capabilities.unpack(self._body)

    @property
    def links(self) -> tuple[KeyLink, ...]:
        """The chain of former identities in the trailer, oldest first, none of it checked. Ask after `verify`."""
        records = _records(self._body or b"") or []
        chain = [KeyLink(value[:KEY_SIZE], value[KEY_SIZE:]) for kind, value in records if kind == _KEY_LINK]
        return tuple(chain[-MAX_LINKS:])

    @cached_property
    def _body(self) -> bytes | None:
        """The records of the trailer; None without one or if it is not what the holder of `ed25519` has signed."""
        frame = self.frame
        body_at = PILA_SIZE + _TRAILER_HEAD
        if len(frame) < body_at or not frame.startswith(_TRAILER, PILA_SIZE):
            return None
        body_end = body_at + int.from_bytes(frame[body_at - 2 : body_at], "big")
        if body_end - body_at > MAX_CAPS_BODY:
            return None
        signature = frame[body_end : body_end + SIGNATURE_SIZE]
        if not verify_signature(self.ed25519, signature, _TRAILER_DOMAIN + frame[:body_end]):
            return None
        return frame[body_at:body_end]


@dataclass(frozen=True, slots=True)
class Pilk:
    """An unsigned key frame."""

    node: int
    x25519: bytes


def build_pila(
    node: int, x25519: bytes, identity: Signer, caps: Capabilities | None = None, links: Sequence[KeyLink] = ()
) -> bytes:
    """A PILA of `node` (0..2^32-1) for the X25519 public key (32 bytes), 136 bytes, plus the trailer with `caps`.

    links: former identities, oldest first; the last MAX_LINKS go into the trailer.
    Raises WireError for a key of another length and for capabilities out of range.
    """
    head = PILA + _node_and_key(node, x25519)
    frame = head + identity.public_key + identity.sign(_signed_part(head))
    if caps is None:
        return frame
    body = caps.pack() + b"".join(_pack_link(link) for link in links[-MAX_LINKS:])
    frame += _TRAILER + len(body).to_bytes(2, "big") + body
    return frame + identity.sign(_TRAILER_DOMAIN + frame)


def parse_pila(data: bytes) -> Pila | None:
    """A PILA, None if it is something else or shorter than 136 bytes. Bytes after the trailer are ignored."""
    if len(data) < PILA_SIZE or data[:4] != PILA:
        return None
    node = int.from_bytes(data[4:8], "big")
    return Pila(node, data[8:40], data[40:72], data[72:136], data)


def build_pilk(node: int, x25519: bytes) -> bytes:
    """A PILK, 40 bytes. Raises WireError for a key of another length."""
    return PILK + _node_and_key(node, x25519)


def parse_pilk(data: bytes) -> Pilk | None:
    """A PILK, None if it is something else or shorter than 40 bytes. Further bytes are ignored."""
    if len(data) < PILK_SIZE or data[:4] != PILK:
        return None
    return Pilk(int.from_bytes(data[4:8], "big"), data[8:40])


@dataclass(frozen=True, slots=True)
class Pils:
    """The visible part of an encrypted frame. body: ciphertext and tag."""

    node: int
    prefix: int
    counter: int
    body: bytes

    @property
    def nonce(self) -> bytes:
        """12 bytes: prefix, counter."""
        return self.prefix.to_bytes(4, "big") + self.counter.to_bytes(8, "big")


def parse_pils(data: bytes) -> Pils | None:
    """A PILS, None if it is something else or shorter than 36 bytes."""
    if len(data) < PILS_OVERHEAD or data[:4] != PILS:
        return None
    node, prefix = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
    return Pils(node, prefix, int.from_bytes(data[12:20], "big"), data[20:])


def seal_pils(key: bytes, node: int, prefix: int, counter: int, packet: bytes, era: int = 2) -> bytes:
    """Encrypts `packet` under a session key (32 bytes) as frame `counter` (from 1) of the sender `node`,
    which era 1 does not bind.

    The pair of prefix and counter must never come twice under one key. Raises WireError for values out of range.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if not (0 <= node <= MAX_NODE and 0 <= prefix <= MAX_NODE and 0 < counter < 1 << 64):
        raise WireError("node, prefix or counter out of range")
    sender, nonce = node.to_bytes(4, "big"), prefix.to_bytes(4, "big") + counter.to_bytes(8, "big")
    return PILS + sender + nonce + AESGCM(key).encrypt(nonce, packet, sender if era == 2 else None)


def open_pils(key: bytes, frame: bytes, era: int = 2) -> bytes | None:
    """The packet inside a PILS; None if it is none or does not authenticate under `key` (32 bytes, of that era)."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    pils = parse_pils(frame)
    if pils is None:
        return None
    try:
        return AESGCM(key).decrypt(pils.nonce, pils.body, frame[4:8] if era == 2 else None)
    except InvalidTag:
        return None


def _records(body: bytes) -> list[tuple[int, bytes]] | None:
    """Type and value of each record of a trailer; None if one is cut off or has the wrong length."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(body):
        kind = body[at]
        size = body[at + 1] if at + 1 < len(body) else len(body)
        value = body[at + 2 : at + 2 + size]
        if len(value) != size or _RECORD_SIZE.get(kind, size) != size:
            return None
        found.append((kind, value))
        at += 2 + size
    return found


def _pack_link(link: KeyLink) -> bytes:
    if len(link.old) != KEY_SIZE or len(link.signature) != SIGNATURE_SIZE:
        raise WireError("key link of a wrong length")
    return bytes((_KEY_LINK, _LINK_SIZE)) + link.old + link.signature


def _signed_part(frame: bytes) -> bytes:
    return b"auth" + frame[4:40]


def _node_and_key(node: int, x25519: bytes) -> bytes:
    if not 0 <= node <= MAX_NODE:
        raise WireError("node number out of range")
    if len(x25519) != KEY_SIZE:
        raise WireError("X25519 key is not 32 bytes")
    return node.to_bytes(4, "big") + x25519
