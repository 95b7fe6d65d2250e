"""NAT laboratory: hosts, NAT routers and links of any kind out of network namespaces, nftables and a link emulator.

The "internet" is one namespace that routes between public /32 addresses of 198.18.0.0/15 (benchmark range, RFC 2544): nothing
in it has a route out. A site is a router with a public address and any number of hosts behind it; a public host is a site
without a router. Needs root.

    with Lab() as lab:
        server = lab.public("server")
        alice = lab.site("a", nat="port_restricted").host("alice")
        alice.run("ping", "-c1", server.ip)

What each NAT kind promises is proved by test_nat_lab.py in the terms of RFC 4787.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import os
import shutil
import signal
import socket
import string
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import nftrules

HERE = Path(__file__).parent
DOUBLE = "double"  # port-restricted at home, port-restricted at the carrier


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """One-way properties of a site's uplink, both directions alike."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0  # 0..1
    mbit: float = 0.0  # 0 = unlimited
    queue_kb: int = 512

    @property
    def shaped(self) -> bool:
        return self != Link()


def setns(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) != 0:  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


def sh(*argv: str, check: bool = True, stdin: str | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, input=stdin)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} -> {done.returncode}: {done.stderr.strip()}\n{stdin or ''}")
    return done.stdout


class Namespace:
    """A network namespace and the processes started in it, each ended by its own id."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = f"{lab.prefix}{name}"
        self.processes: list[subprocess.Popen[Any]] = []
        lab.namespaces.append(self)  # first: whatever fails below, the lab ends it
        sh("ip", "netns", "add", self.name)
        self.ip_cmd("link", "set", "lo", "up")
        for knob in ("ipv4.conf.all.rp_filter", "ipv4.conf.default.rp_filter"):
            self.sysctl(f"net.{knob}", 0)
        # Link-local addresses that settle a second later look like a change of the network.
        for knob in ("ipv6.conf.all.disable_ipv6", "ipv6.conf.default.disable_ipv6"):
            self.sysctl(f"net.{knob}", 1, check=False)

    def ip_cmd(self, *args: str, check: bool = True) -> str:
        return sh("ip", "-n", self.name, *args, check=check)

    def sysctl(self, key: str, value: object, check: bool = True) -> None:
        sh("ip", "netns", "exec", self.name, "sysctl", "-qw", f"{key}={value}", check=check)

    def nft(self, rules: str) -> None:
        sh("ip", "netns", "exec", self.name, "nft", "-f", "-", stdin=rules)

    def wrap(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.wrap(argv), capture_output=True, text=True, timeout=timeout, env=env)
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(argv)} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def spawn(self, *argv: str, stdout: IO[Any] | int = subprocess.DEVNULL, stderr: IO[Any] | int = subprocess.DEVNULL,
              stdin: IO[Any] | int = subprocess.DEVNULL, env: dict[str, str] | None = None) -> subprocess.Popen[Any]:  # fmt: skip
        process = subprocess.Popen(self.wrap(argv), stdout=stdout, stderr=stderr, stdin=stdin, env=env)
        self.processes.append(process)
        return process

    def socket(self, kind: socket.SocketKind = socket.SOCK_DGRAM, port: int = 0, timeout: float = 1.0) -> socket.socket:
        """A socket that lives in this namespace, bound to `port` on every address."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            setns(there.fileno())
            try:
                sock = socket.socket(socket.AF_INET, kind)
            finally:
                setns(home.fileno())
        sock.bind(("0.0.0.0", port))
        sock.settimeout(timeout)
        return sock

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        sh("ip", "netns", "del", self.name, check=False)


class Host(Namespace):
    """A machine; `ip` is its own address (inside one behind a NAT)."""

    def __init__(self, lab: Lab, name: str, ip: str) -> None:
        super().__init__(lab, name)
        self.ip = ip


class Site:
    """A router with a public address and the hosts behind it."""

    def __init__(
        self, lab: Lab, name: str, nat: str, carrier: str | None, link: Link, timeout_s: int, hairpin: bool, input_open: bool
    ) -> None:
        self.lab = lab
        self.name = name
        self.nat = nat
        self.carrier = carrier
        self.options: dict[str, Any] = {"timeout_s": timeout_s, "hairpin": hairpin, "input_open": input_open}
        self.hosts: list[Host] = []
        self._last = 9  # part of the last inside address given out
        self.public_ip = lab.next_public_ip()
        self.index = len(lab.sites) + 1
        self.router = self.edge = Namespace(lab, f"{name}-r")
        home_ip = self.public_ip
        if carrier is not None:  # carrier-grade NAT in front of the home router: the stricter of each property wins
            self.edge = Namespace(lab, f"{name}-cgn")
            home_ip = f"100.64.{self.index}.2"
            lab.cable(self.edge, "lan", f"100.64.{self.index}.1/24", self.router, "wan", f"{home_ip}/24")
            self.router.ip_cmd("route", "add", "default", "via", f"100.64.{self.index}.1")
            self._translate(self.edge, carrier, self.public_ip)
        lab.uplink(self.edge, "wan", self.public_ip, link)
        self._translate(self.router, nat, home_ip)
        for ns in {self.router, self.edge}:
            ns.sysctl("net.ipv4.ip_forward", 1)
        # One bridge: hosts of a site are neighbours.
        self.router.ip_cmd("link", "add", "lan", "type", "bridge")
        self.router.ip_cmd("addr", "add", f"192.168.{self.index}.1/24", "dev", "lan")
        self.router.ip_cmd("link", "set", "lan", "up")
        for knob in ("iptables", "ip6tables", "arptables"):  # the kernel filters bridges too unless told not to
            self.router.sysctl(f"net.bridge.bridge-nf-call-{knob}", 0, check=False)

    def _translate(self, ns: Namespace, kind: str, outside: str) -> None:
        ns.nft(nftrules.nat(kind, outside, **self.options))
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            ns.sysctl(f"net.netfilter.{name}", self.options["timeout_s"])
        ns.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)  # a connection that it does not know is dead, and nobody says so

    def _inside_ip(self) -> str:
        self._last += 1
        return f"192.168.{self.index}.{self._last}"

    def host(self, name: str) -> Host:
        host = Host(self.lab, name, self._inside_ip())
        port = f"p{self._last}"
        self.lab.cable(self.router, port, None, host, "eth0", f"{host.ip}/24")
        self.router.ip_cmd("link", "set", port, "master", "lan")
        host.ip_cmd("route", "add", "default", "via", f"192.168.{self.index}.1")
        self.hosts.append(host)
        return host

    def renumber(self, host: Host) -> None:
        """The inside address changes: a laptop that joined another network."""
        host.ip = self._inside_ip()
        host.ip_cmd("addr", "flush", "dev", "eth0")
        host.ip_cmd("addr", "add", f"{host.ip}/24", "dev", "eth0")
        host.ip_cmd("route", "add", "default", "via", f"192.168.{self.index}.1")

    def move(self) -> None:
        """The provider gives the router another public address; its hosts are not told. Mappings of the old one are gone."""
        old, self.public_ip = self.public_ip, self.lab.next_public_ip()
        self.lab.readdress(self.edge, "wan", old, self.public_ip)
        self.edge.nft("flush ruleset")
        self._translate(self.edge, self.carrier or self.nat, self.public_ip)

    def block_udp(self, blocked: bool, tcp_ports: Sequence[int] = (443,)) -> None:
        """No UDP passes the router, and TCP only to these ports of the world; or again everything."""
        self.edge.nft("table ip office\ndelete table ip office\n" + (nftrules.udp_blocked(tcp_ports) if blocked else ""))

    def deafen(self, *sources: str) -> None:
        """UDP from these public addresses comes in no more, while what goes out to them arrives; none: it comes again."""
        self.edge.nft("table ip deaf\ndelete table ip deaf\n" + (nftrules.deaf(sources) if sources else ""))


_labs = itertools.count()  # of this process


def _serial(number: int) -> str:
    """Few characters that tell labs of one process apart."""
    digits = string.ascii_lowercase
    return digits[number % 26] + (_serial(number // 26 - 1) if number >= 26 else "")


class Lab:
    """Owns every namespace and process; leaving the context ends them all."""

    def __init__(self) -> None:
        self.tag = f"{os.getpid() % 100000}{_serial(next(_labs))}"
        self.prefix = f"pl{self.tag}-"
        self.namespaces: list[Namespace] = []
        self.sites: list[Site] = []
        self.emulators: list[subprocess.Popen[Any]] = []
        self._uplinks: dict[str, str] = {}  # namespace: interface of the internet that leads there
        self._public = 0
        self._cable = 0
        self.tmp = Path(tempfile.mkdtemp(prefix="pilot-lab."))

    def __enter__(self) -> Lab:
        self.core = Namespace(self, "core")
        self.core.sysctl("net.ipv4.ip_forward", 1)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.emulators:
            process.send_signal(signal.SIGTERM)
        for process in self.emulators:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for ns in reversed(self.namespaces):
            with contextlib.suppress(Exception):
                ns.close()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def next_public_ip(self) -> str:
        self._public += 1
        return f"198.18.{self._public // 200}.{self._public % 200 + 10}"

    def cable(self, a: Namespace, a_if: str, a_addr: str | None, b: Namespace, b_if: str, b_addr: str | None) -> None:
        """A veth pair between two namespaces."""
        self._cable += 1
        x, y = f"v{self.tag}-{self._cable}a", f"v{self.tag}-{self._cable}b"  # at most 15 characters
        sh("ip", "link", "add", x, "type", "veth", "peer", "name", y)
        for ns, end, name, addr in ((a, x, a_if, a_addr), (b, y, b_if, b_addr)):
            sh("ip", "link", "set", end, "netns", ns.name)
            ns.ip_cmd("link", "set", end, "name", name)
            if addr:
                ns.ip_cmd("addr", "add", addr, "dev", name)
            ns.ip_cmd("link", "set", name, "up")

    def uplink(self, ns: Namespace, name: str, ip: str, link: Link) -> None:
        """Connects a namespace to the internet under a public address, through a shaped link if asked."""
        self._cable += 1
        core_if = self._uplinks[ns.name] = f"u{self._cable}"
        if link.shaped:
            self._emulate(ns, name, core_if, link)
            ns.ip_cmd("addr", "add", f"{ip}/32", "dev", name)
        else:
            self.cable(self.core, core_if, None, ns, name, f"{ip}/32")
        ns.ip_cmd("route", "add", "default", "dev", name)
        if not link.shaped:  # every address is "on" the wire: the core answers for all of them
            self.core.sysctl(f"net.ipv4.conf.{core_if}.proxy_arp", 1)
            self.core.sysctl(f"net.ipv4.neigh.{core_if}.proxy_delay", 0)
        self.core.ip_cmd("route", "add", f"{ip}/32", "dev", core_if)

    def _emulate(self, ns: Namespace, name: str, core_if: str, link: Link) -> None:
        binary = emulator()
        process = subprocess.Popen(
            [str(binary), self.core.name, core_if, ns.name, name, str(int(link.delay_ms * 1000)), str(int(link.jitter_ms * 1000)),
             str(int(link.loss * 1_000_000)), str(int(link.mbit * 125_000)), str(link.queue_kb * 1024)],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        self.emulators.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the link emulator did not start")
        for where, dev in ((self.core, core_if), (ns, name)):
            # The line has its own queue: 500 packets in front of it overflow whenever the emulator waits for a core.
            where.ip_cmd("link", "set", dev, "txqueuelen", "5000", "up")

    def readdress(self, ns: Namespace, dev: str, old: str, new: str) -> None:
        """Gives an uplink another public address."""
        core_if = self._uplinks[ns.name]
        ns.ip_cmd("addr", "add", f"{new}/32", "dev", dev)
        ns.ip_cmd("addr", "del", f"{old}/32", "dev", dev)
        ns.ip_cmd("route", "replace", "default", "dev", dev)
        self.core.ip_cmd("route", "del", f"{old}/32", "dev", core_if)
        self.core.ip_cmd("route", "add", f"{new}/32", "dev", core_if)

    def wall(self, *addresses: str) -> None:
        """No UDP passes between these public addresses, as if their providers had quarrelled; none: it passes again."""
        self.core.nft("table ip wall\ndelete table ip wall\n" + (nftrules.wall(addresses) if addresses else ""))

    def public(self, name: str, link: Link | None = None) -> Host:
        ip = self.next_public_ip()
        host = Host(self, name, ip)
        self.uplink(host, "eth0", ip, link or Link())
        return host

    def second_address(self, host: Host) -> str:
        """One more public address for a host on the internet."""
        ip = self.next_public_ip()
        host.ip_cmd("addr", "add", f"{ip}/32", "dev", "eth0")
        self.core.ip_cmd("route", "add", f"{ip}/32", "dev", self._uplinks[host.name])
        return ip

    def place(self, name: str, kind: str, link: Link | None = None, **options: Any) -> Host:
        """A host on the internet in the way of `kind`: one of nftrules.KINDS, or DOUBLE. options: of `site`."""
        if kind == "none":
            return self.public(name, link)
        if kind == DOUBLE:
            kind, options["carrier"] = "port_restricted_cone", "port_restricted_cone"
        return self.site(name, nat=kind, link=link, **options).host(f"{name}-h")

    def site(
        self, name: str, *, nat: str, carrier: str | None = None, link: Link | None = None, timeout_s: int = 120,
        hairpin: bool = False, input_open: bool = False, udp_blocked: bool = False,
    ) -> Site:  # fmt: skip
        """A router and the hosts that are plugged into it later. nat, carrier: one of KINDS; carrier is a second NAT in front.
        timeout_s: of UDP mappings. input_open: the fault of nat() in nftrules."""
        site = Site(self, name, nat, carrier, link or Link(), timeout_s, hairpin, input_open)
        self.sites.append(site)
        if udp_blocked:
            site.block_udp(True)
        return site


def emulator() -> Path:
    """The link emulator."""
    return compiled(HERE / "link.c")


def compiled(source: Path) -> Path:
    """A program of one C file, compiled once per source version."""
    target = Path(tempfile.gettempdir()) / f"pilot-{source.stem}-{os.getuid()}-{source.stat().st_mtime_ns}"
    if not target.exists():
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        partial = target.with_suffix(f".{os.getpid()}")
        sh(shutil.which(compiler) or "cc", "-O2", "-Wall", "-Wextra", "-o", str(partial), str(source))
        partial.rename(target)
    return target
