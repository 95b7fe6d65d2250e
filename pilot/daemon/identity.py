"""The node's Ed25519 identity and its file (transport.md section 8)."""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.errors import PilotError
from pilot.files import write_atomic

MAX_BYTES = 64 << 10


class NodeIdentity:
    """An Ed25519 key pair. It has no text form: nothing can log it by accident."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> NodeIdentity:
        """A fresh identity."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public_text(self) -> str:
        """The public key as the registry takes it: base64."""
        return base64.b64encode(self.public_key).decode()

    def sign(self, message: bytes) -> bytes:
        """64 bytes, plain Ed25519."""
        return self._private.sign(message)

    def to_json(self) -> str:
        """Text of the identity file. It holds the private key."""
        both = self._private.private_bytes_raw() + self.public_key
        fields = {"private_key": base64.b64encode(both).decode(), "public_key": self.public_text}
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, text: bytes) -> NodeIdentity:
        """Reads the text of an identity file. ValueError says what is wrong with it, without quoting it."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        both = _decode(data, "private_key", 64)
        public = _decode(data, "public_key", 32)
        identity = cls(Ed25519PrivateKey.from_private_bytes(both[:32]))
        if identity.public_key != public or both[32:] != public:
            raise ValueError("public_key does not belong to private_key")
        return identity

    def save(self, path: Path) -> None:
        """Writes the file, 0600, whole or not at all; missing directories are made 0700. PilotError."""
        try:
            write_atomic(path, self.to_json().encode())
        except OSError as error:
            raise PilotError(
                "internal", f"identity {path} cannot be written: {error.strerror}", "choose another -identity"
            ) from None


def load_or_create(path: Path) -> tuple[NodeIdentity, bool]:
    """The identity in `path`, made if the file is missing; and whether it was made now.

    Raises PilotError: permission_denied (file readable by others, or not by us), internal (damaged file:
    it is never overwritten).
    """
    try:
        text = _read(path)
    except FileNotFoundError:
        identity = NodeIdentity.generate()
        identity.save(path)
        return identity, True
    except OSError as error:
        raise PilotError("permission_denied", f"identity {path}: {error.strerror}") from None
    try:
        return NodeIdentity.from_json(text), False
    except ValueError as error:
        raise PilotError(
            "internal",
            f"identity {path} is damaged: {error}",
            "restore it from a backup, or move it away to start with a new identity and address",
        ) from None


def _read(path: Path) -> bytes:
    """The file's bytes, a symlink followed. The mode is checked on the open file, not on its name."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise PilotError("permission_denied", f"identity {path} is not a regular file")
        if mode & 0o077:
            raise PilotError(
                "permission_denied",
                f"identity {path} is open to other users (mode {stat.S_IMODE(mode):04o})",
                f"chmod 600 {path}",
            )
        return file.read(MAX_BYTES)


def _decode(data: dict[str, Any], name: str, size: int) -> bytes:
    value = data.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64") from None
    if len(raw) != size:
        raise ValueError(f"{name} has {len(raw)} bytes instead of {size}")
    return raw
