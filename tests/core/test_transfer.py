"""Streams between real engines on virtual time: exact bytes, once, in order, whatever the network does."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from virtualnet import MS, Host, Link, VirtualNet

from pilot._core import (
    DIAL_REFUSED,
    DIAL_TIMEOUT,
    EV_ACCEPT,
    EV_CONN_CLOSED,
    EV_CONN_FAILED,
    EV_CONN_OPEN,
    EV_DATAGRAM,
    EV_READABLE,
    EV_SESSION_PROVED,
    EV_WRITABLE,
    OWNER_APP,
    OWNER_ECHO,
)

PORT = 1000


def pair(seed: int, link: Link | None = None, own_kind: bool = True) -> tuple[VirtualNet, Host, Host]:
    net = VirtualNet(seed, link)
    a, b = net.add(1, "192.0.2.1"), net.add(2, "192.0.2.2")
    net.introduce(a, b, own_kind)
    return net, a, b


def peer(host: Host, node: int) -> dict[str, Any]:
    info = host.engine.peer_info(node)
    assert info is not None
    return info


def serve(host: Host) -> None:
    """Reads every accepted connection to its end."""
    host.engine.listen(PORT, OWNER_APP)

    def on_event(ev) -> None:  # type: ignore[no-untyped-def]
        if ev.type == EV_ACCEPT:
            host.engine.own(ev.conn, OWNER_APP)
        elif ev.type == EV_READABLE and host.read_all(ev.conn):
            host.engine.close(ev.conn)

    host.on_event = on_event


def send(host: Host, peer: Host, payload: bytes) -> int:
    conn = host.engine.dial(peer.node, PORT, timeout=60)
    view = memoryview(payload)
    sent = 0

    def pump() -> None:
        nonlocal sent
        while sent < len(view):
            n = host.engine.write(conn, view[sent : sent + 65536])
            if n == 0:
                return
            sent += n
        host.engine.close(conn)

    def on_event(ev) -> None:  # type: ignore[no-untyped-def]
        if ev.type == EV_CONN_OPEN and ev.conn == conn:
            host.engine.own(conn, OWNER_APP)
            pump()
        elif ev.type == EV_WRITABLE and ev.conn == conn:
            pump()

    host.on_event = on_event
    return conn


def transfer(seed: int, size: int, link: Link, own_kind: bool, limit_s: float = 300) -> None:
    net, a, b = pair(seed, link, own_kind)
    payload = random.Random(seed).randbytes(size)
    serve(b)
    send(a, b, payload)
    done = net.run(lambda: bool(b.ended), limit_s)
    got = next(iter(b.received.values()), bytearray())
    assert done, f"seed {seed}: {len(got)} of {size} bytes after {net.now / 1e9:.1f} s virtual; {a.engine.conns()}"
    assert bytes(got) == payload, f"seed {seed}: bytes differ"


@pytest.mark.parametrize("own_kind", [True, False], ids=["own", "plain"])
def test_clean_path(own_kind: bool) -> None:
    transfer(1, 4 << 20, Link(delay=10 * MS), own_kind)


RUNS = int(os.environ.get("PILOT_SIM_RUNS", "1000"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("chunk", range(10))
def test_a_thousand_bad_networks(chunk: int) -> None:
    """1 MB under loss 0-10 %, reordering and duplication; each seed is a network of its own."""
    for i in range(RUNS // 10):
        seed = chunk * 100_000 + i
        rng = random.Random(seed)
        link = Link(
            delay=rng.randrange(1, 40) * MS,
            jitter=rng.choice([0, 1, 5]) * MS,
            loss=rng.uniform(0, 0.10),
            duplicate=rng.choice([0, 0.01, 0.05]),
            reorder=rng.choice([0, 0.01, 0.05]),
        )
        transfer(seed, 1 << 20, link, own_kind=bool(seed % 2), limit_s=600)


@pytest.mark.parametrize("own_kind", [True, False], ids=["own", "plain"])
def test_loss_of_two_percent_does_not_collapse(own_kind: bool) -> None:
    net, a, b = pair(7, Link(delay=15 * MS, loss=0.02), own_kind)
    payload = random.Random(7).randbytes(5 << 20)
    serve(b)
    start = net.now
    send(a, b, payload)
    assert net.run(lambda: bool(b.ended), 60)
    assert (net.now - start) / 1e9 < (2.0 if own_kind else 6.0), "5 MB at 30 ms and 2 % loss"


def test_echo_port() -> None:
    net, a, b = pair(3)
    b.engine.listen(7, OWNER_ECHO)
    conn = a.engine.dial(2, 7)
    payload = random.Random(3).randbytes(300_000)
    state = {"sent": 0}

    def on_event(ev) -> None:  # type: ignore[no-untyped-def]
        if ev.type == EV_CONN_OPEN:
            a.engine.own(conn, OWNER_APP)
        if ev.type in (EV_CONN_OPEN, EV_WRITABLE):
            while state["sent"] < len(payload):
                n = a.engine.write(conn, payload[state["sent"] : state["sent"] + 8192])
                if not n:
                    break
                state["sent"] += n
        if ev.type == EV_READABLE:
            a.read_all(conn)

    a.on_event = on_event
    assert net.run(lambda: len(a.received.get(conn, b"")) == len(payload))
    assert bytes(a.received[conn]) == payload


def test_refused_when_nobody_listens() -> None:
    net, a, _ = pair(4)
    a.engine.dial(2, 999)
    assert net.run(lambda: bool(a.of_type(EV_CONN_FAILED)), 5)
    assert a.of_type(EV_CONN_FAILED)[0].a == DIAL_REFUSED
    assert a.engine.conns() == []


def test_untrusted_syn_is_met_with_silence() -> None:
    net, a, b = pair(5)
    b.engine.set_trusted(1, False)
    serve(b)
    a.engine.dial(2, PORT, timeout=3)
    assert net.run(lambda: bool(a.of_type(EV_CONN_FAILED)), 10)
    assert a.of_type(EV_CONN_FAILED)[0].a == DIAL_TIMEOUT
    assert b.engine.stats()["drop_untrusted"] >= 3
    assert b.engine.conns() == []


def test_public_node_accepts_strangers() -> None:
    net, a, b = pair(6)
    b.engine.set_trusted(1, False)
    b.engine.set_public(True)
    serve(b)
    send(a, b, b"hello")
    assert net.run(lambda: bool(b.ended), 5)


def test_datagrams_arrive_or_are_gated() -> None:
    net, a, b = pair(8)
    b.engine.listen(5000, OWNER_APP)
    a.engine.send_datagram(2, 5000, b"one")
    assert net.run(lambda: bool(b.of_type(EV_DATAGRAM)), 2)
    assert b.of_type(EV_DATAGRAM)[0].data == b"one"
    b.engine.set_trusted(1, False)
    a.engine.send_datagram(2, 5000, b"two")
    net.run(lambda: b.engine.stats()["drop_untrusted"] == 1, 2)
    assert [ev.data for ev in b.of_type(EV_DATAGRAM)] == [b"one"]


def test_junk_and_tampering_do_no_harm() -> None:
    """Truncated, bit-flipped, replayed and plaintext datagrams in the middle of a transfer."""
    net, a, b = pair(9)
    rng = random.Random(9)
    payload = rng.randbytes(1 << 20)
    serve(b)
    send(a, b, payload)
    addresses = [a.addr, b.addr]

    def tap(data: bytes, src, dst) -> bool:  # type: ignore[no-untyped-def]
        if rng.random() < 0.3:
            damaged = bytearray(data)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            for junk in (bytes(damaged), data[: rng.randrange(len(data))], b"PILT" + data[4:], rng.randbytes(50), data):
                if junk:
                    net.hosts[dst].engine.input(junk, rng.choice(addresses), net.now)
        return True

    net.tap = tap
    assert net.run(lambda: bool(b.ended), 60)
    assert bytes(next(iter(b.received.values()))) == payload
    stats = b.engine.stats()
    assert stats["drop_auth"] > 0 and stats["drop_replay"] > 0 and stats["drop_plaintext"] > 0


def test_pending_key_takes_over_only_when_proved() -> None:
    net, a, b = pair(10)
    serve(b)
    net.run(lambda: False, 1)
    # A key that only `a` knows: whoever replayed an old exchange cannot prove it, so traffic must go on under the old one.
    a.engine.install_key(2, b"\x55" * 32, 99)
    send(a, b, b"x" * 100_000)
    assert net.run(lambda: bool(b.ended), 10)
    assert peer(a, 2)["key_id"] != 99
    # The same key at both ends, proved by a probe: it takes over without breaking anything.
    a.engine.install_key(2, b"\x66" * 32, 77)
    b.engine.install_key(1, b"\x66" * 32, 77)
    a.engine.probe(2, b.addr, False, 1234)
    assert net.run(lambda: peer(a, 2)["key_id"] == 77 and peer(b, 1)["key_id"] == 77, 5)
    assert any(ev.a == 77 for ev in a.of_type(EV_SESSION_PROVED))


def test_path_mtu_grows_to_what_the_path_carries() -> None:
    net, a, b = pair(11, Link(delay=5 * MS, mtu=1472))
    assert peer(a, 2)["mss"] == 1152
    a.engine.probe(2, b.addr, False, 1)  # nothing large goes to a peer that has not proved its key
    net.run(lambda: peer(a, 2)["mss"] == 1472 - 70, 20)
    assert peer(a, 2)["mss"] == 1472 - 70


def test_many_streams_share_and_all_finish() -> None:
    net, a, b = pair(12, Link(delay=10 * MS, rate=12_500_000, queue=512 * 1024))
    serve(b)
    pending: dict[int, int] = {}
    for _ in range(32):
        pending[a.engine.dial(2, PORT)] = 0
    data = bytes(100_000)

    def on_event(ev) -> None:  # type: ignore[no-untyped-def]
        if ev.conn in pending and ev.type in (EV_CONN_OPEN, EV_WRITABLE):
            if ev.type == EV_CONN_OPEN:
                a.engine.own(ev.conn, OWNER_APP)
            while pending[ev.conn] < len(data):
                n = a.engine.write(ev.conn, data[pending[ev.conn] :])
                pending[ev.conn] += n
                if not n:
                    return
            a.engine.close(ev.conn)

    a.on_event = on_event
    assert net.run(lambda: len(b.ended) == 32, 60)
    assert all(len(x) == len(data) for x in b.received.values())
    net.run(lambda: not a.engine.conns() and not b.engine.conns(), 60)
    assert a.engine.conns() == [] and b.engine.conns() == []
    assert len(a.of_type(EV_CONN_CLOSED)) == 32


def test_blackout_ends_in_a_reset_not_a_hang() -> None:
    net, a, b = pair(13)
    serve(b)
    send(a, b, bytes(10 << 20))
    net.run(lambda: bool(b.received), 5)
    net.link.loss = 1.0
    assert net.run(lambda: bool(a.of_type(EV_CONN_CLOSED)), 300)
    assert a.of_type(EV_CONN_CLOSED)[0].a == 1


def test_streams_of_a_restarted_peer_end_at_once() -> None:
    """The peer knows nothing but the repeated key exchange: what still comes for its former streams is answered by a reset."""
    net, a, b = pair(14)
    serve(b)
    send(a, b, bytes(10 << 20))
    assert net.run(lambda: bool(b.received), 5)
    b.restart()
    net.introduce(a, b, key=b"\x77" * 32)
    b.engine.probe(a.node, a.addr, False, 1)  # proves the new key
    began = net.now
    assert net.run(lambda: bool(a.of_type(EV_CONN_CLOSED)), 30)
    assert a.of_type(EV_CONN_CLOSED)[0].a == 1
    assert net.now - began < 2000 * MS
