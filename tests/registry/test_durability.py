"""What was acknowledged is there after kill -9; what a store cannot hold is never acknowledged."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from registry_support import Identity, Lab, Node, Raw, registration, until

from pilot.errors import PilotError
from pilot.registry.state import HandshakeRequest, HandshakeResponse, State
from pilot.registry.state import Node as StoredNode
from pilot.registry.store import Store


class Process:
    """The registry in a process that a test can kill."""

    def __init__(self, database: Path) -> None:
        script = Path(__file__).parent / "serve_forever.py"
        self._process = subprocess.Popen([sys.executable, str(script), str(database)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


async def agent(port: int, index: int, acknowledged: dict[str, Any]) -> None:
    """Registers and changes itself as fast as replies come, and notes what each reply confirmed."""
    rng = random.Random(index)
    identity = Identity(bytes([index]) * 32)
    node = Node(Raw(*await asyncio.open_connection("127.0.0.1", port)), identity, 0)
    seen = acknowledged.setdefault(identity.key_text, {})
    try:
        reply = await node.raw.ask(registration(identity))
        seen["node_id"] = node.number = reply["node_id"]
        for step in range(10_000):
            command = rng.choice(["set_hostname", "set_tags", "set_visibility", "set_task_exec", "report_trust"])
            if command == "report_trust":
                peer = rng.randrange(1, 5)
                if "error" not in await node.report(peer):
                    seen.setdefault("vouched", set()).add(peer)
                continue
            field, value = {
                "set_hostname": ("hostname", f"agent-{index}-{step}"),
                "set_tags": ("tags", [f"t{step}"]),
                "set_visibility": ("public", bool(step & 1)),
                "set_task_exec": ("enabled", bool(step & 2)),
            }[command]
            seen["asked", field] = value
            assert "error" not in await node.own(command, **{field: value})
            seen[field] = value
    except (ConnectionError, asyncio.IncompleteReadError):
        node.raw.close()


async def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    database = tmp_path / "registry.db"
    acknowledged: dict[str, Any] = {}
    for _ in range(3):
        process = await asyncio.to_thread(Process, database)
        agents = [asyncio.create_task(agent(process.port, i, acknowledged)) for i in range(1, 5)]
        await until(lambda: all(len(seen) > 4 for seen in acknowledged.values()) and len(acknowledged) == 4, "changes")
        await asyncio.sleep(rng.uniform(0.05, 0.3))
        await asyncio.to_thread(process.kill)
        await asyncio.gather(*agents)
    store = Store(database)
    state = State(store, store.load())
    store.close()
    for key_text, seen in acknowledged.items():
        node = state.nodes[seen["node_id"]]
        assert base64.b64encode(node.key).decode() == key_text
        found = {"hostname": node.hostname, "tags": list(node.tags), "public": node.public, "enabled": node.task_exec}
        for field, value in found.items():
            # The last change may have reached the disk without its reply reaching us, never the other way round.
            assert value in (seen.get(field, value), seen.get(("asked", field), value)), (field, value, seen)
        for peer in seen.get("vouched", ()):
            assert state.reported(node.id, peer) or peer == node.id


def mail(boxes: dict[int, dict[int, Any]]) -> dict[tuple[int, int], Any]:
    everything = [message for box in boxes.values() for message in box.values()]
    return {(m.target, m.sender): dataclasses.replace(m, deliveries=0) for m in everything}


def durable(state: State) -> dict[str, Any]:
    return {
        "nodes": {
            n.id: (n.key, n.owner, n.hostname, n.public, n.tags, n.score, n.task_exec, n.key_created, n.key_rotated, n.rotations,
                   n.signs_register)
            for n in state.nodes.values()
        },
        "pairs": state.pairs,
        "links": state.links,
        "requests": mail(state.requests),
        "responses": mail(state.responses),
        "names": {name: n.id for name, n in state.by_name.items()},
        "owners": {owner: n.id for owner, n in state.by_owner.items()},
        "next": state.next_id,
        "networks": state.networks,
        "joined": {n.id: n.networks for n in state.nodes.values()},
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
async def test_disk_and_memory_agree(lab: Lab, seed: int) -> None:
    """After any sequence of commands a restarted registry knows exactly what the stopped one knew."""
    rng = random.Random(seed)
    await lab.start(admin_token="op")
    nodes = [await lab.node(f"127.0.0.{i}", owner=f"owner-{i}", hostname=f"n{i}") for i in range(2, 7)]
    for _ in range(300):
        node, other = rng.sample(nodes, 2)
        match rng.randrange(15):
            case 0:
                await node.report(other.number)
            case 1:
                await node.revoke(other.number)
            case 2:
                await node.shake(other.number, justification=rng.choice(["", "bitte", "\x00é"]))
            case 3:
                await node.respond(other.number, rng.random() < 0.7)
            case 4:
                await node.own("poll_handshakes")
            case 5:
                await node.own("set_hostname", hostname=rng.choice(["", "a", "b", "c"]))
            case 6:
                await node.own("set_tags", tags=rng.sample(["x", "y", "z"], rng.randrange(4)))
            case 7:
                await node.own("set_visibility", public=rng.random() < 0.5)
            case 8:
                await node.ask("update_polo_score", node_id=other.number, delta=rng.randrange(-9, 10))
            case 9:
                await node.own("deregister")
            case 10:
                await node.raw.ask(registration(node.identity, hostname=rng.choice(["", "d", "e"])))
            case 11:
                new = Identity()
                signed = f"rotate:{node.number}:{new.key_text}"
                await node.ask("rotate_key", signed, node_id=node.number, new_public_key=new.key_text)
                node.identity = new
            case 12:
                fields: dict[str, Any] = rng.choice([{}, {"join_rule": "token", "token": "t"}])
                name = f"net-{rng.choice('abc')}"
                await node.ask("create_network", node_id=node.number, name=name, admin_token="op", **fields)
            case 13:
                verb, network = rng.choice(["join_network", "join_network", "leave_network"]), rng.randrange(1, 5)
                signed = f"{verb}:{node.number}:{network}"
                await node.ask(verb, signed, node_id=node.number, network_id=network, token="t")
            case 14:
                command = rng.choice(["delete_network", "rename_network"])
                await node.ask(command, network_id=rng.randrange(1, 5), name=f"net-{rng.choice('abc')}", admin_token="op")
    before = durable(lab.server.core.state)
    await lab.restart()
    assert durable(lab.server.core.state) == before


async def test_full_disk(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk cannot be written changes are refused, waiting ones too; heartbeats and lookups go on. Afterwards all is
    written in order, also what was refused half-way."""
    await lab.start()
    node = await lab.node()
    commit = Store._commit
    broken = True
    monkeypatch.setattr("pilot.registry.store.RETRY_S", 0.02)
    monkeypatch.setattr(Store, "_commit", lambda self, changes: "disk full" if broken else commit(self, changes))
    assert await node.own("set_hostname", hostname="waits") == {"type": "error", "error": "request failed"}
    assert lab.server.stats()["storage_failing"] == "disk full"
    assert "error" in await node.own("set_tags", tags=["t"])
    assert "time" in await node.own("heartbeat")
    assert "public_key" in await node.ask("lookup", node_id=1)
    broken = False
    await until(lambda: not lab.server.stats()["storage_failing"], "the disk works again")
    assert "error" not in await node.own("set_tags", tags=["t"])
    await lab.restart()
    kept = lab.server.core.state.nodes[1]
    assert (kept.hostname, kept.tags) == ("waits", ("t",))


def refusal(path: Path) -> PilotError:
    with pytest.raises(PilotError) as caught:
        Store(path)
    return caught.value


def test_second_process_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.db")
    assert "in use" in refusal(tmp_path / "r.db").message
    store.close()
    Store(tmp_path / "r.db").close()


def test_damaged_or_foreign_database_is_left_alone(tmp_path: Path) -> None:
    """It is never taken for an empty one: starting fresh would hand the ids of all nodes to others."""
    garbage, foreign, newer = tmp_path / "garbage", tmp_path / "foreign", tmp_path / "newer"
    garbage.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    sqlite3.connect(foreign).executescript("CREATE TABLE t (x); INSERT INTO t VALUES (1);")
    Store(newer).close()
    sqlite3.connect(newer).execute("PRAGMA user_version=99")
    for path, word in ((garbage, "damaged"), (foreign, "not a registry database"), (newer, "newer release")):
        before = path.read_bytes()
        assert word in refusal(path).message
        assert path.read_bytes() == before
    torn = tmp_path / "torn"
    Store(torn).close()
    torn.write_bytes(torn.read_bytes()[:5000])
    assert "damaged" in refusal(torn).message


def test_database_is_private(tmp_path: Path) -> None:
    store = Store(tmp_path / "r.db")
    store.start(lambda: None)
    store.node(StoredNode(1, b"k" * 32))
    store.request(HandshakeRequest(1, 2, "", 5))
    store.response(HandshakeResponse(1, 2, True, 5))
    store.flush()
    store.close()
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
