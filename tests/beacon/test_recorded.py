"""The running beacon answers recorded datagrams of a published one byte for byte, except where it is stricter on purpose."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from beacon_support import Udp

from pilot._core import RelayLoop

RECORDED = json.loads((Path(__file__).parents[1] / "vectors" / "beacon.json").read_text())["datagrams"]
BY_NAME: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in RECORDED}

# Recorded address -> ours on loopback; ports are the kernel's choice.
HOSTS = {
    "203.0.113.10:40001": "127.0.0.10",
    "203.0.113.20:40002": "127.0.0.20",
    "[2001:db8::10]:40006": "::1",
    "203.0.113.30:40003": "127.0.0.30",
    "203.0.113.40:9011": "127.0.0.40",
}
A, B, V6, C, PEER = HOSTS


class Lab:
    """A beacon on all addresses, and a socket per recorded address."""

    def __init__(self) -> None:
        try:
            self.relay = RelayLoop(("::", 0))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        self.relay.start()
        port = self.relay.local_addr[1]
        self.at = {name: Udp(("::1" if ":" in ip else "127.0.0.1", port), ip) for name, ip in HOSTS.items()}
        self.fence = Udp(("127.0.0.1", port), "127.0.0.99")
        self.relay.set_peers([self.at[PEER].addr])

    def ours(self, recorded_hex: str) -> bytes:
        """Recorded bytes with our addresses in them."""
        data = bytes.fromhex(recorded_hex)
        if data[0] not in (2, 4):
            return data
        for name, udp in self.at.items():
            host, _, port = name.rpartition(":")
            if data[2:] == packed(host.strip("[]"), int(port)):
                return data[:2] + packed(*udp.addr)
        raise AssertionError(f"an address that nobody has: {recorded_hex}")

    def sends(self, entry: dict[str, Any], source: str = "") -> dict[str, list[bytes]]:
        """What arrives where after a recorded request."""
        self.at[source or entry["from"]].send(bytes.fromhex(entry["request_hex"]))
        self.fence.fence()
        return {name: got for name, udp in self.at.items() if (got := udp.waiting())}

    def close(self) -> None:
        self.relay.stop()
        for udp in (*self.at.values(), self.fence):
            udp.close()


def packed(host: str, port: int) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host) + port.to_bytes(2, "big")


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


def register(lab: Lab) -> None:
    for name in ("discover_ipv4_node_100", "discover_ipv4_node_200", "discover_ipv6_node_300"):
        entry = BY_NAME[name]
        assert lab.sends(entry) == {entry["from"]: [lab.ours(entry["reply_hex"])]}, name


STRICTER = {"type_0x08_on_baseline", "relay_forged_sender_id", "punch_updates_requester_endpoint"}


def test_discover_and_what_is_dropped(lab: Lab) -> None:
    seen = 0
    for entry in RECORDED:
        if "request_hex" in entry and "reply_hex" in entry and entry["name"] not in STRICTER:
            want = {entry["from"]: [lab.ours(entry["reply_hex"])]} if entry["reply_hex"] else {}
            assert lab.sends(entry) == want, entry["name"]
            seen += 1
    assert seen == 10


def test_punching(lab: Lab) -> None:
    register(lab)
    for entry in RECORDED:
        if "to_requester_hex" not in entry or entry["name"] in STRICTER:
            continue
        want = {}
        if entry["to_requester_hex"]:
            want = {entry["from"]: [lab.ours(entry["to_requester_hex"])], B: [lab.ours(entry["to_target_hex"])]}
        assert lab.sends(entry) == want, entry["name"]


def test_relaying(lab: Lab) -> None:
    register(lab)
    to = {"relay_v4_to_v6": V6, "relay_to_self": A}
    seen = 0
    for entry in RECORDED:
        name = entry["name"]
        if "delivered_hex" not in entry or "from" not in entry or name in STRICTER or "peer" in name or "withdrawal" in name:
            continue
        want = {to.get(name, B): [bytes.fromhex(entry["delivered_hex"])]} if entry["delivered_hex"] else {}
        assert lab.sends(entry) == want, name
        seen += 1
    assert seen == 7


@pytest.mark.parametrize("name", ["relay_1400_byte_payload", "relay_8000_byte_payload"])
def test_large_payloads(lab: Lab, name: str) -> None:
    register(lab)
    entry = BY_NAME[name]
    request = bytes.fromhex(entry["request_head_hex"])[:9] + bytes(i % 251 for i in range(entry["request_len"] - 9))
    assert hashlib.sha256(request).hexdigest() == entry["request_sha256"]
    lab.at[A].send(request)
    data, sender = lab.at[B].receive()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["delivered_len"], entry["delivered_sha256"])
    assert sender == lab.at[B].beacon  # the address this node knows


def test_gossip(lab: Lab) -> None:
    register(lab)
    forwarded, withdrawn = BY_NAME["relay_forwarded_to_peer_beacon"], BY_NAME["relay_after_withdrawal"]
    assert lab.sends(BY_NAME["sync_from_peer"]) == {}
    assert lab.sends(forwarded) == {PEER: [bytes.fromhex(forwarded["delivered_hex"])]}
    local = BY_NAME["relay_local_wins_over_peer"]
    assert lab.sends(local) == {B: [bytes.fromhex(local["delivered_hex"])]}
    still = {"request_hex": forwarded["request_hex"].replace("00001389", "0000138a"), "from": A}
    for name, reachable in [
        ("sync_replaces_previous_list", True), ("sync_truncated", True), ("sync_trailing_bytes", True),
        ("sync_empty_list", False),
    ]:  # fmt: skip
        assert lab.sends(BY_NAME[name], PEER) == {}
        assert lab.sends(withdrawn) == {}, name
        assert lab.sends(still) == ({PEER: [bytes.fromhex(still["request_hex"])]} if reachable else {}), name


def test_where_ours_is_stricter(lab: Lab) -> None:
    register(lab)
    discover = BY_NAME["type_0x08_on_baseline"]  # later releases answer it
    assert [got[0][0] for got in lab.sends(discover).values()] == [2]
    assert lab.sends(BY_NAME["relay_forged_sender_id"]) == {}
    assert lab.sends(BY_NAME["punch_updates_requester_endpoint"]) == {}  # the node is held by another host
    assert lab.relay.lookup(200) == lab.at[B].addr
    assert lab.sends(BY_NAME["sync_from_stranger_accepted"]) == {}
    assert lab.sends({"request_hex": "050000006400001b59" + "50494c53", "from": A}) == {}
    assert lab.relay.stats()["spoofed"] == 3
