"""Typed surface of the private keys. Semantics: csrc/keys.h."""

class Secret:
    """A private key, wiped when it goes. It has no text form."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
    def raw(self) -> bytes:
        """The 32 bytes it was made of."""

class SigningKey(Secret):
    """Ed25519."""

    def __init__(self, raw: bytes) -> None:
        """raw: 32 bytes, else ValueError."""
    def sign(self, message: bytes) -> bytes:
        """64 bytes, plain Ed25519."""

class AgreementKey(Secret):
    """X25519."""

    def __init__(self, raw: bytes) -> None:
        """raw: 32 bytes, else ValueError."""
    def agree(self, peer: bytes) -> bytes:
        """The shared secret, 32 bytes. ValueError if `peer` is not 32 bytes, CoreError if its point has low order."""

def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    """Plain Ed25519. False for anything wrong, keys and signatures of other lengths included."""
