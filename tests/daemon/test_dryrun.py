"""-dry-run: the operator learns what a start would use; files, sockets and registry stay as they are."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from world import World

from pilot.daemon.identity import NodeIdentity
from pilot.wire.registry import HEAD_SIZE, body_size, encode

PROGRAM = Path(sys.executable).parent / "pilot-daemon"


def dry(home: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report; proves that nothing in the home was touched."""
    before = snapshot(home)
    done = subprocess.run(argv(home, *flags, "-json"), env=env(home), capture_output=True, text=True, timeout=30)
    assert snapshot(home) == before
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def argv(home: Path, *flags: str) -> list[str]:
    base = ["-registry", "127.0.0.1:1", "-socket", str(home / "s"), "-identity", str(home / ".pilot" / "identity.json")]
    return [str(PROGRAM), *base, "-listen", "127.0.0.1:0", *flags, "-dry-run"]


def env(home: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("PILOT_")} | {"PILOT_HOME": str(home)}


def snapshot(home: Path) -> dict[str, Any]:
    return {str(p): (p.lstat().st_mode, p.lstat().st_mtime_ns) for p in [home, *home.rglob("*")]}


def test_a_first_start(tmp_path: Path) -> None:
    status, report = dry(tmp_path, "-hostname", "bot")
    assert status == 0 and report["would_start"]
    assert report["identity"] == {"path": f"{tmp_path}/.pilot/identity.json", "state": "new", "public_key": ""}
    assert (report["node_id"], report["address"], report["hostname"]) == (0, "", "bot")
    assert report["registry"] == "127.0.0.1:1" and report["beacon"] == "127.0.0.1:9001"
    assert any("new address" in note for note in report["notes"])


def test_a_registry_that_is_away_is_a_note(tmp_path: Path) -> None:
    NodeIdentity.generate().save(tmp_path / ".pilot" / "identity.json")
    for name in ("identity.json.links", "notes.txt"):
        (tmp_path / ".pilot" / name).write_text("[]")
    status, report = dry(tmp_path)
    assert status == 0 and report["identity"]["state"] == "kept" and report["left_alone"] == ["notes.txt"]
    assert any("not checked" in note for note in report["notes"]), report["notes"]


async def test_the_registry_tells_the_number_of_the_key(world: World) -> None:
    agent = await world.agent("alpha")
    home = world.root / "dry"
    agent.node.identity.save(home / ".pilot" / "identity.json")
    status, report = await asyncio.to_thread(dry, home, "-registry", f"127.0.0.1:{world.port}")
    assert status == 0
    assert (report["node_id"], report["address"], report["hostname"]) == (agent.number, str(agent.address), "alpha")


@pytest.mark.parametrize("name", ["identity.json", "trust.json"])
def test_damage_would_keep_it_from_starting(tmp_path: Path, name: str) -> None:
    path = tmp_path / ".pilot" / name
    path.parent.mkdir()
    path.write_text("{")
    path.chmod(0o600)
    status, report = dry(tmp_path)
    assert status == 1 and not report["would_start"]
    assert len(report["problems"]) == 1 and str(path) in report["problems"][0] and "backup" in report["problems"][0]
    done = subprocess.run(argv(tmp_path), env=env(tmp_path), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "problem: " in done.stdout and "It would not start" in done.stdout


def test_what_is_in_the_place_of_the_socket(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    status, report = dry(tmp_path)
    assert status == 1 and "not a socket" in report["problems"][0]
    (tmp_path / "s").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        status, report = dry(tmp_path)
        assert status == 1 and "answers" in report["problems"][0]
    status, report = dry(tmp_path)
    assert status == 0, "a socket that nobody serves is replaced at the start"


async def test_a_registry_that_does_not_know_keys(world: World) -> None:
    """Then the daemon that still runs is asked, if it has the same key."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(body_size(await reader.readexactly(HEAD_SIZE)))
        writer.write(encode({"type": "error", "error": "node 0: node not found"}))
        await writer.drain()
        writer.close()

    old = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = old.sockets[0].getsockname()[1]
    agent = await world.agent("alpha")
    home = world.root / "dry"
    for identity, number in ((agent.node.identity, agent.number), (NodeIdentity.generate(), 0)):
        identity.save(home / ".pilot" / "identity.json")
        flags = ("-registry", f"127.0.0.1:{port}", "-socket", str(agent.node.config.socket))
        status, report = await asyncio.to_thread(dry, home, *flags)
        assert status == 0 and report["node_id"] == number
        assert any("does not tell" in note for note in report["notes"]), report["notes"]
        assert any("stopped first" in note for note in report["notes"]), report["notes"]
    old.close()
    await old.wait_closed()
