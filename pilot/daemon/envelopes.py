"""Request envelopes: a node signs the digest of a request for one audience, so that services outside the network can tell which
node asks (ipc.md section 3, Others).

An envelope is the text `pilot-req-v1|NNNNHHHHHHHH|SECONDS|NONCE|SHA256|AUDIENCE`: network and node as 12 hexadecimal digits, Unix
seconds, 16 and 64 hexadecimal digits. Only texts that are built here are signed, never one that a caller gives. Whoever verifies
one must compare digest and audience with the request at hand, and refuse a nonce that it has seen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pilot.errors import PilotError
from pilot.wire.address import Address
from pilot.wire.keys import verify_signature

VERSION = "pilot-req-v1"
MAX_SKEW_S = 300
AUDIENCE_MAX = 256  # characters
_FORM = re.compile(
    rf"{VERSION}\|(?P<network>[0-9a-fA-F]{{4}})(?P<node>[0-9a-fA-F]{{8}})\|(?P<time>[0-9]{{1,12}})\|(?P<nonce>[0-9a-fA-F]{{16}})"
    rf"\|(?P<digest>[0-9a-fA-F]{{64}})\|(?P<audience>[^|\x00-\x1f\x7f]{{1,{AUDIENCE_MAX}}})"
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """time: Unix seconds. nonce, digest: hexadecimal."""

    address: Address
    time: int
    nonce: str
    digest: str
    audience: str

    def __str__(self) -> str:
        signer = f"{self.address.network:04x}{self.address.node:08x}"
        return "|".join((VERSION, signer, str(self.time), self.nonce, self.digest, self.audience))

    @classmethod
    def parse(cls, text: str) -> Envelope | None:
        """None if the text has another form."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        address = Address(int(found["network"], 16), int(found["node"], 16))
        return cls(address, int(found["time"]), found["nonce"], found["digest"], found["audience"])


def requested(fields: Mapping[str, Any], address: Address, now: int, nonce: str) -> Envelope:
    """The envelope that a client asks for with `audience`, `body_hash` or `body_b64`, and perhaps `nonce` (default: that given).

    Raises PilotError(invalid_argument)."""
    digest = str(fields.get("body_hash") or "")
    if not digest:
        try:
            body = base64.b64decode(str(fields.get("body_b64") or ""), validate=True)
        except (binascii.Error, ValueError):
            raise PilotError("invalid_argument", "sign_envelope: body_b64 is not base64") from None
        if "body_b64" not in fields:
            raise PilotError("invalid_argument", "sign_envelope: body_hash or body_b64 required")
        digest = hashlib.sha256(body).hexdigest()
    made = Envelope(address, now, str(fields.get("nonce") or nonce), digest.lower(), str(fields.get("audience") or ""))
    if Envelope.parse(str(made)) != made:
        raise PilotError(
            "invalid_argument",
            f"sign_envelope: want an audience of 1 to {AUDIENCE_MAX} characters without |, 64 hex digits of hash, 16 of nonce",
        )
    return made


def fault(text: str, signature: str, now: int, max_skew_s: int) -> tuple[Envelope | None, str]:
    """(envelope, "") if form and time are well, else what is wrong. Does not look at the signature but for its form."""
    envelope = Envelope.parse(text)
    if envelope is None or _signature(signature) is None:
        return None, "malformed envelope" if envelope is None else "malformed signature"
    if abs(now - envelope.time) > max_skew_s:
        return None, f"timestamp is more than {max_skew_s} s off"
    return envelope, ""


def signed_by(key: bytes, text: str, signature: str) -> bool:
    """Whether the signature (base64) is that of `key` (Ed25519, 32 bytes)."""
    return verify_signature(key, _signature(signature) or b"", text.encode())


def _signature(text: str) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == 64 else None
