"""A peer that is gone is noticed, one that only pauses is waited for, one that has started anew loses its old streams at once."""

from __future__ import annotations

import pytest
from simworld import SimNode, World
from test_events import Stream, connected

from pilot.traversal.decisions import Step
from pilot.traversal.health import GONE_S, Health
from pilot.traversal.path_actions import Phase
from pilot.wire.frames import Capabilities

SITES = [("none", "none"), ("port_restricted", "restricted"), ("symmetric", "symmetric")]


def pair(seed: int, kinds: tuple[str, str]) -> tuple[World, SimNode, SimNode, int]:
    """Connected on the best tier, with a stream from a to b."""
    world = World(seed)
    a, b = world.pair(*kinds)
    conn = connected(world, a, b, Phase.RELAYED if kinds[0] == "symmetric" else Phase.DIRECT)
    return world, a, b, conn


@pytest.mark.parametrize("kinds", SITES)
@pytest.mark.parametrize("seed", range(2))
def test_streams_end_fifteen_seconds_after_the_peer_has(kinds: tuple[str, str], seed: int) -> None:
    world, a, b, conn = pair(seed, kinds)
    Stream(world, a, b, conn).on = bool(seed)  # the other one only has something unacknowledged
    a.send(conn, b"are you there?")
    world.run(3.0)
    b.stop()
    at = world.now
    a.send(conn, b"and now?")
    assert world.run(40.0, lambda: conn in a.closed)
    assert GONE_S - 1.0 < world.now - at < GONE_S + 3.0
    assert any(d.step is Step.STREAMS_ENDED for d in a.decisions)


@pytest.mark.parametrize("kinds", SITES)
def test_an_idle_stream_ends_after_the_next_keepalive(kinds: tuple[str, str]) -> None:
    world, a, b, conn = pair(7, kinds)
    world.run(30.0)
    b.stop()
    assert world.run(45.0, lambda: conn in a.closed)


@pytest.mark.parametrize("way", ["stopped", "asleep", "cut off", "restarting router"])
@pytest.mark.parametrize("kinds", SITES)
@pytest.mark.parametrize("both", [False, True])
def test_ten_seconds_of_silence_break_nothing(way: str, kinds: tuple[str, str], both: bool) -> None:
    world, a, b, conn = pair(3, kinds)
    back = b.dial(a)
    assert world.run(5.0, lambda: back in b.open)
    streams = [Stream(world, a, b, conn), Stream(world, b, a, back)] if both else []
    world.run(2.0)
    if way == "stopped":
        b.halt()
    elif way == "asleep":
        b.sleep()
    elif way == "cut off":
        b.udp_blocked = True
    elif b.nat:
        b.nat.reset()
    world.run(10.0)
    b.udp_blocked = False
    b.resume()
    b.wake()
    world.run(30.0)
    assert conn not in a.closed and back not in b.closed
    for stream in streams:
        stream.finish()


@pytest.mark.parametrize("own_kind", [True, False])
@pytest.mark.parametrize("idle_s", [1.0, 40.0])
def test_former_streams_end_when_the_peer_comes_back_anew(own_kind: bool, idle_s: float) -> None:
    world, a, b, conn = pair(5, ("port_restricted", "restricted"))
    if not own_kind:
        for node, other in ((a, b), (b, a)):
            node.caps = Capabilities()  # as if each were of another kind
            node.stop()
            node.start()
            node.trust(other)
        conn = connected(world, a, b)
    world.run(idle_s)
    b.stop()
    world.run(1.0)
    b.start()
    b.trust(a)
    again = b.dial(a)
    assert world.run(5.0, lambda: again in b.open)
    assert world.run(1.0, lambda: conn in a.closed)
    world.run(20.0)
    assert again not in b.closed and any(i.accepted for i in a.inboxes.values())
    assert any(d.step is Step.STREAMS_ENDED for d in a.decisions) is not own_kind


def test_who_stood_still_itself_blames_nobody() -> None:
    """A process that was stopped for a minute looks again before it takes the silence for the peer's."""
    health = Health()
    health.probe_sent(100.0, True)
    for now in (100.5, 101.0, 101.5):
        assert not health.gone(now, 99.0)
    assert not health.gone(161.5, 99.0)  # stopped
    assert not health.gone(162.0, 99.0)
    assert not any(health.gone(162.0 + i / 2, 99.0) for i in range(1, 19))
    assert any(health.gone(173.0 + i / 2, 99.0) for i in range(12))


def test_an_answer_counts_however_late() -> None:
    health = Health()
    for i in range(100):
        now = 100.0 + i / 2
        health.probe_sent(now, True)
        assert not health.gone(now, 100.0 + i // 28 * 14.0)
