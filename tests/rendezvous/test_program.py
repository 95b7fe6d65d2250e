"""The program as a process: it says when it listens, serves both protocols, connects them, stops in order, fails plainly."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pilot.registry.blocking import BlockingRegistry
from pilot.wire import beacon as wire

TOKEN = "hush-operator-token"


class Identity:
    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def signature(self, text: str) -> str:
        return base64.b64encode(self.sign(text.encode())).decode()


class Rendezvous:
    """The running program."""

    def __init__(self, root: Path, *flags: str, ports: str = "127.0.0.1:0") -> None:
        self.log_file = root / f"log-{time.monotonic_ns()}"
        env = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_")}
        addrs = ["-registry-addr", ports, "-beacon-addr", ports] if ports else []
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pilot.rendezvous", *addrs, *flags],
                stdout=log, stderr=subprocess.STDOUT, env=env | {"PILOT_ADMIN_TOKEN": TOKEN},
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def addr(self, what: str) -> tuple[str, int]:
        """Where it says that it listens."""
        deadline = time.monotonic() + 20
        while not (found := re.search(rf"{what} listening.*? addr=(\S+):(\d+)", self.log)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.02)
        return found[1], int(found[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


Launch = Callable[..., Rendezvous]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Rendezvous] = []

    def run(*flags: str, **kwargs: Any) -> Rendezvous:
        started.append(Rendezvous(tmp_path, *flags, **kwargs))
        return started[-1]

    yield run
    for r in started:
        if r.process.poll() is None:
            r.process.kill()
            r.process.wait()


@contextlib.contextmanager
def udp(ip: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((ip, 0))
        s.settimeout(10)
        yield s


def ask(s: socket.socket, beacon: tuple[str, int], node: int) -> None:
    s.sendto(wire.discover(node), beacon)
    assert s.recvfrom(2000) == (wire.DiscoverReply(s.getsockname()).build(), beacon)


def test_a_node_registers_is_found_and_relayed(launch: Launch, tmp_path: Path) -> None:
    store = tmp_path / "registry.db"
    r = launch("-network", "1", "-store", str(store))
    identity = Identity()
    with BlockingRegistry(*r.addr("registry")) as registry, udp() as a, udp() as b:
        reply = registry.register(identity, "127.0.0.1:4000", hostname="agent-a")
        assert (reply["node_id"], reply["address"]) == (1, "1:0001.0000.0001")
        beacon = r.addr("beacon")
        ask(a, beacon, 1)
        ask(b, beacon, 2)
        b.sendto(wire.relay(2, 1, b"PILS" + bytes(1200)), beacon)
        assert a.recvfrom(2000) == (wire.Deliver(2, b"PILS" + bytes(1200)).build(), beacon)
    assert r.end() == 0
    assert "stopping" in r.log and "Traceback" not in r.log

    again = launch("-network=1", f"--store={store}")
    with BlockingRegistry(*again.addr("registry")) as registry:
        assert registry.resolve_hostname("agent-a")["node_id"] == 1
    assert again.end(signal.SIGINT) == 0


def test_the_registry_protects_its_nodes_at_the_beacon(launch: Launch) -> None:
    r = launch()
    beacon = r.addr("beacon")
    with BlockingRegistry(*r.addr("registry")) as registry, udp("127.0.0.7") as squatter, udp() as owner, udp() as sender:
        ask(squatter, beacon, 1)  # before the node exists
        node = registry.register(Identity(), "127.0.0.1:4000")["node_id"]
        assert node == 1
        ask(owner, beacon, node)
        ask(squatter, beacon, node)
        ask(sender, beacon, 55)
        sender.sendto(wire.relay(55, node, b"PILS"), beacon)
        assert owner.recv(2000) == wire.Deliver(55, b"PILS").build()
        assert not select.select([squatter], [], [], 0)[0]
    assert "no -store given" in r.log


def test_a_handshake_for_a_node_is_announced_at_once(launch: Launch) -> None:
    r = launch()
    a, b = Identity(), Identity()
    beacon = r.addr("beacon")
    with BlockingRegistry(*r.addr("registry")) as registry, udp() as socket_a, udp() as socket_b:
        node_a, node_b = (registry.register(i, "127.0.0.1:4000")["node_id"] for i in (a, b))
        ask(socket_a, beacon, node_a)
        ask(socket_b, beacon, node_b)
        registry.call("request_handshake", {
            "from_node_id": node_a, "to_node_id": node_b, "justification": "",
            "signature": a.signature(f"handshake:{node_a}:{node_b}"),
        })  # fmt: skip
        assert socket_b.recvfrom(100) == (b"\x0a\x01", beacon)
        registry.call("respond_handshake", {
            "node_id": node_b, "peer_id": node_a, "accept": True, "signature": b.signature(f"respond:{node_b}:{node_a}"),
        })  # fmt: skip
        assert socket_a.recvfrom(100) == (b"\x0a\x01", beacon)


def test_the_log_holds_no_secrets_and_can_be_json(launch: Launch) -> None:
    r = launch("-log-level", "debug", "-log-format", "json", "-beacon-only", "-registry", "127.0.0.1:9", "-beacon-id", "5")
    deadline = time.monotonic() + 20
    while "does not take part" not in r.log:
        assert time.monotonic() < deadline, r.log
        time.sleep(0.05)
    assert r.end() == 0
    events = [json.loads(line) for line in r.log.splitlines()]
    assert [e["event"] for e in events if e["event"].endswith("listening")] == ["beacon listening"]
    assert TOKEN not in r.log


@pytest.mark.parametrize(("kind", "flag"), [(socket.SOCK_STREAM, "-registry-addr"), (socket.SOCK_DGRAM, "-beacon-addr")])
def test_a_taken_port_ends_it_with_a_plain_message(launch: Launch, kind: socket.SocketKind, flag: str) -> None:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            s.listen()
        r = launch(flag, f"127.0.0.1:{s.getsockname()[1]}")
        assert r.process.wait(20) == 1
    last = [line for line in r.log.splitlines() if line.startswith(("pilot-rendezvous:", "hint:"))]
    assert len(last) == 2 and "address already in use" in last[0].lower() and "another program" in last[1]
    assert "Traceback" not in r.log


def test_a_store_that_is_something_else_is_left_alone(launch: Launch, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("no database " * 100)
    r = launch("-store", str(other))
    assert r.process.wait(20) == 1
    assert str(other) in r.log and "Traceback" not in r.log
    assert other.read_text() == "no database " * 100


@pytest.mark.parametrize(("flags", "status", "says"), [
    (["-help"], 0, "Usage: pilot-rendezvous"), (["--version"], 0, "."), (["-colour"], 2, "unknown flag -colour"),
])  # fmt: skip
def test_words_without_a_run(launch: Launch, flags: list[str], status: int, says: str) -> None:
    r = launch(*flags)
    assert r.process.wait(20) == status
    assert says in r.log


def test_only_one_half(launch: Launch) -> None:
    r = launch("-registry-only")
    r.addr("registry")
    assert r.end() == 0
    assert "beacon listening" not in r.log
