"""The way around blocked UDP, as pilot.daemon.compat takes it: a WebSocket to the beacon, which the engine knows as one
more beacon on loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simnat import SECOND, Addr

from pilot.daemon.bridge import NOWHERE
from pilot.daemon.compat import LOOK_S, QUESTION_EVERY_S, QUESTION_S
from pilot.wire.beacon import Discover, DiscoverReply, parse

if TYPE_CHECKING:
    from simnode import SimNode

OVERLAP_S = 0.6
HANDSHAKES = 4  # round trips until a WebSocket is proved


class SimCompat:
    """The transport of one node."""

    def __init__(self, node: SimNode, door: bool) -> None:
        self.node = node
        self.has_door = door
        self.active = False  # the WebSocket is in use
        self.bridge: Addr = ("127.0.0.1", 9000 + node.number)
        self._linked = False
        self._opening = False
        self._clear_since: int | None = None
        self._leaving = False
        if door:
            self._later(LOOK_S, self._look)

    def stop(self) -> None:
        """The process ends."""
        self.ended()
        self.active = self._opening = self._leaving = False

    def ended(self) -> None:
        """The stream broke."""
        if self._linked:
            self._linked = False
            self.beacon.detach(self.node.number)

    @property
    def beacon(self):  # type: ignore[no-untyped-def]
        """The beacon behind the door."""
        return self.node.world.beacons[self.node.beacons[0]]

    def send(self, data: bytes) -> None:
        """A datagram for the bridge: a stream loses nothing as long as it stands."""
        node, world, beacon, starts = self.node, self.node.world, self.beacon, self.node.starts
        if not self._linked:
            return
        delay = int(node.link.delay_s * SECOND)
        message = parse(data)
        if isinstance(message, Discover):
            answer = DiscoverReply(NOWHERE, 0, message.nonce).build()
            world.post(world.now_ns + 2 * delay, lambda: self._deliver(answer, starts))
        else:
            world.post(world.now_ns + delay, lambda: beacon.input(beacon.addr, data, node.number))

    def deliver(self, data: bytes) -> None:
        """A datagram from the beacon."""
        world, starts = self.node.world, self.node.starts
        world.post(world.now_ns + int(self.node.link.delay_s * SECOND), lambda: self._deliver(data, starts))

    def _deliver(self, data: bytes, starts: int) -> None:
        if self._linked and self.node.starts == starts:
            self.node.input(data, self.bridge)

    def _later(self, seconds: float, what: object) -> None:
        world = self.node.world
        world.post(world.now_ns + int(seconds * SECOND), what)  # type: ignore[arg-type]

    def _look(self) -> None:
        self._later(LOOK_S, self._look)
        node = self.node
        if not node.runs or self._leaving:
            return
        node.touched = True
        if not self.active:
            if node.paths.in_trouble(node.now):
                node.paths.discovery.check(node.now)
            if node.paths.discovery.silent:
                self._open()
        elif not self._linked:
            self._open()
        else:
            self._watch_udp()

    def _open(self) -> None:
        if not self._opening:
            self._opening = True
            starts = self.node.starts
            self._later(2 * HANDSHAKES * self.node.link.delay_s, lambda: self._opened(starts))

    def _opened(self, starts: int) -> None:
        node = self.node
        self._opening = False
        if node.starts != starts or not node.runs or not self.beacon.up:
            return
        if not self.active and not node.paths.discovery.silent:
            return
        self._linked = self.active = True
        self._clear_since = None
        self.beacon.attach(node.number)
        self._use(True, False)

    def _watch_udp(self) -> None:
        """Two questions over UDP in a row are answered."""
        node, now = self.node, self.node.world.now_ns
        if node.udp_blocked or not self.beacon.up:
            self._clear_since = None
            return
        if self._clear_since is None:
            self._clear_since = now
        if now - self._clear_since >= (QUESTION_EVERY_S + QUESTION_S) * SECOND:
            self.active = False
            self._leaving = True
            self._use(True, True)
            starts = node.starts
            self._later(OVERLAP_S, lambda: self._left(starts))

    def _left(self, starts: int) -> None:
        self._leaving = False
        if self.node.starts == starts and self.node.up:
            self.ended()
            self._use(False, True)

    def _use(self, bridge: bool, udp: bool) -> None:
        """As controller.Traversal.use_bridge."""
        node = self.node
        node.paths.discovery.set_blocked(bridge and not udp)
        beacons = [*(node.beacons if udp else ()), *([self.bridge] if bridge else ())]
        node.paths.set_beacons(beacons, node.now)
        node.paths.network_changed(node.now)
        node.touched = True
