"""Framing of the registry's port: JSON as recorded, msgpack beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.wire import WireError
from pilot.wire.registry import MAX_BODY, Encoding, FrameReader, body_size, decode, encode, encoding_of

ROWS = json.loads((Path(__file__).parents[1] / "vectors" / "registry_framing.json").read_text())["framing"]

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(st.text(max_size=12), values, max_size=6)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_recorded_frames(row: dict) -> None:
    sent = bytes.fromhex(row["sent_hex"])
    if row.get("closed_by_server"):
        with pytest.raises(WireError):
            for body in FrameReader().feed(sent):
                decode(body)
        return
    requests = [decode(body) for body in FrameReader().feed(sent)]
    answers = FrameReader().feed(bytes.fromhex(row["received_hex"]))
    assert len(requests) == len(answers)
    for body in answers:
        message, encoding = decode(body)
        assert encoding is Encoding.JSON and message == json.loads(body)
        assert encode(message) == len(body).to_bytes(4, "big") + body
    if row["case"] == "body is JSON null":
        assert requests == [({}, Encoding.JSON)]
    else:
        assert all(request["type"] in ("lookup", "beacon_list") for request, _ in requests)


@settings(deadline=None, print_blob=True)
@given(messages, st.sampled_from(Encoding))
def test_round_trip(message: dict[str, Any], encoding: Encoding) -> None:
    (body,) = FrameReader().feed(encode(message, encoding))
    assert decode(body) == (message, encoding)
    assert encoding_of(body) is encoding


@settings(deadline=None, print_blob=True)
@given(messages, messages)
def test_both_encodings_on_one_connection(one: dict[str, Any], two: dict[str, Any]) -> None:
    stream = encode(one) + encode(two, Encoding.MSGPACK) + encode(one, Encoding.MSGPACK)
    reader, bodies = FrameReader(), []
    for at in range(0, len(stream), 7):
        bodies += reader.feed(stream[at : at + 7])
    assert [decode(body) for body in bodies] == [
        (one, Encoding.JSON), (two, Encoding.MSGPACK), (one, Encoding.MSGPACK)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"1", b'"x"', b"{", b"{}{}", b"{'a':1}", b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"[" * 100_000,
        b'{"a":' * 100_000, b"\xef\xbb\xbf{}", b"\x90", b"\xc0", b"\xc1", b"\x80\x80", b"\x81", b"\x81\xa1a", b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02", b"\x81\xa1a\xc4\x01b", b"\x81\xa1a\xd4\x05b", b"\x81\xa1a\x91\xc4\x01b",
        b"\x81\xa1a\x81\xc4\x01b\x01", b"\x81\xa1a\xa1\xff", b"\xdf\xff\xff\xff\xff", b"\xde\x00\x01", b"\x81\xa1a" * 5000,
        b"\x81\xa1a" + b"\x91" * 100_000,
        msgpack.packb({"a": msgpack.Timestamp(1)}),
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_what_is_no_message_ends_the_connection(body: bytes) -> None:
    with pytest.raises(WireError):
        decode(body)


@pytest.mark.parametrize("body", [b" {}", b"\n\t{}", b"{ }", b"null", b"\x80", b"\xde\x00\x00", b"\xdf\x00\x00\x00\x00"])
def test_empty_objects(body: bytes) -> None:
    assert decode(body)[0] == {}


@settings(deadline=None, print_blob=True)
@given(st.binary(max_size=64) | messages.map(lambda m: encode(m, Encoding.MSGPACK)[4:]).flatmap(
    lambda body: st.integers(0, len(body)).map(lambda at: body[:at] + b"\xc4" + body[at + 1 :])
))  # fmt: skip
def test_any_body_is_a_message_or_a_fault(body: bytes) -> None:
    try:
        message, encoding = decode(body)
    except WireError:
        return
    assert decode(encode(message, encoding)[4:]) == (message, encoding)
    json.dumps(message)


def test_lengths() -> None:
    assert body_size(MAX_BODY.to_bytes(4, "big")) == MAX_BODY
    for head in (bytes(4), (MAX_BODY + 1).to_bytes(4, "big"), b"PILT"):
        with pytest.raises(WireError):
            body_size(head)
        with pytest.raises(WireError):
            FrameReader().feed(head)
    assert FrameReader(limit=2).feed(b"\0\0\0\2{}") == [b"{}"]
    with pytest.raises(WireError):
        FrameReader(limit=2).feed(b"\0\0\0\3")


@pytest.mark.parametrize("message", [{"a": "\ud800"}, {"a": object()}, {"a": "x" * MAX_BODY}])
@pytest.mark.parametrize("encoding", Encoding)
def test_what_cannot_be_said_is_refused(message: dict, encoding: Encoding) -> None:
    with pytest.raises(WireError):
        encode(message, encoding)
