"""Files that are either whole or not there: written beside their place, synced, renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def make_private_dir(path: Path) -> None:
    """Creates `path` and missing parents with mode 0700; existing directories stay as they are."""
    for directory in reversed([path, *path.parents]):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)


def sync_dir(path: Path) -> None:
    """Makes renames in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def open_atomic(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends; readers see the old or the new content.

    Raises OSError, and then nothing changed. A symlink at `path` is followed, so that it keeps pointing to the
    current file.
    """
    path = Path(os.path.realpath(path))
    make_private_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_dir(path.parent)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data`, as `open_atomic`. Raises OSError, and then nothing changed."""
    with open_atomic(path, mode) as f:
        f.write(data)
