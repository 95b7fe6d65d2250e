"""Frames of the data exchange and of the event stream."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.wire import WireError
from pilot.wire import services as sv
from pilot.wire.services import FrameType, StreamFrame, StreamKind

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
FRAMES = {row["name"]: bytes.fromhex(row["hex"]) for row in VECTORS["dataexchange_frames"]}
CONTENT = b"file-body\n"
SHA = hashlib.sha256(CONTENT).digest()
ID = SHA[:16]
MESSAGE = "0123456789abcdef0123456789abcdef"

BUILT = {
    "TEXT 'hi'": sv.encode(FrameType.TEXT, b"hi"),
    "BINARY 00ff": sv.encode(FrameType.BINARY, b"\0\xff"),
    'JSON {"a":1}': sv.encode(FrameType.JSON, b'{"a":1}'),
    "FILE hello.txt": sv.encode_file("hello.txt", CONTENT),
    "ACK for TEXT of 2 bytes": sv.encode(FrameType.TEXT, sv.ack_text(FrameType.TEXT, 2)),
    "ACK for FILE hello.txt (10 content bytes, name not counted)": sv.encode(FrameType.TEXT, sv.ack_text(FrameType.FILE, 10)),
    "ACK from a Feb daemon for unknown type 7 with 72 payload bytes": sv.encode(FrameType.TEXT, b"ACK UNKNOWN(7) 72 bytes"),
    "empty TEXT": sv.encode(FrameType.TEXT, b""),
    "TRACE (5) wrapping TEXT 'hi', sent_at_ns=1767225600000000000": sv.Trace(1, 1767225600000000000, b"hi").build(),
    "FILESTREAM (7) INIT hello.txt": sv.Init(10, SHA, "hello.txt").build(),
    "FILESTREAM INIT-ACK resume 0": sv.init_ack(ID, 0),
    "FILESTREAM CHUNK offset 0": sv.chunk_head(ID, 0, 10) + CONTENT,
    "FILESTREAM ACK offset 10": sv.ack(ID, 10),
    "FILESTREAM DONE": sv.done(ID),
    "FILESTREAM COMPLETE ok": sv.complete(ID),
    "FILESTREAM COMPLETE failed": sv.complete(ID, 1, "sha256 mismatch"),
    "FILESTREAM ABORT": sv.abort(ID, "cancelled"),
    "TAGGED (10) wrapping TEXT 'hi' with message_id": sv.Tagged(1, b"hi", MESSAGE).build(),
    "TAGGED (10) reply with reply_to wrapping JSON": sv.Tagged(3, b'{"ok":true}', "m2", MESSAGE).build(),
}


@pytest.mark.parametrize("name", FRAMES)
def test_recorded_frames(name: str) -> None:
    raw = FRAMES[name]
    ((kind, payload),) = sv.FrameReader().feed(raw)
    assert sv.encode(kind, payload) == raw
    if name in BUILT:
        assert BUILT[name] == raw
    else:
        assert name == "FILE empty name (accepted, not stored, still acknowledged)"
        assert sv.parse_file(payload) == ("", b"x")
    if kind == FrameType.FILESTREAM:
        assert sv.parse_stream(payload).transfer_id == ID


def test_what_the_frames_say() -> None:
    def stream(name: str) -> StreamFrame:
        return sv.parse_stream(FRAMES[name][8:])

    assert sv.parse_file(FRAMES["FILE hello.txt"][8:]) == ("hello.txt", CONTENT)
    init = stream("FILESTREAM (7) INIT hello.txt").init
    (row,) = [row for row in VECTORS["dataexchange_frames"] if "fields" in row]
    fields = row["fields"]
    assert init == sv.Init(fields["size"], bytes.fromhex(fields["sha256"]), fields["name"], fields["chunk_size"])
    assert stream("FILESTREAM INIT-ACK resume 0") == StreamFrame(StreamKind.INIT_ACK, ID, 0)
    assert stream("FILESTREAM CHUNK offset 0") == StreamFrame(StreamKind.CHUNK, ID, 0, data=CONTENT)
    assert stream("FILESTREAM ACK offset 10") == StreamFrame(StreamKind.ACK, ID, 10)
    assert stream("FILESTREAM DONE") == StreamFrame(StreamKind.DONE, ID)
    assert stream("FILESTREAM COMPLETE ok") == StreamFrame(StreamKind.COMPLETE, ID)
    failed = stream("FILESTREAM COMPLETE failed")
    assert (failed.status, failed.text) == (1, "sha256 mismatch")
    assert stream("FILESTREAM ABORT").text == "cancelled"
    trace = sv.parse_trace(FRAMES["TRACE (5) wrapping TEXT 'hi', sent_at_ns=1767225600000000000"][8:])
    assert trace == sv.Trace(1, 1767225600000000000, b"hi")
    tagged = sv.parse_tagged(FRAMES["TAGGED (10) reply with reply_to wrapping JSON"][8:])
    assert tagged == sv.Tagged(3, b'{"ok":true}', "m2", MESSAGE)
    assert sv.err_text(FrameType.FILE, "disk full") == b"ERR FILE save failed: disk full"
    assert sv.ack_text(8, 3) == b"ACK UNKNOWN(8) 3 bytes"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/etc/passwd", "x" * 256, "ü" * 128, "a\0b", "\ud800"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(WireError):
        sv.check_name(name)
    with pytest.raises(WireError):
        sv.Init(1, SHA, name).build()
    raw = name.encode("utf-8", "surrogatepass")
    init = bytes((StreamKind.INIT,)) + ID + (1).to_bytes(8, "big") + SHA + bytes(4) + len(raw).to_bytes(2, "big") + raw
    with pytest.raises(WireError):
        sv.parse_stream(init)


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[]", b"null", b"{", b'{"message_id":1}', b'{"message_id":"a b"}', b'{"message_id":"a\\n"}',
        b'{"reply_to":"' + b"x" * 129 + b'"}', b'{"x":"' + b"y" * 1024 + b'"}', b"[" * 1000, b"\xff\xff",
    ],
)  # fmt: skip
def test_tagged_headers_are_judged(header: bytes) -> None:
    with pytest.raises(WireError):
        sv.parse_tagged(len(header).to_bytes(2, "big") + header + b"\0\0\0\1hi")


def test_tagged_headers_may_grow() -> None:
    header = b'{"message_id":"a.B:c_d-1","later":[1]}'
    frame = len(header).to_bytes(2, "big") + header + b"\0\0\0\2hi"
    assert sv.parse_tagged(frame) == sv.Tagged(2, b"hi", "a.B:c_d-1")
    with pytest.raises(WireError, match="nested"):
        sv.parse_tagged(b"\0\2{}\0\0\0\x0a")
    for bad in (sv.Tagged(10, b""), sv.Tagged(1, b"", "a b"), sv.Tagged(1, b"", reply_to="x" * 129), sv.Tagged(1, b"", "a\n")):
        with pytest.raises(WireError):
            bad.build()


def test_frame_limits() -> None:
    head = (1).to_bytes(4, "big") + (sv.FEB_MAX_FRAME + 1).to_bytes(4, "big")
    assert sv.FrameReader().feed(head) == []
    with pytest.raises(WireError):
        sv.FrameReader(sv.FEB_MAX_FRAME).feed(head)
    with pytest.raises(WireError):
        sv.FrameReader().feed(b"\0\0\0\1\xff\xff\xff\xff")
    largest = sv.encode(1, bytes(1000))
    assert sv.FrameReader(1000).feed(largest + b"\0") == [(1, bytes(1000))]


# ---- event stream ----

EVENTS = {
    "subscribe to 'demo'": ("demo", b""),
    "subscribe to '*'": (sv.ALL_TOPICS, b""),
    "publish demo 'evt'": ("demo", b"evt"),
    "publish empty payload": ("demo", b""),
}


@pytest.mark.parametrize("row", [row for row in VECTORS["eventstream_frames"] if "hex" in row], ids=lambda row: row["name"])
def test_recorded_events(row: dict) -> None:
    topic, data = EVENTS[row["name"]]
    assert sv.encode_event(topic, data).hex() == row["hex"]
    assert sv.EventReader().feed(bytes.fromhex(row["hex"])) == [(topic, data)]


def test_event_limits() -> None:
    (prefix,) = [row["hex_prefix"] for row in VECTORS["eventstream_frames"] if "hex_prefix" in row]
    with pytest.raises(WireError):
        sv.EventReader().feed(bytes.fromhex(prefix))
    with pytest.raises(WireError):
        sv.EventReader().feed(b"\0\1a" + (sv.MAX_EVENT + 1).to_bytes(4, "big"))
    for topic, data in (("", b""), ("x" * 1025, b""), ("\ud800", b""), ("a", bytes(sv.MAX_EVENT + 1))):
        with pytest.raises(WireError):
            sv.encode_event(topic, data)
    assert sv.EventReader().feed(sv.encode_event("x" * 1024)) == [("x" * 1024, b"")]


# ---- properties ----

frames = st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.binary(max_size=40)), max_size=5)
events = st.lists(st.tuples(st.text(min_size=1, max_size=20), st.binary(max_size=40)), max_size=5)


@settings(deadline=None, print_blob=True)
@given(frames, events, st.integers(1, 30))
def test_streams_may_be_cut_anywhere(sent: list[tuple[int, bytes]], published: list[tuple[str, bytes]], step: int) -> None:
    reader, stream, got = sv.FrameReader(), b"".join(sv.encode(*frame) for frame in sent), []
    for at in range(0, len(stream), step):
        got += reader.feed(stream[at : at + step])
    assert got == sent
    listener, stream, heard = sv.EventReader(), b"".join(sv.encode_event(*event) for event in published), []
    for at in range(0, len(stream), step):
        heard += listener.feed(stream[at : at + step])
    assert heard == published


mutated = st.sampled_from(sorted(FRAMES.values())).flatmap(
    lambda raw: st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)).map(
        lambda change: raw[: change[0]] + bytes((change[1],)) + raw[change[0] + 1 :]
    )
)


@settings(deadline=None, print_blob=True)
@given(mutated | st.binary(max_size=80))
def test_any_bytes_are_a_frame_or_a_fault(raw: bytes) -> None:
    for parse in (sv.parse_file, sv.parse_tagged, sv.parse_trace, sv.parse_stream, sv.FrameReader().feed, sv.EventReader().feed):
        for data in (raw, raw[8:]):
            try:
                parse(data)
            except WireError as fault:
                assert fault.reason
