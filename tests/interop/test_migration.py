"""Operators replace the published daemon by ours on the same `~/.pilot`, and go back: nobody else notices."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator

import lossy
import published
import pytest
from installed import Installed, other
from lab import Lab
from operations import ask, both_trust, ping_until
from testbed import OUR_BIN, OURS, THEIRS, CommandFailed, Machine, Testbed, wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    try:
        published.bin_dir()
    except published.Unavailable as error:
        published.missing(error)
    with Lab() as lab:
        yield Testbed(lab)


@pytest.fixture(scope="module")
def peers(bed: Testbed) -> dict[str, Machine]:
    """A trusted peer of each make, and somebody who will ask."""
    return {
        make: bed.machine(bed.lab.public(name), name, make, make)
        for name, make in (("peer-ours", OURS), ("peer-theirs", THEIRS))
    } | {"asking": bed.machine(bed.lab.public("asking"), "asking", OURS, OURS)}


@pytest.fixture
def installed(bed: Testbed) -> Iterator[list[Installed]]:
    made: list[Installed] = []
    yield made
    for machine in made:
        with contextlib.suppress(AssertionError):
            machine.stop()


def befriend(a: Machine, b: Machine) -> None:
    ask(a, b)
    b.json("approve", str(a.node))
    both_trust(a, b)


def exchange(a: Machine, b: Machine, text: str) -> None:
    """a sends b a message and a file."""
    messages, files = len(b.inbox()), len(b.received())
    a.json("send-message", str(b.node), "--data", text)
    path = a.home / "note.txt"
    path.write_text(text)
    a.json("send-file", str(b.node), str(path))
    wait_for(lambda: len(b.inbox()) == messages + 1 and len(b.received()) == files + 1, f"message and file at {b}", 10)


@pytest.mark.parametrize("first", [THEIRS, pytest.param(OURS, marks=pytest.mark.interop)])
def test_there_and_back(bed: Testbed, peers: dict[str, Machine], installed: list[Installed], first: str) -> None:
    """Number, address, name, tags, trust, open requests, messages and files stay, and traffic goes on without a handshake."""
    second = other(first)
    machine = Installed(bed, bed.lab.public(f"{first}-first"), f"{first}-first", first, email=f"{first}@example.com")
    installed.append(machine)
    machine.start()
    for make in (OURS, THEIRS):
        befriend(peers[make], machine)
    machine.json(*(["extras"] if first == THEIRS else []), "set-tags", "robot", "mapper")
    machine.json("set-webhook", "http://127.0.0.1:9/events")
    ask(peers["asking"], machine)
    exchange(peers[THEIRS], machine, "before")
    before = machine.identity()
    assert before["email"] == f"{first}@example.com" and before["tags"] == ["robot", "mapper"] and len(before["trusted"]) == 2
    theirs = {make: peers[make].json("trust")["trusted"] for make in (OURS, THEIRS)}

    for make in (second, first):
        machine.stop()
        machine.start(make)
        after = machine.identity()
        assert after == before, f"{make} on the state of {other(make)}"
        for peer in (peers[OURS], peers[THEIRS]):
            ping_until(peer, machine)
            ping_until(machine, peer)
        exchange(peers[other(make)], machine, f"sent to {make}")
        exchange(machine, peers[make], f"sent by {make}")
        assert {m: peers[m].json("trust")["trusted"] for m in theirs} == theirs, "no new handshake"
        before = machine.identity()
    assert machine.json("approve", str(peers["asking"].node))["status"] == "approved"
    both_trust(peers["asking"], machine)


def test_dry_run_tells_and_touches_nothing(bed: Testbed, peers: dict[str, Machine], installed: list[Installed]) -> None:
    machine = Installed(bed, bed.lab.public("dry"), "dry", THEIRS)
    installed.append(machine)
    fresh = machine.dry_run()
    assert fresh["identity"]["state"] == "new" and fresh["node_id"] == 0 and sorted(p.name for p in machine.dot.iterdir()) == [
        "config.json"
    ]
    machine.start()
    befriend(peers[THEIRS], machine)
    machine.json("set-public")
    exchange(peers[THEIRS], machine, "hello")
    running = machine.dry_run()
    assert any("1.18.0" in note and "stopped first" in note for note in running["notes"]), running["notes"]
    assert running["node_id"] == machine.node

    machine.stop()
    machine.write("inbox/TEXT-20200101-000000.000-000001.json", '{"data": "ha')
    machine.write("strange.db", b"\0\1")
    files, entry = machine.files(), peers[OURS].json("lookup", str(machine.node))
    data = machine.dry_run()
    text = machine.ctl("daemon", "start", "--dry-run", tools=OURS).stdout
    assert machine.files() == files and peers[OURS].json("lookup", str(machine.node)) == entry
    assert (data["node_id"], data["address"], data["hostname"]) == (machine.node, machine.address, "dry")
    assert data["identity"] == {
        "path": str(machine.dot / "identity.json"), "state": "kept", "public_key": entry["public_key"],
    }  # fmt: skip
    assert (data["socket"], data["registry"], data["beacon"]) == (machine.socket, bed.registry, bed.beacon)
    assert data["trust"]["trusted"] == [peers[THEIRS].node] and data["public"] is False
    assert data["inbox"]["messages"] == 2 and data["inbox"]["unreadable"] == ["TEXT-20200101-000000.000-000001.json"]
    assert data["received"]["files"] == 1 and {"strange.db", "apps"} <= set(data["left_alone"])
    assert any("no_skillinject" in n.replace("-", "_") for n in data["notes"])
    assert any("becomes private" in n for n in data["notes"])
    facts = (machine.address, "1 trusted peers", machine.socket, bed.registry, bed.beacon, "strange.db", "Nothing was changed")
    assert all(fact in text for fact in facts), text


DAMAGES = {
    "cut trust": ("trust.json", b'{\n  "trusted": [\n    {\n      "node_id": 2,'),
    "empty trust": ("trust.json", b""),
    "a bad row of trust": ("trust.json", b'{"trusted": [{"node_id": "two"}]}'),
    "cut identity": ("identity.json", b'{\n  "private_key": "2HSY'),
    "empty identity": ("identity.json", b""),
    "cut settings": ("config.json", b'{"registry": "'),
    "cut account": ("account.json", b'{"ema'),
    "binary webhook": ("webhook_url", b"\0\xff\0"),
}


def test_damaged_files_are_named_and_kept(bed: Testbed, peers: dict[str, Machine], installed: list[Installed]) -> None:
    """The published daemon starts without the trust that a damaged file held and then replaces the file; ours does not start."""
    machine = Installed(bed, bed.lab.public("damaged"), "damaged", THEIRS)
    installed.append(machine)
    machine.start()
    befriend(peers[OURS], machine)
    machine.stop()
    daemon = [str(OUR_BIN / "pilot-daemon"), "-identity", str(machine.dot / "identity.json")]
    for what, (name, content) in DAMAGES.items():
        path = machine.dot / name
        good = path.read_bytes() if path.exists() else None
        machine.write(name, content)
        for flags in ([], ["-dry-run"]):
            done = machine.host.run(*daemon, *flags, check=False, timeout=20, env=machine.env)
            said = done.stdout + done.stderr
            assert done.returncode in (1, 2) and path.name in said and "Traceback" not in said, f"{what}: {said}"
        assert path.read_bytes() == content, f"{what}: the file was changed"
        path.unlink() if good is None else path.write_bytes(good)
    machine.write("trust.json.good", (machine.dot / "trust.json").read_bytes())
    machine.write("trust.json", "{")
    with pytest.raises(CommandFailed) as caught:
        machine.start(OURS)
    assert "trust.json is damaged" in str(caught.value)
    os.rename(machine.dot / "trust.json.good", machine.dot / "trust.json")
    machine.start(OURS)
    assert machine.trusts(peers[OURS])
    ping_until(peers[OURS], machine)


def test_the_command_line_of_a_published_service(bed: Testbed, installed: list[Installed]) -> None:
    """A unit file written for the published daemon starts ours: flags that concern nothing here are named in the log, those
    that promise what ours does not keep are refused."""
    machine = bed.machine(bed.lab.public("unit"), "unit", THEIRS, THEIRS, "-motd-interval", "30m", "-no-rx-watchdog", start=False)
    machine.flags += ["-telemetry-url=", "-log-max-size", "10", "-syn-whitelist", "1,2"]
    machine.start()
    node = machine.node
    machine.restart(OURS)
    assert machine.node == node
    for flag in ("-motd-interval", "-no-rx-watchdog", "-telemetry-url", "-log-max-size", "-syn-whitelist"):
        assert f"flag {flag} has no effect" in machine.log
    machine.stop()
    argv = machine.daemon_argv(OURS)
    for flags in (["-sandbox"], ["-security-profile", "enterprise"], ["-strict-dataplane-trust"], ["-proxy-cmd", "echo"]):
        done = machine.host.run(*argv, *flags, check=False, env=machine.env)
        assert done.returncode == 2 and flags[0] in done.stderr and "not supported" in done.stderr, done
    assert json.loads((machine.dot / "account.json").read_text())["email"].endswith("nodes.pilotprotocol.network")


@pytest.mark.interop
@pytest.mark.parametrize("first", [THEIRS, OURS])
def test_half_a_file_is_continued_by_the_other_make(bed: Testbed, peers: dict[str, Machine], first: str) -> None:
    """The receiver is stopped in the middle of a file and replaced; the sender's next try sends what is missing."""
    machine = bed.machine(bed.lab.public(f"half-{first}"), f"half-{first}", first, first)
    sender = peers[THEIRS]
    befriend(sender, machine)
    ping_until(sender, machine)
    path = sender.home / "half.bin"
    data = lossy.content(150_000_000, 7)
    path.write_bytes(data)
    partial = machine.dot / "received" / ".partial"
    with sender.background("--json", "send-file", machine.name, str(path)) as sending:
        wait_for(
            lambda: partial.exists() and sum(p.stat().st_size for p in partial.iterdir()) > 4 << 20, "some of the file", 30, 0.01
        )
        machine.kill()
        assert sending.process.poll() is None and not machine.received(), "stopped in the middle"
    machine.start(other(first))
    ping_until(sender, machine)
    report = sender.json("send-file", machine.name, str(path), timeout=120)
    assert report["bytes_resumed"] > 0, report
    print(f"{report['bytes_resumed']} of {report['bytes']} bytes came from the {first} half")
    (whole,) = machine.received()
    assert whole.read_bytes() == data and not list(partial.iterdir())
