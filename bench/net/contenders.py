"""What is measured: each contender starts its programs on two hosts, and is then asked through its two drivers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from net.bed import Bed, BenchError, Driver, Namespace, Process, cpu, resident_mb, wait_for

GB = 1e9
EVERYTHING = frozenset({"bulk", "rtt", "dial", "cold", "duplex", "streams"})
Values = Mapping[str, float | list[float]]


class Contender:
    """Two ends, ready to be asked. server, client: drivers. daemons: other programs whose CPU counts.

    name: of its transport in the drivers. can: what it may be asked for. cap: bytes a stream, where time would be too much.
    patience_s: how much longer than asked for a measurement may take before it counts as not finished.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    can: ClassVar[frozenset[str]] = EVERYTHING
    cap: ClassVar[int] = 0
    patience_s: ClassVar[float] = 60.0
    has_python: ClassVar[bool] = False  # the daemons' threads other than the data thread run Python

    def __init__(self, bed: Bed, a: Namespace, b: Namespace) -> None:
        self.bed, self.a, self.b = bed, a, b
        self.daemons: list[Process] = []
        self.server: Driver
        self.client: Driver
        self.failures = 0

    @property
    def alias(self) -> str:
        """What its nodes are called. After a failure they have new identities, and need new names as well: the registry keeps
        a name for the node that had it while that one may come back, and would lead who asks for it to a node which is gone."""
        return f"{self.name}-{self.failures}" if self.failures else self.name

    @property
    def home(self) -> Path:
        return self.bed.root / self.alias

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        own = [getattr(self, "client", None), getattr(self, "server", None), *self.daemons]
        self.bed.release(*[p for p in own if p is not None])

    def restart(self) -> None:
        """After a failure: both ends anew, in a state that is known."""
        self.failures += 1
        self.stop()
        self.daemons = []
        self.start()

    # ---- measurements ----

    def bulk(self, seconds: float = 1.0, streams: int = 1, total: int = 0) -> dict[str, float]:
        """One way. total: bytes of each stream, instead of a time.

        mbit_s, cpu_s_gb (both ends and daemons), python_share (of our daemons), rss_mb (sum), seconds (first byte to last), took.
        """
        before = cpu([p.pid for p in self.daemons])
        total = total or self.cap // streams
        self.server.tell(op="sink", streams=streams)
        sent = self.client.ask(seconds + self.patience_s, op="source", streams=streams, seconds=seconds, total=total)
        got = self.server.hear(self.patience_s)
        if got["bytes"] != sent["bytes"]:
            raise BenchError(f"{sent['bytes']} bytes were sent, {got['bytes']} arrived")
        return self._rates(got["bytes"], got["seconds"], before, sent, got)

    def late_rate(self, begin: float, end: float) -> float:
        """Mbit/s that arrive between `begin` and `end` seconds after the first byte."""
        self.server.tell(op="sink", window=[begin, end])
        self.client.ask(end + 60, op="source", seconds=end + 0.5)
        return float(self.server.hear(60)["window_bytes"]) * 8 / (end - begin) / 1e6

    def duplex(self, seconds: float) -> dict[str, float]:
        """Both ways at once; mbit_s is the sum."""
        before = cpu([p.pid for p in self.daemons])
        self.server.tell(op="duplex", seconds=seconds, server=True)
        mine = self.client.ask(seconds + 60, op="duplex", seconds=seconds, server=False)
        its = self.server.hear(60)
        longest = max(mine["seconds"], its["seconds"])
        return self._rates(mine["bytes"] + its["bytes"], longest, before, mine, its)

    def _rates(self, count: int, seconds: float, before: tuple[float, float], *ends: dict[str, Any]) -> dict[str, float]:
        after = cpu([p.pid for p in self.daemons])
        native, python = after[0] - before[0], after[1] - before[1]
        used = native + python + sum(e["cpu_native"] + e["cpu_other"] for e in ends)
        out = {"mbit_s": count * 8 / seconds / 1e6, "cpu_s_gb": used / (count / GB), "seconds": seconds}
        out["took"] = max(e["took"] for e in ends)
        out["rss_mb"] = sum(e["rss_mb"] for e in ends) + sum(resident_mb(p.pid) for p in self.daemons)
        if self.has_python and native + python > 0:
            out["python_share"] = max(python, 0.0) / (native + python)
        return out

    def rtt(self, count: int, size: int = 64, pause: float = 0.0) -> list[float]:
        """Microseconds."""
        self.server.tell(op="echo")
        within = self.patience_s + count * (pause + 0.005)
        samples: list[float] = self.client.ask(within, op="rtt", count=count, size=size, pause=pause)["us"]
        self.server.hear()
        return samples

    def dial(self, count: int) -> dict[str, list[float]]:
        """Where the tunnel or connection stands, milliseconds from the wish for a stream: dial_ms until the dial is answered,
        warm_ms until the first echoed byte."""
        self.server.tell(op="echo", streams=count)
        samples = self.client.ask(self.patience_s, op="dial", count=count)
        self.server.hear()
        return {"dial_ms": samples["open_ms"], "warm_ms": samples["ms"]}

    def cold(self) -> dict[str, float]:
        """The same where nothing stands: open_ms, cold_ms."""
        self.server.tell(op="echo")
        samples = self.client.ask(60, op="dial", count=1, cold=True)
        self.server.hear()
        return {"open_ms": samples["open_ms"][0], "cold_ms": samples["ms"][0]}


class Addressed(Contender):
    """Ends that find each other by IP address."""

    module: ClassVar[str] = "net.driver"

    def python(self) -> str:
        """The interpreter of the drivers. Raises BenchError when it cannot be had."""
        return sys.executable

    def start(self) -> None:
        name, peer = self.b.ip[self.a.letter], self.a.ip[self.b.letter]
        how = {"module": self.module, "python": self.python()}
        self.server = self.b.driver(self.home / "b", self.name, "server", "--name", name, **how)
        self.client = self.a.driver(self.home / "a", self.name, "client", "--name", peer, "--peer", name, **how)


class Tls(Addressed):
    """A connection is a stream, so that set-up is always cold."""

    name, label, can = "tls", "TLS 1.3 over TCP (Python ssl)", EVERYTHING - {"dial"}


class TcpPlain(Addressed):
    name, label, can = "tcp", "TCP, plain text", EVERYTHING - {"dial"}


class Iperf:
    """iperf3: the kernel's own TCP, measured by a program in C."""

    name, label, can, failures = "iperf", "iperf3, plain TCP", frozenset({"bulk"}), 0

    def __init__(self, bed: Bed, a: Namespace, b: Namespace) -> None:
        self.bed, self.a, self.b = bed, a, b
        self.server: Process | None = None

    def start(self) -> None:
        """Raises BenchError when the program is not there."""
        argv = ("iperf3", "-s", "-B", self.b.ip[self.a.letter], "--forceflush")
        server = self.server = self.b.spawn(self.bed.root / "iperf", *argv, log="log")
        wait_for(lambda: server.popen.poll() is not None or "listening" in server.log.read_text(), "iperf3", 10)
        if server.popen.poll() is not None:
            raise BenchError(f"iperf3 (apt-get install iperf3): {server.tail()}")

    def stop(self) -> None:
        if self.server:
            self.bed.release(self.server)

    def restart(self) -> None:
        self.failures += 1
        self.stop()
        self.start()

    def bulk(self, seconds: float) -> dict[str, float]:
        argv = self.a.wrap("iperf3", "-c", self.b.ip[self.a.letter], "-J", "-t", str(max(1, round(seconds))))
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=seconds + 30)
        end = json.loads(done.stdout)["end"]
        share, got = end["cpu_utilization_percent"], end["sum_received"]
        used = (share["host_total"] + share["remote_total"]) / 100 * got["seconds"]
        return {"mbit_s": got["bits_per_second"] / 1e6, "cpu_s_gb": used / (got["bytes"] / GB)}


def retry(work: Any, seconds: float, what: str) -> None:
    """Until `work` returns true. Raises BenchError."""
    end = time.monotonic() + seconds
    while not work():
        if time.monotonic() > end:
            raise BenchError(what)
        time.sleep(0.02)
