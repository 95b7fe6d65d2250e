"""Two data planes on loopback with local clients on Unix sockets, and a daemon's smallest control plane beside each.

The control plane knows Dial, Bind and Accept; everything else is the native thread's, which is what the tests are about.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pilot._core import (
    CAP_NOCRC,
    CAP_STREAM_OPTS,
    EV_ACCEPT,
    EV_CLIENT_FRAME,
    EV_CONN_FAILED,
    EV_CONN_OPEN,
    OWNER_CLIENT,
    CoreError,
    DataPlane,
    Event,
)

BIND, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK, ERROR, SEND_TO, RECV_FROM = range(1, 13)
LIMIT_S = 30.0


def wait_until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.002)


class Daemon:
    """One node: data plane, listening socket, and a thread that answers Dial, Bind and Accept."""

    def __init__(self, node: int, directory: Path, **options: object) -> None:
        self.node = node
        self.plane = DataPlane(("127.0.0.1", 0), **options)  # type: ignore[arg-type]
        self.plane.set_node(node)
        self.path = str(directory / f"{node}.sock")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(self.path)
            s.listen(128)
            self.plane.serve(s.detach())
        self.others: list[Event] = []
        self.seen: list[Event] = []
        self.on_other: Callable[[Event], None] | None = None
        self._stop = threading.Event()
        self.plane.start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.plane.stop()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.plane.event_fd, select.POLLIN)
        while not self._stop.is_set():
            poll.poll(50)
            while batch := self.plane.events():
                for ev in batch:
                    self.seen.append(ev)
                    self._handle(ev)

    def _handle(self, ev: Event) -> None:
        plane = self.plane
        if ev.type == EV_CLIENT_FRAME and ev.a == DIAL:
            net, node, port = struct.unpack(">HIH", ev.data[:8])
            plane.dial(node, port, local_net=net, remote_net=net, client=ev.client)
        elif ev.type == EV_CLIENT_FRAME and ev.a == BIND:
            plane.listen(struct.unpack(">H", ev.data)[0], OWNER_CLIENT, ev.client)
            plane.client_send(ev.client, BIND_OK, ev.data)
        elif ev.type == EV_CONN_OPEN and ev.client:
            self._attach(ev, DIAL_OK, struct.pack(">I", ev.conn))
        elif ev.type == EV_CONN_FAILED:
            plane.client_send(ev.client, ERROR, b"\x00\x01connection refused")
        elif ev.type == EV_ACCEPT and ev.client:
            head = struct.pack(">HIHIH", ev.local_port, ev.conn, ev.remote_net, ev.node, ev.remote_port)
            self._attach(ev, ACCEPT, head)
        else:
            self.others.append(ev)
            if self.on_other is not None:
                self.on_other(ev)

    def _attach(self, ev: Event, cmd: int, payload: bytes) -> None:
        with contextlib.suppress(CoreError):  # reset, or the client left, in between
            self.plane.attach(ev.conn, ev.client, cmd, payload)

    def clients(self) -> int:
        return int(self.plane.stats()["clients"])


class Client:
    """A local program: frames in and out of one blocking Unix socket."""

    def __init__(self, daemon: Daemon) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT_S)
        self.sock.connect(daemon.path)
        self.early: list[tuple[int, bytes]] = []

    def close(self) -> None:
        self.sock.close()

    def send(self, cmd: int, payload: bytes = b"") -> None:
        self.sock.sendall(struct.pack(">IB", 1 + len(payload), cmd) + payload)

    def _exactly(self, n: int) -> bytes:
        buf = bytearray(n)
        view, at = memoryview(buf), 0
        while at < n:
            got = self.sock.recv_into(view[at:])
            if not got:
                raise EOFError
            at += got
        return bytes(buf)

    def frame(self) -> tuple[int, bytes]:
        """The next frame; EOFError when the daemon hung up."""
        length, cmd = struct.unpack(">IB", self._exactly(5))
        return cmd, self._exactly(length - 1)

    def expect(self, cmd: int) -> bytes:
        """The next frame of this kind; others are kept in `early`."""
        for i, (kind, payload) in enumerate(self.early):
            if kind == cmd:
                del self.early[i]
                return payload
        while True:
            kind, payload = self.frame()
            if kind == cmd:
                return payload
            self.early.append((kind, payload))

    def bind(self, port: int) -> None:
        self.send(BIND, struct.pack(">H", port))
        assert self.expect(BIND_OK) == struct.pack(">H", port)

    def dial(self, node: int, port: int) -> int:
        self.send(DIAL, struct.pack(">HIH", 0, node, port))
        return int(struct.unpack(">I", self.expect(DIAL_OK))[0])

    def accept(self) -> int:
        return int(struct.unpack(">HI", self.expect(ACCEPT)[:6])[1])

    def write(self, conn: int, data: bytes) -> None:
        self.send(SEND, struct.pack(">I", conn) + data)

    def shut(self, conn: int) -> None:
        self.send(CLOSE, struct.pack(">I", conn))

    def read_all(self, conn: int) -> bytes:
        """The bytes of one connection up to its CloseOK."""
        out = bytearray()
        early, self.early = self.early, []
        head = struct.pack(">I", conn)

        def frames() -> Iterator[tuple[int, bytes]]:
            yield from early
            while True:
                yield self.frame()

        for kind, payload in frames():
            if kind == RECV and payload[:4] == head:
                out += payload[4:]
            elif kind == CLOSE_OK and payload == head:
                return bytes(out)
            else:
                self.early.append((kind, payload))
        raise AssertionError("unreachable")


def introduce(a: Daemon, b: Daemon, own_kind: bool = True) -> None:
    """Installs a shared key, paths and trust on both sides, as a finished key exchange would."""
    key = os.urandom(32)
    features = CAP_NOCRC | CAP_STREAM_OPTS if own_kind else 0
    key_id = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
    for x, y in ((a, b), (b, a)):
        x.plane.set_trusted(y.node, True)
        x.plane.install_key(y.node, key, key_id, features=features, max_segment=8192 if own_kind else 0, reorder_segments=65536)
        x.plane.set_path(y.node, y.plane.local_addr, False)


@contextlib.contextmanager
def daemons(own_kind: bool = True, **options: object) -> Iterator[tuple[Daemon, Daemon]]:
    with tempfile.TemporaryDirectory(prefix="pilot-") as directory:
        a, b = Daemon(1, Path(directory), **options), Daemon(2, Path(directory), **options)
        try:
            introduce(a, b, own_kind)
            yield a, b
        finally:
            a.close()
            b.close()
