"""LocalClient against a daemon that does everything the protocol allows, and much that it does not (ipc.md)."""

from __future__ import annotations

import random
import struct
import threading
import time
from pathlib import Path

import pytest
from fakedaemon import ACCEPT, CLOSE, CLOSE_OK, RECV, SEND, FakeNode, Peer, Scripted, error, frame, wait_for

from pilot.errors import PilotError
from pilot.sdk import Connection, LocalClient
from pilot.wire.address import Address
from pilot.wire.ipc_requests import Info

PEER = Address(1, 9)


def ident(n: int) -> bytes:
    return struct.pack(">I", n)


def accept(port: int, conn_id: int) -> bytes:
    return frame(ACCEPT, struct.pack(">HI", port, conn_id) + PEER.pack() + struct.pack(">H", 50000))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.sock"


def test_no_daemon(path: Path) -> None:
    with pytest.raises(PilotError) as e:
        LocalClient(str(path))
    assert e.value.code == "not_running"
    assert "pilotctl daemon start" in e.value.hint


def test_a_path_too_long_for_a_socket_is_not_running_rather_than_a_crash() -> None:
    with pytest.raises(PilotError) as e:
        LocalClient("/tmp/" + "x" * 200)
    assert e.value.code == "not_running"


def test_bytes_that_overtake_the_answer_to_the_dial_are_kept(path: Path) -> None:
    def script(peer: Peer) -> None:
        assert peer.frame() == (0x03, PEER.pack() + b"\0\7")
        peer.send(frame(RECV, ident(5) + b"early "), frame(0x04, ident(5)), frame(RECV, ident(5) + b"late"))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c, c.dial("1:0001.0000.0009:7") as conn:
        assert conn.read_exactly(10, 5) == b"early late"


def test_connections_that_overtake_the_answer_to_the_bind_are_accepted(path: Path) -> None:
    def script(peer: Peer) -> None:
        assert peer.frame() == (0x01, b"\x1b\x59")
        peer.send(accept(7001, 3), frame(RECV, ident(3) + b"hi"), frame(0x02, b"\x1b\x59"))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        conn = c.listen(7001).accept(5)
        assert (conn.remote, conn.remote_port, conn.read(100, 5)) == (PEER, 50000, b"hi")


@pytest.mark.parametrize("times", [0, 1, 2])
def test_any_number_of_close_confirmations(path: Path, times: int) -> None:
    def script(peer: Peer) -> None:
        for conn_id in (1, 2):
            assert peer.frame()[0] == 0x03
            peer.send(frame(0x04, ident(conn_id)))
            assert peer.frame() == (CLOSE, ident(conn_id))
            peer.send(*[frame(CLOSE_OK, ident(conn_id))] * times)

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        c.dial_addr(PEER, 7).close()
        c.dial_addr(PEER, 7).close()


def test_the_end_of_the_stream_comes_after_its_bytes(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x04, ident(1)), frame(RECV, ident(1) + b"last"), frame(CLOSE_OK, ident(1)))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        conn = c.dial_addr(PEER, 7)
        assert (conn.read(10, 5), conn.read(10, 5)) == (b"last", b"")
        with pytest.raises(PilotError, match="closed the stream"):
            conn.write(b"x")


def test_unknown_commands_are_reported_as_such(path: Path) -> None:
    def script(peer: Peer) -> None:
        code = peer.frame()[0]
        peer.send(error(f"unknown command: 0x{code:02X}"))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c, pytest.raises(PilotError) as e:
        c.peer_path(9)
    assert e.value.code == "not_supported"


def test_a_late_reply_never_reaches_the_next_request(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        go.wait(10)
        peer.send(error("late: not for you"))
        assert peer.frame()[0] == 0x0D
        peer.send(frame(0x0E, b'{"node_id":8}'))

    go = threading.Event()
    with Scripted(path, script) as d, LocalClient(d.path) as c:
        with pytest.raises(PilotError) as e:
            c.dial_addr(PEER, 7, timeout=0.05)
        assert e.value.code == "timeout"
        go.set()
        assert c.info() == {"node_id": 8}


def test_a_dial_that_succeeds_after_its_caller_has_gone_is_closed(path: Path) -> None:
    seen = []

    def script(peer: Peer) -> None:
        peer.frame()
        go.wait(10)
        peer.send(frame(0x04, ident(77)))
        while True:
            code, body = peer.frame()
            seen.append((code, body))
            if code == 0x0D:
                peer.send(frame(0x0E, b"{}"))

    go = threading.Event()
    with Scripted(path, script) as d, LocalClient(d.path) as c:
        with pytest.raises(PilotError):
            c.dial_addr(PEER, 7, timeout=0.05)
        go.set()
        c.info()
        assert (CLOSE, ident(77)) in seen


def test_replies_nobody_asked_for_are_ignored(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x22, b"{}"), frame(0x7F), struct.pack(">I", 0), frame(CLOSE_OK, ident(99)))
        peer.send(frame(RECV, ident(98) + b"?"), frame(0x0E, b'{"node_id":1}'))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        assert c.info() == {"node_id": 1}


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">I", (1 << 20) + 1) + b"x" * 100,
        frame(RECV, b"\0\0"),
        frame(ACCEPT, b"\0\1"),
        frame(CLOSE_OK, b""),
        frame(0x0C, b"short"),
    ],
)
def test_what_is_not_the_protocol_fails_the_client_and_not_the_program(path: Path, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(answer)
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c, pytest.raises(PilotError) as e:
        c.info()
    assert e.value.code == "internal"


@pytest.mark.parametrize("body", [b"", b"[]", b"nope", b"[" * 100_000, b"\xff\xfe"])
def test_replies_that_are_no_objects(path: Path, body: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x0E, body))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c, pytest.raises(PilotError) as e:
        c.info()
    assert e.value.code == "internal"


def test_a_daemon_that_goes_away_ends_streams_and_calls(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x04, ident(1)))
        peer.frame()  # the request below is never answered

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        conn = c.dial_addr(PEER, 7)
        with pytest.raises(PilotError) as e:
            c.info()
        assert (e.value.code, "disconnected" in e.value.message) == ("not_running", True)
        assert conn.read(10, 5) == b""


def test_a_slow_daemon_runs_into_the_time_limit(path: Path) -> None:
    with Scripted(path, lambda peer: peer.frame() and peer.frame() and None) as d, LocalClient(d.path) as c:
        before = time.monotonic()
        with pytest.raises(PilotError) as e:
            c._call(Info(), 0.1)
        assert e.value.code == "timeout"
        assert time.monotonic() - before < 2


def test_threads_share_a_client(path: Path) -> None:
    with FakeNode(path) as d, LocalClient(d.path) as c:
        failures: list[BaseException] = []

        def work(n: int) -> None:
            try:
                for _ in range(10):
                    with c.dial_addr(PEER, 7) as conn:
                        data = bytes([n]) * 1000
                        conn.write(data, 10)
                        assert conn.read_exactly(1000, 10) == data
                    assert c.info()["node_id"] == 8
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        assert not failures


def test_more_bytes_than_the_buffers_hold_pass_both_ways(path: Path) -> None:
    total = 24 << 20
    with FakeNode(path) as d, LocalClient(d.path) as c, c.dial_addr(PEER, 7) as conn:
        out = threading.Thread(target=conn.write, args=(bytes(range(256)) * (total // 256), 30))
        out.start()
        got = conn.read_exactly(total, 30)
        out.join(10)
        assert got == bytes(range(256)) * (total // 256)


def test_datagrams_of_a_port_and_their_limit(path: Path) -> None:
    def gram(port: int, data: bytes) -> bytes:
        return frame(0x0C, PEER.pack() + struct.pack(">HH", 5000, port) + data)

    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(gram(6001, b"other"), *[gram(6000, b"%d" % i) for i in range(300)], frame(0x0E, b"{}"))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        port = c.datagrams(6000)
        c.info()
        first = port.receive(5)
        assert (first.source, first.source_port, first.data, port.dropped) == (PEER, 5000, b"0", 44)


def test_send_to_writes_one_frame(path: Path) -> None:
    with FakeNode(path) as d, LocalClient(d.path) as c:
        c.send_to(PEER, 6000, b"dg")
        wait_for(lambda: (0x0B, PEER.pack() + struct.pack(">H", 6000) + b"dg") in d.frames, "the datagram")


def test_frames_beyond_the_limit_are_refused_before_they_are_written(path: Path) -> None:
    with FakeNode(path) as d, LocalClient(d.path) as c:
        with pytest.raises(PilotError) as e:
            c.send_to_confirm(PEER, 1, b"x" * (1 << 20))
        assert e.value.code == "invalid_argument"
        assert c.info()["node_id"] == 8


def test_large_writes_become_frames_within_the_limit(path: Path) -> None:
    with FakeNode(path) as d, LocalClient(d.path) as c, c.dial_addr(PEER, 10) as conn:
        conn.write(b"x" * (3 << 20), 30)
        wait_for(lambda: sum(len(b) - 4 for code, b in d.frames if code == SEND) == 3 << 20, "all bytes")
        assert max(len(b) for code, b in d.frames if code == SEND) <= 1_048_512 + 4


def test_resolving_targets(path: Path) -> None:
    with FakeNode(path) as d, LocalClient(d.path) as c:
        assert c.resolve("1:0001.0000.0009") == c.resolve("home-agent-2") == PEER
        assert c.resolve("9") == Address(0, 9)
        with pytest.raises(PilotError):
            c.resolve("nobody")


def test_a_frame_that_try_write_began_goes_out_while_its_writer_reads(path: Path) -> None:
    """`try_write` takes a whole frame as soon as the socket takes a part of it; the rest must not wait for another write."""
    size = 256 << 10

    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x04, ident(1)))
        go.wait(10)
        total = 0
        while total < sum(written):
            total += len(peer.frame()[1]) - 4
        peer.send(frame(RECV, ident(1) + b"all"))
        peer.frame()

    go, written = threading.Event(), []
    with Scripted(path, script) as d, LocalClient(d.path) as c:
        conn = c.dial_addr(PEER, 7)
        while n := conn.try_write(b"x" * size):
            written.append(n)
        assert written
        go.set()
        assert conn.read_exactly(3, 10) == b"all"


def test_connections_right_behind_the_answer_to_the_bind_are_accepted(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x02, b"\x1b\x59") + accept(7001, 3) + frame(RECV, ident(3) + b"hi") + accept(7001, 4))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        listener = c.listen(7001)
        assert listener.accept(5).read(100, 5) == b"hi"
        assert listener.accept(5).conn_id == 4


@pytest.mark.parametrize("seed", range(3))
def test_large_frames_of_several_streams_arrive_whole(path: Path, seed: int) -> None:
    """Frames of all sizes, cut anywhere, while each stream has a reader with a large buffer: bytes are read where they belong."""
    rng = random.Random(seed)
    sent = {5: b"", 6: b""}
    wire = b""
    for _ in range(120):
        conn_id, size = rng.choice((5, 6)), rng.choice((0, 1, 4000, 16 << 10, 100_000, 300_000))
        data = rng.randbytes(size)
        sent[conn_id] += data
        wire += frame(RECV, ident(conn_id) + data) + rng.choice((b"", bytes(4)))
    wire += frame(CLOSE_OK, ident(5)) + frame(CLOSE_OK, ident(6))

    def script(peer: Peer) -> None:
        for conn_id in (5, 6):
            peer.frame()
            peer.send(frame(0x04, ident(conn_id)))
        at = 0
        while at < len(wire):
            size = rng.choice((3, 9, 20_000, 400_000))
            peer.send(wire[at : at + size])
            at += size
        peer.frame()

    def read(conn: Connection, got: bytearray, room: int) -> None:
        buffer = bytearray(room)
        while n := conn.recv_into(buffer, 10):
            got += buffer[:n]

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        got = {conn.conn_id: (conn, bytearray()) for conn in (c.dial_addr(PEER, 7), c.dial_addr(PEER, 7))}
        threads = [threading.Thread(target=read, args=(*got[i], room)) for i, room in ((5, 1 << 20), (6, 50_000))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert all(bytes(got[i][1]) == sent[i] for i in sent)


def test_a_write_that_timed_out_keeps_its_bytes(path: Path) -> None:
    """The frame that was begun goes out as it was, whatever the caller does with his buffer."""

    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x04, ident(1)))
        go.wait(10)
        while not (frames and frames[-1].endswith(b"end")):
            frames.append(peer.frame()[1])
        peer.send(frame(RECV, ident(1) + b"all"))
        peer.frame()

    go, frames = threading.Event(), []
    with Scripted(path, script) as d, LocalClient(d.path) as c:
        conn = c.dial_addr(PEER, 7)
        data = bytearray(b"a" * (16 << 20))
        with pytest.raises(PilotError) as e:
            conn.write(data, 0.2)
        assert e.value.code == "timeout"
        data[:] = b"b" * len(data)
        go.set()
        conn.write(b"end", 10)
        assert conn.read_exactly(3, 10) == b"all"
        assert all(set(f[4:]) == {ord("a")} for f in frames[:-1])


def test_buffers_belong_to_the_caller_again_after_each_call(path: Path) -> None:
    """No view of them stays behind: they can be resized."""
    echoed = frame(RECV, ident(1) + bytes(100_000))

    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x04, ident(1)))
        for _ in range(2):
            peer.frame()
            peer.send(echoed, echoed)
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c:
        conn = c.dial_addr(PEER, 7)
        for write in (conn.write, conn.try_write):
            data = bytearray(50_000)
            assert write(data) == 50_000
            data.clear()
            got = 0
            while got < 200_000:
                buffer = bytearray(1 << 20)
                got += conn.recv_into(buffer, 10)
                buffer.clear()
