"""Machines of a laboratory, each with a home, a daemon of one make and command-line tools of one make, and our rendezvous.

Every process runs in a network namespace without a route out and is ended by its own id.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import published
from lab import Host, Lab

OURS, THEIRS = "ours", "theirs"
DIRECT, RELAYED, PUNCHED = "direct", "relay", "punched"
OUR_BIN = Path(sys.executable).parent
REGISTRY_PORT, BEACON_PORT, TUNNEL_PORT = 9000, 9001, 4000
ADMIN_TOKEN = "sesame"
START_S = 30.0
PATIENCE = 3.0  # times what a user would wait: a loaded machine is slow, and time decides no test
# Taken once: other threads change the environment of this process.
ENVIRONMENT = {
    k: v for k, v in os.environ.items()
    if not k.upper().startswith(("PILOT_", "PYTEST_", "XDG_RUNTIME_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))
}  # fmt: skip
NO_RESOLVER = """
table ip noresolver {
  chain out { type filter hook output priority -5; meta l4proto { tcp, udp } th dport 53 reject; }
}
"""


def wait_for(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = 15.0, step: float = 0.05) -> Any:
    """The first true value of `condition`; an assertion that says what did not come after `seconds` of a machine that is idle."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(step)


def release(make: str) -> str:
    """The published release that a make stands for: THEIRS is the present one, an older one goes by its number."""
    return published.VERSION if make == THEIRS else make


def programs(make: str) -> Path:
    """The folder of a make's pilotctl and pilot-daemon."""
    return OUR_BIN if make == OURS else published.bin_dir(release(make))


class CommandFailed(AssertionError):
    """A command of a user ended with an error; carries the finished process."""

    def __init__(self, text: str, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(text)
        self.done = done


class Machine:
    """A host with a home directory. `make` is whose daemon runs there, `tools` whose pilotctl its user types."""

    def __init__(self, bed: Testbed, host: Host, name: str, make: str, tools: str, *flags: str) -> None:
        self.bed = bed
        self.host = host
        self.name = name
        self.make = make
        self.tools = tools
        self.flags = list(flags)
        self.home = bed.root / name
        self.dot = self.home / ".pilot"
        self.dot.mkdir(parents=True, mode=0o700)
        self.socket = str(self.home / "pilot.sock")
        self.log_path = self.home / "daemon.log"
        self.listen_port = TUNNEL_PORT + len(bed.machines)
        self.process: subprocess.Popen[Any] | None = None
        self.node = 0
        self.address = ""
        bed.machines.append(self)
        # Names of the outside world fail at once: the published daemon waits 10 s for a resolver that never answers.
        host.nft(NO_RESOLVER)

    def __repr__(self) -> str:
        return f"{self.name}({self.make})"

    # ---- the daemon ----

    @property
    def env(self) -> dict[str, str]:
        return {
            **ENVIRONMENT, **published.ENVIRONMENT, "HOME": str(self.home), "PILOT_SOCKET": self.socket,
            "PILOT_REGISTRY": self.bed.registry, "PILOT_BEACON": self.bed.beacon, "PILOT_ADMIN_TOKEN": ADMIN_TOKEN,
        }  # fmt: skip

    def daemon_argv(self, make: str) -> list[str]:
        program = programs(make) / "pilot-daemon"
        return [
            str(program), "-registry", self.bed.registry, "-beacon", self.bed.beacon, "-socket", self.socket,
            "-listen", f":{self.listen_port}", "-identity", str(self.dot / "identity.json"), "-hostname", self.name,
            *(() if make == OURS else published.quiet(release(make))), *self.flags,
            *(() if make == published.ERA1 else ("-admin-token", ADMIN_TOKEN)),
            # Older releases fetch handshakes with their heartbeat alone, and some do not start without an address.
            *(("-keepalive", "3s") if make in published.OLDER else ()),
            *(("-email", f"{self.name}@example.org") if make in published.OLDER and make != published.ERA1 else ()),
        ]  # fmt: skip

    def start(self, make: str | None = None) -> Machine:
        """Starts the daemon (of another make from now on, if named) and waits until it answers."""
        self.make = make or self.make
        with self.log_path.open("ab") as log:
            self.process = self.host.spawn(*self.daemon_argv(self.make), stdout=log, stderr=log, env=self.env)
        wait_for(lambda: self.alive() and os.path.exists(self.socket), lambda: f"socket of {self}:\n{self.log[-3000:]}", START_S)
        info = wait_for(self.try_info, lambda: f"{self} answers:\n{self.log[-3000:]}", START_S)
        self.node, self.address = int(info["node_id"]), str(info["address"])
        return self

    def try_info(self) -> dict[str, Any] | None:
        self.alive()
        done = self.ctl("--json", "info", check=False)
        return json.loads(done.stdout)["data"] if done.returncode == 0 else None

    def alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self} died with {self.process.returncode}:\n{self.log[-4000:]}"
        return True

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM; the daemon must go by itself."""
        self._end(signal.SIGTERM, seconds)

    def kill(self) -> None:
        self._end(signal.SIGKILL, 5.0)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.host.processes = [p for p in self.host.processes if p is not self.process]
            self.process = None

    def restart(self, make: str | None = None) -> Machine:
        self.stop()
        return self.start(make)

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    # ---- its user ----

    def argv(self, *args: str, tools: str | None = None) -> list[str]:
        return [str(programs(tools or self.tools) / "pilotctl"), *args]

    def ctl(self, *args: str, check: bool = True, timeout: float = 40, tools: str | None = None,
            env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Runs pilotctl. CommandFailed if it ends with an error."""
        argv = self.argv(*args, tools=tools)
        done = subprocess.run(
            self.host.wrap(argv), capture_output=True, text=True, errors="replace", timeout=timeout * PATIENCE,
            env={**self.env, **(env or {})}, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            whose = tools or self.tools
            raise CommandFailed(
                f"{self}: {whose} pilotctl {' '.join(args)} -> {done.returncode}\n{done.stdout}{done.stderr}", done
            )
        return done

    def json(self, *args: str, timeout: float = 40, tools: str | None = None) -> Any:
        """`data` of a command that succeeded."""
        out = self.ctl("--json", *args, timeout=timeout, tools=tools).stdout
        reply = json.loads(out)
        assert reply["status"] == "ok", reply
        return reply["data"]

    @contextlib.contextmanager
    def background(self, *args: str, ready: Callable[[], Any] | None = None) -> Iterator[Background]:
        """pilotctl that keeps running, until it ends by itself or the block is left. ready: when it is at work."""
        work = Background(self, self.argv(*args))
        try:
            if ready:
                wait_for(ready, lambda: f"pilotctl {' '.join(args)} at work: {work.err}{work.out}")
            yield work
        finally:
            work.end()

    def driver(self, script: str, *args: str, timeout: float = 60) -> Any:
        """Runs a script with the published Python package; it finds `driver` connected and prints one JSON value last."""
        return self._python(published.python(), "from pilotprotocol import Driver", script, args, timeout)

    def sdk(self, script: str, *args: str, timeout: float = 60) -> Any:
        """The same with our own SDK: `driver` is a LocalClient."""
        imports = "from pilot.sdk import LocalClient as Driver\nfrom pilot.wire.address import parse"
        return self._python(OUR_BIN / "python", imports, script, args, timeout)

    def _python(self, python: Path, imports: str, script: str, args: tuple[str, ...], timeout: float) -> Any:
        body = "".join(f"    {line}\n" for line in script.strip("\n").splitlines())
        script = f"import json, sys, time\n{imports}\nwith Driver(sys.argv[1]) as driver:\n{body}"
        done = subprocess.run(
            self.host.wrap([str(python), "-c", script, self.socket, *args]), capture_output=True, text=True, timeout=timeout,
            env=self.env, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{self}: script failed: {done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.strip().splitlines()[-1])

    # ---- what the daemon knows ----

    def trusts(self, other: Machine) -> bool:
        return any(int(row["node_id"]) == other.node for row in self.json("trust")["trusted"] or [])

    def path_to(self, other: Machine) -> str:
        """"relay", "direct" or "" (no tunnel), as the daemon says."""
        for row in self.json("info", tools=OURS).get("peer_list") or []:
            if int(row["node_id"]) == other.node:
                return "relay" if row.get("relay") else "direct"
        return ""

    def inbox(self) -> list[dict[str, Any]]:
        """The stored messages, oldest first."""
        folder = self.dot / "inbox"
        names = sorted(folder.glob("*.json"), key=lambda p: p.name.split("-", 1)[1]) if folder.exists() else []
        return [json.loads(p.read_text()) for p in names]

    def received(self) -> list[Path]:
        folder = self.dot / "received"
        return sorted(p for p in folder.iterdir() if p.is_file()) if folder.exists() else []


class Background:
    """A running pilotctl with its output in files, so that a full pipe cannot stop it."""

    def __init__(self, machine: Machine, argv: list[str]) -> None:
        self._dir = tempfile.TemporaryDirectory(dir=machine.home)
        self._out, self._err = (Path(self._dir.name) / name for name in ("out", "err"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                machine.host.wrap(argv), stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=machine.env
            )

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def finish(self, seconds: float = 20.0) -> str:
        """Waits for the end; the output. Fails if it did not end well."""
        try:
            status = self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.out}{self.err}") from None
        assert status == 0, f"exit {status}: {self.out}{self.err}"
        return self.out

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._dir.cleanup()


class Testbed:
    """A laboratory with our rendezvous on a public host."""

    __test__ = False

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.root = lab.tmp / "homes"
        self.root.mkdir()
        self.machines: list[Machine] = []
        self._relayed: set[str] = set()
        self.host = lab.public("rendezvous")
        self.registry = f"{self.host.ip}:{REGISTRY_PORT}"
        self.beacon = f"{self.host.ip}:{BEACON_PORT}"
        self.log_path = self.root / "rendezvous.log"
        self.rendezvous: subprocess.Popen[Any] | None = None
        self.start_rendezvous()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start_rendezvous(self) -> None:
        before = self.log.count("beacon listening")
        with self.log_path.open("ab") as log:
            self.rendezvous = self.host.spawn(
                str(OUR_BIN / "pilot-rendezvous"), "-registry-addr", self.registry, "-beacon-addr", self.beacon,
                "-store", str(self.root / "registry.db"), "-network", "1", "-registration-rate", "100000", stdout=log, stderr=log,
                env={**ENVIRONMENT, "PILOT_ADMIN_TOKEN": ADMIN_TOKEN},
            )  # fmt: skip
        wait_for(lambda: self.log.count("beacon listening") > before, lambda: f"the rendezvous:\n{self.log}", START_S)

    def stop_rendezvous(self) -> None:
        assert self.rendezvous is not None
        self.rendezvous.terminate()
        self.rendezvous.wait(15)
        self.host.processes.remove(self.rendezvous)

    def machine(self, host: Host, name: str, make: str, tools: str, *flags: str, start: bool = True) -> Machine:
        machine = Machine(self, host, name, make, tools, *flags)
        return machine.start() if start else machine

    def pair(self, name: str, path: str, makes: tuple[str, str, str, str], *ours: str) -> tuple[Machine, Machine]:
        """Two machines that reach each other by `path` (PATHS) at best. makes: daemon and tools of the one, of the other. ours:
        further flags of our daemons."""
        hosts = []
        for end in "ab":
            if path == PUNCHED:
                hosts.append(self.lab.place(f"{name}{end}", "port_restricted_cone"))
            else:
                hosts.append(self.lab.public(f"{name}{end}"))
        if path == RELAYED:
            deafen(*hosts)
        a = self.machine(hosts[0], f"{name}a", makes[0], makes[1], *(ours if makes[0] == OURS else ()))
        b = self.machine(hosts[1], f"{name}b", makes[2], makes[3], *(ours if makes[2] == OURS else ()))
        if path == RELAYED:
            self._relayed.add(a.name)
        return a, b

    def relayed(self, a: Machine, b: Machine) -> bool:
        return a.name in self._relayed or b.name in self._relayed


def deafen(a: Host, b: Host) -> None:
    """From now on no UDP of one reaches the other: they must use the relay. Neither is told, as with filters on the way."""
    for host, other in ((a, b), (b, a)):
        host.nft(f"""
table ip deaf {{
  chain in {{ type filter hook input priority 0; meta l4proto udp ip saddr {other.ip} drop; }}
}}
""")
