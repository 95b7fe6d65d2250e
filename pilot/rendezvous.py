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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilot.errors import PilotError
from pilot.flags import Flag, FlagTable, one_of, parse_bool, parse_count, parse_size
from pilot.registry.endpoint import join, split

if TYPE_CHECKING:  # loaded when the command line has been found right
    from pilot.beacon import Beacon, WssServer
    from pilot.registry.server import RegistryServer

NAME = "pilot-rendezvous"
OPEN_FILES = 65536  # asked for; a connection of a node is one

Addr = tuple[str, int]

log = logging.getLogger("pilot.rendezvous")


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
            raise ValueError(f"want a number from {low} to {high}")
        return int(text)

    return parse


def parse_listen(text: str) -> Addr:
    """(host, port) of `:9000`, `host:port` or `[v6]:port`; host "" = all addresses, port 0 = a free one."""
    addr = split(text)
    if addr is None:
        raise ValueError("want host:port or :port")
    return addr


def parse_server(text: str) -> Addr:
    """(host, port) of something that can be reached."""
    addr = split(text)
    if addr is None or not addr[0] or not addr[1]:
        raise ValueError("want host:port")
    return addr


def parse_servers(text: str) -> tuple[Addr, ...]:
    """The same, several, separated by commas; empty = none."""
    try:
        return tuple(parse_server(part) for part in (p.strip() for p in text.split(",")) if part)
    except ValueError:
        raise ValueError("want host:port, several separated by commas") from None


def _optional(parse: Callable[[str], Addr]) -> Callable[[str], Addr | None]:
    return lambda text: parse(text) if text else None


def _ip(text: str) -> str:
    """A numeric address of one host, or nothing."""
    try:
        if text and ip_address(text).is_unspecified:
            raise ValueError
    except ValueError:
        raise ValueError("want an IP address of this host") from None
    return text


def _ports(text: str) -> tuple[int, int]:
    first, comma, second = text.partition(",")
    try:
        ports = (int(first), int(second))
    except ValueError:
        ports = (-1, -1)
    if not comma or not all(0 <= p <= 65535 for p in ports) or (ports[0] == ports[1] != 0):
        raise ValueError("want two different port numbers such as 9002,9003, or 0,0")
    return ports


FLAGS = FlagTable(NAME, f"{NAME} [flags]", (
    Flag("registry-addr", parse_listen, ":9000", "TCP address of the registry"),
    Flag("beacon-addr", parse_listen, ":9001", "UDP address of the beacon"),
    Flag("store", str, "", "file of the registry's database; empty: in memory, everything is lost at exit"),
    Flag("network", _number(0, 65535), "0", "network number in the addresses of nodes, 0 to 65535"),
    Flag("admin-token", str, "", "what operators' commands must carry; empty: they are refused", env="PILOT_ADMIN_TOKEN"),
    Flag("registration-rate", parse_count, "10", "new nodes per minute from one address"),
    Flag("max-nodes", parse_count, "500000", "nodes that registry and beacon remember"),
    Flag("relay-rate", parse_size, "1250000000", "bytes per second that one node may relay; 0 = no limit"),
    Flag("beacon-alt-addr", _ip, "", "another IP of this host: nodes' NAT types are told in full with it"),
    Flag("probe-ports", _ports, "0,0", "two more UDP ports of the beacon, for NAT types: open the first in a firewall; 0 = any"),
    Flag("tls-cert", str, "", "PEM certificate: the registry speaks TLS only"),
    Flag("tls-key", str, "", "PEM key of the certificate"),
    Flag("wss-addr", _optional(parse_listen), "", "TCP address for nodes without UDP, usually :443; empty: they are not served"),
    Flag("wss-cert", str, "", "PEM certificate for -wss-addr (default: that of -tls-cert; neither: plain, for a TLS terminator)"),
    Flag("wss-key", str, "", "PEM key of the certificate"),
    Flag("peers", parse_servers, "", "other beacons, host:port separated by commas"),
    Flag("beacon-id", _number(0, 0xFFFFFFFF), "0", "number of this beacon in the registry's list; 0 = not listed"),
    Flag("advertise-addr", _optional(parse_server), "", "host:port at which others reach this beacon"),
    Flag("registry", _optional(parse_server), "", "registry that lists this beacon, host:port (default: our own)"),
    Flag("registry-only", parse_bool, "false", "run no beacon"),
    Flag("beacon-only", parse_bool, "false", "run no registry"),
    Flag("log-level", one_of("debug", "info", "warn", "error"), "info", "debug, info, warn or error", env="PILOT_LOG_LEVEL"),
    Flag("log-format", one_of("text", "json"), "text", "text or json", env="PILOT_LOG_FORMAT"),
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class RendezvousConfig:
    """One field per flag, checked."""

    registry_addr: Addr
    beacon_addr: Addr
    store: str
    network: int
    admin_token: str
    registration_rate: int
    max_nodes: int
    relay_rate: int
    beacon_alt_addr: str
    probe_ports: tuple[int, int]
    tls_cert: str
    tls_key: str
    wss_addr: Addr | None
    wss_cert: str
    wss_key: str
    peers: tuple[Addr, ...]
    beacon_id: int
    advertise_addr: Addr | None
    registry: Addr | None
    registry_only: bool
    beacon_only: bool
    log_level: str
    log_format: str


def load(argv: Sequence[str], env: Mapping[str, str]) -> RendezvousConfig:
    """Settings from a command line (without the program name) and an environment. Raises PilotError(invalid_argument) that names
    the flag or variable at fault."""
    given = FLAGS.parse_command_line(argv)
    values: dict[str, Any] = {}
    for flag in FLAGS.flags:
        text, source = flag.default, f"flag -{flag.name}"
        if flag.env and env.get(flag.env):
            text, source = env[flag.env], flag.env
        values[flag.field] = FLAGS.parse_value(flag, given.get(flag.name, text), source)
    config = RendezvousConfig(**values)
    _check(config)
    return config


def _check(c: RendezvousConfig) -> None:
    if c.registry_only and c.beacon_only:
        raise FLAGS.usage_error("-registry-only and -beacon-only leave nothing to run")
    if bool(c.tls_cert) != bool(c.tls_key):
        raise FLAGS.usage_error("-tls-cert and -tls-key belong together")
    if bool(c.wss_cert) != bool(c.wss_key):
        raise FLAGS.usage_error("-wss-cert and -wss-key belong together")
    if c.wss_cert and not c.wss_addr:
        raise FLAGS.usage_error("-wss-cert: needs the -wss-addr that it is for")
    if c.registry_only and c.wss_addr:
        raise FLAGS.usage_error("-registry-only runs no beacon: leave out -wss-addr")
    if c.wss_addr and c.beacon_only and not c.registry:
        raise FLAGS.usage_error("-wss-addr: needs the -registry that knows the nodes' keys")
    if c.registry_only and (c.peers or c.beacon_id):
        raise FLAGS.usage_error("-registry-only runs no beacon: leave out -peers and -beacon-id")
    if c.registry and not c.beacon_id and not (c.wss_addr and c.beacon_only):
        raise FLAGS.usage_error("-registry: needs a -beacon-id to be listed under")
    if c.beacon_id and c.registry is None:
        if c.beacon_only:
            raise FLAGS.usage_error("-beacon-id: needs the -registry that lists this beacon")
        if not c.admin_token:
            raise FLAGS.usage_error("-beacon-id: the registry lists beacons for the holder of an -admin-token only")
        if not c.registry_addr[1]:
            raise FLAGS.usage_error("-beacon-id: needs a -registry-addr with a port number")
        if c.tls_cert:
            raise FLAGS.usage_error("-beacon-id: beacons reach registries without TLS only")
        if c.advertise_addr is None and not _reachable(c.beacon_addr[0]):
            raise FLAGS.usage_error("-beacon-id: needs the -advertise-addr at which others reach this beacon")


def _reachable(host: str) -> bool:
    """Whether others can be told to use this listening address."""
    if not host:
        return False
    try:
        return not ip_address(host).is_unspecified
    except ValueError:
        return True


# Running


def _make_beacon(config: RendezvousConfig) -> Beacon:
    from pilot.beacon import Announcement, Beacon, BeaconConfig

    announcement = None
    if config.beacon_id:
        host, port = config.registry_addr
        here = (host if _reachable(host) else "localhost", port)
        addr = config.advertise_addr or (config.beacon_addr if _reachable(config.beacon_addr[0]) else None)
        announcement = Announcement(config.registry or here, config.beacon_id, addr, config.admin_token)
    return Beacon(BeaconConfig(
        bind=config.beacon_addr, beacon=config.beacon_id, peers=config.peers, announcement=announcement,
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
    shown = config.advertise_addr or (config.beacon_addr if _reachable(config.beacon_addr[0]) else None)
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
