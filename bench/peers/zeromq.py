"""pyzmq PAIR sockets under CURVE: one pair for all streams, one after the other; an empty message each way ends a stream."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import zmq

from net.ends import CHUNK, PORTS, Stream

SERVER_KEY = (b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", b"JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6")
QUEUE = 8  # messages


class Curve:
    def __init__(self, args: Namespace) -> None:
        self.context = zmq.Context()
        self.role, self.address = args.role, args.name if args.role == "server" else args.peer
        self.socket = self._open()

    def connect(self) -> Stream:
        return _Stream(self.socket)

    accept = connect

    def _open(self) -> Any:
        s = self.context.socket(zmq.PAIR)
        s.sndhwm = s.rcvhwm = QUEUE
        if self.role == "server":
            s.curve_server = True
            s.curve_publickey, s.curve_secretkey = SERVER_KEY
            s.bind(f"tcp://{self.address}:{PORTS['zmq']}")
        else:
            s.curve_publickey, s.curve_secretkey = zmq.curve_keypair()
            s.curve_serverkey = SERVER_KEY[0]
            s.connect(f"tcp://{self.address}:{PORTS['zmq']}")
        return s


class _Stream:
    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.left = memoryview(b"")
        self.ended = False

    def sendall(self, data: Any) -> None:
        view = memoryview(data)
        for at in range(0, len(view), CHUNK):
            self.sock.send(view[at : at + CHUNK], copy=False)

    def recv_into(self, buffer: Any) -> int:
        if not self.left and not self.ended:
            self.left = self.sock.recv(copy=False).buffer
            self.ended = not self.left
        n = min(len(buffer), len(self.left))
        memoryview(buffer)[:n] = self.left[:n]
        self.left = self.left[n:]
        return n

    def close(self) -> None:
        self.sock.send(b"")
        while not self.ended:
            self.ended = not self.sock.recv()
