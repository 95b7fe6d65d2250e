"""The data plane on real sockets: what programs behind the Unix socket, and Python behind the bindings, see."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from planes import CLOSE_OK, ERROR, RECV, RECV_FROM, SEND_TO, Client, Daemon, daemons, wait_until

from pilot._core import (
    EV_ACCEPT,
    EV_CLIENT_CLOSED,
    EV_CLIENT_FRAME,
    EV_CONN_CLOSED,
    EV_CONN_OPEN,
    EV_DATAGRAM,
    EV_FRAME,
    EV_READABLE,
    EV_WRITABLE,
    OWNER_APP,
    CoreError,
    DataPlane,
    Event,
)

PORT = 1000


@pytest.fixture
def pair() -> Iterator[tuple[Daemon, Daemon]]:
    with daemons() as nodes:
        yield nodes


def push(client: Client, conn: int, data: bytes, piece: int) -> threading.Thread:
    """Sends from a thread of its own, then closes the connection."""

    def run() -> None:
        for at in range(0, len(data), piece):
            client.write(conn, data[at : at + piece])
        client.shut(conn)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("own_kind", [True, False], ids=["own kind", "other implementation"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_a_file_passes_through_two_daemons_unchanged(own_kind: bool, offload: bool) -> None:
    data = random.Random(1).randbytes(24 << 20)
    with daemons(own_kind, gso=offload, gro=offload) as (a, b):
        sender, receiver = Client(a), Client(b)
        receiver.bind(PORT)
        conn = sender.dial(2, PORT)
        inbound = receiver.accept()
        thread = push(sender, conn, data, 200_000)
        got = receiver.read_all(inbound)
        thread.join()
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        sender.expect(CLOSE_OK)
        sender.close()
        receiver.close()


def test_both_directions_and_several_programs_at_once(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    rng = random.Random(2)
    threads, checks = [], []
    for i in range(6):
        near, far = (a, b) if i % 2 else (b, a)
        sender, receiver = Client(near), Client(far)
        receiver.bind(PORT + i)
        conn = sender.dial(far.node, PORT + i)
        inbound = receiver.accept()
        data = rng.randbytes(3 << 20)
        threads.append(push(sender, conn, data, rng.randrange(1000, 500_000)))
        checks.append((receiver, inbound, data, sender))
    for receiver, inbound, data, sender in checks:
        assert receiver.read_all(inbound) == data
        receiver.close()
        sender.close()
    for thread in threads:
        thread.join()
    wait_until(lambda: a.clients() == 0 and b.clients() == 0)


def test_refused_dial_and_hang_up_of_the_daemon() -> None:
    with daemons() as (a, b):
        client, other = Client(a), Client(b)
        client.send(3, struct.pack(">HIH", 0, 2, 9))
        assert client.expect(ERROR).endswith(b"connection refused")
        other.bind(PORT)
        conn = client.dial(2, PORT)
        inbound = other.accept()
        a.close()
        with pytest.raises(EOFError):
            client.frame()
        assert other.frame() == (CLOSE_OK, struct.pack(">I", inbound))
        assert conn
        client.close()
        other.close()


def test_the_daemon_hears_of_a_program_that_leaves(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    client, other = Client(a), Client(b)
    other.bind(PORT)
    client.dial(2, PORT)
    inbound = other.accept()
    client.close()
    assert other.read_all(inbound) == b""
    wait_until(lambda: any(ev.type == EV_CLIENT_CLOSED for ev in a.seen))
    assert a.clients() == 0
    other.close()


def test_client_close_disconnects_after_the_last_words(pair: tuple[Daemon, Daemon]) -> None:
    a, _ = pair
    client = Client(a)
    client.send(0x21)
    wait_until(lambda: any(ev.type == EV_CLIENT_FRAME for ev in a.others))
    ident = a.others[-1].client
    assert a.plane.client_send(ident, 0x22, b"{}")
    a.plane.client_close(ident)
    assert client.frame() == (0x22, b"{}")
    with pytest.raises(EOFError):
        client.frame()
    assert not a.plane.client_send(ident, 0x22, b"{}")
    with pytest.raises(CoreError):
        a.plane.attach(1, ident)
    client.close()


def test_datagrams_reach_every_program_and_python(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    sender, first, second = Client(a), Client(b), Client(b)
    wait_until(lambda: b.clients() == 2)
    b.plane.listen(5000, OWNER_APP)
    sender.send(SEND_TO, struct.pack(">HIH", 7, 2, 5000) + b"hello")
    for client in (first, second):
        payload = client.expect(RECV_FROM)
        net, node, _, port = struct.unpack(">HIHH", payload[:10])
        assert (net, node, port, payload[10:]) == (7, 1, 5000, b"hello")
        client.close()
    wait_until(lambda: any(ev.type == EV_DATAGRAM and ev.data == b"hello" for ev in b.others))
    sender.close()


def test_an_oversized_frame_costs_only_its_sender(pair: tuple[Daemon, Daemon]) -> None:
    a, _ = pair
    bad, good = Client(a), Client(a)
    wait_until(lambda: a.clients() == 2)
    bad.sock.sendall(struct.pack(">IB", (1 << 20) + 1, 6))
    with pytest.raises(EOFError):
        bad.frame()
    assert a.plane.stats()["client_bad_frames"] == 1
    good.bind(PORT)
    bad.close()
    good.close()


def test_streams_of_python_services(pair: tuple[Daemon, Daemon]) -> None:
    """Write until full, go on at EV_WRITABLE; read until None, go on at EV_READABLE."""
    a, b = pair
    data = random.Random(3).randbytes(12 << 20)
    got = bytearray()
    ended = threading.Event()
    at = 0

    def writer(ev: Event) -> None:
        nonlocal at
        if ev.type == EV_CONN_OPEN:
            a.plane.own(ev.conn, OWNER_APP)
        if ev.type in (EV_CONN_OPEN, EV_WRITABLE):
            while at < len(data):
                n = a.plane.write(ev.conn, memoryview(data)[at : at + 300_000])
                at += n
                if not n:
                    return
            a.plane.close(ev.conn)

    def reader(ev: Event) -> None:
        if ev.type == EV_ACCEPT:
            b.plane.own(ev.conn, OWNER_APP)
        if ev.type == EV_READABLE:
            while (chunk := b.plane.read(ev.conn)) is not None:
                if not chunk:
                    b.plane.close(ev.conn)
                    ended.set()
                    return
                got.extend(chunk)

    a.on_other, b.on_other = writer, reader
    b.plane.listen(80, OWNER_APP)
    conn = a.plane.dial(2, 80)
    assert ended.wait(30)
    assert bytes(got) == data
    assert a.plane.conn_info(conn) is None or a.plane.unacked(conn) == 0


def test_a_service_is_told_of_the_reset(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    b.plane.listen(80, OWNER_APP)
    conn = a.plane.dial(2, 80)
    wait_until(lambda: any(ev.type == EV_CONN_OPEN for ev in a.others) and any(ev.type == EV_ACCEPT for ev in b.others))
    a.plane.own(conn, OWNER_APP)
    inbound = next(ev.conn for ev in b.others if ev.type == EV_ACCEPT)
    b.plane.abort(inbound)
    wait_until(lambda: any(ev.type == EV_CONN_CLOSED and ev.conn == conn and ev.a == 1 for ev in a.others))


def test_event_fd_is_readable_exactly_while_events_wait() -> None:
    plane = DataPlane(("127.0.0.1", 0))
    plane.set_node(1)
    plane.start()
    frame = b"PILA" + bytes(132)

    def readable(seconds: float) -> bool:
        return bool(select.select([plane.event_fd], [], [], seconds)[0])

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.1", 0))
        for _ in range(3):
            assert not readable(0)
            stranger.sendto(frame, plane.local_addr)
            assert readable(10)
            stranger.sendto(frame, plane.local_addr)
            got: list[Event] = []
            while len(got) < 2:
                assert readable(10)
                got += plane.events()
            for ev in got:
                assert (ev.type, ev.addr, ev.data) == (EV_FRAME, stranger.getsockname(), frame)
    plane.stop()


def test_address_in_use_and_commands_after_stop() -> None:
    plane = DataPlane(("127.0.0.1", 0))
    with pytest.raises(OSError, match="in use"):
        DataPlane(plane.local_addr)
    plane.start()
    with pytest.raises(CoreError):
        plane.start()
    plane.stop()
    plane.stop()
    plane.set_node(3)
    plane.send_raw(("127.0.0.1", 9), b"nobody hears this")
    assert plane.events() == [] and plane.conns() == [] and plane.stats()["clients"] == 0
    with socket.socket(socket.AF_UNIX) as s, pytest.raises(CoreError):
        plane.serve(s.detach())


def test_thousand_streams_through_one_socket() -> None:
    with daemons(options={"syn_rate": 100_000, "accept_queue": 1100}) as (a, b):
        near, far = Client(a), Client(b)
        far.bind(PORT)
        conns = {}
        for i in range(1000):
            conn = near.dial(2, PORT)
            conns[far.accept()] = i
            near.write(conn, struct.pack(">I", i))
        seen: set[int] = set()
        while len(seen) < 1000:
            payload = far.expect(RECV)
            conn, i = struct.unpack(">II", payload)
            assert conns[conn] == i
            seen.add(i)
        near.close()
        for _ in range(1000):
            far.expect(CLOSE_OK)
        far.close()
