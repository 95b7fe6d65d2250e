"""The article's transcripts, command by command, by the users of agents behind NATs; each line of the answers is asked for.

The article shows the start of a daemon in three ways (the NAT's class behind the endpoint, below it, or not at all). The program
has one that says all of it: the endpoint, the class, and as whom the node is registered. Durations and addresses are those of the
laboratory.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from fleet import BIN, Fleet, wait_for
from lab import Host, Lab, Link

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

NAME = "rendezvous.example.com"
LINK = Link(delay_ms=3.0)  # 12 ms from home to home
MS = r"\d+(\.\d+)?ms"


class User:
    """Somebody at a shell on a host. pilotctl finds the rendezvous by its name there."""

    def __init__(self, fleet: Fleet, host: Host, name: str) -> None:
        self.host = host
        self.home = fleet.root / name
        self.home.mkdir()
        self.hosts_file = self.home / "hosts"
        self.hosts_file.write_text(f"127.0.0.1 localhost\n{fleet.host.ip} {NAME}\n")
        env = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_") and k != "XDG_RUNTIME_DIR"}
        self.env = {
            **env, "PILOT_HOME": str(self.home), "PILOT_SOCKET": str(self.home / "pilot.sock"), "PATH": f"{BIN}:{env['PATH']}",
        }  # fmt: skip

    def start(self, line: str) -> subprocess.Popen[str]:
        """Types a command line."""
        inside = 'mount --bind "$0" /etc/hosts && exec "$@"'  # ip netns exec has given it file systems of its own
        argv = self.host.wrap(["sh", "-c", inside, str(self.hosts_file), *shlex.split(line)])
        return subprocess.Popen(
            argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def types(self, line: str) -> list[str]:
        """What the terminal shows."""
        process = self.start(line)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, f"{line}\n{out}"
        return out.splitlines()

    def info(self, field: str) -> int:
        found: int = json.loads("".join(self.types("pilotctl --json info")))["data"][field]
        return found

    def leaves(self) -> None:
        self.start("pilotctl daemon stop").communicate(timeout=30)


def shows(shown: list[str], *expected: str) -> None:
    """The lines in `shown` are these, in this order; others may stand between them. Each is a regular expression."""
    rest = iter(shown)
    for line in expected:
        assert any(re.fullmatch(line, have) for have in rest), f"no line {line!r} in its place:\n" + "\n".join(shown)


@pytest.fixture
def world() -> Iterator[tuple[Lab, Fleet, list[User]]]:
    users: list[User] = []
    with Lab() as lab:
        fleet = Fleet(lab, second_address=True)
        try:
            yield lab, fleet, users
        finally:
            for user in users:
                user.leaves()


def populate(fleet: Fleet, count: int) -> None:
    """Registers nodes that were there before."""
    script = (
        "import asyncio, sys\nfrom pilot.daemon.identity import NodeIdentity\nfrom pilot.registry.client import RegistryClient\n"
        "async def main():\n"
        "    for i in range(int(sys.argv[2])):\n"
        "        client = RegistryClient(sys.argv[1], 9000, NodeIdentity.generate())\n"
        "        await client.register(f'198.18.9.{i + 1}:4000')\n"
        "        await client.close()\n"
        "asyncio.run(main())\n"
    )
    fleet.host.run(str(BIN / "python"), "-c", script, fleet.host.ip, str(count))


def home(lab: Lab, fleet: Fleet, users: list[User], name: str, nat: str) -> User:
    users.append(User(fleet, lab.place(f"s{len(users)}", nat, LINK), name))
    return users[-1]


def endpoint(lab: Lab, at: int) -> str:
    return re.escape(lab.sites[at].public_ip) + r":2\d{4}"


def test_two_agents_behind_different_nats(world: tuple[Lab, Fleet, list[User]]) -> None:
    lab, fleet, users = world
    a, b = home(lab, fleet, users, "agent-a", "port_restricted_cone"), home(lab, fleet, users, "agent-b", "symmetric")
    for user, name in ((a, "agent-a"), (b, "agent-b")):  # they know each other; today they start anew
        user.types(f"pilotctl init --hostname {name} --registry {NAME}:9000")
        user.types("pilotctl daemon start")
    number = b.info("node_id")
    a.types(f"pilotctl handshake {number} greetings")
    wait_for(lambda: "greetings" in "".join(b.types("pilotctl pending")), "the request", 10)
    b.types("pilotctl approve agent-a")
    wait_for(lambda: str(number) in "".join(a.types("pilotctl trust")), "trust", 10)
    for user in users:
        user.types("pilotctl daemon stop")

    shown = a.types("pilotctl daemon start")
    shows(shown, rf"STUN: discovered public endpoint {endpoint(lab, 0)}", "NAT type: port_restricted_cone")
    shown = b.types("pilotctl daemon start")
    shows(shown, rf"STUN: discovered public endpoint {endpoint(lab, 1)}", "NAT type: symmetric")
    bound = b.info("ports")
    inbox = b.start("pilotctl recv 1000")
    wait_for(lambda: b.info("ports") > bound, "port 1000 is bound", 10)
    shown = a.types('pilotctl connect agent-b --message "hello from behind NAT"')
    shows(
        shown,
        r"Trying direct\.\.\. failed \(3 attempts\)",
        r"Trying hole-punch\.\.\. failed \(symmetric NAT on remote\)",
        r"Falling back to relay\.\.\.",
        rf"Connected via relay \(encrypted, {MS} overhead\)",
        "Message delivered",
    )
    shows(inbox.communicate(timeout=10)[0].splitlines(), "hello from behind NAT")


def test_a_cloud_machine_with_a_known_address(world: tuple[Lab, Fleet, list[User]]) -> None:
    lab, fleet, users = world
    users.append(User(fleet, lab.public("cloud"), "cloud"))
    users[0].types(f"pilotctl init --registry {NAME}:9000")
    shown = users[0].types(f"pilotctl daemon start --endpoint {users[0].host.ip}:4000 --public")
    shows(shown, r"Registered with fixed endpoint \(STUN skipped\)")


def test_the_complete_workflow(world: tuple[Lab, Fleet, list[User]]) -> None:
    lab, fleet, users = world
    populate(fleet, 7)
    one, two = home(lab, fleet, users, "one", "port_restricted_cone"), home(lab, fleet, users, "two", "restricted_cone")
    one.types("pilotctl init --hostname home-agent-1")
    shows(
        one.types(f"pilotctl daemon start --registry {NAME}:9000"),
        rf"STUN: discovered public endpoint {endpoint(lab, 0)}",
        "NAT type: port_restricted_cone",
        r"Registered as home-agent-1 \(1:0001\.0000\.0008\)",
    )
    two.types("pilotctl init --hostname home-agent-2 --public")
    shows(
        two.types(f"pilotctl daemon start --registry {NAME}:9000"),
        rf"STUN: discovered public endpoint {endpoint(lab, 1)}",
        "NAT type: restricted_cone",
        r"Registered as home-agent-2 \(1:0001\.0000\.0009\)",
    )
    shows(one.types('pilotctl handshake home-agent-2 "Collaborative data processing"'), r"Handshake sent\.\.\.")
    wait_for(lambda: "Collaborative data processing" in "".join(two.types("pilotctl pending")), "the request", 10)
    shows(two.types("pilotctl approve 1:0001.0000.0008"), "Trust established")
    shows(
        one.types("pilotctl ping home-agent-2 --count 4"),
        r"PING home-agent-2 \(1:0001\.0000\.0009\):",
        *[rf"  Reply: {MS} \(hole-punched, encrypted\)"] * 4,
        rf"4 packets, 0% loss, avg {MS}",
    )
