"""Key exchange, path machines and discovery of one node, wired to its data plane: what each of them asks for is carried out here.

Inputs are in peer_paths.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pilot._core import CoreError, EngineBase
from pilot.traversal import discovery as disc
from pilot.traversal import path_actions as act
from pilot.traversal.candidates import TOKEN_BIT
from pilot.traversal.decisions import Addr, Decision, Step
from pilot.traversal.discovery import Discovery
from pilot.traversal.machines import Machines
from pilot.traversal.nat import NAT_CODES, NatType
from pilot.traversal.path import PathMachine
from pilot.traversal.path_actions import Phase
from pilot.traversal.punching import ANSWER_S
from pilot.tunnel import actions as key
from pilot.tunnel import proof
from pilot.tunnel.exchange import KeyExchange
from pilot.tunnel.limits import RateLimit
from pilot.tunnel.packing import NEVER
from pilot.wire import beacon as wire
from pilot.wire.frames import PILP, Capabilities

SWEEP_S = 0.5
RELAYS = 2  # beacons that get a copy of each key exchange frame
PUNCH_MEMORY_S = 5.0


class Questions(Protocol):
    """The registry, asked without waiting: answers come back through key_answer and addresses_answer."""

    def ask_key(self, node: int, fresh: bool) -> None:
        """Wants the Ed25519 key of `node`."""

    def ask_addresses(self, node: int, fresh: bool) -> None:
        """Wants the endpoints of `node`."""


class PeerActions:
    """The parts of one node's paths, and what follows from their inputs."""

    def __init__(
        self,
        plane: EngineBase,
        questions: Questions,
        exchange: KeyExchange,
        discovery: Discovery,
        *,
        tell: Callable[[Decision], None],
        discovered: Callable[[disc.DiscoveryAction], None],
        hidden: bool = False,
    ) -> None:
        """tell: gets every decision. discovered: gets EndpointChanged, NatChanged, BeaconsChanged and
        ResolveBeacons.
        hidden: this node shows its address to nobody (relay only)."""
        self.exchange = exchange
        self.key_vouched: Callable[[int, bytes, bytes], None] = lambda node, pinned, offered: None  # gets actions.KeyVouched
        self.discovery = discovery
        self._plane = plane
        self._questions = questions
        self._tell = tell
        self._discovered = discovered
        self._hidden = hidden
        self._node = 0
        self._machines = Machines(plane, discovery, self._next_token, hidden)
        self._dirty: dict[int, None] = {}
        self._tokens = TOKEN_BIT
        self._punches: deque[tuple[Addr, float]] = deque(maxlen=32)  # commands that no machine claimed
        self._punch_rate: RateLimit[str] = RateLimit(20.0, 40.0, 1)
        self._hint_rate: RateLimit[str] = RateLimit(20.0, 40.0, 1)
        self._asked: dict[int, float] = {}  # punches lately, oldest first
        self._stirred: set[int] = set()  # machines that traffic keeps awake
        self._sweep_at = self._sweep_all_at = NEVER  # while no machine is awake they may be long past

    # ---- machines ----

    def _machine(self, node: int, now: float) -> PathMachine:
        machine = self._machines.find(node)
        if not machine:
            machine = self._machines.make(node, now)
            self._sweep_soon(now)
            self._questions.ask_addresses(node, False)
        return machine

    def _touch(self, node: int, now: float) -> PathMachine:
        """The machine, made if need be, with its actions due."""
        self._dirty[node] = None
        return self._machine(node, now)

    def _sweep_soon(self, now: float) -> None:
        """A machine is awake whose traffic has to be watched."""
        if not now - SWEEP_S <= self._sweep_at <= now + SWEEP_S:
            self._sweep_at = now + SWEEP_S

    def _next_token(self) -> int:
        self._tokens += 1
        return self._tokens

    def _session_gone(self, node: int, now: float) -> None:
        self.exchange.session_gone(node)
        self._path_without_session(node, now)

    def _path_without_session(self, node: int, now: float) -> None:
        machine = self._machines.find(node)
        if machine and machine.session:
            machine.session_gone(now)
            self._dirty[node] = None

    def _awaiting_punch(self, now: float) -> list[int]:
        """The peers with whom a beacon was asked to arrange a punch, and that are not reached directly."""
        while self._asked and now - next(iter(self._asked.values())) >= ANSWER_S:
            del self._asked[next(iter(self._asked))]
        machines = (self._machines.look(node) for node in self._asked)
        return [m.node for m in machines if m and m.phase is not Phase.IDLE and m.awaits_punch(now)]

    def _claim_punches(self, machine: PathMachine, now: float) -> None:
        """A punch command may come before we know who the peer is."""
        if machine.phase is Phase.DIRECT:
            return
        recent = [p for p in self._punches if now - p[1] < PUNCH_MEMORY_S]
        mine = [p for p in recent if machine.knows_host(p[0][0])] or (recent if len(recent) == 1 else [])
        for punch in mine:
            self._punches.remove(punch)
            machine.punch_command(punch[0], now)

    # ---- output ----

    def flush(self, now: float) -> None:
        """Carries out what the machines asked for, until they ask for nothing more."""
        for _ in range(64):  # far more than any chain of actions is long
            exchange, discovery = self.exchange.take(), self.discovery.take()
            if not exchange and not discovery and not self._dirty:
                return
            for action in exchange:
                self._do_exchange(action, now)
            for found in discovery:
                self._do_discovery(found, now)
            nodes, self._dirty = self._dirty, {}
            for node in nodes:
                machine = self._machines.if_awake(node)
                if machine:
                    self._do_path(machine, now)

    def _do_exchange(self, action: key.Action, now: float) -> None:
        if isinstance(action, key.SendDirect):
            machine = self._machines.look(action.node)
            for addr in machine.direct_targets(now) if machine else ():
                self._send(addr, action.data)
        elif isinstance(action, key.SendTo):
            if not self._hidden:
                self._send(action.addr, action.data)
        elif isinstance(action, key.SendRelay):
            frame = wire.relay(self._node, action.node, action.data)
            for addr, _ in self.discovery.usable()[:RELAYS]:
                self._send(addr, frame)
        elif isinstance(action, key.NeedPeerKey):
            self._questions.ask_key(action.node, action.fresh)
        elif isinstance(action, key.InstallKey):
            self._install(action, now)
        elif isinstance(action, key.DropKey):
            with suppress(CoreError):  # the data plane has dropped it by itself
                self._plane.drop_session(action.node)
            self._path_without_session(action.node, now)
        elif isinstance(action, key.ProbeKey):
            self._probe_key(action)
        elif isinstance(action, key.AddressHint):
            machine = self._machines.find(action.node)
            if machine:
                machine.hint(action.addr, now)
                self._dirty[action.node] = None
        elif isinstance(action, key.KeyVouched):
            self.key_vouched(action.node, action.pinned, action.offered)
        elif isinstance(action, key.KeyRefused):
            who = "The registry" if action.source == "registry" else "Somebody"
            text = f"{who} presented another identity for node {action.node} than the one known: refused"
            self._tell(Decision(now, action.node, Step.KEY_REFUSED, text))
        else:
            machine = self._machines.find(action.node)
            if machine:
                machine.gave_up(action.attempts, action.reason, now)
                self._dirty[action.node] = None

    def _install(self, action: key.InstallKey, now: float) -> None:
        caps = action.caps
        try:
            if action.anew:
                self._plane.drop_session(action.node)
            self._plane.install_key(
                action.node,
                action.key,
                action.key_id,
                caps.features if caps else 0,
                caps.max_segment if caps else 0,
                caps.reorder_segments if caps else 0,
                action.era1,
                action.foretold,
            )
        except CoreError:
            self._session_gone(action.node, now)  # the data plane is full
            return
        machine = self._touch(action.node, now)
        machine.peer_nat = _peer_nat(caps)
        if action.pending:
            machine.key_pending(now + proof.PENDING_S)
            return
        machine.key_settled(action.anew, now)
        machine.session_ready(action.direct, now)
        self._claim_punches(machine, now)

    def _probe_key(self, action: key.ProbeKey) -> None:
        machine = self._machines.look(action.node)
        way = machine.active if machine else None
        if action.addr and not self._hidden:
            self._probe(action.node, action.addr, False, 0)
        elif way:
            self._probe(action.node, way.addr, way.relay, 0)

    def _do_discovery(self, action: disc.DiscoveryAction, now: float) -> None:
        if isinstance(action, disc.SendDiscover):
            self._send(action.beacon, wire.paced_discover(action.node, action.beacon, action.nonce))
            return
        if isinstance(action, disc.SendProbe):
            self._send(action.addr, action.data)
            return
        if isinstance(action, disc.BeaconsChanged):
            for machine in self._machines.without_direct():
                machine.set_relays(self.discovery.usable(), now)
                self._dirty[machine.node] = None
        elif isinstance(action, disc.NatChanged):
            for machine in self._machines.awake():
                machine.own_nat = action.nat
            self.exchange.announce_nat(NAT_CODES.index(action.nat))
        elif isinstance(action, disc.EndpointChanged) and action.old is not None:
            for machine in self._machines.all():
                machine.network_changed(now)
                self._dirty[machine.node] = None
        self._discovered(action)

    def _do_path(self, machine: PathMachine, now: float) -> None:
        due = machine.deadline()
        if due is not None and due <= now:
            machine.tick(now)
        for action in machine.take():
            if isinstance(action, act.Probe):
                self._probe(machine.node, action.addr, action.relay, action.token)
            elif isinstance(action, act.SetPath):
                with suppress(CoreError):  # no room for the peer: install_key said so before
                    self._plane.set_path(machine.node, action.addr, action.relay)
            elif isinstance(action, act.ResetStreams):
                self._end_streams(machine.node, 0, "The peer answers nothing on any path: its streams were ended", now)
            elif isinstance(action, act.PunchTo):
                self._punch(action.addr)
            elif isinstance(action, act.RequestPunch):
                self._asked.pop(machine.node, None)
                self._asked[machine.node] = now
                for beacon, _ in self.discovery.usable()[:RELAYS]:
                    self._send(beacon, wire.punch_request(self._node, machine.node))
            elif isinstance(action, act.ExchangeAgain):
                self.exchange.address_known(machine.node, now)
            elif isinstance(action, act.AskAddresses):
                self._questions.ask_addresses(machine.node, True)
            elif isinstance(action, act.CheckBeacons):
                self.discovery.check(now)
            else:
                self._tell(action.decision)
        if self._machines.settle(machine, now):
            self._stirred.discard(machine.node)
            self.exchange.rest(machine.node, now)
        elif machine.session:
            self._sweep_soon(now)

    def _end_streams(self, node: int, key_id: int, text: str, now: float) -> None:
        with suppress(CoreError):  # the data plane has forgotten the peer, and its streams with it
            if self._plane.reset_streams(node, key_id):
                self._tell(Decision(now, node, Step.STREAMS_ENDED, text))

    def _probe(self, node: int, addr: Addr, relay: bool, token: int) -> None:
        with suppress(CoreError):  # the session went away a moment ago: its event is on the way
            self._plane.probe(node, addr, relay, token)

    def _punch(self, addr: Addr) -> None:
        for _ in range(3):
            self._send(addr, PILP)

    def _send(self, addr: Addr, data: bytes) -> None:
        with suppress(CoreError):  # an address that this host cannot reach: as good as lost
            self._plane.send_raw(addr, data)


def _peer_nat(caps: Capabilities | None) -> NatType:
    return NAT_CODES[caps.nat] if caps and caps.nat < len(NAT_CODES) else NatType.UNKNOWN
