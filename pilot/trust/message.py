"""The one message of the handshake: a JSON object with seven keys in fixed order (services.md section 2)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pilot._core import verify

MAX_BYTES = 64 << 10
TYPES = frozenset({"handshake_request", "handshake_accept", "handshake_reject", "handshake_revoke"})
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class MessageError(ValueError):
    """The bytes are no handshake message."""


def signed_text(sender: int, receiver: int) -> bytes:
    """What every type of message, and a relayed request, is signed over."""
    return b"handshake:%d:%d" % (sender, receiver)


@dataclass(frozen=True, slots=True)
class HandshakeMessage:
    """public_key and signature: standard base64. timestamp: Unix seconds."""

    type: str
    node_id: int
    public_key: str
    justification: str
    signature: str
    reason: str
    timestamp: int

    @property
    def key(self) -> bytes:
        """The Ed25519 key, 32 bytes; b"" if the field is not one."""
        return _base64(self.public_key, 32)

    def encode(self) -> bytes:
        """Compact JSON in field order, escaped as the published daemons do: the bytes on the wire and of
        the replay hash."""
        fields = (
            ("type", self.type),
            ("node_id", self.node_id),
            ("public_key", self.public_key),
            ("justification", self.justification),
            ("signature", self.signature),
            ("reason", self.reason),
            ("timestamp", self.timestamp),
        )
        inner = ",".join(f'"{k}":{json.dumps(v, ensure_ascii=False).translate(_ESCAPES)}' for k, v in fields)
        return f"{{{inner}}}".encode(errors="replace")

    def replay_hash(self) -> bytes:
        """SHA-256 of the encoded message."""
        return hashlib.sha256(self.encode()).digest()

    def verify(self, receiver: int) -> bool:
        """The signature is by the key in the message and meant for `receiver`."""
        key, signature = self.key, _base64(self.signature, 64)
        return verify(key, signature, signed_text(self.node_id, receiver))

    @classmethod
    def parse(cls, data: bytes) -> HandshakeMessage:
        """Raises MessageError. Missing texts read as "", as the published daemons do."""
        if len(data) > MAX_BYTES:
            raise MessageError("too long")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError):
            raise MessageError("not JSON") from None
        kind = raw.get("type") if isinstance(raw, dict) else None
        if not isinstance(kind, str) or kind not in TYPES:
            raise MessageError("no handshake")
        node, timestamp = raw.get("node_id"), raw.get("timestamp")
        if type(node) is not int or not 0 <= node < 1 << 32:
            raise MessageError("node_id")
        if type(timestamp) is not int or abs(timestamp) >= 1 << 62:
            raise MessageError("timestamp")
        names = ("public_key", "justification", "signature", "reason")
        texts: dict[str, Any] = {name: raw.get(name, "") for name in names}
        if not all(isinstance(t, str) for t in texts.values()):
            raise MessageError("a text is not a string")
        return cls(type=kind, node_id=node, timestamp=timestamp, **texts)

    @classmethod
    def build(
        cls,
        type_: str,
        sender: int,
        receiver: int,
        public_key: bytes,
        sign: Callable[[bytes], bytes],
        *,
        timestamp: int,
        justification: str = "",
        reason: str = "",
    ) -> HandshakeMessage:
        """A signed message. public_key: 32 bytes; sign: plain Ed25519, 64 bytes."""
        return cls(
            type=type_,
            node_id=sender,
            public_key=base64.b64encode(public_key).decode(),
            justification=justification,
            signature=base64.b64encode(sign(signed_text(sender, receiver))).decode(),
            reason=reason,
            timestamp=timestamp,
        )


def _base64(text: str, size: int) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if len(raw) == size else b""


def clock_ahead(data: bytes, sender: int, receiver: int, now: float) -> float:
    """Seconds by which the clock of `sender` is ahead of `now` (negative: behind) by a message that is its own; 0 for others."""
    try:
        msg = HandshakeMessage.parse(data)
    except MessageError:
        return 0.0
    return msg.timestamp - now if msg.node_id == sender and msg.verify(receiver) else 0.0
