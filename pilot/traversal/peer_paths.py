"""All peers of a node: key exchange, path machines and discovery wired to one data plane. No clock, task or
socket of its own.

Events of the data plane come in through `handle`, answers of the registry through `key_answer` and
`addresses_answer`, time
through `tick`. The simulator drives this class on virtual time; controller.Traversal drives it on asyncio.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pilot._core import (
    EV_BEACON,
    EV_FRAME,
    EV_NO_SESSION,
    EV_PATH_SEEN,
    EV_PEER_STIRRED,
    EV_PEER_WANTED,
    EV_PONG,
    EV_SESSION_BROKEN,
    EV_SESSION_PROVED,
    CoreError,
    Event,
)
from pilot.traversal import discovery as disc
from pilot.traversal.candidates import TOKEN_BIT
from pilot.traversal.decisions import Addr
from pilot.traversal.nat import may_punch
from pilot.traversal.path import PathMachine
from pilot.traversal.path_actions import Phase
from pilot.traversal.peer_actions import SWEEP_S, PeerActions
from pilot.tunnel.exchange import WANT_S
from pilot.tunnel.packing import NEVER
from pilot.wire import beacon as wire
from pilot.wire.frames import PILP

LATELY_S = 2.5  # a sweep sees the peers with traffic since then
SWEEP_ALL_S = 10.0  # a sweep of all peers; slower in proportion beyond SWEEP_PEERS
SWEEP_PEERS = 4000
ERA1_SILENCE_S = 2.0  # without an answer: a restarted peer of era 1 does not say that it cannot open our frames
GIVE_UP_S = 600.0  # a peer that answered nothing for so long has no session any more


@dataclass(frozen=True, slots=True)
class Addresses:
    """The registry's word on where a node is, and under which key. lan: only those worth trying from here."""

    registered: tuple[Addr, ...] = ()
    lan: tuple[Addr, ...] = ()
    relay_only: bool = False
    pila: bytes = b""  # the registry's copy of the node's key announcement


class PeerPaths(PeerActions):
    """Sessions and paths of every peer of one node."""

    # ---- facts and demand ----

    def set_node(self, node: int, now: float) -> None:
        """Own number, 0 = not registered. After each registration: the beacons hear it before anything that depends on it."""
        self._node = node
        self.exchange.set_node(node)
        self.discovery.set_node(node, now)
        self.discovery.tick(now)
        for machine in self._machines.without_direct():
            machine.known_again(now)
            self._dirty[machine.node] = None
        self.flush(now)

    def set_beacons(self, beacons: Sequence[Addr], now: float) -> None:
        """The beacons to use."""
        self._plane.set_beacons(list(beacons)[: disc.MAX_BEACONS])
        self.discovery.set_beacons(beacons, now)
        self.flush(now)

    def want(self, node: int, now: float, hold: float = WANT_S) -> None:
        """Traffic for `node` waits, or somebody wants to know the path."""
        if node in (0, self._node):
            return
        info = self._plane.peer_info(node)
        if not (info and info["session"]):
            self._session_gone(node, now)
        machine = self._machine(node, now)
        machine.want(now, hold)
        self.exchange.want(node, now, hold)
        self.flush(now)

    def retry(self, node: int, now: float) -> None:
        """The user wants every way to `node` tried again, now."""
        machine = self._machines.find(node)
        if machine:
            machine.retry(now)
            self._dirty[node] = None
        self.want(node, now)

    def machine(self, node: int) -> PathMachine | None:
        """The path machine of a peer to look at, None if there was no reason for one yet."""
        return self._machines.look(node)

    def sleeps(self, node: int) -> bool:
        """Nothing is expected of the peer but the answer to the next probe."""
        return self._machines.asleep(node)

    def nodes(self) -> list[int]:
        """Peers with a path machine."""
        return self._machines.nodes()

    def direct_ends(self, limit: int) -> list[Addr]:
        """Addresses of peers that are reached directly, at most `limit`."""
        infos = map(self._plane.peer_info, self._machines.asleep_direct())
        ends = itertools.chain(
            (m.active.addr for m in self._machines.awake() if m.active and m.phase is Phase.DIRECT),
            (info["path"] for info in infos if info and info["path"]),
        )
        return list(itertools.islice(ends, limit))

    def connected(self, node: int) -> bool:
        """The session is proved and the active path answers."""
        answers = self._machines.asleep(node)
        if not answers and (machine := self._machines.if_awake(node)):
            answers = machine.active is not None and machine.active.answered
        return answers and self.exchange.is_proved(node)

    def in_trouble(self, now: float) -> bool:
        """A peer that somebody wants now is reached by no path that answers."""
        return any(
            m.wanted_until > now and not (m.active and m.active.answered and not m.active.doubtful(now))
            for m in self._machines.awake()
        )

    def forget(self, node: int) -> None:
        """Forgets session, path and everything learned about `node`; its connections are reset. A pin
        stays."""
        self._machines.drop(node)
        self.exchange.forget(node)
        with suppress(CoreError):  # the data plane never knew it
            self._plane.forget_peer(node)

    def network_changed(self, now: float) -> None:
        """Own addresses changed, or the host slept."""
        self.discovery.network_changed(now)
        for machine in self._machines.all():
            machine.network_changed(now)
            self._dirty[machine.node] = None
        self.flush(now)

    # ---- answers ----

    def key_answer(self, node: int, public_key: bytes | None, now: float) -> None:
        """The registry's Ed25519 key for `node`, None if unknown or unreachable."""
        self.exchange.peer_key(node, public_key, now)
        self.flush(now)

    def addresses_answer(self, node: int, found: Addresses | None, now: float) -> None:
        """The registry's endpoints of `node`; None if it would not say or cannot be reached."""
        machine = self._machines.find(node)
        if not machine or found is None:
            return
        machine.set_addresses(found.registered, found.lan, found.relay_only, now)
        self._claim_punches(machine, now)
        self._dirty[node] = None
        self.exchange.address_known(node, now)
        if found.pila:
            self.exchange.foretold(node, found.pila, now)
        self.flush(now)

    # ---- events ----

    def handle(self, event: Event, now: float) -> bool:
        """Takes an event of the data plane. False if it belongs to somebody else."""
        kind = event.type
        if kind == EV_FRAME and event.addr:
            self._on_frame(event.data, event.addr, event.relayed, event.node, now)
        elif kind == EV_BEACON and event.addr:
            if not self._on_beacon(event.data, event.addr, now):
                return False
        elif kind == EV_PEER_WANTED:
            self.want(event.node, now)
        elif kind == EV_NO_SESSION and event.addr:
            self._on_no_session(event.node, event.addr, event.relayed, now)
        elif kind == EV_SESSION_PROVED:
            self._on_proved(event.node, event.a, now)
        elif kind == EV_SESSION_BROKEN:
            self.exchange.broken(event.node, now)
        elif kind == EV_PATH_SEEN and event.addr:
            if self.exchange.has_session(event.node):
                touched = self._touch(event.node, now)
                if event.a and event.relayed:
                    touched.moved_behind_relay(now)
                elif event.a:
                    touched.moved(event.addr, now)
                else:
                    touched.seen(event.addr, event.relayed, now)
        elif kind == EV_PONG:
            if not event.a & TOKEN_BIT:
                return False
            machine = self._machines.find(event.node)
            if machine:
                machine.pong(event.a, event.relayed, event.b / 1e9, now)
                self._dirty[event.node] = None
        elif kind == EV_PEER_STIRRED:
            self._on_stirred(event.node, bool(event.a), now)
        else:
            return False
        self.flush(now)
        return True

    # ---- time ----

    def deadline(self) -> float | None:
        """When `tick` has something to do; None for never."""
        times = [self.exchange.deadline(), self.discovery.deadline(), self._machines.timers.earliest()]
        if self._machines.any_awake:
            times.append(self._sweep_at)
        return min((t for t in times if t is not None), default=None)

    def tick(self, now: float) -> None:
        """Does everything that is due."""
        self.exchange.tick(now)
        self.discovery.tick(now)
        for node in list(self._machines.timers.due(now)):
            machine = self._machines.if_awake(node)
            if machine:
                machine.tick(now)
                self._dirty[node] = None
        if self._machines.any_awake and self._sweep_at <= now:
            self._sweep(now)
        self.flush(now)

    def _sweep(self, now: float) -> None:
        """Shows the machines that are awake their traffic. From time to time it drops what the data plane has dropped."""
        awake = self._machines.awake()
        if self._sweep_all_at <= now:
            self._sweep_all_at = now + SWEEP_ALL_S * max(1.0, len(awake) / SWEEP_PEERS)
            for machine in awake:
                self._sweep_one(machine, self._plane.peer_info(machine.node), now)
        else:
            quiet, self._stirred = self._stirred, set()
            for info in self._plane.peers(max(1, int((now - LATELY_S) * 1e9))):
                found = self._machines.if_awake(info["node"])
                if found:
                    self._stirred.add(found.node)
                    self._sweep_one(found, info, now)
            for node in quiet - self._stirred:  # it may sleep, if not now then a little later
                found = self._machines.if_awake(node)
                if found and found.active and found.active.answered:
                    self._stirred.add(node)
                    self._dirty[node] = None
        self._sweep_at = now + SWEEP_S if any(machine.session for machine in awake) else self._sweep_all_at

    def _sweep_one(self, machine: PathMachine, info: dict[str, Any] | None, now: float) -> None:
        node = machine.node
        if not info or not info["session"]:
            if machine.session:
                self._session_gone(node, now)
            if machine.phase is Phase.IDLE and not (info and info["trusted"]):
                self._machines.drop(node)
            return
        if not machine.session:
            return
        last_recv, last_send = _seconds(info["last_recv_ns"]), _seconds(info["last_send_ns"])
        if info["era"] == 1 and last_send - last_recv > ERA1_SILENCE_S:
            self.exchange.broken(node, now)
        if machine.phase is Phase.LOST and not info["conns"] and now - max(last_recv, machine.lost_at) > GIVE_UP_S:
            self._plane.drop_session(node)
            self._session_gone(node, now)
        elif machine.traffic(last_recv, last_send, info["pkts_sent"], now):
            self._dirty[node] = None

    # ---- input ----

    def _on_stirred(self, node: int, traffic: bool, now: float) -> None:
        """A sleeping machine is due, or has traffic to watch."""
        machine = self._machines.find(node)
        if machine and traffic:
            self._stirred.add(node)
            self._sweep_soon(now)
        elif machine:
            self._dirty[node] = None

    def _on_frame(self, data: bytes, addr: Addr, relayed: bool, claimed: int, now: float) -> None:
        if data[:4] != PILP:
            self.exchange.frame(data, addr, relayed, claimed, now)
        elif self._hint_rate.take("", now):
            for machine in self._machines.without_direct(addr[0]):
                if machine.phase not in (Phase.DIRECT, Phase.IDLE) and machine.knows_host(addr[0]):
                    machine.hint(addr, now)
                    self._dirty[machine.node] = None

    def _on_beacon(self, data: bytes, beacon: Addr, now: float) -> bool:
        message = wire.parse(data)
        if isinstance(message, wire.DiscoverReply):
            self.discovery.reply(beacon, message.endpoint, now, message.pace, message.nonce)
        elif isinstance(message, wire.ProbeReply):
            self.discovery.probe_reply(beacon, message, now)
        elif isinstance(message, wire.PunchCommand):
            self._on_punch(message.endpoint, beacon, now)
        else:
            return False
        return True

    def _on_punch(self, target: Addr, beacon: Addr, now: float) -> None:
        """The command names an endpoint, not a node: it is for the peer at that host, or for the one we asked
        about."""
        if self._hidden or not may_punch(target, beacon) or not self._punch_rate.take("", now):
            return
        trying = [m for m in self._machines.without_direct(target[0]) if m.phase not in (Phase.DIRECT, Phase.IDLE)]
        there = [m for m in trying if m.knows_host(target[0])]
        asked = self._awaiting_punch(now)
        only = self._machines.find(asked[0]) if len(asked) == 1 and not there else None
        chosen = [m for m in there if m.node in asked] or there or ([only] if only else [])
        for machine in chosen[:4]:
            machine.punch_command(target, now)
            self._dirty[machine.node] = None
        if not chosen:
            self._punches.append((target, now))
            self._punch(target)

    def _on_no_session(self, node: int, addr: Addr, relayed: bool, now: float) -> None:
        info = self._plane.peer_info(node)
        if info and info["session"]:
            return  # the key arrived between the frame and this event
        self._session_gone(node, now)
        self.exchange.no_session(node, addr, relayed, now)

    def _on_proved(self, node: int, key_id: int, now: float) -> None:
        if not self.exchange.has_session(node):
            return  # forgotten meanwhile
        machine = self._touch(node, now)
        pending = self.exchange.is_pending(node, key_id)
        anew = self.exchange.proved(node, key_id, now)
        info = self._plane.peer_info(node)
        if anew and info and not info["own_kind"]:  # ours keep their streams over a change of key, or say that they have none
            self._end_streams(node, key_id, "The peer started anew: its former streams were ended", now)
        machine.session_ready(False, now)
        if pending:
            machine.key_settled(True, now)


def _seconds(ns: int) -> float:
    return ns / 1e9 if ns else NEVER
