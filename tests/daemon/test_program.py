"""The program: its name, its exit status, its signals, and what others see of its process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from world import RawClient, World, until

from pilot.wire import ipc_requests as rq

PROGRAM = Path(sys.executable).parent / "pilot-daemon"


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_")} | {"PILOT_HOME": "/nonexistent"}
    return subprocess.run([str(PROGRAM), *argv], env=clean | env, capture_output=True, text=True, timeout=30)


class Started:
    def __init__(self, process: asyncio.subprocess.Process, world: World, name: str) -> None:
        self.process = process
        self.world = world
        self.home = world.root / name
        self.socket = self.home / "sock"

    def log(self) -> str:
        return (self.home / "log").read_text()

    async def ready(self) -> RawClient:
        def there() -> bool:
            assert self.process.returncode is None, self.log()
            return self.socket.exists()

        await until(there, "the local socket")
        return await RawClient.connect(self.socket)


@pytest.fixture
async def start(world: World) -> AsyncIterator[Any]:
    made: list[Started] = []

    async def begin(name: str, *extra: str, drop: Sequence[str] = ()) -> Started:
        home = world.root / name
        home.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("PILOT_")} | {"PILOT_HOME": str(home)}
        with (home / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                str(PROGRAM), *world.argv(name, *extra), env=env, stdout=log, stderr=log
            )
        made.append(Started(process, world, name))
        return made[-1]

    yield begin
    for started in made:
        if started.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                started.process.kill()
            await started.process.wait()


def test_help_and_version_need_nothing() -> None:
    for spelling in ("-help", "--help", "-h"):
        done = run(spelling)
        assert done.returncode == 0 and "-registry" in done.stdout and not done.stderr
    done = run("-version")
    assert done.returncode == 0 and done.stdout.strip()[0].isdigit()


@pytest.mark.parametrize(("argv", "says"), [
    ((), "no registry given"), (("-nope",), "unknown flag -nope"), (("-registry", "x"), "want host:port"),
    (("-registry", "x:1", "-encrypt=false"), "plaintext"),
])  # fmt: skip
def test_a_wrong_command_line_is_status_2_with_the_reason(argv: tuple[str, ...], says: str) -> None:
    done = run(*argv)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_what_keeps_a_node_from_starting_is_status_1_with_reason_and_hint(tmp_path: Path) -> None:
    identity = tmp_path / "identity.json"
    identity.write_text("{}")
    identity.chmod(0o644)
    base = ["-registry", "127.0.0.1:1", "-socket", str(tmp_path / "s"), "-listen", "127.0.0.1:0"]
    done = run(*base, "-identity", str(identity))
    assert done.returncode == 1 and "open to other users" in done.stderr and f"hint: chmod 600 {identity}" in done.stderr
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        done = run(*base, "-listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 1 and "tunnel socket" in done.stderr and "Traceback" not in done.stderr


def test_no_registry_is_a_reason_within_ten_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("-registry", "127.0.0.1:1", "-socket", str(tmp_path / "s"), "-listen", "127.0.0.1:0")
    assert done.returncode == 1 and "registration failed" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - began < 20
    assert not (tmp_path / "s").exists()


async def test_others_recognise_the_process(start: Any) -> None:
    """The published pilotctl wants argv[0]'s base name, in the process that it started itself."""
    daemon = await start("alpha")
    client = await daemon.ready()
    argv0 = await asyncio.to_thread(lambda: Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes().split(b"\0")[0])
    assert os.path.basename(argv0) == b"pilot-daemon"
    assert (await client.ask(rq.Info()))["pid"] == daemon.process.pid
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_orderly_stop(start: Any, world: World, number: signal.Signals) -> None:
    daemon = await start("alpha")
    client = await daemon.ready()
    node = (await client.ask(rq.Info()))["node_id"]
    began = time.monotonic()
    daemon.process.send_signal(number)
    assert await asyncio.wait_for(daemon.process.wait(), 10) == 0, daemon.log()
    assert time.monotonic() - began < 5
    assert not daemon.socket.exists() and "Traceback" not in daemon.log()
    with pytest.raises(EOFError):
        await client.frame()
    assert world.registry and not world.registry.core.state.nodes[node].online


async def test_stop_while_it_starts(start: Any, world: World) -> None:
    await world.close_registry()
    daemon = await start("alpha")
    await until(lambda: "STUN" in daemon.log(), "it has begun")
    daemon.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(daemon.process.wait(), 10) == 0, daemon.log()
    assert "Traceback" not in daemon.log()


async def test_kill_and_start_again_is_the_same_node(start: Any) -> None:
    first = await start("alpha")
    node = (await (await first.ready()).ask(rq.Info()))["node_id"]
    first.process.kill()
    await first.process.wait()
    assert first.socket.exists()
    second = await start("alpha")
    await until(lambda: second.log().count("local clients are served") == 2, "ready again")
    assert (await (await RawClient.connect(second.socket)).ask(rq.Info()))["node_id"] == node


async def test_a_second_daemon_is_refused_and_harms_nothing(start: Any) -> None:
    first = await start("alpha")
    client = await first.ready()
    second = await start("alpha")
    assert await asyncio.wait_for(second.process.wait(), 20) == 1
    assert "already running" in second.log()
    third = await start("alpha", "-socket", str(first.home / "other.sock"))
    assert await asyncio.wait_for(third.process.wait(), 20) == 1
    assert "another daemon uses the identity" in third.log()
    assert (await client.ask(rq.Info()))["node_id"] == 1


async def test_metrics_on_request(start: Any) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    daemon = await start("alpha", "-metrics-addr", f"127.0.0.1:{port}")
    await daemon.ready()

    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            return str(reply.read().decode())

    text = await asyncio.to_thread(fetch)
    for line in ("pilot_registered 1.0", "pilot_tunnel_sent_datagrams_total", 'pilot_drops_total{reason="auth"}'):
        assert line in text


async def test_json_log_is_json_and_holds_no_secrets(start: Any) -> None:
    daemon = await start("alpha", "-log-format", "json", "-log-level", "debug", "-webhook-secret", "s3cr3t-word",
                         "-admin-token", "t0ken-word")  # fmt: skip
    await daemon.ready()
    daemon.process.send_signal(signal.SIGTERM)
    await daemon.process.wait()
    lines = [json.loads(line) for line in daemon.log().splitlines()]
    assert any(line["event"].startswith("Registered as alpha") for line in lines)
    private = json.loads((daemon.home / "identity.json").read_text())["private_key"]
    assert not any(word in daemon.log() for word in ("s3cr3t-word", "t0ken-word", private[:30]))
