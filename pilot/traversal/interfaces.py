"""Addresses of this host's network interfaces (getifaddrs, through the C library; the standard library has no
call for it)."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import sys

from pilot.traversal.nat import Scope, scope

MAX_LAN = 8


class _SockAddr(ctypes.Structure):
    _fields_ = [("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26)]


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("addr", ctypes.POINTER(_SockAddr)),
    ("netmask", ctypes.POINTER(_SockAddr)),
    ("broadaddr", ctypes.POINTER(_SockAddr)),
    ("data", ctypes.c_void_p),
]

_IFF_UP = 1


def local_hosts() -> list[str]:
    """Numeric addresses of all interfaces that are up, IPv4 first; empty if the system does not tell."""
    if not sys.platform.startswith("linux"):
        return _by_name()
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        return _by_name()
    hosts: dict[str, None] = {}
    try:
        entry = head
        while entry:
            item = entry.contents
            if item.addr and item.flags & _IFF_UP:
                host = _host(item.addr.contents)
                if host:
                    hosts[host] = None
            entry = item.next
    finally:
        libc.freeifaddrs(head)
    return sorted(hosts, key=lambda h: ":" in h)


def lan_hosts() -> list[str]:
    """Private and link-local IPv4 addresses, as the registry publishes them for peers on the same LAN
    (transport.md 6.1)."""
    return [h for h in local_hosts() if ":" not in h and scope(h) is Scope.PRIVATE][:MAX_LAN]


def _host(addr: _SockAddr) -> str | None:
    raw = bytes(addr.data)
    if addr.family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[2:6]))
    if addr.family == socket.AF_INET6:
        return str(ipaddress.IPv6Address(raw[6:22]))
    return None


def _by_name() -> list[str]:
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(f[4][0]).partition("%")[0] for f in found))
