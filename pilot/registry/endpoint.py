"""Which endpoint a registration stores (registry.md section 4.3).

The rule of the first release: the IP is the one the node talks to us from, only the port is taken from `listen_addr`. So nobody
can aim other nodes at a third host. An operator may name source networks whose nodes are believed when they give a public host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_LAN_ADDRS = 16
MAX_LOOKED_AT = 64


def plain_ip(host: str) -> str:
    """The text of an address as everybody writes it: IPv4 seen through an IPv6 socket as IPv4, no zone."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return str(ip)


def ip_group(ip: str) -> str:
    """The part of an address that one party holds: IPv4 whole, IPv6 its /64."""
    if ":" not in ip:
        return ip
    return str(ipaddress.ip_network((ip, 64), strict=False).network_address)


def ip_groups(ip: str) -> list[tuple[str, float]]:
    """(group, what one use of it costs) for budgets: the group above and, as whole prefixes of IPv6 are given away for nothing,
    the wider ones around it, which have a larger budget together."""
    if ":" not in ip:
        return [(ip, 1.0)]
    return [(str(ipaddress.ip_network((ip, bits), strict=False)), cost) for bits, cost in ((64, 1.0), (56, 1 / 4), (48, 1 / 16))]


def join(host: str, port: int) -> str:
    """`host:port`, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(addr: str) -> tuple[str, int] | None:
    """(host, port) of `host:port`, `[v6]:port` or `:port`; None when it is neither or the port is not 0..65535."""
    host, colon, port = addr.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        return None
    return host, int(port)


def observed(ip: str, tcp_port: int, listen_addr: str, believed: Sequence[IPNetwork] = ()) -> str:
    """The endpoint to store for a node that registers from `ip`:`tcp_port` and says it listens on `listen_addr`."""
    parts = split(listen_addr) if listen_addr else None
    if parts is None or parts[1] == 0:
        return join(ip, tcp_port)
    host, port = parts
    if believed and host:
        try:
            given = ipaddress.ip_address(plain_ip(host))
            source = ipaddress.ip_address(ip)
        except ValueError:
            return join(ip, port)
        if given.is_global and not given.is_multicast and any(source in net for net in believed):
            return join(str(given), port)
    return join(ip, port)


def lan_addrs(given: Sequence[str]) -> tuple[str, ...]:
    """The private `host:port` entries of a node's `lan_addrs`, at most 16; public or malformed ones are dropped, so that the
    list cannot aim peers at a stranger."""
    out: list[str] = []
    for addr in given[:MAX_LOOKED_AT]:
        parts = split(addr)
        if parts is None or parts[1] == 0 or len(addr) > 64:
            continue
        try:
            ip = ipaddress.ip_address(parts[0])
        except ValueError:
            continue
        if ip.is_private and not (ip.is_loopback or ip.is_unspecified or ip.is_link_local) and addr not in out:
            out.append(addr)
        if len(out) == MAX_LAN_ADDRS:
            break
    return tuple(out)
