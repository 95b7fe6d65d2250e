"""Who this node trusts, who asked, who was sent away: `trust.json` (services.md section 2, "Persistence").

Both generations of the file are read; the later one is written, mode 0600, atomically, with our own open requests under
`requested` and the times of our last messages under `told`, which other implementations ignore. What others wrote beyond that is
kept as it is. A file that cannot be read to its last row is refused, never replaced: it is the only copy. A trusted entry pins
the peer's key: once known it changes only when the key itself vouches for another (handshake.py), or by a revocation.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pilot.errors import PilotError
from pilot.files import write_atomic

MAX_BYTES = 64 << 20
MAX_TRUSTED = 65536
MAX_PENDING = 256
KEPT_PENDING = 128  # of them, the earliest, give way to nobody
MAX_DISPLACED = 4096
ONCE_S = 86400.0
MAX_REQUESTED = 1024
MAX_TOLD = 1024
PENDING_S = 30 * 86400.0
RESTORE = "restore it from a backup, or move it away to start without trusted peers"
KNOWN = {
    "trusted": {"node_id", "public_key", "approved_at", "mutual", "network"},
    "pending": {"node_id", "public_key", "justification", "received_at"},
    "revoked": {"node_id", "until"},
    "requested": {"node_id", "sent_at"},
    "told": {"node_id", "type", "sent_at"},
}


@dataclass(frozen=True, slots=True)
class TrustedPeer:
    """public_key: 32 bytes, or b"" while it is not known. approved_at: Unix seconds. network: 0 = none."""

    node_id: int
    public_key: bytes
    approved_at: float
    mutual: bool
    network: int = 0


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A handshake request that waits for the user. public_key: b"" when it came through the registry."""

    node_id: int
    public_key: bytes
    justification: str
    received_at: float


@dataclass(slots=True)
class TrustStore:
    """The tables and their file. `path` None: memory only. Changes are kept on `save`."""

    path: Path | None = None
    trusted: dict[int, TrustedPeer] = field(default_factory=dict)
    pending: dict[int, PendingRequest] = field(default_factory=dict)
    revoked: dict[int, float] = field(default_factory=dict)  # node: ignore its accepts until (Unix time)
    requested: dict[int, float] = field(default_factory=dict)  # node: when we asked for its trust
    told: OrderedDict[tuple[int, str], int] = field(default_factory=OrderedDict)  # node, type of message: time of the last one
    foreign: dict[str, Any] = field(default_factory=dict)  # parts of the file that are not ours
    _extra: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # the same of a row, by (part, node)
    _displaced: OrderedDict[int, float] = field(default_factory=OrderedDict)  # node whose request gave way: when

    def is_trusted(self, node: int) -> bool:
        return node in self.trusted

    def make_way(self, node: int, now: float) -> bool:
        """Room for one pending request more, of `node`; False if there is none for it.

        In a full list the first half stays until the user has answered: a crowd cannot drive out who came early. Of the second
        half the oldest gives way, so it cannot keep out who comes late; and who gave way displaces nobody for a day."""
        if len(self.pending) < MAX_PENDING:
            return True
        while self._displaced and now - next(iter(self._displaced.values())) > ONCE_S:
            self._displaced.popitem(last=False)
        if node in self._displaced:
            return False
        oldest = next(itertools.islice(self.pending, KEPT_PENDING, None))
        del self.pending[oldest]
        self._displaced[oldest] = now
        if len(self._displaced) > MAX_DISPLACED:
            self._displaced.popitem(last=False)
        return True

    def pin(self, node: int, key: bytes) -> bool:
        """Remembers the key of a trusted peer; False if another key is pinned already or the peer is not
        trusted."""
        peer = self.trusted.get(node)
        if peer is None or len(key) != 32 or peer.public_key not in (b"", key):
            return False
        if not peer.public_key:
            self.trusted[node] = replace(peer, public_key=key)
        return True

    def save(self) -> None:
        """Writes the file (OSError)."""
        if self.path is not None:
            write_atomic(self.path, self.to_json().encode())
            tables: dict[str, Mapping[int, object]] = {
                "trusted": self.trusted, "pending": self.pending, "revoked": self.revoked, "requested": self.requested,
            }  # fmt: skip
            self._extra = {(part, node): extra for (part, node), extra in self._extra.items() if node in tables[part]}

    def to_json(self) -> str:
        """The file's text: two-space indented, absent parts left out."""
        data: dict[str, Any] = {"trusted": [_trusted_row(p) for p in self.trusted.values()] or None}
        if self.pending:
            data["pending"] = [_pending_row(p) for p in self.pending.values()]
        if self.revoked:
            data["revoked"] = [{"node_id": n, "until": _rfc3339(t)} for n, t in self.revoked.items()]
        if self.requested:
            data["requested"] = [{"node_id": n, "sent_at": _rfc3339(t)} for n, t in self.requested.items()]
        if self.told:
            data["told"] = [{"node_id": n, "type": type_, "sent_at": _rfc3339(t)} for (n, type_), t in self.told.items()]
        for part, rows in data.items():
            for row in rows or ():
                row.update(self._extra.get((part, row["node_id"]), {}))
        return json.dumps(data | self.foreign, indent=2)

    @classmethod
    def load(cls, path: Path | None) -> TrustStore:
        """Reads `path`; a missing file gives an empty store. PilotError if anything in it cannot be read."""
        store = cls(path)
        if path is None:
            return store
        try:
            with open(path, "rb") as f:
                raw = f.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return store
        except OSError as e:
            raise PilotError("permission_denied", f"trust file {path} cannot be read: {e.strerror}") from None
        try:
            if len(raw) > MAX_BYTES:
                raise ValueError("larger than 64 MiB")
            store._fill(_object(raw))
        except ValueError as e:
            raise PilotError("internal", f"trust file {path} is damaged: {e}", RESTORE) from None
        return store

    def _fill(self, data: dict[str, Any]) -> None:
        """ValueError names the part and row at fault."""
        for name, read in (
            ("trusted", self._read_trusted),
            ("pending", self._read_pending),
            ("revoked", self._read_revoked),
            ("requested", self._read_requested),
            ("told", self._read_told),
        ):
            rows = data.pop(name, None)
            if not isinstance(rows, list | None):
                raise ValueError(f"{name!r} is not a list")
            for at, row in enumerate(rows or ()):
                try:
                    node = read(row)
                except KeyError as e:
                    raise ValueError(f"entry {at} of {name!r} lacks {e}") from None
                except (TypeError, ValueError, OverflowError) as e:
                    raise ValueError(f"entry {at} of {name!r}: {e}") from None
                extra = {k: v for k, v in row.items() if k not in KNOWN[name]}
                if extra:
                    self._extra[name, node] = extra
        self.foreign = data

    def _read_trusted(self, row: dict[str, Any]) -> int:
        node = _node(row["node_id"])
        self.trusted[node] = TrustedPeer(
            node,
            _key(row.get("public_key")),
            _unix(row.get("approved_at")),
            row.get("mutual") is True,
            _network(row.get("network", 0)),
        )
        return node

    def _read_pending(self, row: dict[str, Any]) -> int:
        node = _node(row["node_id"])
        text = row.get("justification", "")
        self.pending[node] = PendingRequest(
            node,
            _key(row.get("public_key")),
            text if isinstance(text, str) else "",
            _unix(row.get("received_at")),
        )
        return node

    def _read_revoked(self, row: dict[str, Any]) -> int:
        node = _node(row["node_id"])
        self.revoked[node] = _unix(row["until"])
        return node

    def _read_requested(self, row: dict[str, Any]) -> int:
        node = _node(row["node_id"])
        self.requested[node] = _unix(row["sent_at"])
        return node

    def _read_told(self, row: dict[str, Any]) -> int:
        node = _node(row["node_id"])
        self.told[node, str(row["type"])] = int(_unix(row["sent_at"]))
        return node


def _object(raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    return data


def _trusted_row(p: TrustedPeer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node_id": p.node_id,
        "public_key": key_text(p.public_key),
        "approved_at": _rfc3339(p.approved_at),
        "mutual": p.mutual,
    }
    if p.network:
        row["network"] = p.network
    return row


def _pending_row(p: PendingRequest) -> dict[str, Any]:
    row: dict[str, Any] = {"node_id": p.node_id}
    if p.public_key:
        row["public_key"] = key_text(p.public_key)
    if p.justification:
        row["justification"] = p.justification
    return row | {"received_at": _rfc3339(p.received_at)}


def key_text(key: bytes) -> str:
    """Base64 of a key; "" if it is not known."""
    return base64.b64encode(key).decode()


def _key(text: object) -> bytes:
    if text in (None, ""):
        return b""
    if not isinstance(text, str):
        raise ValueError("key is not a string")
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise ValueError(str(e)) from None
    if len(key) != 32:
        raise ValueError("key is not 32 bytes")
    return key


def _node(value: object) -> int:
    if type(value) is not int or not 0 < value < 0xFFFFFFFF:
        raise ValueError("bad node number")
    return value


def _network(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 0xFFFF:
        raise ValueError("bad network number")
    return value


def _rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(int(unix), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _unix(text: object) -> float:
    """Unix seconds of an RFC 3339 time with any fraction and zone; 0 if it is missing."""
    if text is None:
        return 0.0
    if not isinstance(text, str):
        raise ValueError("time is not a string")
    parsed = datetime.fromisoformat(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
