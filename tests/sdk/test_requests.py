"""What each method of both clients writes (ipc.md section 2). The bytes are what published clients send for the same calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fakedaemon import Peer, Scripted, error, frame

from pilot.errors import PilotError
from pilot.sdk import Client, LocalClient
from pilot.wire.address import Address

A77 = Address(0, 77)

CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.dial_addr(A77, 7), "000000090300000000004d0007"),
    (lambda c: c.dial("5:0005.0001.0002:1001"), "000000090300050001000203e9"),
    (lambda c: c.listen(7001), "00000003011b59"),
    (lambda c: c.info(), "000000010d"),
    (lambda c: c.handshake(77, "why"), "000000090f010000004d776879"),
    (lambda c: c.approve_handshake(77), "000000060f020000004d"),
    (lambda c: c.reject_handshake(77, "no"), "000000080f030000004d6e6f"),
    (lambda c: c.pending_handshakes(), "000000020f04"),
    (lambda c: c.trusted_peers(), "000000020f05"),
    (lambda c: c.revoke_trust(77), "000000060f060000004d"),
    (lambda c: c.wait_for_trust(77, 5000), "0000000a0f070000004d00001388"),
    (lambda c: c.resolve_hostname("bravo"), "0000000611627261766f"),
    (lambda c: c.set_hostname("alpha"), "0000000613616c706861"),
    (lambda c: c.set_hostname(""), "0000000113"),
    (lambda c: c.set_visibility(True), "000000021501"),
    (lambda c: c.set_visibility(False), "000000021500"),
    (lambda c: c.deregister(), "0000000117"),
    (lambda c: c.set_tags(["a", "b"]), "0000000a195b2261222c2262225d"),
    (lambda c: c.set_tags([]), "00000003195b5d"),
    (lambda c: c.set_webhook("http://127.0.0.1:8080/h"), "000000181b687474703a2f2f3132372e302e302e313a383038302f68"),
    (lambda c: c.set_webhook(""), "000000011b"),
    (lambda c: c.set_task_exec(True), "000000021d01"),
    (lambda c: c.network_list(), "000000021f01"),
    (lambda c: c.network_join(3, "tk"), "000000061f020003746b"),
    (lambda c: c.network_leave(3), "000000041f030003"),
    (lambda c: c.network_members(3), "000000041f040003"),
    (lambda c: c.network_invite(3, 77), "000000081f0500030000004d"),
    (lambda c: c.network_poll_invites(), "000000021f06"),
    (lambda c: c.network_respond_invite(3, True), "000000051f07000301"),
    (lambda c: c.health(), "0000000121"),
    (lambda c: c.managed_status(3), "0000000423020003"),
    (lambda c: c.policy_set(3, b'{"a":1}', "tok"), "0000001123050100030003746f6b7b2261223a317d"),
    (lambda c: c.rotate_key(), "0000000125"),
    (lambda c: c.broadcast(0, 6000, b"hi", "tok"), "0000000c29000017700003746f6b6869"),
    (lambda c: c.prefer_direct(77), "000000052d0000004d"),
    (lambda c: c.send_to(A77, 6000, b"dg"), "0000000b0b00000000004d17706467"),
    (lambda c: c.send_to_confirm(A77, 6000, b"dg"), "0000000b3900000000004d17706467"),
    (lambda c: c.disconnect(1), "000000050800000001"),
    (lambda c: c.peer_path(9, 250), "000000096000000009000000fa"),
]


class Recorder(Scripted):
    """Answers everything with an error and keeps the first frame."""

    def __init__(self, path: Path) -> None:
        self.first = ""
        super().__init__(path, self._take)

    def _take(self, peer: Peer) -> None:
        code, body = peer.frame()
        self.first = frame(code, body).hex()
        peer.send(error("no"))
        peer.frame()

    def seen(self) -> str:
        from fakedaemon import wait_for

        return str(wait_for(lambda: self.first, "a frame"))


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[c[1] for c in CALLS])
def test_blocking(tmp_path: Path, call: Callable[[LocalClient], Any], expected: str) -> None:
    with Recorder(tmp_path / "p.sock") as d, LocalClient(d.path) as c:
        with suppress(PilotError):
            call(c)
        assert d.seen() == expected


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=[c[1] for c in CALLS])
async def test_asyncio(tmp_path: Path, call: Callable[[Client], Awaitable[Any]], expected: str) -> None:
    with Recorder(tmp_path / "p.sock") as d:
        async with Client(d.path) as c, asyncio.timeout(10):
            with suppress(PilotError):
                await call(c)
            assert await asyncio.to_thread(d.seen) == expected


def test_stream_bytes(tmp_path: Path) -> None:
    got = []

    def script(peer: Peer) -> None:
        peer.frame()
        peer.send(frame(0x04, b"\0\0\0\1"))
        got.extend(frame(*peer.frame()).hex() for _ in range(2))

    with Scripted(tmp_path / "p.sock", script) as d, LocalClient(d.path) as c:
        with c.dial_addr(A77, 7) as conn:
            conn.write(b"hello")
        with suppress(PilotError):
            c.info()
    assert got == ["0000000a060000000168656c6c6f", "000000050800000001"]
