"""A rendezvous and daemons as the real programs, in real processes, each with a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def free_port(kind: socket.SocketKind, ip: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind((ip, 0))
        return int(s.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """The first true value of `condition`, or an assertion that says what did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


class Agent:
    """One daemon and the pilotctl of its user."""

    def __init__(self, cluster: Cluster, name: str, netns: str | None, listen: str, extra: Sequence[str]) -> None:
        self.cluster = cluster
        self.name = name
        self.home = cluster.root / name
        self.home.mkdir()
        self.netns = netns
        self.socket = self.home / "pilot.sock"
        self.listen = listen
        self.extra = list(extra)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_") and k != "XDG_RUNTIME_DIR"}
        env["PILOT_HOME"] = str(self.home)
        env["PILOT_SOCKET"] = str(self.socket)
        env["PATH"] = f"{BIN}:{env['PATH']}"
        return env

    def wrap(self, argv: Sequence[str]) -> list[str]:
        return (["ip", "netns", "exec", self.netns] if self.netns else []) + list(argv)

    def start(self) -> None:
        (self.home / ".pilot").mkdir(mode=0o700, exist_ok=True)
        argv = [
            str(BIN / "pilot-daemon"), "-registry", self.cluster.registry, "-beacon", self.cluster.beacon,
            "-listen", self.listen, "-socket", str(self.socket), "-identity", str(self.home / ".pilot" / "identity.json"),
            "-hostname", self.name, *self.extra,
        ]  # fmt: skip
        with (self.home / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(self.wrap(argv), env=self.env, stdout=log, stderr=log)
        wait_for(lambda: self.alive() and self.socket.exists(), f"socket of {self.name}; log: {self.log()[-2000:]}")
        wait_for(lambda: self.ctl("info", check=False).returncode == 0, f"{self.name} answers")

    def alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} died with {self.process.returncode}:\n{self.log()[-4000:]}"
        return True

    def log(self) -> str:
        path = self.home / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return -1
        self.process.terminate()
        return self.process.wait(15)

    def ctl(
        self, *args: str, check: bool = True, timeout: float = 60, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs pilotctl; its standard input ends after `stdin`."""
        argv = self.wrap([str(BIN / "pilotctl"), *args])
        done = subprocess.run(argv, env=self.env, capture_output=True, timeout=timeout, input=stdin)
        if check and done.returncode != 0:
            said = f"{done.stdout!r}\n{done.stderr!r}\n{self.log()[-3000:]}"
            raise AssertionError(f"{self.name}: pilotctl {' '.join(args)} -> {done.returncode}\n{said}")
        return done

    def json(self, *args: str, timeout: float = 60) -> Any:
        """`data` of a successful command."""
        return json.loads(self.ctl("--json", *args, timeout=timeout).stdout)["data"]

    def rss_kb(self) -> int:
        """Highest resident set of the daemon process so far, KiB."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        raise AssertionError("no VmHWM")


class Cluster:
    def __init__(
        self, root: Path, ip: str = "127.0.0.1", network: int = 1, netns: str | None = None, flags: Sequence[str] = ()
    ) -> None:
        self.root = root
        self.netns = netns
        self.network = network
        self.flags = list(flags)  # further ones of the rendezvous
        self.registry = f"{ip}:{free_port(socket.SOCK_STREAM) if netns is None else 9000}"
        self.beacon = f"{ip}:{free_port(socket.SOCK_DGRAM) if netns is None else 9001}"
        self.agents: list[Agent] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start_rendezvous(self) -> None:
        argv = [
            str(BIN / "pilot-rendezvous"), "-registry-addr", self.registry, "-beacon-addr", self.beacon,
            "-store", str(self.root / "registry.db"), "-network", str(self.network), *self.flags,
        ]  # fmt: skip
        if self.netns:
            argv = ["ip", "netns", "exec", self.netns, *argv]
        path = self.root / "rendezvous.log"
        with path.open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_for(lambda: "beacon listening" in path.read_text(), f"rendezvous ready: {path.read_text()}")

    def agent(self, name: str, *extra: str, netns: str | None = None, listen: str = "127.0.0.1:0") -> Agent:
        agent = Agent(self, name, netns, listen, extra)
        self.agents.append(agent)
        agent.start()
        return agent

    def trust(self, a: Agent, b: Agent) -> None:
        """The user's way: handshake, approve, both sides see it."""
        a.ctl("handshake", b.name, "test")
        wait_for(lambda: b.json("pending")["pending"], f"handshake of {a.name} pending at {b.name}")
        b.ctl("approve", a.name)
        for x in (a, b):
            wait_for(lambda x=x: x.json("trust")["trusted"], f"trust at {x.name}")  # type: ignore[misc]

    def close(self) -> None:
        for agent in self.agents:
            with contextlib.suppress(Exception):
                agent.stop()
            if agent.process is not None and agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def cluster(root: Path, **kwargs: Any) -> Iterator[Cluster]:
    c = Cluster(root, **kwargs)
    try:
        c.start_rendezvous()
        yield c
    finally:
        c.close()
