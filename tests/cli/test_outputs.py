"""What commands print, human and JSON (cli.md sections 3 to 6), against a node that plays its part."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import threading
from functools import partial
from pathlib import Path

import pytest
from fakedaemon import FakeNode, Peer, Scripted, error, frame, wait_for

from pilot.cli.output import clock, millis, seconds, size
from pilot.cli.paths import fresh

ADDRESS = "1:0001.0000.0009"


def test_find(run, node: FakeNode) -> None:
    assert run("find", "home-agent-2").out == (
        f"Hostname:  home-agent-2\nNode ID:   9\nAddress:   {ADDRESS}\nVisible:   private\n"
    )
    data = {"hostname": "home-agent-2", "node_id": 9, "address": ADDRESS, "public": False}
    assert run("--json", "find", "home-agent-2").data == data


def test_find_says_how_to_get_trust(run, node: FakeNode) -> None:
    ran = run("find", "stranger")
    assert ran.status == 1
    assert ran.err == (
        'error: cannot find "stranger" — hostname not found or no mutual trust\n'
        'hint:  establish trust first: pilotctl handshake stranger "reason"\n'
    )
    assert run("--json", "find", "stranger").error["code"] == "not_found"


def test_info(run, node: FakeNode) -> None:
    assert run("--json", "info").data == node.info
    lines = run("info").out.splitlines()
    assert lines[0] == "Pilot Protocol Daemon"
    for line in (
        "  Node ID:     8",
        "  Address:     1:0001.0000.0008",
        "  Hostname:    home-agent-1",
        "  Uptime:      01:02:03",
        "  Connections: 1",
        "  Ports:       4",
        "  Peers:       1",
        "  Encryption:  enabled (X25519 + AES-256-GCM), 1/1 peers encrypted, 1 authenticated",
        "  Identity:    persistent (Ed25519 MDEyMzQ1Njc4OTAx...)",
        "  Traffic:     2.0 KB sent / 512 B recv",
        "  Packets:     20 sent / 10 recv",
    ):
        assert line in lines


def test_info_of_a_daemon_that_says_little(run, node: FakeNode) -> None:
    node.info = {"node_id": 8, "peer_list": None, "conn_list": [None, 5]}
    assert run("info").status == 0
    assert run("--json", "peers").data == {"peers": [], "total": 0, "encrypted": 0}
    assert run("--json", "connections").data == {"connections": [], "total": 0}


def test_peers(run, node: FakeNode) -> None:
    out = run("peers").out.splitlines()
    assert out[0].split() == ["NODE", "ID", "ENDPOINT", "PATH", "RTT", "ENCRYPTED", "AUTH"]
    assert re.split(r" {2,}", out[1]) == ["9", "198.51.100.4:4000", "-", "-", "yes (AES-256-GCM)", "yes (Ed25519)"]
    assert run("--json", "peers").data["total"] == 1
    assert run("--json", "peers", "--search", "nothing").data == {"peers": [], "total": 0, "encrypted": 0}
    assert run("--json", "peers", "--all", "--limit", "0").data["encrypted"] == 1
    assert run("--json", "peers", "--search", "198.51").data["total"] == 1


def test_connections(run, node: FakeNode) -> None:
    run("send", "9", "7", "--data", "x")
    data = run("--json", "connections").data
    assert (data["total"], data["connections"][0]["remote_port"]) == (1, 7)
    out = run("connections").out.splitlines()
    assert re.split(r" {2,}", out[0]) == [
        "ID", "LOCAL", "REMOTE ADDR", "RPORT", "STATE", "CWND", "FLIGHT", "SRTT", "UNACK", "OOO", "PEERWIN", "RCVWIN",
    ]  # fmt: skip
    assert out[2].startswith("    tx: 5 B (1 segs)  rx: 0 B (1 segs)  retx: 0")


def test_disconnect_does_not_wait(run, node: FakeNode) -> None:
    assert run("--json", "disconnect", "5").data == {"conn_id": 5}


def test_health(run, node: FakeNode) -> None:
    assert run("--json", "health").data["status"] == "ok"
    assert run("health").out.startswith("● pilot-daemon ok\n  uptime 00:00:05 · 1 connection(s)\n")


def test_handshake_and_approval_read_like_the_manual(run, node: FakeNode) -> None:
    ran = run("handshake", "home-agent-2", "Collaborative data processing")
    assert ran.out == "Handshake sent...\n"
    assert "pilotctl approve 1:0001.0000.0008" in ran.err
    assert (0x0F, b"\x01\0\0\0\x09Collaborative data processing") in node.frames
    assert run("--json", "handshake", "9").data == {"node_id": 9, "status": "sent"}
    node.pending = [{"node_id": 77, "public_key": "", "justification": "please", "received_at": 1767225600}]
    assert run("approve", "1:0001.0000.004D").out == "Trust established\n"
    assert run("--json", "approve", "77").data == {"node_id": 77, "status": "approved"}


def test_approving_a_node_that_never_asked_is_no_success(run, node: FakeNode) -> None:
    ran = run("--json", "approve", "1:0001.0000.0055")
    assert (ran.status, ran.error["code"], ran.error["message"]) == (1, "not_found", "node 85 has not asked for trust")


def test_approve_finds_the_name_of_a_private_node_among_those_who_ask(run, node: FakeNode) -> None:
    node.pending = [{"node_id": 77, "public_key": "", "justification": "", "received_at": 1, "hostname": "home-agent-7"}]
    assert run("approve", "home-agent-7").out == "Trust established\n"


def test_reject_and_untrust(run, node: FakeNode) -> None:
    assert run("--json", "reject", "55", "not", "now").data == {"node_id": 55, "status": "rejected"}
    assert (0x0F, b"\x03\0\0\0\x37not now") in node.frames
    assert run("--json", "untrust", "9").data == {"node_id": 9}
    assert run("--json", "untrust", "55").error["code"] == "connection_failed"


def test_pending(run, node: FakeNode) -> None:
    ran = run("pending")
    assert ran.out == "no pending handshake requests\n"
    assert run("--json", "pending").data == {"pending": []}
    row = {"node_id": 55, "public_key": "", "justification": "please\nnow" + "x" * 60, "received_at": 1767225600}
    node.pending = [row]
    head, line = run("pending").out.splitlines()
    assert head == "NODE ID     " + "JUSTIFICATION".ljust(40) + "  RECEIVED"
    assert re.fullmatch(r"55 {10}please\ufffdnowx{30}  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)
    assert run("--json", "pending").data == {"pending": [row]}
    node.pending_dropped = 7
    assert run("--json", "pending").data == {"pending": [row], "dropped": 7}
    assert "7 more found the list full" in run("pending").err


def test_trust(run, node: FakeNode) -> None:
    data = run("--json", "trust").data
    assert (data["total"], data["trusted"][0]["node_id"]) == (1, 9)
    head, line = run("trust").out.splitlines()
    assert head.split() == ["NODE", "ID", "MUTUAL", "NETWORK", "APPROVED", "AT"]
    assert re.split(r" {2,}", line)[:3] == ["9", "yes", "-"]
    node.trusted = set()
    assert run("trust").out == "no trusted peers\n"


def test_own_name_visibility_tags(run, node: FakeNode, home: Path) -> None:
    assert run("set-hostname", "alpha").out == "hostname set: alpha\n"
    assert run("--json", "set-hostname", "alpha").data == {"hostname": "alpha", "node_id": 8}
    assert run("--json", "config").data["hostname"] == "alpha"
    assert run("clear-hostname").out == "hostname cleared\n"
    assert "hostname" not in run("--json", "config").data
    assert run("--json", "set-public").data["visibility"] == "public"
    assert run("--json", "config").data["public"] is True
    assert run("--json", "set-private").data["visibility"] == "private"
    assert run("--json", "config").data["public"] is False, "a restart must not make the node public again"
    assert run("set-tags", "#a", "b").out == "tags set: #a #b\n"
    assert run("--json", "set-tags", "a").data == {"node_id": 8, "tags": ["a"]}
    assert run("--json", "clear-tags").data == {"tags": []}
    assert run("--json", "deregister").data == {"type": "deregister_ok"}
    assert run("--json", "rotate-key").data["type"] == "rotate_key_ok"


def test_webhook_with_and_without_a_daemon(run, home: Path) -> None:
    url = "http://127.0.0.1:8080/h"
    assert run("set-webhook", url).out == f"webhook set: {url}\nwill take effect on next daemon start\n"
    with FakeNode(home / "p.sock"):
        assert run("--json", "set-webhook", url).data == {"webhook": url, "applied": True}
        assert run("clear-webhook").out == "webhook cleared\napplied to running daemon\n"
    assert "webhook" not in run("--json", "config").data


def test_ping_reads_like_the_manual(run, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.cli.measure.PAUSE", 0.0)
    ran = run("ping", "home-agent-2", "--count", "4")
    lines = ran.out.splitlines()
    assert ran.status == 0
    assert lines[0] == f"PING home-agent-2 ({ADDRESS}):"
    assert len(lines) == 6
    for line in lines[1:5]:
        assert re.fullmatch(r"  Reply: \d+(\.\d{1,2})?ms \(hole-punched, encrypted\)", line)
    assert re.fullmatch(r"4 packets, 0% loss, avg \d+\.\d{1,2}ms", lines[5])


def test_ping_json(run, node: FakeNode) -> None:
    data = run("--json", "ping", "9", "--count", "1").data
    assert set(data) == {"target", "to", "results", "timeout"}
    assert (data["target"], data["timeout"]) == ("0:0000.0000.0009", False)
    result = data["results"][0]
    assert (result["seq"], result["bytes"], result["path"], result["encrypted"]) == (0, 6, "hole-punched", True)
    assert result["rtt_ms"] > 0
    assert result["dial_ms"] > 0


def test_ping_of_a_peer_that_refuses(run, node: FakeNode, home: Path) -> None:
    node.close()

    def script(peer: Peer) -> None:
        while True:
            code, _ = peer.frame()
            peer.send(frame(0x10, b'{"trusted":true}') if code == 0x0F else error("dial timeout"))

    with Scripted(home / "p.sock", script):
        ran = run("ping", "9", "--count", "1")
        assert (ran.status, ran.out) == (1, "PING 9 (0:0000.0000.0009):\n  No reply: dial timeout\n1 packet, 100% loss\n")
        ran = run("--json", "ping", "9", "--count", "1")
        assert (ran.status, ran.data["results"]) == (1, [{"seq": 0, "error": "dial timeout"}])


def test_ping_without_path_information(run, node: FakeNode) -> None:
    node.path_info = None
    node.info["peer_list"][0]["relay"] = True
    assert re.search(r"Reply: \S+ms \(relay, encrypted\)", run("ping", "9", "--count", "1").out)
    node.info["peer_list"] = []
    assert re.search(r"Reply: \S+ms\n", run("ping", "9", "--count", "1").out)


def test_traceroute(run, node: FakeNode) -> None:
    data = run("--json", "traceroute", ADDRESS).data
    assert (len(data["rtt_samples"]), data["rtt_samples"][0]["bytes"], data["path"]) == (3, 7, "hole-punched")
    assert data["setup_ms"] > 0
    assert 0x0F not in node.codes(), "traceroute asks for no trust"


def test_bench(run, node: FakeNode) -> None:
    data = run("--json", "bench", "9", "4").data
    assert (data["sent_bytes"], data["recv_bytes"], data["complete"]) == (4 << 20, 4 << 20, True)
    assert {"send_duration_ms", "total_duration_ms", "send_mbps", "total_mbps"} < set(data)
    lines = run("bench", "home-agent-2", "0.01").out.splitlines()
    assert lines[0] == f"BENCH home-agent-2 ({ADDRESS}) — sending 10.2 KB via echo port"
    assert re.fullmatch(r"  Sent:     10\.2 KB in \S+s \(\S+ \S+/s, \d+ Mbit/s\)", lines[1])
    assert re.fullmatch(r"  Echoed:   10\.2 KB in \S+s \(\S+ \S+/s, \d+ Mbit/s\) \(hole-punched, encrypted\)", lines[2])


def test_bench_one_way_counts_at_the_peer(run, node: FakeNode) -> None:
    data = run("--json", "bench", "9", "4", "--one-way", "--streams", "3").data
    assert (data["mode"], data["streams"], data["complete"]) == ("one-way", 3, True)
    assert (data["sent_bytes"], data["recv_bytes"]) == (4 << 20, 4 << 20)
    lines = run("bench", "home-agent-2", "0.01", "--one-way", "--streams", "2").out.splitlines()
    assert lines[0] == f"BENCH home-agent-2 ({ADDRESS}) — sending 10.2 KB one way, 2 streams"
    assert re.fullmatch(r"  Counted:  10\.2 KB in \S+s \(\S+ \S+/s, \d+ Mbit/s\) \(hole-punched, encrypted\)", lines[2])


def test_bench_for_a_time_with_latency_beside(run, node: FakeNode) -> None:
    data = run("--json", "bench", "9", "--duration", "300ms", "--latency").data
    assert (data["mode"], data["complete"]) == ("echo", True)
    assert data["sent_bytes"] == data["recv_bytes"] > 0
    assert data["send_duration_ms"] < data["total_duration_ms"] < 30_000
    for when in ("idle", "loaded"):
        times = data["latency"][when]
        assert times["count"] > 0 and 0 < times["p50_ms"] <= times["p99_ms"]
    lines = run("bench", "9", "--duration", "50ms", "--latency").out.splitlines()
    assert lines[0].endswith("— sending for 50ms via echo port")
    assert re.fullmatch(r"  Latency:  \S+ idle \(p99 \S+\), \S+ under load \(p99 \S+\)", lines[3])


def test_bench_one_way_needs_a_peer_that_counts(run, home: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            code, _ = peer.frame()
            if code == 0x0F:
                peer.send(frame(0x10, b'{"trusted":true}'))
            elif code == 0x03:
                peer.send(error("connection refused"))
            elif code == 0x0D:
                peer.send(frame(0x0E, b"{}"))

    with Scripted(home / "p.sock", script):
        ran = run("--json", "bench", "9", "--one-way")
    assert (ran.status, ran.error["code"]) == (1, "not_supported")
    assert "--one-way" in ran.error["hint"]


def test_bench_notices_a_count_that_is_too_high(run, home: Path) -> None:
    def script(peer: Peer) -> None:
        while True:
            code, body = peer.frame()
            if code == 0x0F:
                peer.send(frame(0x10, b'{"trusted":true}'))
            elif code == 0x03:
                peer.send(frame(0x04, b"\0\0\0\1"))
            elif code == 0x06:
                peer.send(frame(0x07, body[:4] + (1 << 40).to_bytes(8, "big")))
            elif code == 0x60:
                peer.send(error("unknown command: 0x60"))
            elif code == 0x0D:
                peer.send(frame(0x0E, b"{}"))

    with Scripted(home / "p.sock", script):
        ran = run("--json", "bench", "9", "1", "--one-way")
    assert (ran.status, ran.data["complete"], ran.data["error"]) == (1, False, "the peer counts more than was sent")


def test_bench_notices_wrong_bytes_and_early_ends(run, home: Path) -> None:
    def script(peer: Peer, wrong: bool) -> None:
        while True:
            code, body = peer.frame()
            if code == 0x0F:
                peer.send(frame(0x10, b'{"trusted":true}'))
            elif code == 0x03:
                peer.send(frame(0x04, b"\0\0\0\1"))
            elif code == 0x06:
                peer.send(frame(0x07, body[:4] + b"\xff" * (len(body) - 4)) if wrong else frame(0x09, body[:4]))
            elif code == 0x60:
                peer.send(error("unknown command: 0x60"))
            elif code == 0x0D:
                peer.send(frame(0x0E, b"{}"))

    for wrong, text in ((True, "the echo differs from what was sent"), (False, "the peer closed the stream")):
        with Scripted(home / "p.sock", partial(script, wrong=wrong)):
            ran = run("--json", "bench", "9")
        assert (ran.status, ran.data["complete"], ran.data["error"]) == (1, False, text)


def test_connect_tells_the_story_and_the_answer(run, node: FakeNode) -> None:
    node.history_on_dial = [
        {"age_s": 0, "step": "direct_failed", "text": "Trying direct... failed (3 attempts)", "kind": "direct"},
        {"age_s": 0, "step": "punch_failed", "text": "Trying hole-punch... failed (symmetric NAT on remote)"},
        {"age_s": 0, "step": "relay_fallback", "text": "Falling back to relay...", "kind": "relay"},
        {"age_s": 0, "step": "connected", "text": "Connected via relay (encrypted, 15ms overhead)", "kind": "relay"},
    ]
    ran = run("connect", "home-agent-2", "--message", "hello from behind NAT")
    assert ran.status == 0
    assert ran.err.splitlines() == [
        "Trying direct... failed (3 attempts)",
        "Trying hole-punch... failed (symmetric NAT on remote)",
        "Falling back to relay...",
        "Connected via relay (encrypted, 15ms overhead)",
        "Message delivered",
    ]
    assert ran.out == "got: hello from behind NAT\n"


def test_connect_tells_the_story_to_its_end_though_data_flowed_before(run, node: FakeNode) -> None:
    """The relay carries the message while direct and punch are still being tried."""
    assert node.path_info is not None
    node.path_info["phase"] = "racing"

    def decided() -> None:
        assert node.path_info is not None
        told = [{"age_s": 0, "step": "connected", "text": "Connected via relay (encrypted, 15ms overhead)", "kind": "relay"}]
        node.path_info |= {"phase": "relayed", "history": told}

    later = threading.Timer(0.5, decided)
    later.start()
    ran = run("connect", "home-agent-2", "--message", "hello")
    later.join()
    assert ran.err.splitlines() == ["Connected via relay (encrypted, 15ms overhead)", "Message delivered"]
    assert ran.out == "got: hello\n"


def test_connect_over_a_path_that_is_there_already(run, node: FakeNode) -> None:
    ran = run("connect", "9", "--message", "x")
    assert ran.err.splitlines() == ["Connected via hole-punch (encrypted, 12ms)", "Message delivered"]


def test_connect_json(run, node: FakeNode) -> None:
    assert run("--json", "connect", "home-agent-2", "--message", "hi").data == {
        "target": ADDRESS, "port": 1000, "sent": "hi", "response": "got: hi", "path": "hole-punched", "encrypted": True,
    }  # fmt: skip


def test_connect_takes_standard_input(run, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped \xff")))
    assert run("--json", "connect", "9").data["response"] == "got: piped \ufffd"


def test_connect_to_a_peer_that_closes_without_an_answer(run, node: FakeNode) -> None:
    ran = run("connect", "9", "11", "--message", "hello")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.splitlines()[-2:] == ["Message delivered", "sent 5 bytes (no response)"]


def test_connect_claims_no_delivery_that_was_not_acknowledged(run, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    from fakedaemon import CONN_ROW

    monkeypatch.setitem(CONN_ROW, "unacked", 1)
    assert "Message delivered" not in run("connect", "9", "11", "--message", "hello").err


def test_connect_without_an_answer_is_a_timeout(run, node: FakeNode) -> None:
    ran = run("--json", "connect", "9", "10", "--message", "hi", "--timeout", "200ms")
    assert (ran.status, ran.error["code"]) == (1, "timeout")
    assert "the message was delivered" in ran.error["message"]


def test_connect_where_nobody_listens(run, node: FakeNode) -> None:
    ran = run("--json", "connect", "home-agent-2", "2000", "--message", "hi")
    assert (ran.status, ran.error["code"]) == (1, "connection_failed")
    assert ran.error["message"] == f"cannot connect to {ADDRESS} port 2000: connection refused"


def test_send(run, node: FakeNode) -> None:
    assert run("--json", "send", "77", "7", "--data", "hello", "--no-auto-handshake").data == {
        "target": "0:0000.0000.004D", "port": 7, "sent": "hello", "response": "hello",
    }  # fmt: skip


def accepting(peer: Peer) -> None:
    code, body = peer.frame()
    assert (code, body) == (0x01, b"\x13\x88")
    peer.send(frame(0x02, body))
    for n in (1, 2):
        peer.send(frame(0x05, struct.pack(">HI", 5000, n) + b"\0\1\0\0\0\x09" + b"\xc0\0"))
        peer.send(frame(0x07, struct.pack(">I", n) + b"message %d" % n))
    while True:
        code, body = peer.frame()
        if code == 0x37:
            peer.send(frame(0x38, body))


def test_recv(run, home: Path) -> None:
    with Scripted(home / "p.sock", accepting):
        assert run("recv", "5000", "--count", "2").out == "message 1\nmessage 2\n"
    with Scripted(home / "p.sock", accepting):
        assert run("--json", "recv", "5000").data == {
            "messages": [{"seq": 0, "port": 5000, "data": "message 1", "bytes": 9}], "timeout": False,
        }  # fmt: skip
    with Scripted(home / "p.sock", accepting):
        ran = run("--json", "recv", "5000", "--count", "3", "--timeout", "200ms")
        assert (ran.status, ran.data["timeout"], len(ran.data["messages"])) == (0, True, 2)


def test_recv_timeout_is_no_error(run, node: FakeNode) -> None:
    ran = run("--json", "recv", "5000", "--timeout", "50ms")
    assert (ran.status, ran.data) == (0, {"messages": None, "timeout": True})


def test_dgram(run, node: FakeNode) -> None:
    assert run("--json", "dgram", "9", "6000", "--data", "dg").data == {
        "target": "0:0000.0000.0009", "port": 6000, "bytes": 2, "confirmed": True,
    }  # fmt: skip
    node.old = True
    ran = run("dgram", "9", "6000", "--data", "dg")
    assert ran.out == "sent 2 byte(s) to 0:0000.0000.0009 port 6000\n"
    assert run("--json", "dgram", "9", "6000", "--data", "dg").data["confirmed"] is False


def test_listen(run, home: Path) -> None:
    def script(peer: Peer) -> None:
        gone.wait(0.3)
        for port in (6001, 6000):
            peer.send(frame(0x0C, b"\0\1\0\0\0\x09" + struct.pack(">HH", 5000, port) + b"hi %d" % port))
        peer.frame()

    gone = threading.Event()
    with Scripted(home / "p.sock", script):
        assert run("listen", "6000", "--count", "1").out == f"[{ADDRESS}:5000] hi 6000\n"
    with Scripted(home / "p.sock", script):
        data = run("--json", "listen", "6000", "--count", "2", "--timeout", "1s").data
    assert data == {"messages": [{"src_addr": ADDRESS, "src_port": 5000, "data": "hi 6000", "bytes": 7}], "timeout": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def test_send_file(run, node: FakeNode, model: Path) -> None:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    data = run("--json", "send-file", "home-agent-2", str(model)).data
    assert data.pop("elapsed_ms") > 0
    assert data.pop("throughput_mbps") > 0
    assert data == {
        "filename": "model.bin", "bytes": 1 << 20, "bytes_sent": 1 << 20, "bytes_resumed": 0, "destination": ADDRESS,
        "sha256": digest, "transport": "filestream", "verified": True,
    }  # fmt: skip
    assert node.stored["model.bin"] == model.read_bytes()
    out = run("send-file", "home-agent-2", str(model)).out
    pattern = rf"model\.bin: 1\.0 MB in \S+s \(\S+ [KMG]B/s\) to home-agent-2 \({ADDRESS}\), sha256 verified: {digest}\n"
    assert re.fullmatch(pattern, out)


def test_send_file_to_an_old_receiver(run, node: FakeNode, model: Path) -> None:
    node.filestream = False
    data = run("--json", "send-file", "9", str(model)).data
    assert set(data) == {"filename", "bytes", "destination", "ack", "elapsed_ms", "throughput_mbps"}
    assert data["ack"] == f"ACK FILE {1 << 20} bytes"


def test_send_file_that_is_not_there(run, node: FakeNode) -> None:
    ran = run("--json", "send-file", "9", "/no/such/file")
    assert (ran.status, ran.error["code"]) == (1, "not_found")
    assert node.frames == []


def test_send_message(run, node: FakeNode) -> None:
    data = run("--json", "send-message", "home-agent-2", "--data", '{"a":1}', "--type", "json").data
    assert re.fullmatch(r"[0-9a-f]{32}", data.pop("message_id"))
    assert data == {
        "target": ADDRESS, "to": ADDRESS, "type": "json", "bytes": 7, "ack": "ACK JSON 7 bytes", "seq": 0, "tagged": False,
        "reused": False,
    }  # fmt: skip
    assert node.stored["JSON"] == b'{"a":1}'


def test_pings_over_one_stream(run, node: FakeNode) -> None:
    rows = run("--json", "ping", "home-agent-2", "--count", "2", "--reuse-conn").data["results"]
    assert [(r["bytes"], r.get("reused", False)) for r in rows] == [(6, False), (6, True)]
    assert node.codes().count(0x03) == 1, "one dial"
    rows = run("--json", "ping", "home-agent-2", "--count", "2").data["results"]
    assert not any("reused" in r for r in rows) and node.codes().count(0x03) == 3
    ran = run("ping", "home-agent-2", "--count", "1", "--trace")
    assert [line.split()[1] for line in ran.err.splitlines()] == STEPS[:3] and "[dial=" in ran.out


def test_many_messages(run, node: FakeNode) -> None:
    data = run("--json", "send-message", "home-agent-2", "--data", "x", "--count", "3").data
    assert data.keys() == {"target", "to", "type", "results", "reuse_conn"} and data["to"] == ADDRESS
    assert [(r["seq"], r["ack"], r["bytes"], r["reused"]) for r in data["results"]] == [
        (i, "ACK TEXT 1 bytes", 1, i > 0) for i in range(3)
    ]
    assert len({r["message_id"] for r in data["results"]}) == 3


STEPS = ["connectDriver", "parseAddrOrHostname", "maybeAutoHandshake", "dial+send", "dataexchange.Dial", "outputOK"]


def test_a_traced_message(run, node: FakeNode) -> None:
    node.traces = True
    data = run("--json", "send-message", "home-agent-2", "--data", "hi", "--trace").data
    assert (data["to_receiver_ms"], data["receiver_process_ms"], data["inner_ack"]) == (1.5, 0.25, "ACK TEXT 2 bytes")
    assert json.loads(data["ack"])["inner_ack"] == "ACK TEXT 2 bytes" and data["total_ms"] > 0 and "return_trip_ms" in data
    assert node.stored["TEXT"] == b"hi" and data["tagged"] is True
    ran = run("send-message", "home-agent-2", "--data", "hi", "--trace")
    lines = ran.err.splitlines()
    assert all(re.fullmatch(r"TRACE .{22} {1,12}\d+\.\d{3}ms", line) for line in lines), lines
    assert [line.split()[1] for line in lines] == STEPS
    assert ran.out.splitlines()[0].endswith(": ACK TEXT 2 bytes") and "there 1.500ms, stored in 0.250ms, back" in ran.out
    node.traces = False
    assert run("send-message", "home-agent-2", "--data", "hi").err == "", "nothing without the flag"


def test_a_trace_that_the_receiver_does_not_know(run, node: FakeNode) -> None:
    data = run("--json", "send-message", "home-agent-2", "--data", "hi", "--trace").data
    assert data["ack"] == data["inner_ack"] == "ACK TEXT 2 bytes" and data["tagged"] is False
    assert "to_receiver_ms" not in data and data["total_ms"] > 0 and node.stored["TEXT"] == b"hi"


def test_a_limit_for_the_whole_command(run, node: FakeNode) -> None:
    error = run("--json", "send-message", "home-agent-2", "--data", "hi", "--timeout", "1us").error
    assert (error["code"], error["message"]) == ("timeout", "send-message exceeded total timeout 1us")
    assert run("--json", "send-message", "9", "--data", "hi", "--timeout", "20s", "--no-resend").data["ack"] == "ACK TEXT 2 bytes"
    error = run("--json", "send-message", "9", "--data", "ok?", "--wait", "9s", "--timeout", "600ms").error
    assert error["message"] == "send-message exceeded total timeout 600ms"


def test_send_message_waits_for_its_reply(run, node: FakeNode, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda n: b"\xab" * n)
    inbox = home / ".pilot" / "inbox"
    inbox.mkdir(parents=True)
    (inbox / "TEXT-20260101-000000.000-000001.json").write_text('{"type":"TEXT","data":"yes","reply_to":"%s"}' % ("ab" * 16))
    ran = run("send-message", "9", "--data", "ok?", "--wait", "5s")
    assert (ran.status, ran.out.splitlines()[-1]) == (0, "yes")


def test_no_reply_in_time(run, node: FakeNode) -> None:
    assert run("--json", "send-message", "9", "--data", "ok?", "--wait", "100ms").error["code"] == "timeout"


def test_publish(run, node: FakeNode) -> None:
    data = run("--json", "publish", "home-agent-2", "news", "--data", "evt").data
    assert data == {"target": ADDRESS, "topic": "news", "bytes": 3}
    both = "0004" "6e657773" "00000000" "0004" "6e657773" "00000003" "657674"
    wait_for(lambda: node.stored.get("events", b"").hex() == both, "subscription and event")


def test_subscribe(run, node: FakeNode) -> None:
    ran = run("subscribe", "9", "demo", "--count", "2")
    assert ran.out == "[demo] evt-1\n[demo] evt-2\n"
    assert ran.err == 'subscribed to "demo" on 0:0000.0000.0009 — waiting for events...\n'
    assert run("--json", "subscribe", "9", "demo", "--count", "1").data == {
        "events": [{"topic": "demo", "data": "evt-1", "bytes": 5}], "timeout": False,
    }  # fmt: skip
    ran = run("--json", "subscribe", "9", "demo", "--timeout", "300ms")
    assert ran.out == '{"bytes":5,"data":"evt-1","topic":"demo"}\n{"bytes":5,"data":"evt-2","topic":"demo"}\n'


def test_path(run, node: FakeNode) -> None:
    assert run("--json", "path", "home-agent-2").data == node.path_info
    lines = run("path", "home-agent-2").out.splitlines()
    assert lines[:6] == [
        f"home-agent-2 ({ADDRESS})",
        "  Path:       hole-punched via 198.51.100.4:4000",
        "  RTT:        12ms",
        "  Why:        a hole-punch arranged by the beacon opened the way",
        "  Encrypted:  yes",
        "  NAT:        port_restricted_cone here, restricted_cone there",
    ]


def test_path_of_another_daemon(run, node: FakeNode) -> None:
    node.path_info = None
    assert run("--json", "path", "9").data == {"node_id": 9, "path": None, "encrypted": True}


def test_networks(run, node: FakeNode) -> None:
    assert run("network", "list").out.splitlines()[1].split() == ["1", "home", "open", "2"]
    assert run("network", "join", "1", "--token", "tk").out == "joined network 1\n"
    assert (0x1F, b"\x02\0\x01tk") in node.frames
    assert run("network", "leave", "1").out == "left network 1\n"
    assert run("network").status == 2


def mailbox(home: Path) -> None:
    for name, day in (("TEXT-20260101-000000.000", 1), ("JSON-20260102-000000.000-000002", 2)):
        path = home / ".pilot" / "inbox" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = name.partition("-")[0]
        at = f"2026-01-0{day}T00:00:00Z"
        path.write_text(json.dumps({"type": kind, "from": ADDRESS, "data": f"day {day}", "bytes": 5, "received_at": at}))
    (home / ".pilot" / "inbox" / "broken-1.json").write_text("{")
    (home / ".pilot" / "received" / ".partial").mkdir(parents=True)
    (home / ".pilot" / "received" / "model-1.bin").write_bytes(b"x" * 2000)


def test_one_message_whole(run, home: Path) -> None:
    box = home / ".pilot" / "inbox"
    box.mkdir(parents=True)
    for day, text in (("01", "old"), ("02", "new " * 40)):
        path = box / f"TEXT-202601{day}-000000.000-000001.json"
        path.write_text(json.dumps({"type": "TEXT", "from": ADDRESS, "data": text, "message_id": day * 16}))
        os.utime(path, (1767225600 + 86400 * int(day),) * 2)
    assert run("inbox", "--latest").out.strip() == ("new " * 40).strip()
    assert run("--json", "inbox", "read", "01" * 16).data["data"] == "old"
    assert run("inbox", "read", "TEXT-20260101-000000.000-000001").out == "old\n"
    assert run("--json", "inbox", "read", "nothing").error["code"] == "not_found"
    assert run("--json", "inbox", "write", "it").error["code"] == "invalid_argument"
    assert "new " * 40 in run("inbox", "--full").out and "new " * 40 not in run("inbox").out
    assert run("--json", "inbox", "--since", "2026-01-02T12:00:00Z").data["total"] == 1
    assert run("--json", "inbox", "--since", "5m").data["total"] == 0
    assert run("--json", "inbox", "--since", "once").error["code"] == "invalid_argument"
    assert run("--json", "inbox", "--clear", "--before", "2026-01-02T12:00:00Z").data == {"cleared": 1}
    assert run("--json", "inbox").data["total"] == 1


def test_inbox_and_received(run, home: Path) -> None:
    assert run("inbox").out == "inbox is empty\n"
    assert run("received").out == "no received files\n"
    mailbox(home)
    assert run("inbox").out == (
        f"Inbox (2 messages):\n  [2026-01-02T00:00:00Z] from {ADDRESS} type=JSON\n    day 2\n"
        f"  [2026-01-01T00:00:00Z] from {ADDRESS} type=TEXT\n    day 1\n"
    )
    data = run("--json", "inbox", "--limit", "1").data
    assert (data["total"], data["shown"], data["dir"]) == (2, 1, str(home / ".pilot" / "inbox"))
    assert data["messages"][0]["id"] == "JSON-20260102-000000.000-000002"
    data = run("--json", "received").data
    assert (data["total"], data["files"][0]["name"], data["files"][0]["bytes"]) == (1, "model-1.bin", 2000)
    assert run("--json", "received", "--clear").data == {"cleared": 1}
    assert (home / ".pilot" / "received" / ".partial").is_dir(), "transfers under way are not cleared"
    assert run("--json", "inbox", "--clear").data == {"cleared": 3}
    assert run("--json", "inbox").data["messages"] == []


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 1023, 1024, 1536, 1 << 20, (1 << 20) - 1, 5 << 30)] == [
        "0 B", "1023 B", "1.0 KB", "1.5 KB", "1.0 MB", "1.0 MB", "5.0 GB",
    ]  # fmt: skip
    assert [millis(v) for v in (0.352, 0.999, 2.44, 9.96, 12.3, 250)] == ["0.35ms", "1.0ms", "2.4ms", "10ms", "12ms", "250ms"]
    assert [seconds(v) for v in (0.035, 1.239, 192)] == ["35ms", "1.24s", "3m12s"]
    assert clock(3723.9) == "01:02:03"


def test_new_decisions_of_a_bounded_history() -> None:
    def told(*texts: str) -> list[dict[str, str]]:
        return [{"text": t} for t in texts]

    assert fresh(told(), told("a", "b")) == told("a", "b")
    assert fresh(told("a", "b"), told("a", "b")) == []
    assert fresh(told("a", "b"), told("a", "b", "c")) == told("c")
    assert fresh(told("a", "b", "c"), told("c", "d")) == told("d")
    assert fresh(told("a", "b"), told("x", "y")) == told("x", "y")
