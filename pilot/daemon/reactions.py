"""What a node does when something happens: an event of the data plane, another network, transport, identity or number.

The parts of a node (node.py) know nothing of each other; what one reports and another has to learn passes here. All of it
runs on the event loop and returns at once; what takes longer is a task that `cancel` ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from pilot._core import EV_ACCEPT, EV_BEACON, EV_CLIENT_CONN, EV_CONN_CLOSED, EV_SESSION_PROVED, Event
from pilot.daemon import info
from pilot.traversal import Decision
from pilot.traversal.decisions import RELAY
from pilot.traversal.path_actions import Phase
from pilot.wire.beacon import Notify
from pilot.wire.beacon import parse as parse_beacon

if TYPE_CHECKING:
    from pilot.daemon.node import Node

log = logging.getLogger("pilot.node")

EVENT_BATCH = 512
LOOK_AGAIN_S = (0.3, 1.0, 3.5)  # after trust was granted; refusals of the registry are cached for 3 s


class Reactions:
    """Of one node. Its public methods are what the parts call: the node hands them out when it builds its parts."""

    def __init__(self, node: Node) -> None:
        """node: it may still be in the making; its parts are used from `watch` on."""
        self._node = node
        self._reading = False
        self._dialled: set[int] = set()  # peers to which streams were opened without connect(), in this batch of events
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- events of the data plane ----

    def watch(self) -> None:
        """Begins to read the data plane's events."""
        asyncio.get_running_loop().add_reader(self._node.plane.event_fd, self._on_events)
        self._reading = True

    def unwatch(self) -> None:
        """Ends it; without effect if it did not begin."""
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._node.plane.event_fd)
            self._reading = False

    def _on_events(self) -> None:
        """The only reader of the data plane's events. A batch at a time, so that nothing else waits long."""
        if not self._reading:
            return
        events = self._node.plane.events(EVENT_BATCH)
        for event in events:
            try:
                self._dispatch(event)
            except Exception:  # one bad event must not cost the others
                log.exception("an event could not be handled", extra={"event": repr(event)})
        while self._dialled:
            self._node.traversal.want(self._dialled.pop())
        if len(events) == EVENT_BATCH:
            asyncio.get_running_loop().call_soon(self._on_events)

    def _dispatch(self, event: Event) -> None:
        if self._node.ipc.handle(event) or self._node.hub.handle(event):
            return
        if event.type == EV_ACCEPT:
            self._node.streams.accepted(self._node.ipc.clients.get(event.client), event)
        elif event.type == EV_CLIENT_CONN:
            self._node.streams.taken(self._node.ipc.clients.get(event.client), event.conn)
            if not event.a:
                self._dialled.add(event.node)  # many at once are usually to one
        elif event.type == EV_CONN_CLOSED:
            self._node.streams.closed(event.conn)
        elif event.type == EV_BEACON and isinstance(parse_beacon(event.data), Notify):
            self._node.trust.notify()
        else:
            if event.type == EV_SESSION_PROVED:
                self._tunnel_up(event.node, event.b)
            self._node.traversal.handle(event)

    def _tunnel_up(self, node: int, era: int) -> None:
        if era == 1:
            log.info("a peer speaks the encryption of the first releases", extra={"peer": node})
        peer = self._node.plane.peer_info(node)
        fields = {"peer_node_id": node, "authenticated": True, "relay": bool(peer and peer["relay"])}
        self._node.webhook.emit("tunnel.established", fields)

    # ---- peers ----

    def decided(self, decision: Decision) -> None:
        """The path to a peer is another one, or was not to be had."""
        log.info(decision.text, extra={"peer": decision.node})
        if decision.kind == RELAY and decision.step.value in ("connected", "changed"):
            self._node.webhook.emit("tunnel.relay_activated", {"peer_node_id": decision.node})

    def trust_event(self, event: str, data: Mapping[str, Any]) -> None:
        """Trust changed, or a handshake came in: the webhook hears of it; whom we trust now may be reached directly."""
        self._node.webhook.emit(event, data)
        if event == "trust.changed" and data.get("state") == "granted":
            self._spawn(self._look_again(int(data["peer_node_id"])))

    async def _look_again(self, peer: int) -> None:
        """The registry tells a peer's address once both sides have reported their trust; until then the relay carried.
        The sessions that brought the handshake are worth a direct path at once, not at the next retry."""
        for pause in LOOK_AGAIN_S:
            self._node.traversal.ask_again(peer)
            await asyncio.sleep(pause)
            machine = self._node.traversal.paths.machine(peer)
            if machine and machine.phase is Phase.DIRECT:
                return
            if machine:
                self._node.traversal.prefer_direct(peer)

    # ---- the node itself ----

    def network_changed(self, slept: bool) -> None:
        """Interfaces or routes are others, or the host slept: no path and no connection is what it was."""
        log.info("the host slept" if slept else "the network changed")
        self._node.traversal.network_changed()
        self._node.registry.reset()
        self.addresses_changed()

    def addresses_changed(self) -> None:
        """The host has other addresses: peers on its local network are told."""
        self._node.traversal.addresses_changed()
        if self._node.where.moved():
            self._node.registration.endpoint_changed()

    def moved(self) -> None:
        """Others see us at another address: connections made from the old one are dead, and nobody will say so."""
        self._node.registry.reset()
        self._node.registration.endpoint_changed()

    def transport_changed(self, compat: bool) -> None:
        """Nobody reaches a node without UDP directly: the registry tells peers so."""
        self._node.where.hidden = compat
        self._node.registration.relay_only = compat or self._node.config.relay_only
        self._node.registry.use_detour(self._node.compat.registry_stream if compat else None)
        self._node.registry.reset()
        self._node.registration.endpoint_changed()

    def identity_changed(self) -> None:
        """The node signs with another key: registry and peers hear of it."""
        self._node.trust.set_public_key(self._node.identity.public_key)
        self._node.traversal.identity_changed(self._node.identity.links)
        self._node.registration.key_changed()
        nodes = [peer["node"] for peer in self._node.plane.peers() if peer["session"]]
        self._spawn(self._node.trust.announce_key(nodes))

    def registered(self, again: bool) -> None:
        """The registry knows this node, perhaps under a new number."""
        node = self._node
        node.plane.set_node(node.node_id)
        node.plane.serve_streams(node.registration.address.network)
        node.traversal.set_node(node.node_id)
        node.trust.machine.own_node = node.node_id
        node.webhook.node_id = node.node_id
        node.compat.registered()
        fields = {"address": str(node.registration.address)}
        if again:
            log.info(info.registered_line(node))
            node.webhook.emit("node.reregistered", fields)
        else:
            node.webhook.emit("node.registered", {**fields, "endpoint": node.where.listen_addr()})

    # ---- background ----

    async def cancel(self) -> None:
        """Ends what still runs of earlier reactions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
