"""The node's Ed25519 identity and its file (transport.md section 8)."""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

from pilot._core import SigningKey
from pilot.errors import PilotError
from pilot.files import write_atomic
from pilot.wire.frames import KeyLink

log = logging.getLogger("pilot.identity")

MAX_BYTES = 64 << 10


class NodeIdentity:
    """An Ed25519 key pair. It has no text form: nothing can log it by accident."""

    def __init__(self, private: SigningKey) -> None:
        self._private = private
        self.public_key = private.public_key
        self.links: tuple[KeyLink, ...] = ()  # what its former keys have signed for their successors, oldest first

    @classmethod
    def generate(cls) -> NodeIdentity:
        """A fresh identity."""
        return cls(SigningKey(os.urandom(32)))

    @property
    def public_text(self) -> str:
        """The public key as the registry takes it: base64."""
        return _text(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """64 bytes, plain Ed25519."""
        return self._private.sign(message)

    def to_json(self) -> str:
        """Text of the identity file. It holds the private key."""
        both = self._private.raw() + self.public_key
        fields = {"private_key": base64.b64encode(both).decode(), "public_key": self.public_text}
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, text: bytes) -> NodeIdentity:
        """Reads the text of an identity file. ValueError says what is wrong with it, without quoting it."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        both = _decode(data, "private_key", 64)
        public = _decode(data, "public_key", 32)
        identity = cls(SigningKey(both[:32]))
        if identity.public_key != public or both[32:] != public:
            raise ValueError("public_key does not belong to private_key")
        return identity

    def save(self, path: Path) -> None:
        """Writes the file, 0600, whole or not at all; missing directories are made 0700. PilotError."""
        _write(path, self.to_json())

    def become(self, other: NodeIdentity, links: tuple[KeyLink, ...]) -> None:
        """Takes over another key: everybody who holds this identity signs with it from now on. links: of the former keys."""
        self._private = other._private
        self.public_key = other.public_key
        self.links = links


class IdentityFile:
    """The identity file of a running node: loaded or made, and locked against a second daemon.

    Changing the key takes two steps, `prepare` before the registry is asked and `commit` after it agreed, so that
    a crash between them loses neither key: `prepared` is then what the next start finds.
    """

    def __init__(self, path: Path) -> None:
        """Raises PilotError: permission_denied (readable by others, or not by us), already_exists (another daemon
        uses it), internal (damaged: it is never overwritten)."""
        self._path = Path(os.path.realpath(path))
        self._next = self._path.with_name(self._path.name + ".next")
        self._links = self._path.with_name(self._path.name + ".links")
        self._lock = -1
        if not self._path.exists():
            NodeIdentity.generate().save(self._path)
        self._take_lock()
        try:
            self.identity = _load(self._path)
            self.identity.links = self._load_links()
            self.prepared = self._load_next()
        except PilotError:
            self.close()
            raise

    def prepare(self, new: NodeIdentity, node: int) -> None:
        """Keeps the future key beside the present one. node: own number. PilotError."""
        fields = {**json.loads(new.to_json()), "node_id": node}
        _write(self._next, json.dumps(fields, indent=2))
        self.prepared = new, node

    def commit(self) -> None:
        """The prepared key becomes the identity, in the file and in `identity`. PilotError."""
        assert self.prepared
        rows = [{"old": _text(link.old), "signature": _text(link.signature)} for link in self.identity.links]
        _write(self._links, json.dumps(rows, indent=2))
        self.prepared[0].save(self._path)
        self.identity.become(self.prepared[0], self.identity.links)
        self.drop()
        self._take_lock()

    def drop(self) -> None:
        """Forgets the prepared key."""
        self._next.unlink(missing_ok=True)
        self.prepared = None

    def close(self) -> None:
        """Lets go of the lock. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PilotError("permission_denied", f"identity {self._path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise PilotError(
                "already_exists",
                f"already running: another daemon uses the identity {self._path}",
                "stop it, or choose another -identity",
            ) from None
        except OSError:
            pass  # a file system without locks
        self.close()
        self._lock = fd

    def _load_links(self) -> tuple[KeyLink, ...]:
        """Without them peers that were away during a change have to be asked for trust anew: no reason not to start."""
        try:
            rows = json.loads(_read(self._links))
            return tuple(KeyLink(_decode(row, "old", 32), _decode(row, "signature", 64)) for row in rows)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, AttributeError, RecursionError, PilotError):
            log.warning("the former identity keys cannot be read", extra={"path": str(self._links)})
            return ()

    def _load_next(self) -> tuple[NodeIdentity, int] | None:
        try:
            text = _read(self._next)
            node = json.loads(text)["node_id"]
            return NodeIdentity.from_json(text), int(node)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, PilotError):
            return None  # half a change that was never asked for


def peek(path: Path) -> NodeIdentity | None:
    """The identity in a file without making, locking or changing anything; None if there is no file. PilotError."""
    path = Path(os.path.realpath(path))
    return _load(path) if path.exists() else None


def _load(path: Path) -> NodeIdentity:
    try:
        return NodeIdentity.from_json(_read(path))
    except OSError as error:
        raise PilotError("permission_denied", f"identity {path}: {error.strerror}") from None
    except ValueError as error:
        raise PilotError(
            "internal",
            f"identity {path} is damaged: {error}",
            "restore it from a backup, or move it away to start with a new identity and address",
        ) from None


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise PilotError(
            "internal", f"identity {path} cannot be written: {error.strerror}", "choose another -identity"
        ) from None


def _read(path: Path) -> bytes:
    """The file's bytes, a symlink followed. The mode is checked on the open file, not on its name."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise PilotError("permission_denied", f"identity {path} is not a regular file")
        if mode & 0o077:
            raise PilotError(
                "permission_denied",
                f"identity {path} is open to other users (mode {stat.S_IMODE(mode):04o})",
                f"chmod 600 {path}",
            )
        return file.read(MAX_BYTES)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decode(data: dict[str, Any], name: str, size: int) -> bytes:
    value = data.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is missing")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64") from None
    if len(raw) != size:
        raise ValueError(f"{name} has {len(raw)} bytes instead of {size}")
    return raw
