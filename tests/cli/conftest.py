from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# The scripted daemon is shared with the SDK's tests.
sys.path.insert(0, str(Path(__file__).parent.parent / "sdk"))

from fakedaemon import FakeNode

from pilot.cli.main import main


class Ran(NamedTuple):
    """What a command line did."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """`data` of a success envelope, which is one line."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, self.out
        envelope = json.loads(self.out)
        assert envelope["status"] == "ok"
        assert set(envelope) == {"data", "status"}
        return envelope["data"]

    @property
    def error(self) -> Any:
        """The error envelope on standard error."""
        assert self.out == ""
        envelope = json.loads(self.err)
        assert envelope["status"] == "error"
        return envelope


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and none of the user's settings."""
    import os

    for name in list(os.environ):
        if name.startswith("PILOT_") or name == "XDG_RUNTIME_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PILOT_HOME", str(tmp_path))
    monkeypatch.setenv("PILOT_SOCKET", str(tmp_path / "p.sock"))
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def call(*words: str) -> Ran:
        capsys.readouterr()
        status = main(words)
        got = capsys.readouterr()
        return Ran(status, got.out, got.err)

    return call


@pytest.fixture
def node(home: Path) -> Iterator[FakeNode]:
    """A node that answers on the socket the command line looks for."""
    with FakeNode(home / "p.sock") as fake:
        yield fake
