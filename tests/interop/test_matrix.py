"""The published programs and ours in every mixture: one cell for each operation, role and path.

Roles, by whose daemon and whose tools stand at the acting side and at the other:
  clients   published tools at our daemons            tools     our tools at published daemons
  registry  published both, at our rendezvous         outward   ours toward published      inward   published toward ours

Paths: direct, punched between two port-restricted sites, relay. A release in the place of a path is that older release, directly,
in the few operations that a fleet needs while it is being updated.

Each role on each path has a laboratory of its own, and a few of them run at once: most of the time goes by waiting. By default
the cells that take minutes are left out; PILOT_INTEROP=full runs every cell. The table is printed at the end of the run.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import exchanges  # noqa: F401 - each of the three adds operations, in the order in which they run
import faults  # noqa: F401
import operators  # noqa: F401
import published
import pytest
from lab import Lab
from operations import LOCAL, LONG, OPERATIONS, SEPARATE, ensure_trust
from testbed import DIRECT, OURS, PUNCHED, RELAYED, THEIRS, Machine, Testbed, programs

pytestmark = [
    pytest.mark.netns,
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

ROLES: dict[str, tuple[str, str, str, str]] = {
    "clients": (OURS, THEIRS, OURS, THEIRS),
    "tools": (THEIRS, OURS, THEIRS, OURS),
    "registry": (THEIRS, THEIRS, THEIRS, THEIRS),
    "outward": (OURS, OURS, THEIRS, THEIRS),
    "inward": (THEIRS, THEIRS, OURS, OURS),
}
PATHS = (DIRECT, PUNCHED, RELAYED)
FULL = os.environ.get("PILOT_INTEROP") == "full"
AT_ONCE = int(os.environ.get("PILOT_INTEROP_JOBS", "5"))
OLDER = ("info", "handshake-approve", "ping", "send-message-text", "send-file-1K", "restart-peer")
BETWEEN = ("outward", "inward")  # between daemons of both makes
UNTRUSTED = {"handshake-reject", "trust-required", "public", "handshake-approve"}

Cell = tuple[str, str, str]  # role, path, operation


def cells() -> Iterator[Cell]:
    """Those of one pair of machines together, in the order in which they run."""
    order = [n for n in OPERATIONS if n not in SEPARATE] + [n for n in OPERATIONS if n in SEPARATE]
    for path in PATHS:
        for role in ROLES:
            for name in order:
                if (path == DIRECT or name not in LOCAL) and (FULL or name not in LONG):
                    yield role, path, name
    for path in published.OLDER:
        yield from ((role, path, name) for role in (BETWEEN if path == published.ERA1 else ROLES) for name in OLDER)


def laid_out(bed: Testbed, role: str, path: str) -> tuple[Machine, Machine]:
    """The two machines of a role on a path. Raises published.Unavailable."""
    old = path if path in published.OLDER else THEIRS
    one, his, other, hers = (old if make == THEIRS else make for make in ROLES[role])
    makes = (one, his, other, hers)
    for make in makes:
        programs(make)
    flags = ("-accept-era1",) if path == published.ERA1 else ()
    return bed.pair(f"{role}-{path.replace('.', '-')}-", DIRECT if path in published.OLDER else path, makes, *flags)


class Matrix:
    """Runs the cells of each pair of machines in order, several pairs at once."""

    def __init__(self, wanted: list[Cell]) -> None:
        self.results: dict[Cell, Future[None]] = {cell: Future() for cell in wanted}
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE)
        for pair in dict.fromkeys((role, path) for role, path, _ in wanted):
            self._pool.submit(self._run, *pair)

    def close(self) -> None:
        self._ended.set()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, role: str, path: str) -> None:
        mine = [cell for cell in self.results if cell[:2] == (role, path)]
        try:
            with Lab() as lab:
                a, b = laid_out(Testbed(lab), role, path)
                for cell in mine:
                    if self._ended.is_set():
                        return
                    try:
                        run(a, b, cell[2])
                        self.results[cell].set_result(None)
                    except BaseException as error:
                        self.results[cell].set_exception(error)
        except BaseException as error:  # the laboratory itself failed
            for cell in mine:
                if not self.results[cell].done():
                    self.results[cell].set_exception(error)


def run(a: Machine, b: Machine, name: str) -> None:
    """One cell, on machines in whatever state the one before has left them."""
    for machine in (a, b):
        if machine.process is None or machine.process.poll() is not None:
            machine.process = None
            machine.start()
    if name not in UNTRUSTED and name not in LOCAL:
        ensure_trust(a, b)
    OPERATIONS[name](a, b)


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Iterator[Matrix]:
    try:
        published.bin_dir()
    except published.Unavailable as error:
        published.missing(error)
    asked = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    matrix = Matrix([(s.params["role"], s.params["path"], s.params["name"]) for s in asked if s is not None])
    yield matrix
    matrix.close()


@pytest.mark.timeout(900)  # of a cell and of those before it that have not ended
@pytest.mark.parametrize(("role", "path", "name"), [pytest.param(*cell, id="-".join(cell)) for cell in cells()])
def test_cell(matrix: Matrix, role: str, path: str, name: str) -> None:
    try:
        matrix.results[role, path, name].result()
    except published.Unavailable as error:
        published.missing(error)
