"""Messages and files to the data exchange of a peer, port 1001 (services.md section 3).

FileSender is sans-I/O; `send_message` and `send_file` work over a blocking Connection.
A file is read twice: its digest names the transfer, so that an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from io import FileIO
from time import monotonic, time_ns
from typing import TYPE_CHECKING, NamedTuple

from pilot.errors import PilotError
from pilot.wire import services as wire
from pilot.wire.errors import WireError
from pilot.wire.services import FrameType, StreamKind

if TYPE_CHECKING:
    from pilot.sdk.streams import Connection

PORT = wire.PORT_EXCHANGE
MESSAGE_TYPES = {"text": FrameType.TEXT, "binary": FrameType.BINARY, "json": FrameType.JSON}

WINDOW = 16 * wire.CHUNK_BYTES  # unacknowledged bytes toward receivers that do not name their own
OWN_CHUNK = (256 << 10) - wire.CHUNK_HEAD  # toward those that do: a chunk is one frame on the local socket
OWN_WINDOW = 64 << 20  # most that is used of what such a receiver allows
MAX_ANSWER = 16 << 20

INIT_ACK_WAIT = 5.0
STALL = 60.0  # no acknowledgement for so long: the receiver is gone
COMPLETE_WAIT = 60.0
ANSWER_WAIT = 30.0

Progress = Callable[[str, int, int], None]  # phase ("hashing", "sending"), bytes done, bytes in all


class Refused(Exception):
    """The receiver has no FILESTREAM."""


class Rejected(PilotError):
    """The receiver itself ended the transfer, or could not store the file."""

    def __init__(self, message: str) -> None:
        super().__init__("connection_failed", message)


class FileSender:
    """One FILESTREAM transfer, sans-I/O. `acked`, `sent`: offsets; `resumed`: where the receiver began."""

    def __init__(self, name: str, size: int, sha256: bytes) -> None:
        self.size = size
        self.transfer_id = sha256[: wire.TRANSFER_ID]
        self.init = wire.Init(size, sha256, name).build()
        self.chunk_bytes = wire.CHUNK_BYTES
        self.window = WINDOW
        self.started = False
        self.resumed = self.acked = self.sent = 0
        self.complete = False

    def next_size(self) -> int:
        """Bytes of the chunk that may be sent now; 0 = wait for an acknowledgement, or all is sent."""
        if not self.started or self.sent - self.acked >= self.window:
            return 0
        return min(self.chunk_bytes, self.size - self.sent)

    def chunk_head(self, size: int) -> bytes:
        """What stands before the next `size` bytes of the file; counts them as sent."""
        head = wire.chunk_head(self.transfer_id, self.sent, size)
        self.sent += size
        return head

    def done(self) -> bytes:
        """The DONE frame."""
        return wire.done(self.transfer_id)

    def abort(self, text: str) -> bytes:
        """The ABORT frame."""
        return wire.abort(self.transfer_id, text)

    def receive(self, kind: int, payload: bytes) -> None:
        """A frame of the receiver. Raises Refused before the start, Rejected for its own faults and reasons."""
        if kind != FrameType.FILESTREAM or payload[1 : 1 + wire.TRANSFER_ID] != self.transfer_id:
            if not self.started:
                raise Refused(payload[:200].decode("utf-8", "replace"))
            raise Rejected("the receiver answered something that is no file transfer")
        try:
            frame = wire.parse_stream(payload)
        except WireError as e:
            raise Rejected(f"the receiver sent a broken frame: {e.reason}") from None
        if frame.kind is StreamKind.ABORT:
            raise Rejected(f"the receiver stopped the transfer: {_text(frame)}")
        if frame.kind is StreamKind.INIT_ACK and not self.started:
            self._start(frame.offset, payload[9 + wire.TRANSFER_ID :])
        elif frame.kind is StreamKind.ACK and self.acked < frame.offset <= self.sent:
            self.acked = frame.offset
        elif frame.kind is StreamKind.COMPLETE:
            if frame.status:
                raise Rejected(f"the receiver could not store the file: {_text(frame)}")
            self.complete = True

    def _start(self, offset: int, extension: bytes) -> None:
        if offset > self.size:
            raise Rejected("the receiver wants to resume behind the end of the file")
        if room := wire.parse_room(extension):
            self.chunk_bytes = max(1, min(OWN_CHUNK, room.chunk_bytes))
            self.window = max(self.chunk_bytes, min(OWN_WINDOW, room.window_bytes))
        self.started = True
        self.resumed = self.sent = self.acked = offset


def _fill(file: FileIO, view: memoryview) -> int:
    done = 0
    while done < len(view) and (n := file.readinto(view[done:])):
        done += n
    return done


def _text(frame: wire.StreamFrame) -> str:
    return frame.text[:500] or "no reason given"


def _frames(reader: wire.FrameReader, data: bytes) -> list[tuple[int, bytes]]:
    try:
        return reader.feed(data)
    except WireError as e:
        raise PilotError("connection_failed", f"the peer answered with a {e.reason}") from None


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


def send_file(
    dial: Callable[[], Connection], path: str, progress: Progress | None = None, patience: float = STALL
) -> Sent:
    """Sends a file and returns when the receiver has stored and verified it.

    dial opens a connection to port 1001. patience: seconds without an acknowledgement. Raises PilotError: not_found,
    invalid_argument, connection_failed, timeout; the transfer can then be repeated and goes on where it stopped.
    """
    name = os.path.basename(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before open: a FIFO would block there
            raise PilotError("invalid_argument", f"{path} is not a regular file", "send one file at a time")
        wire.check_name(name)
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except WireError as e:
        raise PilotError("invalid_argument", f"{e.reason}: {name!r}", "rename the file") from None
    except OSError as e:
        code = "not_found" if isinstance(e, FileNotFoundError) else "invalid_argument"
        raise PilotError(code, f"cannot read {path}: {e.strerror}", "check the path") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        sha = digest(file, size, progress)
        started = monotonic()
        sender = FileSender(name, size, sha)
        try:
            try:
                _stream(dial, sender, file, progress, patience)
            except Rejected:
                if not sender.resumed:
                    raise
                sender = FileSender(name, size, sha)  # what the receiver kept of it was bad, and is gone now
                _stream(dial, sender, file, progress, patience)
        except Refused:
            ack = _single_frame(dial, name, file, size, patience)
            return Sent(name, size, sha, size, 0, monotonic() - started, ack, False)
        seconds = monotonic() - started
        return Sent(name, size, sha, size - sender.resumed, sender.resumed, seconds, "", True)


def _stream(
    dial: Callable[[], Connection], s: FileSender, file: FileIO, progress: Progress | None, stall: float
) -> None:
    reader = wire.FrameReader(MAX_ANSWER)
    with dial() as conn:
        conn.write(s.init, INIT_ACK_WAIT)
        _until(conn, reader, s, lambda: s.started, INIT_ACK_WAIT)
        file.seek(s.resumed)
        head = wire.CHUNK_HEAD
        buffer = memoryview(bytearray(head + s.chunk_bytes))
        moved, acked = monotonic(), s.acked
        try:
            while s.sent < s.size:
                if s.acked > acked:
                    moved, acked = monotonic(), s.acked
                patience = max(0.0, moved + stall - monotonic())
                size = s.next_size()
                if not size:
                    _until(conn, reader, s, lambda before=acked: s.acked > before, patience)  # type: ignore[misc]
                    continue
                body = buffer[head : head + size]
                if _fill(file, body) != size:
                    conn.write(s.abort("the file changed"), 5.0)
                    raise PilotError("invalid_argument", "the file changed while it was sent", "send it again")
                buffer[:head] = s.chunk_head(size)
                conn.write(buffer[: head + size], patience)
                for kind, payload in _frames(reader, conn.try_read()):
                    s.receive(kind, payload)
                if progress is not None:
                    progress("sending", s.acked, s.size)
            conn.write(s.done(), stall)
            _until(conn, reader, s, lambda: s.complete, COMPLETE_WAIT if stall == STALL else stall)
        except Rejected:
            raise
        except PilotError as e:
            if e.code == "not_running":
                raise _lost(s, "the daemon of this host stopped") from None
            raise _lost(s) if e.code in ("timeout", "connection_failed") else e from None
        if progress is not None:
            progress("sending", s.size, s.size)


def _until(conn: Connection, reader: wire.FrameReader, s: FileSender, ready: Callable[[], bool], seconds: float) -> None:
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
        for kind, payload in _frames(reader, data):
            s.receive(kind, payload)


def _lost(s: FileSender, what: str = "lost the peer") -> PilotError:
    return PilotError(
        "connection_failed",
        f"{what} after {s.acked} of {s.size} bytes; the file is not stored there",
        "run the same command again: the transfer goes on where it stopped",
        True,
    )


def _single_frame(dial: Callable[[], Connection], name: str, file: FileIO, size: int, stall: float) -> str:
    """The FILE frame for receivers without FILESTREAM; the answer, "" if none came."""
    if size > wire.MAX_FRAME:
        raise PilotError(
            "not_supported",
            f"the receiver takes no streamed files, and {size} bytes are too large for one frame",
            "upgrade the receiver's daemon",
        )
    file.seek(0)
    data = file.read()
    with dial() as conn:
        conn.write(wire.encode_file(name, data), stall)
        ack = read_answer(conn, ANSWER_WAIT if stall == STALL else stall)
    if ack.startswith("ERR") or (not ack and size > wire.FEB_MAX_FRAME):
        message = ack or "the receiver closed the stream without an answer"
        raise PilotError("connection_failed", f"file not stored: {message}")
    return ack


def read_answer(conn: Connection, seconds: float = ANSWER_WAIT) -> str:
    """The text that answers a frame; "" if the peer answers nothing (a message then counts as sent)."""
    reader, deadline = wire.FrameReader(MAX_ANSWER), monotonic() + seconds
    while True:
        try:
            data = conn.read(1 << 20, max(0.0, deadline - monotonic()))
        except PilotError as e:
            if e.code == "timeout":
                return ""
            raise
        if not data:
            return ""
        for _, payload in _frames(reader, data):
            return payload.decode("utf-8", "replace")


def send_message(conn: Connection, kind: int, data: bytes, seconds: float = ANSWER_WAIT) -> str:
    """One message as a plain frame; the receiver's answer, "" if none came."""
    conn.write(wire.encode(kind, data), STALL)
    return read_answer(conn, seconds)


def send_tagged(
    conn: Connection, kind: int, data: bytes, message_id: str, reply_to: str = "", seconds: float = ANSWER_WAIT
) -> tuple[str, bool]:
    """One message with its id: (answer, whether the receiver knows ids); without ids it is sent plain. seconds: for an
    answer."""
    try:
        frame = wire.Tagged(kind, data, message_id, reply_to).build()
    except WireError as e:
        raise PilotError("invalid_argument", e.reason, "1 to 128 of A-Z a-z 0-9 . _ : -") from None
    conn.write(frame, STALL)
    answer = read_answer(conn, seconds)
    if answer.startswith(("ACK UNKNOWN(10)", "ERR UNKNOWN(10)")):
        return send_message(conn, kind, data, seconds), False
    return answer, True


class Traced(NamedTuple):
    """How a message travelled, by the clocks of both hosts; milliseconds. None where the receiver does not say."""

    inner_ack: str
    to_receiver_ms: float | None = None
    receiver_process_ms: float | None = None
    return_trip_ms: float | None = None


def send_traced(
    conn: Connection, kind: int, data: bytes, message_id: str, reply_to: str = "", seconds: float = ANSWER_WAIT
) -> tuple[str, bool, Traced]:
    """As `send_tagged`, and asks the receiver when it did what. A receiver without traces gets the message plain."""
    body = wire.Trace(kind, time_ns(), data).pack()
    answer, tagged = send_tagged(conn, FrameType.TRACE, body, message_id, reply_to, seconds)
    came_ns = time_ns()
    if answer.startswith(("ACK UNKNOWN(5)", "ERR UNKNOWN(5)")):
        answer = send_message(conn, kind, data, seconds)
    return answer, tagged, _traced(answer, came_ns)


def _traced(answer: str, came_ns: int) -> Traced:
    try:
        said = json.loads(answer)
        sent, received, written, left = (
            int(said[name]) for name in ("sent_at_ns", "received_at_ns", "inbox_written_at_ns", "ack_sent_at_ns")
        )
        inner = str(said["inner_ack"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return Traced(answer)
    return Traced(inner, (received - sent) / 1e6, (written - received) / 1e6, (came_ns - left) / 1e6)
