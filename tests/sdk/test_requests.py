"""Requests byte for byte (ipc.md section 2). The bytes are what published clients send for the same calls."""

from __future__ import annotations

import pytest

from pilot.errors import PilotError
from pilot.sdk import _requests as rq
from pilot.wire.address import Address

A77 = Address(0, 77)

REQUESTS = [
    (rq.bind(7001), "00000003011b59"),
    (rq.dial(A77, 7), "000000090300000000004d0007"),
    (rq.dial(Address(5, 0x00010002), 1001), "000000090300050001000203e9"),
    (rq.info(), "000000010d"),
    (rq.handshake(77, "why"), "000000090f010000004d776879"),
    (rq.approve_handshake(77), "000000060f020000004d"),
    (rq.reject_handshake(77, "no"), "000000080f030000004d6e6f"),
    (rq.pending_handshakes(), "000000020f04"),
    (rq.trusted_peers(), "000000020f05"),
    (rq.revoke_trust(77), "000000060f060000004d"),
    (rq.wait_for_trust(77, 5000), "0000000a0f070000004d00001388"),
    (rq.resolve_hostname("bravo"), "0000000611627261766f"),
    (rq.set_hostname("alpha"), "0000000613616c706861"),
    (rq.set_hostname(""), "0000000113"),
    (rq.set_visibility(True), "000000021501"),
    (rq.set_visibility(False), "000000021500"),
    (rq.deregister(), "0000000117"),
    (rq.set_tags(["a", "b"]), "0000000a195b2261222c2262225d"),
    (rq.set_tags([]), "00000003195b5d"),
    (rq.set_webhook("http://127.0.0.1:8080/h"), "000000181b687474703a2f2f3132372e302e302e313a383038302f68"),
    (rq.set_webhook(""), "000000011b"),
    (rq.set_task_exec(True), "000000021d01"),
    (rq.network_list(), "000000021f01"),
    (rq.network_join(3, "tk"), "000000061f020003746b"),
    (rq.network_leave(3), "000000041f030003"),
    (rq.network_members(3), "000000041f040003"),
    (rq.network_invite(3, 77), "000000081f0500030000004d"),
    (rq.network_poll_invites(), "000000021f06"),
    (rq.network_respond_invite(3, True), "000000051f07000301"),
    (rq.health(), "0000000121"),
    (rq.managed_status(3), "0000000423020003"),
    (rq.policy_set(3, b'{"a":1}', "tok"), "0000001123050100030003746f6b7b2261223a317d"),
    (rq.rotate_key(), "0000000125"),
    (rq.broadcast(0, 6000, b"hi", "tok"), "0000000c29000017700003746f6b6869"),
    (rq.prefer_direct(77), "000000052d0000004d"),
    (rq.unbind(7001), "00000003371b59"),
    (rq.send_to_confirm(A77, 6000, b"dg"), "0000000b3900000000004d17706467"),
    (rq.peer_path(9, 250), "0000000960" + "00000009" + "000000fa"),
]


@pytest.mark.parametrize(("request_", "expected"), REQUESTS, ids=lambda v: v if isinstance(v, str) else v.label)
def test_request(request_: rq.Request, expected: str) -> None:
    assert request_.frame().hex() == expected


def test_frames_without_a_reply() -> None:
    assert (rq.send_head(1, 5) + b"hello").hex() == "0000000a060000000168656c6c6f"
    assert rq.close_frame(1).hex() == "000000050800000001"
    assert rq.send_to_frame(A77, 6000, b"dg").hex() == "0000000b0b00000000004d17706467"


def test_largest_frame() -> None:
    fits = (1 << 20) - 9
    assert len(rq.send_to_confirm(A77, 1, b"x" * fits).frame()) == 4 + (1 << 20)
    with pytest.raises(PilotError):
        rq.send_to_confirm(A77, 1, b"x" * (fits + 1)).frame()
