"""The daemon's local socket: what the daemon sends (ipc.md 1, 2). What clients send: pilot.wire.ipc_requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pilot.wire.address import Address
from pilot.wire.errors import WireError
from pilot.wire.ipc_frames import ERROR_CODE, MAX_FRAME, MAX_SEND, Cmd, FrameReader, frame, head, parse_frame
from pilot.wire.ipc_message import ADDRESS, DATA, OBJECT, TEXT, U16, U32, Message, to_json

__all__ = [
    "ERROR_CODE", "MAX_FRAME", "MAX_SEND", "Accept", "BindOk", "BroadcastOk", "CloseOk", "Cmd", "DialOk", "Error",
    "FrameReader", "JsonReply", "Recv", "RecvFrom", "Reply", "SendToConfirmOk", "UnbindOk", "error", "frame", "head",
    "json_frame", "parse_frame", "parse_reply",
]  # fmt: skip


class BindOk(Message):
    """The port is bound; connections to it come as Accept."""

    code = Cmd.BIND_OK
    layout = (U16,)
    port: int


class DialOk(Message):
    """The remote side has accepted."""

    code = Cmd.DIAL_OK
    layout = (U32,)
    conn_id: int


class Accept(Message):
    """Push: a connection came for a bound port."""

    code = Cmd.ACCEPT
    layout = (U16, U32, ADDRESS, U16)
    local_port: int
    conn_id: int
    remote: Address
    remote_port: int


class Recv(Message):
    """Push: stream bytes."""

    code = Cmd.RECV
    layout = (U32, DATA)
    conn_id: int
    data: bytes


class CloseOk(Message):
    """Push, even when it answers Close: the connection is gone."""

    code = Cmd.CLOSE_OK
    layout = (U32,)
    conn_id: int


class Error(Message):
    """The request failed. number: ERROR_CODE."""

    code = Cmd.ERROR
    layout = (U16, TEXT)
    number: int
    text: str


class RecvFrom(Message):
    """Push: a datagram."""

    code = Cmd.RECV_FROM
    layout = (ADDRESS, U16, U16, DATA)
    source: Address
    source_port: int
    port: int
    data: bytes


class UnbindOk(Message):
    """The port is free."""

    code = Cmd.UNBIND_OK
    layout = (U16,)
    port: int


class SendToConfirmOk(Message):
    """The datagram was sent."""

    code = Cmd.SEND_TO_CONFIRM_OK


class BroadcastOk(Message):
    """The broadcast was sent."""

    code = Cmd.BROADCAST_OK


class JsonReply(NamedTuple):
    """A reply whose payload is a JSON object."""

    code: int
    fields: Mapping[str, Any]


Reply = BindOk | DialOk | Accept | Recv | CloseOk | Error | RecvFrom | UnbindOk | SendToConfirmOk | BroadcastOk | JsonReply

_REPLIES: dict[int, type[Message]] = {
    c.code: c
    for c in (BindOk, DialOk, Accept, Recv, CloseOk, Error, RecvFrom, UnbindOk, SendToConfirmOk, BroadcastOk)
}
_JSON_REPLIES = frozenset(c for c in Cmd if c.name.endswith("_OK") and c not in _REPLIES)


def parse_reply(code: int, payload: bytes) -> Reply:
    """What a daemon sent. Raises WireError for a request code, an unknown one, and payloads that are malformed."""
    if code in _JSON_REPLIES:
        return JsonReply(code, OBJECT.unpack(payload))
    known = _REPLIES.get(code)
    if known is None:
        raise WireError(f"0x{code:02X} is no reply")
    return known.parse(payload)  # type: ignore[return-value]


def error(text: str) -> bytes:
    """An Error frame; texts beyond 64 KiB are cut."""
    return frame(Cmd.ERROR, ERROR_CODE.to_bytes(2, "big") + text.encode("utf-8", "replace")[: 1 << 16])


def json_frame(code: int, value: Any) -> bytes:
    """A frame with compact JSON. Raises WireError above MAX_FRAME and for values that JSON does not know."""
    try:
        payload = to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"reply cannot be encoded: {error}") from None
    return frame(code, payload)
