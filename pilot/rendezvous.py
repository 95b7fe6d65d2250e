"""The program `pilot-rendezvous`: registry and beacon in one process (registry.md, beacon.md).

Together they know more than apart: the registry vouches for the addresses of its nodes, so that nobody else can claim them at the
beacon, and the beacon tells a node at once when the registry holds a handshake for it.

SIGHUP reads the certificates again. Exit status: 0 after an orderly stop (SIGINT, SIGTERM), 1 if it cannot start, 2 for a wrong
command line.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import resource
import signal
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot.errors import PilotError
from pilot.registry.endpoint import join
from pilot.rendezvous_flags import FLAGS, NAME, RendezvousConfig, load, reachable

if TYPE_CHECKING:  # loaded when the command line has been found right
    from pilot.beacon import Beacon, WssServer
    from pilot.registry.server import RegistryServer

OPEN_FILES = 65536  # asked for; a connection of a node is one

log = logging.getLogger("pilot.rendezvous")


def _make_beacon(config: RendezvousConfig) -> Beacon:
    from pilot.beacon import Announcement, Beacon, BeaconConfig

    announcement = None
    if config.beacon_id:
        host, port = config.registry_addr
        here = (host if reachable(host) else "localhost", port)
        addr = config.advertise_addr or (config.beacon_addr if reachable(config.beacon_addr[0]) else None)
        announcement = Announcement(config.registry or here, config.beacon_id, addr, config.admin_token)
    return Beacon(BeaconConfig(
        bind=config.beacon_addr, beacon=config.beacon_id, peers=config.peers, announcement=announcement,
        secret=config.beacon_secret,
        max_nodes=config.max_nodes, relay_bytes_per_s=config.relay_rate,
        alt=config.beacon_alt_addr, probe_ports=config.probe_ports,
    ))  # fmt: skip


def _make_registry(config: RendezvousConfig, beacon: Beacon | None) -> RegistryServer:
    """Opens the store. PilotError if it is damaged or in use."""
    from pilot.registry.config import RegistryConfig
    from pilot.registry.server import RegistryServer
    from pilot.registry.store import MemoryStore, Store

    if not config.store:
        log.warning("no -store given: nodes, names and trust are lost when this process ends")
    shown = config.advertise_addr or (config.beacon_addr if reachable(config.beacon_addr[0]) else None)
    limits = RegistryConfig(
        registrations_per_min_ip=float(config.registration_rate), max_nodes=config.max_nodes,
        relay_addr=join(*shown) if shown and beacon else "",
    )  # fmt: skip
    hooks: dict[str, Any] = {"on_mail": beacon.notify, "on_endpoint": beacon.vouch} if beacon else {}
    return RegistryServer(
        Store(Path(config.store).expanduser()) if config.store else MemoryStore(),
        network=config.network, config=limits, admin_token=config.admin_token, **hooks,
    )  # fmt: skip


class _Doors:
    """The TLS contexts of this process. Their files can be read again: a renewed certificate needs no restart."""

    def __init__(self) -> None:
        self._contexts: list[tuple[ssl.SSLContext, str, str]] = []

    def context(self, certificate: str, key: str) -> ssl.SSLContext:
        from pilot.registry.tls import server_context

        context = server_context(Path(certificate), Path(key))
        self._contexts.append((context, certificate, key))
        return context

    def reload(self) -> None:
        """New connections get what the files hold now. Files that do not fit change nothing."""
        for context, certificate, key in self._contexts:
            try:
                context.load_cert_chain(certificate, key)
            except (OSError, ssl.SSLError) as error:
                log.error("certificate not reloaded", extra={"file": certificate, "error": str(error)})
            else:
                log.info("certificate reloaded", extra={"file": certificate})


def _make_wss(config: RendezvousConfig, registry: RegistryServer | None, doors: _Doors) -> WssServer:
    from pilot.beacon import WssConfig, WssServer
    from pilot.registry.client import RegistryClient
    from pilot.registry.connection import Connection

    assert config.wss_addr is not None
    certificate, key = (config.wss_cert, config.wss_key) if config.wss_cert else (config.tls_cert, config.tls_key)
    tls = doors.context(certificate, key) if certificate else None
    if tls is not None:
        tls.minimum_version = ssl.TLSVersion.TLSv1_2  # middleboxes on the way may know no more
        tls.set_alpn_protocols(["http/1.1"])
    if registry is not None:
        nodes = registry.core.state.nodes

        async def known_here(node: int) -> bytes | None:
            found = nodes.get(node)
            return found.key if found else None

        return WssServer(WssConfig(config.wss_addr, tls), known_here, lambda: Connection(registry))
    assert config.registry is not None
    client = RegistryClient(*config.registry)

    async def known_there(node: int) -> bytes | None:
        try:
            reply = await client.lookup(node)
            return base64.b64decode(str(reply.get("public_key") or ""), validate=True) or None
        except binascii.Error:
            return None
        except PilotError as error:
            if error.code == "not_found":
                return None
            raise

    return WssServer(WssConfig(config.wss_addr, tls), known_there)


async def serve(config: RendezvousConfig, stop: asyncio.Event, doors: _Doors | None = None) -> None:
    """Runs registry and beacon until `stop` is set. doors: takes the TLS contexts. PilotError if either cannot start."""
    doors = doors or _Doors()
    beacon = None if config.registry_only else _make_beacon(config)
    registry = None
    try:
        if not config.beacon_only:
            registry = _make_registry(config, beacon)
        if beacon is not None:
            await beacon.open()  # before the first node can register: the registry vouches for it here
        if registry is not None:
            tls = None
            if config.tls_cert:
                tls = doors.context(config.tls_cert, config.tls_key)
            await registry.start(*config.registry_addr, tls)
        if beacon is not None:
            if config.wss_addr:
                beacon.wss = _make_wss(config, registry, doors)
            log.info("beacon listening", extra={"addr": join(*await beacon.start())})
        await stop.wait()
        log.info("stopping")
    finally:
        if registry is not None:
            await registry.stop()
        if beacon is not None:
            await beacon.stop()


async def _until_signal(config: RendezvousConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    doors = _Doors()
    loop.add_signal_handler(signal.SIGHUP, doors.reload)
    await serve(config, stop, doors)


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Entry point. Returns the exit status."""
    argv = sys.argv[1:]
    try:
        words = FLAGS.parse_command_line(argv)
        if "help" in words:
            sys.stdout.write(FLAGS.help_text())
            return 0
        if "version" in words:
            from pilot import __version__

            print(__version__)
            return 0
        config = load(argv, os.environ)
    except PilotError as error:
        return _complain(error, 2)

    import uvloop

    from pilot import logs

    os.umask(0o077)
    logs.setup(config.log_level, config.log_format)
    _raise_open_files()
    try:
        uvloop.run(_until_signal(config))
    except PilotError as error:
        return _complain(error, 1)
    return 0


def _complain(error: PilotError, status: int) -> int:
    print(f"{NAME}: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
