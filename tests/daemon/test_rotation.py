"""A new identity key: whatever goes wrong in the middle, the node keeps its number, and a key that the registry accepts."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from test_node import dial, read_stream
from world import Agent, World, until

from pilot.daemon import identity
from pilot.daemon.identity import NodeIdentity
from pilot.errors import PilotError
from pilot.wire import ipc_requests as rq
from pilot.wire.frames import KeyLink

DOWN = PilotError("connection_failed", "connection refused", retryable=True)


def lose_answers(agent: Agent, patch: pytest.MonkeyPatch, *, asked: bool = True) -> None:
    """The registry gets the request (or not), and no answer of it comes back."""
    rotate = agent.node.registry.rotate_key

    async def lost(*args: Any) -> Any:
        if asked:
            await rotate(*args)
        raise DOWN

    async def unknown(node: int) -> Any:
        raise DOWN

    patch.setattr(agent.node.registry, "rotate_key", lost)
    patch.setattr(agent.node.registry, "lookup", unknown)


async def registered_key(agent: Agent) -> str:
    return str((await agent.node.registry.lookup(agent.number))["public_key"])


async def consistent(world: World, agent: Agent, number: int) -> None:
    """The node is who it was, at the registry, in memory and after its next start."""
    key = agent.node.identity.public_text
    assert agent.number == number and await registered_key(agent) == key
    assert "time" in await agent.node.registry.heartbeat()
    await agent.stop()
    world.agents.remove(agent)
    again = await world.agent("alpha")
    assert (again.number, again.node.identity.public_text) == (number, key)
    assert not (world.root / "alpha" / "identity.json.next").exists()


@pytest.mark.parametrize("asked", [True, False])
async def test_an_answer_that_is_lost_and_a_second_attempt(world: World, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    a = await world.agent("alpha")
    number, client = a.number, await a.client()
    before = a.node.identity.public_text
    with monkeypatch.context() as patch:
        lose_answers(a, patch, asked=asked)
        assert "connection refused" in await client.ask(rq.RotateKey())
        assert "connection refused" in await client.ask(rq.RotateKey())
    reply = await client.ask(rq.RotateKey())
    assert reply["type"] == "rotate_key_ok" and reply["public_key"] == a.node.identity.public_text != before
    await consistent(world, a, number)


async def test_a_registration_finds_out_what_came_of_a_lost_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the old key, which the registry does not know any more, it would make another node of this one."""
    a = await world.agent("alpha", "-keepalive", "1s")
    number, before = a.number, a.node.identity.public_text
    with monkeypatch.context() as patch:
        lose_answers(a, patch)
        with pytest.raises(PilotError):
            await a.node.rotation.rotate()
        a.node.registration.endpoint_changed()
        await until(lambda: not a.node.registration.reachable, "it waits for the registry")
        assert a.node.identity.public_text == before
    await until(lambda: a.node.identity.public_text != before and a.node.registration.reachable, "completed")
    await consistent(world, a, number)


async def test_the_user_does_not_wait_for_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await world.agent("alpha")
    number, before = a.number, a.node.identity.public_text
    rotate, asked, go = a.node.registry.rotate_key, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        reply = await rotate(*args)
        asked.set()
        await go.wait()
        return reply

    monkeypatch.setattr(a.node.registry, "rotate_key", slow)
    client = await a.client()
    client.send(rq.RotateKey())
    await asked.wait()
    assert "being replaced already" in await (await a.client()).ask(rq.RotateKey())
    await client.close()
    await until(lambda: len(a.node.ipc.clients) == 1, "the client has left")
    registering = asyncio.ensure_future(a.node.registration._register())
    await asyncio.sleep(0.05)
    go.set()
    await registering
    assert a.node.identity.public_text != before
    await consistent(world, a, number)


async def test_a_full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await world.agent("alpha")
    number, before = a.number, a.node.identity.public_text
    write = identity.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(identity, "write_atomic", full)
        text = await (await a.client()).ask(rq.RotateKey())
        assert "the key was replaced, but" in text and "No space left" in text
        assert a.node.identity.public_text != before
    await consistent(world, a, number)


async def test_a_peer_that_was_away_follows_the_chain_of_keys(world: World) -> None:
    """Two changes and a restart later: trust is still there, on both sides, and the old key counts no more."""
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    number, first = a.number, a.node.identity.public_key
    await b.stop()
    world.agents.remove(b)
    for _ in range(2):
        await a.node.rotation.rotate()
    await a.stop()
    world.agents.remove(a)
    a = await world.agent("alpha")
    assert a.number == number and len(a.node.identity.links) == 2
    b = await world.agent("bravo")
    assert b.node.trust.store.trusted[number].public_key == first
    client = await b.client()
    conn = await dial(client, a.address, 7)
    client.send(rq.Send(conn, b"it is me"))
    assert await read_stream(client, conn, 8) == b"it is me"
    assert b.node.trust.store.trusted[number].public_key == a.node.identity.public_key
    assert b.node.traversal._exchange.known_key(number) == a.node.identity.public_key


async def test_a_chain_moves_no_trust_that_the_registry_does_not_confirm(world: World) -> None:
    """Whoever stole a former key can sign anything with it."""
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    number, key, stolen = a.number, a.node.identity.public_key, NodeIdentity.generate()
    trust = b.node.trust
    await trust._follow(number, key, stolen.public_key)
    assert trust.store.trusted[number].public_key == key, "the registry has another key"
    await trust._follow(number, stolen.public_key, key)
    assert trust.store.trusted[number].public_key == key, "not from the pinned key"
    await a.node.registry.rotate_key(stolen)  # the registry has it, and the pinned key has vouched for it, but trust has ended
    await trust.revoke(number)
    await trust._follow(number, key, stolen.public_key)
    assert not trust.store.is_trusted(number)


def test_damaged_links_do_not_keep_a_node_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    file = identity.IdentityFile(path)
    links = (KeyLink(bytes(32), bytes(64)),)
    file.identity.links = links
    file.prepare(NodeIdentity.generate(), 8)
    file.commit()
    file.close()
    file = identity.IdentityFile(path)
    assert file.identity.links == links
    file.close()
    for junk in ("", "{", "[1]", '{"a": 1}', '[{"old": "x"}]', '"x"', "1"):
        path.with_name("identity.json.links").write_text(junk)
        file = identity.IdentityFile(path)
        assert file.identity.links == ()
        file.close()


async def test_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await world.agent("alpha")
    number, before = a.number, a.node.identity.public_text

    async def refused(*args: Any) -> Any:
        raise PilotError("permission_denied", "rotation is off")

    with monkeypatch.context() as patch:
        patch.setattr(a.node.registry, "rotate_key", refused)
        assert "rotation is off" in await (await a.client()).ask(rq.RotateKey())
    assert a.node.identity.public_text == before
    await consistent(world, a, number)
