"""pilot.Node for the asyncio driver."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from net.ends import PORT, node_settings


class Node:
    def __init__(self, args: Namespace) -> None:
        self.args = args
        self.listener: Any = None

    async def start(self) -> None:
        from pilot import Node as PilotNode

        self.node = PilotNode(**node_settings(self.args))
        await self.node.start()
        if self.args.role == "server":
            self.listener = self.node.listen(PORT)
        elif not self.node.parts.trust.store.trusted:
            await self.node.handshake(self.args.peer, "benchmark")
            if not await self.node.wait_for_trust(self.args.peer, 30):
                raise RuntimeError("no trust")

    async def connect(self) -> _Stream:
        return _Stream(await self.node.dial(self.args.peer, PORT))

    async def accept(self) -> _Stream:
        return _Stream(await self.listener.accept())

    async def forget(self) -> None:
        raise NotImplementedError

    def path(self) -> str:
        return "relay" if any(row["relay"] for row in self.node.parts.plane.peers()) else "direct"


class _Stream:
    def __init__(self, stream: Any) -> None:
        self.write, self.read = stream.write, stream.read
        self.stream = stream

    async def close(self) -> None:
        self.stream.close()
