"""The path machines of a node's peers: there may be ten thousand. One that waits for nothing but its next probe sleeps, packed
into some hundred bytes. Whoever asks for it wakes it, and cannot tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable

from pilot._core import EngineBase
from pilot.traversal.discovery import Discovery
from pilot.traversal.path import PathMachine
from pilot.tunnel.deadlines import Deadlines


class Machines:
    """Machines and their deadlines by node number. Who has given inputs to one calls `settle` before the next event."""

    def __init__(self, plane: EngineBase, discovery: Discovery, token: Callable[[], int], hidden: bool) -> None:
        """token, hidden: see PathMachine. The data plane is told who sleeps, discovery knows the beacons."""
        self.timers: Deadlines = Deadlines()
        self._plane = plane
        self._discovery = discovery
        self._token = token
        self._hidden = hidden
        self._awake: dict[int, PathMachine] = {}
        self._asleep: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._awake) + len(self._asleep)

    def nodes(self) -> list[int]:
        """All peers that have a machine."""
        return [*self._awake, *self._asleep]

    def awake(self) -> list[PathMachine]:
        """The machines with something to do. The others have a direct path that answers, and nobody wants anything of them."""
        return list(self._awake.values())

    def asleep(self, node: int) -> bool:
        """The machine of this peer sleeps."""
        return node in self._asleep

    def all(self) -> list[PathMachine]:
        """Every machine, awake from now on."""
        for node in list(self._asleep):
            self.find(node)
        return self.awake()

    def find(self, node: int) -> PathMachine | None:
        """The machine of a peer, woken if need be; None if there is none."""
        machine = self._awake.get(node)
        if machine:
            return machine
        state = self._asleep.pop(node, None)
        if state is None:
            return None
        machine = PathMachine.unpacked(state, node, self._discovery.usable(), token=self._token, hidden=self._hidden)
        machine.own_nat = self._discovery.nat
        self._awake[node] = machine
        self._plane.set_resting(node, False)
        return machine

    def make(self, node: int, now: float) -> PathMachine:
        """A new machine."""
        machine = self._awake[node] = PathMachine(node, token=self._token, hidden=self._hidden)
        machine.own_nat = self._discovery.nat
        machine.set_relays(self._discovery.usable(), now)
        return machine

    def drop(self, node: int) -> None:
        """Forgets a machine."""
        self._awake.pop(node, None)
        if self._asleep.pop(node, None):
            self._plane.set_resting(node, False)
        self.timers.set(node, None)

    def settle(self, machine: PathMachine, now: float) -> bool:
        """The inputs to this machine are over: notes its deadline and lets it sleep if it can. True: it sleeps."""
        node = machine.node
        self.timers.set(node, machine.deadline())
        state = machine.packed(now)
        if state:
            del self._awake[node]
            self._asleep[node] = state
            self._plane.set_resting(node, True)
        return state is not None
