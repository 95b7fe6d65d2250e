"""What a user of a connection notices: when the first byte arrives, how long the stream pauses, which path it is on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fleet import Agent

from pilot.sdk.aio import Client, Connection
from pilot.wire.address import Address, parse

RECORD = 64
PERIOD_S = 0.005


async def _address(client: Client) -> Address:
    address = parse((await client.info())["address"])
    assert address
    return address


class Flow:
    """A stream of numbered records, one every 5 ms, for as long as the context lasts. Leaving it ends the stream and checks that
    every byte arrived unaltered."""

    def __init__(self, sender: Agent, receiver: Agent, port: int) -> None:
        self.dialled = 0.0
        self.sent: list[float] = []
        self.arrived: list[float] = []
        self._agents = (sender, receiver)
        self._port = port
        self._stack = contextlib.AsyncExitStack()
        self._stop = asyncio.Event()
        self._progress = asyncio.Condition()

    async def __aenter__(self) -> Flow:
        try:
            self.clients = [await self._stack.enter_async_context(Client(a.socket)) for a in self._agents]
            addresses = [await _address(c) for c in self.clients]
            self.nodes = [a.node for a in addresses]
            listener = await self._stack.enter_async_context(await self.clients[1].listen(self._port))
            reading = asyncio.create_task(self._read(listener.accept()))
            self.dialled = time.monotonic()
            conn = await self.clients[0].dial_addr(addresses[1], self._port)
        except BaseException:
            await self._stack.aclose()
            raise
        self._tasks = [asyncio.create_task(self._write(conn)), reading]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        try:
            sent, received = await asyncio.wait_for(asyncio.gather(*self._tasks), 20)
            assert sent == received and len(self.sent) == len(self.arrived), "bytes were lost or altered"
        finally:
            for task in self._tasks:
                task.cancel()
            await self._stack.aclose()

    def gap(self, since: float = 0.0) -> float:
        """The longest pause between arrivals beyond the sender's own, seconds, of those that ended after `since` (monotonic)."""
        pauses = [
            there[1] - there[0] - max(0.0, here[1] - here[0] - PERIOD_S)
            for here, there in zip(pairwise(self.sent), pairwise(self.arrived), strict=False)
            if there[1] > since
        ]
        return max(pauses, default=0.0)

    async def flows(self, since: float, seconds: float) -> float:
        """Seconds from `since` (monotonic) until something sent after that arrived; TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds), self._progress:
            while True:
                for at, here in zip(self.arrived, self.sent, strict=False):
                    if here > since:
                        return at - since
                await self._progress.wait()

    async def paths(self) -> list[dict[str, Any]]:
        """What `pilotctl path` shows: at the sender, at the receiver."""
        return [await c.peer_path(peer) for c, peer in zip(self.clients, reversed(self.nodes), strict=True)]

    async def settles(self, kinds: set[str], seconds: float) -> float:
        """Waits until both sides use a path of these kinds that answers; returns how long that took."""
        start = time.monotonic()
        paths: list[dict[str, Any]] = []
        while time.monotonic() < start + seconds:
            paths = [p["path"] or {} for p in await self.paths()]
            if all(p and p["answers"] and p["kind"] in kinds for p in paths):
                return time.monotonic() - start
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within {seconds} s on {kinds}: {paths}")

    async def _write(self, conn: Connection) -> bytes:
        digest = hashlib.sha256()
        while not self._stop.is_set():
            record = len(self.sent).to_bytes(RECORD, "big")
            self.sent.append(time.monotonic())
            digest.update(record)
            await conn.write(record)
            await asyncio.sleep(PERIOD_S)
        await conn.close()
        return digest.digest()

    async def _read(self, accepting: Any) -> bytes:
        conn: Connection = await accepting
        digest = hashlib.sha256()
        pending = 0
        while data := await conn.read():
            now = time.monotonic()
            digest.update(data)
            whole, pending = divmod(pending + len(data), RECORD)
            self.arrived += [now] * whole
            async with self._progress:
                self._progress.notify_all()
        await conn.close()
        return digest.digest()


@dataclasses.dataclass(slots=True)
class Opening:
    """One cold connection. Times in seconds from the dial request; None: it never came."""

    fault: str = ""  # what went wrong, "" if nothing
    first_byte: float = 99.0
    direct: float | None = None  # both sides had settled on a path without relay
    gap: float = 99.0
    kinds: tuple[str, ...] = ()  # path in use at the end: dialler, acceptor
    told: list[str] = dataclasses.field(default_factory=list)  # decisions of both sides

    @property
    def tier(self) -> str:
        """The worse of both directions."""
        return max(self.kinds, key=("lan", "direct", "hole-punched", "relay", "").index, default="")


async def open_cold(dialler: Agent, acceptor: Agent, port: int, seconds: float, best: str, patience: float) -> Opening:
    """Dials and sends for `seconds`, and up to `patience` more while a direction is not on the kind of path named `best`."""
    result = Opening()
    try:
        async with Flow(dialler, acceptor, port) as flow:
            await asyncio.sleep(flow.dialled + seconds - time.monotonic())
            with contextlib.suppress(AssertionError):  # the kinds found in the end say it
                await flow.settles({best}, patience)
            paths, now = await flow.paths(), time.monotonic()
    except (Exception, asyncio.CancelledError) as error:
        result.fault = f"{dialler.name} to {acceptor.name}: {error!r}"
        return result
    result.first_byte = flow.arrived[0] - flow.dialled
    result.gap = flow.gap()
    result.kinds = tuple(p["path"]["kind"] if p["path"] else "" for p in paths)
    result.told = [f"{now - d['age_s'] - flow.dialled:.3f} {d['text']}" for p in paths for d in p["history"]]
    turns = [[d["age_s"] for d in p["history"] if d["step"] in ("connected", "changed")] for p in paths]
    if not {"relay", ""} & set(result.kinds) and all(turns):
        result.direct = now - flow.dialled - min(min(t) for t in turns)
    return result


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest of the values that a share `q` of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
