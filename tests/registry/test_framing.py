"""What goes over the TCP port besides the commands themselves: lengths, encodings, order, garbage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_support import KEYS, VECTORS, Identity, Lab, registration

from pilot.registry.commands import COMMANDS
from pilot.registry.config import RegistryConfig
from pilot.wire import registry as wire
from pilot.wire.errors import WireError

UNLIMITED = RegistryConfig(requests_per_s=1e9, requests_burst=1e9, requests_per_s_ip=1e9, requests_burst_ip=1e9)


def frames(data: bytes) -> list[dict[str, Any]]:
    return [wire.decode(body)[0] for body in wire.FrameReader().feed(data)]


@pytest.mark.parametrize("case", [e["case"] for e in VECTORS["framing"]])
async def test_recorded(lab: Lab, case: str) -> None:
    """Error texts are told where newer releases tell them; otherwise the recorded bytes."""
    vector = next(e for e in VECTORS["framing"] if e["case"] == case)
    await lab.start(admin_token="t")
    raw = await lab.connect()
    if case == "two requests in one write":
        beacon = {"type": "beacon_register", "beacon_id": 7, "addr": "203.0.113.40:9001", "admin_token": "t"}
        assert await raw.ask(beacon) == {"type": "beacon_register_ok", "beacon_id": 7}
    raw.send(bytes.fromhex(vector["sent_hex"]))
    if vector.get("closed_by_server"):
        assert await raw.closed()
        return
    for wanted in frames(bytes.fromhex(vector["received_hex"])):
        if "error" in wanted and "null" not in case:
            wanted = {"type": "error", "error": "node 99: node not found"}
        assert await raw.receive() == wanted


async def test_msgpack_and_json_on_one_connection(lab: Lab) -> None:
    raw = await lab.connect()
    a = await raw.ask(registration(Identity(), hostname="packed"), wire.Encoding.MSGPACK)
    assert a["node_id"] == 1 and a["hostname"] == "packed"
    lookup = {"type": "lookup", "node_id": 1}
    assert await raw.ask(lookup) == await raw.ask(lookup, wire.Encoding.MSGPACK)
    error = await raw.ask({"type": "lookup", "node_id": 9}, wire.Encoding.MSGPACK)
    assert error == {"type": "error", "error": "node 9: node not found"}


async def test_replies_keep_the_order_of_requests(lab: Lab) -> None:
    """A lookup sent behind a change that has to reach the disk is not answered before it."""
    node = await lab.node()
    requests = [
        {"type": "set_tags", "node_id": 1, "tags": ["t"], "signature": node.identity.signature("set_tags:1")},
        {"type": "lookup", "node_id": 1},
        {"type": "set_tags", "node_id": 1, "tags": [], "signature": node.identity.signature("set_tags:1")},
        {"type": "lookup", "node_id": 1},
    ]
    node.raw.send(b"".join(map(wire.encode, requests)))
    replies = [await node.raw.receive() for _ in requests]
    assert [r["type"] for r in replies] == ["set_tags_ok", "lookup_ok"] * 2
    assert replies[1]["tags"] == ["t"] and "tags" not in replies[3]


async def test_one_byte_at_a_time(lab: Lab) -> None:
    raw = await lab.connect()
    for byte in wire.encode({"type": "beacon_list"}):
        raw.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await raw.receive() == {"type": "beacon_list_ok", "beacons": []}


async def test_last_reply_after_half_close(lab: Lab) -> None:
    """A script that pipes its request and shuts its side down still gets the answer, also when it waits for the disk."""
    raw = await lab.connect()
    raw.send(wire.encode(registration(Identity())))
    raw.writer.write_eof()
    assert (await raw.receive())["node_id"] == 1
    assert await raw.closed()


async def test_request_before_garbage_is_answered(lab: Lab) -> None:
    raw = await lab.connect()
    raw.send(wire.encode({"type": "beacon_list"}) + b"\x00\x00\x00\x02[]")
    assert (await raw.receive())["type"] == "beacon_list_ok"
    assert await raw.closed()


async def test_first_bytes_of_the_binary_framing_close(lab: Lab) -> None:
    """Clients fall back to JSON when that happens."""
    raw = await lab.connect()
    raw.send(b"PILT\x01")
    assert await raw.closed()


KEY_TEXTS = [identity.key_text for identity in KEYS.values()]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=40),
    st.sampled_from([*KEY_TEXTS, "1", ":4000", "A" * 88, "\x00", "x" * 2000]), st.integers(0, 5),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FIELDS = st.sampled_from(
    ["node_id", "peer_id", "requester_id", "from_node_id", "to_node_id", "node_a", "node_b", "network_id", "beacon_id", "addr",
     "public_key", "new_public_key", "signature", "listen_addr", "lan_addrs", "hostname", "owner", "tags", "public", "enabled",
     "accept", "justification", "polo_score", "delta", "admin_token", "version", "relay_only"]
)  # fmt: skip
REQUESTS = st.builds(
    lambda command, fields: {"type": command, **fields},
    st.sampled_from([*COMMANDS, "frobnicate", ""]) | SCALARS,
    st.dictionaries(FIELDS, VALUES, max_size=8),
)


async def test_any_request_is_answered(lab: Lab) -> None:
    """Whatever a stranger sends in an object is answered, breaks nothing, and the registry goes on to serve."""
    await lab.start(UNLIMITED)
    bystander = await lab.node()
    raw = await lab.connect()
    loop = asyncio.get_running_loop()

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(REQUESTS, st.sampled_from(wire.Encoding))
    def check(request: dict[str, Any], encoding: wire.Encoding) -> None:
        try:
            wire.encode(request, encoding)
        except WireError:
            return
        reply = asyncio.run_coroutine_threadsafe(raw.ask(request, encoding), loop).result(10)
        assert "error" in reply or reply["type"] == f"{request['type']}_ok"

    await asyncio.to_thread(check)
    assert lab.server.stats()["faults"] == 0
    assert "time" in await bystander.own("heartbeat")


async def test_any_bytes_at_worst_end_the_connection(lab: Lab) -> None:
    await lab.start(UNLIMITED)
    bystander = await lab.node()
    loop = asyncio.get_running_loop()

    async def throw(data: bytes) -> None:
        raw = await lab.connect()
        raw.send(data)
        raw.writer.write_eof()
        async with asyncio.timeout(10):
            frames(await raw.reader.read())

    bodies = (
        st.binary(max_size=60) | VALUES.map(lambda v: json.dumps(v).encode()) | REQUESTS.map(lambda r: json.dumps(r).encode())
    )
    framed = bodies.map(lambda b: len(b).to_bytes(4, "big") + b)
    cut = st.tuples(framed, st.integers(0, 200)).map(lambda t: t[0][: t[1]])

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(framed | cut | st.binary(max_size=60), max_size=4).map(b"".join))
    def check(data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(throw(data), loop).result(20)

    await asyncio.to_thread(check)
    assert lab.server.stats()["faults"] == 0
    assert "time" in await bystander.own("heartbeat")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b"\x91", b"\x81\xa1a"], ids=["json list", "json object", "list", "map"])
async def test_deep_nesting(lab: Lab, opening: bytes) -> None:
    bystander = await lab.node()
    raw = await lab.connect()
    body = b'{"a":' + opening * 100_000 if opening[0] < 0x80 else b"\x81\xa1a" + opening * 100_000
    raw.send(len(body).to_bytes(4, "big") + body)
    assert await raw.closed()
    assert "time" in await bystander.own("heartbeat")
