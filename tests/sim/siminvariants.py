"""What must hold in every simulated network: streams, paths, probe traffic, tables. A breach raises Broken with a sentence."""

from __future__ import annotations

import itertools
import random
from collections import deque

from simnet import Net
from simnode import Inbox, SimNode

from pilot.traversal.candidates import CandidateSet
from pilot.traversal.path_actions import Phase
from pilot.traversal.path_race import PROBE_BURST, PROBE_RATE

REACH_S = 20.0  # bytes flow at the latest so long after a path exists
BETTER_S = 60.0  # on the relay at most so long while a direct path works; lossy links get a second attempt
BETTER_LOSSY_S = 130.0
BREAK_S = 10.0  # a stream may break only after so long an outage
EXCUSE_S = 40.0  # and not later than this after it
ACTIVE_PER_S = 11  # probes of the path in use while it is suspected
PROBES_PER_S = PROBE_BURST + PROBE_RATE + ACTIVE_PER_S
PROBES_PER_10S = PROBE_BURST + 10 * PROBE_RATE + 4 * ACTIVE_PER_S
CHUNK = 160


class Broken(AssertionError):
    """An invariant does not hold."""


def text(serial: int, way: int, start: int, size: int) -> bytes:
    """Bytes `start` to `start + size` of the endless text that one direction of a stream carries."""
    block = 4096
    first, last = start // block, (start + size + block - 1) // block
    whole = b"".join(random.Random(serial << 33 | way << 32 | n).randbytes(block) for n in range(first, last))
    return whole[start - first * block :][:size]


class Flow:
    """A stream between two nodes, both ways, dialled again when it ends. Each byte is checked when it arrives."""

    _serials = itertools.count(1)

    def __init__(self, net: Net, a: SimNode, b: SimNode) -> None:
        self.net, self.a, self.b = net, a, b
        self.name = f"{a.number}-{b.number}"
        self.quiet = False
        self._dialled = (0, 0)
        self._back = 0  # connection of the other side
        self.conn = 0
        self._sent = [0, 0]
        self._got = [0, 0]
        self._reach_since: float | None = None
        self._cut_at = float("-inf")  # end of the last outage long enough to break a stream
        self._outage: float | None = None
        self._moved_at = net.world.now
        self._better_since: float | None = None
        self._serial = 0

    def tick(self) -> None:
        """Looks and sends."""
        now = self.net.world.now
        if not self._back and self.conn not in self.a.open:
            self._dialled = (self._dialled[0], self.b.starts)  # whichever process takes the dial
        self._watch_oracle(now)
        self._read()
        self._watch_end(now)
        self._write()
        self._watch_flow(now)
        self._watch_path(now)

    # ---- the stream ----

    def _begin(self) -> None:
        if self.conn and self._dialled[0] == self.a.starts:
            self.a.hang_up(self.conn)
        if self._back and self._dialled[1] == self.b.starts:
            self.b.hang_up(self._back)
        self._dialled = (self.a.starts, self.b.starts)
        self._serial = next(self._serials)
        self._sent, self._got, self._back = [4, 0], [0, 0], 0
        self.conn = self.a.dial(self.b)
        self.a.outboxes[self.conn] = self._serial.to_bytes(4, "big")

    def _watch_end(self, now: float) -> None:
        """Opens the stream when it has to be; complains when it ended without a reason."""
        if not self.a.runs:
            return
        if self.conn == 0 or self._dialled[0] != self.a.starts:
            self._begin()
            return
        over = self.conn in self.a.failed | self.a.closed
        if self._back and self._dialled[1] == self.b.starts:
            over = over or self._back in self.b.closed
        if not over:
            return
        excused = self._dialled[1] != self.b.starts or self._outage is not None or now - self._cut_at < EXCUSE_S
        if not excused:
            raise Broken(f"stream {self.name} ended without a reason")
        self._begin()

    def _write(self) -> None:
        if not self.a.runs or self.conn not in self.a.open:
            return
        self.a.send(self.conn, b"")  # the head, if it could not go before the stream was open
        if self.quiet:
            return
        if len(self.a.outboxes.get(self.conn, b"")) < 65536:
            size = CHUNK if self.net.rng.random() > 0.02 else 30000
            self.a.send(self.conn, text(self._serial, 0, self._sent[0] - 4, size))
            self._sent[0] += size
        if self._back and self.b.runs and self._dialled[1] == self.b.starts and self._back not in self.b.closed:
            self.b.send(self._back, text(self._serial, 1, self._sent[1], CHUNK))
            self._sent[1] += CHUNK

    def _read(self) -> None:
        if not self._back and self._dialled[1] == self.b.starts:
            self._find_back()
        if self._back and self._dialled[1] == self.b.starts:
            self._check(0, self.b.inboxes.get(self._back), 4)
        if self._dialled[0] == self.a.starts:
            self._check(1, self.a.inboxes.get(self.conn), 0)

    def _find_back(self) -> None:
        wanted = self._serial.to_bytes(4, "big")
        for conn, inbox in self.b.inboxes.items():
            if inbox.accepted and inbox.node == self.a.number and inbox.data[:4] == wanted:
                self._back = conn

    def _check(self, way: int, inbox: Inbox | None, head: int) -> None:
        if inbox is None:
            return
        new = bytes(inbox.data[self._got[way] :])
        if not new:
            return
        at = self._got[way]
        expected = (self._serial.to_bytes(4, "big")[at:] if at < head else b"") + text(
            self._serial, way, max(0, at - head), len(new)
        )
        if new != expected[: len(new)]:
            raise Broken(f"stream {self.name}: wrong bytes at {at} of direction {way}")
        self._got[way] += len(new)
        if self._got[way] > self._sent[way]:
            raise Broken(f"stream {self.name}: more bytes came than were sent")
        self._moved_at = self.net.world.now

    def intact(self) -> bool:
        """Every byte has arrived."""
        return self.conn in self.a.open and self._got == self._sent

    # ---- what the oracle demands ----

    def _watch_oracle(self, now: float) -> None:
        if self.net.relay_open(self.a, self.b) or self.net.direct_open(self.a, self.b):
            if self._reach_since is None:
                self._reach_since = now
                if self._outage is not None and now - self._outage >= BREAK_S:
                    self._cut_at = now
                self._outage = None
        else:
            self._reach_since = None
            if self._outage is None:
                self._outage = now

    def _watch_flow(self, now: float) -> None:
        if self._got == self._sent and self.conn in self.a.open:
            self._moved_at = now
        if self._reach_since is None:
            return
        silent = now - max(self._reach_since, self._moved_at)
        if silent > REACH_S:
            phases = "/".join(self._phase(x, y) for x, y in ((self.a, self.b), (self.b, self.a)))
            raise Broken(f"stream {self.name}: a path exists and nothing came for {silent:.1f} s ({phases})")

    def _phase(self, x: SimNode, y: SimNode) -> str:
        machine = x.paths.machine(y.number)
        return machine.phase.value if machine else "none"

    def best(self) -> bool:
        """Both sides use the best kind of path there is."""
        direct = self.net.direct_open(self.a, self.b)
        for x, y in ((self.a, self.b), (self.b, self.a)):
            phase = self._phase(x, y)
            if phase != Phase.DIRECT.value and (direct or phase != Phase.RELAYED.value):
                return False
        return True

    def _watch_path(self, now: float) -> None:
        if not self.net.direct_open(self.a, self.b):
            self._better_since = None
            return
        there = all(self._phase(x, y) == Phase.DIRECT.value for x, y in ((self.a, self.b), (self.b, self.a)))
        wanted = all(x.paths.exchange.is_proved(y.number) for x, y in ((self.a, self.b), (self.b, self.a)))
        if there or not wanted:
            self._better_since = None
            return
        if self._better_since is None:
            self._better_since = now
        lossy = any(n.link.loss or n.link.late for n in (self.a, self.b))
        if now - self._better_since > (BETTER_LOSSY_S if lossy else BETTER_S):
            phases = "/".join(self._phase(x, y) for x, y in ((self.a, self.b), (self.b, self.a)))
            raise Broken(f"{self.name}: a direct path works, and for {now - self._better_since:.0f} s it is not used ({phases})")


class Probes:
    """Counts what a node sends besides application data, per peer, by second."""

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.most = [0, 0]
        self._times: dict[int, deque[float]] = {}
        self._starts = 0

    def hook(self) -> None:
        """Counts from here on, also after a restart of the process."""
        if self._starts == self.node.starts:
            return
        self._starts = self.node.starts
        paths, real = self.node.paths, self.node.paths._probe

        def probe(node: int, addr: tuple[str, int], relay: bool, token: int) -> None:
            self._count(node)
            real(node, addr, relay, token)

        paths._probe = probe  # type: ignore[method-assign]

    def _count(self, peer: int) -> None:
        now = self.node.now
        times = self._times.setdefault(peer, deque())
        times.append(now)
        while times[0] < now - 10.0:
            times.popleft()
        second = sum(1 for t in itertools.takewhile(lambda t: t > now - 1.0, reversed(times)))
        self.most = [max(self.most[0], second), max(self.most[1], len(times))]
        if second > PROBES_PER_S or len(times) > PROBES_PER_10S:
            raise Broken(f"node {self.node.number} probes peer {peer} {second} times in 1 s, {len(times)} times in 10 s")


def check_tables(net: Net) -> None:
    """Nothing grows without bound."""
    peers = len(net.world.nodes) - 1
    for node in net.world.nodes.values():
        if not node.up:
            continue
        paths = node.paths
        sizes = {
            "machines": (len(paths._machines), peers),
            "punches": (len(paths._punches), 32),
            "timers": (len(paths._machines.timers._heap), 64 + 4 * peers),
            "exchange timers": (len(paths.exchange._timers._heap), 64 + 4 * peers),
            "records": (len(paths.exchange._peers), peers),
            "connections": (len(list(node.engine.conns())), 60),
        }
        for machine in paths._machines.awake():
            ways = machine.candidates()
            sizes["candidates"] = (len(ways), CandidateSet.MAX_CANDIDATES)
            sizes["unanswered"] = (max((len(c.waiting) for c in ways), default=0), 8)
            sizes["planned"] = (max((len(c.due) for c in ways), default=0), 6)
            sizes["story"] = (len(machine.story.history), 64)
        for name, (size, limit) in sizes.items():
            if size > limit:
                raise Broken(f"node {node.number}: {size} {name}, more than {limit}")
