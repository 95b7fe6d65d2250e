"""A node of era 1 on a real socket, written from the specification alone (transport.md 2 to 5, registry.md 5), without `pilot`.

It does as the first releases did: PILA and PILK, the key by SHA-256, no associated data, one replay window that is moved before
the tag is checked, a plaintext copy of what it sends first, an echo on port 7.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import queue
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Addr = tuple[str, int]
SYN, ACK, FIN, RST = 1, 2, 4, 8
STREAM, CONTROL = 1, 3
ECHO = 7
SEGMENT = 1000
WINDOW = 512
TRY_S, TRIES = 0.5, 20


@dataclass(slots=True)
class Packet:
    flags: int
    protocol: int
    src: tuple[int, int, int]  # network, node, port
    dst: tuple[int, int, int]
    seq: int = 0
    ack: int = 0
    window: int = 0
    payload: bytes = b""

    def build(self) -> bytes:
        head = struct.pack(
            ">BBHHIHIHHIIHI", 0x10 | self.flags, self.protocol, len(self.payload), *self.src[:2], *self.dst[:2], self.src[2],
            self.dst[2], self.seq, self.ack, self.window, 0,
        )  # fmt: skip
        return head[:30] + struct.pack(">I", zlib.crc32(head + self.payload)) + self.payload

    @classmethod
    def parse(cls, data: bytes) -> Packet | None:
        if len(data) < 34:
            return None
        first, proto, size, sn, s, dn, d, sp, dp, seq, ack, window, crc = struct.unpack_from(">BBHHIHIHHIIHI", data)
        body = data[34 : 34 + size]
        if len(body) != size or zlib.crc32(data[:30] + bytes(4) + body) != crc:
            return None
        return cls(first & 15, proto, (sn, s, sp), (dn, d, dp), seq, ack, window, body)


@dataclass(slots=True)
class Session:
    public: bytes
    aead: AESGCM
    prefix: bytes = field(default_factory=lambda: os.urandom(4))
    counter: int = 0
    highest: int = 0
    seen: set[int] = field(default_factory=set)

    def fresh(self, counter: int) -> bool:
        """Recorded before anything is known of the frame, as it was."""
        if counter in self.seen or (counter <= self.highest and self.highest - counter >= 256):
            return False
        self.seen.add(counter)
        self.highest = max(self.highest, counter)
        return True


class Era1Node:
    """Registered and listening once made; `close` it."""

    def __init__(self, registry: str, ip: str = "127.0.0.1") -> None:
        host, _, port = registry.rpartition(":")
        self._registry = (host, int(port))
        self._identity = Ed25519PrivateKey.generate()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((ip, 0))
        self.addr: Addr = self._udp.getsockname()
        self.sessions: dict[int, Session] = {}
        self.where: dict[int, Addr] = {}
        self.opened = self.failed = 0
        self.pongs: queue.Queue[Packet] = queue.Queue()
        self._dialled: dict[int, queue.Queue[Packet]] = {}  # by our port
        self._accepted: dict[tuple[int, int], int] = {}  # node and port of the dialler: next byte expected
        self._lock = threading.RLock()
        public = self._identity.public_key().public_bytes_raw()
        key = base64.b64encode(public).decode()
        reply = self.ask(type="register", listen_addr=f"{ip}:{self.addr[1]}", public_key=key, owner="era1@example.com")
        self.node = int(reply["node_id"])
        self._pila = b""
        self.restart()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._udp.sendto(b"", self.addr)
        self._thread.join(5)
        self._udp.close()

    def ask(self, **fields: Any) -> dict[str, Any]:
        """One request to the registry."""
        with socket.create_connection(self._registry, 10) as s:
            body = json.dumps(fields).encode()
            s.sendall(struct.pack(">I", len(body)) + body)
            with s.makefile("rb") as f:
                reply: dict[str, Any] = json.loads(f.read(struct.unpack(">I", f.read(4))[0]))
        assert reply.get("type") != "error", reply
        return reply

    def restart(self) -> None:
        """What a new process has: its identity and another tunnel key."""
        with self._lock:
            self._tunnel = X25519PrivateKey.generate()
            self.sessions.clear()
            signed = struct.pack(">I", self.node) + self._tunnel.public_key().public_bytes_raw()
            public = self._identity.public_key().public_bytes_raw()
            self._pila = b"PILA" + signed + public + self._identity.sign(b"auth" + signed)

    def meet(self, node: int) -> None:
        """Finds a public node and exchanges keys with it."""
        host, _, port = self.ask(type="lookup", node_id=node)["real_addr"].rpartition(":")
        self.where[node] = (host, int(port))
        self._again(lambda: self._udp.sendto(self._pila, self.where[node]), lambda: node in self.sessions, "a session")

    # ---- what the tests do ----

    def ping(self, node: int, payload: bytes = b"12345678") -> Packet | None:
        """The pong, None without one."""
        packet = Packet(0, CONTROL, (0, self.node, 40000), (0, node, 0), seq=7, payload=payload)
        for _ in range(4):
            self.send(packet)
            try:
                return self.pongs.get(timeout=TRY_S)
            except queue.Empty:
                continue
        return None

    def echo(self, node: int, data: bytes, port: int = ECHO) -> bytes:
        """Dials, sends `data` a segment at a time, returns what came back."""
        local = 49152 + len(self._dialled)
        inbox = self._dialled[local] = queue.Queue()
        ends = ((0, self.node, local), (0, node, port))

        def exchange(packet: Packet, answered: Callable[[Packet], bool]) -> Packet:
            for n in range(TRIES):
                if n == 0 and packet.flags == SYN:
                    self._udp.sendto(b"PILT" + packet.build(), self.where[node])
                self.send(packet)
                while True:
                    try:
                        got = inbox.get(timeout=TRY_S)
                    except queue.Empty:
                        break
                    if answered(got):
                        return got
            raise AssertionError("no answer to a segment")

        opened = exchange(Packet(SYN, STREAM, *ends, window=WINDOW), lambda p: p.flags == SYN | ACK and p.ack == 1)
        expect, sent, back = (opened.seq + 1) & 0xFFFFFFFF, 1, b""
        self.send(Packet(ACK, STREAM, *ends, seq=sent, ack=expect, window=WINDOW))

        def arrived(p: Packet) -> bool:
            nonlocal expect, back
            if p.payload and p.seq == expect and not p.payload.startswith(b"SACK"):
                back += p.payload
                expect = (expect + len(p.payload)) & 0xFFFFFFFF
            if p.payload:
                self.send(Packet(ACK, STREAM, *ends, seq=sent, ack=expect, window=WINDOW))
            return len(back) >= sent - 1 + len(piece) and p.ack == sent + len(piece)

        for at in range(0, len(data), SEGMENT):
            piece = data[at : at + SEGMENT]
            exchange(Packet(ACK, STREAM, *ends, seq=sent, ack=expect, window=WINDOW, payload=piece), arrived)
            sent += len(piece)
        self.send(Packet(FIN, STREAM, *ends, seq=sent))
        return back

    def send(self, packet: Packet) -> None:
        node = packet.dst[1]
        with self._lock:
            session = self.sessions[node]
            session.counter += 1
            nonce = session.prefix + struct.pack(">Q", session.counter)
            sealed = session.aead.encrypt(nonce, packet.build(), None)
        self._udp.sendto(b"PILS" + struct.pack(">I", self.node) + nonce + sealed, self.where[node])

    # ---- receiving ----

    def _run(self) -> None:
        while True:
            data, addr = self._udp.recvfrom(65573)
            if not data:
                return
            magic, node = data[:4], int.from_bytes(data[4:8], "big")
            if magic == b"PILA" and len(data) >= 136:
                self._on_pila(node, data, addr)
            elif magic == b"PILK":
                self._udp.sendto(self._pila, addr)
            elif magic == b"PILS" and node in self.sessions:
                self._on_pils(node, data)

    def _on_pila(self, node: int, data: bytes, addr: Addr) -> None:
        key = base64.b64decode(self.ask(type="lookup", node_id=node)["public_key"])
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(data[72:136], b"auth" + data[4:40])
        except InvalidSignature:
            return
        public = data[8:40]
        shared = self._tunnel.exchange(X25519PublicKey.from_public_bytes(public))
        with self._lock:
            old = self.sessions.get(node)
            self.sessions[node] = Session(public, AESGCM(hashlib.sha256(b"pilot-tunnel-v1:" + shared).digest()))
        self.where[node] = addr
        if key == data[40:72] and (old is None or old.public != public):
            self._udp.sendto(self._pila, addr)

    def _on_pils(self, node: int, data: bytes) -> None:
        session = self.sessions[node]
        nonce = data[8:20]
        if not session.fresh(int.from_bytes(nonce[4:], "big")):
            return
        try:
            packet = Packet.parse(session.aead.decrypt(nonce, data[20:], None))
        except InvalidTag:
            self.failed += 1
            return
        self.opened += 1
        if packet and packet.protocol == CONTROL and packet.dst[2] == 0:
            self.send(Packet(ACK, CONTROL, (0, self.node, 0), packet.src, packet.seq, packet.seq + 1, 0, packet.payload))
        elif packet and packet.protocol == CONTROL:
            self.pongs.put(packet)
        elif packet and packet.protocol == STREAM:
            self._on_stream(packet)

    def _on_stream(self, p: Packet) -> None:
        if p.dst[2] in self._dialled:
            self._dialled[p.dst[2]].put(p)
            return
        who, ends = (p.src[1], p.src[2]), ((0, self.node, p.dst[2]), p.src)
        if p.flags == SYN:
            if p.dst[2] != ECHO:
                self.send(Packet(RST, STREAM, *ends))
                return
            self._accepted[who] = (p.seq + 1) & 0xFFFFFFFF
            self.send(Packet(SYN | ACK, STREAM, *ends, 0, self._accepted[who], WINDOW))
        elif p.flags == FIN:
            self.send(Packet(FIN | ACK, STREAM, *ends, 0, (p.seq + 1) & 0xFFFFFFFF))
        elif p.payload and who in self._accepted:
            expect, size = self._accepted[who], len(p.payload)
            if p.seq == expect:  # what was echoed and got lost is not repeated: the test's messages are small
                self._accepted[who] = (expect + size) & 0xFFFFFFFF
                self.send(Packet(ACK, STREAM, *ends, p.ack, self._accepted[who], WINDOW, p.payload))
            else:
                self.send(Packet(ACK, STREAM, *ends, p.ack, expect, WINDOW))

    def _again(self, act: Callable[[], Any], done: Callable[[], bool], what: str) -> None:
        for _ in range(TRIES):
            act()
            for _ in range(50):
                if done():
                    return
                threading.Event().wait(TRY_S / 50)
        raise AssertionError(f"did not come: {what}")
