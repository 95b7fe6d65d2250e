"""Signature checks, remembered (registry.md section 3).

Ed25519 is deterministic, so a daemon's heartbeat carries the same bytes every time. Whether (key, text, signature) fits is a pure
function: remembering that it did is as safe as computing it again, and saves some 100 µs per heartbeat.
"""

from __future__ import annotations

from collections import OrderedDict

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

REMEMBERED_TEXT = 256  # bytes


class Verifier:
    """Checks Ed25519 signatures; remembers up to `size` that fitted, least recently used out first. Texts above 256 bytes, which
    no daemon signs, are not remembered."""

    def __init__(self, size: int = 16384) -> None:
        self._size = size
        self._good: OrderedDict[tuple[bytes, bytes, bytes], None] = OrderedDict()

    def fits(self, key: bytes, text: bytes, signature: bytes) -> bool:
        """Whether `signature` (any length) is the key's over `text`. key: 32 bytes."""
        if len(signature) != 64:
            return False
        triple = (key, text, signature)
        if triple in self._good:
            self._good.move_to_end(triple)
            return True
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        if len(text) <= REMEMBERED_TEXT:
            self._good[triple] = None
        if len(self._good) > self._size:
            self._good.popitem(last=False)
        return True
