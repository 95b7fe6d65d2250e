"""Which transport a node uses: UDP, or a WebSocket to its beacon on TCP 443 where no UDP gets out (beacon.md 11).

UDP is given up when the beacons leave three questions in a row unanswered (0.75 s) while the beacon answers over the WebSocket;
it is taken up again when it answers two questions in a row. While it is given up the node registers as relay_only, and the
registry is asked through the same door if its own port cannot be reached. What is connected stays connected through both changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pilot.daemon.dial import Door, connect
from pilot.errors import PilotError
from pilot.traversal import Traversal
from pilot.wire.beacon import DiscoverReply, discover, parse

# The bridge is imported where it comes to be used: the WebSocket library is memory that a node with UDP does without.
if TYPE_CHECKING:
    from pilot.daemon.bridge import BeaconLink, Bridge

log = logging.getLogger("pilot.compat")

LOOK_S = 0.25
QUESTION_S = 0.5  # an answer to a UDP question later than this does not count
QUESTION_EVERY_S = 3.0
ANSWERS = 2  # in a row
OVERLAP_S = 2.0  # at most with both transports, while UDP is taken up again
SETTLE_S = 0.2  # what is on its way through the WebSocket arrives
AGAIN_S = (0.5, 1.0, 2.0, 3.0)  # between attempts to connect, a fifth more or less; the last one repeats
DOOR_S = 5.0  # between looks at a door that was shut, while UDP is silent
CHALLENGE_S = 5.0
REGISTRY_PATH = "/v1/registry"


class Signer(Protocol):
    """The identity: proves to the beacon who we are."""

    @property
    def public_text(self) -> str: ...
    def sign(self, text: bytes, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """mode: `udp`, `compat` or `auto`. door: of the beacon."""

    mode: str
    door: Door


class Compat:
    """The transport of one node. `active`: the WebSocket is in use. Call `start` before registration, then `run`."""

    def __init__(
        self,
        settings: Settings,
        traversal: Traversal,
        tunnel: tuple[str, int],
        identity: Signer,
        node: Callable[[], int],
        changed: Callable[[bool], None],
    ) -> None:
        """tunnel: where the tunnel socket is bound. node: own number, 0 before registration. changed: gets `active` whenever it
        changes, before anything is sent the new way."""
        self.active = False
        self.connects = 0  # links that stood
        self._settings = settings
        self._traversal = traversal
        self._tunnel = tunnel
        self._identity = identity
        self._node = node
        self._changed = changed
        self._bridge: Bridge | None = None
        self._link: BeaconLink | None = None  # connected
        self._proved: BeaconLink | None = None  # the beacon knows who we are there
        self._proved_as = 0
        self._trouble = ""

    @property
    def url(self) -> str:
        """Of the beacon's door."""
        return self._settings.door.url

    @property
    def connected(self) -> bool:
        """The link to the beacon stands."""
        return self._link is not None and not self._link.ended.done()

    @property
    def dropped(self) -> int:
        """Datagrams that found no room on the way to the beacon or to the engine."""
        return self._bridge.dropped if self._bridge else 0

    # Life

    async def start(self, patience: float) -> None:
        """Decides for the start. Returns when UDP has answered, when the WebSocket is in use, or after `patience` seconds."""
        if self._settings.mode == "compat":
            self._activate()
            return
        asking = asyncio.create_task(self._traversal.discover(patience))
        try:
            if self._settings.mode == "auto":
                while not asking.done() and not self._traversal.udp_silent:
                    await asyncio.wait((asking,), timeout=0.05)
                if not asking.done():
                    await self._try_door(asking)
            if not self.active:
                await asking
        finally:
            asking.cancel()

    async def run(self) -> None:
        """For ever, once the node is registered."""
        if self._settings.mode == "udp":
            await asyncio.Event().wait()
        while True:
            if self.active:
                await self._hold()
            else:
                await self._watch()

    def registered(self) -> None:
        """The registry knows this node. Under another number than before, it has to be proved to the beacon anew."""
        if self._link is not None and self._proved_as not in (0, self._node()):
            self._link.close()

    async def stop(self) -> None:
        """Ends the link. Idempotent."""
        if self._link is not None:
            self._link.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await asyncio.shield(self._link.ended)
            self._link.abort()
            self._link = None
        if self._bridge is not None:
            self._bridge.close()
            self._bridge = None

    # UDP

    async def _watch(self) -> None:
        """Returns when the WebSocket is in use."""
        loop = asyncio.get_running_loop()
        shut_until = 0.0
        while not self.active:
            await self._traversal.unrest(LOOK_S)
            self._traversal.suspect()
            if self._traversal.udp_silent and loop.time() >= shut_until:
                await self._try_door(None)
                shut_until = loop.time() + DOOR_S

    async def _try_door(self, asking: asyncio.Task[object] | None) -> None:
        """UDP is silent: goes over to the WebSocket if the beacon answers there, and UDP is still silent then."""
        opening = asyncio.create_task(self._open())
        waiting = [opening] if asking is None else [opening, asking]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                return
            link = opening.result()
            if link is None:
                return
            if self._node() and not await self._prove(link):
                return
            if self._traversal.udp_silent:
                self._link = link
                self._activate()
            else:
                link.close()
        finally:
            if not opening.done():
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)

    # WebSocket

    def _activate(self) -> None:
        log.warning("no UDP gets out: using the WebSocket", extra={"url": self.url})
        from pilot.daemon.bridge import Bridge

        self._bridge = Bridge(self._tunnel)
        self.active = True
        self._changed(True)
        if self._link is not None and self._link is self._proved:
            self._bridge.use(self._link)
        self._traversal.use_bridge(self._bridge.addr, self.url)

    async def _hold(self) -> None:
        """Keeps a link up; returns when UDP is back in use."""
        back = asyncio.create_task(self._udp_is_back())
        holding = asyncio.create_task(self._links())
        try:
            await asyncio.wait((back, holding), return_when=asyncio.FIRST_COMPLETED)
            if holding.done():
                holding.result()
            back.result()
            holding.cancel()  # the link stays: its last datagrams are still on the way
            await asyncio.gather(holding, return_exceptions=True)
            await self._return()
        finally:
            for task in (back, holding):
                task.cancel()
            await asyncio.gather(back, holding, return_exceptions=True)

    async def _links(self) -> None:
        """One link after the other, for ever."""
        bridge = self._bridge
        assert bridge is not None
        failures = 0
        while True:
            if self._link is None or self._link.ended.done():
                self._link = await self._open()
            link = self._link
            if link is not None and (link is self._proved or await self._prove(link)):
                failures = 0
                self.connects += 1
                log.info("connected to the beacon by WebSocket", extra={"url": self.url})
                if bridge.use(link):
                    self._traversal.use_bridge(bridge.addr, self.url)
                try:
                    reason = await asyncio.shield(link.ended)
                finally:
                    if link.ended.done():
                        bridge.use(None)
                log.warning("the WebSocket to the beacon ended", extra={"reason": reason})
            await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)] * random.uniform(0.8, 1.2))
            failures += 1

    async def _open(self) -> BeaconLink | None:
        """A link that the beacon has greeted; None, and a note in the log, if there is none to be had."""
        from pilot.daemon.bridge import BeaconLink

        door = self._settings.door
        link = BeaconLink(door.uri(), self._received, self._pong)
        try:
            await connect(door, door.uri(), link)
            async with asyncio.timeout(CHALLENGE_S):
                await link.challenged()
        except (PilotError, OSError) as error:
            link.abort()
            self._note(error)
            return None
        except BaseException:
            link.abort()
            raise
        self._trouble = ""
        return link

    async def _prove(self, link: BeaconLink) -> bool:
        node = self._node()
        try:
            async with asyncio.timeout(CHALLENGE_S):
                await link.authenticate(node, self._identity.public_text, self._identity.sign)
        except (PilotError, OSError) as error:
            link.abort()
            self._note(error)
            return False
        self._proved, self._proved_as = link, node
        return True

    def _received(self, datagrams: list[bytes]) -> None:
        if self._bridge is not None:
            self._bridge.deliver(datagrams)

    def _pong(self) -> None:
        if self._bridge is not None:
            self._bridge.pong()

    def _note(self, error: Exception) -> None:
        text = error.message if isinstance(error, PilotError) else str(error) or "no answer in time"
        level = logging.DEBUG if text == self._trouble else logging.WARNING if self.active else logging.INFO
        log.log(level, "the beacon's WebSocket cannot be used", extra={"url": self.url, "reason": text})
        self._trouble = text

    async def registry_stream(self, inner: asyncio.Protocol) -> None:
        """Connects `inner` to the registry beside the beacon (registry.pool.Detour). OSError or PilotError if there is none."""
        from pilot.daemon.bridge import RegistryStream

        door = self._settings.door
        uri = door.uri(REGISTRY_PATH)
        stream = RegistryStream(uri)
        try:
            await connect(door, uri, stream)
            await stream.opened
        except BaseException:
            stream.abort()
            raise
        stream.carry(inner, (uri.host, uri.port))

    # Back

    async def _udp_is_back(self) -> None:
        """Returns when a beacon answers over UDP; never if the transport was chosen by the user."""
        if self._settings.mode != "auto":
            await asyncio.Event().wait()
        answers = 0
        while answers < ANSWERS:
            await asyncio.sleep(QUESTION_EVERY_S if not answers else QUESTION_S)
            got = await asyncio.gather(*(_answers(beacon) for beacon in await self._traversal.udp_beacons()))
            answers = answers + 1 if any(got) else 0

    async def _return(self) -> None:
        """Both ways for a moment, so that nothing on its way is lost; then UDP alone."""
        log.info("UDP gets out again: leaving the WebSocket")
        self.active = False
        self._changed(False)
        bridge, link = self._bridge, self._link
        assert bridge is not None
        self._traversal.use_bridge(bridge.addr, self.url, with_udp=True)
        await self._traversal.discover(OVERLAP_S)
        await asyncio.sleep(SETTLE_S)
        if link is not None:
            link.close()
        self._traversal.use_bridge(None)
        self._bridge = self._link = None
        bridge.close()


async def _answers(beacon: tuple[str, int]) -> bool:
    """Whether a beacon answers a question over UDP. From a socket of its own: number 0 binds nothing there."""
    family = socket.AF_INET6 if ":" in beacon[0] else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        try:
            asking.connect(beacon)
            asking.send(discover(0))
            async with asyncio.timeout(QUESTION_S):
                return isinstance(parse(await loop.sock_recv(asking, 64)), DiscoverReply)
        except OSError:  # a TimeoutError is one
            return False
