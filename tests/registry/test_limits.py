"""Nothing that a stranger does takes the registry from the others (section 9)."""

from __future__ import annotations

import asyncio
import socket

from registry_support import VECTORS, Identity, Lab, Raw, registration, until

from pilot.registry.config import RegistryConfig
from pilot.registry.endpoint import ip_groups
from pilot.registry.limits import Buckets
from pilot.registry.state import KEPT_REQUESTS
from pilot.wire import registry as wire

LOOKUP = {"type": "lookup", "node_id": 1}
NOBODY = {"type": "lookup", "node_id": 99}


async def test_registrations_per_address(lab: Lab) -> None:
    """As recorded: ten new keys a minute, then none; known keys always."""
    raw = await lab.connect("127.0.0.60")
    identities: list[Identity] = []
    for vector in VECTORS["rate_limit"]:
        known = vector["attempt"] == "known key while limited"
        identities.append(identities[0] if known else Identity())
        reply = await raw.ask(registration(identities[-1], signed=False))
        if "error" in vector["response"]:
            assert reply["error"] == "rate limited: too many registrations from 127.0.0.60"
        else:
            assert reply["node_id"] == vector["response"]["node_id"] - 4
    neighbour = await lab.connect("127.0.0.61")
    assert "node_id" in await neighbour.ask(registration(Identity()))
    lab.clock.offset += 7
    assert [("node_id" in await raw.ask(registration(Identity()))) for _ in range(2)] == [True, False]


async def test_connections_per_address_and_total(lab: Lab) -> None:
    await lab.start(RegistryConfig(max_connections=5, max_connections_per_ip=3))
    greedy = [await lab.connect("127.0.0.2") for _ in range(4)]
    assert await greedy[3].closed()
    others = [await lab.connect(f"127.0.0.{i}") for i in (3, 4)]
    for raw in (*greedy[:3], *others):
        assert "error" in await raw.ask(LOOKUP)
    greedy[0].close()
    await until(lambda: lab.server.stats()["connections_open"] == 4, "the closed connection is forgotten")
    assert "error" in await (await lab.connect("127.0.0.2")).ask(LOOKUP)
    assert lab.server.stats()["connections_refused"] == 1


async def test_a_table_full_of_connections_keeps_nobody_out(lab: Lab) -> None:
    """Who has proved nothing gives way, however busy; a node that is at work keeps its connection."""
    await lab.start(RegistryConfig(max_connections=4))
    node = await lab.node("127.0.0.9")
    strangers = [await lab.connect(f"127.0.0.{i}") for i in range(2, 5)]
    for raw in (strangers[1], strangers[0], strangers[2]):
        assert "error" in await raw.ask(NOBODY)
    lab.clock.offset += 30
    late = await lab.node("127.0.0.8")
    assert await strangers[1].closed(), "silent longest"
    for i in range(20, 40):
        await lab.connect(f"127.0.0.{i}")
    for known in (node, late):
        assert (await known.own("heartbeat"))["type"] == "heartbeat_ok"
    assert await strangers[0].closed() and await strangers[2].closed()
    assert lab.server.stats()["connections_open"] == 4 and lab.server.stats()["connections_displaced"] == 21


async def test_a_table_full_of_nodes_refuses_newcomers_until_one_is_silent(lab: Lab) -> None:
    await lab.start(RegistryConfig(max_connections=2))
    nodes = [await lab.node(f"127.0.0.{i}") for i in (2, 3)]
    assert await (await lab.connect("127.0.0.4")).closed()
    lab.clock.offset += 11
    assert (await nodes[1].own("heartbeat"))["type"] == "heartbeat_ok"
    assert "error" in await (await lab.connect("127.0.0.5")).ask(NOBODY)
    assert (await nodes[1].own("heartbeat"))["type"] == "heartbeat_ok"


async def test_one_address_opens_connections_no_faster_than_allowed(lab: Lab) -> None:
    await lab.start(RegistryConfig(opens_per_s_ip=1, opens_burst_ip=5))
    raws = [await lab.connect("127.0.0.2") for _ in range(8)]
    assert [await raw.closed() for raw in raws[5:]] == [True] * 3
    assert "error" in await raws[4].ask(LOOKUP) and "error" in await (await lab.connect("127.0.0.3")).ask(LOOKUP)
    assert lab.server.stats()["connections_too_fast"] == 3


def test_whole_prefixes_have_a_budget_too() -> None:
    """Whoever has a /48 of IPv6 has 65536 networks of his own, but not as many budgets."""
    budget = Buckets(10 / 60, 10)
    granted = sum(budget.take_all(ip_groups(f"2001:db8:0:{i:x}::1"), 0.0) for i in range(5000))
    assert granted == 160
    assert sum(budget.take_all(ip_groups(f"2001:db8:1:0:{i:x}::1"), 0.0) for i in range(100)) == 10, "a /64 is one party"
    assert sum(budget.take_all(ip_groups(f"2001:db8:2:{i:x}::1"), 0.0) for i in range(256)) == 40, "a /56"
    assert sum(budget.take_all(ip_groups("192.0.2.1"), 0.0) for _ in range(100)) == 10
    assert budget.take_all(ip_groups("2001:db8:3::1"), 0.0)


async def test_idle_connections_are_closed(lab: Lab) -> None:
    """Five minutes without a whole request; a byte now and then does not count."""
    await lab.start()
    idle, slow, busy = [await lab.connect() for _ in range(3)]
    lab.clock.offset += 200
    assert "error" in await busy.ask(LOOKUP)
    slow.send(b"\x00")
    lab.clock.offset += 110
    assert await idle.closed()
    assert await slow.closed()
    assert "error" in await busy.ask(LOOKUP)
    assert lab.server.stats()["connections_idle_closed"] == 2


async def test_flood_is_slowed_and_others_are_served(lab: Lab) -> None:
    """A connection beyond its budget is read at the rate of the budget; nothing of it is lost, nobody else waits."""
    await lab.start(RegistryConfig(requests_per_s=50, requests_burst=50))
    flood, other = await lab.connect(), await lab.connect()
    loop = asyncio.get_running_loop()
    began = loop.time()
    flood.send(wire.encode(LOOKUP) * 120)
    for _ in range(40):
        assert "error" in await other.ask(LOOKUP)
    assert lab.server.stats()["requests"]["lookup"] < 40 + 120  # the flood is still being held up
    for _ in range(120):
        await flood.receive()
    assert loop.time() - began > 1.2  # 70 requests beyond the burst at 50/s
    assert lab.server.stats()["throttled"] > 0


async def test_address_with_many_connections_has_one_budget(lab: Lab) -> None:
    await lab.start(RegistryConfig(requests_per_s_ip=200, requests_burst_ip=50))
    raws = [await lab.connect() for _ in range(10)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    for raw in raws:
        raw.send(wire.encode(LOOKUP) * 15)
    for raw in raws:
        for _ in range(15):
            await raw.receive()
    assert loop.time() - began > 0.4


async def test_client_that_does_not_read_is_not_served(lab: Lab) -> None:
    """Its replies do not pile up: the server stops reading from it, and goes on where it stopped when the client reads."""
    limitless = RegistryConfig(requests_per_s=1e9, requests_burst=1e9, requests_per_s_ip=1e9, requests_burst_ip=1e9)
    await lab.start(limitless)
    other = await lab.connect()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((lab.host, lab.port))
    deaf = Raw(*await asyncio.open_connection(sock=sock))
    count = 60_000
    deaf.send(wire.encode(LOOKUP) * count)
    await until(lambda: lab.server.stats()["connections_paused"] == 1, "the server stops reading")
    served = lab.server.stats()["requests"]["lookup"]
    assert served < count
    assert "error" in await other.ask(LOOKUP)
    for _ in range(count):
        await deaf.receive()
    deaf.close()


async def test_half_sent_requests_share_a_budget(lab: Lab) -> None:
    """Megabytes that are announced and never finished cannot fill the memory."""
    await lab.start(RegistryConfig(max_unfinished_bytes=300_000))
    node = await lab.node("127.0.0.2")
    half = (250_000).to_bytes(4, "big") + b'{"a":"' + b"x" * 199_994
    first, second = await lab.connect(), await lab.connect()
    first.send(half)
    await until(lambda: lab.server.stats()["unfinished_bytes"] == 200_004, "the first is held")
    second.send(half)
    assert await second.closed()
    assert "time" in await node.own("heartbeat")
    first.send(b"x" * 49_998 + b'"}')
    assert (await first.receive())["error"] == "request failed"
    assert lab.server.stats()["unfinished_bytes"] == 0


async def test_large_requests_cost_more(lab: Lab) -> None:
    """A megabyte takes as long to read as hundreds of requests, and is charged like them."""
    await lab.start(RegistryConfig(requests_per_s=100, requests_burst=100))
    raw = await lab.connect()
    loop = asyncio.get_running_loop()
    large = {"type": "lookup", "node_id": 1, "x": "y" * 1_000_000}
    began = loop.time()
    for _ in range(2):
        await raw.ask(large)
    assert loop.time() - began > 0.9  # debt is at most a burst, a second here


async def test_fullest_replies_fit_a_frame(lab: Lab) -> None:
    """What strangers leave for a node, or write about themselves, cannot make a reply too long to be sent."""
    from pilot.registry.state import HandshakeRequest, HandshakeResponse

    await lab.start(admin_token="op")
    node = await lab.node(version="\x01" * 64, lan_addrs=[f"10.0.{i % 256}.1:{i}" for i in range(5000)])
    state = lab.server.core.state
    now = int(lab.clock.wall())
    for sender in range(2, KEPT_REQUESTS):
        state.put_request(HandshakeRequest(1, sender, "\x01" * 1024, now))
        state.put_response(HandshakeResponse(1, sender, True, now))
    seen = 0
    while requests := (await node.own("poll_handshakes"))["requests"]:
        seen += len(requests)
    assert seen == KEPT_REQUESTS - 2
    assert "version" not in await node.ask("lookup", node_id=1)


async def test_metric_names_are_ours(lab: Lab) -> None:
    """A stranger creates no series."""
    raw = await lab.connect()
    for i in range(20):
        await raw.ask({"type": f"evil{i}"})
        await raw.ask({"type": ["evil"]})
    assert lab.server.stats()["requests"] == {"other": 40}
    assert lab.server.stats()["errors"] == {"other": 40}


async def test_registry_full(lab: Lab) -> None:
    await lab.start(RegistryConfig(max_nodes=1))
    first = await lab.node()
    raw: Raw = await lab.connect()
    assert "error" in await raw.ask(registration(Identity()))
    assert "node_id" in await raw.ask(registration(first.identity))


async def test_beacons(lab: Lab) -> None:
    await lab.start(admin_token="op")
    raw = await lab.connect()
    request = {"type": "beacon_register", "beacon_id": 7, "addr": "198.51.100.9:9001"}
    assert (await raw.ask(request))["error"] == "invalid admin token"
    assert (await raw.ask(request | {"admin_token": "op", "addr": "no port"}))["error"].startswith("invalid addr")
    assert (await raw.ask(request | {"admin_token": "op"}))["beacon_id"] == 7
    assert (await raw.ask({"type": "beacon_list"}))["beacons"] == [{"id": 7, "addr": "198.51.100.9:9001"}]
    lab.clock.offset += 61
    assert (await raw.ask({"type": "beacon_list"}))["beacons"] == []


def test_bucket_table_is_bounded_and_refills() -> None:
    buckets = Buckets(1.0, 2.0, max_keys=3)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert buckets.take("a", 1.0) and not buckets.take("a", 1.5)
    for key in "bcde":
        buckets.take(key, 2.0)
    assert len(buckets) == 3
    assert buckets.spend("z", 0.0, 2) == 0 and buckets.spend("z", 0.0, 1) == 1.0
    assert buckets.spend("z", 0.0, 100) == 2.0  # debt is at most one burst


async def test_kept_requests_of_one_node_are_bounded(lab: Lab) -> None:
    """Requests that were delivered and never answered do not grow without end."""
    from pilot.registry.state import HandshakeRequest

    await lab.node()
    state = lab.server.core.state
    for sender in range(2, KEPT_REQUESTS + 50):
        state.put_request(HandshakeRequest(1, sender, "", 0, polled=True))
    assert len(state.requests[1]) == KEPT_REQUESTS
    assert 2 not in state.requests[1] and KEPT_REQUESTS + 49 in state.requests[1]
