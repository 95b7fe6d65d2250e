"""Messages and files that arrive on port 1001: what the sender is told and what then lies on disk."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import stat
from pathlib import Path

import pytest
from exchange_peer import receiver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot.services import dataexchange, inbox
from pilot.services.mailbox import Mailbox
from pilot.wire import services as wire
from pilot.wire.services import FrameType

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
FRAMES = {row["name"]: bytes.fromhex(row["hex"]) for row in VECTORS["dataexchange_frames"]}


def frame(kind: int, payload: bytes) -> bytes:
    return wire.encode(kind, payload)


async def test_recorded_frames_are_answered_as_recorded(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.send(FRAMES["TEXT 'hi'"])
        assert await peer.stream.exactly(24) == FRAMES["ACK for TEXT of 2 bytes"]
        await peer.send(FRAMES["FILE hello.txt"])
        answer = FRAMES["ACK for FILE hello.txt (10 content bytes, name not counted)"]
        assert await peer.stream.exactly(len(answer)) == answer
        assert await peer.ask(FRAMES["BINARY 00ff"]) == "ACK BINARY 2 bytes"
        assert await peer.ask(FRAMES['JSON {"a":1}']) == "ACK JSON 7 bytes"
        assert await peer.ask(FRAMES["empty TEXT"]) == "ACK TEXT 0 bytes"
        empty_name = FRAMES["FILE empty name (accepted, not stored, still acknowledged)"]
        assert await peer.ask(empty_name) == "ACK FILE 1 bytes"
        assert await peer.ask(FRAMES["TAGGED (10) wrapping TEXT 'hi' with message_id"]) == "ACK TEXT 2 bytes"
        assert await peer.ask(FRAMES["TAGGED (10) reply with reply_to wrapping JSON"]) == "ACK JSON 11 bytes"
        await peer.leave()
    (file,) = r.received()
    assert re.fullmatch(r"hello-\d{8}-\d{6}\.\d{3}-000002\.txt", file.name)
    assert file.read_bytes() == b"file-body\n"
    by_size = {(m["type"], m["bytes"], m.get("message_id")): m for m in r.messages()}
    assert by_size["TEXT", 2, None]["data"] == "hi"
    assert by_size["TEXT", 2, None]["data_encoding"] == "utf8"
    assert by_size["TEXT", 2, None]["from"] == "0:0000.0000.0002"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", by_size["TEXT", 2, None]["received_at"])
    binary = by_size["BINARY", 2, None]
    assert (binary["data_b64"], binary["data_encoding"]) == ("AP8=", "base64") and "data" not in binary
    assert by_size["TEXT", 2, "0123456789abcdef0123456789abcdef"]["data"] == "hi"
    assert by_size["JSON", 11, "m2"]["reply_to"] == "0123456789abcdef0123456789abcdef"
    assert r.names().count("message.received") == 6 and r.names().count("file.received") == 1
    file_event = next(data for event, data in r.events if event == "file.received")
    assert file_event == {"filename": "hello.txt", "size": 10, "path": str(file)}


async def test_files_and_directories_are_private_and_named_as_other_programs_expect(tmp_path: Path) -> None:
    async with receiver(tmp_path / "home") as r:
        peer = r.connect()
        await peer.ask(FRAMES["TEXT 'hi'"])
        await peer.ask(FRAMES["FILE hello.txt"])
    (message,) = (tmp_path / "home" / "inbox").iterdir()
    assert re.fullmatch(r"TEXT-\d{8}-\d{6}\.\d{3}-000001\.json", message.name)
    raw = message.read_bytes()
    assert raw.startswith(b'{"bytes":2,"data":"hi","data_encoding":"utf8","from":"0:0000.0000.0002","received_at":"')
    for path in (message, *r.received()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (tmp_path / "home", tmp_path / "home" / "inbox", tmp_path / "home" / "received"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_trace_says_when_what_happened(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.send(FRAMES["TRACE (5) wrapping TEXT 'hi', sent_at_ns=1767225600000000000"])
        kind, payload = await peer.frame()
    times = json.loads(payload)
    assert kind == FrameType.JSON
    assert times["sent_at_ns"] == 1767225600000000000 and times["inner_ack"] == "ACK TEXT 2 bytes"
    assert times["sent_at_ns"] < times["received_at_ns"] <= times["inbox_written_at_ns"] <= times["ack_sent_at_ns"]
    assert [m["data"] for m in r.messages()] == ["hi"]


async def test_a_traced_message_has_its_id(tmp_path: Path) -> None:
    """As the tools of 1.18.0 send it: an id around a trace around the message."""
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.send(wire.Tagged(FrameType.TRACE, wire.Trace(FrameType.TEXT, 5, b"hi").pack(), "0a", "0b").build())
        kind, payload = await peer.frame()
        await peer.send(wire.Tagged(FrameType.TRACE, wire.Trace(FrameType.TRACE, 5, b"hi").pack(), "0c").build())
        _, nested = await peer.frame()
    assert (kind, json.loads(payload)["inner_ack"]) == (FrameType.JSON, "ACK TEXT 2 bytes")
    assert json.loads(nested)["inner_ack"] == "ERR TRACE not allowed inside another frame"
    assert [(m["data"], m["message_id"], m["reply_to"]) for m in r.messages()] == [("hi", "0a", "0b")]


@pytest.mark.parametrize("segment", [1, 3, 1000])
async def test_segment_boundaries_do_not_matter(tmp_path: Path, segment: int) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect(segment=segment)
        await peer.send(FRAMES["FILE hello.txt"] + FRAMES["TEXT 'hi'"] + FRAMES["BINARY 00ff"])
        answers = [(await peer.frame())[1] for _ in range(3)]
    assert answers == [b"ACK FILE 10 bytes", b"ACK TEXT 2 bytes", b"ACK BINARY 2 bytes"]
    assert r.received()[0].read_bytes() == b"file-body\n"


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/b", "a\\b", "..", ".", "/etc/passwd", "nul\0", "bell\x07", "csi\x9b", "new\nline", "x" * 256],
)
async def test_names_that_are_paths_or_cannot_be_shown_are_refused(tmp_path: Path, name: str) -> None:
    raw = name.encode()
    async with receiver(tmp_path / "home") as r:
        peer = r.connect()
        answer = await peer.ask(frame(FrameType.FILE, len(raw).to_bytes(2, "big") + raw + b"content"))
        assert answer.startswith("ERR FILE save failed: ")
        assert await peer.ask(FRAMES["TEXT 'hi'"]) == "ACK TEXT 2 bytes"  # the stream goes on
    assert r.received() == [] and r.partials() == {}
    assert sorted(os.listdir(tmp_path)) == ["home"]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("archive.tar.gz", r"archive\.tar-{}\.gz"), ("noext", r"noext-{}"), (".bashrc", r"-{}\.bashrc"),
        ("ends.", r"ends-{}\."), ("a." + "e" * 200, r"a\.e{{200}}-{}"), ("ü" * 127, r"ü{{114}}-{}"),
    ],
)  # fmt: skip
async def test_stored_names(tmp_path: Path, name: str, stored: str) -> None:
    raw = name.encode()
    async with receiver(tmp_path) as r:
        assert (await r.connect().ask(wire.encode_file(name, b"x"))) == "ACK FILE 1 bytes"
    (file,) = r.received()
    assert re.fullmatch(stored.format(r"\d{8}-\d{6}\.\d{3}-000001"), file.name)
    assert len(file.name.encode()) <= 255 and len(raw) <= 255


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (frame(FrameType.FILE, b"\0"), "ERR FILE save failed: short"),
        (frame(FrameType.FILE, b"\0\x09abc"), "ERR FILE save failed: short"),
        (frame(FrameType.FILE, b"\0\x02\xff\xfe"), "ERR FILE save failed: file name is not UTF-8"),
        (frame(FrameType.TRACE, b"\0\0\0\1"), "ERR TRACE save failed: short"),
        (frame(FrameType.TAGGED, b""), "ERR TAGGED save failed: short"),
        (frame(FrameType.TAGGED, b"\0\0\0\0\0\1x"), "ERR TAGGED save failed: tagged: header of impossible length"),
        (frame(FrameType.TAGGED, b"\4\1" + b" " * 1100), "ERR TAGGED save failed: tagged: header of impossible length"),
        (frame(FrameType.TAGGED, b"\0\2{}\0\0"), "ERR TAGGED save failed: short"),
        (frame(FrameType.TAGGED, b"\0\2[]\0\0\0\1x"), "ERR TAGGED save failed: tagged: header is not an object"),
        (frame(FrameType.TAGGED, b"\0\2{}\0\0\0\x0ax"), "ERR TAGGED save failed: tagged: nested"),
        (
            frame(FrameType.TAGGED, b'\0\x15{"message_id":"../x"}\0\0\0\1x'),
            "ERR TAGGED save failed: tagged: id not allowed",
        ),
        (frame(FrameType.TAGGED, b"\0\2{}\0\0\0\5x"), "ERR TAGGED save failed: short"),
        (frame(FrameType.TAGGED, b"\0\2{}\0\0\0\7x"), "ERR FILESTREAM not allowed inside another frame"),
        (frame(8, b"governed"), "ERR UNKNOWN(8) not supported"),
        (frame(0xFFFFFFFF, b""), "ERR UNKNOWN(4294967295) not supported"),
    ],
)
async def test_broken_frames_are_answered_and_the_next_one_counts(tmp_path: Path, data: bytes, answer: str) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        assert await peer.ask(data) == answer
        assert await peer.ask(FRAMES["TEXT 'hi'"]) == "ACK TEXT 2 bytes"
    assert len(r.messages()) == 1


async def test_a_frame_above_the_limit_ends_the_stream(tmp_path: Path) -> None:
    async with receiver(tmp_path, max_frame=1 << 16) as r:
        good = r.connect()
        assert await good.ask(frame(FrameType.BINARY, bytes(1 << 16))) == "ACK BINARY 65536 bytes"
        bad = r.connect()
        await bad.send(FrameType.BINARY.to_bytes(4, "big") + ((1 << 16) + 1).to_bytes(4, "big"))
        assert await bad.is_cut()
        assert await good.ask(FRAMES["TEXT 'hi'"]) == "ACK TEXT 2 bytes"
    assert len(r.messages()) == 2


@pytest.mark.parametrize("kind", [FrameType.TEXT, FrameType.BINARY])
@pytest.mark.parametrize("tail", ["", "ü", "\udc80"])
async def test_long_messages_arrive_whole(tmp_path: Path, kind: FrameType, tail: str) -> None:
    """They go through a file, in pieces that may cut a character."""
    data = ('aü€😀\n"\\' * 200_000 + tail).encode(errors="surrogateescape")
    async with receiver(tmp_path) as r:
        assert await r.connect(segment=70_001).ask(frame(kind, data)) == f"ACK {kind.name} {len(data)} bytes"
    (message,) = r.messages()
    import base64

    if kind == FrameType.BINARY or tail == "\udc80":
        assert base64.b64decode(message["data_b64"]) == data
    else:
        assert message["data"].encode() == data
    assert sorted(p.suffix for p in (tmp_path / "inbox").iterdir()) == [".json"]
    assert r.service.spool.used == 0 and r.service.slots.free == dataexchange.MAX_WRITERS


async def test_invalid_text_is_kept_byte_for_byte(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        assert await r.connect().ask(frame(FrameType.TEXT, b"\xff\xfeok")) == "ACK TEXT 4 bytes"
    assert (r.messages()[0]["data_b64"], r.messages()[0]["type"]) == ("//5vaw==", "TEXT")


async def test_base64_for_all_messages_if_the_user_wants_it(tmp_path: Path) -> None:
    async with receiver(tmp_path, base64_always=True) as r:
        await r.connect().ask(FRAMES["TEXT 'hi'"])
    assert r.messages()[0]["data_b64"] == "aGk="


async def test_nothing_is_left_of_a_file_whose_sender_died(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        for end in ("leave", "lose"):
            peer = r.connect()
            await peer.send(frame(FrameType.FILE, b"\0\x05a.bin" + bytes(3 << 20))[: 2 << 20])
            await getattr(peer, end)()
        assert r.received() == [] and r.partials() == {}
        assert r.service.slots.free == dataexchange.MAX_WRITERS
        assert await r.connect().ask(FRAMES["FILE hello.txt"]) == "ACK FILE 10 bytes"


async def test_the_quota_of_received_files(tmp_path: Path) -> None:
    async with receiver(tmp_path, received_quota=1000) as r:
        peer = r.connect()
        assert await peer.ask(wire.encode_file("a", bytes(600))) == "ACK FILE 600 bytes"
        answer = await peer.ask(wire.encode_file("b", bytes(600)))
        assert answer == "ERR FILE save failed: the receiver's space for files is used up"
        assert await peer.ask(wire.encode_file("c", bytes(400))) == "ACK FILE 400 bytes"
        assert (await peer.ask(wire.encode_file("d", b"x"))).startswith("ERR FILE")
        r.received()[0].unlink()  # the user makes room
        assert await peer.ask(wire.encode_file("e", bytes(300))) == "ACK FILE 300 bytes"
    assert sorted(p.stat().st_size for p in r.received()) == [300, 400]
    assert "received.full" in r.names()


async def test_two_files_at_once_cannot_pass_the_quota_together(tmp_path: Path) -> None:
    async with receiver(tmp_path, received_quota=1000) as r:
        first, second = r.connect(), r.connect()
        big = wire.encode_file("a", bytes(700))
        await first.send(big[:100])
        while not r.partials():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (await second.ask(big)).startswith("ERR FILE")
        assert await first.ask(big[100:]) == "ACK FILE 700 bytes"


async def test_the_inbox_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_FILES", 10)
    (tmp_path / "inbox").mkdir(parents=True)
    (tmp_path / "inbox" / "notes.txt").write_text("the user's own")
    async with receiver(tmp_path) as r:
        peer = r.connect()
        for i in range(25):
            await peer.ask(frame(FrameType.TEXT if i % 2 else FrameType.JSON, b"%d" % i))
        (tmp_path / "inbox" / "notes.txt").unlink()
        assert sorted(int(m["data"]) for m in r.messages()) == list(range(15, 25))
        await asyncio.sleep(0)
        assert "inbox.full" in r.names()
        for path in (tmp_path / "inbox").iterdir():  # the user clears it: the count starts anew
            path.unlink()
        for i in range(10):
            await peer.ask(frame(FrameType.TEXT, b"%d" % i))
        assert len(r.messages()) == 10


async def test_the_inbox_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MAX_BYTES", 100_000)
    monkeypatch.setattr(dataexchange, "INBOX_BYTES", 100_000)
    async with receiver(tmp_path) as r:
        peer = r.connect()
        for _ in range(5):
            assert (await peer.ask(frame(FrameType.TEXT, b"x" * 40_000))).startswith("ACK")
        assert len(r.messages()) == 2
        assert (await peer.ask(frame(FrameType.TEXT, b"x" * 100_001))).startswith("ERR TEXT save failed")


async def test_a_directory_that_cannot_be_written_is_told_to_the_sender(tmp_path: Path) -> None:
    (tmp_path / "inbox").write_text("not a directory")
    (tmp_path / "received").write_text("not a directory")
    async with receiver(tmp_path) as r:
        peer = r.connect()
        for data, name in ((FRAMES["TEXT 'hi'"], "TEXT"), (FRAMES["FILE hello.txt"], "FILE")):
            answer = await peer.ask(data)
            assert answer.startswith(f"ERR {name} save failed: ") and str(tmp_path) not in answer


async def test_a_silent_sender_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pilot.services import frames

    monkeypatch.setattr(frames.FrameSource.ended, "__defaults__", (0.05,))
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.send(FRAMES["FILE hello.txt"][:-3])
        assert await peer.is_cut()
    assert r.received() == [] and r.partials() == {}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.one_of(
    st.binary(max_size=60),
    st.builds(frame, st.integers(0, 11), st.binary(max_size=60)),
    st.sampled_from(list(FRAMES.values())).flatmap(
        lambda raw: st.builds(lambda at, bit: raw[:at] + bytes((raw[at] ^ 1 << bit,)) + raw[at + 1:],
                              st.integers(0, len(raw) - 1), st.integers(0, 7))),
), max_size=5).map(b"".join))  # fmt: skip
def test_any_bytes_leave_the_service_alive(tmp_path: Path, data: bytes) -> None:
    async def run() -> None:
        async with receiver(tmp_path) as r:
            peer = r.connect()
            await peer.send(data)
            await peer.leave()
            assert await r.connect().ask(FRAMES["TEXT 'hi'"]) == "ACK TEXT 2 bytes"
            assert r.service.slots.free == dataexchange.MAX_WRITERS and r.service.spool.used == 0

    asyncio.run(run())


def test_a_message_of_an_earlier_daemon_is_not_replaced(tmp_path: Path) -> None:
    """Its clock may be set back, and each daemon counts from one."""
    first, second = (Mailbox(tmp_path, now_ns=lambda: 1_700_000_000_000_000_000) for _ in range(2))
    paths = [box.store_message("TEXT", "1:0001.0000.0002", io.BytesIO(text)) for box, text in ((first, b"a"), (second, b"b"))]
    assert [json.loads(path.read_text())["data"] for path in paths] == ["a", "b"]
