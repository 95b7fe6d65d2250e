"""A rendezvous and daemons, the real programs, on hosts of a laboratory, each with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lab import Host, Lab

BIN = Path(sys.executable).parent
REGISTRY_PORT, BEACON_PORT = 9000, 9001


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 15.0, step: float = 0.03) -> Any:
    """The first true value of `condition`; an assertion that says what did not come after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(step)
    raise AssertionError(f"not within {seconds} s: {what}")


def environment() -> dict[str, str]:
    """Ours without settings of the product."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PILOT_") and k != "XDG_RUNTIME_DIR"}


class Program:
    """One process of the product on one host, with its log."""

    def __init__(self, host: Host, log: Path) -> None:
        self.host = host
        self.log_path = log
        self.process: subprocess.Popen[Any] | None = None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def spawn(self, *argv: str, env: dict[str, str] | None = None) -> None:
        with self.log_path.open("ab") as log:
            self.process = self.host.spawn(*argv, stdout=log, stderr=log, env=env)

    def alive(self) -> bool:
        assert self.process is not None and self.process.poll() is None, f"{self.host.name} died:\n{self.log[-4000:]}"
        return True

    def end(self) -> None:
        """Asks it to stop; `ended` waits."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def ended(self, seconds: float = 15.0) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.host.name} did not stop:\n{self.log[-4000:]}") from None
        finally:
            self.host.processes = [p for p in self.host.processes if p is not self.process]
            self.process = None


class Agent(Program):
    """A daemon and the commands of its user."""

    def __init__(self, fleet: Fleet, host: Host, name: str, beacon: str, extra: Iterable[str]) -> None:
        self.home = fleet.root / name
        (self.home / ".pilot").mkdir(parents=True, mode=0o700)
        super().__init__(host, self.home / "daemon.log")
        self.name = name
        self.socket = str(self.home / "pilot.sock")
        self.extra = list(extra)
        self._registry = fleet.registry
        self._beacon = beacon

    @property
    def env(self) -> dict[str, str]:
        env = environment()
        return {**env, "PILOT_HOME": str(self.home), "PILOT_SOCKET": self.socket, "PATH": f"{BIN}:{env['PATH']}"}

    def begin(self) -> None:
        """Starts the daemon; `ready` waits for it."""
        self.spawn(
            str(BIN / "pilot-daemon"), "-registry", self._registry, "-beacon", self._beacon, "-socket", self.socket,
            "-identity", str(self.home / ".pilot" / "identity.json"), "-hostname", self.name, *self.extra, env=self.env,
        )  # fmt: skip

    def ready(self) -> None:
        wait_for(lambda: self.alive() and os.path.exists(self.socket), f"the socket of {self.name}", 30)

    def ctl(self, *args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs pilotctl as the user of this agent."""
        return self.host.run(str(BIN / "pilotctl"), *args, check=check, timeout=timeout, env=self.env)


class Fleet:
    """Everything of the product that runs in one laboratory. Processes end with the laboratory."""

    def __init__(self, lab: Lab, *, second_address: bool = False) -> None:
        """second_address: the beacon has one more, which it needs to tell a full cone from a restricted one."""
        self.lab = lab
        self.root = lab.tmp / "fleet"
        self.root.mkdir()
        self.agents: dict[str, Agent] = {}
        self.host = lab.public("rendezvous")
        self.registry = f"{self.host.ip}:{REGISTRY_PORT}"
        self.beacon = f"{self.host.ip}:{BEACON_PORT}"
        self.alt = lab.second_address(self.host) if second_address else ""
        self.rendezvous = Program(self.host, self.root / "rendezvous.log")
        self.start_rendezvous()

    def start_rendezvous(self) -> None:
        more = ("-beacon-alt-addr", self.alt) if self.alt else ()
        self.rendezvous.spawn(
            str(BIN / "pilot-rendezvous"), "-registry-addr", self.registry, "-beacon-addr", self.beacon,
            "-store", str(self.root / "registry.db"), "-network", "1", "-registration-rate", "100000", *more,
        )  # fmt: skip
        wait_for(lambda: self.rendezvous.alive() and "beacon listening" in self.rendezvous.log, "the rendezvous", 30)

    def agent(self, host: Host, name: str, *extra: str, beacon: str = "", start: bool = True) -> Agent:
        """An agent on `host`. beacon: another than the rendezvous' own."""
        agent = self.agents[name] = Agent(self, host, name, beacon or self.beacon, extra)
        if start:
            agent.begin()
            agent.ready()
        return agent

    def restart(self) -> None:
        """All daemons anew: no tunnel, no cached answer is left. Identities stay."""
        running = list(self.agents.values())
        for agent in running:
            agent.end()
        for agent in running:
            agent.ended()
        for agent in running:
            agent.begin()
        for agent in running:
            agent.ready()
