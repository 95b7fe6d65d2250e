"""One node: its parts, how they start, how they stop (cli.md section 8, design.md section 2).

Start: identity, tunnel socket, own endpoint, registration, trust and services, local socket. The local socket
comes last, so a client that can connect finds a node that works. Stop tells the peers and the registry first and
removes the local socket last, so that a successor cannot register before this node has left. What happens in between
is answered in reactions.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pilot import __version__
from pilot._core import CAP_NOCRC, CAP_STREAM_OPTS, OWNER_ECHO, DataPlane
from pilot.daemon import info, local_socket
from pilot.daemon.compat import Compat, Settings
from pilot.daemon.config import DaemonConfig
from pilot.daemon.identity import IdentityFile, NodeIdentity
from pilot.daemon.ipc import IpcServer
from pilot.daemon.ipc_node import NodeCommands
from pilot.daemon.ipc_streams import StreamCommands
from pilot.daemon.names import Names
from pilot.daemon.processors import own_processors
from pilot.daemon.reactions import Reactions
from pilot.daemon.registration import Registration
from pilot.daemon.rotation import Rotation
from pilot.daemon.whereabouts import Whereabouts
from pilot.errors import PilotError
from pilot.registry.client import RegistryClient
from pilot.services import counter
from pilot.services.dataexchange import DataExchange
from pilot.services.eventstream import EventStream
from pilot.services.stream import StreamHub
from pilot.services.webhook import Webhook, check_url
from pilot.traversal import Traversal, TraversalConfig
from pilot.traversal.nat import show
from pilot.traversal.netwatch import NetWatch
from pilot.trust import HandshakeMachine, Policy, TrustService, TrustStore
from pilot.wire.frames import Capabilities

if TYPE_CHECKING:
    from pilot.daemon.metrics import MetricsServer

log = logging.getLogger("pilot.node")

ECHO_PORT = 7
REORDER_SEGMENTS = 65536  # out-of-order segments held per stream, toward our own kind
SPIN_US = 200
DISCOVER_S = 3.0
MEASURE_S = 1.5  # waited for the NAT class after registration
STOP_S = 9  # whoever stops the daemon kills it after 10
GOODBYE_S = 2.0  # for the registry, and for the webhook


class Node:
    """The parts of one node. Build it with a running event loop; `start`, `run`, `stop`."""

    def __init__(self, config: DaemonConfig) -> None:
        """Opens the identity and the tunnel socket, nothing is sent yet. Raises PilotError."""
        self.config = config
        self.started_at = time.monotonic()
        self._reactions = Reactions(self)
        if config.webhook:
            check_url(config.webhook)
        if config.socket:
            local_socket.ensure_free(config.socket)
        trusted = TrustStore.load(config.trust_file)
        self._identity_file = IdentityFile(config.identity) if config.identity else None
        self.identity = self._identity_file.identity if self._identity_file else NodeIdentity.generate()
        self.plane = _open_plane(config)
        self.webhook = Webhook(
            url=config.webhook, secret=config.webhook_secret, on_failure=_webhook_failed
        )
        self.registry = RegistryClient(
            *config.registry,
            self.identity,
            tls_trust=config.registry_trust if config.registry_tls else "",
            fingerprint=config.registry_fingerprint,
            admin_token=config.admin_token,
        )
        self.traversal = Traversal(self.plane, self.registry, self.identity, _traversal_config(config, self.plane))
        self.compat = Compat(
            Settings(config.transport, config.door),
            self.traversal,
            self.plane.local_addr,
            self.identity,
            lambda: self.node_id,
            self._reactions.transport_changed,
        )
        self.hub = StreamHub(self.plane, _handler_failed)
        self.traversal.identity_changed(self.identity.links)
        self.trust = self._make_trust(trusted)
        self.traversal.paths.key_vouched = self.trust.key_vouched
        self.rotation = Rotation(self.identity, self._identity_file, self.registry, self._reactions.identity_changed)
        self.where = Whereabouts(
            config, self.traversal, self.plane.local_addr[1], self.trust.store, self._reactions.registered
        )
        self.registration = Registration(
            self.registry,
            self.where,
            hostname=config.hostname,
            public=config.public,
            relay_only=config.relay_only,
            email=config.email,
            version=__version__,
            networks=config.networks,
            keepalive=config.keepalive,
            settled=self.rotation.settled,
        )
        self.registry.on_lost(self.registration.doubt)
        self.names = Names(self.registry, lambda: self.registration.hostname)
        self.streams = StreamCommands(self)
        table = {**self.streams.table(), **NodeCommands(self).table()}
        self.ipc = IpcServer(self.plane, table, self.streams)
        self._netwatch = NetWatch(self._reactions.network_changed, self._reactions.addresses_changed, self.traversal.targets)
        self._exchange: DataExchange | None = None
        self._events: EventStream | None = None
        self._metrics: MetricsServer | None = None
        self._socket_file: tuple[int, int] | None = None

    @property
    def node_id(self) -> int:
        """Own number, 0 before registration."""
        return self.registration.node_id

    def local_net(self, network: int) -> int:
        """The network of our address toward a peer addressed in `network`: that one if we joined it."""
        return network if network in self.registration.networks else self.registration.address.network

    # ---- life ----

    async def start(self) -> None:
        """Returns when the node is registered and local clients can connect. Raises PilotError."""
        for text in self.config.ignored:
            log.warning(text)
        self.plane.set_public(self.config.public)
        self.plane.start()
        self._reactions.watch()
        self.traversal.observers.append(self._reactions.decided)
        self.traversal.on_endpoint.append(lambda _: self._reactions.moved())
        self.traversal.on_new_key.append(self.registration.key_changed)
        await self.traversal.start()
        if not self.config.endpoint or self.config.transport == "compat":
            await self.compat.start(DISCOVER_S)
        found = info.endpoint_lines(self)[0]
        if not self.config.endpoint:
            _say([found])
        await self.registration.start()
        if self.config.state_dir:
            self.config.state_dir.keep_email(self.config.email)
        await self.traversal.nat_measured(MEASURE_S)  # began with discovery: nearly always over by now
        _say([*([found] if self.config.endpoint else []), *info.endpoint_lines(self)[1:], info.registered_line(self)])
        self._start_services()
        if self.config.metrics_addr:
            from pilot.daemon.metrics import MetricsServer, NodeCollector  # an HTTP server: memory that few nodes need

            self._metrics = MetricsServer(self.config.metrics_addr, NodeCollector(self.plane.stats, self._gauges))
        if self.config.socket:
            listening, self._socket_file = local_socket.listen(self.config.socket)
            self.plane.serve(listening)
            log.info("local clients are served", extra={"socket": str(self.config.socket)})
        self._netwatch.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises PilotError if a part of the node fails."""
        parts: dict[asyncio.Task[Any], str] = {
            asyncio.create_task(self.registration.run()): "registration",
            asyncio.create_task(self.webhook.run()): "webhook",
            asyncio.create_task(self.compat.run()): "transport",
        }
        waiting = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({waiting, *parts}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                log.error("a part of the node failed", exc_info=task.exception(), extra={"part": parts[task]})
                raise PilotError("internal", f"internal error in {parts[task]}", "see the log")
        finally:
            for task in (waiting, *parts):
                task.cancel()
            await asyncio.gather(waiting, *parts, return_exceptions=True)

    async def stop(self) -> None:
        """Leaves the network and closes everything; for a node that was started, half started or not at all."""
        self._netwatch.stop()
        await self._reactions.cancel()
        await self.ipc.stop()
        await self.rotation.close()
        await self.trust.close()
        await self.hub.close()
        if self._events:
            self._events.close()
        if self._exchange:
            await self._exchange.close()
        if self.registration.registered:
            self.webhook.emit("daemon.shutting_down", self._farewell())
            await self.registration.stop(GOODBYE_S)
            self.webhook.emit("node.deregistered")
            delivering = asyncio.create_task(self.webhook.run())
            await self.webhook.drain(GOODBYE_S)
            delivering.cancel()
        await self.compat.stop()
        await self.traversal.stop()
        await self.registry.close()
        if self.config.socket and self._socket_file:
            local_socket.remove(self.config.socket, self._socket_file)
        self._reactions.unwatch()
        await asyncio.to_thread(self._stop_threads)
        if self._identity_file:
            self._identity_file.close()

    def _stop_threads(self) -> None:
        self.plane.stop()
        if self._metrics:
            self._metrics.stop()

    def _start_services(self) -> None:
        self.trust.start(self.node_id)
        if not self.config.no_echo:
            self.plane.listen(ECHO_PORT, OWNER_ECHO)
            counter.start(self.hub)
        if not self.config.no_dataexchange:
            self._exchange = DataExchange(
                self.config.home,
                self.webhook.emit,
                max_frame=self.config.dataexchange_max_frame,
                received_quota=self.config.received_quota,
                base64_always=self.config.dataexchange_b64,
            )
            self._exchange.start(self.hub)
        if not self.config.no_eventstream:
            self._events = EventStream(self.webhook.emit, self.trust.store.is_trusted, time.monotonic)
            self._events.start(self.hub)

    def _make_trust(self, store: TrustStore) -> TrustService:
        policy = Policy(self.config.trust_auto_approve, self.config.trust_same_network)
        return TrustService(
            HandshakeMachine(store, policy),
            public_key=self.identity.public_key,
            sign=self.identity.sign,
            hub=self.hub,
            registry=self.registry,
            plane=self.plane,
            paths=self.traversal,
            emit=self._reactions.trust_event,
        )

    # ---- numbers ----

    def _gauges(self) -> Mapping[str, float]:
        """Called from the thread of the metrics server: reads plain numbers only."""
        return {
            "pilot_uptime_seconds": time.monotonic() - self.started_at,
            "pilot_transport_compat": float(self.compat.active),
            "pilot_compat_dropped": float(self.compat.dropped),
            "pilot_registered": float(self.registration.registered),
            "pilot_registry_reachable": float(self.registration.reachable),
            "pilot_trusted_peers": float(len(self.trust.store.trusted)),
            "pilot_handshakes_pending": float(len(self.trust.store.pending)),
            "pilot_handshakes_dropped": float(self.trust.pending_dropped),
            "pilot_client_requests": float(self.ipc.requests),
            "pilot_beacon_replies_forged": float(self.traversal.forged_replies),
            "pilot_webhook_dropped": float(self.webhook.stats.dropped),
            "pilot_webhook_failed": float(self.webhook.stats.failed),
        }

    def _farewell(self) -> dict[str, int]:
        stats = self.plane.stats()
        return {
            "known_peers": stats["peers"],
            "open_connections": stats["conns"],
            "uptime_seconds": int(time.monotonic() - self.started_at),
        }


async def serve(config: DaemonConfig) -> None:
    """Runs a node until SIGINT or SIGTERM; a second signal ends the process at once. Raises PilotError."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    node = Node(config)
    try:
        starting = asyncio.create_task(node.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        await starting
        await node.run(stop)
        log.info("stopping")
    finally:
        signal.alarm(STOP_S)  # the kernel ends what hangs: a name server, a webhook, a disk
        await node.stop()


def _open_plane(config: DaemonConfig) -> DataPlane:
    try:
        return DataPlane(
            config.listen,
            congestion=config.congestion,
            max_segment=config.max_segment,
            spin_us=_spin_us(config),
            options={
                "idle_timeout_ns": int(config.idle_timeout * 1e9),
                "time_wait_ns": int(config.time_wait * 1e9),
                "syn_rate": config.syn_rate_limit,
                "max_conns": config.max_conns_total,
                "max_conns_port": config.max_conns_per_port,
                "accept_era1": config.accept_era1,
            },
        )
    except OSError as error:
        text = error.strerror or str(error)
        raise PilotError("internal", f"tunnel socket: {text}", "choose another -listen") from None


def _spin_us(config: DaemonConfig) -> int:
    """Waiting awake pays only where the peer of the wait has a processor of its own."""
    if config.spin is not None:
        return round(config.spin * 1e6)
    return SPIN_US if own_processors() >= 2 else 0


def _traversal_config(config: DaemonConfig, plane: DataPlane) -> TraversalConfig:
    return TraversalConfig(
        beacons=[show(config.beacon)],
        endpoint=config.endpoint,
        local_port=plane.local_addr[1],
        relay_only=config.relay_only,
        caps=Capabilities(CAP_NOCRC | CAP_STREAM_OPTS, config.max_segment, REORDER_SEGMENTS),
        accept_era1=config.accept_era1,
    )


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        log.info(line)


def _webhook_failed(event: str, reason: str) -> None:
    log.warning("webhook event lost", extra={"webhook_event": event, "reason": reason})


def _handler_failed(port: int, error: Exception) -> None:
    log.error("a service failed", exc_info=error, extra={"port": port})
