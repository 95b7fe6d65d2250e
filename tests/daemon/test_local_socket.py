"""The local socket's file: nobody else gets in, a dead daemon's leftovers do not block, a live daemon's socket stays."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from world import umask_zero

from pilot.daemon import local_socket
from pilot.errors import PilotError


def listen(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    fd, made = local_socket.listen(path)
    return socket.socket(fileno=fd), made


def test_only_the_owner_can_connect_and_the_directory_stays_clean(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "pilot.sock"
    with umask_zero():
        sock, made = listen(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["pilot.sock"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = sock.accept()
        accepted.close()
    local_socket.remove(path, made)
    assert not path.exists()
    sock.close()


def test_leftover_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pilot.sock"
    dead, _ = listen(path)
    dead.close()
    assert path.exists()
    sock, _ = listen(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    sock.close()


def test_a_daemon_that_answers_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "pilot.sock"
    live, _ = listen(path)
    inode = path.stat().st_ino
    with pytest.raises(PilotError, match="already running") as e:
        listen(path)
    assert e.value.code == "already_exists" and path.stat().st_ino == inode
    live.close()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_not_touched(tmp_path: Path, kind: str) -> None:
    path, precious = tmp_path / "pilot.sock", tmp_path / "precious"
    precious.write_text("data")
    if kind == "file":
        path.write_text("data")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(precious)
    with pytest.raises(PilotError, match="not a socket"):
        listen(path)
    assert precious.read_text() == "data" and path.exists()


def test_a_successor_keeps_its_socket_when_the_old_daemon_leaves(tmp_path: Path) -> None:
    path = tmp_path / "pilot.sock"
    old, made = listen(path)
    os.rename(path, tmp_path / "aside")
    new, _ = listen(path)
    local_socket.remove(path, made)
    assert path.exists()
    old.close()
    new.close()


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(PilotError, match="socket") as e:
        listen(tmp_path / ("x" * 120))
    assert e.value.hint
    assert os.listdir(tmp_path) == []
