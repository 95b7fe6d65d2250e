"""What messages of the local socket are made of. A message class names its code and, in `layout`, how its fields follow
each other; building and parsing both read that."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

from pilot.wire.address import Address, unpack
from pilot.wire.errors import WireError
from pilot.wire.ipc_frames import Cmd, frame

M = TypeVar("M", bound="Message")

_SILENT = frozenset((Cmd.SEND, Cmd.CLOSE, Cmd.SEND_TO, Cmd.CANCEL))


class Kind(NamedTuple):
    """How one field is written. size: bytes it needs at least; rest: it takes all bytes that are left."""

    size: int
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]
    rest: bool = False


def _uint(size: int) -> Kind:
    return Kind(size, lambda value: value.to_bytes(size, "big"), lambda raw: int.from_bytes(raw, "big"))


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def from_json(raw: bytes) -> Any:
    """Any JSON value. Raises WireError."""
    try:
        value = json.loads(raw, parse_constant=_no_number)
        if b"\\u" in raw:
            to_json(value)  # escapes can write half a surrogate pair, which no later encoder takes
    except (ValueError, RecursionError) as error:
        raise WireError(f"invalid JSON: {error}") from None
    return value


def _object(raw: bytes) -> dict[str, Any]:
    value = from_json(raw)
    if not isinstance(value, dict):
        raise WireError("invalid JSON: not an object")
    return value


def _strings(raw: bytes) -> list[str]:
    value = from_json(raw)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WireError("invalid JSON: not a list of strings")
    return value


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


U8, U16, U32 = _uint(1), _uint(2), _uint(4)
FLAG = Kind(1, lambda on: b"\x01" if on else b"\x00", lambda raw: raw == b"\x01")  # anything but 1 is "no"
ADDRESS = Kind(6, Address.pack, unpack)
DATA = Kind(0, bytes, bytes, rest=True)
TEXT = Kind(0, str.encode, _text, rest=True)
NAME = Kind(1, str.encode, _text, rest=True)  # at least one byte
OBJECT = Kind(0, to_json, _object, rest=True)
STRINGS = Kind(0, to_json, _strings, rest=True)
LATER_U32 = Kind(0, U32.pack, lambda raw: U32.unpack(raw[:4]) if len(raw) >= 4 else 0, rest=True)  # may be missing: 0


@dataclass_transform(frozen_default=True)
class Message:
    """Base of all messages. code: what they are; lead: fixed bytes that the payload starts with (sub-commands);
    layout: one Kind a field; short: error text when fixed fields are missing.

    Annotations of a subclass are its fields, as in a dataclass; making fifty real ones would cost a command line that
    starts on this module more time than all the rest.
    """

    code: ClassVar[int]
    lead: ClassVar[bytes] = b""
    layout: ClassVar[tuple[Kind, ...]] = ()
    short: ClassVar[str] = "truncated"
    _names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._names = tuple(n for n, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))

    def __init__(self, *values: Any, **named: Any) -> None:
        if not named and len(values) == len(self._names):  # as nearly always, and a dial waits for it
            self.__dict__.update(zip(self._names, values, strict=True))
            return
        given = dict(zip(self._names, values, strict=False), **named)
        wrong = len(values) > len(self._names) or not named.keys() <= set(self._names)
        if wrong or any(name not in given and not hasattr(self, name) for name in self._names):  # defaults: class attributes
            raise TypeError(f"fields of {type(self).__name__}: {', '.join(self._names)}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._values() == self._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._values()}"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._names)

    @property
    def payload(self) -> bytes:
        """What follows the code. Raises WireError for values that do not fit their fields."""
        parts = [self.lead]
        try:
            for value, kind in zip(self._values(), self.layout, strict=True):
                parts.append(kind.pack(value))
        except (OverflowError, ValueError, TypeError):
            raise WireError(f"{type(self).__name__}: a value does not fit its field") from None
        return b"".join(parts)

    def frame(self) -> bytes:
        """The bytes on the socket. Raises WireError above MAX_FRAME."""
        return frame(self.code, self.payload)

    @classmethod
    def parse(cls: type[M], payload: bytes) -> M:
        """From a payload that starts with `lead`; bytes behind the last fixed field are ignored.

        Raises WireError with `short`, or as the kinds of the fields do.
        """
        at = len(cls.lead)
        if len(payload) - at < sum(kind.size for kind in cls.layout):
            raise WireError(cls.short)
        values = []
        for kind in cls.layout:
            end = len(payload) if kind.rest else at + kind.size
            values.append(kind.unpack(payload[at:end]))
            at = end
        return cls(*values)


class Request(Message):
    """Base of all requests. label: what a client puts in front of the daemon's error text."""

    label: ClassVar[str]

    @property
    def reply(self) -> int:
        """Code of the reply, 0 for none (the answer to Close is a push)."""
        return 0 if self.code in _SILENT else self.code + 1


def uints(*values: tuple[int, int]) -> bytes:
    """Numbers as (value, bytes). Raises WireError."""
    try:
        return b"".join(value.to_bytes(size, "big") for value, size in values)
    except OverflowError:
        raise WireError("number out of range") from None


def counted(text: str) -> bytes:
    """`length(2) text`. Raises WireError."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise WireError("text is not UTF-8") from None
    return uints((len(raw), 2)) + raw


def split_counted(raw: bytes, short: str) -> tuple[str, bytes]:
    """`length(2) text rest` to text and rest."""
    end = 2 + int.from_bytes(raw[:2], "big")
    if len(raw) < max(2, end):
        raise WireError(short)
    return raw[2:end].decode("utf-8", "replace"), raw[end:]


def labelled(label: str, kind: Kind, raw: bytes) -> Any:
    """The field, its error led by `label`."""
    try:
        return kind.unpack(raw)
    except WireError as error:
        raise WireError(f"{label}: {error.reason}") from None
