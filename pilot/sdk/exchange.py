"""Messages and files to the data exchange of a peer, port 1001 (services.md section 3).

Codecs and FileSender are sans-I/O; `send_message` and `send_file` drive them over a blocking Connection.
A file is read twice: its digest names the transfer, so that an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from io import FileIO
from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from pilot.errors import PilotError

if TYPE_CHECKING:
    from pilot.sdk.streams import Connection

PORT = 1001
TEXT, BINARY, JSON, FILE, TRACE, FILESTREAM, TAGGED = 1, 2, 3, 4, 5, 7, 10
MESSAGE_TYPES = {"text": TEXT, "binary": BINARY, "json": JSON}
INIT, CHUNK, ACK, DONE, INIT_ACK, COMPLETE, ABORT = range(1, 8)

CHUNK_BYTES = 49152
WINDOW = 128  # chunks unacknowledged. The stream is ordered, so a receiver holds none of them out of order
STRICT_WINDOW = 16  # what upstream senders keep to; used again when a receiver refuses
MAX_ANSWER = 16 << 20
MAX_SINGLE_FRAME = 64 << 20  # largest file for receivers without FILESTREAM
MAX_NAME = 255

INIT_ACK_WAIT = 5.0
STALL = 60.0  # no acknowledgement for so long: the receiver is gone
COMPLETE_WAIT = 60.0
ANSWER_WAIT = 30.0

_HEAD = Struct(">II")
_U64 = Struct(">Q")
_INIT = Struct(">Q32sIH")
_CHUNK_HEAD = Struct(">IIB16sQ")

Progress = Callable[[str, int, int], None]  # phase ("hashing", "sending"), bytes done, bytes in all


def encode(kind: int, payload: bytes) -> bytes:
    """A frame `type(4) length(4) payload`."""
    return _HEAD.pack(kind, len(payload)) + payload


def encode_file(name: str, data: bytes) -> bytes:
    """A FILE frame. Raises PilotError if the name does not fit."""
    raw = check_name(name)
    return encode(FILE, len(raw).to_bytes(2, "big") + raw + data)


def encode_tagged(kind: int, payload: bytes, message_id: str = "", reply_to: str = "") -> bytes:
    """A TAGGED frame around a message."""
    header = {k: v for k, v in (("message_id", message_id), ("reply_to", reply_to)) if v}
    raw = json.dumps(header, separators=(",", ":")).encode()
    return encode(TAGGED, len(raw).to_bytes(2, "big") + raw + kind.to_bytes(4, "big") + payload)


def check_name(name: str) -> bytes:
    """The bytes of a file name that every receiver takes. Raises PilotError(invalid_argument)."""
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise PilotError("invalid_argument", f"file name is not UTF-8: {name!r}", "rename the file") from None
    if not raw or len(raw) > MAX_NAME or name in (".", "..") or "/" in name or "\\" in name:
        raise PilotError("invalid_argument", f"file name not allowed: {name!r}", "rename the file")
    return raw


class FrameReader:
    """Bytes to frames. Raises PilotError(connection_failed) for a frame larger than MAX_ANSWER."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Complete frames as (type, payload)."""
        buffer = self._buffer
        buffer += data
        frames, at = [], 0
        while len(buffer) - at >= 8:
            kind, size = _HEAD.unpack_from(buffer, at)
            if size > MAX_ANSWER:
                raise PilotError("connection_failed", f"the peer announced an answer of {size} bytes")
            if len(buffer) - at < 8 + size:
                break
            frames.append((kind, bytes(buffer[at + 8 : at + 8 + size])))
            at += 8 + size
        del buffer[:at]
        return frames


class Refused(Exception):
    """The receiver has no FILESTREAM."""


class Rejected(PilotError):
    """The receiver itself ended the transfer. final: another try would end the same way."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__("connection_failed", message)
        self.final = final


class FileSender:
    """One FILESTREAM transfer, sans-I/O. `acked`, `sent`: offsets; `resumed`: where the receiver began."""

    def __init__(self, name: str, size: int, sha256: bytes, window: int = WINDOW) -> None:
        self.name = check_name(name)
        self.size = size
        self.sha256 = sha256
        self.transfer_id = sha256[:16]
        self.window = window * CHUNK_BYTES
        self.started = False
        self.resumed = self.acked = self.sent = 0
        self.complete = False

    def init(self) -> bytes:
        """The INIT frame."""
        body = _INIT.pack(self.size, self.sha256, CHUNK_BYTES, len(self.name)) + self.name
        return encode(FILESTREAM, bytes((INIT,)) + self.transfer_id + body)

    def next_size(self) -> int:
        """Bytes of the chunk that may be sent now; 0 = wait for an acknowledgement, or all is sent."""
        if not self.started or self.sent - self.acked >= self.window:
            return 0
        return min(CHUNK_BYTES, self.size - self.sent)

    def chunk_head(self, size: int) -> bytes:
        """What stands before the next `size` bytes of the file; counts them as sent."""
        head = _CHUNK_HEAD.pack(FILESTREAM, 25 + size, CHUNK, self.transfer_id, self.sent)
        self.sent += size
        return head

    def done(self) -> bytes:
        """The DONE frame."""
        return encode(FILESTREAM, bytes((DONE,)) + self.transfer_id)

    def receive(self, kind: int, payload: bytes) -> None:
        """A frame of the receiver. Raises Refused before the start, Rejected after it."""
        if kind != FILESTREAM or len(payload) < 17 or payload[1:17] != self.transfer_id:
            if not self.started:
                raise Refused(payload[:200].decode("utf-8", "replace"))
            raise Rejected("the receiver answered something that is no file transfer")
        what, body = payload[0], payload[17:]
        if what == ABORT:
            raise Rejected(f"the receiver stopped the transfer: {_text(body)}")
        if what in (INIT_ACK, ACK):
            if len(body) < 8:
                raise Rejected("the receiver sent a short acknowledgement")
            self._offset(what, _U64.unpack_from(body)[0])
        elif what == COMPLETE:
            if body[:1] != b"\0":
                # A part that was there before may be what is wrong; with a file sent as a whole it is the receiver.
                raise Rejected(f"the receiver could not store the file: {_text(body[1:])}", not self.resumed)
            self.complete = True

    def _offset(self, what: int, offset: int) -> None:
        if what == INIT_ACK and not self.started:
            if offset > self.size:
                raise PilotError(
                    "connection_failed", "the receiver wants to resume behind the end of the file"
                )
            self.started = True
            self.resumed = self.sent = self.acked = offset
        elif self.acked < offset <= self.sent:
            self.acked = offset


def _fill(file: FileIO, view: memoryview) -> int:
    done = 0
    while done < len(view) and (n := file.readinto(view[done:])):
        done += n
    return done


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")[:500] or "no reason given"


def digest(file: FileIO, size: int, progress: Progress | None = None) -> bytes:
    """SHA-256 of an open file from its start."""
    import hashlib

    sha, done = hashlib.sha256(), 0
    buffer = memoryview(bytearray(1 << 20))
    file.seek(0)
    while n := file.readinto(buffer):
        sha.update(buffer[:n])
        done += n
        if progress is not None:
            progress("hashing", done, size)
    return sha.digest()


class Sent(NamedTuple):
    """A delivered file. ack: text of the receiver when it has no FILESTREAM, else ""."""

    name: str
    size: int
    sha256: bytes
    bytes_sent: int
    bytes_resumed: int
    seconds: float
    ack: str
    streamed: bool


def send_file(dial: Callable[[], Connection], path: str, progress: Progress | None = None) -> Sent:
    """Sends a file and returns when the receiver has stored and verified it.

    dial opens a connection to port 1001. Raises PilotError: not_found, invalid_argument, connection_failed,
    timeout; the transfer can then be repeated and goes on where it stopped.
    """
    name = os.path.basename(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before open: a FIFO would block there
            raise PilotError("invalid_argument", f"{path} is not a regular file", "send one file at a time")
        check_name(name)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as e:
        code = "not_found" if isinstance(e, FileNotFoundError) else "invalid_argument"
        raise PilotError(code, f"cannot read {path}: {e.strerror}", "check the path") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        sha = digest(file, size, progress)
        started = monotonic()
        window, retried = WINDOW, False
        while True:
            sender = FileSender(name, size, sha, window)
            try:
                _stream(dial, sender, file, progress)
                break
            except Refused:
                ack = _single_frame(dial, name, file, size)
                return Sent(name, size, sha, size, 0, monotonic() - started, ack, False)
            except Rejected as e:
                # A partial file that went bad, or a receiver that takes fewer chunks: once more, strictly.
                if retried or e.final:
                    raise
                window, retried = STRICT_WINDOW, True
        seconds = monotonic() - started
        return Sent(name, size, sha, size - sender.resumed, sender.resumed, seconds, "", True)


def _stream(dial: Callable[[], Connection], s: FileSender, file: FileIO, progress: Progress | None) -> None:
    reader = FrameReader()
    with dial() as conn:
        conn.write(s.init(), INIT_ACK_WAIT)
        _until(conn, reader, s, lambda: s.started, INIT_ACK_WAIT)
        file.seek(s.resumed)
        buffer = memoryview(bytearray(33 + CHUNK_BYTES))
        try:
            while s.sent < s.size:
                size = s.next_size()
                if not size:
                    acked = s.acked
                    _until(conn, reader, s, lambda before=acked: s.acked > before, STALL)  # type: ignore[misc]
                    continue
                body = buffer[33 : 33 + size]
                if _fill(file, body) != size:
                    conn.write(encode(FILESTREAM, bytes((ABORT,)) + s.transfer_id + b"file changed"), 5.0)
                    raise PilotError(
                        "invalid_argument", "the file changed while it was sent", "send it again"
                    )
                buffer[:33] = s.chunk_head(size)
                conn.write(buffer[: 33 + size], STALL)
                for kind, payload in reader.feed(conn.try_read()):
                    s.receive(kind, payload)
                if progress is not None:
                    progress("sending", s.acked, s.size)
            conn.write(s.done(), STALL)
            _until(conn, reader, s, lambda: s.complete, COMPLETE_WAIT)
        except Rejected:
            raise
        except PilotError as e:
            raise _lost(s) if e.code in ("timeout", "connection_failed", "not_running") else e from None
        if progress is not None:
            progress("sending", s.size, s.size)


def _until(
    conn: Connection, reader: FrameReader, s: FileSender, ready: Callable[[], bool], seconds: float
) -> None:
    """Reads frames until `ready`. Before the start silence and the end of the stream mean Refused."""
    deadline = monotonic() + seconds
    while not ready():
        try:
            data = conn.read(1 << 20, max(0.0, deadline - monotonic()))
        except PilotError as e:
            if e.code == "timeout" and not s.started:
                raise Refused("no answer") from None
            raise
        if not data:
            if not s.started:
                raise Refused("the stream ended")
            raise _lost(s)
        for kind, payload in reader.feed(data):
            s.receive(kind, payload)


def _lost(s: FileSender) -> PilotError:
    return PilotError(
        "connection_failed",
        f"lost the peer after {s.acked} of {s.size} bytes; the file is not stored there",
        "run the same command again: the transfer goes on where it stopped",
        True,
    )


def _single_frame(dial: Callable[[], Connection], name: str, file: FileIO, size: int) -> str:
    """The FILE frame for receivers without FILESTREAM; the answer, "" if none came."""
    if size > MAX_SINGLE_FRAME:
        raise PilotError(
            "not_supported",
            f"the receiver takes no streamed files, and {size} bytes are too large for one frame",
            "upgrade the receiver's daemon",
        )
    file.seek(0)
    data = file.read()
    with dial() as conn:
        conn.write(encode_file(name, data), STALL)
        ack = read_answer(conn)
    if ack.startswith("ERR") or (not ack and size > 16 << 20):
        message = ack or "the receiver closed the stream without an answer"
        raise PilotError("connection_failed", f"file not stored: {message}")
    return ack


def read_answer(conn: Connection, seconds: float = ANSWER_WAIT) -> str:
    """The text that answers a frame; "" if the peer answers nothing (a message then counts as sent)."""
    reader, deadline = FrameReader(), monotonic() + seconds
    while True:
        try:
            data = conn.read(1 << 20, max(0.0, deadline - monotonic()))
        except PilotError as e:
            if e.code == "timeout":
                return ""
            raise
        if not data:
            return ""
        for _, payload in reader.feed(data):
            return payload.decode("utf-8", "replace")


def send_message(conn: Connection, kind: int, data: bytes) -> str:
    """One message as a plain frame; the receiver's answer, "" if none came."""
    conn.write(encode(kind, data), STALL)
    return read_answer(conn)


def send_tagged(
    conn: Connection, kind: int, data: bytes, message_id: str, reply_to: str = ""
) -> tuple[str, bool]:
    """One message with its id: (answer, whether the receiver knows ids); without ids it is sent plain."""
    conn.write(encode_tagged(kind, data, message_id, reply_to), STALL)
    answer = read_answer(conn)
    if answer.startswith(("ACK UNKNOWN(10)", "ERR UNKNOWN(10)")):
        return send_message(conn, kind, data), False
    return answer, True
