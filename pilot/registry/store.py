"""The durable half of the registry: one SQLite database, written by one thread in group commits.

The event loop appends changes to a batch and never waits; the thread writes whole batches, one transaction and one sync each
(WAL, synchronous=FULL). `seq` numbers the changes handed in, `durable` those on disk: who must not be told "done" before it is
done waits until `durable` reaches the `seq` of its change. A batch that fails is kept and tried again, in order, so that the
database never misses a change that memory has; until it succeeds `failing` says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pilot.errors import PilotError
from pilot.registry.state import HandshakeRequest, HandshakeResponse, Loaded, Network, Node

APPLICATION_ID = 0x50494C52  # "PILR" in the file header: tells our database from any other
SCHEMA_VERSION = 1
RETRY_S = 1.0

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE nodes (
  id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, owner BLOB, hostname TEXT NOT NULL, public INTEGER NOT NULL,
  tags TEXT NOT NULL, score INTEGER NOT NULL, task_exec INTEGER NOT NULL, key_created INTEGER NOT NULL,
  key_rotated INTEGER NOT NULL, rotations INTEGER NOT NULL, signs INTEGER NOT NULL, departed INTEGER NOT NULL
);
CREATE TABLE pairs (low INTEGER, high INTEGER, bits INTEGER NOT NULL, PRIMARY KEY (low, high)) WITHOUT ROWID;
CREATE TABLE requests (
  target INTEGER, sender INTEGER, justification TEXT NOT NULL, time INTEGER NOT NULL, polled INTEGER NOT NULL,
  PRIMARY KEY (target, sender)
) WITHOUT ROWID;
CREATE TABLE responses (
  target INTEGER, sender INTEGER, accept INTEGER NOT NULL, time INTEGER NOT NULL, PRIMARY KEY (target, sender)
) WITHOUT ROWID;
CREATE TABLE networks (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token BLOB NOT NULL, created INTEGER NOT NULL);
CREATE TABLE members (network INTEGER, node INTEGER, role TEXT NOT NULL, PRIMARY KEY (network, node)) WITHOUT ROWID;
"""

_COLUMNS = (
    "id", "key", "owner", "hostname", "public", "tags", "score", "task_exec", "key_created", "key_rotated", "rotations", "signs",
    "departed",
)  # fmt: skip
_PUT_NODE = (
    f"INSERT INTO nodes ({','.join(_COLUMNS)}) VALUES ({','.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT (id) DO UPDATE SET {','.join(f'{c}=excluded.{c}' for c in _COLUMNS[1:])}"
)
_PUT_PAIR = "INSERT OR REPLACE INTO pairs VALUES (?,?,?)"
_DROP_PAIR = "DELETE FROM pairs WHERE low=? AND high=?"
_PUT_REQUEST = "INSERT OR REPLACE INTO requests VALUES (?,?,?,?,?)"
_DROP_REQUEST = "DELETE FROM requests WHERE target=? AND sender=?"
_PUT_RESPONSE = "INSERT OR REPLACE INTO responses VALUES (?,?,?,?)"
_DROP_RESPONSE = "DELETE FROM responses WHERE target=? AND sender=?"

_PUT_NETWORK = "INSERT OR REPLACE INTO networks VALUES (?,?,?,?)"
_DROP_NETWORK = "DELETE FROM networks WHERE id=?"
_DROP_MEMBERS = "DELETE FROM members WHERE network=?"
_PUT_MEMBER = "INSERT OR REPLACE INTO members VALUES (?,?,?)"
_DROP_MEMBER = "DELETE FROM members WHERE network=? AND node=?"

Change = tuple[str, tuple[Any, ...]]


def _bad_store(path: Path, why: str, hint: str) -> PilotError:
    return PilotError("internal", f"registry database {path}: {why}", hint)


class MemoryStore:
    """A journal that keeps nothing: everything is as durable as it will ever be at once."""

    seq = 0
    durable = 0
    failing = ""

    def __init__(self) -> None:
        self.salt = secrets.token_bytes(32)

    def load(self) -> Loaded:
        return Loaded()

    def start(self, on_progress: Callable[[], None]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...
    def node(self, node: Node) -> None: ...
    def pair(self, low: int, high: int, bits: int) -> None: ...
    def request(self, request: HandshakeRequest) -> None: ...
    def drop_request(self, target: int, sender: int) -> None: ...
    def response(self, response: HandshakeResponse) -> None: ...
    def drop_response(self, target: int, sender: int) -> None: ...
    def network(self, network: Network) -> None: ...
    def drop_network(self, network: int) -> None: ...
    def member(self, network: int, node: int, role: str) -> None: ...


class Store:
    """The database at `path`. Journal methods and flush() are called from one thread, the writer runs in another."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens or creates the database and takes its lock. Raises PilotError when it is damaged, foreign, too new, in use or
        not accessible; a damaged database is never touched."""
        self.path = Path(path)
        self.seq = 0
        self.durable = 0
        self.failing = ""  # reason of the last failed write, "" when all is well
        self._batch: list[Change] = []
        self._cond = threading.Condition()
        self._stop = False
        self._thread: threading.Thread | None = None
        self._on_progress: Callable[[], None] = lambda: None
        self._lock_fd = -1
        self._db: sqlite3.Connection | None = None
        try:
            self._prepare_file()
            self._db = self._open()
            self.salt = self._check()
        except sqlite3.Error as error:
            self._release()
            raise _bad_store(
                self.path, f"damaged or no registry database ({error})",
                "restore it from a backup; it was left as it is. Move it away to start with an empty registry",
            ) from error  # fmt: skip
        except OSError as error:
            self._release()
            raise _bad_store(self.path, error.strerror or str(error), "check the path and its permissions") from error
        except PilotError:
            self._release()
            raise

    def _prepare_file(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "stop the other rendezvous or give this one another -store"
            raise _bad_store(self.path, "in use by another process", hint) from None
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)  # the side files of SQLite take the mode of the database
        finally:
            os.close(fd)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # or the name of a new file may not survive a power cut
        finally:
            os.close(directory)

    def _open(self) -> sqlite3.Connection:
        # The journal mode is written into the file: look at a foreign file before touching it.
        new = self.path.stat().st_size == 0
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        self._db = db
        if not new:
            found = db.execute("PRAGMA application_id").fetchone()[0]
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if found != APPLICATION_ID:
                raise _bad_store(self.path, "not a registry database", "give another -store; the file was not changed")
            if version > SCHEMA_VERSION:
                raise _bad_store(self.path, f"written by a newer release (format {version})", "run that release or a later one")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        if new:
            salt = secrets.token_bytes(32)
            db.executescript(
                f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION}; {_SCHEMA}"
                f"INSERT INTO meta VALUES ('owner_salt', x'{salt.hex()}'); COMMIT;"
            )
        return db

    def _check(self) -> bytes:
        assert self._db is not None
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        row = self._db.execute("SELECT value FROM meta WHERE name='owner_salt'").fetchone()
        if row is None or len(row[0]) != 32:
            raise sqlite3.DatabaseError("owner_salt is missing")
        return bytes(row[0])

    def load(self) -> Loaded:
        """Everything stored. Raises PilotError if a row makes no sense."""
        assert self._db is not None
        try:
            nodes = [
                Node(
                    id=r[0], key=bytes(r[1]), owner=r[2], hostname=r[3], public=bool(r[4]), tags=tuple(json.loads(r[5])),
                    score=r[6], task_exec=bool(r[7]), key_created=r[8], key_rotated=r[9], rotations=r[10],
                    signs_register=bool(r[11]), departed=r[12],
                )
                for r in self._db.execute(f"SELECT {','.join(_COLUMNS)} FROM nodes ORDER BY id")
            ]  # fmt: skip
            for node in nodes:
                if len(node.key) != 32 or not 0 < node.id < 0xFFFFFFFF:
                    raise ValueError(f"node {node.id} makes no sense")
            loaded = Loaded(
                nodes=nodes,
                pairs=self._db.execute("SELECT low, high, bits FROM pairs").fetchall(),
                requests=[
                    HandshakeRequest(r[0], r[1], r[2], r[3], bool(r[4]))
                    for r in self._db.execute("SELECT * FROM requests ORDER BY time")
                ],
                responses=[
                    HandshakeResponse(r[0], r[1], bool(r[2]), r[3])
                    for r in self._db.execute("SELECT * FROM responses ORDER BY time")
                ],
                networks=[Network(r[0], r[1], bytes(r[2]), r[3]) for r in self._db.execute("SELECT * FROM networks")],
                members=self._db.execute("SELECT network, node, role FROM members").fetchall(),
            )
            known, networks = {node.id for node in nodes}, {network.id for network in loaded.networks}
            for network, node_id, _ in loaded.members:
                if network not in networks or node_id not in known:
                    raise ValueError(f"member {node_id} of network {network} makes no sense")
            return loaded
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise _bad_store(self.path, f"damaged ({error})", "restore it from a backup; it was left as it is") from error

    def start(self, on_progress: Callable[[], None]) -> None:
        """Starts the writer. on_progress is called in its thread whenever `durable` or `failing` has changed."""
        self._on_progress = on_progress
        self._thread = threading.Thread(target=self._write, name="registry-store", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Lets the writer take what was handed in so far."""
        if self._batch:
            with self._cond:
                self._cond.notify()

    def close(self) -> None:
        """Writes what is left, closes the database, lets go of the lock. Idempotent."""
        with self._cond:
            self._stop = True
            self._cond.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._release()

    def _release(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)  # the lock file stays: removing it would race with a process that waits for it
            self._lock_fd = -1

    def _write(self) -> None:
        pending: list[Change] = []
        while True:
            with self._cond:
                if not self._batch and not pending and not self._stop:
                    self._cond.wait()
                pending += self._batch
                self._batch = []
                stopping = self._stop
            if pending:
                failing = self._commit(pending)
                if not failing:
                    self.durable += len(pending)
                    pending = []
                self.failing = failing
                self._on_progress()
                if failing:
                    if stopping:
                        return
                    with self._cond:
                        self._cond.wait_for(lambda: self._stop, RETRY_S)
            elif stopping:
                return

    def _commit(self, changes: list[Change]) -> str:
        """One transaction, one sync. "" or the reason why nothing of it was written."""
        assert self._db is not None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for sql, values in changes:
                self._db.execute(sql, values)
            self._db.execute("COMMIT")
        except (sqlite3.Error, OverflowError, ValueError) as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            return str(error) or type(error).__name__
        return ""

    def _append(self, sql: str, *values: Any) -> None:
        with self._cond:
            self._batch.append((sql, values))
        self.seq += 1

    def node(self, node: Node) -> None:
        self._append(
            _PUT_NODE, node.id, node.key, node.owner, node.hostname, node.public, json.dumps(node.tags), node.score,
            node.task_exec, node.key_created, node.key_rotated, node.rotations,
            node.signs_register, node.departed,
        )  # fmt: skip

    def pair(self, low: int, high: int, bits: int) -> None:
        if bits:
            self._append(_PUT_PAIR, low, high, bits)
        else:
            self._append(_DROP_PAIR, low, high)

    def request(self, request: HandshakeRequest) -> None:
        self._append(_PUT_REQUEST, request.target, request.sender, request.justification, request.time, request.polled)

    def drop_request(self, target: int, sender: int) -> None:
        self._append(_DROP_REQUEST, target, sender)

    def response(self, response: HandshakeResponse) -> None:
        self._append(_PUT_RESPONSE, response.target, response.sender, response.accept, response.time)

    def drop_response(self, target: int, sender: int) -> None:
        self._append(_DROP_RESPONSE, target, sender)

    def network(self, network: Network) -> None:
        self._append(_PUT_NETWORK, network.id, network.name, network.token, network.created)

    def drop_network(self, network: int) -> None:
        self._append(_DROP_NETWORK, network)
        self._append(_DROP_MEMBERS, network)

    def member(self, network: int, node: int, role: str) -> None:
        if role:
            self._append(_PUT_MEMBER, network, node, role)
        else:
            self._append(_DROP_MEMBER, network, node)
