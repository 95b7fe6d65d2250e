"""Nothing is dialled before trust is known (ipc.md section 4, the commands marked with a dagger in cli.md)."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakedaemon import FakeNode

COMMANDS = [
    ("ping", "home-agent-2", "--count", "1"),
    ("connect", "home-agent-2", "--message", "hi"),
    ("send", "home-agent-2", "7", "--data", "hi"),
    ("send-message", "home-agent-2", "--data", "hi"),
    ("publish", "home-agent-2", "t", "--data", "hi"),
    ("subscribe", "home-agent-2", "demo", "--count", "1"),
    ("dgram", "home-agent-2", "6000", "--data", "hi"),
    ("bench", "home-agent-2", "0.01"),
    ("send-file", "home-agent-2", __file__),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: w[0])
def test_a_private_peer_without_trust_is_not_dialled(run, node: FakeNode, words: tuple[str, ...]) -> None:
    node.trusted = set()
    ran = run("--json", *words)
    assert (ran.status, ran.error["code"]) == (1, "trust_required")
    assert "pilotctl handshake home-agent-2" in ran.error["hint"]
    assert not {0x03, 0x39, 0x0B} & set(node.codes())


@pytest.mark.parametrize("words", COMMANDS, ids=lambda w: w[0])
def test_the_test_can_be_skipped(run, node: FakeNode, words: tuple[str, ...]) -> None:
    node.trusted = set()
    assert run(*words, "--no-auto-handshake").status == 0
    assert 0x0F not in node.codes()


def test_a_public_peer_is_asked_for_trust(run, node: FakeNode) -> None:
    node.trusted, node.grants_handshakes = set(), True
    node.hosts["home-agent-2"] = (9, "1:0001.0000.0009", True)
    assert run("send", "home-agent-2", "7", "--data", "hi").out == "hi\n"
    subs = [body[0] for code, body in node.frames if code == 0x0F]
    assert subs == [7, 1, 7]
    assert node.frames[3] == (0x0F, b"\x07" + struct.pack(">II", 9, 5000))


def test_daemons_that_know_no_such_question_are_not_asked_twice(run, node: FakeNode) -> None:
    node.old, node.trusted = True, set()
    assert run("send", "home-agent-2", "7", "--data", "hi").out == "hi\n"


@pytest.fixture
def registry() -> Iterator[Callable[[dict[str, Any]], str]]:
    """A registry that gives one answer to everything."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(reply: dict[str, Any]) -> str:
        def answer() -> None:
            while True:
                try:
                    conn = listener.accept()[0]
                except OSError:
                    return
                with conn:
                    conn.recv(4096)
                    body = json.dumps(reply).encode()
                    conn.sendall(struct.pack(">I", len(body)) + body)

        threading.Thread(target=answer, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    listener.close()


def test_for_a_number_the_registry_tells_whether_the_peer_is_public(run, node: FakeNode, registry, monkeypatch) -> None:
    node.trusted, node.grants_handshakes = set(), True
    monkeypatch.setenv("PILOT_REGISTRY", registry({"type": "lookup_ok", "node_id": 9, "public": True}))
    assert run("send", "9", "7", "--data", "hi").out == "hi\n"


def test_lookup_hides_endpoints(run, node: FakeNode, registry, monkeypatch) -> None:
    reply = {"type": "lookup_ok", "node_id": 9, "address": "0:0000.0000.0009", "real_addr": "198.51.100.4:4000", "public": True}
    monkeypatch.setenv("PILOT_REGISTRY", registry(reply))
    assert run("--json", "lookup", "9").data == {k: v for k, v in reply.items() if k != "real_addr"}


def test_lookup_errors(run, node: FakeNode, registry, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert run("--json", "lookup", "9").error["message"] == "no registry configured"
    monkeypatch.setenv("PILOT_REGISTRY", registry({"type": "error", "error": "node 9: node not found"}))
    assert run("--json", "lookup", "9").error["code"] == "not_found"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("PILOT_REGISTRY", f"127.0.0.1:{port}")
    assert run("--json", "lookup", "9").error["code"] == "connection_failed"


def test_approve_by_a_name_that_only_the_registry_knows(run, node: FakeNode, registry, monkeypatch) -> None:
    node.pending = [{"node_id": 77, "public_key": "", "justification": "", "received_at": 1}]
    monkeypatch.setenv("PILOT_REGISTRY", registry({"type": "lookup_ok", "node_id": 77, "hostname": "home-agent-7"}))
    assert run("approve", "home-agent-7").out == "Trust established\n"
