"""The local socket: frames as clients and daemons have sent them, and what a daemon must answer to malformed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot import _core
from pilot.wire import WireError, address, ipc
from pilot.wire import ipc_networks as networks
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address
from pilot.wire.ipc_message import Request

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ipc.json").read_text())
REQUESTS = [row for row in VECTORS["frames"] if row["dir"] == "c2d"] + VECTORS["requests"]
REPLIES = [row for row in VECTORS["frames"] if row["dir"] == "d2c"] + VECTORS["replies"]


def shorten(row: dict[str, Any]) -> str:
    return str(row["hex"])[:40]


def split(row: dict[str, Any]) -> tuple[int, bytes]:
    """Code and payload of a recorded frame, after checking that both frame parsers agree."""
    raw = bytes.fromhex(row["hex"])
    frame = ipc.parse_frame(raw)
    assert frame == _core.ipc_parse(raw) and frame is not None and frame[2] == len(raw)
    assert ipc.FrameReader().feed(raw) == [frame[:2]]
    return frame[0], frame[1]


def expected_of(decoded: dict[str, Any]) -> dict[str, Any]:
    """The recorded fields, addresses and bytes read."""
    out = {}
    for name, value in decoded.items():
        if name == "data":
            value = value.encode()
        elif name == "data_hex":
            name, value = "data", bytes.fromhex(value)
        elif name.endswith("addr"):
            value = address.parse(value)
        out[name] = value
    return out


def facts(request: Request) -> dict[str, Any]:
    """A parsed request under the names of the recordings."""
    sub = {"sub": request.lead[0]} if request.lead else {}
    match request:
        case rq.Bind(port=port) | rq.Unbind(port=port):
            return {"port": port}
        case rq.Dial():
            return {"addr": request.address, "port": request.port}
        case rq.Send():
            return {"conn_id": request.conn_id, "data": request.data}
        case rq.Close():
            return {"conn_id": request.conn_id}
        case rq.SendTo() | rq.SendToConfirm():
            return {"addr": request.address, "port": request.port, "data": request.data}
        case rq.Broadcast():
            return {"network_id": request.network, "port": request.port, "token": request.token, "data": request.data}
        case rq.ResolveHostname() | rq.SetHostname():
            return {"text": request.hostname}
        case rq.SetWebhook():
            return {"text": request.url}
        case rq.SetVisibility():
            return {"value": int(request.public)}
        case rq.SetTaskExec():
            return {"value": int(request.on)}
        case rq.SetTags():
            return {"json": list(request.tags)}
        case rq.PreferDirect():
            return {"node_id": request.node}
        case rq.SubmitBadge() | rq.EnrollRecovery() | rq.SignEnvelope() | rq.VerifyEnvelope():
            return {"json": request.fields}
        case rq.Handshake():
            return {**sub, "node_id": request.node, "text": request.justification}
        case rq.RejectHandshake():
            return {**sub, "node_id": request.node, "text": request.reason}
        case rq.ApproveHandshake() | rq.RevokeTrust():
            return {**sub, "node_id": request.node}
        case rq.WaitForTrust():
            return {**sub, "node_id": request.node, "timeout_ms": request.timeout_ms}
        case networks.NetworkJoin():
            return {**sub, "network_id": request.network, "token": request.token}
        case networks.NetworkLeave() | networks.NetworkMembers():
            return {**sub, "network_id": request.network}
        case networks.NetworkInvite():
            return {**sub, "network_id": request.network, "target_node_id": request.node}
        case networks.NetworkRespondInvite():
            return {**sub, "network_id": request.network, "accept": int(request.accept)}
    if request.code == ipc.Cmd.MANAGED:
        return {**sub, "rest_hex": request.payload[1:].hex()}
    return sub


@pytest.mark.parametrize("row", REQUESTS, ids=shorten)
def test_recorded_requests(row: dict) -> None:
    code, payload = split(row)
    if "decoded" not in row:
        return
    decoded = row["decoded"]
    if code in (ipc.Cmd.CANCEL,):
        assert rq.parse_request(code, payload) == rq.Cancel()
        return
    request = rq.parse_request(code, payload)
    expected = expected_of(decoded)
    assert {"cmd": request.code, **facts(request)} == expected
    if code != ipc.Cmd.SIGN_ENVELOPE:  # JSON of others may be written with blanks
        again = rq.parse_request(request.code, request.payload)
        assert again == request
        if not {"json", "value"} & set(expected):
            assert request.frame().hex() == row["hex"]


@pytest.mark.parametrize("row", REPLIES, ids=shorten)
def test_recorded_replies(row: dict) -> None:
    code, payload = split(row)
    reply = ipc.parse_reply(code, payload)
    expected = expected_of(row["decoded"])
    assert expected.pop("cmd") == code
    if isinstance(reply, ipc.JsonReply):
        assert reply.fields == expected["json"]
        again = ipc.parse_frame(ipc.json_frame(code, dict(reply.fields)))
        assert again is not None and ipc.parse_reply(again[0], again[1]) == reply
        return
    assert reply.frame().hex() == row["hex"]
    names = {"remote_addr": "remote", "src_addr": "source", "src_port": "source_port", "code": "number", "message": "text"}
    if isinstance(reply, ipc.RecvFrom):
        names["dst_port"] = "port"
    for recorded, value in expected.items():
        assert getattr(reply, names.get(recorded, recorded)) == value


@pytest.mark.parametrize("row", VECTORS["errors"], ids=lambda row: row["text"])
def test_malformed_requests_get_the_text_clients_know(row: dict) -> None:
    code, payload = split(row)
    with pytest.raises(WireError) as caught:
        rq.parse_request(code, payload)
    assert caught.value.reason == row["text"]
    reply = ipc.parse_frame(ipc.error(caught.value.reason))
    assert reply and ipc.parse_reply(*reply[:2]) == ipc.Error(1, row["text"])


@pytest.mark.parametrize(
    "code,payload,text",
    [
        (0x0B, b"\0", "sendto: missing address/port"),
        (0x06, b"\0", "send: missing conn_id"),
        (0x37, b"", "unbind: port is required"),
        (0x29, bytes(4) + b"\0\x05abc", "broadcast: truncated token"),
        (0x29, bytes(5), "broadcast: missing header"),
        (0x0F, b"\3\0", "handshake reject: missing node_id"),
        (0x0F, b"\6\0\0\0", "handshake revoke: missing node_id"),
        (0x60, b"\0\0\0", "path: missing node_id"),
        (0x23, b"", "managed: missing sub-command"),
        (0x23, b"\5", "managed: unknown sub-command 0x05"),
        (0x2D, bytes(5), "prefer_direct: payload must be 4 bytes (node_id)"),
    ],
)
def test_more_error_texts(code: int, payload: bytes, text: str) -> None:
    with pytest.raises(WireError) as caught:
        rq.parse_request(code, payload)
    assert caught.value.reason == text


@pytest.mark.parametrize("raw", [b"", b"{", b"{}", b"[1]", b'"a"', b"[" * 100_000, b"\xff", b'["\\ud800"]', b"[NaN]"])
def test_tags_must_be_a_list_of_texts(raw: bytes) -> None:
    with pytest.raises(WireError, match=r"^set_tags: invalid JSON"):
        rq.SetTags.parse(raw)


def test_tags_null_is_none() -> None:
    assert rq.SetTags.parse(b"null") == rq.SetTags([])


def test_visibility_is_public_only_for_one() -> None:
    assert [rq.SetVisibility.parse(bytes((value,))).public for value in (0, 1, 2, 255)] == [False, True, False, False]


def test_path_info_waits_only_if_asked() -> None:
    assert rq.parse_request(0x60, bytes.fromhex("00000008")) == rq.PathInfo(8, 0)
    assert rq.parse_request(0x60, bytes.fromhex("0000000800000bb8")) == rq.PathInfo(8, 3000)
    assert rq.PathInfo(8).payload.hex() == "0000000800000000" and rq.PathInfo(8).reply == 0x61


def test_names_and_codes() -> None:
    for code, name in VECTORS["command_names"].items():
        cmd = ipc.Cmd(int(code, 16))
        expected = "SendToConfirmOK" if name == "SendToOK" else name
        assert cmd.name.replace("_", "") == expected.upper(), code


def test_replies_are_told_from_requests() -> None:
    for code in (0x01, 0x03, 0x06, 0x08, 0x0B, 0x0D, 0x2B, 0x00, 0x7F, 0xFF):
        with pytest.raises(WireError):
            ipc.parse_reply(code, b"{}")
    for code in (0x02, 0x04, 0x05, 0x07, 0x09, 0x0A, 0x0C, 0x0E):
        with pytest.raises(WireError, match=f"^unknown command: 0x{code:02X}$"):
            rq.parse_request(code, bytes(16))
    for silent in (rq.Send(1, b""), rq.Close(1), rq.SendTo(Address(0, 1), 2, b""), rq.Cancel()):
        assert silent.reply == 0


def test_frame_limit() -> None:
    limit = VECTORS["limits"]["max_message_bytes"]
    largest = rq.Send(1, bytes(limit - 5)).frame()
    assert ipc.parse_frame(largest) == (6, largest[5:], len(largest)) == _core.ipc_parse(largest)
    with pytest.raises(WireError):
        rq.Send(1, bytes(limit - 4)).frame()
    head = (limit + 1).to_bytes(4, "big")
    for parse in (ipc.parse_frame, ipc.FrameReader().feed):
        with pytest.raises(WireError):
            parse(head)
    with pytest.raises(_core.CoreError):
        _core.ipc_parse(head)


def test_frames_come_in_any_pieces() -> None:
    frames = [rq.Info().frame(), bytes(4), rq.Send(7, b"x" * 300).frame(), rq.Close(7).frame()]
    reader, out = ipc.FrameReader(), []
    for byte in b"".join(frames):
        out += reader.feed(bytes((byte,)))
    assert [code for code, _ in out] == [0x0D, 0x06, 0x08]
    assert out == ipc.FrameReader().feed(b"".join(frames))


def test_values_that_do_not_fit_name_the_request() -> None:
    for request in (rq.Bind(65536), rq.Close(-1), rq.Handshake(1, "\ud800"), rq.Broadcast(0, 1, "x" * 65536, b"")):
        with pytest.raises(WireError):
            request.frame()
    with pytest.raises(WireError):
        ipc.json_frame(0x0E, {"a": {1}})
    with pytest.raises(WireError):
        ipc.json_frame(0x0E, {"a": float("nan")})
    with pytest.raises(WireError):
        ipc.json_frame(0x0E, {"a": "x" * (1 << 20)})


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (rq.Dial(Address(0xFFFF, 0xFFFFFFFF), 0xFFFF), b"\xff" * 8),
        (rq.Dial(Address(1, 2), 3), b"\0\1\0\0\0\2\0\3"),
        (rq.Close(0xFFFFFFFF), b"\xff" * 4),
        (rq.Close(0), bytes(4)),
    ],
)
def test_frames_that_are_made_at_once(request_: Request, payload: bytes) -> None:
    assert request_.payload == payload
    assert request_.frame() == ipc.frame(request_.code, payload)


@pytest.mark.parametrize(
    "bad",
    [
        rq.Dial(Address(1, 2), 65536),
        rq.Dial(Address(65536, 2), 3),
        rq.Dial(Address(1, -1), 3),
        rq.Close(-1),
        rq.Close(1 << 32),
    ],
)
def test_frames_that_are_made_at_once_refuse_what_does_not_fit(bad: Request) -> None:
    with pytest.raises(WireError, match="a value does not fit its field"):
        bad.frame()
