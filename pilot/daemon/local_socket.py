"""The listening Unix socket (ipc.md section 1): never open to others, never two daemons on one path."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from pilot.errors import PilotError
from pilot.files import make_private_dir

BACKLOG = 128
CONNECT_S = 2.0
MAX_PATH = 107  # bytes; sun_path with its final zero


def ensure_free(path: Path) -> None:
    """Raises PilotError if a daemon answers on `path`, something there is no socket, or no client could name it.
    Removes nothing."""
    if len(os.fsencode(path)) > MAX_PATH:
        message = f"socket {path}: longer than {MAX_PATH} bytes"
        raise PilotError("invalid_argument", message, "choose a shorter -socket")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise PilotError("permission_denied", f"socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise PilotError("already_exists", f"{path} exists and is not a socket", "choose another -socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # left behind by a daemon that was killed
        except OSError as error:  # somebody is there: full, slow, or of another user
            reason = error.strerror or "no answer"
            raise PilotError("already_exists", f"already running: {path} is in use ({reason})") from None
    raise PilotError(
        "already_exists", f"already running: a daemon answers on {path}", "stop it, or choose another -socket"
    )


def listen(path: Path) -> tuple[int, tuple[int, int]]:
    """Listens on `path`, mode 0600, replacing a dead socket there.

    Returns the descriptor (non-blocking, close-on-exec; the caller owns it) and the (device, inode) of the
    file, for `remove`. Raises PilotError.
    """
    ensure_free(path)
    try:
        make_private_dir(path.parent)
        return _listen(path)
    except OSError as error:
        text = error.strerror or str(error)  # a path that is too long has no errno
        raise PilotError("internal", f"socket {path}: {text}", "choose another -socket") from None


def _listen(path: Path) -> tuple[int, tuple[int, int]]:
    stage = path.parent / f".pilot-{os.urandom(8).hex()}"
    stage.mkdir(0o700)
    staged = stage / "s"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(staged))
        os.chmod(staged, 0o600)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        os.rename(staged, path)
        made = os.lstat(path)
        return sock.detach(), (made.st_dev, made.st_ino)
    finally:
        sock.close()
        with contextlib.suppress(FileNotFoundError):
            staged.unlink()
        stage.rmdir()


def remove(path: Path, made: tuple[int, int]) -> None:
    """Removes the socket file if it is still the one `listen` made: a successor may have replaced it."""
    with contextlib.suppress(OSError):
        there = os.lstat(path)
        if (there.st_dev, there.st_ino) == made:
            os.unlink(path)
