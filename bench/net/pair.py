"""One stream between two daemons in two network namespaces over veth (MTU 1500), clients on their Unix sockets.

    python bench/net/pair.py [--seconds 3] [--runs 5] [--software-segmentation] [--json FILE]

Prints goodput, CPU seconds per GB and the share of it that Python took, as medians of the runs. Needs root (namespaces) and the
installed programs beside the running Python. CPU time is read per thread from /proc: the data thread of a daemon is named
`pilot-data`, every other thread of it runs Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PORT = 1000
GB = 1e9
TICK = os.sysconf("SC_CLK_TCK")


def sh(*argv: str, **kwargs: Any) -> str:
    return str(subprocess.run(argv, check=True, capture_output=True, text=True, **kwargs).stdout)


def wait_for(condition: Any, what: str, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise SystemExit(f"not within {seconds:g} s: {what}")


class Side:
    """A namespace with a daemon and the clients of its user."""

    def __init__(self, root: Path, letter: str, ip: str, peer_name: str) -> None:
        self.name = f"bench-{letter}"
        self.peer_name = peer_name
        self.netns = f"pilot-bench-{os.getpid()}-{letter}"
        self.ip = ip
        self.home = root / letter
        self.home.mkdir()
        self.socket = self.home / "pilot.sock"
        self.processes: list[subprocess.Popen[Any]] = []
        self.daemon: subprocess.Popen[Any] | None = None

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_") and k != "XDG_RUNTIME_DIR"}
        return env | {"PILOT_HOME": str(self.home), "PILOT_SOCKET": str(self.socket), "PATH": f"{BIN}:{os.environ['PATH']}"}

    def spawn(self, *argv: str, log: str) -> subprocess.Popen[Any]:
        with (self.home / log).open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.netns, *argv], env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self.processes.append(process)
        return process

    def client(self, *argv: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, sys.executable, __file__, *argv], env=self.env, text=True, stdout=subprocess.PIPE
        )
        self.processes.append(process)
        return process

    def ctl(self, *argv: str) -> Any:
        out = sh("ip", "netns", "exec", self.netns, str(BIN / "pilotctl"), "--json", *argv, env=self.env)
        return json.loads(out)["data"]

    def start_daemon(self, registry: str, beacon: str) -> None:
        self.daemon = self.spawn(
            str(BIN / "pilot-daemon"), "-registry", registry, "-beacon", beacon, "-listen", f"{self.ip}:4000", "-socket",
            str(self.socket), "-identity", str(self.home / "identity.json"), "-hostname", self.name, log="daemon.log",
        )  # fmt: skip
        wait_for(self.socket.exists, f"socket of {self.name}: see {self.home}/daemon.log")

    def cpu(self) -> tuple[float, float]:
        """(native, Python) CPU seconds of the daemon so far."""
        assert self.daemon is not None
        native = python = 0.0
        for task in Path(f"/proc/{self.daemon.pid}/task").iterdir():
            stat = (task / "stat").read_text()
            name, fields = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
            seconds = (int(fields[11]) + int(fields[12])) / TICK
            if name == "pilot-data":
                native += seconds
            else:
                python += seconds
        return native, python


@contextlib.contextmanager
def pair(root: Path, software_segmentation: bool) -> Iterator[tuple[Side, Side]]:
    """Two sides that trust each other; side a also runs the rendezvous."""
    a, b = Side(root, "a", "198.18.0.1", "bench-b"), Side(root, "b", "198.18.0.2", "bench-a")
    try:
        for side in (a, b):
            sh("ip", "netns", "add", side.netns)
            sh("ip", "-n", side.netns, "link", "set", "lo", "up")
        sh("ip", "link", "add", "v0", "netns", a.netns, "type", "veth", "peer", "name", "v0", "netns", b.netns)
        for side in (a, b):
            sh("ip", "-n", side.netns, "addr", "add", f"{side.ip}/30", "dev", "v0")
            sh("ip", "-n", side.netns, "link", "set", "v0", "mtu", "1500", "up")
            if software_segmentation:
                sh("ip", "netns", "exec", side.netns, "ethtool", "-K", "v0", "tx-udp-segmentation", "off", "gro", "on")
        registry, beacon = f"{a.ip}:9000", f"{a.ip}:9001"
        a.spawn(
            str(BIN / "pilot-rendezvous"), "-registry-addr", registry, "-beacon-addr", beacon, "-network", "1", "-store",
            str(root / "registry.db"), log="rendezvous.log",
        )  # fmt: skip
        wait_for(lambda: "beacon listening" in (a.home / "rendezvous.log").read_text(), "rendezvous")
        for side in (a, b):
            side.start_daemon(registry, beacon)
        a.ctl("handshake", b.name, "benchmark")
        wait_for(lambda: b.ctl("pending")["pending"], "handshake")
        b.ctl("approve", a.name)
        wait_for(lambda: a.ctl("trust")["trusted"], "trust")
        yield a, b
    finally:
        for side in (a, b):
            for process in reversed(side.processes):
                process.terminate()
            for process in side.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                if process.poll() is None:
                    process.kill()
                    process.wait()
            subprocess.run(["ip", "netns", "del", side.netns], check=False, capture_output=True)


@dataclass(slots=True)
class Run:
    mbit_s: float
    cpu_s_per_gb: float  # both daemons
    python_share: float


def one_run(a: Side, b: Side, seconds: float) -> Run:
    sink = b.client("--role", "sink", "--seconds", str(seconds))
    assert sink.stdout is not None
    assert sink.stdout.readline() == "ready\n"
    before = [s.cpu() for s in (a, b)]
    source = a.client("--role", "source", "--seconds", str(seconds), "--peer", b.name)
    result = json.loads(sink.stdout.readline())
    after = [s.cpu() for s in (a, b)]
    source.wait(30)
    sink.wait(30)
    native = sum(y[0] - x[0] for x, y in zip(before, after, strict=True))
    python = sum(y[1] - x[1] for x, y in zip(before, after, strict=True))
    return Run(
        result["bytes"] * 8 / result["seconds"] / 1e6, (native + python) / (result["bytes"] / GB), python / (native + python)
    )


def source(peer: str, seconds: float) -> None:
    from pilot.sdk import LocalClient

    block = bytes(1 << 20)
    with LocalClient() as client, client.dial(f"{peer}:{PORT}") as stream:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stream.write(block)


def sink(seconds: float) -> None:
    from pilot.sdk import LocalClient

    buffer = bytearray(1 << 20)
    with LocalClient() as client, client.listen(PORT) as listener:
        print("ready", flush=True)
        with listener.accept(timeout=30) as stream:
            total, start = stream.recv_into(buffer, 30), time.monotonic()
            last = start
            while n := stream.recv_into(buffer, seconds + 30):
                total += n
                last = time.monotonic()
    print(json.dumps({"bytes": total, "seconds": last - start}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--software-segmentation", action="store_true", help="the sender's kernel cuts the trains")
    parser.add_argument("--json", type=Path, help="raw results go here")
    parser.add_argument("--role", choices=("source", "sink"), help=argparse.SUPPRESS)
    parser.add_argument("--peer", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == "source":
        source(args.peer, args.seconds)
        return 0
    if args.role == "sink":
        sink(args.seconds)
        return 0
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as root, pair(Path(root), args.software_segmentation) as (a, b):
        one_run(a, b, min(args.seconds, 1.0))  # warm-up: paths settle, buffers grow
        runs = [one_run(a, b, args.seconds) for _ in range(args.runs)]
    rates = sorted(r.mbit_s for r in runs)
    kind = "software segmentation" if args.software_segmentation else "segmentation offload"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"veth MTU 1500, {kind}, {len(runs)} runs of {args.seconds:g} s")
    print(f"goodput      {statistics.median(rates):8.0f} Mbit/s  (min {rates[0]:.0f}, max {rates[-1]:.0f})")
    print(f"CPU          {statistics.median(r.cpu_s_per_gb for r in runs):8.2f} s/GB, both daemons")
    print(f"Python share {100 * statistics.median(r.python_share for r in runs):8.2f} %")
    if args.json:
        args.json.write_text(json.dumps([{f: getattr(r, f) for f in Run.__slots__} for r in runs], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
