"""Fields that the frames of data exchange and event stream are made of (services.md 3, 4): counted bytes, texts, offsets.

Numbers are big-endian. What is cut short or does not fit is a WireError.
"""

from __future__ import annotations

from pilot.wire.errors import WireError


def counted(raw: bytes) -> bytes:
    """`length(2) bytes`. Raises OverflowError above 65535 bytes: the callers allow fewer."""
    return len(raw).to_bytes(2, "big") + raw


def split_counted(payload: bytes, what: str) -> tuple[bytes, int]:
    """The bytes behind a 2-byte length, and where they end. what: names them in the error. Raises WireError."""
    end = 2 + int.from_bytes(payload[:2], "big")
    if len(payload) < max(2, end):
        raise WireError(f"{what}: short")
    return payload[2:end], end


def utf8(raw: bytes, what: str) -> str:
    """The text. Raises WireError."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise WireError(f"{what} is not UTF-8") from None


def u64(value: int) -> bytes:
    """An offset in a file, 8 bytes. Raises WireError."""
    try:
        return value.to_bytes(8, "big")
    except OverflowError:
        raise WireError("offset out of range") from None
