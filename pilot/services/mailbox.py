"""Where received files and messages lie on disk, and how much of it (services.md section 3, "On-disk layout").

    received/<base>-<time>-<number><ext>      a whole file, never a part of one
    received/.partial/<hex transfer id>       what has arrived of it; its size is where the sender goes on
    inbox/<TYPE>-<time>-<number>.json         a message

Everything here blocks and runs in worker threads. Nothing a peer sends chooses a path: names are checked, symbolic
links in `.partial` are not followed. Directories are 0700, files 0600.

Space is taken by bytes that have come. What was only announced is kept free for its sender as far as it sends: a peer cannot keep
the others out by announcing much, nor make forgotten parts give way. A node's own announcements count in full for itself.
"""

from __future__ import annotations

import base64
import codecs
import contextlib
import errno
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pilot.files import make_private_dir, open_atomic, sync_dir
from pilot.services.inbox import Inbox
from pilot.services.partial import HashState, Partial
from pilot.wire import services as wire
from pilot.wire.errors import WireError

PARTIAL_S = 86400.0  # a transfer nobody continues
PRIVATE_PARTIAL_S = 3600.0  # a part that cannot be continued, left by a crash
MAX_PARTIALS = 256
SCAN_S = 60.0  # how long the size of received/ is believed without a look
SPARE_BYTES = 16 << 20  # left free on the disk
MAX_STORED_NAME = 255
MAX_EXT = 64
READ_BYTES = 1 << 20
_TRANSFER = re.compile(r"[0-9a-f]{32}")


class StoreError(Exception):
    """The file or message is not taken; the text is for the peer, so it names no path."""


def reason(error: StoreError | OSError) -> str:
    """What the peer is told."""
    return str(error) if isinstance(error, StoreError) else error.strerror or "input/output error"


def check_name(name: str) -> None:
    """Raises StoreError for a file name that is a path or cannot be shown."""
    try:
        wire.check_name(name)
    except WireError as e:
        raise StoreError(e.reason) from None
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in name):
        raise StoreError("file name has control characters")


def stored_name(name: str, stamp: str) -> str:
    """`report.txt` -> `report-<stamp>.txt`, at most 255 bytes."""
    base, dot, ext = name.rpartition(".")
    ext = dot + ext
    if not dot or len(ext.encode()) > MAX_EXT:
        base, ext = name, ""
    room = MAX_STORED_NAME - len(stamp.encode()) - 1 - len(ext.encode())
    base = base.encode()[:room].decode(errors="ignore")
    return f"{base}-{stamp}{ext}"


class Mailbox:
    """`received/` and `inbox/` of one home. Thread-safe."""

    def __init__(
        self,
        home: Path,
        *,
        received_quota: int = 2 << 30,
        base64_always: bool = False,
        on_full: Callable[[str, dict[str, int]], None] = lambda event, data: None,
        now_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """received_quota: bytes, 0 = what is free. on_full(event, data): `inbox.full` or `received.full`, from a
        worker thread. now_ns: wall time. clock: seconds, monotonic."""
        self.received = home / "received"
        self.partial = self.received / ".partial"
        self.inbox = Inbox(home / "inbox", lambda removed: on_full("inbox.full", {"removed": removed}))
        self._quota = received_quota
        self._base64 = base64_always
        self._on_full = on_full
        self._now_ns = now_ns
        self._clock = clock
        self._lock = threading.Lock()
        self._number = 0
        self._used = 0  # bytes in received/ but those of `_parts`
        self._scanned_ns = -1
        self._active: set[str] = set()
        self._parts: dict[str, Partial] = {}  # by name; all of them are active
        self._hashes: dict[str, HashState] = {}  # of parts that wait to go on
        self._owner: dict[str, int] = {}  # transfer: the node whose bytes lie in its partial file

    # ---- files ----

    def open_transfer(self, transfer_id: bytes, node: int, total: int) -> Partial:
        """The partial file of a transfer of `total` bytes; its `size` is where to go on.

        While another stream fills it, or if another node did, the transfer gets a file of its own: nobody spoils
        the transfer of somebody else. Raises StoreError, OSError.
        """
        name = transfer_id.hex()
        with self._lock:
            if name in self._active or self._owner.get(name, node) != node:
                name = f"{name}-{os.urandom(4).hex()}"
            else:
                self._owner.pop(name, None)
                self._owner[name] = node
                while len(self._owner) > MAX_PARTIALS:
                    del self._owner[next(iter(self._owner))]
            return self._claim(name, node, total, hashed=True)

    def open_file(self, node: int, total: int) -> Partial:
        """A new partial file for a FILE frame of `node`. Raises StoreError, OSError."""
        with self._lock:
            return self._claim(f"frame-{os.urandom(8).hex()}", node, total, hashed=False)

    def finish(self, part: Partial, name: str) -> Path:
        """Syncs a complete file and gives it its final name. Raises OSError, and then it has none."""
        part.sync()
        with self._lock:
            final = self._free_name(name)
            os.rename(part.path, final)
        sync_dir(self.received)
        return final

    def release(self, part: Partial, *, discard: bool = False) -> None:
        """The stream of `part` is over. discard: nobody will continue it."""
        state = None if discard else part.hash_state()
        part.close()
        if discard:
            with contextlib.suppress(OSError):
                os.unlink(part.path)
        with self._lock:
            self._active.discard(part.path.name)
            del self._parts[part.path.name]
            if state:
                self._hashes[part.path.name] = state
                if len(self._hashes) > MAX_PARTIALS:
                    del self._hashes[next(iter(self._hashes))]
            self._used += 0 if discard else part.size

    def sweep(self) -> None:
        """Removes partial files that are too old or too many."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            rows = sorted(_files(self.partial, skip=self._active), key=lambda row: row[2])
            now = self._now_ns() / 1e9
            for at, (path, size, changed) in enumerate(rows):
                keep_s = PARTIAL_S if _TRANSFER.fullmatch(path.name) else PRIVATE_PARTIAL_S
                if now - changed > keep_s or len(rows) - at > MAX_PARTIALS:
                    self._remove(path, size)

    def _claim(self, name: str, node: int, total: int, hashed: bool) -> Partial:
        """Opens a partial file."""
        self._active.add(name)
        held = 0
        with contextlib.suppress(OSError):
            held = os.lstat(self.partial / name).st_size
        self._used -= held
        try:
            self._make_room(total, node, announced=True)
            part = self._parts[name] = self._open(name, node, total, hashed)
        except BaseException:
            self._active.discard(name)
            self._used += held
            raise
        return part

    def _grow(self, part: Partial, count: int) -> None:
        with self._lock:
            self._make_room(count, part.node)
            part.take(count, self._clock())

    def _open(self, name: str, node: int, total: int, hashed: bool) -> Partial:
        make_private_dir(self.received)
        make_private_dir(self.partial)
        if not stat.S_ISDIR(os.lstat(self.partial).st_mode):
            raise OSError(errno.ENOTDIR, "received/.partial is not a directory")
        path = self.partial / name
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as e:
            if e.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            os.unlink(path)  # a symbolic link or a FIFO in the place of our file
            fd = os.open(path, flags | os.O_EXCL, 0o600)
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
                os.close(fd)
                os.unlink(path)
                fd = os.open(path, flags | os.O_EXCL, 0o600)
                state = os.fstat(fd)
            if state.st_size > total:
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        size = state.st_size if state.st_size <= total else 0
        part = Partial(fd, path, node, size, total, hashed=hashed, grow=self._grow)
        if known := self._hashes.pop(name, None):
            part.resume(known)
        return part

    def _make_room(self, size: int, node: int, *, announced: bool = False) -> None:
        """Refuses `size` bytes of `node` that neither the quota nor the disk has. Forgotten transfers give way, but only to bytes
        that have come, not to those that are announced."""
        if size <= self._room(node, announced) or size <= self._room(node, announced, scan=True):
            return
        rows = _files(self.partial, skip=self._active) if self.partial.is_dir() else ()
        forgotten = sorted(rows, key=lambda row: row[2])
        if announced and size <= self._room(node, announced) + sum(held for _, held, _ in forgotten):
            return
        for path, held, _ in () if announced else forgotten:
            self._remove(path, held)
            if size <= self._room(node, announced):
                return
        used = self._used + sum(p.taken for p in self._parts.values())
        self._on_full("received.full", {"used": used, "quota": self._quota, "size": size})
        raise StoreError("the receiver's space for files is used up")

    def _room(self, node: int, announced: bool, scan: bool = False) -> int:
        """Bytes that `node` may have beside what is kept for others, and, if they are only announced, for itself."""
        now = self._now_ns()
        if scan or not 0 <= now - self._scanned_ns < SCAN_S * 1e9:
            self._scanned_ns = now
            self._used = 0
            for directory in (self.received, self.partial):
                with contextlib.suppress(OSError):
                    self._used += sum(held for _, held, _ in _files(directory, skip=self._active))
        kept = taken = 0
        clock = self._clock()
        for part in self._parts.values():
            taken += part.taken
            if part.node != node:
                kept += part.promised(clock)
            elif announced:
                kept += max(0, part.total - part.taken)
        make_private_dir(self.received)
        disk = os.statvfs(self.received)
        room = disk.f_bavail * disk.f_frsize - SPARE_BYTES
        return (min(room, self._quota - self._used - taken) if self._quota else room) - kept

    def _remove(self, path: Path, size: int) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)
            self._used -= size
            self._owner.pop(path.name, None)

    def _free_name(self, name: str) -> Path:
        while True:
            final = self.received / stored_name(name, self._stamp())
            if not os.path.lexists(final):
                return final

    def _free_message(self, kind: str) -> Path:
        """A name that no message has: the number starts over with each daemon, and clocks are set back."""
        while True:
            path = self.inbox.path / f"{kind}-{self._stamp()}.json"
            if not os.path.lexists(path):
                return path

    def _stamp(self) -> str:
        """`<YYYYMMDD-HHMMSS.mmm>-<6 digits>`, local time. Needs the lock."""
        self._number = self._number % 999999 + 1
        ns = self._now_ns()
        text = time.strftime("%Y%m%d-%H%M%S", time.localtime(ns // 10**9))
        return f"{text}.{ns // 10**6 % 1000:03d}-{self._number:06d}"

    # ---- messages ----

    def store_message(self, kind: str, sender: str, body: IO[bytes], *, message_id: str = "", reply_to: str = "") -> Path:
        """A message from the start of `body` to its end. kind: TEXT, BINARY or JSON. Raises OSError."""
        size = body.seek(0, os.SEEK_END)
        binary = self._base64 or kind == "BINARY" or not _is_utf8(body)
        ns = self._now_ns()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns % 10**9:09d}Z"
        head = {"data_encoding": "base64" if binary else "utf8", "from": sender}
        ids = {k: v for k, v in (("message_id", message_id), ("reply_to", reply_to)) if v}
        rest = json.dumps(head | ids | {"received_at": at, "type": kind}, sort_keys=True, separators=(",", ":"))
        make_private_dir(self.inbox.path)
        with self._lock:
            path = self._free_message(kind)
        with open_atomic(path) as out:
            out.write(b'{"bytes":%d,"%s":"' % (size, b"data_b64" if binary else b"data"))
            for part in _base64_parts(body) if binary else _json_parts(body):
                out.write(part)
            out.write(b'",' + rest[1:].encode())
            written = out.tell()
        self.inbox.added(path, written)
        return path


def _files(directory: Path, skip: set[str]) -> Iterator[tuple[Path, int, float]]:
    """Regular files as (path, bytes, time of the last change)."""
    with os.scandir(directory) as rows:
        for row in rows:
            with contextlib.suppress(FileNotFoundError):
                if row.name not in skip and row.is_file(follow_symlinks=False):
                    state = row.stat(follow_symlinks=False)
                    yield Path(row.path), state.st_size, state.st_mtime


def _is_utf8(body: IO[bytes]) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    body.seek(0)
    try:
        while part := body.read(READ_BYTES):
            decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _json_parts(body: IO[bytes]) -> Iterator[bytes]:
    """The inside of a JSON string."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    body.seek(0)
    while part := body.read(READ_BYTES):
        yield json.dumps(decoder.decode(part), ensure_ascii=False)[1:-1].encode()


def _base64_parts(body: IO[bytes]) -> Iterator[bytes]:
    body.seek(0)
    while part := body.read(3 << 18):  # a multiple of 3: no padding inside
        yield base64.b64encode(part)
