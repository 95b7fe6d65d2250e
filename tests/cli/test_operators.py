"""Commands of operators and of services: networks with the operator's token, broadcast, tasks, signed requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakedaemon import FakeNode

from pilot.registry.server import RegistryServer
from pilot.registry.store import MemoryStore

DIGEST = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # SHA-256 of "x"


def test_broadcast(run, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("--json", "broadcast", "3", "hello")
    assert (ran.status, ran.error["code"]) == (1, "auth_required")
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", "sesame")
    assert run("broadcast", "3", "hello").out == "broadcast on network 3 port 1000 (5 bytes)\n"
    assert node.frames[-1] == (0x29, b"\x00\x03\x03\xe8\x00\x06sesamehello")
    assert run("--json", "broadcast", "3", "hello", "--port", "7").data == {"network_id": 3, "port": 7, "bytes": 5}


def test_tasks_are_announced(run, node: FakeNode) -> None:
    assert run("--json", "enable-tasks").data["task_exec"] is True
    assert run("--json", "disable-tasks").data["task_exec"] is False


def test_prefer_direct(run, node: FakeNode) -> None:
    assert run("--json", "prefer-direct", "home-agent-2").data["node_id"] == 9
    assert run("prefer-direct", "9").out.startswith("looking for a direct path to 9 (0:0000.0000.0009); ")


def test_sign_request(run, node: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_text("x")
    for body in (["--body", "x"], ["--body-file", str(path)], ["--body-hash", DIGEST.upper()]):
        assert run("--json", "sign-request", "--audience", "shop", *body).data["envelope"] == DIGEST
    assert run("sign-request", "--audience", "shop", "--body", "x").out.splitlines()[0] == f"envelope:  {DIGEST}"
    for words in (["--body", "x"], ["--audience", "shop"], ["--audience", "shop", "--body-hash", "12"]):
        assert run("--json", "sign-request", *words).error["code"] == "invalid_argument"
    assert run("--json", "sign-request", "--audience", "shop", "--body-file", "/none").error["code"] == "not_found"


def test_verify_request(run, node: FakeNode) -> None:
    ran = run("verify-request", "--envelope", "e", "--signature", "c2ln", "--max-skew", "30")
    assert (ran.status, ran.out) == (0, "valid: signed by node 8 (None), not trusted\n")
    ran = run("verify-request", "--envelope", "e", "--signature", "else")
    assert (ran.status, ran.out) == (1, "not valid: nonsense\n")
    assert run("--json", "verify-request", "--envelope", "e").error["message"] == "missing flag: --signature"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryServer]:
    """A real one on loopback, with the operator's token "sesame"; the environment names it."""
    loop = asyncio.new_event_loop()
    server = RegistryServer(MemoryStore(), admin_token="sesame")
    _, port = loop.run_until_complete(server.start("127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    monkeypatch.setenv("PILOT_REGISTRY", f"127.0.0.1:{port}")
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", "sesame")
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_an_operator_makes_and_removes_a_network(run, node: FakeNode, registry: RegistryServer, monkeypatch) -> None:
    node.info["public_key"] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    node.info["node_id"] = run("--json", "register").data["node_id"]
    assert run("--json", "network", "create", "--name", "fleet", "--token", "door").data["network_id"] == 1
    assert run("network", "rename", "1", "ships").out == "network 1 renamed: ships\n"
    assert run("--json", "network", "create", "--name", "ships").error["code"] == "connection_failed"  # the name is taken
    assert run("--json", "network", "delete", "1").data == {"type": "delete_network_ok", "network_id": 1}
    assert run("--json", "network", "delete", "1").error["code"] == "not_found"
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", "wrong")
    assert run("--json", "network", "create", "--name", "fleet").status == 1
