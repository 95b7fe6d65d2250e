"""The settings of `pilot-rendezvous`: its command line and environment, checked before anything starts.

Secrets are never part of a message, and the settings do not show them when they are printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pilot.flags import Flag, FlagTable, one_of, parse_bool, parse_count, parse_size
from pilot.registry.endpoint import split

NAME = "pilot-rendezvous"
SECRET_MIN = 16  # characters

Addr = tuple[str, int]


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
    Flag("beacon-secret", str, "", "secret of all beacons: peers are believed on its proof alone", env="PILOT_BEACON_SECRET"),
    Flag("beacon-secret-file", str, "", "file that holds the secret, first line"),
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
    admin_token: str = field(repr=False)
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
    beacon_secret: str = field(repr=False)
    beacon_secret_file: str
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
    if values["beacon_secret_file"]:
        if values["beacon_secret"]:
            raise FLAGS.usage_error("-beacon-secret and -beacon-secret-file (or PILOT_BEACON_SECRET): give one of them")
        values["beacon_secret"] = _secret_of(Path(values["beacon_secret_file"]).expanduser())
    config = RendezvousConfig(**values)
    _check(config)
    return config


def _secret_of(path: Path) -> str:
    """The first line of a file that others cannot read."""
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise FLAGS.usage_error(f"-beacon-secret-file: {path} can be read by others, make it mode 0600")
            secret = file.readline(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise FLAGS.usage_error(f"-beacon-secret-file: cannot read {path}: {reason}") from None
    if not secret:
        raise FLAGS.usage_error(f"-beacon-secret-file: the first line of {path} is empty")
    return secret


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
    if c.beacon_secret and len(c.beacon_secret) < SECRET_MIN:
        raise FLAGS.usage_error(f"-beacon-secret: needs {SECRET_MIN} characters, better 32 random ones: openssl rand -hex 32")
    if c.beacon_secret and not (c.peers or c.beacon_id):
        raise FLAGS.usage_error("-beacon-secret: is for beacons with -peers or a -beacon-id")
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
        if c.advertise_addr is None and not reachable(c.beacon_addr[0]):
            raise FLAGS.usage_error("-beacon-id: needs the -advertise-addr at which others reach this beacon")


def reachable(host: str) -> bool:
    """Whether others can be told to use this listening address."""
    if not host:
        return False
    try:
        return not ip_address(host).is_unspecified
    except ValueError:
        return True
