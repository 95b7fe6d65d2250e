"""Threads that wait for streams: what a blocking program sees in bulk, in conversation, and when the other side goes away."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from planes import LIMIT_S, Client, Daemon, daemons, wait_until

from pilot._core import EV_ACCEPT, EV_CONN_OPEN, OWNER_APP, CoreError

PORT = 700
ENOENT, EEXIST, ESTATE = -8, -9, -10


@pytest.fixture
def pair() -> Iterator[tuple[Daemon, Daemon]]:
    with daemons() as nodes:
        yield nodes


def connect(a: Daemon, b: Daemon, port: int = PORT) -> tuple[int, int]:
    """A connection that the program owns on both sides: (a's number, b's number)."""
    b.plane.listen(port, OWNER_APP)
    conn = a.plane.dial(b.node, port)
    wait_until(lambda: any(e.type == EV_CONN_OPEN and e.conn == conn for e in a.seen))
    wait_until(lambda: any(e.type == EV_ACCEPT and e.local_port == port for e in b.seen))
    accepted = next(e.conn for e in b.seen if e.type == EV_ACCEPT and e.local_port == port)
    a.plane.own(conn, OWNER_APP)
    b.plane.own(accepted, OWNER_APP)
    return conn, accepted


def in_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Runs `work`; the result joins it and raises what it raised."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> None:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        if failed:
            raise failed[0]

    return join


def read_exactly(node: Daemon, conn: int, size: int) -> bytes:
    buffer = bytearray(size)
    at = 0
    while at < size:
        n = node.plane.read_wait(conn, memoryview(buffer)[at:], LIMIT_S)
        assert n
        at += n
    return bytes(buffer)


def test_bulk_arrives_whole(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    out, back = connect(a, b)
    data = random.Random(1).randbytes(24 << 20)
    digest = hashlib.sha256()

    def receive() -> None:
        buffer = bytearray(300_000)
        while n := b.plane.read_wait(back, buffer, LIMIT_S):
            digest.update(memoryview(buffer)[:n])

    join = in_thread(receive)
    assert a.plane.write_wait(out, data, LIMIT_S) == len(data)
    a.plane.close(out)
    join()
    assert digest.digest() == hashlib.sha256(data).digest()


def test_conversation_beside_other_traffic(pair: tuple[Daemon, Daemon]) -> None:
    """Callers that serve the socket themselves serve everybody's traffic: a client's stream goes on meanwhile."""
    a, b = pair
    out, back = connect(a, b)
    rounds, rest = 4000, random.Random(2).randbytes(1 << 20)

    def answer() -> None:
        for _ in range(rounds):
            b.plane.write_wait(back, read_exactly(b, back, 64), LIMIT_S)

    def other() -> None:
        receiver, sender = Client(b), Client(a)
        receiver.bind(900)
        conn = sender.dial(b.node, 900)
        inbound = receiver.accept()
        for at in range(0, len(rest), 4096):
            sender.write(conn, rest[at : at + 4096])
        sender.shut(conn)
        assert receiver.read_all(inbound) == rest
        receiver.close()
        sender.close()

    joins = [in_thread(answer), in_thread(other)]
    for i in range(rounds):
        message = i.to_bytes(8, "big") * 8
        a.plane.write_wait(out, message, LIMIT_S)
        assert read_exactly(a, out, 64) == message
    for join in joins:
        join()


def test_a_caller_that_turns_away_does_not_hold_up_the_node(pair: tuple[Daemon, Daemon]) -> None:
    """After a hot conversation the caller computes; a new stream must open and carry at once."""
    a, b = pair
    out, back = connect(a, b)

    def answer() -> None:
        for _ in range(200):
            b.plane.write_wait(back, read_exactly(b, back, 8), LIMIT_S)

    join = in_thread(answer)
    for _ in range(200):
        a.plane.write_wait(out, b"8 bytes.", LIMIT_S)
        read_exactly(a, out, 8)
    join()
    start = time.monotonic()
    other, inbound = connect(b, a, PORT + 1)
    b.plane.write_wait(other, b"hello", LIMIT_S)
    assert read_exactly(a, inbound, 5) == b"hello"
    assert time.monotonic() - start < 5
    wait_until(lambda: a.plane.unacked(out) == 0 and b.plane.unacked(back) == 0)


def test_nothing_comes_in_time(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    out, _ = connect(a, b)
    start = time.monotonic()
    assert a.plane.read_wait(out, bytearray(10), 0.05) is None
    assert 0.05 <= time.monotonic() - start < 5
    assert a.plane.read_wait(out, bytearray(10), 0) is None
    with pytest.raises(ValueError):
        a.plane.read_wait(out, bytearray(), 0)


def test_a_full_buffer_gives_back_what_it_took(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    out, back = connect(a, b)
    data = bytes(64 << 20)
    took = a.plane.write_wait(out, data, 0.3)
    assert 0 < took < len(data)
    a.plane.close(out)
    assert sum(iter(lambda: b.plane.read_wait(back, bytearray(1 << 20), LIMIT_S), 0)) == took


def test_closed_by_another_thread(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    out, _ = connect(a, b)

    def read() -> None:
        code = EEXIST
        while code == EEXIST:  # the main thread was the first to wait
            with pytest.raises(CoreError) as fault:
                a.plane.read_wait(out, bytearray(10), LIMIT_S)
            code = fault.value.code
        assert code in (ESTATE, ENOENT)

    join = in_thread(read)
    with pytest.raises(CoreError) as fault:  # once the other one waits
        while True:
            assert a.plane.read_wait(out, bytearray(10), 0.001) is None
    assert fault.value.code == EEXIST
    a.plane.close(out)
    join()


def test_reset_by_the_peer(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    out, back = connect(a, b)

    def read() -> None:
        with pytest.raises(CoreError) as fault:
            a.plane.read_wait(out, bytearray(10), LIMIT_S)
        assert fault.value.code == ENOENT

    join = in_thread(read)
    b.plane.abort(back)
    join()


def test_stop_ends_the_wait(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    out, _ = connect(a, b)

    def read() -> None:
        with pytest.raises(CoreError):
            a.plane.read_wait(out, bytearray(10), LIMIT_S)

    join = in_thread(read)
    a.plane.stop()
    join()
