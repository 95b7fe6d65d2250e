"""State that rests, as one bytes object. It never leaves the process."""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from typing import Any

Plain = bytes | str | int | float | tuple[Any, ...] | None

NEVER = float("-inf")


def pack(state: tuple[Plain, ...]) -> bytes:
    """For `unpack`."""
    return bytes(memoryview(marshal.dumps(state)))  # a copy: the original was cut from a larger block and leaves a hole


def unpack(data: bytes) -> tuple[Any, ...]:
    """What was packed."""
    state: tuple[Any, ...] = marshal.loads(data)
    return state


def short(times: Iterable[float]) -> tuple[float | None, ...]:
    """Times as they are packed: what never happened takes one byte, not nine."""
    return tuple(None if t == NEVER else t for t in times)


def long(times: Iterable[float | None]) -> tuple[float, ...]:
    """The reverse of `short`."""
    return tuple(NEVER if t is None else t for t in times)
