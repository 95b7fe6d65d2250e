"""The daemon's side of the WebSocket: the bridge to the data plane, certificates, proxies, the detour to the registry."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from blocked import certificate
from door import Addr, Door, Identity, Udp, quiet, until

from pilot.daemon.bridge import BeaconLink, Bridge, RegistryStream
from pilot.daemon.compat import Compat, Settings
from pilot.daemon.config import DaemonConfig, load
from pilot.daemon.dial import Door as Way
from pilot.daemon.dial import check_proxy, connect, proxy_for
from pilot.errors import PilotError
from pilot.registry.client import RegistryClient
from pilot.registry.connection import Connection
from pilot.registry.server import RegistryServer
from pilot.registry.store import MemoryStore
from pilot.registry.tls import fingerprint, server_context
from pilot.wire import beacon as wire

FRAME = b"PILS\x00\x00\x00\x64" + bytes(40)


class Engine:
    """The tunnel socket: what the bridge says to the data plane, and the other way round."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind((host, 0))
        self.addr: Addr = (host, self.socket.getsockname()[1])
        self.bridge = Bridge(self.addr)
        self.socket.connect(self.bridge.addr)
        self.link: BeaconLink | None = None

    async def join(self, door: Door, node: int) -> Engine:
        key = door.nodes.setdefault(node, Identity())
        way = Way(door.url(), proxy="off")
        self.link = BeaconLink(way.uri(), self.bridge.deliver, self.bridge.pong)
        await connect(way, way.uri(), self.link)
        await self.link.authenticate(node, key.public_text, key.sign)
        self.bridge.use(self.link)
        return self

    async def receive(self) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    def close(self) -> None:
        if self.link:
            self.link.abort()
        self.bridge.close()
        self.socket.close()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with Door() as opened:
        yield opened


# Bridge


async def test_the_engine_sees_a_relay(door: Door) -> None:
    node, engine = await Udp(door.udp).register(200), await Engine().join(door, 100)
    engine.socket.send(wire.discover(100))
    reply = wire.parse(await engine.receive())
    assert isinstance(reply, wire.DiscoverReply) and reply.endpoint == ("0.0.0.0", 0), "it is there, and knows no endpoint"
    engine.socket.send(wire.relay(100, 200, FRAME))
    assert await node.receive() == wire.Deliver(100, FRAME).build()
    node.socket.send(wire.relay(200, 100, FRAME))
    assert await engine.receive() == wire.Deliver(200, FRAME).build()
    engine.close()
    node.close()


async def test_trains_keep_their_datagrams(door: Door) -> None:
    """Segmentation offload in both directions, with a shorter last one and sizes that change."""
    node, engine = await Udp(door.udp).register(200), await Engine().join(door, 100)
    frames = [bytes([n % 251]) * size for n, size in enumerate([1200] * 40 + [300] + [1200] * 3 + [1400] * 5 + [9, 8000, 1])]
    train = b"".join(wire.relay(100, 200, bytes([n]) * 1000) for n in range(30)) + wire.relay(100, 200, b"short")
    engine.socket.sendmsg([train], [(socket.IPPROTO_UDP, 103, struct.pack("=H", 1009))])
    for n in range(30):
        assert await node.receive() == wire.Deliver(100, bytes([n]) * 1000).build()
    assert await node.receive() == wire.Deliver(100, b"short").build()
    for frame in frames:
        node.socket.send(wire.relay(200, 100, frame))
    for frame in frames:
        assert await engine.receive() == wire.Deliver(200, frame).build()
    engine.bridge._gso = False  # a kernel without it
    for frame in frames:
        node.socket.send(wire.relay(200, 100, frame))
    for frame in frames:
        assert await engine.receive() == wire.Deliver(200, frame).build()
    assert engine.bridge.dropped == 0
    engine.close()
    node.close()


async def test_only_the_tunnel_socket_uses_the_bridge(door: Door) -> None:
    node, engine = await Udp(door.udp).register(200), await Engine().join(door, 100)
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.sendto(wire.relay(100, 200, b"not ours"), engine.bridge.addr)
    for useless in (wire.punch_request(100, 200), b"PILP", b"\xff"):
        engine.socket.send(useless)
    engine.socket.send(wire.relay(100, 200, b"ours"))
    assert await node.receive() == wire.Deliver(100, b"ours").build()
    assert not node.arrived()
    engine.close()
    stranger.close()
    node.close()


async def test_without_a_link_the_beacon_is_silent(door: Door) -> None:
    engine = Engine()
    engine.socket.send(wire.discover(100))
    engine.socket.send(wire.relay(100, 200, FRAME))
    await until(lambda: engine.bridge.dropped == 2, "both are counted as lost")
    assert await quiet(asyncio.get_running_loop().sock_recv(engine.socket, 100))
    engine.close()


async def test_a_beacon_that_hangs_is_left(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.daemon.bridge.PONG_S", 0.1)
    engine = await Engine().join(door, 100)
    assert engine.link is not None and engine.link.transport is not None
    engine.link.transport.pause_reading()  # the pong never comes
    engine.socket.send(wire.discover(100))
    async with asyncio.timeout(5):
        assert await engine.link.ended
    engine.close()


async def test_only_what_a_beacon_delivers_reaches_the_engine() -> None:
    engine = Engine()
    engine.bridge.deliver([wire.DiscoverReply(("203.0.113.1", 5)).build(), wire.PunchCommand(("203.0.113.1", 5)).build(), b"",
                           b"PILS", wire.Notify(1).build()])  # fmt: skip
    assert await engine.receive() == wire.Notify(1).build()
    assert await quiet(asyncio.get_running_loop().sock_recv(engine.socket, 100))
    engine.close()


async def test_a_refusal_is_told(door: Door) -> None:
    engine = Engine()
    way = Way(door.url(), proxy="off")
    link = BeaconLink(way.uri(), engine.bridge.deliver, engine.bridge.pong)
    await connect(way, way.uri(), link)
    with pytest.raises(PilotError, match="1008 unknown node"):
        await link.authenticate(100, Identity().public_text, Identity().sign)
    missing = BeaconLink(Way(door.url("/elsewhere")).uri(), engine.bridge.deliver, engine.bridge.pong)
    await connect(way, Way(door.url("/elsewhere")).uri(), missing)
    with pytest.raises(PilotError, match="404"):
        await missing.challenged()
    engine.close()


# Certificates


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[Door, Path]]:
    made, key = certificate(tmp_path, "127.0.0.1")
    async with Door(tls=server_context(made, key)) as opened:
        yield opened, made


async def challenged(way: Way) -> None:
    link = BeaconLink(way.uri(), lambda _: None, lambda: None)
    try:
        await connect(way, way.uri(), link)
        async with asyncio.timeout(5):
            await link.challenged()
    finally:
        link.abort()


async def test_a_pinned_certificate(secure: tuple[Door, Path]) -> None:
    door, made = secure
    await challenged(Way(door.url(), fingerprint(made), "off"))
    await challenged(Way(door.url(), fingerprint(made).upper(), "off"))
    with pytest.raises(PilotError, match="not the pinned one") as refused:
        await challenged(Way(door.url(), "00" * 32, "off"))
    assert refused.value.code == "permission_denied" and "-compat-fingerprint" in refused.value.hint
    await until(lambda: door.wss.stats()["wss_connections_open"] == 0, "all are closed")


async def test_system_trust(secure: tuple[Door, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    door, made = secure
    with pytest.raises(OSError, match=r"(?i)certificate.verify.failed"):
        await challenged(Way(door.url(), "", "off"))
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    await challenged(Way(door.url(), "", "off"))
    await challenged(Way(door.url().replace("127.0.0.1", "localhost"), "", "off"))
    other, key = certificate(made.parent, "192.0.2.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    async with Door(tls=server_context(other, key)) as elsewhere:
        with pytest.raises(OSError, match=r"(?i)certificate.verify.failed"):  # the name has to fit too
            await challenged(Way(elsewhere.url(), "", "off"))


# Proxies


class Proxy:
    """An HTTP proxy that does CONNECT. answer: what it says instead."""

    def __init__(self, answer: bytes = b"", credentials: str = "") -> None:
        self.answer = answer
        self.wanted = b"Basic " + base64.b64encode(credentials.encode()) if credentials else b""
        self.asked: list[str] = []
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            head = await reader.readuntil(b"\r\n\r\n")
            verb, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
            self.asked.append(target.decode())
            if self.answer:
                writer.write(self.answer)
            elif self.wanted and b"Proxy-Authorization: " + self.wanted not in head:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            else:
                assert verb == b"CONNECT"
                # Names mean what this proxy says: the client may not be able to resolve them.
                port = int(target.rpartition(b":")[2])
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@pytest.mark.parametrize("tls", [True, False])
async def test_through_a_proxy(tls: bool, tmp_path: Path) -> None:
    made, key = certificate(tmp_path, "127.0.0.1")
    async with Proxy(credentials="me:se:cret") as proxy, Door(tls=server_context(made, key) if tls else None) as door:
        node = await Udp(door.udp).register(200)
        engine = Engine()
        way = Way(door.url().replace("127.0.0.1", "beacon.example"), fingerprint(made), f"http://me:se%3Acret@127.0.0.1:{proxy.port}")
        link = BeaconLink(way.uri(), engine.bridge.deliver, engine.bridge.pong)
        await connect(way, way.uri(), link)
        door.nodes[100] = Identity()
        await link.authenticate(100, door.nodes[100].public_text, door.nodes[100].sign)
        engine.bridge.use(link)
        engine.socket.send(wire.relay(100, 200, FRAME))
        assert await node.receive() == wire.Deliver(100, FRAME).build()
        assert proxy.asked == [f"beacon.example:{door.port}"]
        with pytest.raises(PilotError, match="407") as refused:
            await challenged(Way(way.url, way.pin, f"http://127.0.0.1:{proxy.port}"))
        assert "-proxy" in refused.value.hint and "cret" not in refused.value.message
        link.abort()
        engine.close()
        node.close()


@pytest.mark.parametrize(("says", "error"), [
    (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"), (b"SSH-2.0\r\n\r\n", "refuses"), (b"x" * 20_000, "does not speak HTTP"),
    (b"HTTP/1.1 200 OK\r\n\r\nearly", "does not speak HTTP"), (b"HTTP/1.1\r\n\r\n", "refuses"),
])  # fmt: skip
async def test_a_proxy_that_refuses_or_is_none(says: bytes, error: str) -> None:
    async with Proxy(says) as proxy:
        with pytest.raises(PilotError, match=error):
            await challenged(Way("wss://beacon.example/v1/compat", "", f"http://127.0.0.1:{proxy.port}"))


async def test_a_proxy_that_hangs_up() -> None:
    async with Proxy() as proxy:
        with pytest.raises(OSError):  # it cannot reach the host: closes without a word
            await challenged(Way("ws://beacon.example:1/v1/compat", "", f"http://127.0.0.1:{proxy.port}"))


def test_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_for("auto", "b.example", True) == ""
    monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", ".local.example,10.0.0.1")
    assert proxy_for("auto", "b.example", True) == "http://p:1"
    assert proxy_for("auto", "x.local.example", True) == "" and proxy_for("auto", "10.0.0.1", True) == ""
    assert proxy_for("off", "b.example", True) == "" and proxy_for("http://q:2", "x.local.example", True) == "http://q:2"
    assert proxy_for("http://q:2", "127.0.0.1", True) == proxy_for("http://q:2", "localhost", True) == ""
    monkeypatch.setenv("ALL_PROXY", "http://a:3")
    monkeypatch.delenv("HTTPS_PROXY")
    assert proxy_for("auto", "b.example", True) == "http://a:3"
    assert check_proxy("") == "auto" and check_proxy("direct") == "off"
    for wrong in ("socks5://x:1", "http://", "http://x:y", "x:1"):
        with pytest.raises(ValueError, match="want auto"):
            check_proxy(wrong)


# Settings


def settings(*argv: str, **env: str) -> DaemonConfig:
    return load(["-registry", "r.example:9000", *argv], env)


def test_the_beacons_name_is_enough() -> None:
    plain = settings()
    assert plain.transport == "auto" and plain.door == Way("wss://r.example/v1/compat", "", "auto")
    assert settings("-beacon", "[2001:db8::1]:9001").door.url == "wss://[2001:db8::1]/v1/compat"
    assert settings("-beacon", "[2001:db8::1]:9001").door.uri().host == "2001:db8::1"
    assert settings(PILOT_TRANSPORT="compat", PILOT_PROXY="http://p:1").door.proxy == "http://p:1"
    pin = "AB:" * 31 + "CD"
    assert settings("-compat-fingerprint", pin).door.pin == "ab" * 31 + "cd"
    assert settings("-compat-fingerprint", pin, "-tls-trust", "system").door.pin == ""


@pytest.mark.parametrize(("argv", "says"), [
    (("-transport", "tcp"), "want one of auto, udp, compat"), (("-compat-beacon", "https://x"), "not a WebSocket URL"),
    (("-tls-trust", "pinned"), "-compat-fingerprint"), (("-compat-fingerprint", "12"), "64 hex digits"),
    (("-proxy", "socks5://x:1"), "want auto, off"),
])  # fmt: skip
def test_mistakes_are_named(argv: tuple[str, ...], says: str) -> None:
    with pytest.raises(PilotError, match=says):
        settings(*argv)


# The registry by another way


async def test_the_registry_is_found_behind_the_beacon() -> None:
    server = RegistryServer(MemoryStore())
    here = await server.start("127.0.0.1", 0)
    door = Door()
    door.connection = lambda: Connection(server)
    async with door:
        way = Way(door.url(), proxy="off")

        async def detour(inner: asyncio.Protocol) -> None:
            await compat.registry_stream(inner)

        compat = _compat(way)
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))
        identity = Identity()
        client = RegistryClient("127.0.0.1", closed.getsockname()[1], _Signer(identity))
        with pytest.raises(PilotError, match="does not answer"):
            await client.call("lookup", {"node_id": 1}, deadline_s=0.3)
        client.reset()
        client.use_detour(detour)
        reply = await client.register("0.0.0.0:4000", hostname="far-away")
        assert (await client.lookup(int(reply["node_id"])))["hostname"] == "far-away"
        assert server.stats()["connections_open"] == 1 and door.wss.counts["registry_streams"] == 1
        await client.close()
        await until(lambda: server.stats()["connections_open"] == 0, "the stream is closed")
        direct = RegistryClient(*here)  # where the port can be reached, nobody makes a detour
        direct.use_detour(detour)
        assert (await direct.lookup(int(reply["node_id"])))["hostname"] == "far-away"
        assert door.wss.counts["registry_streams"] == 1
        await direct.close()
        closed.close()
    await server.stop()


async def test_a_beacon_without_registry_is_no_detour(door: Door) -> None:
    way = Way(door.url("/v1/registry"), proxy="off")
    stream = RegistryStream(way.uri())
    await connect(way, way.uri(), stream)
    with pytest.raises(PilotError, match="no registry beside the beacon"):
        await stream.opened


class _Signer:
    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self.public_key = identity.public_key
        self.public_text = identity.public_text

    def sign(self, text: bytes) -> bytes:
        return self._identity.sign(text)


def _compat(way: Way) -> Compat:
    nothing: Any = None
    return Compat(Settings("auto", way), nothing, ("127.0.0.1", 1), Identity(), lambda: 0, lambda _: None)
