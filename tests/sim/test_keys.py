"""Sessions under attack and under rotation, end to end: real frames through real engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simworld import SimIdentity, SimNode, World
from test_events import Stream, connected
from test_matrix import RTT_S, talk

from pilot.traversal.decisions import Step
from pilot.traversal.path_actions import Phase


def record(world: World) -> list[tuple[tuple[str, int], tuple[str, int], bytes]]:
    """Collects every datagram that travels between hosts."""
    tape: list[tuple[tuple[str, int], tuple[str, int], bytes]] = []

    def listen(src: tuple[str, int], dst: tuple[str, int], data: bytes) -> bool:
        tape.append((src, dst, data))
        return False

    world.block = listen
    return tape


def public_pair(seed: int) -> tuple[World, SimNode, SimNode]:
    world = World(seed)
    a, b = world.pair("none", "none")
    return world, a, b


@pytest.mark.parametrize("seed", range(3))
def test_replayed_exchange_moves_nothing(seed: int) -> None:
    """Old PILA frames of a former process of b, replayed at a from anywhere, neither stop the stream nor move
    the path."""
    world, a, b = public_pair(seed)
    tape = record(world)
    connected(world, a, b)
    frames = [data[5:] if data[0] == 6 else data for _, dst, data in tape if dst == a.inside]  # relayed or not
    old = [frame for frame in frames if frame[:4] == b"PILA"]
    assert old
    b.stop()
    b.start()
    b.trust(a)
    a.stop()  # a forgets what it knew of b's old keys
    a.start()
    a.trust(b)
    stream = Stream(world, a, b, connected(world, a, b))
    world.run(4.0)
    before = a.engine.peer_info(b.number)
    at = world.now_ns
    for i in range(40):
        source = ("203.0.113.66", 1000 + i)
        frame = old[i % len(old)]
        world.at(world.now_ns + i * 150_000_000, lambda s=source, d=frame: a.input(d, s))
    world.run(12.0)
    after = a.engine.peer_info(b.number)
    assert stream.gap_s(at) < 0.1
    assert before["key_id"] == after["key_id"] and before["path"] == after["path"]
    assert not any(d.step is Step.LOST for d in a.decisions[-20:] + b.decisions[-20:])
    stream.finish()
    assert a.paths.exchange.stats.stale_key > 0


@pytest.mark.parametrize("seed", range(3))
def test_rotation_loses_nothing(seed: int) -> None:
    """Both sides replace their keys while a stream runs: new keys in force within seconds, no gap, no byte
    lost."""
    world, a, b = public_pair(seed)
    stream = Stream(world, a, b, connected(world, a, b))
    world.run(2.0)
    keys = [n.engine.peer_info(m.number)["key_id"] for n, m in ((a, b), (b, a))]
    at = world.now_ns
    for node in (a, b):
        assert node.paths.exchange.rotate(world.now)
        assert not node.paths.exchange.rotate(world.now)
        node.paths.flush(world.now)
        world.run(3.0)
    assert stream.gap_s(at) < 0.15
    now = [n.engine.peer_info(m.number)["key_id"] for n, m in ((a, b), (b, a))]
    assert keys[0] != now[0] and keys[1] != now[1]
    stream.finish()
    world.run(30.0)
    assert talk(world, b, a) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_rotation_of_both_at_once_loses_nothing(seed: int) -> None:
    """Traffic brings both ends of a bulk stream to the end of their keys in the same moment."""
    world, a, b = public_pair(seed)
    stream = Stream(world, a, b, connected(world, a, b))
    world.run(2.0)
    at, before = world.now_ns, [n.engine.peer_info(m.number)["key_id"] for n, m in ((a, b), (b, a))]
    for node in (a, b):
        assert node.paths.exchange.rotate(world.now)
        node.paths.flush(world.now)
    world.run(15.0)  # beyond the life of the former keys
    assert all(n.engine.peer_info(m.number)["key_id"] != k for n, m, k in zip((a, b), (b, a), before, strict=True))
    assert stream.gap_s(at) < 0.15
    stream.finish()


def test_rotation_with_many_peers() -> None:
    """Forty peers move over to the new key one after the other."""
    world = World(9)
    world.beacon()
    hub = world.node(1, "203.0.113.1")
    peers = [world.node(n, f"203.0.113.{n}") for n in range(2, 42)]
    for peer in peers:
        hub.trust(peer)
        peer.trust(hub)
    world.run(1.0)
    conns = [p.dial(hub) for p in peers]
    assert world.run(10.0, lambda: all(c in p.open for p, c in zip(peers, conns, strict=True)))
    world.run(2.0)
    before = {p.number: hub.engine.peer_info(p.number)["key_id"] for p in peers}
    hub.paths.exchange.rotate(world.now)
    world.run(6.0)
    after = {p.number: hub.engine.peer_info(p.number)["key_id"] for p in peers}
    assert all(before[n] != after[n] for n in before)
    assert not any(d.step is Step.LOST for d in hub.decisions)


def test_hostile_registry_cannot_swap_a_pinned_key() -> None:
    """The registry hands out the attacker's key for b, and the attacker answers for b: a, who pinned b,
    refuses and says so."""
    world, a, b = public_pair(2)
    a.paths.exchange.pin(b.number, b.identity.public_key)
    world.run(1.0)
    mallory = SimIdentity("mallory")
    b.stop()
    b.identity = mallory
    b.start()
    b.trust(a)
    a.dial(b)
    world.run(20.0)
    assert not a.paths.exchange.has_session(b.number)
    refused = [d for d in a.decisions if d.step is Step.KEY_REFUSED]
    assert refused and "another identity" in refused[0].text


def test_changed_identity_is_asked_about_once_more() -> None:
    """Without a pin a new identity in the registry is followed, after asking past the cache."""
    world, a, b = public_pair(3)
    connected(world, a, b)
    b.stop()
    b.identity = SimIdentity("new owner")
    b.start()
    b.trust(a)
    world.run(1.0)
    assert talk(world, a, b) < 5.0


def test_lost_session_comes_back() -> None:
    """One side drops the session (idle, or full): the next frame of the other brings it back."""
    world, a, b = public_pair(4)
    conn = connected(world, a, b)
    world.run(5.0)
    b.engine.drop_session(a.number)
    a.send(conn, b"still there?" * 10)
    assert world.run(5.0, lambda: b.received(a).endswith(b"still there?"))
    assert a.machine(b).phase is Phase.DIRECT


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stale", [False, True])
def test_a_cold_dial_by_the_registrys_word(seed: int, stale: bool) -> None:
    """One round trip after the registry's answer; an announcement of a former process costs what there is without one."""
    world = World(seed)
    a, b = world.pair("symmetric", "symmetric")
    world.run(1.0)
    if stale:
        told = world.announced[b.number]
        b.stop()
        b.start()
        b.trust(a)
        world.run(1.0)
        world.announced[b.number] = told
    first_byte = talk(world, a, b)
    assert a.paths.exchange.stats.foretold == 1
    assert first_byte < (4 if stale else 3) * RTT_S + 0.020
    world.run(5.0)
    assert a.paths.exchange.is_proved(b.number) and a.paths.exchange.stats.foretold == 1


@pytest.mark.parametrize("late_s", [0.01, 0.08])
def test_a_first_frame_that_comes_before_its_key(late_s: float) -> None:
    """The answering side learns who is dialling when the SYN is there already: it costs that wait and no repetition."""
    world = World(1)
    a, b = world.pair("symmetric", "port_restricted")
    ask = world.ask_registry

    def slow(node: SimNode, question: Callable[[], object], answer: Callable[..., None]) -> None:
        wait = late_s if node is b else 0.0
        world.at(world.now_ns + int(wait * 1e9), lambda: ask(node, question, answer))

    world.ask_registry = slow  # type: ignore[method-assign]
    world.run(3.0)
    first_byte = talk(world, a, b)
    assert a.paths.exchange.stats.foretold == 1 and b.engine.stats()["opened_early"] >= 1
    assert first_byte < 2 * RTT_S + world.registry_delay_s + late_s
