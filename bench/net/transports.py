"""Streams for threads: our nodes, daemons' sockets, kernel TCP and TLS."""

from __future__ import annotations

import socket
import ssl
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from net.ends import PORT, PORTS, Stream, node_settings
from peers.certificate import self_signed


class InProcess:
    """Our node inside the process."""

    def __init__(self, args: Namespace) -> None:
        from pilot import BlockingNode

        self.node = BlockingNode(**node_settings(args))
        self.node.start()
        assert self.node.inner
        self.peer: Any = args.peer
        self.listener = self.node.listen(PORT) if args.role == "server" else None
        if args.role == "client" and not self.node.inner.parts.trust.store.trusted:
            self.node.call(self.node.inner.handshake(args.peer, "benchmark"), 30)
            if not self.node.call(self.node.inner.wait_for_trust(args.peer, 30), 40):
                raise RuntimeError("no trust")
        if args.role == "client":  # a dial is measured, not what the registry says
            self.peer = self.node.call(self.node.inner.resolve(args.peer), 30)

    def connect(self) -> Stream:
        return self.node.dial(self.peer, PORT)

    def accept(self) -> Stream:
        assert self.listener
        return self.listener.accept(60)

    def path(self) -> str:
        rows = self.node.inner.parts.plane.peers() if self.node.inner else []
        return "relay" if any(row["relay"] for row in rows) else "direct"


class LocalSocket:
    """A client of a daemon, ours or the published one, on its Unix socket."""

    def __init__(self, args: Namespace) -> None:
        from pilot.sdk import LocalClient

        self.client = LocalClient()
        self.peer = self.client.resolve(args.peer) if args.role == "client" else None
        self.listener = self.client.listen(PORT) if args.role == "server" else None
        self.datagrams = self.client.datagrams(PORT)

    def connect(self) -> Stream:
        return _LocalStream(self.client.dial_addr(self.peer, PORT))

    def accept(self) -> Stream:
        assert self.listener
        return _LocalStream(self.listener.accept(60))

    def send_datagram(self, data: bytes) -> None:
        self.client.send_to(self.peer, PORT, data)

    def recv_datagram(self, timeout: float) -> bool:
        from pilot.errors import PilotError

        try:
            self.datagrams.receive(timeout)
        except PilotError as error:
            if error.code != "timeout":
                raise
            return False
        return True


class _LocalStream:
    def __init__(self, conn: Any) -> None:
        self.conn = conn

    def sendall(self, data: Any) -> None:
        self.conn.write(data, 60)

    def recv_into(self, buffer: Any) -> int:
        return int(self.conn.recv_into(buffer, 60))

    def close(self) -> None:
        self.conn.close()


class Tcp:
    """Kernel TCP with CUBIC, plain or under TLS 1.3 (AES-256-GCM) by Python's ssl."""

    def __init__(self, args: Namespace) -> None:
        self.tls = _context(args.role == "server") if args.transport == "tls" else None
        self.peer, self.port = args.peer, PORTS[args.transport]
        self.listener = socket.create_server((args.name, self.port), backlog=4096) if args.role == "server" else None

    def connect(self) -> Stream:
        return self._wrap(socket.create_connection((self.peer, self.port), 30), False)

    def accept(self) -> Stream:
        assert self.listener
        return self._wrap(self.listener.accept()[0], True)

    def _wrap(self, sock: socket.socket, server: bool) -> Stream:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # the machine's default may be another
        return sock if self.tls is None else self.tls.wrap_socket(sock, server_side=server)


def _context(server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if server:
        context.num_tickets = 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pem"
            path.write_bytes(b"".join(self_signed()))
            context.load_cert_chain(path)
    return context
