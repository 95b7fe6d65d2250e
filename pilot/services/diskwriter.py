"""Bytes from the event loop into a file, in a thread: what arrives during a write goes with the next one.

Order is kept; at most BACKLOG bytes wait, `put` blocks above that, and so does the sender in the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress

from pilot.services.mailbox import StoreError

BACKLOG = 2 << 20
PIECE_COST = 512  # a piece weighs more than its bytes


class Slots:
    """How many writers a node has at the same time: memory and threads are bounded by it."""

    def __init__(self, count: int, per_node: int) -> None:
        """per_node: what one peer may hold, so that none keeps the others out."""
        self.free = count
        self._per_node = per_node
        self._held: Counter[int] = Counter()

    def take(self, node: int) -> None:
        """One for `node`. StoreError if there is none."""
        if not self.free or self._held[node] >= self._per_node:
            raise StoreError("too many transfers at once, try again later")
        self.free -= 1
        self._held[node] += 1

    def give(self, node: int) -> None:
        """Gives one back."""
        self.free += 1
        self._held[node] -= 1
        self._held = +self._held

    @contextmanager
    def one(self, node: int) -> Iterator[None]:
        """Holds one for a block."""
        self.take(node)
        try:
            yield
        finally:
            self.give(node)


class Space:
    """Bytes that may lie about at the same time, counted as they come. `used`: now."""

    def __init__(self, total: int, per_node: int) -> None:
        """per_node: what one peer may have of it, so that none keeps the others out."""
        self.used = 0
        self.per_node = per_node
        self._total = total
        self._held: Counter[int] = Counter()

    @contextmanager
    def some(self, node: int) -> Iterator[Callable[[int], None]]:
        """A function that takes n bytes more for `node`, or raises StoreError. All are given back at the end of the block."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.used + count > self._total or self._held[node] + count > self.per_node:
                raise StoreError("too many long messages at once, try again later")
            self.used += count
            self._held[node] += count
            mine += count

        try:
            yield take
        finally:
            self.used -= mine
            self._held[node] -= mine
            self._held = +self._held


class DiskWriter:
    """Use it as an async context manager: leaving it waits for the write under way."""

    def __init__(
        self,
        write: Callable[[Sequence[memoryview]], None],
        pool: Executor,
        answer: Callable[[bytes], Awaitable[None]] | None = None,
        failed: Callable[[Exception], bytes] = lambda error: b"",
    ) -> None:
        """write: runs in `pool`, one call at a time. answer: takes what `note` was given once the bytes put before
        are written, or what `failed` says when they cannot be."""
        self._write = write
        self._pool = pool
        self._answer = answer
        self._failed = failed
        self._pieces: list[memoryview] = []
        self._notes = bytearray()
        self._cost = 0
        self._error: BaseException | None = None
        self._closing = False
        self._changed = asyncio.Event()  # for the task
        self._progress = asyncio.Event()  # for put and drain
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> DiskWriter:
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def put(self, piece: memoryview) -> None:
        """Takes a piece, which nobody changes any more. Raises what an earlier write raised; ConnectionAbortedError
        after `close`."""
        await self._until(lambda: self._cost < BACKLOG)
        self._pieces.append(piece)
        self._cost += len(piece) + PIECE_COST
        self._changed.set()

    def note(self, answer: bytes) -> None:
        """Sends `answer` when everything put so far is written."""
        self._notes += answer
        self._changed.set()

    async def drain(self) -> None:
        """Waits until everything is written and answered. Raises what a write or an answer raised."""
        await self._until(lambda: not self._cost and not self._notes)

    async def close(self) -> None:
        """Writes what waits, ends the task. Never raises: `drain` reports."""
        self._closing = True
        self._changed.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _until(self, ready: Callable[[], bool]) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if self._closing:
                raise ConnectionAbortedError("the writer is closed")
            if ready():
                return
            self._progress.clear()
            await self._progress.wait()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                pieces, self._pieces = self._pieces, []
                notes = len(self._notes)  # those that belong to `pieces` and to earlier ones
                if pieces:
                    await loop.run_in_executor(self._pool, self._write, pieces)
                    self._cost -= sum(len(p) + PIECE_COST for p in pieces)
                if notes and self._answer is not None:
                    await self._answer(bytes(self._notes[:notes]))
                    del self._notes[:notes]
                self._progress.set()
                if not self._pieces and not self._notes:
                    if self._closing:
                        return
                    self._changed.clear()
                    await self._changed.wait()
        except Exception as e:
            self._error = e
            if self._answer is not None and (last := self._failed(e)):
                with suppress(Exception):  # the stream is gone too
                    await self._answer(last)
        finally:
            self._progress.set()
