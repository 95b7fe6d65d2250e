"""A progress bar on a terminal, nothing elsewhere. rich is imported only when there is something to draw."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Bytes done of `total`, on standard error. Use it in `with`; it disappears at the end."""

    def __init__(self, title: str, total: int, off: bool = False) -> None:
        self._title = title
        self._total = total
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._off = off or not sys.stderr.isatty()

    def __enter__(self) -> Bar:
        if not self._off:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

            self._progress = Progress(
                "{task.description}", BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=self._total)
        return self

    def update(self, done: int, title: str | None = None) -> None:
        """done: bytes; title: when another phase begins."""
        if self._progress is None or self._task is None:
            return
        if title is None or title == self._title:
            self._progress.update(self._task, completed=done)
        else:
            self._title = title
            self._progress.reset(self._task, description=title, total=self._total, completed=done)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
