"""Files and messages to receivers that are old, broken, or gone (services.md section 3)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from fakedaemon import RECV, SEND, FakeNode, Peer, Scripted, frame

from pilot.errors import PilotError
from pilot.sdk import LocalClient
from pilot.sdk.events import feed
from pilot.wire.services import EventReader, FrameReader, encode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.sock"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    out = tmp_path / "model.bin"
    out.write_bytes(bytes(range(256)) * 2000)
    return out


@pytest.mark.parametrize("data", [b"\x04\x01" + b"x" * 1025, b"\0\1a" + struct.pack(">I", (16 << 20) + 1)])
def test_events_above_the_limits_end_the_subscription(data: bytes) -> None:
    with pytest.raises(PilotError):
        feed(EventReader(), data)


def test_an_announced_answer_of_gigabytes_is_not_collected(path: Path) -> None:
    def script(peer: Peer) -> None:
        assert peer.frame()[0] == 0x03
        peer.send(frame(0x04, b"\0\0\0\1"))
        peer.frame()
        peer.send(frame(RECV, b"\0\0\0\1" + struct.pack(">II", 1, 1 << 30)))
        peer.frame()

    with Scripted(path, script) as d, LocalClient(d.path) as c, pytest.raises(PilotError, match="1073741824"):
        c.send_message("1:0001.0000.0009", b"hi")


def test_a_file_arrives(path: Path, file: Path) -> None:
    phases = []
    with FakeNode(path) as d, LocalClient(d.path) as c:
        done = c.send_file("home-agent-2", str(file), lambda phase, n, total: phases.append((phase, n, total)))
        assert d.stored["model.bin"] == file.read_bytes()
    assert (done["sent"], done["ack"]) == (512_000, "")
    assert phases[0][0] == "hashing"
    assert phases[-1] == ("sending", 512_000, 512_000)


def test_a_receiver_without_streams_gets_one_frame(path: Path, file: Path) -> None:
    with FakeNode(path) as d, LocalClient(d.path) as c:
        d.filestream = False
        assert c.send_file("home-agent-2", str(file))["ack"] == "ACK FILE 512000 bytes"
        assert d.stored["model.bin"] == file.read_bytes()


def test_an_empty_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with FakeNode(path) as d, LocalClient(d.path) as c:
        c.send_file("home-agent-2", str(tmp_path / "empty"))
        assert d.stored["empty"] == b""


@pytest.mark.parametrize("what", ["missing", "directory"])
def test_what_is_no_file_is_refused_before_dialling(path: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "directory").mkdir()
    with FakeNode(path) as d, LocalClient(d.path) as c:
        with pytest.raises(PilotError) as e:
            c.send_file("home-agent-2", str(tmp_path / what))
        assert e.value.code == {"missing": "not_found", "directory": "invalid_argument"}[what]
        assert 0x03 not in d.codes()


def receiver(answer_done: bytes | None, resume: int = 0) -> object:
    """A receiver that acknowledges everything and answers DONE with a frame, or by closing the socket."""

    def script(peer: Peer) -> None:
        reader = FrameReader()
        while True:
            code, body = peer.frame()
            if code == 0x03:
                peer.send(frame(0x04, b"\0\0\0\1"))
            elif code == SEND:
                for _, payload in reader.feed(body[4:]):
                    head = payload[1:17]
                    if payload[0] == 1:
                        out = b"\x05" + head + resume.to_bytes(8, "big")
                    elif payload[0] == 2:
                        offset = int.from_bytes(payload[17:25], "big") + len(payload) - 25
                        seen.append(int.from_bytes(payload[17:25], "big"))
                        out = b"\x03" + head + offset.to_bytes(8, "big")
                    elif answer_done is None:
                        return
                    else:
                        out = answer_done[:1] + head + answer_done[1:]
                    peer.send(frame(RECV, b"\0\0\0\1" + encode(7, out)))

    seen: list[int] = []
    script.seen = seen  # type: ignore[attr-defined]
    return script


def test_a_transfer_goes_on_where_it_stopped(path: Path, file: Path) -> None:
    script = receiver(b"\x06\0", resume=300_000)
    with Scripted(path, script) as d, LocalClient(d.path) as c:  # type: ignore[arg-type]
        assert c.send_file("1:0001.0000.0009", str(file))["resumed"] == 300_000
    assert script.seen[0] == 300_000  # type: ignore[attr-defined]


def test_a_receiver_that_could_not_store_is_an_error(path: Path, file: Path) -> None:
    with (
        Scripted(path, receiver(b"\x06\x01disk full")) as d,  # type: ignore[arg-type]
        LocalClient(d.path) as c,
        pytest.raises(PilotError, match="disk full"),
    ):
        c.send_file("1:0001.0000.0009", str(file))


def test_a_daemon_that_dies_in_the_middle_is_an_error_that_says_what_to_do(path: Path, file: Path) -> None:
    with Scripted(path, receiver(None)) as d, LocalClient(d.path) as c, pytest.raises(PilotError) as e:  # type: ignore[arg-type]
        c.send_file("1:0001.0000.0009", str(file))
    assert e.value.retryable
    assert "not stored" in e.value.message


def test_a_resume_behind_the_end_is_refused(path: Path, file: Path) -> None:
    with Scripted(path, receiver(b"\x06\0", resume=1 << 40)) as d, LocalClient(d.path) as c, pytest.raises(PilotError):  # type: ignore[arg-type]
        c.send_file("1:0001.0000.0009", str(file))
