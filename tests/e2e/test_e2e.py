"""The real programs on loopback: what two users see, also when something dies under them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import threading
from pathlib import Path

from cluster import Agent, Cluster, wait_for

SECRET = b"hello from behind NAT"


def background(agent: Agent, *args: str) -> subprocess.Popen[bytes]:
    argv = agent.wrap([str(Path(agent.env["PATH"].split(":")[0]) / "pilotctl"), *args])
    return subprocess.Popen(argv, env=agent.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def make_file(path: Path, size: int, seed: int) -> str:
    rng, digest = random.Random(seed), hashlib.sha256()
    with path.open("wb") as f:
        while size > 0:
            data = rng.randbytes(min(size, 1 << 20))
            digest.update(data)
            size -= f.write(data)
    return digest.hexdigest()


def received(agent: Agent) -> list[Path]:
    """Files under their final names."""
    there = agent.home / ".pilot" / "received"
    return [p for p in there.iterdir() if p.is_file()] if there.is_dir() else []


def test_two_agents_meet_and_talk(pair: tuple[Agent, Agent]) -> None:
    a, b = pair
    info = a.json("info")
    assert info["address"] == "1:0001.0000.0001" and info["hostname"] == "alpha" and info["stun"] is True
    for x, y in ((a, b), (b, a)):
        results = x.json("ping", y.name, "--count", "3")["results"]
        assert len(results) == 3 and all(r["rtt_ms"] > 0 for r in results)
    waiting = background(b, "--json", "recv", "1000", "--count", "1", "--timeout", "20s")
    wait_for(lambda: b.json("info")["ports"] == 6, "port 1000 is bound")
    a.ctl("connect", b.name, "--message", SECRET.decode())
    out, err = waiting.communicate(timeout=30)
    assert json.loads(out)["data"]["messages"][0]["data"] == SECRET.decode(), err
    bench = a.json("bench", b.name, "16")
    assert bench["complete"] is True and bench["sent_bytes"] == bench["recv_bytes"] == 16 << 20
    assert a.json("path", b.name)["path"]["kind"] == "direct"
    one_way = a.json("bench", b.name, "--one-way", "--duration", "0.5s", "--streams", "4", "--latency")
    assert one_way["complete"] is True and one_way["sent_bytes"] == one_way["recv_bytes"] > 1 << 20
    assert one_way["latency"]["idle"]["count"] > 0 and one_way["latency"]["loaded"]["count"] > 0


def test_strangers_get_nothing(net: Cluster) -> None:
    """Private by default: no address, no stream, no datagram without trust."""
    a, b = net.agent("alpha"), net.agent("bravo")
    done = a.ctl("ping", "2", "--count", "1", "--timeout", "3s", "--no-auto-handshake", check=False)
    assert done.returncode == 1
    assert b.json("info")["conn_list"] == [] and b.json("trust")["trusted"] == []


def test_a_file_arrives_whole(pair: tuple[Agent, Agent], tmp_path: Path) -> None:
    a, b = pair
    digest = make_file(tmp_path / "model.bin", 40 << 20, 1)
    a.ctl("send-file", b.name, str(tmp_path / "model.bin"))
    (there,) = received(b)
    assert hashlib.sha256(there.read_bytes()).hexdigest() == digest
    assert stat.S_IMODE(there.stat().st_mode) == 0o600 and stat.S_IMODE(there.parent.stat().st_mode) == 0o700


def test_a_killed_receiver_leaves_no_half_file_and_comes_back(pair: tuple[Agent, Agent], tmp_path: Path) -> None:
    a, b = pair
    digest = make_file(tmp_path / "model.bin", 300 << 20, 2)
    number = b.json("info")["node_id"]
    sending = background(a, "--json", "send-file", b.name, str(tmp_path / "model.bin"))
    partial = b.home / ".pilot" / "received" / ".partial"
    wait_for(lambda: partial.is_dir() and any(p.stat().st_size > 1 << 20 for p in partial.iterdir()), "the file is under way")
    b.kill()
    assert received(b) == []
    b.start()
    _, err = sending.communicate(timeout=60)
    assert sending.returncode == 1 and "not stored" in json.loads(err.splitlines()[-1])["message"]
    assert received(b) == []
    assert b.json("info")["node_id"] == number and b.json("trust")["trusted"]
    wait_for(lambda: a.ctl("ping", b.name, "--count", "1", check=False).returncode == 0, "they talk again", 30)
    a.ctl("send-file", b.name, str(tmp_path / "model.bin"), timeout=120)
    (there,) = received(b)
    assert hashlib.sha256(there.read_bytes()).hexdigest() == digest


def test_a_killed_sender_is_a_clear_error(pair: tuple[Agent, Agent], tmp_path: Path) -> None:
    a, b = pair
    make_file(tmp_path / "model.bin", 300 << 20, 3)
    sending = background(a, "--json", "send-file", b.name, str(tmp_path / "model.bin"))
    partial = b.home / ".pilot" / "received" / ".partial"
    wait_for(lambda: partial.is_dir() and any(p.stat().st_size > 1 << 20 for p in partial.iterdir()), "the file is under way")
    a.kill()
    _, err = sending.communicate(timeout=60)
    assert sending.returncode == 1 and json.loads(err.splitlines()[-1])["code"] in ("not_running", "connection_failed")
    a.start()
    wait_for(lambda: b.ctl("ping", a.name, "--count", "1", check=False).returncode == 0, "they talk again", 30)
    assert received(b) == []


def test_the_registry_may_restart(net: Cluster, pair: tuple[Agent, Agent]) -> None:
    """kill -9: what it had acknowledged is there again, streams never noticed."""
    a, b = pair
    wait_for(lambda: a.json("path", b.name, "--wait", "2s")["path"]["kind"] == "direct", "a path without the rendezvous")
    assert net.process
    net.process.kill()
    net.process.wait()
    assert a.json("ping", b.name, "--count", "1")["results"][0]["rtt_ms"] > 0
    (net.root / "rendezvous.log").write_text("")
    net.start_rendezvous()
    wait_for(lambda: a.ctl("find", "bravo", check=False).returncode == 0, "the registry answers", 30)
    c = net.agent("charlie")
    assert c.json("info")["node_id"] not in (a.json("info")["node_id"], b.json("info")["node_id"])
    net.trust(c, a)


def test_bad_input_does_not_disturb_a_transfer(pair: tuple[Agent, Agent], tmp_path: Path) -> None:
    """Rubbish on the local socket and the tunnel socket, from one printed seed, while 100 MB go through."""
    a, b = pair
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    digest = make_file(tmp_path / "model.bin", 100 << 20, 4)
    stop = threading.Event()
    tunnel = int(b.json("info")["endpoint"].rpartition(":")[2])

    def local() -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(5)
                s.connect(str(b.socket))
                for _ in range(20):
                    size = rng.choice((0, 1, 2, 7, 40, 5000))
                    body = rng.randbytes(size)
                    length = rng.choice((size, size, size, size + 3, 0xFFFFFFFF, 1 << 20))
                    try:
                        s.sendall(struct.pack(">I", length) + body)
                    except OSError:
                        break

    def udp() -> None:
        rng = random.Random(seed + 1)
        magics = (b"PILA", b"PILK", b"PILS", b"PILT", b"PILP", b"\x01", b"\x02", b"\x04", b"\x06", b"\x0a", b"")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            while not stop.is_set():
                for _ in range(50):
                    data = rng.choice(magics) + rng.randbytes(rng.choice((0, 1, 4, 20, 36, 132, 600, 1400)))
                    s.sendto(data, ("127.0.0.1", tunnel))
                stop.wait(0.002)

    threads = [threading.Thread(target=work) for work in (local, udp)]
    for t in threads:
        t.start()
    try:
        a.ctl("send-file", b.name, str(tmp_path / "model.bin"), timeout=120)
        pings = a.json("ping", b.name, "--count", "2")["results"]
    finally:
        stop.set()
        for t in threads:
            t.join(20)
    (there,) = received(b)
    assert hashlib.sha256(there.read_bytes()).hexdigest() == digest
    assert all("rtt_ms" in p for p in pings)
    assert b.alive() and "Traceback" not in b.log()


def test_stop_is_orderly_and_leaves_nothing(pair: tuple[Agent, Agent]) -> None:
    a, b = pair
    assert a.stop() == 0
    assert not a.socket.exists() and "Traceback" not in a.log()
    done = a.ctl("info", check=False)
    assert done.returncode == 1 and b"daemon is not running" in done.stderr
    assert b.ctl("ping", "alpha", "--count", "1", "--timeout", "3s", check=False).returncode == 1


def test_only_the_owner_reads_what_a_daemon_keeps(pair: tuple[Agent, Agent]) -> None:
    a, _ = pair
    assert stat.S_IMODE(a.socket.stat().st_mode) == 0o600
    for path in (a.home / ".pilot").rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path}: {mode:o}"


def test_second_interrupt_ends_at_once(net: Cluster) -> None:
    a = net.agent("alpha")
    assert net.process and a.process
    os.kill(net.process.pid, signal.SIGSTOP)  # a registry that takes requests and does not answer
    try:
        a.process.send_signal(signal.SIGINT)
        a.process.send_signal(signal.SIGINT)
        assert a.process.wait(5) in (0, 1)
    finally:
        os.kill(net.process.pid, signal.SIGCONT)
