"""Words for NATs and addresses: the classes users read, and which addresses a stranger may make us send
to."""

from __future__ import annotations

import ipaddress
from enum import Enum
from functools import lru_cache

Addr = tuple[str, int]


class NatType(Enum):
    """The classic names (RFC 3489), plus no NAT at all, no UDP at all, and not known."""

    UNKNOWN = "unknown"
    OPEN = "open"
    FULL_CONE = "full_cone"
    RESTRICTED_CONE = "restricted_cone"
    PORT_RESTRICTED_CONE = "port_restricted_cone"
    SYMMETRIC = "symmetric"
    BLOCKED = "blocked"


NAT_CODES = tuple(NatType)  # a node tells its own as the index: docs/wire-extensions.md 1, record 6
UNFILTERED = frozenset({NatType.OPEN, NatType.FULL_CONE})  # strangers' packets arrive without a punch

FILTERED = frozenset({NatType.RESTRICTED_CONE, NatType.PORT_RESTRICTED_CONE, NatType.SYMMETRIC})


class Scope(Enum):
    """How far an address reaches."""

    NONE = 0  # unusable: unspecified, multicast, broadcast, no address
    LOOPBACK = 1
    PRIVATE = 2  # private, link-local, shared (RFC 6598)
    PUBLIC = 3


_SHARED = ipaddress.ip_network("100.64.0.0/10")


@lru_cache(maxsize=4096)
def scope(host: str) -> Scope:
    """The scope of a numeric address; NONE if it is no address."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return Scope.NONE
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if (
        ip.is_unspecified
        or ip.is_multicast
        or (ip.version == 4 and ip == ipaddress.IPv4Address("255.255.255.255"))
    ):
        return Scope.NONE
    if ip.is_loopback:
        return Scope.LOOPBACK
    if ip.is_private or ip.is_link_local or (ip.version == 4 and ip in _SHARED):
        # Documentation and benchmarking ranges count as private in the standard library. Laboratories use
        # them as the outside
        # world, and nobody routes them, so they are told apart by what they are for.
        return Scope.PUBLIC if _is_documentation(ip) else Scope.PRIVATE
    return Scope.PUBLIC


def _is_documentation(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(ip.version == net.version and ip in net for net in _DOCUMENTATION)


_DOCUMENTATION = tuple(
    ipaddress.ip_network(n)
    for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32")
)


def may_punch(target: Addr, beacon: Addr) -> bool:
    """Whether a punch command from `beacon` may make us send to `target`.

    A beacon sees public sources unless it is local itself; a command from a public beacon that names a
    private or loopback
    target is forged or mistaken (transport.md 3.9).
    """
    reach = scope(target[0])
    return 0 < target[1] < 65536 and reach is not Scope.NONE and reach.value >= scope(beacon[0]).value


def parse_addr(text: str) -> Addr | None:
    """`203.0.113.7:4000` or `[2001:db8::7]:4000` as a numeric address; None if it is not one."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return None if scope(str(ip)) is Scope.NONE else (str(ip), int(port))


def same_subnet(a: str, b: str) -> bool:
    """Both IPv4 in one /24, or both IPv6 in one /64: the LAN rule of transport.md 6.1."""
    try:
        x, y = ipaddress.ip_address(a), ipaddress.ip_address(b)
    except ValueError:
        return False
    if x.version != y.version:
        return False
    shift = 8 if x.version == 4 else 64
    return int(x) >> shift == int(y) >> shift


def show(addr: Addr) -> str:
    """`host:port`, IPv6 in brackets."""
    return f"[{addr[0]}]:{addr[1]}" if ":" in addr[0] else f"{addr[0]}:{addr[1]}"
