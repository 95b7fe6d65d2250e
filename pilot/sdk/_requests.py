"""Every request of ipc.md section 2 as (code, reply code, label, payload). Pure; no I/O.

The label is what a client of the daemon reads in front of the daemon's text (`dial: daemon: dial timeout`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple

from pilot.errors import PilotError
from pilot.wire.address import Address

MAX_FRAME = 1 << 20  # code and payload
MAX_SEND = 1_048_512  # stream bytes in one Send frame: what upstream clients write at most

BIND, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK, ERROR = range(0x01, 0x0B)
SEND_TO, RECV_FROM = 0x0B, 0x0C

_U16 = Struct(">H").pack
_U32 = Struct(">I").pack
_HEAD = Struct(">IB").pack
_HEAD_ID = Struct(">IBI").pack


class Request(NamedTuple):
    """code, reply: command codes; payload: what follows the code; label: prefix of error texts."""

    code: int
    reply: int
    label: str
    payload: bytes = b""

    def frame(self) -> bytes:
        """The bytes on the socket. Raises PilotError if they exceed the frame limit."""
        if len(self.payload) + 1 > MAX_FRAME:
            raise PilotError(
                "invalid_argument", f"{self.label}: {len(self.payload)} bytes do not fit one frame"
            )
        return _HEAD(len(self.payload) + 1, self.code) + self.payload


def send_head(conn_id: int, size: int) -> bytes:
    """What stands before `size` stream bytes of a Send frame."""
    return _HEAD_ID(size + 5, SEND, conn_id)


def close_frame(conn_id: int) -> bytes:
    """The Close frame of a connection."""
    return _HEAD_ID(5, CLOSE, conn_id)


def send_to_frame(to: Address, port: int, data: bytes) -> bytes:
    """A SendTo frame (no reply)."""
    return Request(SEND_TO, 0, "sendto", to.pack() + _U16(port) + data).frame()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# ---- streams and datagrams ----


def bind(port: int) -> Request:
    return Request(BIND, BIND_OK, "bind", _U16(port))


def unbind(port: int) -> Request:
    return Request(0x37, 0x38, "unbind", _U16(port))


def dial(to: Address, port: int) -> Request:
    return Request(DIAL, DIAL_OK, "dial", to.pack() + _U16(port))


def send_to_confirm(to: Address, port: int, data: bytes) -> Request:
    return Request(0x39, 0x3A, "sendto", to.pack() + _U16(port) + data)


def broadcast(network: int, port: int, data: bytes, token: str) -> Request:
    secret = token.encode()
    head = _U16(network) + _U16(port) + _U16(len(secret))
    return Request(0x29, 0x2A, "broadcast", head + secret + data)


# ---- the node itself ----


def info() -> Request:
    return Request(0x0D, 0x0E, "info")


def health() -> Request:
    return Request(0x21, 0x22, "health")


def resolve_hostname(name: str) -> Request:
    return Request(0x11, 0x12, "resolve_hostname", name.encode())


def set_hostname(name: str) -> Request:
    return Request(0x13, 0x14, "set_hostname", name.encode())


def set_visibility(public: bool) -> Request:
    return Request(0x15, 0x16, "set_visibility", b"\x01" if public else b"\x00")


def deregister() -> Request:
    return Request(0x17, 0x18, "deregister")


def set_tags(tags: Sequence[str]) -> Request:
    return Request(0x19, 0x1A, "set_tags", _json(list(tags)))


def set_webhook(url: str) -> Request:
    return Request(0x1B, 0x1C, "set_webhook", url.encode())


def set_task_exec(on: bool) -> Request:
    return Request(0x1D, 0x1E, "set_task_exec", b"\x01" if on else b"\x00")


def rotate_key() -> Request:
    return Request(0x25, 0x26, "rotate_key")


def prefer_direct(node: int) -> Request:
    return Request(0x2D, 0x2E, "prefer_direct", _U32(node))


def peer_path(node: int, wait_ms: int = 0) -> Request:
    return Request(0x60, 0x61, "path", _U32(node) + _U32(wait_ms))


def submit_badge(badge: str, signature: str) -> Request:
    return Request(0x2F, 0x30, "submit_badge", _json({"badge": badge, "badge_sig": signature}))


def enroll_recovery(enrollment: str, signature: str) -> Request:
    body = _json({"enrollment": enrollment, "enrollment_sig": signature})
    return Request(0x31, 0x32, "enroll_recovery", body)


def sign_envelope(fields: Mapping[str, Any]) -> Request:
    return Request(0x33, 0x34, "sign_envelope", _json(dict(fields)))


def verify_envelope(fields: Mapping[str, Any]) -> Request:
    return Request(0x35, 0x36, "verify_envelope", _json(dict(fields)))


# ---- trust ----


def _handshake(sub: int, label: str, rest: bytes = b"") -> Request:
    return Request(0x0F, 0x10, label, bytes((sub,)) + rest)


def handshake(node: int, justification: str) -> Request:
    return _handshake(1, "handshake", _U32(node) + justification.encode())


def approve_handshake(node: int) -> Request:
    return _handshake(2, "approve", _U32(node))


def reject_handshake(node: int, reason: str) -> Request:
    return _handshake(3, "reject", _U32(node) + reason.encode())


def pending_handshakes() -> Request:
    return _handshake(4, "pending")


def trusted_peers() -> Request:
    return _handshake(5, "trusted")


def revoke_trust(node: int) -> Request:
    return _handshake(6, "revoke", _U32(node))


def wait_for_trust(node: int, timeout_ms: int) -> Request:
    return _handshake(7, "wait", _U32(node) + _U32(timeout_ms))


# ---- networks, policies, member tags ----


def _network(sub: int, label: str, rest: bytes = b"") -> Request:
    return Request(0x1F, 0x20, label, bytes((sub,)) + rest)


def network_list() -> Request:
    return _network(1, "network list")


def network_join(network: int, token: str) -> Request:
    return _network(2, "network join", _U16(network) + token.encode())


def network_leave(network: int) -> Request:
    return _network(3, "network leave", _U16(network))


def network_members(network: int) -> Request:
    return _network(4, "network members", _U16(network))


def network_invite(network: int, node: int) -> Request:
    return _network(5, "network invite", _U16(network) + _U32(node))


def network_poll_invites() -> Request:
    return _network(6, "network poll-invites")


def network_respond_invite(network: int, accept: bool) -> Request:
    return _network(7, "network respond-invite", _U16(network) + (b"\x01" if accept else b"\x00"))


def _managed(sub: int, label: str, rest: bytes) -> Request:
    return Request(0x23, 0x24, label, bytes((sub,)) + rest)


def managed_status(network: int) -> Request:
    return _managed(2, "managed status", _U16(network))


def managed_cycle(network: int) -> Request:
    return _managed(4, "managed cycle", _U16(network))


def managed_reconcile(network: int) -> Request:
    return _managed(7, "managed reconcile", _U16(network))


def policy_get(network: int) -> Request:
    return _managed(5, "policy get", b"\x00" + _U16(network))


def policy_set(network: int, policy: bytes, token: str) -> Request:
    secret = token.encode()
    return _managed(5, "policy set", b"\x01" + _U16(network) + _U16(len(secret)) + secret + policy)


def member_tags_get(network: int, node: int) -> Request:
    return _managed(6, "member-tags get", b"\x00" + _U16(network) + _U32(node))


def member_tags_set(network: int, node: int, tags: Sequence[str]) -> Request:
    return _managed(6, "member-tags set", b"\x01" + _U16(network) + _U32(node) + _json(list(tags)))
