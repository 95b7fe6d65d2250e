"""Reading and judging what a request carries (registry.md section 2 "number rules", hostname and tag rules of section 5).

Pure functions. A value of the wrong type never raises: it reads as 0, "", false or nothing, as the protocol demands.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_NODE = 0xFFFFFFFE  # 0xFFFFFFFF is the broadcast id
MAX_TAGS = 10
RESERVED = frozenset({"localhost", "backbone", "broadcast"})

_HOSTNAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")

Request = Mapping[str, Any]


class Refused(Exception):
    """A request that gets an error reply. reason: the text of registry.md section 2; the sender may see less of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def number(request: Request, name: str, top: int = 0xFFFFFFFF) -> int:
    """An id: fractions truncate; missing, of another type, negative or above `top` reads as 0."""
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float):
        if not math.isfinite(value):
            return 0
        value = int(value)
    return value if 0 < value <= top else 0


def signed_number(request: Request, name: str) -> int | None:
    """A score or step, truncated; None when it is missing or no number."""
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else None
    return value


def text(request: Request, name: str) -> str:
    """A string field, "" when missing or of another type."""
    value = request.get(name)
    return value if isinstance(value, str) else ""


def flag(request: Request, name: str) -> bool:
    """A boolean field; only JSON true is true."""
    return request.get(name) is True


def strings(request: Request, name: str) -> list[str]:
    """The strings of a list field; entries of other types are skipped."""
    value = request.get(name)
    return [v for v in value if isinstance(v, str)] if isinstance(value, list | tuple) else []


def decode_base64(value: str) -> bytes:
    """Standard base64 with padding. ValueError says at which input byte it breaks."""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        bad = re.search(r"[^A-Za-z0-9+/=]", value)
        raise ValueError(f"illegal base64 data at input byte {bad.start() if bad else len(value)}") from None


def public_key(value: str, complaint: str) -> bytes:
    """A 32-byte key from base64. Raises Refused, the reason led by `complaint`."""
    try:
        key = decode_base64(value)
    except ValueError as error:
        raise Refused(f"{complaint}: decode public key: {error}") from None
    if len(key) != 32:
        raise Refused(f"{complaint}: invalid public key size: {len(key)}")
    return key


def hostname_fault(name: str) -> str:
    """What is wrong with a hostname, "" if nothing."""
    if len(name) > 63:
        return "hostname too long (max 63 chars)"
    if not _HOSTNAME.fullmatch(name):
        return "hostname must be lowercase alphanumeric with hyphens, start/end with alphanumeric"
    if name in RESERVED:
        return f'hostname "{name}" is reserved'
    return ""


def clean_tags(tags: list[str]) -> list[str]:
    """Tags without the leading '#', duplicates removed, order kept. Raises Refused."""
    if len(tags) > MAX_TAGS:
        raise Refused(f"too many tags (max {MAX_TAGS})")
    out: list[str] = []
    for tag in tags:
        tag = tag.removeprefix("#")
        if not tag:
            raise Refused("empty tag not allowed")
        if len(tag) > 32:
            raise Refused(f'tag "{tag[:200]}" too long (max 32 chars)')
        if not _HOSTNAME.fullmatch(tag):
            raise Refused(f'tag "{tag}" must be lowercase alphanumeric with hyphens')
        if tag not in out:
            out.append(tag)
    return out
