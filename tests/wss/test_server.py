"""The beacon's WebSocket door: who gets in, what passes, and what one client can cost (beacon.md section 11)."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from blocked import certificate
from door import Addr, Door, Identity, Udp, answer, challenge, closed_with, quiet, until
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidMessage, InvalidStatus

from pilot.beacon.wss_session import signed_text
from pilot.registry.connection import Connection
from pilot.registry.server import RegistryServer
from pilot.registry.signatures import Verifier
from pilot.registry.store import MemoryStore
from pilot.registry.tls import server_context
from pilot.wire import beacon as wire

FRAME = b"PILS\x00\x00\x00\x64" + bytes(40)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with Door() as opened:
        yield opened


# HTTP


async def test_health_and_unknown_paths(door: Door) -> None:
    def get(path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=5)
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()

    assert await asyncio.to_thread(get, "/health") == (200, b"ok\n")
    assert (await asyncio.to_thread(get, "/"))[0] == 404
    assert (await asyncio.to_thread(get, "/v1/compat"))[0] == 426, "no WebSocket asked for"
    with pytest.raises(InvalidStatus, match="404"):
        await connect(door.url("/v1/registry"), proxy=None)  # this beacon has no registry


async def test_the_subprotocol_is_agreed_on(door: Door) -> None:
    client = await door.open()
    assert client.subprotocol == "pilot.v1"
    await client.close()
    other = await connect(door.url(), subprotocols=["chat"], proxy=None)  # type: ignore[list-item]
    assert other.subprotocol is None
    await other.close()


# Proof of identity


def test_the_recorded_signature_fits() -> None:
    key = base64.b64decode("gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5Q=")
    signature = base64.b64decode("Z+WtpghprLnFHGHkxa6mdzGufX9cAeGGZ8HRDCTHZsDxFg0sFG5u9ZwNoryfu9/V5nP/3FM7Hmmx7jCVO3x1BQ==")
    text = signed_text(200, 1800000000, "02" * 32)
    assert Verifier().fits(key, text, signature)
    assert not Verifier().fits(key, signed_text(201, 1800000000, "02" * 32), signature)


Spoil = Callable[[dict[str, Any], Identity], dict[str, Any] | str]


@pytest.mark.parametrize("spoil", [
    lambda asked, key: answer(asked, 100, Identity()),
    lambda asked, key: answer(asked | {"nonce": "00" * 32}, 100, key),
    lambda asked, key: answer(asked | {"ts": asked["ts"] - 1}, 100, key),
    lambda asked, key: answer(asked, 100, key, node_id=200),  # the key of another node
    lambda asked, key: answer(asked, 300, key),
    lambda asked, key: answer(asked, 0, key),
    lambda asked, key: answer(asked, 100, key, node_id=True),
    lambda asked, key: answer(asked, 100, key, node_id="100"),
    lambda asked, key: answer(asked, 100, key, node_id=1 << 32),
    lambda asked, key: answer(asked, 100, key, sig="%%%"),
    lambda asked, key: answer(asked, 100, key, sig="AAAA"),
    lambda asked, key: answer(asked, 100, key, sig=7),
    lambda asked, key: answer(asked, 100, key, type="auth"),
    lambda asked, key: "no JSON",
    lambda asked, key: "[" * 60_000,
    lambda asked, key: "[]",
])  # fmt: skip
async def test_nobody_gets_in_without_the_registered_key(door: Door, spoil: Spoil) -> None:
    door.nodes[100], door.nodes[200] = Identity(), Identity()
    client = await door.open()
    said = spoil(await challenge(client), door.nodes[100])
    await client.send(said if isinstance(said, str) else json.dumps(said))
    assert await closed_with(client) == 1008
    assert door.beacon.stats()["attached"] == 0 and door.wss.counts["auth_failed"] == 1


async def test_the_key_counts_that_the_registry_has(door: Door) -> None:
    door.nodes[100] = Identity()
    client = await door.open()
    await client.send(json.dumps(answer(await challenge(client), 100, door.nodes[100], public_key=Identity().public_text)))
    assert json.loads(await client.recv()) == {"type": "auth_ok"}
    await client.close()


async def test_a_registry_that_cannot_be_asked_lets_nobody_in(door: Door) -> None:
    door.nodes[100] = Identity()
    door.registry_down = True
    client = await door.open()
    await client.send(json.dumps(answer(await challenge(client), 100, door.nodes[100])))
    assert await closed_with(client) == 1013, "the client is told to come back later"


async def test_a_challenge_expires() -> None:
    async with Door(fresh_s=-1.0) as door:
        door.nodes[100] = Identity()
        client = await door.open()
        await client.send(json.dumps(answer(await challenge(client), 100, door.nodes[100])))
        assert await closed_with(client) == 1008
        assert client.close_reason == "challenge expired"


async def test_who_does_not_answer_is_sent_away() -> None:
    async with Door(auth_s=0.2) as door:
        client = await door.open()
        assert await closed_with(client) == 1008
        silent = socket.create_connection(("127.0.0.1", door.port))
        silent.setblocking(False)
        async with asyncio.timeout(5):  # not even a request
            assert await asyncio.get_running_loop().sock_recv(silent, 100) == b""
        silent.close()
        late = await door.node(100)  # in time: stays
        assert await quiet(late.recv(), 0.4)
        await late.close()


async def test_nothing_passes_before_the_proof(door: Door) -> None:
    node = await Udp(door.udp).register(200)
    client = await door.open()
    await challenge(client)
    await client.send(wire.relay(100, 200, FRAME))
    await client.send(wire.discover(100))
    await until(lambda: door.wss.counts["early"] == 2, "both arrived")
    assert not node.arrived() and door.beacon.stats()["attached"] == 0
    await client.close()
    node.close()


async def test_a_new_connection_replaces_the_old(door: Door) -> None:
    node = await Udp(door.udp).register(200)
    first = await door.node(100)
    second = await door.node(100)
    assert await closed_with(first) == 1000
    node.socket.send(wire.relay(200, 100, FRAME))
    assert await second.recv() == wire.Deliver(200, FRAME).build()
    await second.send(wire.relay(100, 200, FRAME))
    assert await node.receive() == wire.Deliver(100, FRAME).build()
    assert door.beacon.stats()["attached"] == 1
    await second.close()
    await until(lambda: door.beacon.stats()["attached"] == 0, "the node is gone with its connection")
    node.close()


# Traffic


async def test_datagrams_pass_in_both_directions(door: Door) -> None:
    node, other = await Udp(door.udp).register(200), await door.node(300)
    client = await door.node(100)
    for n in range(300):
        await client.send(wire.relay(100, 200, FRAME + n.to_bytes(2, "big")))
        node.socket.send(wire.relay(200, 100, FRAME + n.to_bytes(2, "big")))
    for n in range(300):
        assert await node.receive() == wire.Deliver(100, FRAME + n.to_bytes(2, "big")).build()
        assert await client.recv() == wire.Deliver(200, FRAME + n.to_bytes(2, "big")).build()
    await client.send(wire.relay(100, 300, FRAME))
    assert await other.recv() == wire.Deliver(100, FRAME).build()
    assert sorted(door.beacon._relay.nodes()[0]) == [100, 200, 300], "gossip tells of all"  # type: ignore[union-attr]
    for it in (client, other):
        await it.close()
    node.close()


async def test_only_deliveries_come_down(door: Door) -> None:
    """No reply to discover, no punch: there is no endpoint to tell."""
    node = await Udp(door.udp).register(200)
    client = await door.node(100)
    await client.send(wire.discover(100))
    await client.send(wire.punch_request(100, 200))
    node.socket.send(wire.punch_request(200, 100))
    assert await quiet(client.recv())
    assert not node.arrived()
    await client.close()
    node.close()


async def test_a_node_speaks_for_itself_alone(door: Door) -> None:
    node = await Udp(door.udp).register(200)
    await (await door.node(300)).send("text is ignored")
    client = await door.node(100)
    for forged in (wire.relay(300, 200, FRAME), wire.relay(200, 200, FRAME), wire.discover(300), wire.Sync(1, (200,)).build()):
        await client.send(forged)
    await client.send(wire.relay(100, 200, b"mine"))
    assert await node.receive() == wire.Deliver(100, b"mine").build()
    assert door.beacon.stats()["spoofed"] == 4 and not node.arrived()
    await client.close()
    node.close()


async def test_the_websocket_wins_over_an_address(door: Door) -> None:
    thief, node = await Udp(door.udp).register(100), await Udp(door.udp).register(200)
    client = await door.node(100)
    await thief.register(100)  # answered, but not believed
    node.socket.send(wire.relay(200, 100, FRAME))
    assert await client.recv() == wire.Deliver(200, FRAME).build()
    thief.socket.send(wire.relay(100, 200, b"forged"))
    await client.send(wire.relay(100, 200, FRAME))
    assert await node.receive() == wire.Deliver(100, FRAME).build()
    assert not thief.arrived() and not node.arrived()
    await client.close()
    thief.close()
    node.close()


async def test_text_and_odd_bytes_do_no_harm(door: Door) -> None:
    node = await Udp(door.udp).register(200)
    client = await door.node(100)
    for odd in ("hello", "", b"", b"\x05", b"\x05" + bytes(7), b"\xff" * 100, b"\x02\x04" + bytes(6)):
        await client.send(odd)
    await client.send([wire.relay(100, 200, FRAME)[:20], wire.relay(100, 200, FRAME)[20:]])  # a message in two frames
    assert await node.receive() == wire.Deliver(100, FRAME).build()
    await client.close()
    node.close()


async def test_large_frames(door: Door) -> None:
    receiver = await door.node(300)
    client = await door.node(100)
    largest = wire.relay(100, 300, bytes(65536 - 9))
    await client.send(largest)
    assert len(await receiver.recv()) == 65536 - 4
    await client.send(largest + b"x")
    assert await closed_with(client) == 1009
    await receiver.close()


async def test_idle_connections_are_closed() -> None:
    """What counts are binary messages: a ping is not a sign of a node."""
    async with Door(idle_s=0.5) as door:
        client, lazy = await door.node(100), await door.node(200)
        for _ in range(8):
            await asyncio.sleep(0.1)
            await client.send(wire.discover(100))
            if lazy.close_code is None:
                await lazy.ping()
                await lazy.send("text")
        assert await closed_with(lazy) == 1001
        assert client.close_code is None and door.beacon.stats()["attached"] == 1
        await client.close()


async def test_a_slow_reader_costs_packets_not_memory(door: Door) -> None:
    node, other = await Udp(door.udp).register(200), await door.node(300)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", door.port))
    client = await door.node(100, sock=raw, max_queue=1)
    session = door.wss._by_node[100]
    assert session.transport is not None
    held = 0
    for n in range(12_000):
        node.socket.send(wire.relay(200, 100, bytes(1200)))
        if n % 50 == 0:
            await asyncio.sleep(0)
            held = max(held, session.transport.get_write_buffer_size())
    await until(lambda: door.wss.counts["delivered"] + door.wss.counts["dropped"] + door.beacon.stats()["hand_full"] >= 11_000,
                "the beacon has dealt with it")  # fmt: skip
    assert door.wss.counts["dropped"] > 1000 and session.congested
    assert held < 1 << 20, f"{held} bytes held for a client that does not read"
    node.socket.send(wire.relay(200, 300, b"still served"))
    assert await other.recv() == wire.Deliver(200, b"still served").build()

    async def drain() -> None:
        while await client.recv() != wire.Deliver(200, b"the end").build():
            pass

    async with asyncio.TaskGroup() as tasks:
        draining = tasks.create_task(drain())
        while not draining.done():  # it reads again: it is served again
            node.socket.send(wire.relay(200, 100, b"the end"))
            await asyncio.sleep(0.02)
    for it in (client, other):
        await it.close()
    node.close()


async def test_pings_without_end_are_not_answered_for_ever(door: Door) -> None:
    """A client that asks for pongs and reads none of them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1)
    writer.write(b"GET /v1/compat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")  # fmt: skip
    await reader.read(1)
    ping = b"\x89\xfd" + bytes(4) + bytes(125)
    with pytest.raises(OSError):
        async with asyncio.timeout(20):
            for _ in range(2000):
                writer.write(ping * 500)
                await writer.drain()
    writer.transport.abort()


async def test_connections_from_one_address_are_counted(tmp_path: Path) -> None:
    made = certificate(tmp_path, "127.0.0.1")
    async with Door(max_per_ip=3, tls=server_context(*made)) as door:
        trust = ssl.create_default_context(cafile=str(made[0]))
        held = [await door.open(ssl=trust) for _ in range(3)]
        with pytest.raises((OSError, EOFError, InvalidMessage)):
            await door.open(ssl=trust)
        assert door.wss.counts["refused"] == 1
        await held[0].close()
        await until(lambda: door.wss.stats()["wss_connections_open"] == 2, "one is free")
        await (await door.open(ssl=trust)).close()
        for it in held[1:]:
            await it.close()


async def test_behind_a_terminator_all_have_one_address() -> None:
    async with Door(max_per_ip=1) as door:
        held = [await door.open() for _ in range(3)]
        for it in held:
            await it.close()


async def test_notify_reaches_those_who_know_it(door: Door) -> None:
    plain = await door.node(100)
    key = door.nodes[200] = Identity()
    ours = await door.open()
    await ours.send(json.dumps(answer(await challenge(ours), 200, key, accept=["notify", 7])))
    assert json.loads(await ours.recv()) == {"type": "auth_ok"}
    door.beacon.notify(100)
    door.beacon.notify(200)
    assert await ours.recv() == wire.Notify(wire.NOTIFY_HANDSHAKE).build()
    assert await quiet(plain.recv())
    for it in (ours, plain):
        await it.close()


async def test_an_orderly_end(door: Door) -> None:
    client = await door.node(100)
    await door.beacon.stop()
    assert await closed_with(client) == 1001


# The registry behind the same door


@pytest.fixture
async def registry() -> AsyncIterator[RegistryServer]:
    server = RegistryServer(MemoryStore())
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()


def frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


async def test_the_registry_is_reached_through_the_door(registry: RegistryServer) -> None:
    door = Door()
    door.connection = lambda: Connection(registry)
    async with door:
        seen: list[Addr] = []
        answered = registry.answer

        def spy(connection: Connection, request: dict[str, Any]) -> Any:
            seen.append((connection.ip, connection.peer.port))
            return answered(connection, request)

        registry.answer = spy  # type: ignore[method-assign]
        client = await connect(
            door.url("/v1/registry"), proxy=None, compression=None, additional_headers={"X-Forwarded-For": "1.2.3.4, 203.0.113.9"}
        )
        request = frame({"type": "lookup", "node_id": 77})
        await client.send(request[:3])  # message boundaries mean nothing
        await client.send(request[3:] + request)
        reply = b""
        while len(reply) < 4 or len(reply) < 2 * (4 + int.from_bytes(reply[:4], "big")):
            part = await client.recv()
            assert isinstance(part, bytes)
            reply += part
        body = json.loads(reply[4 : 4 + int.from_bytes(reply[:4], "big")])
        assert body["type"] == "error"
        assert [ip for ip, _ in seen] == ["203.0.113.9"] * 2, "the client as the TLS terminator on this host names it"
        await client.send(b"\xff\xff\xff\xff")
        assert await closed_with(client) == 1000, "a broken frame ends the connection"
        assert registry.stats()["connections_open"] == 0


# What strangers cost


UPGRADE = (b"GET /v1/compat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n")  # fmt: skip


async def raw(door: Door, first: bytes = UPGRADE) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(first)
    return reader, writer


async def cut(reader: asyncio.StreamReader) -> bool:
    """The server ends the connection."""
    try:
        async with asyncio.timeout(10):
            while await reader.read(65536):
                pass
    except ConnectionError:
        pass
    return True


def masked(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    assert len(payload) < 126
    return bytes((opcode | (0x80 if fin else 0), 0x80 | len(payload))) + bytes(4) + payload


async def test_a_request_that_never_ends() -> None:
    """Slowly or without end: nobody waits longer than the time for the proof, and little of it is kept."""
    async with Door(auth_s=0.5) as door:
        slow, endless = await raw(door, UPGRADE[:40]), await raw(door, b"GET /" + b"x" * 200_000)
        assert await cut(endless[0]), "a line that long is no request"
        for _ in range(4):
            slow[1].write(b"X-Y: z\r\n")
            await asyncio.sleep(0.05)
        assert await cut(slow[0])
        mute = await raw(door, b"")
        assert await cut(mute[0]) and door.wss.stats()["wss_connections_open"] == 0
        assert door.wss.counts["auth_timeout"] == 2
        for _, writer in (slow, endless, mute):
            writer.close()


@pytest.mark.parametrize("noise", [
    masked(0x9, bytes(125)) * 2000, masked(0x2, b"") * 200_000, masked(0x1, b"", False) + masked(0x0, b"", False) * 200_000,
], ids=["pings", "empty messages", "empty fragments"])  # fmt: skip
async def test_noise_before_the_proof(door: Door, noise: bytes) -> None:
    reader, writer = await raw(door)
    writer.write(noise)
    assert await cut(reader)
    assert door.wss.counts["talkative"] == 1
    writer.close()


async def test_fragments_without_content_are_not_kept(door: Door) -> None:
    client = await door.node(100)
    session = door.wss._by_node[100]
    transport = client.transport
    transport.write(masked(0x2, b"", False) + masked(0x0, b"", False) * 50_000)
    await until(lambda: session.frames >= 50_000, "all have been looked at")
    assert session._parts == b"" and session.open
    transport.abort()


async def test_tiny_frames_keep_nobody_waiting(door: Door) -> None:
    """One node sends as many frames as fit the line; the loop has time for the others all the same, and then for it."""
    door.wss.config = dataclasses.replace(door.wss.config, frames_per_s=5000.0, frames_burst=5000.0)
    client, other = await door.node(100), await door.node(200)
    flood = masked(0x2, b"\xff") * 20_000
    client.transport.write(flood)
    longest = 0.0
    loop = asyncio.get_running_loop()
    for _ in range(50):
        before = loop.time()
        await asyncio.wait_for(await other.ping(), 10)
        longest = max(longest, loop.time() - before)
    assert door.wss.counts["throttled"] > 0 and longest < 1.0
    node = await Udp(door.udp).register(300)
    client.transport.write(masked(0x2, wire.relay(100, 300, b"PILS")))
    assert await node.receive() == wire.Deliver(100, b"PILS").build(), "nothing of it is lost"
    for it in (client, other):
        it.transport.abort()
    node.close()


async def test_strangers_give_way_to_newcomers() -> None:
    async with Door(max_connections=3) as door:
        node = await door.node(100)
        strangers = [await raw(door) for _ in range(2)]
        await until(lambda: door.wss.stats()["wss_connections_open"] == 3, "all are in")
        other = await door.node(200)
        assert await cut(strangers[0][0]) and door.wss.counts["displaced"] == 1
        third = await door.node(300)
        with pytest.raises((OSError, EOFError, InvalidMessage)):
            await door.open()
        await node.send(wire.relay(100, 300, FRAME))
        assert await third.recv() == wire.Deliver(100, FRAME).build()
        for it in (node, other, third):
            await it.close()
        for _, writer in strangers:
            writer.close()


async def test_refusals_are_counted_not_logged(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door.nodes[100] = Identity()
    with caplog.at_level("INFO"):
        for down in (False, True, True):
            door.registry_down = down
            for _ in range(5):
                client = await door.open()
                await client.send(json.dumps(answer(await challenge(client), 100, Identity())))
                assert await closed_with(client) in (1008, 1013)
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once that the registry is out of reach"
    assert door.wss.counts["auth_failed"] == 5 and door.wss.counts["not_judged"] == 10


async def test_proofs_wait_for_the_registry_in_a_short_line() -> None:
    async with Door(judged_per_ip=2) as door:
        door.nodes[100] = Identity()
        asked = asyncio.Event()

        async def slow(node: int) -> bytes | None:
            await asked.wait()
            return door.nodes[100].public_key

        door.wss.key_of = slow
        clients = [await door.open() for _ in range(3)]
        for client in clients:
            await client.send(json.dumps(answer(await challenge(client), 100, Identity())))
        codes = [asyncio.create_task(closed_with(client)) for client in clients]
        await until(lambda: any(task.done() for task in codes), "one is sent away")
        asked.set()
        assert sorted([await task for task in codes]) == [1008, 1008, 1013]
