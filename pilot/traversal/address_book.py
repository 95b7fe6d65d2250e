"""What the registry says about peers, cached: fresh for a minute, kept for an hour so that a registry outage
stops nobody."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

from pilot.errors import PilotError
from pilot.traversal.nat import Scope, parse_addr, same_subnet, scope
from pilot.traversal.peer_paths import Addresses
from pilot.tunnel.packing import Plain, pack, unpack

FRESH_S = 60.0
KEPT_S = 3600.0
FAILED_S = 3.0
TIMEOUT_S = 8.0
MAX_ENTRIES = 8192


class RegistryClient(Protocol):
    """The part of the registry client that paths need (registry.md 5). Failures are PilotError; `not_found`
    and
    `permission_denied` are answers, everything else is an outage."""

    async def lookup(self, node: int) -> Mapping[str, Any]:
        """Reply of `lookup`: public_key (base64), public, real_addr for public nodes, ..."""

    async def resolve(self, node: int) -> Mapping[str, Any]:
        """Reply of `resolve`: real_addr, lan_addrs, relay_only."""


_FIELDS = ("public_key", "real_addr", "endpoint", "relay_only", "lan_addrs")  # of a reply; the others are nobody's concern here
_TEXT_MAX, _TEXTS_MAX, _KEY_TEXT_MAX = 300, 16, 1024


class _Cache:
    """One registry command by node: coalesced, bounded, with the two ages. Answers are packed: there is one for each peer."""

    def __init__(
        self, ask: Callable[[int], Awaitable[Mapping[str, Any]]], clock: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._answers: dict[int, bytes] = {}  # when it came, and its fields; the oldest first
        self._failures: OrderedDict[int, tuple[float, PilotError]] = OrderedDict()  # last question: when, why
        self._running: dict[int, asyncio.Task[Mapping[str, Any]]] = {}

    async def get(self, node: int, fresh: bool) -> Mapping[str, Any]:
        """The reply. fresh: not an older answer, unless the registry is out. Raises PilotError."""
        now = self._clock()
        failure = self._failures.get(node)
        if failure and now - failure[0] < FAILED_S:
            return self._kept(node, failure[1], now)
        if not failure and not fresh and (state := self._answers.get(node)):
            at, reply = _unpacked(state)
            if now - at < FRESH_S:
                return reply
        task = self._running.get(node)
        if not task:
            task = self._running[node] = asyncio.ensure_future(self._fetch(node))
            task.add_done_callback(lambda _: self._running.pop(node, None))
        return await asyncio.shield(task)

    def ask_again(self, node: int) -> None:
        """A failure is not held against the next question."""
        failure = self._failures.get(node)
        if failure:
            self._failures[node] = (float("-inf"), failure[1])

    def forget(self, node: int) -> None:
        """Drops what is cached."""
        self._answers.pop(node, None)
        self._failures.pop(node, None)

    def cancel(self) -> None:
        """Ends questions under way."""
        for task in list(self._running.values()):
            task.cancel()

    async def _fetch(self, node: int) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reply = await self._ask(node)
            self.forget(node)
            state = self._answers[node] = _packed(reply, self._clock())
            self._drop_old()
            key = reply.get("tunnel_key")  # of use for as long as it is news
            return _unpacked(state)[1] | ({"tunnel_key": key} if isinstance(key, str) and len(key) <= _KEY_TEXT_MAX else {})
        except TimeoutError:
            error = PilotError("timeout", "the registry does not answer", retryable=True)
        except PilotError as refused:
            error = refused
            if error.code in ("not_found", "permission_denied"):
                self._answers.pop(node, None)  # an answer, not an outage: what was known is void
        except OSError as broken:
            error = PilotError("connection_failed", f"the registry cannot be reached: {broken}", retryable=True)
        now = self._clock()
        self._failures[node] = (now, error)
        self._failures.move_to_end(node)
        if len(self._failures) > MAX_ENTRIES:
            self._failures.popitem(last=False)
        return self._kept(node, error, now)

    def _kept(self, node: int, error: PilotError, now: float) -> Mapping[str, Any]:
        state = self._answers.get(node)
        if state:
            at, reply = _unpacked(state)
            if now - at < KEPT_S:
                return reply
        raise error

    def _drop_old(self) -> None:
        """What nobody may use any more, two at a time, and what is too many."""
        for _ in range(2):
            node, state = next(iter(self._answers.items()))
            if len(self._answers) <= MAX_ENTRIES and self._clock() - _unpacked(state)[0] < KEPT_S:
                return
            del self._answers[node]


def _packed(reply: Mapping[str, Any], at: float) -> bytes:
    return pack((at, *(_plain(reply.get(field)) for field in _FIELDS)))


def _unpacked(state: bytes) -> tuple[float, dict[str, Any]]:
    at, *values = unpack(state)
    return at, dict(zip(_FIELDS, values, strict=True))


def _plain(value: object) -> Plain:
    """A value of a registry's reply as far as it makes sense in one of the fields."""
    if isinstance(value, list):
        return tuple(text[:_TEXT_MAX] for text in value[:_TEXTS_MAX] if isinstance(text, str) and text.isascii())
    if isinstance(value, str):
        return value[:_TEXT_MAX] if value.isascii() else None
    return value if isinstance(value, bool) else None


class AddressBook:
    """Keys and endpoints of nodes."""

    def __init__(self, registry: RegistryClient, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._lookups = _Cache(registry.lookup, clock)
        self._resolves = _Cache(registry.resolve, clock)

    async def public_key(self, node: int, fresh: bool = False) -> bytes:
        """Ed25519 key, 32 bytes. Raises PilotError; not_found also when the node has none."""
        reply = await self._lookups.get(node, fresh)
        try:
            public = base64.b64decode(str(reply.get("public_key") or ""), validate=True)
        except binascii.Error:
            public = b""
        if len(public) != 32:
            raise PilotError("not_found", f"the registry has no usable key for node {node}")
        return public

    async def addresses(
        self, node: int, local: Iterable[str], own: str | None, fresh: bool = False
    ) -> Addresses:
        """Endpoints of a node. local: addresses of this host; own: host of our public endpoint. Where the
        registry refuses to
        resolve, what it shows of public nodes. Raises PilotError."""
        try:
            reply = await self._resolves.get(node, fresh)
        except PilotError as refused:
            try:
                reply = await self._lookups.get(node, fresh)
            except PilotError:
                raise refused from None
            if not (reply.get("real_addr") or reply.get("endpoint") or reply.get("relay_only")):
                raise
        return read_addresses(reply, list(local), own)

    def ask_again(self, node: int) -> None:
        """The next question goes to the registry even if the last one has just failed. What is known stays."""
        self._lookups.ask_again(node)
        self._resolves.ask_again(node)

    def forget(self, node: int) -> None:
        """Drops what is cached about a node."""
        self._lookups.forget(node)
        self._resolves.forget(node)

    def cancel(self) -> None:
        """Ends questions under way."""
        self._lookups.cancel()
        self._resolves.cancel()


def read_addresses(reply: Mapping[str, Any], local: list[str], own: str | None) -> Addresses:
    """The usable endpoints in a registry reply. LAN addresses count only if the peer can be on our LAN: in
    one subnet with us, or
    behind the same public address."""
    pila = _announcement(reply)
    if reply.get("relay_only") is True:
        return Addresses(relay_only=True, pila=pila)
    registered: list[tuple[str, int]] = []
    for field in ("real_addr", "endpoint"):
        found = parse_addr(str(reply.get(field) or ""))
        if found and found not in registered:
            registered.append(found)
    listed = reply.get("lan_addrs")
    lan: list[tuple[str, int]] = []
    near = own is not None and any(a[0] == own for a in registered)
    for text in listed[:16] if isinstance(listed, list) else ():
        found = parse_addr(str(text))
        if not found or found in registered or scope(found[0]) is not Scope.PRIVATE:
            continue
        if near or any(same_subnet(found[0], host) for host in local):
            lan.append(found)
    return Addresses(tuple(registered), tuple(lan[:4]), pila=pila)


def _announcement(reply: Mapping[str, Any]) -> bytes:
    text = reply.get("tunnel_key")
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        return b""
