"""The daemon's client and the blocking one, against a real server and against servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from registry_support import Identity, Lab

from pilot.errors import PilotError
from pilot.registry import calls, pool, tls
from pilot.registry.blocking import BlockingRegistry
from pilot.registry.client import RegistryClient
from pilot.wire import registry as wire


@pytest.fixture
async def clients(lab: Lab) -> AsyncIterator[Callable[..., RegistryClient]]:
    """Makes clients of the lab's server, or of another port."""
    made: list[RegistryClient] = []

    def make(identity: Identity | None = None, port: int = 0, **kwargs: str) -> RegistryClient:
        made.append(RegistryClient(lab.host, port or lab.port, identity or Identity(), **kwargs))
        return made[-1]

    yield make
    for client in made:
        await client.close()


async def code_of(call: Awaitable[object]) -> str:
    with pytest.raises(PilotError) as caught:
        await call
    return caught.value.code


async def test_every_command(lab: Lab, clients: Callable[..., RegistryClient]) -> None:
    """Each method signs what the server checks, and returns what it says."""
    await lab.start(network=1, admin_token="op")
    a, b = clients(admin_token="op"), clients()
    reply = await a.register(":4001", hostname="a", owner="o", lan_addrs=["10.0.0.1:4001"], version="v1")
    assert (a.node, a.address, reply["hostname"]) == (1, "1:0001.0000.0001", "a")
    await b.register(":4002")
    assert (await a.heartbeat())["time"] > 0
    assert (await b.set_hostname("b"))["hostname"] == "b"
    assert (await b.resolve_hostname("a"))["node_id"] == 1
    assert (await a.set_tags(["x"]))["tags"] == ["x"]
    assert (await a.set_task_exec(True))["task_exec"] is True
    looked_up = await b.lookup(1)
    assert (looked_up["tags"], looked_up["task_exec"], looked_up["version"]) == (["x"], True, "v1")
    await a.request_handshake(2, "why")
    await a.request_handshake(2, "why")  # waits there already: as good
    assert (await b.poll_handshakes())["requests"][0]["justification"] == "why"
    await b.respond_handshake(1, True)
    assert (await a.poll_handshakes())["responses"][0]["accept"] is True
    assert await a.check_trust(1, 2)
    assert (await b.resolve(1))["lan_addrs"] == ["10.0.0.1:4001"]
    assert (await a.punch(1, 2))["node_b_addr"] == "127.0.0.1:4002"
    await a.revoke_trust(2)
    await a.report_trust(2)
    assert not await a.check_trust(1, 2)
    assert (await a.set_visibility(True))["visibility"] == "public"
    assert await a.update_polo_score(2, 3) == 3 and await a.set_polo_score(2, -4) == -4 and await a.get_polo_score(2) == -4
    assert [n["id"] for n in await a.list_networks()] == [0]
    assert [n["node_id"] for n in await a.list_nodes(0)] == [1, 2]
    await a.beacon_register(9, "127.0.0.1:9001")
    assert await b.beacon_list() == ["127.0.0.1:9001"]
    assert await a.poll_invites() == []
    assert await code_of(a.join_network(5)) == "not_found" and await code_of(a.leave_network(5)) == "not_found"
    new = Identity()
    await a.rotate_key(new)
    assert base64.b64decode((await b.lookup(1))["public_key"]) == new.public_key
    assert (await b.get_key_info(1))["rotate_count"] == 1
    await a.deregister()
    assert await code_of(a.heartbeat()) == "not_found"


async def test_answers_have_their_codes(lab: Lab, clients: Callable[..., RegistryClient]) -> None:
    """What paths and users act on."""
    await lab.start()
    a, b, c = clients(), clients(), clients()
    assert await code_of(a.heartbeat()) == "not_running"
    await a.register(hostname="a")
    await b.register()
    assert await code_of(a.lookup(99)) == "not_found"
    assert await code_of(a.resolve(99)) == "not_found"
    assert await code_of(a.resolve(2)) == "permission_denied"
    assert await code_of(a.resolve_hostname("nobody")) == "not_found"
    assert await code_of(b.set_hostname("a")) == "already_exists"
    assert await code_of(b.set_hostname("No!")) == "invalid_argument"
    assert await code_of(b.set_tags(["x"] * 11)) == "invalid_argument"
    assert await code_of(b.revoke_trust(1)) == "not_found"
    assert await code_of(b.list_nodes(0)) == "permission_denied"
    c.node = 1
    assert await code_of(c.heartbeat()) == "auth_required"
    assert await code_of(a.set_hostname("\ud800")) == "invalid_argument"


@pytest.mark.parametrize(
    ("command", "code"), [("lookup", "not_found"), ("resolve", "permission_denied"), ("set_tags", "internal")]
)
def test_first_release_hides_all_reasons(command: str, code: str) -> None:
    """Its one text is an answer, not an outage, for lookup and resolve."""
    assert calls.fault(command, "request failed").code == code


async def test_registry_restarts(lab: Lab, clients: Callable[..., RegistryClient]) -> None:
    """The client finds the new process on the same port by itself; the daemon reads that it has to register."""
    await lab.start()
    a = clients()
    lost = []
    a.on_lost(lambda: lost.append(True))
    await a.register(":4001")
    port = lab.port
    await lab.server.stop()
    waiting = asyncio.create_task(code_of(a.heartbeat()))
    await asyncio.sleep(0)
    from pilot.registry.server import RegistryServer
    from pilot.registry.store import Store

    again = RegistryServer(Store(lab.path))
    await again.start(lab.host, port)
    try:
        assert await waiting == "not_found"
        assert lost
        assert (await a.register(":4001"))["node_id"] == 1
    finally:
        await again.stop()


async def test_nobody_listens(clients: Callable[..., RegistryClient], monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear error within the deadline, and few attempts: the back-off grows."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        client = clients(port=reserved.getsockname()[1])
        attempts = 0
        connect = pool.Pool._connect

        async def counted(self: pool.Pool, loop: asyncio.AbstractEventLoop) -> object:
            nonlocal attempts
            attempts += 1
            return await connect(self, loop)

        monkeypatch.setattr(pool.Pool, "_connect", counted)
        began = time.monotonic()
        with pytest.raises(PilotError) as caught:
            await client.call("lookup", {"node_id": 1}, deadline_s=1.0)
        assert caught.value.code == "connection_failed" and caught.value.retryable
        assert f"{reserved.getsockname()[1]}" in caught.value.message and "refused" in caught.value.message.lower()
        assert time.monotonic() - began < 2 and attempts <= 3
        assert not client.connected


async def misbehaving(behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]) -> asyncio.Server:
    """A server that runs `behave` with the number of the connection, from 0."""
    count = -1

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await behave(reader, writer, count)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


async def read_request(reader: asyncio.StreamReader) -> dict[str, object]:
    head = await reader.readexactly(4)
    return wire.decode(await reader.readexactly(wire.body_size(head)))[0]


OK = wire.encode({"type": "lookup_ok", "node_id": 1})


async def test_broken_connection_is_repeated_once(clients: Callable[..., RegistryClient]) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read_request(reader)
        if number > 0:
            writer.write(OK)

    server = await misbehaving(behave)
    client = clients(port=server.sockets[0].getsockname()[1])
    assert (await client.lookup(1))["node_id"] == 1
    server.close()


async def test_connection_that_died_silently_is_replaced(
    clients: Callable[..., RegistryClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NAT forgets an idle connection without a word: the call goes out again on a new one, within its deadline."""
    monkeypatch.setattr(pool, "REUSED_S", 0.2)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read_request(reader)
        writer.write(OK)
        if number == 0:
            await read_request(reader)
            await asyncio.sleep(3600)

    server = await misbehaving(behave)
    client = clients(port=server.sockets[0].getsockname()[1])
    for _ in range(2):
        assert (await client.lookup(1))["node_id"] == 1
    server.close()


async def test_a_request_under_way_repeats_itself_when_the_network_changes(clients: Callable[..., RegistryClient]) -> None:
    """Its connection was made from an address that is gone: nobody will ever say so."""
    asked = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read_request(reader)
        if number == 0:
            asked.set()
            await asyncio.sleep(3600)
        writer.write(OK)

    server = await misbehaving(behave)
    client = clients(port=server.sockets[0].getsockname()[1])
    lost = []
    client.on_lost(lambda: lost.append(1))
    calling = asyncio.create_task(client.lookup(1))
    await asked.wait()
    client.reset()
    async with asyncio.timeout(2):
        assert (await calling)["node_id"] == 1
    assert not lost, "the registry has closed nothing"
    server.close()


async def test_silent_registry_times_out(clients: Callable[..., RegistryClient]) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await reader.read()

    server = await misbehaving(behave)
    client = clients(port=server.sockets[0].getsockname()[1])
    with pytest.raises(PilotError) as caught:
        await client.call("lookup", {"node_id": 1}, deadline_s=0.3)
    assert caught.value.code == "timeout" and caught.value.retryable
    server.close()


async def test_late_reply_is_nobody_elses(clients: Callable[..., RegistryClient]) -> None:
    """A call is given up while its reply is on the way: the next call must not get it."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            request = await read_request(reader)
            if request["node_id"] == 1:
                await asyncio.sleep(0.2)
            writer.write(wire.encode({"type": "lookup_ok", "node_id": request["node_id"]}))

    server = await misbehaving(behave)
    client = clients(port=server.sockets[0].getsockname()[1])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.lookup(1)
    assert (await client.lookup(2))["node_id"] == 2
    server.close()


@pytest.mark.parametrize(
    "answer",
    [b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x05hello", OK + OK,
     wire.encode({"type": "heartbeat_ok"}), wire.encode({})],
    ids=["empty", "huge", "list", "text", "two replies", "another reply", "no type"],
)  # fmt: skip
async def test_nonsense_from_the_registry(clients: Callable[..., RegistryClient], answer: bytes) -> None:
    """An error, never a crash or a wrong result; "two replies" spoils the connection, not the client."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await read_request(reader)
        writer.write(answer if number == 0 else OK)
        await reader.read()

    server = await misbehaving(behave)
    client = clients(port=server.sockets[0].getsockname()[1])
    if answer == OK + OK:
        await client.lookup(1)
    else:
        assert await code_of(client.lookup(1)) == "internal"
    server.close()


async def test_many_calls_at_once_share_few_connections(lab: Lab, clients: Callable[..., RegistryClient]) -> None:
    await lab.start()
    a = clients()
    await a.register()
    replies = await asyncio.gather(*(a.lookup(1) for _ in range(50)))
    assert len(replies) == 50
    assert lab.server.stats()["connections_total"] <= pool.MAX_CONNECTIONS


async def test_tls(lab: Lab, clients: Callable[..., RegistryClient], tmp_path: Path) -> None:
    """Pinned: only the certificate with the fingerprint. System trust: not a self-signed one. The certificate is kept."""
    files = tls.ensure_certificate(tmp_path / "tls")
    assert tls.ensure_certificate(tmp_path / "tls") == files and files[1].stat().st_mode & 0o077 == 0
    pin = tls.fingerprint(files[0])
    await lab.start()
    _, port = await lab.server.start(lab.host, 0, tls.server_context(*files))
    good = clients(port=port, tls_trust="pinned", fingerprint=pin.upper())
    assert (await good.register(":1"))["node_id"] == 1
    wrong = clients(port=port, tls_trust="pinned", fingerprint="0" * 64)
    assert await code_of(wrong.register(":1")) == "permission_denied"
    system = clients(port=port, tls_trust="system")
    with pytest.raises(PilotError) as caught:
        await system.call("lookup", {"node_id": 1}, deadline_s=0.4)
    assert "certificate" in caught.value.message.lower()
    plain = clients(port=port)
    assert await code_of(plain.call("lookup", {"node_id": 1}, deadline_s=2)) in ("connection_failed", "timeout", "internal")

    def blocking(fingerprint: str) -> int:
        with BlockingRegistry(lab.host, port, tls_trust="pinned", fingerprint=fingerprint) as registry:
            return int(registry.lookup(1)["node_id"])

    assert await asyncio.to_thread(blocking, pin) == 1
    assert await code_of(asyncio.to_thread(blocking, "0" * 64)) == "permission_denied"


async def test_blocking_client(lab: Lab) -> None:
    await lab.start()
    identity = Identity()

    def use() -> None:
        with BlockingRegistry(lab.host, lab.port) as registry:
            assert registry.register(identity, ":4000", hostname="cli")["node_id"] == 1
            assert registry.lookup(1)["hostname"] == "cli"
            assert registry.resolve_hostname("cli")["node_id"] == 1
            with pytest.raises(PilotError, match="node 9: node not found"):
                registry.lookup(9)
            assert registry._socket is not None
            registry._socket.shutdown(socket.SHUT_RDWR)  # the server closed it while it was idle
            assert registry.lookup(1)["node_id"] == 1

    await asyncio.to_thread(use)


def test_blocking_client_without_a_registry() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with BlockingRegistry("127.0.0.1", reserved.getsockname()[1]) as registry, pytest.raises(PilotError) as caught:
            registry.lookup(1)
    assert caught.value.code == "connection_failed" and caught.value.hint
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with (
            BlockingRegistry("127.0.0.1", silent.getsockname()[1], deadline_s=0.2) as registry,
            pytest.raises(PilotError) as caught,
        ):
            registry.lookup(1)
    assert caught.value.code == "timeout"


def test_blocking_client_starts_fast() -> None:
    """`pilotctl` answers in a blink: no asyncio, ssl or cryptography on the way."""
    heavy = "{'asyncio', 'ssl', 'cryptography', 'sqlite3'} & set(sys.modules)"
    code = f"import sys, pilot.registry.blocking; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
