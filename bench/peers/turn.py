"""coturn as a relay: datagrams of one end to its relayed address, which hands them to the other end as channel data (RFC 8656).

Nothing is encrypted and nothing repeated: the figure is what the relay itself lets through.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time

from net.bed import Bed, BenchError, Namespace, Process

MAGIC, CHANNEL, PORT = 0x2112A442, 0x4000, 3478
PAYLOAD = 1200
OFFERED = (60_000, 90_000, 120_000, 160_000)  # datagrams per second


class Turn:
    """A server in `r`, one end each in `a` and `b`."""

    name, label, can, failures = "turn", "coturn, UDP datagrams", frozenset({"bulk"}), 0

    def __init__(self, bed: Bed, a: Namespace, b: Namespace, r: Namespace) -> None:
        self.bed, self.a, self.b, self.r = bed, a, b, r
        self.server: Process | None = None

    def start(self) -> None:
        """Raises BenchError when the program is not there."""
        program = shutil.which("turnserver")
        if program is None:
            raise BenchError("turnserver is not installed (apt-get install coturn)")
        home = self.bed.root / "turn"
        self.server = self.r.spawn(
            home, program, "-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli", "-L", self.r.ip["b"], "-E", self.r.ip["a"],
            "-p", str(PORT), "--log-file", "stdout", "--pidfile", str(home / "pid"), "--userdb", str(home / "db"),
            "--allow-loopback-peers", log="log",
        )  # fmt: skip
        time.sleep(0.5)  # it says nothing when it is ready; a request that comes too early is answered after its repetition

    def stop(self) -> None:
        if self.server:
            self.bed.release(self.server)

    def restart(self) -> None:
        self.failures += 1
        self.stop()
        self.start()

    def bulk(self, seconds: float) -> dict[str, float]:
        """The best of several offered rates: overloaded, it lets less through than it could."""
        return max((self._offer(seconds / len(OFFERED), rate) for rate in OFFERED), key=lambda got: got["mbit_s"])

    def _offer(self, seconds: float, rate: int) -> dict[str, float]:
        this = [sys.executable, "-m", "peers.turn"]
        env = self.b.env(self.bed.root / "turn")
        argv = self.b.wrap(*this, "sink", self.b.ip["r"], self.r.ip["b"], self.a.ip["r"])
        sink = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)
        try:
            assert sink.stdout is not None
            ready = sink.stdout.readline().split()
            if len(ready) != 2:
                raise BenchError(f"no allocation: {self.server.tail() if self.server else ''}")
            argv = self.a.wrap(*this, "source", self.a.ip["r"], *ready, str(seconds), str(rate))
            subprocess.run(argv, check=True, timeout=seconds + 20, env=env)
            got = json.loads(sink.stdout.readline())
        finally:
            sink.kill()
            sink.wait()
        return {"mbit_s": got["bytes"] * 8 / got["seconds"] / 1e6, "mpps": got["bytes"] / PAYLOAD / got["seconds"] / 1e6}


def request(sock: socket.socket, kind: int, attributes: bytes) -> bytes:
    """One STUN transaction; the body of the success reply."""
    head = struct.pack(">HHI", kind, len(attributes), MAGIC) + os.urandom(12)
    sock.send(head + attributes)
    while True:
        data = sock.recv(2048)
        if data[8:20] == head[8:20]:
            if struct.unpack(">H", data[:2])[0] != kind | 0x100:
                raise BenchError(f"TURN request {kind:#x} was refused: {data[20:].hex()}")
            return data[20:]


def allocate(sock: socket.socket) -> tuple[str, int]:
    """The relayed address."""
    body = request(sock, 0x0003, struct.pack(">HHI", 0x0019, 4, 17 << 24))
    at = 0
    while at < len(body):
        kind, size = struct.unpack(">HH", body[at : at + 4])
        if kind == 0x0016:
            port = struct.unpack(">H", body[at + 6 : at + 8])[0] ^ (MAGIC >> 16)
            ip = struct.unpack(">I", body[at + 8 : at + 12])[0] ^ MAGIC
            return socket.inet_ntoa(struct.pack(">I", ip)), port
        at += 4 + ((size + 3) & ~3)
    raise BenchError("no relayed address")


def sink(own: str, server: str, peer: str) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((own, 0))
    sock.connect((server, PORT))
    sock.settimeout(5)
    relayed = allocate(sock)
    ip = struct.unpack(">I", socket.inet_aton(peer))[0] ^ MAGIC
    address = struct.pack(">BBHI", 0, 1, SOURCE_PORT ^ (MAGIC >> 16), ip)
    request(sock, 0x0009, struct.pack(">HHI", 0x000C, 4, CHANNEL << 16) + struct.pack(">HH", 0x0012, 8) + address)
    print(*relayed, flush=True)
    buffer, total, first, last = bytearray(4096), 0, 0.0, 0.0
    while True:
        try:
            n = sock.recv_into(buffer)
        except TimeoutError:
            break
        last = time.monotonic()
        first = first or last
        total += n - 4
        sock.settimeout(0.5)
    request(sock, 0x0004, struct.pack(">HHI", 0x000D, 4, 0))  # the allocation is given back
    print(json.dumps({"bytes": total, "seconds": max(last - first, 1e-9)}), flush=True)


SOURCE_PORT = 4444


def source(own: str, ip: str, port: str, seconds: str, rate: str) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((own, SOURCE_PORT))
    sock.connect((ip, int(port)))
    data, per_s, sent, start = bytes(PAYLOAD), float(rate), 0, time.monotonic()
    while (now := time.monotonic() - start) < float(seconds):
        while sent < now * per_s:
            sock.send(data)
            sent += 1
        time.sleep(0.0002)


if __name__ == "__main__":
    {"sink": sink, "source": source}[sys.argv[1]](*sys.argv[2:])
