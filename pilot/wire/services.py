"""Frames of the data exchange (port 1001) and of the event stream (port 1002) (services.md 3, 4).

The handshake message of port 444 is pilot.trust.message.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from pilot.wire.errors import WireError
from pilot.wire.fields import counted, split_counted, u64, utf8

PORT_COUNTER = 9
PORT_EXCHANGE = 1001
PORT_EVENTS = 1002

FEB_MAX_FRAME = 16 << 20  # payload that Feb-2026 receivers take
MAX_FRAME = 64 << 20  # payload that later ones take
MAX_NAME = 255  # bytes of a file name
MAX_TAG_HEADER = 1024
MAX_TOPIC = 1024  # bytes
MAX_EVENT = 16 << 20
CHUNK_BYTES = 49152  # of a file, in one CHUNK
TRANSFER_ID = 16  # bytes: the first of the SHA-256
CHUNK_HEAD = 33  # frame head, kind, transfer id, offset
ALL_TOPICS = "*"

_HEAD = Struct(">II")
_INIT = Struct(">Q32sIH")
_CHUNK_HEAD = Struct(">IIB16sQ")
_ROOM = Struct(">2sBxII")
_ROOM_MAGIC, _ROOM_VERSION = b"PX", 1
_MESSAGE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class FrameType(IntEnum):
    """Types of data exchange frames that are known here."""

    TEXT = 1
    BINARY = 2
    JSON = 3
    FILE = 4
    TRACE = 5
    FILESTREAM = 7
    TAGGED = 10


class StreamKind(IntEnum):
    """First byte of a FILESTREAM payload."""

    INIT = 1
    CHUNK = 2
    ACK = 3
    DONE = 4
    INIT_ACK = 5
    COMPLETE = 6
    ABORT = 7


_TYPE_NAMES: dict[int, str] = {kind: kind.name for kind in FrameType}
_STREAM_KINDS: dict[int, StreamKind] = {kind: kind for kind in StreamKind}


def type_name(kind: int) -> str:
    """As answers write it: `TEXT`, or `UNKNOWN(8)`."""
    return _TYPE_NAMES.get(kind, f"UNKNOWN({kind})")


def encode(kind: int, payload: bytes) -> bytes:
    """A frame `type(4) length(4) payload`. Raises WireError above 4 GiB."""
    if len(payload) >= 1 << 32:
        raise WireError("payload exceeds 4 GiB")
    return _HEAD.pack(kind, len(payload)) + payload


class FrameReader:
    """Bytes of one direction to (type, payload), sans-I/O."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        """limit: largest payload taken, bytes; no more than that and one read is held."""
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, bytes]]:
        """Complete frames, in order. Raises WireError for a larger one; the stream is lost then."""
        buffer = self._buffer
        buffer += data
        frames, at = [], 0
        while len(buffer) - at >= _HEAD.size:
            kind, size = _HEAD.unpack_from(buffer, at)
            if size > self._limit:
                raise WireError(f"frame of {size} bytes, allowed are {self._limit}")
            end = at + _HEAD.size + size
            if len(buffer) < end:
                break
            frames.append((kind, bytes(buffer[at + _HEAD.size : end])))
            at = end
        del buffer[:at]
        return frames


def ack_text(kind: int, size: int) -> bytes:
    """Answer to a frame that was taken. size: of the content, without name or header."""
    return f"ACK {type_name(kind)} {size} bytes".encode()


def err_text(kind: int, reason: str) -> bytes:
    """Answer to a frame that could not be stored."""
    return f"ERR {type_name(kind)} save failed: {reason}".encode("utf-8", "replace")


def check_name(name: str) -> bytes:
    """The bytes of a file name that every receiver takes: 1..255, no path. Raises WireError."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise WireError("file name is not UTF-8") from None
    if not raw or len(raw) > MAX_NAME or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise WireError("file name not allowed")
    return raw


def encode_file(name: str, data: bytes) -> bytes:
    """A FILE frame. Raises WireError if the name does not pass `check_name`."""
    return encode(FrameType.FILE, counted(check_name(name)) + data)


def parse_file(payload: bytes) -> tuple[str, bytes]:
    """Name and content of a FILE payload. The name is as sent: judge it with `check_name`; "" is legal and not stored.

    Raises WireError.
    """
    name, at = split_counted(payload, "file")
    return utf8(name, "file name"), payload[at:]


@dataclass(frozen=True, slots=True)
class Tagged:
    """A message with ids: 1..128 of `[A-Za-z0-9._:-]`, "" for none. kind: type of the inner frame, never TAGGED."""

    kind: int
    payload: bytes
    message_id: str = ""
    reply_to: str = ""

    def build(self) -> bytes:
        """The TAGGED frame. Raises WireError for ids of another form, and for nesting."""
        header = {k: v for k, v in (("message_id", self.message_id), ("reply_to", self.reply_to)) if v}
        if self.kind == FrameType.TAGGED or not all(map(_MESSAGE_ID.fullmatch, header.values())):
            raise WireError("message id not allowed")
        raw = json.dumps(header, separators=(",", ":")).encode()
        return encode(FrameType.TAGGED, counted(raw) + self.kind.to_bytes(4, "big") + self.payload)


def parse_tagged(payload: bytes) -> Tagged:
    """From a TAGGED payload; unknown members of its header are ignored. Raises WireError."""
    raw, at = split_counted(payload, "tagged")
    if not 1 <= len(raw) <= MAX_TAG_HEADER or len(payload) < at + 4:
        raise WireError("tagged: header of impossible length")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise WireError("tagged: header is not JSON") from None
    if not isinstance(header, dict):
        raise WireError("tagged: header is not an object")
    ids = [header.get(name, "") for name in ("message_id", "reply_to")]
    if not all(isinstance(value, str) and (not value or _MESSAGE_ID.fullmatch(value)) for value in ids):
        raise WireError("tagged: id not allowed")
    kind = int.from_bytes(payload[at : at + 4], "big")
    if kind == FrameType.TAGGED:
        raise WireError("tagged: nested")
    return Tagged(kind, payload[at + 4 :], *ids)


@dataclass(frozen=True, slots=True)
class Trace:
    """A message that measures its way. sent_at_ns: Unix time."""

    kind: int
    sent_at_ns: int
    payload: bytes

    def pack(self) -> bytes:
        """The payload of the TRACE frame. Raises WireError."""
        try:
            head = self.kind.to_bytes(4, "big") + self.sent_at_ns.to_bytes(8, "big")
        except OverflowError:
            raise WireError("trace: number out of range") from None
        return head + self.payload

    def build(self) -> bytes:
        """The TRACE frame. Raises WireError."""
        return encode(FrameType.TRACE, self.pack())


def parse_trace(payload: bytes) -> Trace:
    """From a TRACE payload. Raises WireError."""
    if len(payload) < 12:
        raise WireError("trace: short")
    return Trace(int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:12], "big"), payload[12:])


# ---- FILESTREAM ----


@dataclass(frozen=True, slots=True)
class Init:
    """The sender offers a file. sha256: 32 bytes, its first 16 are the transfer id. name: passes `check_name`."""

    size: int
    sha256: bytes
    name: str
    chunk_size: int = CHUNK_BYTES

    def build(self) -> bytes:
        """The INIT frame. Raises WireError."""
        name = check_name(self.name)
        if len(self.sha256) != 32 or not 0 <= self.size < 1 << 64 or not 0 <= self.chunk_size < 1 << 32:
            raise WireError("file transfer: value out of range")
        body = _INIT.pack(self.size, self.sha256, self.chunk_size, len(name)) + name
        return stream_frame(StreamKind.INIT, self.sha256[:TRANSFER_ID], body)


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """A FILESTREAM payload taken apart. offset: of CHUNK, ACK and INIT_ACK. status: of COMPLETE, 0 = stored.
    data: bytes of CHUNK, text of COMPLETE and ABORT. init: of INIT."""

    kind: StreamKind
    transfer_id: bytes
    offset: int = 0
    status: int = 0
    data: bytes = b""
    init: Init | None = None

    @property
    def text(self) -> str:
        """`data` for people."""
        return self.data.decode("utf-8", "replace")


def stream_frame(kind: StreamKind, transfer_id: bytes, body: bytes = b"") -> bytes:
    """A FILESTREAM frame. transfer_id: 16 bytes. Raises WireError."""
    if len(transfer_id) != TRANSFER_ID:
        raise WireError("transfer id is not 16 bytes")
    return encode(FrameType.FILESTREAM, bytes((kind,)) + transfer_id + body)


class Room(NamedTuple):
    """What a receiver of our kind takes (docs/wire-extensions.md section 6): bytes of a chunk, and unacknowledged."""

    chunk_bytes: int
    window_bytes: int


def init_ack(transfer_id: bytes, offset: int, room: Room | None = None) -> bytes:
    """The receiver takes the file from `offset` on. room: as extension behind it, which other senders ignore."""
    extension = _ROOM.pack(_ROOM_MAGIC, _ROOM_VERSION, *room) if room else b""
    return stream_frame(StreamKind.INIT_ACK, transfer_id, u64(offset) + extension)


def parse_room(extension: bytes) -> Room | None:
    """From what follows the offset of INIT-ACK; None if it is not the extension."""
    if len(extension) < _ROOM.size:
        return None
    magic, version, chunk_bytes, window_bytes = _ROOM.unpack_from(extension)
    return Room(chunk_bytes, window_bytes) if (magic, version) == (_ROOM_MAGIC, _ROOM_VERSION) else None


def chunk_head(transfer_id: bytes, offset: int, size: int) -> bytes:
    """The CHUNK_HEAD bytes before `size` bytes of the file, which are not copied."""
    return _CHUNK_HEAD.pack(FrameType.FILESTREAM, CHUNK_HEAD - _HEAD.size + size, StreamKind.CHUNK, transfer_id, offset)


def ack(transfer_id: bytes, offset: int) -> bytes:
    """The receiver has everything before `offset`."""
    return stream_frame(StreamKind.ACK, transfer_id, u64(offset))


def done(transfer_id: bytes) -> bytes:
    """The sender has sent all."""
    return stream_frame(StreamKind.DONE, transfer_id)


def complete(transfer_id: bytes, status: int = 0, text: str = "") -> bytes:
    """The receiver has stored the file (0), or not (1..255, with the reason)."""
    return stream_frame(StreamKind.COMPLETE, transfer_id, bytes((status,)) + text.encode("utf-8", "replace"))


def abort(transfer_id: bytes, text: str) -> bytes:
    """Either side gives up."""
    return stream_frame(StreamKind.ABORT, transfer_id, text.encode("utf-8", "replace"))


def parse_stream(payload: bytes) -> StreamFrame:
    """From a FILESTREAM payload. Raises WireError; the name in INIT has passed `check_name`."""
    at = 1 + TRANSFER_ID
    kind = _STREAM_KINDS.get(payload[0]) if len(payload) >= at else None
    if kind is None:
        raise WireError("file transfer: unknown frame")
    transfer_id, body = payload[1:at], payload[at:]
    if kind is StreamKind.INIT:
        return StreamFrame(kind, transfer_id, init=_parse_init(body))
    if kind in (StreamKind.CHUNK, StreamKind.ACK, StreamKind.INIT_ACK):
        if len(body) < 8:
            raise WireError("file transfer: short offset")
        data = body[8:] if kind is StreamKind.CHUNK else b""
        return StreamFrame(kind, transfer_id, offset=int.from_bytes(body[:8], "big"), data=data)
    if kind is StreamKind.COMPLETE:
        if not body:
            raise WireError("file transfer: no status")
        return StreamFrame(kind, transfer_id, status=body[0], data=body[1:])
    return StreamFrame(kind, transfer_id, data=body if kind is StreamKind.ABORT else b"")


def _parse_init(body: bytes) -> Init:
    if len(body) < _INIT.size:
        raise WireError("file transfer: short INIT")
    size, sha256, chunk_size, name_size = _INIT.unpack_from(body)
    raw = body[_INIT.size : _INIT.size + name_size]
    if len(raw) < name_size:
        raise WireError("file transfer: short INIT")
    name = utf8(raw, "file name")
    check_name(name)
    return Init(size, sha256, name, chunk_size)


# ---- event stream ----


class Event(NamedTuple):
    """The first event of a connection subscribes to its topic, the others are published."""

    topic: str
    data: bytes


def encode_event(topic: str, data: bytes = b"") -> bytes:
    """`topic_len(2) topic payload_len(4) payload`. Raises WireError above the limits and for an empty topic."""
    try:
        raw = topic.encode()
    except UnicodeEncodeError:
        raise WireError("topic is not UTF-8") from None
    if not 1 <= len(raw) <= MAX_TOPIC:
        raise WireError(f"a topic has 1 to {MAX_TOPIC} bytes, this one {len(raw)}")
    if len(data) > MAX_EVENT:
        raise WireError(f"an event carries at most {MAX_EVENT} bytes, not {len(data)}")
    return counted(raw) + len(data).to_bytes(4, "big") + data


class EventReader:
    """Bytes of one direction to events, sans-I/O."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Complete events, in order. Raises WireError above the limits; the stream is lost then.

        A topic that is not UTF-8 is shown with replacement characters.
        """
        buffer = self._buffer
        buffer += data
        events, at = [], 0
        while len(buffer) - at >= 2:
            topic_end = at + 2 + int.from_bytes(buffer[at : at + 2], "big")
            if topic_end - at - 2 > MAX_TOPIC:
                raise WireError("topic too long")
            if len(buffer) < topic_end + 4:
                break
            size = int.from_bytes(buffer[topic_end : topic_end + 4], "big")
            if size > MAX_EVENT:
                raise WireError("event too large")
            end = topic_end + 4 + size
            if len(buffer) < end:
                break
            topic = buffer[at + 2 : topic_end].decode("utf-8", "replace")
            events.append(Event(topic, bytes(buffer[topic_end + 4 : end])))
            at = end
        del buffer[:at]
        return events
