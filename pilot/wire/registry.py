"""Framing of the registry's TCP port: a length, then one object as JSON or msgpack (registry.md 1, 2;
docs/wire-extensions.md 5).

Knows nothing of commands. A reply goes out in the encoding of its request.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pilot.wire.errors import WireError

HEAD_SIZE = 4
MAX_BODY = 1 << 20  # what every client takes; longer frames end the connection

_MSGPACK_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_SCALARS = frozenset((type(None), bool, int, float, str))
_CONTAINERS = frozenset((dict, list))
_TYPES = _SCALARS | _CONTAINERS


class Encoding(Enum):
    """How a body is written."""

    JSON = "json"
    MSGPACK = "msgpack"


def encoding_of(body: bytes) -> Encoding:
    """By the first byte: a msgpack map cannot start a JSON text, nor the other way round."""
    return Encoding.MSGPACK if body and body[0] in _MSGPACK_MAPS else Encoding.JSON


def body_size(head: bytes | bytearray, limit: int = MAX_BODY) -> int:
    """The length of the body from its 4-byte head. Raises WireError above `limit`, and for 0: a body is never empty."""
    size = int.from_bytes(head, "big")
    if not 1 <= size <= limit:
        raise WireError(f"frame of {size} bytes, allowed are 1 to {limit}")
    return size


def encode(message: Mapping[str, Any], encoding: Encoding = Encoding.JSON, limit: int = MAX_BODY) -> bytes:
    """A frame: head and body. Values: None, bool, int, float, str, lists and objects of them.

    Raises WireError for a value that the encoding cannot carry and for bodies above `limit` bytes.
    """
    try:
        body = _pack(message) if encoding is Encoding.MSGPACK else _to_json(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"message cannot be encoded: {error}") from None
    if len(body) > limit:
        raise WireError(f"message of {len(body)} bytes, allowed are {limit}")
    return len(body).to_bytes(HEAD_SIZE, "big") + body


def decode(body: bytes) -> tuple[dict[str, Any], Encoding]:
    """The object of a body and its encoding; JSON null is an empty object.

    Raises WireError for what is not one object with text keys (binary and extension types of msgpack included):
    the connection has to be closed.
    """
    encoding = encoding_of(body)
    message = _unpack(body) if encoding is Encoding.MSGPACK else _from_json(body)
    if message is None and encoding is Encoding.JSON:
        return {}, encoding
    if not isinstance(message, dict):
        raise WireError("message is not an object")
    return message, encoding


class FrameReader:
    """Bytes of one direction to bodies, sans-I/O."""

    def __init__(self, limit: int = MAX_BODY) -> None:
        """limit: largest body, bytes; no more than that and one read is held."""
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Complete bodies, in order. Raises WireError as `body_size`; the stream is lost then."""
        buffer = self._buffer
        buffer += data
        bodies, at = [], 0
        while len(buffer) - at >= HEAD_SIZE:
            end = at + HEAD_SIZE + body_size(buffer[at : at + HEAD_SIZE], self._limit)
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[at + HEAD_SIZE : end]))
            at = end
        del buffer[:at]
        return bodies


def _to_json(message: Mapping[str, Any]) -> bytes:
    import msgspec

    return msgspec.json.encode(message)


def _from_json(body: bytes) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise WireError("message is not JSON") from None


def _pack(message: Mapping[str, Any]) -> bytes:
    import msgpack  # type: ignore[import-untyped]

    packed: bytes = msgpack.packb(message, use_bin_type=True)
    return packed


def _unpack(body: bytes) -> Any:
    import msgpack

    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError):
        raise WireError("message is not msgpack") from None
    _check_types(message)
    return message


def _check_types(root: Any) -> None:
    """What JSON cannot say has no meaning here either."""
    stack = [root]
    while stack:
        node = stack.pop()
        if type(node) is dict:
            if not set(map(type, node)) <= {str}:
                raise WireError("message has a key that is no text")
            values = list(node.values())
        else:
            values = node
        kinds = set(map(type, values))
        if not kinds <= _TYPES:
            raise WireError("message has a value that JSON does not know")
        if kinds & _CONTAINERS:
            stack += [value for value in values if type(value) in _CONTAINERS]
