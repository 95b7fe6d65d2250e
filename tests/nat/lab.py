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
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
FIRST_PORT, LAST_PORT = 20000, 29999  # outside ports of every NAT: never equal to an inside port by accident

KINDS = (
    "none",             # public host, no translation
    "full_cone",        # endpoint-independent mapping and filtering
    "restricted_cone",  # endpoint-independent mapping, address-dependent filtering
    "port_restricted_cone",  # endpoint-independent mapping, address-and-port-dependent filtering
    "symmetric",        # address-and-port-dependent mapping (random ports) and filtering
    "symmetric_sequential",  # the same with ports that count up
)  # fmt: skip
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

    def run(self, *argv: str, check: bool = True, timeout: float = 60, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
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

    def __init__(self, lab: Lab, name: str, *, nat: str, link: Link, hairpin: bool, input_open: bool, udp_blocked: bool,
                 timeout_s: int, carrier: str | None) -> None:  # fmt: skip
        self.lab = lab
        self.name = name
        self.nat = nat
        self.hosts: list[Host] = []
        self.public_ip = lab.next_public_ip()
        self.index = len(lab.sites) + 1
        self.router = Namespace(lab, f"{name}-r")
        self.router.sysctl("net.ipv4.ip_forward", 1)
        if carrier is None:
            lab.uplink(self.router, "wan", self.public_ip, link)
            self.edge = self.router
            self._translate(self.router, nat, hairpin, input_open, udp_blocked, timeout_s)
        else:  # carrier-grade NAT in front of the home router: the stricter of each property wins
            self.edge = Namespace(lab, f"{name}-cgn")
            self.edge.sysctl("net.ipv4.ip_forward", 1)
            lab.uplink(self.edge, "wan", self.public_ip, link)
            lab.cable(self.edge, "lan", f"100.64.{self.index}.1/24", self.router, "wan", f"100.64.{self.index}.2/24")
            self.router.ip_cmd("route", "add", "default", "via", f"100.64.{self.index}.1")
            self._translate(self.edge, carrier, hairpin, input_open, udp_blocked, timeout_s)
            self._translate(self.router, nat, hairpin, input_open, False, timeout_s)
        # One bridge: hosts of a site are neighbours.
        self.router.ip_cmd("link", "add", "lan", "type", "bridge")
        self.router.ip_cmd("addr", "add", f"192.168.{self.index}.1/24", "dev", "lan")
        self.router.ip_cmd("link", "set", "lan", "up")
        for knob in ("iptables", "ip6tables", "arptables"):  # the kernel filters bridges too unless told not to
            self.router.sysctl(f"net.bridge.bridge-nf-call-{knob}", 0, check=False)

    def _translate(self, ns: Namespace, nat: str, hairpin: bool, input_open: bool, udp_blocked: bool, timeout_s: int) -> None:
        if nat not in KINDS or nat == "none":
            raise ValueError(f"not a NAT kind: {nat}")
        ports = f"{FIRST_PORT}-{LAST_PORT}"
        source = {
            "symmetric": f"masquerade to :{ports} fully-random",
            "symmetric_sequential": f"masquerade to :numgen inc mod {LAST_PORT - FIRST_PORT} map {{ {sequential_map()} }}",
        }.get(nat, f"masquerade to :{ports}")
        learned = nat in ("full_cone", "restricted_cone")
        admit = {
            "full_cone": 'iifname "wan" meta l4proto udp dnat ip to udp dport map @inside',
            "restricted_cone": 'iifname "wan" meta l4proto udp udp dport . ip saddr @allowed dnat ip to udp dport map @inside',
        }.get(nat, "")
        # A packet from outside for the router itself must leave no tracking entry: a confirmed one would take the outside port of a
        # punch that is about to go out. Dropping it in INPUT does that; `input_open` reproduces routers with that fault.
        self_defence = "" if input_open else 'iifname "wan" drop'
        turn = ""
        turn_source = ""
        if hairpin:
            turn = {
                "full_cone": 'iifname "lan" ip daddr WAN meta l4proto udp dnat ip to udp dport map @inside',
                "restricted_cone": 'iifname "lan" ip daddr WAN meta l4proto udp dnat ip to udp dport map @inside',
            }.get(nat, "").replace("WAN", self.public_ip)  # fmt: skip
            turn_source = 'oifname "lan" iifname "lan" ct status dnat meta l4proto udp masquerade to :' + ports
        ns.nft(f"""
table ip nat {{
  map inside {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout {timeout_s}s; size 65535; }}
  set allowed {{ type inet_service . ipv4_addr; flags dynamic,timeout; timeout {timeout_s}s; size 65535; }}
  chain pre {{
    type nat hook prerouting priority dstnat;
    {admit}
    {turn}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" meta l4proto udp {source}
    oifname "wan" masquerade
    {turn_source}
  }}
}}
table ip filter {{
  chain input {{
    type filter hook input priority filter;
    ct state established,related accept
    {self_defence}
  }}
  chain forward {{
    type filter hook forward priority filter;
    {'iifname "lan" meta l4proto udp drop' if udp_blocked else ""}
    {'iifname "lan" meta l4proto tcp tcp dport != 443 drop' if udp_blocked else ""}
    {"" if learned else 'iifname "wan" ct state new drop'}
  }}
}}
""")
        if learned:  # after source NAT the outside port is known; only what leaves refreshes (RFC 4787 REQ-6)
            ns.nft("""
table ip nat {
  chain learn {
    type filter hook postrouting priority 150;
    oifname "wan" meta l4proto udp ct direction original update @inside { udp sport : ct original ip saddr . ct original proto-src }
    oifname "wan" meta l4proto udp update @allowed { udp sport . ip daddr }
  }
}
""")
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            ns.sysctl(f"net.netfilter.{name}", timeout_s)

    def host(self, name: str) -> Host:
        n = len(self.hosts) + 10
        host = Host(self.lab, name, f"192.168.{self.index}.{n}")
        port = f"p{n}"
        self.lab.cable(self.router, port, None, host, "eth0", f"{host.ip}/24")
        self.router.ip_cmd("link", "set", port, "master", "lan")
        host.ip_cmd("route", "add", "default", "via", f"192.168.{self.index}.1")
        self.hosts.append(host)
        return host

    def renumber(self, host: Host) -> None:
        """The inside address changes: a laptop that joined another network."""
        old = host.ip
        n = int(old.rsplit(".", 1)[1]) + 100
        host.ip = f"192.168.{self.index}.{n}"
        host.ip_cmd("addr", "add", f"{host.ip}/24", "dev", "eth0")
        host.ip_cmd("addr", "del", f"{old}/24", "dev", "eth0")
        host.ip_cmd("route", "replace", "default", "via", f"192.168.{self.index}.1")


def sequential_map() -> str:
    """numgen gives an index; masquerade wants a port."""
    return ", ".join(f"{i} : {FIRST_PORT + i}" for i in range(LAST_PORT - FIRST_PORT))


class Lab:
    """Owns every namespace and process; leaving the context ends them all."""

    def __init__(self) -> None:
        self.prefix = f"pl{os.getpid() % 100000}-"
        self.namespaces: list[Namespace] = []
        self.sites: list[Site] = []
        self.emulators: list[subprocess.Popen[Any]] = []
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
        x, y = f"v{os.getpid() % 100000}a{self._cable}", f"v{os.getpid() % 100000}b{self._cable}"
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
        core_if = f"u{self._cable}"
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
            where.ip_cmd("link", "set", dev, "up")

    def public(self, name: str, link: Link | None = None) -> Host:
        ip = self.next_public_ip()
        host = Host(self, name, ip)
        self.uplink(host, "eth0", ip, link or Link())
        return host

    def place(self, name: str, kind: str, link: Link | None = None, **options: Any) -> Host:
        """A host on the internet in the way of `kind`: one of KINDS, or DOUBLE. options: of `site`."""
        if kind == "none":
            return self.public(name, link)
        if kind == DOUBLE:
            kind, options["carrier"] = "port_restricted_cone", "port_restricted_cone"
        return self.site(name, nat=kind, link=link, **options).host(f"{name}-h")

    def site(self, name: str, *, nat: str, link: Link | None = None, hairpin: bool = False, input_open: bool = False,
             udp_blocked: bool = False, timeout_s: int = 120, carrier: str | None = None) -> Site:  # fmt: skip
        site = Site(self, name, nat=nat, link=link or Link(), hairpin=hairpin, input_open=input_open, udp_blocked=udp_blocked,
                    timeout_s=timeout_s, carrier=carrier)  # fmt: skip
        self.sites.append(site)
        return site


def emulator() -> Path:
    """The link emulator, compiled once per source version."""
    source = HERE / "link.c"
    target = Path(tempfile.gettempdir()) / f"pilot-link-{os.getuid()}-{source.stat().st_mtime_ns}"
    if not target.exists():
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        partial = target.with_suffix(f".{os.getpid()}")
        sh(shutil.which(compiler) or "cc", "-O2", "-Wall", "-Wextra", "-o", str(partial), str(source))
        partial.rename(target)
    return target
