"""The test bed: network namespaces joined by veth pairs, programs in them, and drivers that obey over a pipe. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from net.cpu import of_process

BIN = Path(sys.executable).parent
SUITE = Path(__file__).parents[1]
MTU = 1500
LIMIT_S = 30.0


class BenchError(Exception):
    """A scenario could not be run; the text says why. The others go on."""


def sh(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(condition: Callable[[], Any], what: str, seconds: float = LIMIT_S) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise BenchError(f"not within {seconds:g} s: {what}")


class Process:
    """A program in a namespace; its output goes to `log`."""

    def __init__(self, argv: list[str], env: Mapping[str, str], log: Path, piped: bool) -> None:
        self.log = log
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else out,
                stderr=out,
                cwd=log.parent,  # not where `pilot` is a folder of sources
            )
        self.pid = self.popen.pid

    def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(10)
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def tail(self) -> str:
        return self.log.read_text(errors="replace").strip()[-600:]


class Driver(Process):
    """One end of a contender: takes a command, gives a reply, a line of JSON each."""

    def __init__(self, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        super().__init__(argv, env, log, piped=True)
        self._rest = b""

    def tell(self, **command: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps(command).encode() + b"\n")
        self.popen.stdin.flush()

    def hear(self, within: float = LIMIT_S) -> dict[str, Any]:
        """The next reply. Raises BenchError with the end of the log."""
        assert self.popen.stdout is not None
        end = time.monotonic() + within
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.popen.stdout], [], [], left)[0]:
                raise BenchError(": ".join(filter(None, (f"not finished within {within:g} s", self.tail()))))
            data = os.read(self.popen.stdout.fileno(), 1 << 20)
            if not data:
                raise BenchError(f"the driver ended: {self.tail()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(reply["error"])
        return reply

    def ask(self, within: float = LIMIT_S, **command: Any) -> dict[str, Any]:
        self.tell(**command)
        return self.hear(within)


class Namespace:
    """One host. ip: own addresses by the letter of the neighbour that uses them."""

    behind_nat = False

    def __init__(self, bed: Bed, letter: str) -> None:
        self.bed = bed
        self.letter = letter
        self.name = f"pilot-bench-{os.getpid()}-{letter}"
        self.ip: dict[str, str] = {}
        sh("ip", "netns", "add", self.name)
        sh("ip", "-n", self.name, "link", "set", "lo", "up")

    def wrap(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def env(self, home: Path) -> dict[str, str]:
        home.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_") and k != "XDG_RUNTIME_DIR"}
        return env | {
            "HOME": str(home),
            "PILOT_HOME": str(home),
            "PILOT_SOCKET": str(home / "pilot.sock"),
            "PATH": f"{BIN}:{env.get('PATH', '')}",
            "PYTHONPATH": str(SUITE),
        }

    def spawn(self, home: Path, *argv: str, log: str, extra: Mapping[str, str] | None = None) -> Process:
        process = Process(self.wrap(*argv), self.env(home) | dict(extra or {}), home / log, piped=False)
        self.bed.processes.append(process)
        return process

    def driver(self, home: Path, *argv: str, module: str = "net.driver", python: str = sys.executable) -> Driver:
        """A driver that has said `ready`. argv: transport, role, options."""
        driver = Driver(self.wrap(python, "-m", module, *argv), self.env(home), home / f"driver-{argv[1]}.log")
        self.bed.processes.append(driver)
        driver.hear(60)
        return driver


class Bed:
    """Namespaces and everything that runs in them; leaving the context ends it all. root: for homes and logs."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.namespaces: dict[str, Namespace] = {}
        self._links = 0
        self._root = tempfile.TemporaryDirectory(prefix="pilot-bench-")
        self.root = Path(self._root.name)

    def host(self, letter: str) -> Namespace:
        self.namespaces[letter] = Namespace(self, letter)
        return self.namespaces[letter]

    def cable(self, a: Namespace, b: Namespace, *, software_segmentation: bool = False) -> None:
        """A veth pair. software_segmentation: the sender's kernel cuts trains, the receiver's coalesces them."""
        dev, net = f"v{self._links}", f"198.18.{self._links}"
        self._links += 1
        sh("ip", "link", "add", dev, "netns", a.name, "type", "veth", "peer", "name", dev, "netns", b.name)
        for host, other, last in ((a, b, 1), (b, a, 2)):
            host.ip[other.letter] = f"{net}.{last}"
            sh("ip", "-n", host.name, "addr", "add", f"{net}.{last}/30", "dev", dev)
            sh("ip", "-n", host.name, "link", "set", dev, "mtu", str(MTU), "up")
            if software_segmentation:
                sh("ip", "netns", "exec", host.name, "ethtool", "-K", dev, "tx-udp-segmentation", "off", "gro", "on")

    def release(self, *processes: Process) -> None:
        """Ends some of the processes early."""
        for process in processes:
            process.stop()
            if process in self.processes:
                self.processes.remove(process)

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.stop()
        for namespace in self.namespaces.values():
            subprocess.run(["ip", "netns", "del", namespace.name], check=False, capture_output=True)
        self._root.cleanup()


@contextlib.contextmanager
def alone() -> Iterator[tuple[Bed, Namespace]]:
    """One host, which talks to itself over loopback."""
    with Bed() as bed:
        a = bed.host("a")
        a.ip["a"] = "127.0.0.1"
        yield bed, a


@contextlib.contextmanager
def direct(*, software_segmentation: bool = False) -> Iterator[tuple[Bed, Namespace, Namespace]]:
    """Hosts a and b, joined."""
    with Bed() as bed:
        a, b = bed.host("a"), bed.host("b")
        bed.cable(a, b, software_segmentation=software_segmentation)
        yield bed, a, b


@contextlib.contextmanager
def apart(*, software_segmentation: bool = False) -> Iterator[tuple[Bed, Namespace, Namespace, Namespace]]:
    """Hosts a and b, which reach only r."""
    with Bed() as bed:
        a, b, r = bed.host("a"), bed.host("b"), bed.host("r")
        bed.cable(a, r, software_segmentation=software_segmentation)
        bed.cable(b, r, software_segmentation=software_segmentation)
        yield bed, a, b, r


@contextlib.contextmanager
def chain() -> Iterator[tuple[Bed, Namespace, Namespace, Namespace, Namespace]]:
    """Hosts a - r - s - b in a row: a and b reach only their neighbour, but the registry on r from everywhere."""
    with Bed() as bed:
        a, b, r, s = (bed.host(letter) for letter in "abrs")
        for x, y in ((a, r), (r, s), (b, s)):
            bed.cable(x, y)
        r.ip["b"] = r.ip["s"]
        for host, via in ((b, s.ip["b"]), (r, s.ip["r"])):
            sh("ip", "-n", host.name, "route", "add", "198.18.0.0/16", "via", via)
        sh("ip", "netns", "exec", s.name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield bed, a, b, r, s


def cpu(pids: list[int]) -> tuple[float, float]:
    """(native, Python) CPU seconds so far of programs; the data thread is native, every other thread runs Python."""
    native = python = 0.0
    for pid in pids:
        used = of_process(pid)
        native += used[0]
        python += used[1]
    return native, python


def resident_mb(pid: int) -> float:
    """Most memory that a process has had, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
