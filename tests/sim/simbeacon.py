"""A beacon on virtual time: the native relay (tables, limits, introductions, NAT probes, streams) without its sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilot._core import Relay
from pilot.wire.beacon import Sync

if TYPE_CHECKING:
    from simworld import World

Addr = tuple[str, int]
MAIN, QUIET, QUIET_ALT, OBSERVER, OBSERVER_ALT = range(5)  # sockets, as in csrc/relay.h
GOSSIP_S = 10.0
NEWS_S = 0.1
ASKS = 3  # lists that ask the peers for theirs, after a start
ASK_AGAIN_S = 1.0


class SimBeacon:
    """Sockets, process and gossip of one beacon. probes: it answers NAT probes; alt_ip: its other address, "" if it has none."""

    def __init__(self, world: World, addr: Addr, alt_ip: str = "", probes: bool = True) -> None:
        self.world = world
        self.addr = addr
        self.up = True
        self.starts = 0
        ip, alt = addr[0], alt_ip
        self.sockets: dict[Addr, int] = {addr: MAIN}
        if probes:
            self.sockets |= {(ip, 9002): OBSERVER, (ip, 9003): QUIET}
        if probes and alt:
            self.sockets |= {(alt, 9002): OBSERVER_ALT, (alt, 9003): QUIET_ALT}
        self._addresses = {at: address for address, at in self.sockets.items()}
        self.attached: dict[int, Addr] = {}  # nodes that came by WebSocket, and their own end of the bridge
        self._telling = False
        self._asks = 0
        self._before: dict[str, int] = {}
        self.start()
        self._gossip_later()

    def start(self) -> None:
        """A new process: it knows nobody but what the registry vouches for."""
        self.starts += 1
        self.up = True
        self._asks = ASKS
        seed = self.world.seed * 1009 + self.starts
        self.relay = Relay(
            seed=seed % 2**64,
            now_ns=self.world.now_ns,
            observer_port=9002 if OBSERVER in self._addresses else 0,
            observer=self._addresses.get(OBSERVER_ALT),
        )
        self.know_peers()
        for node, endpoint in self.world.endpoints.items():
            self.relay.vouch(node, endpoint[0])
        self._tell_soon(NEWS_S)

    def restart(self) -> None:
        """Everything in memory is lost, its streams break."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """The process ends."""
        self._before = self.counts()
        self.up = False
        for node in list(self.attached):
            self.world.stream_ended(node)
        self.attached.clear()

    def know_peers(self) -> None:
        """All other beacons are peers."""
        self.relay.set_peers([b.addr for b in self.world.beacons.values() if b is not self])

    def counts(self) -> dict[str, int]:
        """Counters over all its processes."""
        return {name: value + self._before.get(name, 0) for name, value in self.relay.stats().items()}

    @property
    def relayed(self) -> int:
        return self.counts()["relayed"]

    @property
    def punches(self) -> int:
        return self.counts()["punches"] + self.counts()["introduced"]

    def input(self, local: Addr, data: bytes, src: Addr | int) -> None:
        """A datagram for one of its sockets; src: the number of a node that came by WebSocket."""
        if not self.up or local not in self.sockets:
            return
        for at, out, to in self.relay.input(self.sockets[local], data, src, local, self.world.now_ns):
            if to is not None:
                self.world.send_from(self._addresses[at], out, to)
        for node, out in self.relay.take():
            self.world.deliver_stream(node, out)
        self._tell_news()

    def attach(self, node: int) -> None:
        """A WebSocket was proved."""
        self.relay.attach(node)
        self.attached[node] = self.addr
        self._tell_news()

    def detach(self, node: int) -> None:
        """The WebSocket ended."""
        self.attached.pop(node, None)
        self.relay.detach(node)
        self._tell_news()

    def _tell_news(self) -> None:
        if self.relay.take_news():
            self._tell_soon(NEWS_S)

    def _tell_soon(self, seconds: float) -> None:
        if not self._telling:
            self._telling = True
            self.world.post(self.world.now_ns + int(seconds * 1e9), self._told)

    def _told(self) -> None:
        self._telling = False
        self._gossip()
        if self._asks:
            self._tell_soon(ASK_AGAIN_S)

    def _gossip_later(self) -> None:
        def round_() -> None:
            self._gossip()
            self._gossip_later()

        self.world.post(self.world.now_ns + int(GOSSIP_S * 1e9), round_)

    def _gossip(self) -> None:
        peers = [b for b in self.world.beacons.values() if b is not self]
        if not self.up or not peers:
            return
        self.relay.expire(self.world.now_ns)
        nodes, ages = self.relay.nodes()
        asks, self._asks = self._asks > 0, max(0, self._asks - 1)
        message = Sync(self.addr[1] + int(self.addr[0].rpartition(".")[2]), tuple(nodes)).build(asks, ages)
        for peer in peers:
            self.world.send_from(self.addr, message, peer.addr)
