"""Chunked transfers: what arrives is what was sent, interrupted ones go on, and no half file has a final name."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import stat
import time
from pathlib import Path

import pytest
from exchange_peer import Peer, Receiver, chunk, receiver, transfer_id

from pilot.services import dataexchange, filestream, mailbox, partial
from pilot.services.mailbox import Mailbox, StoreError
from pilot.wire import services as wire
from pilot.wire.services import StreamKind

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "services.json").read_text())
FRAMES = {row["name"]: bytes.fromhex(row["hex"]) for row in VECTORS["dataexchange_frames"]}
CONTENT = random.Random(7).randbytes(300_001)
STEP = wire.CHUNK_BYTES


async def refused(peer: Peer) -> str:
    frame = await peer.stream_frame()
    assert frame.kind is StreamKind.ABORT
    return frame.text


def intact(r: Receiver, content: bytes = CONTENT) -> bool:
    return [p.read_bytes() for p in r.received()] == [content] and r.partials() == {}


async def test_recorded_transfer(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        for sent, answer in (
            ("FILESTREAM (7) INIT hello.txt", "FILESTREAM INIT-ACK resume 0"),
            ("FILESTREAM CHUNK offset 0", "FILESTREAM ACK offset 10"),
            ("FILESTREAM DONE", "FILESTREAM COMPLETE ok"),
        ):
            await peer.send(FRAMES[sent])
            want = FRAMES[answer]
            got = await peer.stream.exactly(len(want))
            if answer.startswith("FILESTREAM INIT-ACK"):  # ours is longer: what the receiver takes
                assert got[8:] == want[8:] and int.from_bytes(got[4:8], "big") == 25 + 12
                assert await peer.stream.exactly(12) == bytes.fromhex("505801000010000002000000")
            else:
                assert got == want
    (file,) = r.received()
    assert file.name.startswith("hello-") and file.read_bytes() == b"file-body\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert r.events == [("file.received", {"filename": "hello.txt", "size": 10, "path": str(file)})]


@pytest.mark.parametrize("segment", [0, 11, 50_000])
@pytest.mark.parametrize("size", [0, 1, STEP, STEP + 1, 300_001])
async def test_files_of_any_size(tmp_path: Path, size: int, segment: int) -> None:
    content = CONTENT[:size]
    async with receiver(tmp_path) as r:
        peer = r.connect(segment=segment)
        done = await peer.transfer("f.bin", content)
        assert (done.kind, done.status) == (StreamKind.COMPLETE, 0)
        assert intact(r, content)


async def test_largest_chunks_and_one_byte_more(tmp_path: Path) -> None:
    content = bytes(3 << 20)
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("big", content)
        await peer.push(content, 0, len(content), filestream.MAX_CHUNK)
        assert (await peer.finish(content)).status == 0
        bad = r.connect()
        await bad.offer("big", content)
        await bad.send((7).to_bytes(4, "big") + (filestream.MAX_CHUNK + wire.CHUNK_HEAD + 1).to_bytes(4, "big"))
        assert await bad.is_cut()
    assert len(r.received()) == 1


@pytest.mark.parametrize("end", ["leave", "lose"])
async def test_an_interrupted_transfer_goes_on(tmp_path: Path, end: str) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("f.bin", CONTENT)
        await peer.push(CONTENT, 0, 3 * STEP)
        await getattr(peer, end)()
        assert r.received() == []
        assert r.partials() == {transfer_id(CONTENT).hex(): 3 * STEP}
    async with receiver(tmp_path) as r:  # also after the receiver was started anew
        peer = r.connect()
        assert await peer.offer("f.bin", CONTENT) == 3 * STEP
        await peer.push(CONTENT, 3 * STEP, len(CONTENT))
        assert (await peer.finish(CONTENT)).status == 0
        assert intact(r)


async def test_a_bad_part_is_found_and_dropped(tmp_path: Path) -> None:
    part = tmp_path / "received" / ".partial" / transfer_id(CONTENT).hex()
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    async with receiver(tmp_path) as r:
        peer = r.connect()
        done = await peer.transfer("f.bin", CONTENT)
        assert (done.kind, done.status, done.text) == (StreamKind.COMPLETE, 1, "sha256 mismatch")
        assert r.received() == [] and r.partials() == {}
        assert (await peer.transfer("f.bin", CONTENT)).status == 0  # on the same stream, from the start
        assert intact(r)


async def test_a_part_longer_than_the_file_counts_for_nothing(tmp_path: Path) -> None:
    part = tmp_path / "received" / ".partial" / transfer_id(b"abc").hex()
    part.parent.mkdir(parents=True)
    part.write_bytes(b"abcd")
    async with receiver(tmp_path) as r:
        assert await r.connect().offer("f", b"abc") == 0


async def test_wrong_content_never_gets_the_name(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("f.bin", CONTENT)
        bad = b"!" + CONTENT[1:]
        for at in range(0, len(bad), STEP):
            data = bad[at : at + STEP]
            await peer.send(wire.chunk_head(transfer_id(CONTENT), at, len(data)) + data)
            await peer.stream_frame()
        assert (await peer.finish(CONTENT)).text == "sha256 mismatch"
        assert r.received() == [] and r.names() == []


async def test_done_too_early(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("f.bin", CONTENT)
        await peer.push(CONTENT, 0, STEP)
        done = await peer.finish(CONTENT)
        assert (done.status, done.text) == (1, f"incomplete: {STEP} of {len(CONTENT)} bytes")
        assert r.received() == [] and await r.connect().offer("f.bin", CONTENT) == STEP


async def test_chunks_out_of_order_twice_and_overlapping(tmp_path: Path) -> None:
    content = CONTENT[:100]
    spans = [(40, 60), (60, 80), (0, 10), (5, 45), (0, 10), (90, 100), (30, 70), (80, 95), (95, 100)]
    acks = [0, 0, 10, 80, 80, 80, 80, 100, 100]
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("f", content)
        for (start, end), ack in zip(spans, acks, strict=True):
            await peer.send(chunk(content, start, end))
            assert (await peer.stream_frame()).offset == ack
        assert (await peer.finish(content)).status == 0
        assert intact(r, content)


@pytest.mark.parametrize("step", [1, STEP])
async def test_chunks_before_their_turn_are_bounded(tmp_path: Path, step: int) -> None:
    content = bytes(40 * STEP)
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("f", content)
        for i in range(1, 17):
            await peer.send(chunk(content, i * STEP, i * STEP + step))
            assert (await peer.stream_frame()).kind is StreamKind.ACK
        await peer.send(chunk(content, 17 * STEP, 17 * STEP + step))
        assert await refused(peer) == "too many chunks before their turn"
        assert r.service.slots.free == dataexchange.MAX_WRITERS


async def test_senseless_frames_end_the_transfer_but_not_the_stream(tmp_path: Path) -> None:
    other = transfer_id(b"other")
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.send(chunk(CONTENT, 0, 10))
        assert await refused(peer) == "no such transfer"
        await peer.send(chunk(CONTENT, 10, 20))  # of a sender that has not heard of it yet: no second answer
        await peer.send(wire.done(other))
        assert await refused(peer) == "no such transfer"
        await peer.offer("f", CONTENT)
        await peer.send(chunk(CONTENT, len(CONTENT) - 1, len(CONTENT)))  # harmless: before its turn
        assert (await peer.stream_frame()).kind is StreamKind.ACK
        await peer.send(wire.chunk_head(transfer_id(CONTENT), len(CONTENT), 1) + b"x")
        assert await refused(peer) == "chunk behind the end of the file"
        await peer.send(wire.stream_frame(StreamKind.INIT, other, b"short"))
        assert await refused(peer) == "file transfer: short INIT"
        await peer.send(wire.encode(7, b"\x63" + other))
        assert await refused(peer) == "file transfer: unknown frame"
        init = bytearray(wire.Init(3, hashlib.sha256(b"abc").digest(), "f").build())
        init[9] ^= 1  # another transfer id than the content's
        await peer.send(bytes(init))
        assert await refused(peer) == "the transfer id is not that of the content"
        assert (await peer.transfer("f", CONTENT)).status == 0
        await peer.send(wire.encode(7, b"short"))
        assert await peer.is_cut()
    assert intact(r)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a\x1bb", "c\x85d"])
async def test_names_that_are_paths_or_cannot_be_shown_are_refused(tmp_path: Path, name: str) -> None:
    raw, sha = name.encode(), hashlib.sha256(b"x").digest()
    body = (1).to_bytes(8, "big") + sha + STEP.to_bytes(4, "big") + len(raw).to_bytes(2, "big") + raw
    async with receiver(tmp_path / "home") as r:
        peer = r.connect()
        await peer.send(wire.stream_frame(StreamKind.INIT, sha[:16], body))
        assert (await refused(peer)).startswith("file name")
    assert r.partials() == {}


async def test_the_sender_gives_up_and_comes_back(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("f", CONTENT)
        await peer.push(CONTENT, 0, STEP)
        await peer.send(wire.abort(transfer_id(CONTENT), "cancelled"))
        assert await peer.offer("f", CONTENT) == STEP
        await peer.push(CONTENT, STEP, len(CONTENT))
        assert (await peer.finish(CONTENT)).status == 0
        assert intact(r)


async def test_the_same_content_twice_at_once(tmp_path: Path) -> None:
    """Also from one node: neither transfer writes into the other's file."""
    async with receiver(tmp_path) as r:
        a, b = r.connect(2), r.connect(2)
        assert await a.offer("a.bin", CONTENT) == 0
        await a.push(CONTENT, 0, STEP)
        assert await b.offer("b.bin", CONTENT) == 0
        await asyncio.gather(a.push(CONTENT, STEP, len(CONTENT)), b.push(CONTENT, 0, len(CONTENT)))
        assert [(await p.finish(CONTENT)).status for p in (a, b)] == [0, 0]
        assert [p.read_bytes() == CONTENT for p in r.received()] == [True, True]
        assert r.partials() == {}


async def test_nobody_spoils_the_partial_file_of_another_node(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        owner = r.connect(2)
        await owner.offer("f", CONTENT)
        await owner.push(CONTENT, 0, 2 * STEP)
        await owner.lose()
        mallory = r.connect(3)
        assert await mallory.offer("f", CONTENT) == 0
        bad = bytes(len(CONTENT))
        await mallory.send(wire.chunk_head(transfer_id(CONTENT), 0, STEP) + bad[:STEP])
        await mallory.stream_frame()
        await mallory.lose()
        owner = r.connect(2)
        assert await owner.offer("f", CONTENT) == 2 * STEP
        await owner.push(CONTENT, 2 * STEP, len(CONTENT))
        assert (await owner.finish(CONTENT)).status == 0


async def test_a_sender_whose_daemon_died_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old stream is still open: nobody told the receiver."""
    monkeypatch.setattr(filestream, "STALLED_S", 0.05)
    async with receiver(tmp_path) as r:
        dead = r.connect(2)
        await dead.offer("f", CONTENT)
        await dead.push(CONTENT, 0, 2 * STEP)
        await dead.send(chunk(CONTENT, 2 * STEP, 3 * STEP)[:-5])  # it waits inside a chunk
        await asyncio.sleep(0.1)
        again = r.connect(2)
        resumed = await again.offer("f", CONTENT)
        assert resumed >= 2 * STEP
        await again.push(CONTENT, resumed, len(CONTENT))
        assert (await again.finish(CONTENT)).status == 0
        assert intact(r)
        await dead.send(bytes(5))  # not dead after all: its transfer is over all the same
        assert await dead.is_cut()
        assert intact(r) and r.service.slots.free == dataexchange.MAX_WRITERS


@pytest.mark.parametrize("kind", ["symlink", "fifo", "hardlink", "directory"])
async def test_what_lies_in_the_way_is_not_followed(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    part = tmp_path / "home" / "received" / ".partial" / transfer_id(CONTENT).hex()
    part.parent.mkdir(parents=True)
    match kind:
        case "symlink":
            part.symlink_to(victim)
        case "fifo":
            os.mkfifo(part)
        case "hardlink":
            os.link(victim, part)
        case "directory":
            part.mkdir()
    async with receiver(tmp_path / "home") as r:
        peer = r.connect()
        if kind == "directory":
            await peer.send(wire.Init(len(CONTENT), hashlib.sha256(CONTENT).digest(), "f").build())
            assert await refused(peer)
        else:
            assert (await peer.transfer("f", CONTENT)).status == 0
            assert r.received()[0].read_bytes() == CONTENT
    assert victim.read_text() == "precious"


async def test_a_symlink_for_the_partial_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home" / "received").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "home" / "received" / ".partial").symlink_to(tmp_path / "elsewhere")
    async with receiver(tmp_path / "home") as r:
        peer = r.connect()
        await peer.send(wire.Init(3, hashlib.sha256(b"abc").digest(), "f").build())
        assert await refused(peer)
    assert os.listdir(tmp_path / "elsewhere") == []


async def test_a_planted_final_name_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    stamps = iter(["first", "second"])
    monkeypatch.setattr(Mailbox, "_stamp", lambda self: next(stamps))
    async with receiver(tmp_path / "home") as r:
        (tmp_path / "home" / "received").mkdir(parents=True)
        (tmp_path / "home" / "received" / "f-first.txt").symlink_to(victim)
        assert (await r.connect().transfer("f.txt", CONTENT)).status == 0
    assert (tmp_path / "home" / "received" / "f-second.txt").read_bytes() == CONTENT
    assert victim.read_text() == "precious"


async def test_the_quota_is_told_before_a_byte_is_sent(tmp_path: Path) -> None:
    async with receiver(tmp_path, received_quota=500_000) as r:
        peer = r.connect()
        assert (await peer.transfer("a", CONTENT)).status == 0
        await peer.send(wire.Init(len(CONTENT), hashlib.sha256(b"!" + CONTENT[1:]).digest(), "b").build())
        assert await refused(peer) == "the receiver's space for files is used up"
        assert r.service.slots.free == dataexchange.MAX_WRITERS


async def test_resuming_needs_no_more_quota_than_the_file(tmp_path: Path) -> None:
    async with receiver(tmp_path, received_quota=len(CONTENT)) as r:
        peer = r.connect()
        await peer.offer("a", CONTENT)
        await peer.push(CONTENT, 0, 5 * STEP)
        await peer.lose()
        peer = r.connect()
        assert await peer.offer("a", CONTENT) == 5 * STEP
        await peer.push(CONTENT, 5 * STEP, len(CONTENT))
        assert (await peer.finish(CONTENT)).status == 0


async def test_forgotten_parts_give_way(tmp_path: Path) -> None:
    async with receiver(tmp_path, received_quota=400_000) as r:
        peer = r.connect()
        await peer.offer("a", CONTENT)
        await peer.push(CONTENT, 0, 4 * STEP)
        await peer.lose()
        other = b"!" + CONTENT[1:]
        assert (await r.connect().transfer("b", other)).status == 0
        assert intact(r, other)


async def test_a_full_disk_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: mailbox.Partial, pieces: object) -> None:
        raise OSError(28, "No space left on device", "/home/secret")

    monkeypatch.setattr(mailbox.Partial, "write", full)
    async with receiver(tmp_path) as r:
        peer = r.connect()
        await peer.offer("a", CONTENT)
        for at in range(0, len(CONTENT), STEP):  # the sender does not wait for acknowledgements
            await peer.send(chunk(CONTENT, at, min(at + STEP, len(CONTENT))))
        await peer.send(wire.done(transfer_id(CONTENT)))
        assert await refused(peer) == "No space left on device"
        while r.service.slots.free != dataexchange.MAX_WRITERS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        assert (await peer.transfer("a", CONTENT)).status == 0


async def test_transfers_at_once_are_bounded(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        peers = [r.connect(2 + i % 2) for i in range(dataexchange.MAX_WRITERS)]
        for i, peer in enumerate(peers):
            await peer.offer("f", b"%d" % i)
        late = r.connect()
        await late.send(wire.Init(4, hashlib.sha256(b"late").digest(), "f").build())
        assert "too many transfers" in await refused(late)
        await peers[0].lose()
        assert (await late.transfer("f", b"late")).status == 0


async def test_a_peer_with_many_transfers_leaves_places_for_others(tmp_path: Path) -> None:
    async with receiver(tmp_path) as r:
        for i in range(dataexchange.MAX_WRITERS_NODE):
            await r.connect(3).offer("f", b"%d" % i)
        greedy = r.connect(3)
        await greedy.send(wire.Init(4, hashlib.sha256(b"more").digest(), "f").build())
        assert "too many transfers" in await refused(greedy)
        assert (await r.connect(2).transfer("f", b"mine")).status == 0


def test_old_and_surplus_parts_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAX_PARTIALS", 5)
    box = Mailbox(tmp_path)
    now = time.time()
    box.partial.mkdir(parents=True)
    for i in range(8):
        path = box.partial / (f"{i:x}" * 32)
        path.write_bytes(b"x")
        os.utime(path, (now - i, now - i))
    for name, age in (("frame-0", 4000), ("frame-1", 10), ("f" * 32, 90_000)):
        (box.partial / name).write_bytes(b"x")
        os.utime(box.partial / name, (now - age, now - age))
    box.sweep()
    assert sorted(p.name[:7] for p in box.partial.iterdir()) == ["0000000", "1111111", "2222222", "3333333", "4444444"]


def test_an_empty_home_can_be_swept(tmp_path: Path) -> None:
    Mailbox(tmp_path / "none").sweep()
    assert not (tmp_path / "none").exists()


def test_no_quota_means_what_is_free(tmp_path: Path) -> None:
    box = Mailbox(tmp_path, received_quota=0)
    box.release(box.open_file(2, 1 << 20))
    with pytest.raises(StoreError):
        box.open_file(2, 1 << 60)


UNIT = 16 << 10
ZEROS = memoryview(bytes(UNIT))


def write(part: mailbox.Partial, units: int) -> None:
    part.write([ZEROS] * units)


def test_announcing_much_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "PROMISED_BYTES", UNIT)
    now = 100.0
    box = Mailbox(tmp_path, received_quota=100 * UNIT, clock=lambda: now)
    greedy = box.open_transfer(b"g" * 16, 3, 100 * UNIT)
    with pytest.raises(StoreError):
        box.open_file(3, UNIT)  # beside what it has announced itself
    mine = box.open_file(2, 98 * UNIT)
    write(mine, 98)
    box.release(mine, discard=True)
    write(greedy, 5)  # now it sends, and much is kept for it
    with pytest.raises(StoreError):
        box.open_file(2, 20 * UNIT)
    box.release(box.open_file(2, 10 * UNIT), discard=True)
    now += 300  # and rests
    mine = box.open_file(2, 93 * UNIT)
    write(mine, 93)
    write(greedy, 1)
    with pytest.raises(StoreError):
        write(greedy, 2)
    box.release(greedy)
    box.release(mine, discard=True)
    assert sum(p.stat().st_size for p in box.partial.iterdir()) == 6 * UNIT


def test_forgotten_parts_give_way_to_bytes_and_not_to_announcements(tmp_path: Path) -> None:
    box = Mailbox(tmp_path, received_quota=10 * UNIT)
    part = box.open_transfer(b"a" * 16, 2, 8 * UNIT)
    write(part, 6)
    box.release(part)
    with pytest.raises(StoreError):
        box.open_file(3, 11 * UNIT)
    other = box.open_file(3, 10 * UNIT)
    write(other, 4)
    assert part.path.exists()
    write(other, 1)
    assert not part.path.exists()
    write(other, 5)
    box.release(other, discard=True)


async def test_who_comes_back_often_does_not_make_us_read_all_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(partial.os, "pread", lambda fd, count, at: read.append(count) or pread(fd, count, at))
    async with receiver(tmp_path) as r:
        for i in range(4):
            peer = r.connect()
            assert await peer.offer("f", CONTENT) == i * STEP
            await peer.push(CONTENT, i * STEP, (i + 1) * STEP)
            await peer.lose()
        assert not read
        path = tmp_path / "received" / ".partial" / transfer_id(CONTENT).hex()
        path.write_bytes(path.read_bytes())  # somebody has been at it
        peer = r.connect()
        await peer.offer("f", CONTENT)
        await peer.push(CONTENT, 4 * STEP, len(CONTENT))
        assert sum(read) >= 4 * STEP and (await peer.finish(CONTENT)).status == 0
        assert intact(r)


async def test_a_transfer_that_finds_no_room_any_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "PROMISED_BYTES", 0)
    async with receiver(tmp_path, received_quota=len(CONTENT)) as r:
        late, quick = r.connect(3), r.connect(2)
        await late.offer("a", CONTENT)
        assert (await quick.transfer("b", CONTENT[1:])).status == 0
        await late.send(chunk(CONTENT, 0, STEP))
        assert await refused(late) == "the receiver's space for files is used up"
        await late.send(wire.done(transfer_id(CONTENT)))
        assert (await late.transfer("c", b"x")).status == 0


async def test_memory_and_event_loop_stay_free_during_a_large_file(tmp_path: Path) -> None:
    """64 MiB pass through bounded buffers, and the loop is never away for long."""
    import tracemalloc

    block = random.Random(1).randbytes(1 << 20)
    sha = hashlib.sha256()
    for _ in range(64):
        sha.update(block)
    tid, longest = sha.digest()[:16], 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    async with receiver(tmp_path) as r:
        peer = r.connect()
        watcher = asyncio.ensure_future(watch())
        await peer.send(wire.Init(64 << 20, sha.digest(), "big").build())
        assert (await peer.stream_frame()).offset == 0
        tracemalloc.start()

        async def send() -> None:
            for i in range(64):
                await peer.send(wire.chunk_head(tid, i << 20, 1 << 20) + block)
            await peer.send(wire.done(tid))

        sending = asyncio.ensure_future(send())
        while (frame := await peer.stream_frame()).kind is StreamKind.ACK:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        await sending
        watcher.cancel()
        assert (frame.kind, frame.status) == (StreamKind.COMPLETE, 0)
        assert r.received()[0].stat().st_size == 64 << 20
    assert peak < 24 << 20, f"{peak >> 20} MiB"
    assert longest < 1.0, f"the event loop stood still for {longest:.2f} s"
