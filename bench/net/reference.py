"""Builds and runs reference.c: the machine's ceiling, measured beside everything else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from net.bed import Bed, BenchError, Namespace, Process

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = ("aead.c", "aead_vaes.c", "tx.c", "udp.c")
PAYLOAD = 1440  # + 32 of frame = 1472, a full datagram at MTU 1500
PORT, RELAY_PORT = 5000, 5010
GB = 1e9


def compile_c(source: Path, sources: tuple[str, ...]) -> Path:
    """A program from one C file and some of csrc; compiled anew when any of them changed. Raises BenchError."""
    parts = [source, *(CSRC / name for name in sources)]
    stamp = max(p.stat().st_mtime_ns for p in [*parts, *CSRC.glob("*.h")])
    target = Path(tempfile.gettempdir()) / f"pilot-bench-{os.getuid()}-{source.stem}-{stamp}"
    if not target.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
        partial = target.with_suffix(f".{os.getpid()}")
        argv = [compiler, "-O3", "-D_GNU_SOURCE", f"-I{CSRC}", *map(str, parts), "-lcrypto", "-lm", "-o", str(partial)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{source.name}: {done.stderr[-400:]}")
        partial.rename(target)
    return target


class Reference:
    """The loops between two hosts, or through a third."""

    name, label, failures = "reference", "reference loop", 0
    can = frozenset({"bulk", "rtt"})

    def __init__(self, bed: Bed, a: Namespace, b: Namespace, relay: Namespace | None = None) -> None:
        self.bed, self.a, self.b, self.relay = bed, a, b, relay
        self.program = ""
        self.forwarder: Process | None = None
        if relay:
            self.label, self.can = "reference relay loop", frozenset({"bulk"})
            self._target, self._own, self._sink = (relay.ip["a"], str(RELAY_PORT)), a.ip["r"], b.ip["r"]
        else:
            self._target, self._own, self._sink = (b.ip[a.letter], str(PORT)), a.ip[b.letter], b.ip[a.letter]

    def start(self) -> None:
        self.program = str(compile_c(HERE / "reference.c", SOURCES))
        if self.relay:
            argv = (self.program, "relay", "0.0.0.0", str(RELAY_PORT), self._sink, str(PORT))
            self.forwarder = self.relay.spawn(self.bed.root / "reference", *argv, log="log")

    def stop(self) -> None:
        if self.forwarder:
            self.bed.release(self.forwarder)

    def restart(self) -> None:
        self.failures += 1
        self.stop()
        self.start()

    def bulk(self, seconds: float) -> dict[str, float]:
        """As Contender.bulk."""
        sink = subprocess.Popen(self.b.wrap(self.program, "recv", self._sink, str(PORT)), stdout=subprocess.PIPE, text=True)
        try:
            assert sink.stdout is not None
            if sink.stdout.readline() != "ready\n":
                raise BenchError("the reference receiver did not start")
            send = self.a.wrap(self.program, "send", *self._target, str(seconds), str(PAYLOAD), self._own)
            sent = json.loads(subprocess.run(send, capture_output=True, text=True, check=True, timeout=seconds + 20).stdout)
            got = json.loads(sink.stdout.readline() or "{}")
        finally:
            sink.kill()
            sink.wait()
        if not got or not got["bytes"]:
            raise BenchError("the reference receiver got nothing")
        return {"mbit_s": got["bytes"] * 8 / got["seconds"] / 1e6, "cpu_s_gb": (got["cpu"] + sent["cpu"]) / (got["bytes"] / GB)}

    def rtt(self, count: int) -> list[float]:
        """Microseconds."""
        pong = subprocess.Popen(self.b.wrap(self.program, "pong", self._sink, str(PORT + 1)), stdout=subprocess.PIPE, text=True)
        try:
            assert pong.stdout is not None
            pong.stdout.readline()
            ping = self.a.wrap(self.program, "ping", self._sink, str(PORT + 1), str(count))
            done = subprocess.run(ping, capture_output=True, text=True, check=True, timeout=60)
            samples: list[float] = json.loads(done.stdout)["us"]
        finally:
            pong.kill()
            pong.wait()
        return samples
