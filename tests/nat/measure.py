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
