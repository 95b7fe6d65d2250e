"""The path machines of a node's peers: there may be ten thousand. One that waits for nothing but its next probe or retry sleeps,
packed into some hundred bytes, and the data plane tells when its time is over or traffic flows. Whoever asks for it wakes it,
and cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pilot._core import EngineBase
from pilot.traversal.discovery import Discovery
from pilot.traversal.path import PathMachine
from pilot.tunnel.deadlines import Deadlines

AFTER_NS = 1000  # the data plane wakes a machine so much later than it is due: not before, whatever is lost in rounding


class Machines:
    """Machines by node number, and the deadlines of those that are awake. Who has given inputs to one calls `settle` before the
    next event."""

    def __init__(self, plane: EngineBase, discovery: Discovery, token: Callable[[], int], hidden: bool) -> None:
        """token, hidden: see PathMachine. The data plane is told who sleeps, discovery knows the beacons."""
        self.timers: Deadlines = Deadlines()
        self._plane = plane
        self._discovery = discovery
        self._token = token
        self._hidden = hidden
        self._all: dict[int, PathMachine | bytes] = {}
        self._awake: dict[int, PathMachine] = {}
        self._relayed = 0  # of those that sleep

    def __len__(self) -> int:
        return len(self._all)

    @property
    def any_awake(self) -> bool:
        """Not all of them sleep."""
        return bool(self._awake)

    def nodes(self) -> list[int]:
        """All peers that have a machine."""
        return list(self._all)

    def asleep(self, node: int) -> bool:
        """The machine of this peer sleeps: a path answers, and nobody wants anything of it."""
        return isinstance(self._all.get(node), bytes)

    def asleep_direct(self) -> Iterator[int]:
        """Those that sleep and whose path is a direct one."""
        return (node for node, state in self._all.items() if isinstance(state, bytes) and not PathMachine.packed_relayed(state))

    def awake(self) -> list[PathMachine]:
        """The machines with something to do."""
        return list(self._awake.values())

    def if_awake(self, node: int) -> PathMachine | None:
        """The machine of a peer, None if it sleeps or there is none."""
        return self._awake.get(node)

    def all(self) -> list[PathMachine]:
        """Every machine, awake from now on."""
        for node in self.nodes():
            self.find(node)
        return self.awake()

    def without_direct(self, host: str = "") -> list[PathMachine]:
        """Those without a direct path that answers, awake from now on, among all that are awake. host: of those that slept only
        the ones that may know an address there."""
        if self._relayed:
            known = host.encode()
            for node, state in list(self._all.items()):
                if isinstance(state, bytes) and PathMachine.packed_relayed(state) and known in state:
                    self.find(node)
        return self.awake()

    def look(self, node: int) -> PathMachine | None:
        """The machine of a peer to look at; None if there is none. One that sleeps goes on sleeping: this is a copy of it."""
        state = self._all.get(node)
        return self._unpacked(node, state) if isinstance(state, bytes) else state

    def find(self, node: int) -> PathMachine | None:
        """The machine of a peer, woken if need be; None if there is none."""
        state = self._all.get(node)
        if not isinstance(state, bytes):
            return state
        machine = self._all[node] = self._awake[node] = self._unpacked(node, state)
        self._relayed -= PathMachine.packed_relayed(state)
        self.timers.set(node, machine.deadline())
        self._plane.rest(node, 0)
        return machine

    def _unpacked(self, node: int, state: bytes) -> PathMachine:
        machine = PathMachine.unpacked(state, node, self._discovery.usable(), token=self._token, hidden=self._hidden)
        machine.own_nat = self._discovery.nat
        return machine

    def make(self, node: int, now: float) -> PathMachine:
        """A new machine."""
        machine = self._all[node] = self._awake[node] = PathMachine(node, token=self._token, hidden=self._hidden)
        machine.own_nat = self._discovery.nat
        machine.set_relays(self._discovery.usable(), now)
        return machine

    def drop(self, node: int) -> None:
        """Forgets a machine."""
        state = self._all.pop(node, None)
        if isinstance(state, bytes):
            self._relayed -= PathMachine.packed_relayed(state)
            self._plane.rest(node, 0)
        self._awake.pop(node, None)
        self.timers.set(node, None)

    def settle(self, machine: PathMachine, now: float) -> bool:
        """The inputs to this machine are over: lets it sleep if it can, else notes its deadline. True: it sleeps."""
        node, due = machine.node, machine.deadline()
        state = machine.packed(now) if due is not None and due > now else None
        if due is None or state is None or not self._plane.rest(node, int(due * 1e9) + AFTER_NS):
            self.timers.set(node, due)
            return False
        self.timers.set(node, None)
        del self._awake[node]
        self._all[node] = state
        self._relayed += PathMachine.packed_relayed(state)
        return True
