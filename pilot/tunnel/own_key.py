"""The process's X25519 key: never written anywhere, replaced only by rotation (transport.md 3.2, 9.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from pilot._core import AgreementKey
from pilot.tunnel.continuity import sound
from pilot.wire.frames import Capabilities, KeyLink, build_pila, build_pilk
from pilot.wire.keys import tunnel_key, tunnel_key_era1


class Identity(Protocol):
    """The node's Ed25519 identity."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64 bytes, plain Ed25519."""


class OwnKey:
    """One X25519 key pair and the two frames that announce it. Frames are built once: signing is the dear
    part."""

    def __init__(
        self, identity: Identity, node: int, private: bytes, caps: Capabilities, links: Sequence[KeyLink] = ()
    ) -> None:
        """private: 32 random bytes. node: own number, not 0. links: former identities."""
        self._private = AgreementKey(private)
        self.public = self._private.public_key
        chain = sound(links, node, identity.public_key)
        self.announcement = build_pila(node, self.public, identity, caps)  # a registry takes no longer ones
        self.pila = build_pila(node, self.public, identity, caps, chain) if chain else self.announcement
        self.pilk = build_pilk(node, self.public)

    def agree(self, peer_public: bytes) -> tuple[bytes, int]:
        """Session key (32 bytes, era 2) and key id for a peer's X25519 public key.

        Raises ValueError for a low-order point, whose shared secret would be known to everybody.
        """
        key = tunnel_key(self._private, peer_public)
        digest = hashlib.sha256(peer_public + self.public).digest()
        return key, int.from_bytes(digest[:8], "big")

    def agree_era1(self, peer_public: bytes) -> bytes:
        """The key of the same session in era 1 (32 bytes), for a peer whose key has passed `agree`."""
        return tunnel_key_era1(self._private, peer_public)
