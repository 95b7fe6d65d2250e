"""What many idle peers and connections cost a node: bytes and CPU time per unit.

    python bench/micro/scale.py [--peers 10000] [--connections 64000] [--minutes 5] [--json FILE]

The node is the real one without its sockets: engine, key exchange and path machines, on virtual time. Its peers are real engines
in another process, so neither their memory nor their CPU time is in the figures; that of the pipe between the two is. Peers are
reached directly, or, in a run of their own, through a beacon only: then the node looks for a direct path again and again.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot._core import CAP_NOCRC, CAP_STREAM_OPTS, EV_ACCEPT, OWNER_APP, Engine
from pilot.traversal.discovery import Discovery
from pilot.traversal.peer_paths import Addresses, PeerPaths
from pilot.tunnel.actions import InstallKey, SendRelay
from pilot.tunnel.exchange import KeyExchange
from pilot.wire import beacon as wire
from pilot.wire.frames import Capabilities

Addr = tuple[str, int]
SECOND = 10**9
HUB = ("198.51.100.1", 4000)
BEACON = ("198.51.100.2", 9001)
CAPS = Capabilities(features=CAP_NOCRC | CAP_STREAM_OPTS, max_segment=8192, reorder_segments=65536)
PORT = 1000
FIRST = 100  # number of the first peer
PER_PORT = 1000  # connections to one peer: a port takes 1002 of one


class Identity:
    """An Ed25519 key made from a number."""

    def __init__(self, node: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"scale:{node}".encode()).digest())
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def address(node: int) -> Addr:
    """Where a peer is."""
    return f"203.{node >> 16 & 255}.{node >> 8 & 255}.{node & 255}", 4000


def engine(node: int, now_ns: int) -> Engine:
    made = Engine(seed=hashlib.sha256(f"scale:engine:{node}".encode()).digest(), now_ns=now_ns)
    made.set_node(node)
    made.listen(PORT, OWNER_APP)
    return made


def exchange(node: int, identity: Identity) -> KeyExchange:
    made = KeyExchange(identity, caps=CAPS, random=random.Random(node).randbytes, last_heard=lambda _: None)
    made.set_node(node)
    return made


@dataclass(slots=True)
class Peer:
    """exchange: until a key is installed."""

    engine: Engine
    exchange: KeyExchange | None


class Peers:
    """The other process. Asked in batches: each request is (time, peers to make, datagrams to them), the answer is (datagrams
    from them, connections accepted so far)."""

    def __init__(self, hub_key: bytes, relayed: bool) -> None:
        """relayed: what is sent to the peers' own addresses is lost, and a beacon is here that knows them."""
        self._hub_key = hub_key
        self._relayed = relayed
        self._peers: dict[Addr, Peer] = {}
        self._accepted = 0

    def serve(self, pipe: Pipe, hub_end: Pipe) -> None:
        """Until the node closes its end, a copy of which came along."""
        hub_end.close()
        with contextlib.suppress(EOFError):
            while True:
                now_ns, made, datagrams = pipe.recv()
                out = []
                for node in made:
                    first = self._make(node, now_ns)
                    out.append((BEACON, wire.Deliver(node, first).build()) if self._relayed else (address(node), first))
                for data, to in datagrams:
                    if to == BEACON:
                        out += [(BEACON, answer) for answer in self._relay(data, now_ns)]
                    elif not self._relayed:
                        out += [(to, answer) for answer in self._input(self._peers[to], data, to, now_ns)]
                pipe.send((out, self._accepted))

    def _make(self, node: int, now_ns: int) -> bytes:
        """A peer that trusts the node, and its first key exchange frame."""
        keys = exchange(node, Identity(node))
        peer = self._peers[address(node)] = Peer(engine(node, now_ns), keys)
        peer.engine.set_trusted(1, True)
        peer.engine.set_beacons([BEACON])
        peer.engine.set_path(1, BEACON if self._relayed else HUB, self._relayed)
        keys.pin(1, self._hub_key)
        keys.want(1, now_ns / SECOND)
        return next(action.data for action in keys.take() if isinstance(action, SendRelay))

    def _relay(self, data: bytes, now_ns: int) -> list[bytes]:
        """What the beacon sends the node when that has come from it."""
        if data[0] == wire.BeaconType.DISCOVER:
            return [wire.DiscoverReply(HUB).build()]
        if data[0] != wire.BeaconType.RELAY:
            return []
        target, frame = int.from_bytes(data[5:9], "big"), data[9:]
        peer = self._peers[address(target)]
        sent = self._input(peer, frame if peer.exchange else wire.Deliver(1, frame).build(), BEACON, now_ns)
        return [wire.Deliver(target, answer[9:]).build() for answer in sent]

    def _input(self, peer: Peer, data: bytes, sender: Addr, now_ns: int) -> list[bytes]:
        if peer.exchange and data[:3] == b"PIL" and data[3:4] in b"AK":
            peer.exchange.frame(data, HUB, False, 0, now_ns / SECOND)
            for action in peer.exchange.take():
                if isinstance(action, InstallKey):
                    peer.engine.install_key(1, action.key, action.key_id, CAPS.features, CAPS.max_segment, CAPS.reorder_segments)
                    peer.exchange = None
                    break
        elif not peer.exchange:
            peer.engine.input(data, BEACON if sender == BEACON else HUB, now_ns)
        peer.engine.flush(now_ns)
        answers = [answer for answer, _ in peer.engine.output()]
        for event in peer.engine.events():
            if event.type == EV_ACCEPT:
                peer.engine.own(event.conn, OWNER_APP)
                self._accepted += 1
        return answers


class Hub:
    """The node that is measured. Use it in a with block: the peers' process ends with it."""

    def __init__(self, relayed: bool = False) -> None:
        self.now_ns = 100 * SECOND
        self.identity = Identity(1)
        self.engine = engine(1, self.now_ns)
        self.paths = PeerPaths(
            self.engine,
            self,
            exchange(1, self.identity),
            Discovery(),
            tell=lambda _: None,
            discovered=lambda _: None,
        )
        self.paths.set_node(1, self.now)
        self.datagrams = 0
        self.accepted = 0
        self._asked: list[int] = []
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=Peers(self.identity.public_key, relayed).serve, args=(theirs, self._pipe))
        self._process.start()
        theirs.close()
        if relayed:
            self.paths.set_beacons([BEACON], self.now)
            self.pump()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    @property
    def now(self) -> float:
        return self.now_ns / SECOND

    # What the path machines ask the registry

    def ask_key(self, node: int, fresh: bool) -> None:
        raise AssertionError("the keys of trusted peers are pinned")

    def ask_addresses(self, node: int, fresh: bool) -> None:
        self._asked.append(node)

    # Peers

    def meet(self, nodes: Sequence[int]) -> None:
        """Both sides trust each other; the peers begin the key exchange."""
        for node in nodes:
            self.engine.set_trusted(node, True)
            self.paths.exchange.pin(node, Identity(node).public_key)
        self._ask(nodes, [])
        self.pump()

    def pump(self) -> None:
        """Everything that is to be done at this instant; datagrams take no time."""
        busy = True
        while busy:
            due = self.paths.deadline()
            if due is not None and due <= self.now:
                self.paths.tick(self.now)
            self.engine.flush(self.now_ns)
            out = self.engine.output()
            events = self.engine.events()
            if out:
                self._ask([], out)
            for event in events:
                self.paths.handle(event, self.now)
            asked, self._asked = self._asked, []
            for node in asked:
                self.paths.addresses_answer(node, Addresses(registered=(address(node),)), self.now)
            busy = bool(out or events or asked)

    def _ask(self, made: Sequence[int], datagrams: list[tuple[bytes, Addr]]) -> None:
        self.datagrams += len(datagrams)
        self._pipe.send((self.now_ns, made, datagrams))
        answers, self.accepted = self._pipe.recv()
        for sender, data in answers:
            self.engine.input(data, sender, self.now_ns)

    def run(self, seconds: float) -> None:
        """Virtual time passes."""
        self.pump()
        end = self.now_ns + int(seconds * SECOND)
        while True:
            due = self.paths.deadline()
            at = end if due is None else max(self.now_ns, int(due * SECOND) + 1)
            engine_due = self.engine.deadline()
            if engine_due is not None:
                at = min(at, max(self.now_ns, engine_due))
            if at >= end:
                self.now_ns = end
                return
            self.now_ns = at
            self.pump()


def resident() -> int:
    """Bytes of memory in use, what is free given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def idle_peers(count: int, minutes: float, relayed: bool) -> dict[str, float]:
    """bytes: of the node per peer. cpu_percent_per_1000: of one core."""
    nodes = range(FIRST, FIRST + count)
    with Hub(relayed) as hub:
        before = resident()
        for at in range(0, count, 20):
            hub.meet(nodes[at : at + 20])
            hub.run(0.5)
        hub.run(120.0)  # what a new connection needs is over: races, path MTU, repeated frames
        reached = sum(hub.paths.connected(node) for node in nodes)
        if reached != count:
            raise SystemExit(f"{count - reached} of {count} peers are not connected")
        size = resident() - before
        seconds, hub.datagrams, started = 60 * minutes, 0, time.process_time()
        hub.run(seconds)
        share = (time.process_time() - started) / seconds / count * 1000
        return {
            "peers": count,
            "bytes": size / count,
            "cpu_percent_per_1000": 100 * share,
            "datagrams_per_s_per_1000": hub.datagrams / seconds / count * 1000,
        }


def idle_connections(count: int) -> dict[str, float]:
    """bytes: of the node per connection, before anything was sent on it."""
    nodes = range(FIRST, FIRST + max(1, -(-count // PER_PORT)))
    with Hub() as hub:
        hub.meet(nodes)
        hub.run(10.0)
        before = resident()
        for i in range(count):
            hub.engine.dial(nodes[i % len(nodes)], PORT)
            if i % 50 == 49:
                hub.run(1.0)
        hub.run(5.0)
        if hub.accepted != count:
            raise SystemExit(f"{count - hub.accepted} of {count} connections were not accepted")
        return {"connections": count, "bytes": (resident() - before) / count}


def alone(part: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """In a process of its own: what another part has freed would serve this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(part, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64_000)
    parser.add_argument("--minutes", type=float, default=5.0, help="of virtual time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {
        "idle_peers": alone(idle_peers, asked.peers, asked.minutes, False),
        "idle_relayed_peers": alone(idle_peers, asked.peers, asked.minutes, True),
        "idle_connections": alone(idle_connections, asked.connections),
    }
    for name, row in found.items():
        print(name.replace("_", " "), "  ".join(f"{key} {value:,.4g}" for key, value in row.items()))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
