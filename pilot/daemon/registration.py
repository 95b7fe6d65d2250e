"""The node's place in the registry: registration, heartbeats, and registration again when needed (registry.md 8).

It is registered again when its endpoint changes, at once when the registry says that it does not know the node
or its key, and after three heartbeats without an answer. Then it repeats what a forgetful registry has
lost: name, visibility, tags, trust. A registry that is down stops nothing: the node tries again for ever. One that closed a
connection gets a heartbeat early: it may have restarted, and nobody finds this node there until it has registered. When
it is time for what: schedule.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from pilot.daemon.schedule import Schedule, pause_after
from pilot.errors import PilotError
from pilot.wire.address import Address, parse

log = logging.getLogger("pilot.registration")

START_S = 9.0  # how long the first registration is tried
START_PAUSE_S = 0.5
FAILED_HEARTBEATS = 3
BEACONS_EVERY_S = 60.0
UNKNOWN_NODE = ("not_found", "auth_required")  # the registry does not know us, or not by this key

Reply = Mapping[str, Any]
T = TypeVar("T")


class Registry(Protocol):
    """The part of the registry client that registration needs; it signs as this node. Failures are PilotError."""

    async def register(
        self,
        *,
        listen_addr: str,
        hostname: str = "",
        lan_addrs: Sequence[str] = (),
        relay_only: bool = False,
        owner: str = "",
        version: str = "",
    ) -> Reply: ...
    async def heartbeat(self) -> Reply: ...
    async def announce_key(self, pila: bytes) -> Reply: ...
    async def deregister(self) -> None: ...
    async def set_hostname(self, hostname: str) -> Reply: ...
    async def set_visibility(self, public: bool) -> Reply: ...
    async def set_tags(self, tags: Sequence[str]) -> Reply: ...
    async def report_trust(self, peer: int, /) -> None: ...
    async def beacon_list(self) -> list[str]: ...
    async def join_network(self, network: int, token: str = "") -> Reply: ...


class Where(Protocol):
    """What registration asks the node about itself."""

    def listen_addr(self) -> str:
        """`host:port` for `register`."""

    def lan_addrs(self) -> list[str]:
        """Private `host:port` of the interfaces."""

    def announcement(self) -> bytes:
        """The PILA that peers may be told, b"" if there is none."""

    def trusted(self) -> Iterable[int]:
        """Trusted peers."""

    def registered(self, again: bool) -> None:
        """The registry knows us now; number and address are those of the reply. again: not the first time."""

    def use_beacons(self, beacons: Sequence[str]) -> None:
        """The registry's beacons, `host:port`; never empty."""


class Registration:
    """node_id, address: as the registry gave them, 0 before. reachable: its last answer came.

    hostname, public, tags: what the registry was told last with success."""

    def __init__(
        self,
        registry: Registry,
        where: Where,
        *,
        hostname: str = "",
        public: bool = False,
        relay_only: bool = False,
        email: str = "",
        version: str = "",
        networks: Sequence[int] = (),
        keepalive: float = 30.0,
        settled: Callable[[], AbstractAsyncContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        """settled: entered for each registration; inside it the identity does not change. PilotError: not now."""
        self.node_id = 0
        self.address = Address(0, 0)
        self.hostname = ""
        self.public = public
        self.tags: Sequence[str] = ()
        self.networks: list[int] = []
        self.registered = False
        self.reachable = False
        self._registry = registry
        self._where = where
        self._wanted_name = hostname
        self.relay_only = relay_only  # what the next registration says
        self._email = email
        self._version = version
        self._join = tuple(networks)
        self._settled = settled
        self._schedule = Schedule(keepalive)
        self._beacons_at = float("-inf")
        self._tells_keys = False  # the registry tells peers our tunnel key
        self._left = False  # the user took the node out

    # ---- life ----

    async def start(self) -> None:
        """The first registration. Raises PilotError when it was refused, or nobody answered for START_S."""
        failed = PilotError("timeout", "the registry does not answer", retryable=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while True:
                    try:
                        await self._register()
                        return
                    except PilotError as error:
                        failed = error
                        if not error.retryable:
                            break
                    log.warning("registration failed, trying again", extra={"reason": failed.message})
                    await asyncio.sleep(START_PAUSE_S)
        raise PilotError(
            failed.code,
            f"registration failed: {failed.message}",
            failed.hint or "check -registry, and that the rendezvous runs",
            failed.retryable,
        )

    async def run(self) -> None:
        """Stays registered, for ever."""
        await self._join_networks()
        while True:
            await self._schedule.due()
            if self._left:
                self._schedule.stale = self._schedule.new_key = False
            elif self._schedule.stale:
                await self._register_again()
            elif self._schedule.new_key:
                await self._announce_key()
            else:
                await self._heartbeat()

    def endpoint_changed(self) -> None:
        """The node is to be found elsewhere now: the registry will be told."""
        self._schedule.endpoint_changed()

    def key_changed(self) -> None:
        """The node has another tunnel key, or signs it with another identity."""
        if self._tells_keys:
            self._schedule.key_changed()

    def doubt(self) -> None:
        """The registry closed a connection."""
        self._schedule.doubt()

    def network_changed(self, network: int, *, joined: bool) -> None:
        """The user joined or left a network."""
        if not joined and network in self.networks:
            self.networks.remove(network)
        elif joined and network not in self.networks:
            self.networks.append(network)

    async def stop(self, seconds: float) -> None:
        """Tells the registry that the node leaves; gives up after `seconds`."""
        if self.registered:
            try:
                async with asyncio.timeout(seconds):
                    await self._registry.deregister()
            except (PilotError, TimeoutError) as error:
                log.warning("deregistration failed", extra={"reason": str(error) or "no answer"})
            self.registered = False

    # ---- the user's wishes ----

    async def set_hostname(self, name: str) -> Reply:
        """Registers another name; "" clears it. Raises PilotError."""
        reply = await self._registry.set_hostname(name)
        told = reply.get("hostname")
        self.hostname = self._wanted_name = told if isinstance(told, str) else name
        return reply

    async def set_visibility(self, public: bool) -> Reply:
        """Public: everybody may resolve this node. Raises PilotError."""
        reply = await self._registry.set_visibility(public)
        self.public = public
        return reply

    async def set_tags(self, tags: Sequence[str]) -> Reply:
        """Replaces the tags. Raises PilotError."""
        reply = await self._registry.set_tags(tags)
        self.tags = tags
        return reply

    async def deregister(self) -> Reply:
        """The user takes the node out of the registry until the daemon starts again. Raises PilotError."""
        self._left = True
        try:
            await self._registry.deregister()
        except PilotError:
            self._left = False
            raise
        self.registered = False
        return {"type": "deregister_ok"}

    # ---- inside ----

    async def _register(self) -> None:
        again = self.node_id != 0
        self._schedule.stale = False
        reply = await self._ask(self._enter())
        self._schedule.registered()
        self._take(reply)
        self.registered = True
        if again:
            self._where.registered(again)  # first: the peers have lost us
        await self._attempt(self._registry.set_visibility(self.public), "visibility")
        if self.tags:
            await self._attempt(self._registry.set_tags(self.tags), "tags")
        if self._wanted_name and not self.hostname:
            await self._claim_name(reply)
        if not again:
            self._where.registered(again)
        self._tells_keys = reply.get("announce_key") is True
        await self._announce_key()
        await self._ask_beacons()
        if again:
            for node in list(self._where.trusted()):
                await self._attempt(self._registry.report_trust(node), "trust")

    async def _enter(self) -> Reply:
        async with self._settled():
            return await self._registry.register(
                listen_addr=self._where.listen_addr(),
                hostname=self._wanted_name,
                lan_addrs=self._where.lan_addrs(),
                relay_only=self.relay_only,
                owner=self._email,
                version=self._version,
            )

    async def _announce_key(self) -> None:
        self._schedule.new_key = False
        pila = self._where.announcement() if self._tells_keys else b""
        if pila:
            await self._attempt(self._registry.announce_key(pila), "tunnel key")

    def _take(self, reply: Reply) -> None:
        node, text = reply.get("node_id"), reply.get("address")
        address = parse(text) if isinstance(text, str) else None
        if type(node) is not int or not 0 < node < 0xFFFFFFFF or address is None or address.node != node:
            raise PilotError("internal", "the registry's answer names no usable address", retryable=True)
        if self.node_id not in (0, node):
            log.warning("the registry gave this node another number", extra={"old": self.node_id, "new": node})
        self.node_id, self.address = node, address
        name = reply.get("hostname")
        self.hostname = name if isinstance(name, str) else ""

    async def _claim_name(self, reply: Reply) -> None:
        """The registration went through without the name. The first release does not say why; set_hostname does."""
        reason = reply.get("hostname_error")
        if not isinstance(reason, str) or not reason:
            try:
                await self.set_hostname(self._wanted_name)
                return
            except PilotError as error:
                reason = error.message
        log.warning("hostname not registered", extra={"hostname": self._wanted_name, "reason": reason})

    async def _heartbeat(self) -> None:
        try:
            reply = await self._ask(self._registry.heartbeat())
        except PilotError as error:
            self._schedule.failed()
            failures = self._schedule.failures
            unknown = error.code in UNKNOWN_NODE
            level = logging.INFO if unknown or failures > 1 else logging.WARNING
            log.log(level, "heartbeat failed", extra={"reason": error.message, "failures": failures})
            if unknown or failures >= FAILED_HEARTBEATS:
                await self._register_again()
            return
        if self._schedule.failures:
            log.info("the registry answers again")
        self._schedule.answered()
        self.registered = True
        if reply.get("key_expiry_warning") is True:
            log.warning("the identity key expires within a day: pilotctl rotate-key")
        if asyncio.get_running_loop().time() - self._beacons_at >= BEACONS_EVERY_S:
            await self._ask_beacons()

    async def _register_again(self) -> None:
        """Until it succeeds, with growing pauses."""
        tries = 0
        while True:
            if not tries:
                await self._schedule.room()
            try:
                await self._register()
                break
            except PilotError as error:
                log.log(
                    logging.WARNING if tries == 0 else logging.DEBUG,
                    "registration failed",
                    extra={"reason": error.message},
                )
            tries += 1
            await asyncio.sleep(pause_after(tries))
        self._schedule.failures = 0

    async def _ask_beacons(self) -> None:
        self._beacons_at = asyncio.get_running_loop().time()
        try:
            beacons = await self._ask(self._registry.beacon_list())
        except PilotError as error:
            log.debug("no beacon list", extra={"reason": error.message})
            return
        if beacons:
            self._where.use_beacons(beacons)

    async def _join_networks(self) -> None:
        for network in self._join:
            if await self._attempt(self._registry.join_network(network), f"network {network}", "already"):
                self.network_changed(network, joined=True)

    async def _attempt(self, call: Awaitable[object], what: str, fine: str = "\0") -> bool:
        """Whether it worked; if not, a note is in the log. An error that contains `fine` is as good."""
        try:
            await self._ask(call)
        except PilotError as error:
            if fine not in error.message:
                log.warning("the registry did not take it", extra={"what": what, "reason": error.message})
                return False
        return True

    async def _ask(self, call: Awaitable[T]) -> T:
        """The reply. Notes whether the registry answers."""
        try:
            reply = await call
        except PilotError as error:
            self.reachable = not error.retryable
            raise
        self.reachable = True
        return reply
