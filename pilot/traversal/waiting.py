"""Callers that wait for a session and a path to a peer, or for the own endpoint, and the error that they get instead.

It decides nothing and owns no task: the traversal tells it what has happened, and each waiting caller gets the first thing
that settles its question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pilot.errors import PilotError
from pilot.traversal.decisions import Addr
from pilot.tunnel.exchange import KeyExchange


class Waiting:
    """Those who wait at one node."""

    def __init__(self, exchange: KeyExchange, connected: Callable[[int], bool]) -> None:
        """exchange: knows which sessions there are. connected: whether a peer has a proved session and a path that answers."""
        self._exchange = exchange
        self._connected = connected
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}
        self._endpoint_waiters: set[asyncio.Future[Addr]] = set()
        self._failures: dict[int, PilotError] = {}  # by peer: what the registry said last

    # ---- callers ----

    async def connection(self, node: int, timeout: float) -> None:  # noqa: ASYNC109
        """Returns when `node` is connected. Raises PilotError, see Traversal.connect."""
        self._failures.pop(node, None)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(node, set()).add(waiter)
        try:
            self.look(node)
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            raise self._no_path(node) from None
        finally:
            waiters = self._waiters.get(node, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiters.pop(node, None)

    async def endpoint(self, timeout: float) -> Addr | None:  # noqa: ASYNC109
        """The own endpoint when it becomes known; None if it does not in time."""
        waiter: asyncio.Future[Addr] = asyncio.get_running_loop().create_future()
        self._endpoint_waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._endpoint_waiters.discard(waiter)

    # ---- what has happened ----

    def look(self, node: int) -> None:
        """Something changed about `node`: perhaps it is connected now."""
        waiters = self._waiters.get(node)
        if waiters and self._connected(node):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def look_at_all(self) -> None:
        """Something may have changed about any peer."""
        for node in list(self._waiters):
            self.look(node)

    def failed(self, node: int, error: PilotError) -> None:
        """The registry did not say what was asked about `node`: a hint for those who find no path."""
        if node in self._waiters:
            self._failures[node] = error

    def unknown(self, node: int, error: PilotError) -> None:
        """The registry does not know `node`. An answer, unless there is a session: nobody can ever connect."""
        if not self._exchange.has_session(node):
            self.refuse(node, error)

    def refuse(self, node: int, error: PilotError) -> None:
        """There will be no connection to `node`."""
        for waiter in self._waiters.get(node, ()):
            if not waiter.done():
                waiter.set_exception(error)

    def found(self, endpoint: Addr) -> None:
        """The own endpoint is known."""
        for waiter in self._endpoint_waiters:
            if not waiter.done():
                waiter.set_result(endpoint)

    def close(self) -> None:
        """The node stops: all get an error."""
        gone = PilotError("not_running", "the node is shutting down")
        for waiter in [w for waiters in self._waiters.values() for w in waiters] + list(self._endpoint_waiters):
            if not waiter.done():
                waiter.set_exception(gone)

    def _no_path(self, node: int) -> PilotError:
        failure = self._failures.pop(node, None)
        if failure and failure.code == "not_found" and not self._exchange.has_session(node):
            return failure
        hint = f"registry: {failure.message}" if failure else ""
        if self._exchange.is_proved(node):
            return PilotError("connection_failed", f"no path to node {node} answers", hint, retryable=True)
        return PilotError("timeout", f"node {node} did not answer the key exchange", hint, retryable=True)
