"""Handshakes that travel through the registry: when to ask for them, and each of them once.

A poll empties the inbox of this node at the registry; what it hands out may come twice (registry.md section
5), so entries are remembered for a while. Callers that want fresh entries share one poll.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pilot.errors import PilotError
from pilot.trust.handshake import HandshakeMachine

log = logging.getLogger(__name__)

FAST_S = 2.0  # between polls after a request of ours
FAST_FOR_S = 120.0
SLOW_S = 60.0
NOTIFY_BURST = 3
NOTIFY_REFILL_S = 5.0
NOTIFY_GAP_S = 2.0
POLL_TIMEOUT_S = 5.0
LOOKUP_S = 8.0
REMEMBERED = 4096
REMEMBER_S = 600.0
MAX_ENTRIES = 1024  # of one reply that are looked at


class TrustRegistry(Protocol):
    """The part of the registry client that trust needs; it signs as this node (registry.md sections 4 and 5).

    `node` is the peer. Failures are PilotError."""

    async def lookup(self, node: int) -> Mapping[str, Any]:
        """Reply of `lookup`: public_key (base64), networks."""

    async def request_handshake(self, node: int, justification: str) -> object:
        """Puts a request into the inbox of `node`."""

    async def poll_handshakes(self) -> Mapping[str, Any]:
        """requests [{from_node_id, justification, timestamp}], responses [{from_node_id, accept, timestamp}]."""

    async def respond_handshake(self, node: int, accept: bool) -> object:
        """Answers the request of `node`."""

    async def report_trust(self, node: int) -> object:
        """This node and `node` trust each other."""

    async def revoke_trust(self, node: int) -> object:
        """This node and `node` do not trust each other any more."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """An entry of the inbox. accept: None for a request, else the answer of `node` to ours."""

    node: int
    accept: bool | None
    justification: str


def read_reply(reply: Mapping[str, Any]) -> list[tuple[Relayed, tuple[Any, ...]]]:
    """The entries of a poll's reply with what makes each one itself; malformed ones are left out."""
    out: list[tuple[Relayed, tuple[Any, ...]]] = []
    for name in ("requests", "responses"):
        rows = reply.get(name)
        for row in rows[:MAX_ENTRIES] if isinstance(rows, list) else ():
            if not isinstance(row, Mapping):
                continue
            node, accept, text = row.get("from_node_id"), row.get("accept"), row.get("justification")
            if type(node) is not int or not 0 < node < 0xFFFFFFFF:
                continue
            text = text if isinstance(text, str) else ""
            if name == "responses" and not isinstance(accept, bool):
                continue
            entry = Relayed(node, accept if name == "responses" else None, text)
            at = row.get("timestamp")
            out.append((entry, (entry, at if isinstance(at, int | float | str) else None)))
    return out


def read_key(reply: Mapping[str, Any]) -> bytes | None:
    """Ed25519 key of a lookup's reply, 32 bytes; None if there is none."""
    try:
        key = base64.b64decode(str(reply.get("public_key") or ""), validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == 32 else None


def read_networks(reply: Mapping[str, Any]) -> set[int]:
    """Networks of a lookup's reply but the backbone, which everybody is in."""
    rows = reply.get("networks")
    return {n for n in rows if type(n) is int and 0 < n <= 0xFFFF} if isinstance(rows, list) else set()


async def vouch(registry: TrustRegistry, machine: HandshakeMachine, node: int) -> tuple[bytes | None, int]:
    """Key of `node` by the registry, None if it cannot say; a network both are in, if that matters."""
    try:
        async with asyncio.timeout(LOOKUP_S):
            theirs = await registry.lookup(node)
            shared = 0
            if machine.policy.same_network:
                own = await registry.lookup(machine.own_node)
                shared = min(read_networks(own) & read_networks(theirs), default=0)
    except (PilotError, OSError) as e:
        log.debug("handshake.no_lookup", extra={"peer": node, "reason": str(e)})
        return None, 0
    return read_key(theirs), shared


class NotifyLimit:
    """Beacon messages are hints that anybody can forge: burst 3, one more per 5 s, 2 s apart (beacon.md 3.9)."""

    def __init__(self) -> None:
        self._tokens = float(NOTIFY_BURST)
        self._at = 0.0
        self._last = float("-inf")

    def allows(self, now: float) -> bool:
        """Takes a token if a poll may start. now: seconds, monotonic."""
        self._tokens = min(float(NOTIFY_BURST), self._tokens + (now - self._at) / NOTIFY_REFILL_S)
        self._at = now
        if self._tokens < 1.0 or now - self._last < NOTIFY_GAP_S:
            return False
        self._tokens -= 1.0
        self._last = now
        return True


class RelayPoller:
    """Polls on a schedule (`run`), on a hint (`notify`) and on demand (`poll`)."""

    def __init__(
        self,
        registry: TrustRegistry,
        handle: Callable[[Relayed], Awaitable[None]],
        waiting: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        """handle: takes one new entry. waiting: a request of ours is unanswered. clock: seconds, monotonic."""
        self._registry = registry
        self._handle = handle
        self._waiting = waiting
        self._clock = clock
        self._limit = NotifyLimit()
        self._fast_until = float("-inf")
        self._wake = asyncio.Event()
        self._poll: asyncio.Task[bool] | None = None
        self._known: OrderedDict[tuple[Any, ...], float] = OrderedDict()

    def hurry(self) -> None:
        """An answer is expected: polls every 2 s for the next 2 minutes, as long as one is."""
        self._fast_until = self._clock() + FAST_FOR_S
        self._wake.set()

    def notify(self) -> None:
        """The beacon says that the inbox holds something (0x0A)."""
        if self._limit.allows(self._clock()):
            self._spawn()

    async def poll(self, seconds: float = POLL_TIMEOUT_S) -> bool:
        """Fetches and handles what waits, at most `seconds`; False if the registry did not answer."""
        task = self._spawn()
        done, _ = await asyncio.wait([task], timeout=seconds)
        return bool(done) and not task.cancelled() and task.result()

    async def run(self) -> None:
        """Polls for ever; the owner cancels it."""
        await self.poll()
        while True:
            fast = self._clock() < self._fast_until and self._waiting()
            self._wake.clear()
            try:
                async with asyncio.timeout(FAST_S if fast else SLOW_S):
                    await self._wake.wait()
                continue  # the pace has changed
            except TimeoutError:
                await self.poll()

    async def close(self) -> None:
        """Ends a poll that is under way."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)

    def _spawn(self) -> asyncio.Task[bool]:
        if self._poll is None or self._poll.done():
            self._poll = asyncio.get_running_loop().create_task(self._fetch())
        return self._poll

    async def _fetch(self) -> bool:
        try:
            async with asyncio.timeout(POLL_TIMEOUT_S):
                reply = await self._registry.poll_handshakes()
        except (PilotError, OSError) as e:  # TimeoutError is an OSError
            log.debug("handshake.poll_failed", extra={"reason": str(e) or "no answer"})
            return False
        now = self._clock()
        while self._known and now - next(iter(self._known.values())) > REMEMBER_S:
            self._known.popitem(last=False)
        for entry, mark in read_reply(reply):
            if mark in self._known:
                continue
            if len(self._known) >= REMEMBERED:
                self._known.popitem(last=False)
            self._known[mark] = now
            try:
                await self._handle(entry)
            except PilotError as e:  # a limit; the entries behind it are not to blame
                log.warning("handshake.relayed_failed", extra={"peer": entry.node, "reason": e.message})
        return True
