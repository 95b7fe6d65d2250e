"""Our own contenders and the published daemon, which works at our rendezvous."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from net.bed import BIN, Bed, BenchError, Driver, Namespace, Process, wait_for
from net.contenders import EVERYTHING, Contender, retry

REGISTRY, BEACON = 9000, 9001
DATAGRAM_BYTES = 1000
LIMITS = ("-syn-rate-limit", "100000", "-max-conns-per-port", "4096")  # of either daemon: a thousand streams at once are wanted


class Rendezvous:
    """Our registry and beacon on a host, reached by others under its addresses."""

    def __init__(self, bed: Bed, host: Namespace, *flags: str, beacons: dict[str, str] | None = None) -> None:
        """beacons: by the letter of a host, the address of another beacon that it uses."""
        self.host = host
        self.beacons = beacons or {}
        home = bed.root / f"rendezvous-{host.letter}"
        self.process = host.spawn(
            home, str(BIN / "pilot-rendezvous"), "-registry-addr", f"0.0.0.0:{REGISTRY}", "-beacon-addr", f"0.0.0.0:{BEACON}",
            "-network", "1", "-store", str(home / "registry.db"), "-registration-rate", "100000", *flags, log="log",
        )  # fmt: skip
        wait_for(lambda: "beacon listening" in self.process.log.read_text(), "the rendezvous")

    def addresses(self, host: Namespace) -> tuple[str, str]:
        """(registry, beacon) for a host."""
        ip = own_ip(host) if host is self.host else self.host.ip[host.letter]
        return f"{ip}:{REGISTRY}", self.beacons.get(host.letter, f"{ip}:{BEACON}")


def own_ip(host: Namespace) -> str:
    return next(iter(host.ip.values()))


def listen_ip(host: Namespace) -> str:
    """Where a node listens: behind a NAT everywhere, else on the host's address."""
    return "0.0.0.0" if host.behind_nat else own_ip(host)


class InProcess(Contender):
    """pilot.BlockingNode inside the two drivers. Identities are kept, so that the client end can start again and dial cold."""

    name, label = "inproc", "pilot, in-process nodes"
    module: ClassVar[str] = "net.driver"

    def __init__(
        self, bed: Bed, a: Namespace, b: Namespace, rendezvous: Rendezvous, relayed: bool = False, expected: str = ""
    ) -> None:
        """relayed: the nodes hide. expected: the path that they must find, direct or relay."""
        super().__init__(bed, a, b)
        self.rendezvous = rendezvous
        self.expected = expected or ("relay" if relayed else "direct")
        self.settings = {"relay_only": "true"} if relayed else {}

    def start(self) -> None:
        self.server = self._end(self.b, "server")
        self.client = self._end(self.a, "client")
        self.expect_path()

    def cold(self) -> dict[str, float]:
        """As Contender.cold: by a client node that has just started, to a peer that is trusted but has no tunnel with it."""
        self.bed.release(self.client)
        self.client = self._end(self.a, "client")
        return super().cold()

    def expect_path(self) -> None:
        """Waits for it; a path is looked for while it is wanted."""

        def there() -> bool:
            self.dial(1)
            return bool(self.client.ask(op="path")["path"] == self.expected)

        retry(there, 20, f"no path that is {self.expected}")

    def _end(self, host: Namespace, role: str) -> Driver:
        registry, beacon = self.rendezvous.addresses(host)
        home = self.home / host.letter / role
        settings = {"identity": f"{home}/identity.json", **self.settings}
        options = [word for name, value in settings.items() for word in ("--setting", f"{name}={value}")]
        return host.driver(
            home, self.name, role, "--name", f"{self.alias}-{role}", "--peer", f"{self.alias}-server", "--registry", registry,
            "--beacon", beacon, "--listen", f"{listen_ip(host)}:0", *options, module=self.module,
        )  # fmt: skip


class Asyncio(InProcess):
    """pilot.Node on an application's event loop."""

    name, label, can = "asyncio", "pilot, in-process nodes on asyncio", frozenset({"bulk", "rtt", "streams"})
    module = "net.asyncdriver"


class Daemons(Contender):
    """Our daemons, clients on their Unix sockets."""

    name, label, can = "daemon", "pilot, daemons and Unix sockets", (EVERYTHING | {"datagrams", "command"}) - {"cold"}
    tunnel_port: ClassVar[int] = 4000
    has_python = True

    def __init__(self, bed: Bed, a: Namespace, b: Namespace, rendezvous: Rendezvous, relayed: bool = False) -> None:
        super().__init__(bed, a, b)
        self.rendezvous, self.relayed = rendezvous, relayed
        self.program = BIN / "pilot-daemon"
        self.flags: tuple[str, ...] = ("-relay-only",) if relayed else ()
        self.environment: dict[str, str] = {}

    def start(self) -> None:
        for host in (self.a, self.b):
            self.daemons.append(self._daemon(host))
        for host, peer in ((self.a, self.b), (self.b, self.a)):
            self._ctl(host, "handshake", self.host_name(peer), "benchmark")
            wait_for(lambda host=host: self._ctl(host, "trust").get("trusted"), "trust")
        self.server = self.b.driver(self.home / "b", "socket", "server")
        self.client = self.a.driver(self.home / "a", "socket", "client", "--peer", self.host_name(self.b))
        self.dial(1)

    def host_name(self, host: Namespace) -> str:
        """Of the daemon there."""
        return f"{self.alias}-{host.letter}"

    def command(self, megabytes: int) -> dict[str, float]:
        """What the program's own `bench` says: mbit_s of so many MiB to the peer's echo service and back."""
        words = ("bench", self.host_name(self.b), str(megabytes), "--timeout", f"{self.patience_s:g}s")
        got = self._ctl(self.a, *words, program=self.program.with_name("pilotctl"))
        if not got["sent_bytes"] == got["recv_bytes"] == megabytes << 20:
            raise BenchError(f"{got['sent_bytes']} bytes were sent, {got['recv_bytes']} came back")
        return {"mbit_s": got["total_mbps"] * (8 << 20) / 1e6}

    def datagrams(self, seconds: float) -> dict[str, float]:
        """Datagrams of DATAGRAM_BYTES as fast as the sender's client hands them over: mbit_s that arrived, lost_percent."""
        self.server.tell(op="count_datagrams", patience=1.0)
        sent = self.client.ask(seconds + 30, op="send_datagrams", seconds=seconds, size=DATAGRAM_BYTES)["count"]
        got = self.server.hear(seconds + 30)
        if not got["count"]:
            raise BenchError("no datagram arrived")
        rate = got["count"] / max(got["seconds"], 1e-9)
        return {"mbit_s": rate * DATAGRAM_BYTES * 8 / 1e6, "mpps": rate / 1e6, "lost_percent": 100 * (1 - got["count"] / sent)}

    def _daemon(self, host: Namespace) -> Process:
        home = self.home / host.letter
        home.mkdir(parents=True)
        registry, beacon = self.rendezvous.addresses(host)
        listen = f"{listen_ip(host)}:{self.tunnel_port}"
        where = [] if self.relayed or host.behind_nat else ["-endpoint", listen]
        process = host.spawn(
            home, str(self.program), "-registry", registry, "-beacon", beacon, "-listen", listen, *where, "-socket",
            str(home / "pilot.sock"), "-identity", str(home / "identity.json"), "-hostname", self.host_name(host),
            "-trust-auto-approve", *LIMITS, *self.flags, log="daemon.log", extra=self.environment,
        )  # fmt: skip
        wait_for((home / "pilot.sock").exists, f"the daemon's socket: {process.tail()}")
        return process

    def _ctl(self, host: Namespace, *argv: str, program: Path = BIN / "pilotctl") -> dict[str, Any]:
        """The answer to a command, of our own pilotctl unless `program` is another: ours talks to either daemon."""
        registry, beacon = self.rendezvous.addresses(host)
        env = host.env(self.home / host.letter) | self.environment | {"PILOT_REGISTRY": registry, "PILOT_BEACON": beacon}
        command = host.wrap(str(program), "--json", *argv)
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=self.patience_s + 10)
        except subprocess.TimeoutExpired as late:
            raise BenchError(f"pilotctl {argv[0]}: not finished within {late.timeout:g} s") from None
        try:
            data: dict[str, Any] = json.loads(done.stdout)["data"]
        except (ValueError, KeyError):
            raise BenchError(f"pilotctl {' '.join(argv)}: {done.stdout[-200:]}{done.stderr[-200:]}") from None
        return data


class Published(Daemons):
    """The published daemon, clients on its Unix sockets. Hidden nodes cannot be dialled in that release; where nothing else can
    be reached it relays by itself."""

    name, label = "published", "published daemon 1.18.0 and Unix sockets"
    can = (EVERYTHING | {"command"}) - {"cold", "duplex"}
    tunnel_port = 4001
    cap = 8 << 20  # it may not survive more
    patience_s = 20.0
    has_python = False

    def __init__(self, bed: Bed, a: Namespace, b: Namespace, rendezvous: Rendezvous, relayed: bool = False) -> None:
        super().__init__(bed, a, b, rendezvous, relayed)
        sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "interop"))
        import published

        try:
            self.program = published.bin_dir() / "pilot-daemon"
        except published.Unavailable as error:
            raise BenchError(str(error)) from None
        self.flags, self.environment = published.QUIET, published.ENVIRONMENT
