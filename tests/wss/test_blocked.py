"""Real programs in networks that let no UDP out: at the start, later, back again, by a proxy, beside the published daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocked import WssFleet, allow_udp, drop_udp, echo, info, transport
from fleet import Agent, wait_for
from lab import Host, Lab

from pilot.registry.tls import fingerprint

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, ip and nft"),
]

OPEN = ("-public", "-trust-auto-approve")
HERE = Path(__file__).parent


@pytest.fixture
def fleet() -> Iterator[WssFleet]:
    with Lab() as lab:
        yield WssFleet(lab)


def behind_a_wall(fleet: WssFleet, name: str) -> Host:
    """A host whose network lets nothing out but TCP to port 443."""
    return fleet.lab.site(name, nat="port_restricted_cone", udp_blocked=True).host(f"{name}-h")


def relay_line(agent: Agent, peer: str) -> str:
    return agent.ctl("path", peer).stdout.split("\n")[1].strip()


def to(agent: Agent, wanted: str, seconds: float) -> None:
    wait_for(lambda: transport(agent) == wanted, f"{agent.name} uses {wanted}; log: {agent.log[-1500:]}", seconds, 0.1)


def test_a_network_without_udp_needs_no_configuration(fleet: WssFleet) -> None:
    """Not even the registry's port can be reached: all goes through 443 of the beacon. 3 s from nothing to the first byte."""
    bob = fleet.agent(fleet.lab.site("b", nat="port_restricted_cone").host("b-h"), "bob", *OPEN)
    alice = fleet.agent(behind_a_wall(fleet, "a"), "alice", *OPEN, start=False)
    before = time.monotonic()
    alice.begin()
    alice.ready()
    ready = time.monotonic() - before
    assert ready < 5.0, f"{ready:.1f} s to start"
    first = echo(bob, "alice")
    assert first < 3.0, f"{first:.1f} s to the first byte"
    assert echo(alice, "bob") < 3.0
    about = info(alice)
    assert about["transport"] == "compat" and about["nat_type"] == "blocked" and about["registered"]
    assert about["beacon_addr"].startswith("wss://") and "NAT type: UDP blocked" in about["startup"]
    assert relay_line(alice, "bob").startswith("Path:       relay over WebSocket via wss://")
    assert "no UDP gets out" in alice.ctl("path", "bob").stdout
    assert relay_line(bob, "alice").startswith("Path:       relay via ")
    data = alice.home / "data.bin"
    data.write_bytes(os.urandom(3 << 20))
    alice.ctl("send-file", "bob", str(data))
    bob.ctl("send-file", "alice", str(data))
    for receiver in (alice, bob):
        received = list((receiver.home / ".pilot" / "received").rglob("data*.bin"))
        assert [f.read_bytes() for f in received] == [data.read_bytes()]


def test_two_walls(fleet: WssFleet) -> None:
    alice = fleet.agent(behind_a_wall(fleet, "a"), "alice", *OPEN)
    bob = fleet.agent(behind_a_wall(fleet, "b"), "bob", *OPEN)
    assert echo(alice, "bob", 3) < 5.0 and echo(bob, "alice") < 3.0
    fleet.rendezvous.end()
    fleet.rendezvous.ended()
    fleet.start_rendezvous()  # the links come back by themselves

    def again() -> bool:
        return alice.ctl("ping", "bob", "--count", "1", "--timeout", "2s", check=False).returncode == 0

    wait_for(again, f"the two reach each other again; log: {alice.log[-2000:]}", 20, 0.2)


def test_udp_is_given_up_and_taken_up_again(fleet: WssFleet) -> None:
    """A stream runs through both changes."""
    host = fleet.lab.public("alice-h")
    bob = fleet.agent(fleet.lab.site("b", nat="port_restricted_cone").host("b-h"), "bob", *OPEN)
    alice = fleet.agent(host, "alice", *OPEN)
    assert echo(alice, "bob") < 3.0 and transport(alice) == "udp"
    data = alice.home / "large.bin"
    data.write_bytes(os.urandom(1 << 20) * 24)
    drop_udp(host)
    before = time.monotonic()
    waiting = echo(alice, "bob")
    assert waiting < 4.0, f"{waiting:.1f} s without an answer"
    to(alice, "compat", 3.0)
    assert time.monotonic() - before < 6.0
    pilotctl = str(Path(sys.executable).parent / "pilotctl")
    sending = subprocess.Popen(host.wrap([pilotctl, "send-file", "bob", str(data)]), env=alice.env)
    host.processes.append(sending)
    assert echo(bob, "alice") < 3.0
    allow_udp(host)
    to(alice, "udp", 30.0)
    assert sending.wait(60) == 0
    received = next((bob.home / ".pilot" / "received").rglob("large*.bin"))
    assert received.read_bytes() == data.read_bytes()
    wait_for(lambda: any(tier in relay_line(alice, "bob") for tier in ("direct", "punched")), "a better path again", 30, 0.3)
    assert info(alice)["nat_type"] != "blocked" and info(alice)["endpoint"]
    assert echo(bob, "alice") < 3.0


def test_a_pinned_certificate_or_none(fleet: WssFleet) -> None:
    pin = fingerprint(fleet.certificate)
    site = behind_a_wall(fleet, "a")
    alice = fleet.agent(site, "alice", *OPEN, "-compat-fingerprint", pin, trusting=False)
    assert transport(alice) == "compat" and info(alice)["registered"]
    pinned = ("-compat-fingerprint", "00" * 32, "-transport", "compat")
    wrong = fleet.agent(fleet.lab.public("b-h"), "bob", *OPEN, *pinned, start=False)
    wrong.begin()
    wait_for(lambda: "is not the pinned one" in wrong.log, "the refusal is in the log")
    wrong.ready()  # the registry answers on its own port
    assert alice.ctl("ping", "bob", "--count", "1", "--timeout", "2s", check=False).returncode != 0


def test_only_a_proxy_leads_out(fleet: WssFleet) -> None:
    """The host reaches one proxy and nothing else."""
    lab = fleet.lab
    proxy_host = lab.public("proxy")
    proxy = proxy_host.spawn(sys.executable, str(HERE / "connect_proxy.py"), proxy_host.ip, "3128", stdout=subprocess.PIPE)
    assert proxy.stdout is not None and proxy.stdout.readline() == b"ready\n"
    inside = lab.public("alice-h")
    inside.nft(f"""
table inet onlyproxy {{
  chain out {{ type filter hook output priority -10; policy drop; oifname "lo" accept; ip daddr {proxy_host.ip} accept; }}
}}
""")
    bob = fleet.agent(lab.public("b-h"), "bob", *OPEN)
    alice = fleet.agent(inside, "alice", *OPEN, "-proxy", f"http://{proxy_host.ip}:3128")
    assert transport(alice) == "compat"
    assert echo(alice, "bob", 2) < 5.0 and echo(bob, "alice") < 3.0


@pytest.mark.interop
@pytest.mark.parametrize("published_walled", [True, False])
def test_the_published_daemon_in_compat_mode(fleet: WssFleet, published_walled: bool, tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE.parent / "interop"))
    import published

    try:
        programs = published.bin_dir()
    except published.Unavailable as why:
        pytest.skip(str(why))
    host = fleet.lab.public("pub-h")
    host.nft("""
table inet only443 {
  chain out { type filter hook output priority -10; oifname != "lo" meta l4proto udp drop; }
}
""")
    ours = fleet.agent(behind_a_wall(fleet, "a") if published_walled else fleet.lab.public("a-h"), "ours", *OPEN)
    home = tmp_path / "pub"
    home.mkdir()
    env = {"HOME": str(home), "SSL_CERT_FILE": str(fleet.certificate), "PATH": os.environ["PATH"], **published.ENVIRONMENT}
    sock = str(home / "pilot.sock")
    with (home / "log").open("wb") as log:
        host.spawn(
            str(programs / "pilot-daemon"), "-registry", fleet.registry, "-registry-tls=false", "-beacon", fleet.beacon,
            "-transport", "compat", "-compat-beacon", f"wss://{fleet.host.ip}/v1/compat", "-tls-trust", "system",
            "-socket", sock, "-identity", str(home / "id.json"), "-hostname", "theirs", *OPEN, *published.QUIET,
            stdout=log, stderr=log, env=env,
        )  # fmt: skip

    def theirs(*argv: str) -> subprocess.CompletedProcess[str]:
        return host.run(str(programs / "pilotctl"), *argv, check=False, env={**env, "PILOT_SOCKET": sock})

    def text() -> str:
        return (home / "log").read_text(errors="replace")

    wait_for(lambda: "compat mode tunnel up" in text(), f"the published daemon connects:\n{text()[-2000:]}", 20)
    wait_for(lambda: os.path.exists(sock), "its socket", 10)
    done = ours.ctl("ping", "theirs", "--count", "3", check=False)
    assert done.returncode == 0, done.stdout + done.stderr + text()[-2000:]
    back = theirs("--json", "ping", "ours", "--count", "2")
    assert back.returncode == 0, back.stdout + back.stderr
    assert json.loads(back.stdout)["status"] == "ok"
    again = json.loads(theirs("--json", "info").stdout)["data"]
    assert again["transport"] == "compat" and again["relay_peer_count"] >= 1
