"""Beacon messages: recorded datagrams through both codecs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pilot import _core
from pilot.wire import WireError, beacon, keys

HERE = Path(__file__).parents[1] / "vectors"
ROWS = json.loads((HERE / "beacon.json").read_text())["datagrams"]
NODE_MESSAGES = json.loads((HERE / "transport.json").read_text())["beacon_messages"]
BAD = {"discover_too_short", "type_only", "unknown_type_0x00", "punch_too_short", "relay_too_short", "sync_truncated"}
WITH_TRAILER = {"sync_trailing_bytes"}
EVERY = [
    pytest.param(row["name"], bytes.fromhex(row[member]), id=f"{row['name']}-{member}")
    for row in ROWS + NODE_MESSAGES
    for member in row
    if member.endswith("hex") and "head" not in member and row[member] is not None
]


def with_names(data: bytes) -> dict[str, Any]:
    """What the native parser says, with the names of the Python messages."""
    fields = _core.beacon_parse(data)
    kind, node, target, body = beacon.BeaconType(fields["type"]), fields["node"], fields["target"], fields["body"]
    match kind:
        case beacon.BeaconType.DISCOVER:
            return {"node": node, "key": body[:32] if len(body) >= 32 else None, "paced": False, "nonce": b""}
        case beacon.BeaconType.DISCOVER_DST:
            return {"node": node}
        case beacon.BeaconType.DISCOVER_REPLY:
            return {"endpoint": fields["endpoint"], "pace": 0, "nonce": b""}
        case beacon.BeaconType.PUNCH_COMMAND:
            return {"endpoint": fields["endpoint"]}
        case beacon.BeaconType.PUNCH_REQUEST:
            grant = beacon.PunchGrant(int.from_bytes(body[:8], "big"), body[8:72]) if len(body) >= 72 else None
            return {"node": node, "target": target, "grant": grant}
        case beacon.BeaconType.RELAY | beacon.BeaconType.DELIVER_DST:
            return {"node": node, "target": target, "frame": body}
        case beacon.BeaconType.DELIVER:
            return {"node": node, "frame": body}
        case beacon.BeaconType.SYNC:
            ids = [int.from_bytes(body[at : at + 4], "big") for at in range(0, 4 * fields["count"], 4)]
            return {"beacon": node, "nodes": tuple(ids)}
        case beacon.BeaconType.NOTIFY:
            return {"kind": fields["kind"]}


def members(message: beacon.Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__slots__}


@pytest.mark.parametrize("name,data", EVERY)
def test_every_datagram(name: str, data: bytes) -> None:
    message = beacon.parse(data)
    if name in BAD:
        assert message is None
        with pytest.raises(_core.CoreError):
            _core.beacon_parse(data)
        return
    assert message is not None
    assert members(message) == with_names(data)
    built = message.build()
    assert built == data or (name in WITH_TRAILER and data.startswith(built))


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("fields") and row["name"] not in BAD], ids=lambda r: r["name"])
def test_fields(row: dict) -> None:
    data = bytes.fromhex(row.get("request_hex") or row["hex"])
    fields, message = row["fields"], beacon.parse(data)
    assert message is not None
    assert data[0] == fields.get("type", beacon.BeaconType.PUNCH_REQUEST)
    names = {
        "node_id": "node", "beacon_id": "beacon", "src_node_id": "node", "requester": "node", "dest_node_id": "target",
        "target": "target", "kind": "kind",
    }  # fmt: skip
    for recorded, name in names.items():
        if recorded in fields:
            assert getattr(message, name) == fields[recorded]
    if isinstance(message, beacon.Sync):
        assert list(message.nodes) == fields["node_ids"]
    if "ed25519_public_key_hex" in fields:
        assert isinstance(message, beacon.Discover) and message.key == bytes.fromhex(fields["ed25519_public_key_hex"])


@pytest.mark.parametrize("row", [row for row in ROWS if row.get("reply_hex")], ids=lambda row: row["name"])
def test_discover_reply_is_where_the_question_came_from(row: dict) -> None:
    host, _, port = row["from"].rpartition(":")
    endpoint = (host.strip("[]"), int(port))
    assert beacon.parse(bytes.fromhex(row["reply_hex"])) == beacon.DiscoverReply(endpoint)
    assert beacon.DiscoverReply(endpoint).build().hex() == row["reply_hex"]


@pytest.mark.parametrize(("own", "beacon_ip", "size"), [("203.0.113.9", "198.51.100.1", 12), ("2001:db8::9", "2001:db8::1", 24)])
def test_a_reply_with_a_pace_is_as_large_as_its_question(own: str, beacon_ip: str, size: int) -> None:
    question = beacon.paced_discover(7, (beacon_ip, 9001))
    assert question[:5] == beacon.discover(7) and beacon.parse(question) == beacon.Discover(7, paced=True)
    reply = beacon.DiscoverReply((own, 40000), 3)
    assert len(question) == len(reply.build()) == size and beacon.parse(reply.build()) == reply
    assert beacon.parse(reply.build()[:-1]) == beacon.DiscoverReply((own, 40000)), "half a trailer is none"


@pytest.mark.parametrize(("own", "beacon_ip", "size"), [("203.0.113.9", "198.51.100.1", 20), ("2001:db8::9", "2001:db8::1", 32)])
def test_a_reply_repeats_the_nonce_of_its_question(own: str, beacon_ip: str, size: int) -> None:
    question = beacon.paced_discover(7, (beacon_ip, 9001), b"12345678")
    assert beacon.parse(question) == beacon.Discover(7, paced=True, nonce=b"12345678")
    for pace in (0, 3):
        reply = beacon.DiscoverReply((own, 40000), pace, b"12345678")
        assert len(question) == len(reply.build()) == size and beacon.parse(reply.build()) == reply
        assert beacon.parse(reply.build()[:-1]) == beacon.DiscoverReply((own, 40000), pace), "half a nonce is none"


@pytest.mark.parametrize("asks", [False, True])
def test_the_longest_list_can_be_sealed(asks: bool) -> None:
    nodes = tuple(range(1, beacon.MAX_SYNC + 1))
    assert 65507 - 30 - 4 < len(beacon.Sync(1, nodes).build(asks=asks, ages=bytes(len(nodes)))) <= 65507 - 30


def test_relay_becomes_deliver() -> None:
    rows = [row for row in ROWS if (row.get("delivered_hex") or "").startswith("06")]
    assert len(rows) > 4
    for row in rows:
        relay = beacon.parse(bytes.fromhex(row["request_hex"]))
        assert isinstance(relay, beacon.Relay)
        assert beacon.Deliver(relay.node, relay.frame).build().hex() == row["delivered_hex"]


@pytest.mark.parametrize("row", [row for row in ROWS if "request_sha256" in row], ids=lambda row: row["name"])
def test_large_relays(row: dict) -> None:
    frame = bytes(i % 251 for i in range(row["request_len"] - 9))
    request, delivered = beacon.relay(100, 200, frame), beacon.Deliver(100, frame).build()
    assert hashlib.sha256(request).hexdigest() == row["request_sha256"]
    assert hashlib.sha256(delivered).hexdigest() == row["delivered_sha256"]
    assert beacon.parse(request) == beacon.Relay(100, 200, frame)
    assert _core.beacon_parse(request)["body"] == _core.beacon_parse(delivered)["body"] == frame


def test_punch_grant() -> None:
    (row,) = [row for row in ROWS if row["name"] == "punch_request_with_grant"]
    fields, message = row["fields"], beacon.parse(bytes.fromhex(row["hex"]))
    assert isinstance(message, beacon.PunchRequest) and message.grant
    assert message.grant.expiry == fields["expiry_unix"]
    text = message.grant.signed_text(message.node, message.target)
    assert text.decode() == fields["signed_string"]
    assert keys.verify_signature(bytes.fromhex(fields["signer_public_key_hex"]), message.grant.signature, text)


def test_v4_addresses_have_one_form() -> None:
    """A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d; the message has the 4-byte form, both ways."""
    mapped = bytes.fromhex("0210" + "00" * 10 + "ffff" + "cb007109" + "9c40")
    assert beacon.parse(mapped) == beacon.DiscoverReply(("203.0.113.9", 40000))
    assert _core.beacon_parse(mapped)["endpoint"] == ("203.0.113.9", 40000)
    assert beacon.DiscoverReply(("::ffff:203.0.113.9", 40000)).build().hex() == "0204cb0071099c40"


@pytest.mark.parametrize(
    "message",
    [
        beacon.Discover(1 << 32), beacon.Discover(1, bytes(31)), beacon.Discover(1, nonce=bytes(8)),
        beacon.Discover(1, None, True, b"7"), beacon.PunchRequest(1, -1),
        beacon.PunchRequest(1, 2, beacon.PunchGrant(1, bytes(63))), beacon.PunchCommand(("name", 1)),
        beacon.PunchCommand(("192.0.2.1", 65536)), beacon.PunchCommand(("fe80::1%eth0", 1)), beacon.DiscoverReply(("\0", 1)),
        beacon.Sync(1, (0,) * (beacon.MAX_SYNC + 1)), beacon.Notify(256),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(message: beacon.Message) -> None:
    with pytest.raises(WireError):
        message.build()
