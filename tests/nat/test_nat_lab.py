"""Each emulated NAT is what its name says: mapping and filtering in the terms of RFC 4787."""

from __future__ import annotations

import os
import shutil
import socket
import time

import pytest
from lab import Host, Lab, Link
from nftrules import FIRST_PORT, KINDS, LAST_PORT

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs root, iproute2 and nftables"),
]

Endpoint = tuple[str, int]


def recv(sock: socket.socket) -> tuple[bytes, Endpoint] | None:
    try:
        data, addr = sock.recvfrom(2048)
        return data, addr
    except TimeoutError:
        return None


class Observer:
    """Two public hosts with two ports each, as RFC 5780 asks."""

    def __init__(self, lab: Lab) -> None:
        self.hosts = [lab.public("s1"), lab.public("s2")]
        self.sockets = {(h, port): h.socket(port=port, timeout=0.4) for h in self.hosts for port in (3478, 3479)}

    def mapping(self, client: socket.socket, which: int, port: int) -> Endpoint | None:
        host = self.hosts[which]
        client.sendto(b"who am i", (host.ip, port))
        got = recv(self.sockets[(host, port)])
        return got[1] if got else None

    def reaches(self, client: socket.socket, which: int, port: int, to: Endpoint) -> bool:
        self.sockets[(self.hosts[which], port)].sendto(b"hello", to)
        client.settimeout(0.3)
        return recv(client) is not None


# kind: (mapping independent of destination, filter passes same address other port, filter passes other address)
EXPECTED = {
    "full_cone": (True, True, True),
    "restricted_cone": (True, True, False),
    "port_restricted_cone": (True, False, False),
    "symmetric": (False, False, False),
    "symmetric_sequential": (False, False, False),
}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_mapping_and_filtering(kind: str) -> None:
    with Lab() as lab:
        seen = Observer(lab)
        host = lab.site("a", nat=kind).host("alice")
        client = host.socket(port=4000)
        independent, same_address, other_address = EXPECTED[kind]
        first = seen.mapping(client, 0, 3478)
        assert first and FIRST_PORT <= first[1] <= LAST_PORT and first[0] == lab.sites[0].public_ip
        # Filtering before anything else was contacted.
        assert seen.reaches(client, 0, 3478, first), "the contacted endpoint itself"
        assert seen.reaches(client, 0, 3479, first) is same_address
        assert seen.reaches(client, 1, 3478, first) is other_address
        # Mapping.
        others = [seen.mapping(client, which, port) for which, port in ((0, 3479), (1, 3478), (1, 3479))]
        assert all(others)
        assert all(o == first for o in others) is independent
        if kind == "symmetric_sequential":
            assert sorted(o[1] for o in [first, *others] if o) == list(range(first[1], first[1] + 4))
        # Stable over repetition.
        assert seen.mapping(client, 0, 3478) == first


def punch(lab: Lab, a: Host, b: Host, seen: Observer) -> bool:
    """The classic simultaneous open with observed endpoints; True if both directions work."""
    sa, sb = a.socket(port=4001, timeout=0.3), b.socket(port=4001, timeout=0.3)
    ea, eb = seen.mapping(sa, 0, 3478), seen.mapping(sb, 0, 3478)
    assert ea and eb
    for _ in range(4):
        sa.sendto(b"A", eb)
        sb.sendto(b"B", ea)
    time.sleep(0.05)
    got_a, got_b = recv(sa), recv(sb)
    if got_a:  # answer where it really came from: a symmetric NAT shows its port only there
        sa.sendto(b"A2", got_a[1])
        got_b = got_b or recv(sb)
    if got_b:
        sb.sendto(b"B2", got_b[1])
        got_a = got_a or recv(sa)
    return got_a is not None and got_b is not None


@pytest.mark.parametrize(
    ("left", "right", "works"),
    [
        ("full_cone", "symmetric", True),
        ("port_restricted_cone", "port_restricted_cone", True),
        ("restricted_cone", "port_restricted_cone", True),
        ("port_restricted_cone", "symmetric", False),
        ("symmetric", "symmetric", False),
    ],
)
def test_theory_of_punching_holds(left: str, right: str, works: bool) -> None:
    with Lab() as lab:
        seen = Observer(lab)
        a, b = lab.site("a", nat=left).host("alice"), lab.site("b", nat=right).host("bob")
        assert punch(lab, a, b, seen) is works


def test_early_punch_keeps_the_mapping() -> None:
    """A stranger's packet that arrives before ours must not take the outside port (and does, on a router with an open INPUT)."""
    for input_open, kept in ((False, True), (True, False)):
        with Lab() as lab:
            seen = Observer(lab)
            client = lab.site("a", nat="port_restricted_cone", input_open=input_open).host("alice").socket(port=4000)
            mine = seen.mapping(client, 0, 3478)
            assert mine
            assert not seen.reaches(client, 1, 3478, mine)  # the punch that came too early
            assert (seen.mapping(client, 1, 3478) == mine) is kept


def test_mapping_times_out() -> None:
    with Lab() as lab:
        seen = Observer(lab)
        client = lab.site("a", nat="port_restricted_cone", timeout_s=2).host("alice").socket(port=4000)
        mine = seen.mapping(client, 0, 3478)
        assert mine and seen.reaches(client, 0, 3478, mine)
        time.sleep(4.5)
        assert not seen.reaches(client, 0, 3478, mine)


def test_blocked_udp_lets_only_tcp_443_out() -> None:
    with Lab() as lab:
        server = lab.public("server")
        site = lab.site("a", nat="port_restricted_cone", udp_blocked=True)
        host = site.host("alice")
        listeners = [server.socket(socket.SOCK_STREAM, port) for port in (443, 9000)]
        for s in listeners:
            s.listen()

        def connects(port: int) -> bool:
            try:
                host.socket(socket.SOCK_STREAM, timeout=0.5).connect((server.ip, port))
            except OSError:
                return False
            return True

        there, here = server.socket(port=5000, timeout=0.3), host.socket(port=5000)

        def udp_works() -> bool:
            here.sendto(b"x", (server.ip, 5000))
            return recv(there) is not None

        assert (connects(443), connects(9000), udp_works()) == (True, False, False)
        site.block_udp(True, tcp_ports=(443, 9000))
        assert (connects(443), connects(9000), udp_works()) == (True, True, False)
        site.block_udp(False)
        assert (connects(443), connects(9000), udp_works()) == (True, True, True)


@pytest.mark.parametrize(
    ("home", "carrier", "independent", "same_address", "other_address"),
    [
        ("full_cone", "port_restricted_cone", True, False, False),
        ("port_restricted_cone", "full_cone", True, False, False),
        ("full_cone", "restricted_cone", True, True, False),
        ("full_cone", "full_cone", True, True, True),
        ("full_cone", "symmetric", False, False, False),
    ],
)
def test_double_nat_takes_the_stricter_of_each(
    home: str, carrier: str, independent: bool, same_address: bool, other_address: bool
) -> None:
    with Lab() as lab:
        seen = Observer(lab)
        client = lab.site("a", nat=home, carrier=carrier).host("alice").socket(port=4000)
        mine = seen.mapping(client, 0, 3478)
        assert mine and mine[0] == lab.sites[0].public_ip
        assert seen.reaches(client, 0, 3478, mine)
        assert seen.reaches(client, 0, 3479, mine) is same_address
        assert seen.reaches(client, 1, 3478, mine) is other_address
        assert (seen.mapping(client, 1, 3478) == mine) is independent


@pytest.mark.parametrize("kind", ["full_cone", "restricted_cone", "port_restricted_cone"])
def test_hairpin_filters_like_the_outside(kind: str) -> None:
    """RFC 4787 REQ-9: the neighbour appears under its outside address and port, and passes the same filter."""
    with Lab() as lab:
        seen = Observer(lab)
        site = lab.site("a", nat=kind, hairpin=True)
        x, y = site.host("x"), site.host("y")
        sx, sx2, sy = x.socket(port=4000), x.socket(port=4001), y.socket(port=4000, timeout=0.4)
        outside_x, outside_y, outside_x2 = seen.mapping(sx, 0, 3478), seen.mapping(sy, 0, 3478), seen.mapping(sx2, 0, 3478)
        assert outside_x and outside_y and outside_x2

        def arrives(sender: socket.socket) -> Endpoint | None:
            sender.sendto(b"hairpin", outside_y)
            got = recv(sy)
            return got[1] if got else None

        assert arrives(sx) == (outside_x if kind == "full_cone" else None)
        sy.sendto(b"permission", outside_x2)
        assert arrives(sx2) == outside_x2
        assert arrives(sx) == (outside_x if kind != "port_restricted_cone" else None)


def test_neighbours_reach_each_other_and_a_router_without_hairpin_turns_nothing() -> None:
    with Lab() as lab:
        seen = Observer(lab)
        site = lab.site("a", nat="full_cone")
        x, y = site.host("x"), site.host("y")
        sx, sy = x.socket(port=4000), y.socket(port=4000, timeout=0.4)
        outside = seen.mapping(sy, 0, 3478)
        assert outside
        sx.sendto(b"lan", (y.ip, 4000))
        assert recv(sy) is not None
        sx.sendto(b"hairpin", outside)
        assert recv(sy) is None


@pytest.mark.parametrize("kind", ["full_cone", "port_restricted_cone", "symmetric"])
def test_a_site_moves_to_another_address(kind: str) -> None:
    with Lab() as lab:
        seen = Observer(lab)
        site = lab.site("a", nat=kind, link=Link(delay_ms=1))
        host = site.host("alice")
        client = host.socket(port=4000)
        before = seen.mapping(client, 0, 3478)
        assert before and before[0] == site.public_ip
        site.move()
        after = seen.mapping(client, 0, 3478)
        assert after and after[0] == site.public_ip != before[0]
        assert not seen.reaches(client, 0, 3478, before)
        assert seen.reaches(client, 0, 3478, after)


def test_a_deafened_site_still_speaks() -> None:
    with Lab() as lab:
        seen = Observer(lab)
        site = lab.site("a", nat="port_restricted_cone")
        client = site.host("alice").socket(port=4000)
        mine = seen.mapping(client, 0, 3478)
        assert mine and seen.mapping(client, 1, 3478) == mine
        site.deafen(seen.hosts[0].ip)
        assert seen.mapping(client, 0, 3478) == mine, "out"
        assert not seen.reaches(client, 0, 3478, mine), "in"
        assert seen.reaches(client, 1, 3478, mine), "others"
        site.deafen()
        assert seen.reaches(client, 0, 3478, mine)


def test_link_shapes_delay_loss_and_rate() -> None:
    with Lab() as lab:
        a, b = lab.public("a"), lab.public("b", Link(delay_ms=20))
        sa, sb = a.socket(port=1), b.socket(port=2)
        times = []
        for _ in range(10):
            start = time.monotonic()
            sa.sendto(b"ping", (b.ip, 2))
            got = recv(sb)
            assert got
            sb.sendto(b"pong", got[1])
            assert recv(sa)
            times.append(time.monotonic() - start)
        assert 0.040 <= sorted(times)[5] < 0.060, times
    with Lab() as lab:
        a, b = lab.public("a"), lab.public("b", Link(delay_ms=5, jitter_ms=30))
        sa, sb = a.socket(port=1), b.socket(port=2)
        delays = []
        for i in range(60):
            start = time.monotonic()
            sa.sendto(bytes([i]), (b.ip, 2))
            assert recv(sb)
            delays.append(time.monotonic() - start)
        assert min(delays) < 0.012 and 0.025 < max(delays) < 0.045, delays
    with Lab() as lab:
        a, b = lab.public("a"), lab.public("b", Link(loss=0.2, mbit=8, queue_kb=10_000))
        sa, sb = a.socket(port=1), b.socket(port=2, timeout=1)
        start = time.monotonic()
        for _ in range(500):
            sa.sendto(bytes(1000), (b.ip, 2))
        n = 0
        while recv(sb):
            n += 1
        assert 330 < n < 460, "20 % loss"
        assert time.monotonic() - start > 1.3, "0.4 MB at 1 MB/s, then the last second of silence"
