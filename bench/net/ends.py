"""What both drivers share: arguments, replies, the transports by name.

A transport connects or accepts streams; a stream has sendall, recv_into (0 at the end) and close. A server is made first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import time
from typing import Any, Protocol

from net.cpu import of_process

PORT = 1000  # on the overlay
PORTS = {"tls": 6001, "tcp": 6002, "zmq": 6003, "aioquic": 6004, "qh3": 6005}  # of the others
CHUNK = 256 << 10
FIRST = bytes(1)
TRANSPORTS = {
    "inproc": "net.transports:InProcess", "socket": "net.transports:LocalSocket", "tcp": "net.transports:Tcp",
    "tls": "net.transports:Tcp", "asyncio": "net.asynctransports:Node", "zmq": "peers.zeromq:Curve",
    "aioquic": "peers.quic:Quic", "qh3": "peers.quic:Quic", "iroh": "peers.irohs:Iroh",
}  # fmt: skip


class Stream(Protocol):
    def sendall(self, data: Any, /) -> Any: ...
    def recv_into(self, buffer: Any, /) -> int: ...
    def close(self) -> None: ...


class Transport(Protocol):
    def connect(self) -> Stream: ...
    def accept(self) -> Stream: ...
    def path(self) -> str: ...
    def send_datagram(self, data: bytes) -> None: ...
    def recv_datagram(self, timeout: float) -> bool:
        """False: none came in time."""
        ...


def load(name: str) -> Any:
    module, _, kind = TRANSPORTS[name].partition(":")
    return getattr(importlib.import_module(module), kind)


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transport", choices=sorted(TRANSPORTS))
    parser.add_argument("role", choices=("server", "client"))
    parser.add_argument("--name", default="", help="own host name, or address")
    parser.add_argument("--peer", default="", help="the other end's")
    parser.add_argument("--registry", default="")
    parser.add_argument("--beacon", default="")
    parser.add_argument("--listen", default="0.0.0.0:0")
    parser.add_argument("--setting", action="append", default=[], help="NAME=VALUE of the in-process node")
    return parser


def node_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Of pilot.Node; limits on strangers' connections are out of the way."""
    given = dict(pair.split("=", 1) for pair in args.setting)
    return {
        "registry": args.registry, "beacon": args.beacon, "hostname": args.name, "listen": args.listen,
        "trust_auto_approve": True, "transport": "udp", "syn_rate_limit": 100000, "max_conns_per_port": 4096,
    } | given  # fmt: skip


def say(reply: dict[str, Any]) -> None:
    print(json.dumps(reply), flush=True)


class Spent:
    """Seconds and CPU seconds of this process since this was made."""

    def __init__(self) -> None:
        self._cpu, self._start = of_process("self"), time.monotonic()

    def figures(self) -> dict[str, float]:
        """took, cpu_native, cpu_other (cpu.py), rss_mb (the most memory that the process has had)."""
        now = of_process("self")
        return {
            "took": time.monotonic() - self._start,
            "cpu_native": now[0] - self._cpu[0],
            "cpu_other": now[1] - self._cpu[1],
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
