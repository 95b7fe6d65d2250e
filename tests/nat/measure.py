"""What a user of a fresh connection notices: when the first byte arrives, how long the stream pauses, which path it ends on."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from itertools import pairwise
from typing import Any

from fleet import Agent

from pilot.sdk.aio import Client
from pilot.wire.address import parse

RECORD = 64
PERIOD_S = 0.005


@dataclasses.dataclass(slots=True)
class Opening:
    """One cold connection. Times in seconds from the dial request; None: it never came."""

    first_byte: float
    direct: float | None  # both sides had settled on a path without relay
    gap: float  # longest pause of the stream beyond the sender's own
    intact: bool
    kinds: tuple[str, str]  # path in use at the end: dialler, acceptor
    history: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    @property
    def tier(self) -> str:
        """The worse of both directions."""
        return max(self.kinds, key=("lan", "direct", "hole-punched", "relay", "").index)


async def open_cold(dialler: Agent, acceptor: Agent, port: int, seconds: float) -> Opening:
    """Dials, then sends a numbered record every 5 ms for `seconds`."""
    async with Client(dialler.socket) as a, Client(acceptor.socket) as b:
        me, peer = parse((await a.info())["address"]), parse((await b.info())["address"])
        assert me and peer
        async with await b.listen(port) as listener:
            receiving = asyncio.create_task(_receive(listener))
            try:
                start = time.monotonic()
                conn = await a.dial_addr(peer, port)
                sent, digest = await _send(conn, start + seconds)
                arrived, received = await asyncio.wait_for(receiving, 20)
            finally:
                receiving.cancel()
            paths = [await a.peer_path(peer.node), await b.peer_path(me.node)]
    now = time.monotonic()
    pauses = [
        (there[1] - there[0]) - max(0.0, here[1] - here[0] - PERIOD_S)
        for here, there in zip(pairwise(sent), pairwise(arrived), strict=False)
    ]
    kinds = [p["path"]["kind"] if p["path"] else "" for p in paths]
    turns = [
        max((now - d["age_s"] - start for d in p["history"] if d["step"] in ("connected", "changed")), default=None)
        for p in paths
    ]
    direct = max(t for t in turns if t is not None) if "relay" not in kinds and None not in turns else None
    intact = digest == received and len(arrived) == len(sent)
    histories = (paths[0]["history"], paths[1]["history"])
    return Opening(arrived[0] - start, direct, max(pauses), intact, (kinds[0], kinds[1]), histories)


class Flow:
    """A stream of numbered records, one every 5 ms, for as long as the context lasts. Leaving it ends the stream and checks that
    every byte arrived."""

    def __init__(self, sender: Agent, receiver: Agent, port: int) -> None:
        self._agents = (sender, receiver)
        self._port = port
        self._stack = contextlib.AsyncExitStack()
        self._stop = asyncio.Event()
        self._progress = asyncio.Condition()
        self._sent: list[float] = []
        self._arrived: list[float] = []

    async def __aenter__(self) -> Flow:
        self.clients = [await self._stack.enter_async_context(Client(a.socket)) for a in self._agents]
        infos = [parse((await c.info())["address"]) for c in self.clients]
        assert infos[0] and infos[1]
        self.nodes = [infos[0].node, infos[1].node]
        listener = await self._stack.enter_async_context(await self.clients[1].listen(self._port))
        accepting = asyncio.create_task(listener.accept())
        conn = await self.clients[0].dial_addr(infos[1], self._port)
        self._tasks = [asyncio.create_task(self._write(conn)), asyncio.create_task(self._read(await accepting))]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        try:
            sent, received = await asyncio.wait_for(asyncio.gather(*self._tasks), 20)
            assert kind is not None or (sent == received and len(self._sent) == len(self._arrived))
        finally:
            for task in self._tasks:
                task.cancel()
            await self._stack.aclose()

    async def flows(self, since: float, seconds: float) -> float:
        """Seconds from `since` (monotonic) until something sent after that arrived."""
        async with asyncio.timeout(seconds), self._progress:
            first = None
            while first is None:
                first = next((at for at, here in zip(self._arrived, self._sent, strict=False) if here > since), None)
                if first is None:
                    await self._progress.wait()
        return first - since

    async def kinds(self) -> tuple[str, str]:
        """Kind of path in use at the sender, at the receiver."""
        found = []
        for client, peer in zip(self.clients, reversed(self.nodes), strict=True):
            path = (await client.peer_path(peer))["path"]
            found.append(path["kind"] if path and path["answers"] else "")
        return found[0], found[1]

    async def settles(self, kinds: set[str], seconds: float) -> float:
        """Seconds until both sides use a path of these kinds."""
        start = time.monotonic()
        async with asyncio.timeout(seconds):
            while not set(now := await self.kinds()) <= kinds:
                await asyncio.sleep(0.05)
        del now
        return time.monotonic() - start

    async def _write(self, conn: Connection) -> bytes:
        digest = hashlib.sha256()
        while not self._stop.is_set():
            record = len(self._sent).to_bytes(RECORD, "big")
            self._sent.append(time.monotonic())
            digest.update(record)
            await conn.write(record)
            await asyncio.sleep(PERIOD_S)
        await conn.close()
        return digest.digest()

    async def _read(self, conn: Connection) -> bytes:
        digest = hashlib.sha256()
        pending = 0
        while data := await conn.read():
            now = time.monotonic()
            digest.update(data)
            whole, pending = divmod(pending + len(data), RECORD)
            self._arrived += [now] * whole
            async with self._progress:
                self._progress.notify_all()
        await conn.close()
        return digest.digest()


async def _send(conn: Any, until: float) -> tuple[list[float], bytes]:
    times: list[float] = []
    digest = hashlib.sha256()
    while (now := time.monotonic()) < until or not times:
        record = len(times).to_bytes(RECORD, "big")
        times.append(now)
        digest.update(record)
        await conn.write(record)
        await asyncio.sleep(PERIOD_S)
    await conn.close()
    return times, digest.digest()


async def _receive(listener: Any) -> tuple[list[float], bytes]:
    conn = await listener.accept()
    times: list[float] = []
    digest = hashlib.sha256()
    pending = 0
    while data := await conn.read():
        now = time.monotonic()
        digest.update(data)
        whole, pending = divmod(pending + len(data), RECORD)
        times += [now] * whole
    await conn.close()
    return times, digest.digest()
