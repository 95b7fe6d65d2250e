"""State that rests, as one bytes object (msgpack). It never leaves the process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec.msgpack

Plain = bytes | str | int | float | tuple[Any, ...] | None

NEVER = float("-inf")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple).decode


def pack(state: tuple[Plain, ...]) -> bytes:
    """For `unpack`. Integers have 64 bits at most."""
    return bytes(memoryview(_encode(state)))  # a copy: the original was cut from a larger block and leaves a hole


def unpack(data: bytes | memoryview) -> tuple[Any, ...]:
    """What was packed; the tuples in it have become lists."""
    return _decode(data)


def short(times: Iterable[float]) -> tuple[float | None, ...]:
    """Times as they are packed: what never happened takes one byte, not nine."""
    return tuple(None if t == NEVER else t for t in times)


def long(times: Iterable[float | None]) -> tuple[float, ...]:
    """The reverse of `short`."""
    return tuple(NEVER if t is None else t for t in times)
