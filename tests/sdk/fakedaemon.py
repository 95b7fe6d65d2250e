"""Daemons without a network, on real Unix sockets: one that follows a script, and one that plays a whole node."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pilot.wire.services import FrameReader, encode

ACCEPT, SEND, RECV, CLOSE, CLOSE_OK, ERROR = range(0x05, 0x0B)


def frame(code: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IB", len(payload) + 1, code) + payload


def error(text: str) -> bytes:
    return frame(ERROR, b"\0\1" + text.encode())


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


class Peer:
    """The daemon's end of one client's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = threading.Lock()

    def frame(self) -> tuple[int, bytes]:
        """The client's next frame. EOFError when it has gone."""
        size = struct.unpack(">I", self._exactly(4))[0]
        body = self._exactly(size)
        return body[0], body[1:]

    def _exactly(self, count: int) -> bytes:
        out = b""
        while len(out) < count:
            part = self.sock.recv(count - len(out))
            if not part:
                raise EOFError
            out += part
        return out

    def send(self, *frames: bytes) -> None:
        with self.lock:
            self.sock.sendall(b"".join(frames))


class Scripted:
    """Runs `script(peer)` for each client. The first failure of a script is raised at the end."""

    def __init__(self, path: Path, script: Callable[[Peer], None]) -> None:
        self.path = str(path)
        self._script = script
        self._failure: BaseException | None = None
        self._socks: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            self._socks.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._script(Peer(sock))
        except (EOFError, OSError):
            pass
        except BaseException as e:
            self._failure = self._failure or e
        finally:
            sock.close()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.close()
        if self._failure is not None and kind is None:
            raise self._failure

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)
        for sock in self._socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


INFO: dict[str, Any] = {
    "node_id": 8, "address": "1:0001.0000.0008", "hostname": "home-agent-1", "uptime_secs": 3723, "connections": 1, "ports": 4,
    "peers": 1, "encrypted_peers": 1, "authenticated_peers": 1, "encrypt": True, "identity": True,
    "public_key": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "owner": "", "bytes_sent": 2048, "bytes_recv": 512,
    "pkts_sent": 20, "pkts_recv": 10,
    "conn_list": [],
}  # fmt: skip

PEER_ROW = {"node_id": 9, "endpoint": "198.51.100.4:4000", "encrypted": True, "authenticated": True, "relay": False}

CONN_ROW: dict[str, Any] = {
    "id": 1, "local_port": 49152, "remote_addr": "1:0001.0000.0009", "remote_port": 1000, "state": "ESTABLISHED",
    "cong_win": 14720, "ssthresh": 0, "in_flight": 0, "srtt_ms": 12,
    "rttvar_ms": 1, "unacked": 0, "ooo_buf": 0, "peer_recv_win": 65536,
    "recv_win": 65536, "in_recovery": False, "bytes_sent": 5, "bytes_recv": 0, "segs_sent": 1, "segs_recv": 1,
    "retransmits": 0, "fast_retx": 0, "sack_recv": 0, "sack_sent": 0, "dup_acks": 0,
}  # fmt: skip

PATH: dict[str, Any] = {
    "node_id": 9, "node": 9, "address": "1:0001.0000.0009", "phase": "direct", "session": True, "proved": True, "encrypted": True,
    "path": {"kind": "hole-punched", "addr": "198.51.100.4:4000", "relay": False, "rtt_ms": 12.1, "answers": True,
             "answered_s": 0.2, "sources": ["registered"], "overhead_ms": None},
    "why": "a hole-punch arranged by the beacon opened the way", "nat": "port_restricted_cone",
    "peer_nat": "restricted_cone", "relay_only": False,
    "candidates": [{"kind": "hole-punched", "addr": "198.51.100.4:4000", "relay": False, "rtt_ms": 12.1, "answers": True,
                    "answered_s": 0.2, "sources": ["registered"]}],
    "history": [],
}  # fmt: skip


class FakeNode(Scripted):
    """A node with a peer 9 named home-agent-2. Behaviour by port of the peer: 7 echoes, 9 counts, 1000 answers `got: ...`, 1001
    and 1002 are the services, 10 takes everything and says nothing, 11 closes after the first bytes, others refuse."""

    def __init__(self, path: Path) -> None:
        self.info = INFO | {"peer_list": [dict(PEER_ROW)]}
        self.path_info: dict[str, Any] | None = dict(PATH)
        self.hosts = {"home-agent-2": (9, "1:0001.0000.0009", False)}
        self.trusted = {9}
        self.pending: list[dict[str, Any]] = []
        self.pending_dropped = 0
        self.grants_handshakes = False
        self.old = False  # a daemon of early 2026: no wait, no confirmed datagrams
        self.filestream = True
        self.traces = False
        self.history_on_dial: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.frames: list[tuple[int, bytes]] = []
        self._next = 0
        super().__init__(path, self._node)

    def codes(self) -> list[int]:
        return [code for code, _ in self.frames]

    def _node(self, peer: Peer) -> None:
        conns: dict[int, Callable[[bytes], list[bytes]]] = {}
        while True:
            code, body = peer.frame()
            self.frames.append((code, body))
            if code == 0x03:
                self._dial(peer, body, conns)
            elif code == SEND:
                conn_id = struct.unpack(">I", body[:4])[0]
                for out in conns[conn_id](body[4:]) if conn_id in conns else ():
                    peer.send(frame(CLOSE_OK, body[:4]) if out == b"" else frame(RECV, body[:4] + out))
            elif code == CLOSE:
                conns.pop(struct.unpack(">I", body[:4])[0], None)
                peer.send(frame(CLOSE_OK, body[:4]), frame(CLOSE_OK, body[:4]))
            elif code not in (0x0B,):
                peer.send(self._reply(code, body))

    def _dial(self, peer: Peer, body: bytes, conns: dict[int, Any]) -> None:
        if self.path_info is not None:
            self.path_info["history"] = [*self.path_info["history"], *self.history_on_dial]
        port = struct.unpack(">H", body[6:8])[0]
        service = {
            7: lambda data: [data],
            9: self._counter(),
            10: lambda data: [],
            11: lambda data: [b""],
            1000: lambda data: [b"got: " + data],
            1001: self._exchange(),
            1002: self._events(),
        }.get(port)
        if service is None:
            peer.send(error("connection refused"))
            return
        self._next += 1
        conns[self._next] = service
        self.info["conn_list"] = [{**CONN_ROW, "id": self._next, "remote_port": port}]
        peer.send(frame(0x04, struct.pack(">I", self._next)))

    def _counter(self) -> Callable[[bytes], list[bytes]]:
        total = 0

        def feed(data: bytes) -> list[bytes]:
            nonlocal total
            total += len(data)
            return [total.to_bytes(8, "big")]

        return feed

    def _exchange(self) -> Callable[[bytes], list[bytes]]:
        reader = FrameReader()
        transfer: dict[str, Any] = {}

        def feed(data: bytes) -> list[bytes]:
            out = []
            for kind, payload in reader.feed(data):
                if kind == 7 and self.filestream:
                    out += self._stream_frame(payload, transfer)
                elif kind == 10 and self.traces:
                    at = 2 + struct.unpack(">H", payload[:2])[0]
                    inner, of, sent = struct.unpack(">IIQ", payload[at : at + 16])
                    assert (inner, of) == (5, 1)
                    self.stored["TEXT"] = payload[at + 16 :]
                    times: dict[str, Any] = {
                        "sent_at_ns": sent, "received_at_ns": sent + 1_500_000, "inbox_written_at_ns": sent + 1_750_000,
                        "ack_sent_at_ns": sent + 1_800_000, "inner_ack": f"ACK TEXT {len(payload) - at - 16} bytes",
                    }  # fmt: skip
                    out.append(encode(3, json.dumps(times).encode()))
                elif kind in (5, 7, 10):
                    out.append(encode(1, f"ERR UNKNOWN({kind}) {len(payload)} bytes".encode()))
                elif kind == 4:
                    size = struct.unpack(">H", payload[:2])[0]
                    self.stored[payload[2 : 2 + size].decode()] = payload[2 + size :]
                    out.append(encode(1, f"ACK FILE {len(payload) - 2 - size} bytes".encode()))
                else:
                    name = {1: "TEXT", 2: "BINARY", 3: "JSON"}[kind]
                    self.stored[name] = payload
                    out.append(encode(1, f"ACK {name} {len(payload)} bytes".encode()))
            return out

        return feed

    def _stream_frame(self, payload: bytes, transfer: dict[str, Any]) -> list[bytes]:
        kind, head, body = payload[0], payload[1:17], payload[17:]
        if kind == 1:
            transfer["name"] = body[46:].decode()
            transfer["sha"] = body[8:40]
            transfer["data"] = bytearray()
            return [encode(7, b"\x05" + head + (0).to_bytes(8, "big"))]
        if kind == 2:
            transfer["data"] += body[8:]
            return [encode(7, b"\x03" + head + len(transfer["data"]).to_bytes(8, "big"))]
        assert kind == 4
        good = hashlib.sha256(transfer["data"]).digest() == transfer["sha"]
        self.stored[transfer["name"]] = bytes(transfer["data"])
        return [encode(7, b"\x06" + head + (b"\0" if good else b"\1bad"))]

    def _events(self) -> Callable[[bytes], list[bytes]]:
        def feed(data: bytes) -> list[bytes]:
            self.stored["events"] = self.stored.get("events", b"") + data
            topic = data[2 : 2 + struct.unpack(">H", data[:2])[0]]
            if not topic.startswith(b"demo"):
                return []
            return [struct.pack(">H", len(topic)) + topic + struct.pack(">I", 5) + b"evt-%d" % i for i in (1, 2)]

        return feed

    def _reply(self, code: int, body: bytes) -> bytes:
        def ok(value: Any) -> bytes:
            return frame(code + 1, json.dumps(value).encode())

        if code == 0x0D:
            return ok(self.info)
        if code == 0x0F:
            return self._trust(body, ok)
        if code == 0x11:
            found = self.hosts.get(body.decode())
            if found is None:
                return error("resolve_hostname: registry: request failed")
            node, address, public = found
            named = {"hostname": body.decode(), "node_id": node, "address": address, "public": public}
            return ok({"type": "resolve_hostname_ok", **named})
        simple: dict[int, Callable[[], Any]] = {
            0x01: lambda: None,
            0x13: lambda: {"type": "set_hostname_ok", "hostname": body.decode(), "node_id": 8},
            0x15: lambda: {"type": "set_visibility_ok", "node_id": 8, "visibility": "public" if body == b"\1" else "private"},
            0x17: lambda: {"type": "deregister_ok"},
            0x19: lambda: {"type": "set_tags_ok", "node_id": 8, "tags": json.loads(body)},
            0x1B: lambda: {"webhook": body.decode()},
            0x1F: lambda: {"networks": [{"id": 1, "name": "home", "join_rule": "open", "members": 2}]},
            0x21: lambda: {"status": "ok", "uptime_seconds": 5, "connections": 1, "peers": 1, "bytes_sent": 1, "bytes_recv": 2},
            0x1D: lambda: {"type": "set_task_exec_ok", "node_id": 8, "task_exec": body == b"\1"},
            0x25: lambda: {"type": "rotate_key_ok", "node_id": 8},
            0x29: lambda: None,
            0x2D: lambda: {"node_id": int.from_bytes(body, "big"), "had_tunnel": False, "resolve_error": ""},
            0x33: lambda: {"envelope": json.loads(body)["body_hash"], "signature": "c2ln", "address": "1:0001.0000.0008"},
            0x35: lambda: {"valid": json.loads(body)["signature"] == "c2ln", "node_id": 8, "reason": "nonsense"},
        }
        if code == 0x60 and self.path_info is not None:
            return ok(self.path_info)
        if code == 0x39 and not self.old:
            return frame(0x3A)
        if code in simple:
            value = simple[code]()
            return frame(code + 1, body if code == 0x01 else b"") if value is None else ok(value)
        return error(f"unknown command: 0x{code:02X}")

    def _trust(self, body: bytes, ok: Callable[[Any], bytes]) -> bytes:
        sub, node = body[0], struct.unpack(">I", body[1:5])[0] if len(body) >= 5 else 0
        if sub == 1:
            if self.grants_handshakes:
                self.trusted.add(node)
            return ok({"status": "sent", "node_id": node})
        if sub == 2:
            if any(p["node_id"] == node for p in self.pending):
                self.trusted.add(node)
            return ok({"status": "approved", "node_id": node})
        if sub == 3:
            return ok({"status": "rejected", "node_id": node})
        if sub == 4:
            return ok({"pending": self.pending} | ({"dropped": self.pending_dropped} if self.pending_dropped else {}))
        if sub == 5:
            row = {"public_key": "AAAA", "approved_at": 1767225600, "mutual": True, "network": 0}
            return ok({"trusted": [{"node_id": n, **row} for n in self.trusted]})
        if sub == 6:
            if node not in self.trusted:
                return error(f"handshake revoke: node {node} was not trusted")
            return ok({"status": "revoked", "node_id": node})
        if self.old:
            return error(f"handshake: unknown sub-command 0x{sub:02X}")
        return ok({"node_id": node, "trusted": node in self.trusted})
