"""Whole nodes in this process, real registry and beacon, raw clients: what a program on the local socket gets."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from world import World, until

from pilot.daemon import registration
from pilot.daemon.identity import NodeIdentity
from pilot.errors import PilotError
from pilot.traversal.nat import show
from pilot.wire import ipc_networks as net
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address
from pilot.wire.ipc import Accept, Cmd, DialOk

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "ipc.json").read_text())

INFO_FEB = {
    "node_id", "address", "hostname", "uptime_secs", "connections", "ports", "peers", "encrypted_peers", "authenticated_peers",
    "encrypt", "identity", "public_key", "owner", "bytes_sent", "bytes_recv", "pkts_sent", "pkts_recv", "peer_list", "conn_list",
}  # fmt: skip
INFO_LATER = {
    "email", "endpoint", "version", "features", "transport", "networks", "relay_peer_count", "handshake_pending_count",
    "tunnel_encryption_success", "tunnel_encryption_failure", "accept_queue_drops", "webhook_queue_dropped",
    "webhook_circuit_skips", "beacon_addr", "motd",
}  # fmt: skip
CONN_ROW = {
    "id", "local_port", "remote_addr", "remote_port", "state", "cong_win", "ssthresh", "in_flight", "srtt_ms", "rttvar_ms",
    "unacked", "ooo_buf", "peer_recv_win", "recv_win", "in_recovery", "bytes_sent", "bytes_recv", "segs_sent", "segs_recv",
    "retransmits", "fast_retx", "sack_recv", "sack_sent", "dup_acks",
}  # fmt: skip


async def dial(client: Any, to: Address, port: int) -> int:
    client.send(rq.Dial(to, port))
    code, payload = await client.frame()
    assert code == Cmd.DIAL_OK, payload
    return DialOk.parse(payload).conn_id


async def read_stream(client: Any, conn: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        code, payload = await client.frame()
        assert code == Cmd.RECV and payload[:4] == conn.to_bytes(4, "big"), (code, payload[:20])
        data += payload[4:]
    return data


async def test_info_has_the_fields_of_both_generations(world: World) -> None:
    agent = await world.agent("alpha")
    client = await agent.client()
    info = await client.ask(rq.Info())
    assert info.keys() >= INFO_FEB | INFO_LATER
    assert (info["node_id"], info["address"], info["hostname"]) == (1, "1:0001.0000.0001", "alpha")
    assert info["encrypt"] is True and info["identity"] is True and info["ports"] == 5
    own = show(agent.node.plane.local_addr)
    assert info["startup"] == [
        f"STUN: discovered public endpoint {own}", "NAT type: none (open internet or local network)",
        "Registered as alpha (1:0001.0000.0001)",
    ]  # fmt: skip
    assert (info["endpoint"], info["stun"], info["nat_type"]) == (own, True, "open")
    assert await client.ask(b"\x00\x00\x00\x04\x0dxyz")  # extra bytes are ignored
    health = await client.ask(rq.Health())
    assert health["status"] == "ok" and health["connections"] == 0 and isinstance(health["uptime_seconds"], int)


async def test_recorded_error_texts(world: World) -> None:
    """Clients know some of them. Broken Close frames are not answered: nobody waits for that."""
    client = await (await world.agent("alpha")).client()
    for vector in VECTORS["errors"]:
        if vector["text"].startswith("close:"):
            continue
        assert await client.ask(bytes.fromhex(vector["hex"])) == vector["text"]
    assert await client.ask(bytes.fromhex("0000000170")) == "unknown command: 0x70"


async def test_frames_that_are_not_answered(world: World) -> None:
    client = await (await world.agent("alpha")).client()
    client.send(b"\x00\x00\x00\x00")
    client.send(rq.Cancel())
    client.send(rq.Send(99, b"x"))
    client.send(rq.SendTo(Address(0, 5), 6, b"x"))
    assert (await client.ask(rq.Info()))["node_id"] == 1


async def test_streams_both_ways_and_every_end_of_them(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    ca, cb = await a.client(), await b.client()
    assert await cb.ask(rq.Bind(7001)) == (Cmd.BIND_OK, (7001).to_bytes(2, "big"))
    conn = await dial(ca, b.address, 7001)
    code, payload = await cb.frame()
    accepted = Accept.parse(payload)
    assert code == Cmd.ACCEPT and accepted.local_port == 7001 and accepted.remote == a.address
    ca.send(rq.Send(conn, b"question"))
    assert await read_stream(cb, accepted.conn_id, 8) == b"question"
    cb.send(rq.Send(accepted.conn_id, b"answer"))
    assert await read_stream(ca, conn, 6) == b"answer"
    info = await ca.ask(rq.Info())
    (row,) = [c for c in info["conn_list"] if c["id"] == conn]
    assert row.keys() >= CONN_ROW and row["state"] == "ESTABLISHED" and row["remote_addr"] == str(b.address)
    (peer,) = info["peer_list"]
    assert peer["node_id"] == b.number and peer["encrypted"] and peer["authenticated"]
    assert info["connections"] >= 1
    cb.send(rq.Close(accepted.conn_id))
    assert (await cb.frame())[0] == Cmd.CLOSE_OK
    assert await ca.frame() == (Cmd.CLOSE_OK, conn.to_bytes(4, "big"))
    # A client that leaves: its streams end, its ports are free at once.
    conn = await dial(ca, Address(0, b.number), 7001)
    assert (await cb.frame())[0] == Cmd.ACCEPT
    await cb.close()
    assert await ca.frame() == (Cmd.CLOSE_OK, conn.to_bytes(4, "big"))
    other = await b.client()
    await until(lambda: len(b.node.ipc.clients) == 2, "the client is gone")  # the one of trust(), and `other`
    assert (await other.ask(rq.Bind(7001)))[0] == Cmd.BIND_OK


async def test_bytes_sent_at_once_after_dial_are_never_lost(world: World) -> None:
    """The client may use a connection the moment it reads DialOK."""
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    client = await a.client()
    for i in range(200):
        conn = await dial(client, b.address, 7)
        client.send(rq.Send(conn, b"%d" % i))
        assert await read_stream(client, conn, len(b"%d" % i)) == b"%d" % i
        client.send(rq.Close(conn))
        assert (await client.frame())[0] == Cmd.CLOSE_OK


async def test_dials_that_fail_say_why(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    client = await a.client()
    assert await client.ask(rq.Dial(b.address, 7777)) == "connection refused"
    assert await client.ask(rq.Dial(Address(0, 99), 7)) == "resolve node 99: registry: node 99: node not found"
    assert "this node itself" in await client.ask(rq.Dial(a.address, 7))
    assert "not one node" in await client.ask(rq.Dial(Address(0, 0), 7))
    assert "not one node" in await client.ask(rq.Dial(Address(1, 0xFFFFFFFF), 7))


async def test_ports(world: World) -> None:
    agent = await world.agent("alpha")
    one, two = await agent.client(), await agent.client()
    for taken in (7, 444, 1001, 1002):
        assert await one.ask(rq.Bind(taken)) == f"port {taken} already bound"
    assert (await one.ask(rq.Bind(0)))[0] == Cmd.BIND_OK  # a literal port, not "any"
    assert await two.ask(rq.Bind(0)) == "port 0 already bound"
    assert await two.ask(rq.Unbind(0)) == "unbind: port is not owned by this client"
    assert (await one.ask(rq.Unbind(0)))[0] == Cmd.UNBIND_OK
    assert (await two.ask(rq.Bind(0)))[0] == Cmd.BIND_OK


async def test_a_slow_dial_holds_up_nothing_and_dials_are_answered_in_order(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    c = await world.agent("charlie")
    await world.trust(a, b)
    client = await a.client()
    client.send(rq.Dial(c.address, 7))  # not trusted: nobody answers
    await until(lambda: any(x.tasks for x in a.node.ipc.clients.values()), "the dial is under way")
    client.send(rq.Dial(b.address, 7))
    assert (await client.ask(rq.Info()))["node_id"] == a.number
    assert (await client.ask(rq.Health()))["status"] == "ok"
    client.send(rq.WaitForTrust(b.number, 0))
    assert (await client.frame())[0] == Cmd.HANDSHAKE_OK
    waiting = len(next(x for x in a.node.ipc.clients.values() if x.tasks).tasks)
    assert waiting == 1  # the second dial, made by the data plane, succeeded long ago and waits for its turn
    assert a.node.plane.stats()["client_dials"] == 0
    await client.close()
    await until(lambda: not any(x.tasks for x in a.node.ipc.clients.values()), "requests end with their client")
    await until(
        lambda: all(x["state"] != "ESTABLISHED" or x["remote_port"] != 7 for x in a.node.plane.conns()),
        "the dial nobody fetched is undone",
    )


async def test_datagrams_confirmed(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    ca, cb = await a.client(), await b.client()
    await cb.ask(rq.Info())  # connected is not yet known to the daemon, and what nobody listens for is dropped
    assert (await ca.ask(rq.SendToConfirm(b.address, 6000, b"dg")))[0] == Cmd.SEND_TO_CONFIRM_OK
    code, payload = await cb.frame()
    assert code == Cmd.RECV_FROM and payload.endswith(b"dg") and payload[:6] == a.address.pack()
    assert struct.unpack(">H", payload[8:10])[0] == 6000
    for bad in (rq.SendToConfirm(b.address, 6000, b""), rq.SendToConfirm(a.address, 6000, b"x"),
                rq.SendToConfirm(Address(0, 99), 6000, b"x"), rq.SendToConfirm(b.address, 6000, bytes(70_000))):  # fmt: skip
        assert (await ca.ask(bad)).startswith("sendto: ")


async def test_handshake_as_users_do_it(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    ca, cb = await a.client(), await b.client()
    assert await ca.ask(rq.WaitForTrust(b.number, 0)) == {"node_id": b.number, "trusted": False}
    assert await ca.ask(rq.WaitForTrust(a.number, 0)) == {"node_id": a.number, "trusted": True}
    assert await ca.ask(rq.Handshake(b.number, "please")) == {"status": "sent", "node_id": b.number}
    pending = (await cb.ask(rq.PendingHandshakes()))["pending"]
    assert [(p["node_id"], p["justification"]) for p in pending] == [(a.number, "please")]
    assert (await cb.ask(rq.Info()))["handshake_pending_count"] == 1
    ca.send(rq.WaitForTrust(b.number, 10_000))
    assert await cb.ask(rq.ApproveHandshake(a.number)) == {"status": "approved", "node_id": a.number}
    code, payload = await ca.frame()
    assert code == Cmd.HANDSHAKE_OK and json.loads(payload) == {"node_id": b.number, "trusted": True}
    trusted = await ca.ask(rq.TrustedPeers())
    assert trusted["trusted"] == trusted["peers"] and trusted["trusted"][0]["node_id"] == b.number
    assert await ca.ask(rq.RevokeTrust(77)) == "handshake revoke: node 77 was not trusted"
    assert await ca.ask(rq.RevokeTrust(b.number)) == {"status": "revoked", "node_id": b.number}
    await until(lambda: not b.node.trust.store.is_trusted(a.number), "the peer hears of the revocation")
    assert await cb.ask(rq.RejectHandshake(5, "no")) == {"status": "rejected", "node_id": 5}


async def test_attributes_go_to_the_registry_and_into_info(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    ca, cb = await a.client(), await b.client()
    reply = await ca.ask(rq.SetHostname("zeta"))
    assert reply == {"type": "set_hostname_ok", "hostname": "zeta", "node_id": a.number}
    assert (await ca.ask(rq.Info()))["hostname"] == "zeta"
    assert "already in use" in await ca.ask(rq.SetHostname("bravo"))
    assert (await ca.ask(rq.SetHostname("Bad Name"))).startswith("set_hostname: registry: ")
    reply = await ca.ask(rq.SetVisibility(True))
    assert reply == {"type": "set_visibility_ok", "node_id": a.number, "visibility": "public"}
    found = await cb.ask(rq.ResolveHostname("zeta"))
    assert (found["node_id"], found["public"], found["type"]) == (a.number, True, "resolve_hostname_ok")
    assert (await ca.ask(rq.SetTags(["x", "y"])))["tags"] == ["x", "y"]
    assert await ca.ask(rq.SetWebhook("http://127.0.0.1:9/hook")) == {"webhook": "http://127.0.0.1:9/hook"}
    assert await ca.ask(rq.SetWebhook("ftp://x")) == 'URL must use http or https scheme, got "ftp"'
    assert (await ca.ask(rq.SetWebhook("http://169.254.169.254/"))).startswith("URL cannot target link-local address")
    assert (await ca.ask(net.NetworkList()))["type"] == "list_networks_ok"
    assert (await ca.ask(net.NetworkJoin(9, ""))).startswith("network join: registry: ")
    assert await ca.ask(net.ManagedStatus(3)) == "managed: no active managed networks"
    assert (await ca.ask(net.PolicyGet(3)))["engine"] == "none"
    assert "no admin token" in await ca.ask(rq.Broadcast(1, 6000, "tok", b"hi"))


async def test_a_node_says_that_it_takes_tasks(world: World) -> None:
    client = await (await world.agent("alpha")).client()
    for on in (True, False):
        assert await client.ask(rq.SetTaskExec(on)) == {"type": "set_task_exec_ok", "node_id": 1, "task_exec": on}


async def test_signed_requests(world: World) -> None:
    """What one node signs, the other ascribes to it and to nobody else, with the key it has or with the registry's."""
    a, b = await world.agent("alpha"), await world.agent("bravo")
    ca, cb = await a.client(), await b.client()
    made = await ca.ask(rq.SignEnvelope({"audience": "shop", "body_b64": "eA=="}))
    fields = {k: made[k] for k in ("envelope", "signature")}
    assert made["envelope"].split("|")[-2:] == ["2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", "shop"]
    found = await cb.ask(rq.VerifyEnvelope(fields))
    assert found == {
        "type": "verify_envelope_ok", "valid": True, "node_id": a.number, "address": str(a.address), "verified_via": "registry",
        "trusted": False,
    }  # fmt: skip
    assert (await ca.ask(rq.VerifyEnvelope(fields)))["verified_via"] == "cache"
    other = {**fields, "envelope": fields["envelope"].replace("00000001", f"{b.number:08x}", 1)}
    assert await cb.ask(rq.VerifyEnvelope(other)) == {
        "type": "verify_envelope_ok", "valid": False, "reason": "signature verification failed",
    }  # fmt: skip
    nobody = {**fields, "envelope": fields["envelope"].replace("00000001", "00000063", 1)}
    assert (await cb.ask(rq.VerifyEnvelope(nobody)))["reason"] == "unknown node"
    assert (await cb.ask(rq.VerifyEnvelope({**fields, "check_standing": True})))["valid"]
    assert (await ca.ask(rq.SignEnvelope({"audience": "a|b", "body_b64": ""}))).startswith("sign_envelope: ")


async def test_a_public_node_can_be_dialled_by_strangers_until_it_is_private(world: World) -> None:
    a = await world.agent("alpha", "-public")
    b = await world.agent("bravo")
    client = await b.client()
    conn = await dial(client, a.address, 7)
    client.send(rq.Close(conn))
    assert (await client.frame())[0] == Cmd.CLOSE_OK
    assert (await (await a.client()).ask(rq.SetVisibility(False)))["visibility"] == "private"
    client.send(rq.Dial(a.address, 7))
    with pytest.raises(TimeoutError):
        await client.frame(seconds=1.5)


async def test_path_tells_what_is_so_and_looks_when_asked(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo", "-public")
    client = await a.client()
    idle = await client.ask(rq.PathInfo(b.number, 0))
    assert idle["path"] is None and idle["encrypted"] is False and idle["history"] == []
    found = await client.ask(rq.PathInfo(b.number, 5000))
    assert found["path"]["kind"] == "direct" and found["encrypted"] and found["address"] == str(b.address)
    assert found["path"]["addr"] == show(b.node.plane.local_addr)
    assert found["history"][-1]["text"].startswith("Connected directly (encrypted") and found["history"][-1]["time"] > 1e9
    lost = await client.ask(rq.PathInfo(99, 2000))
    assert lost["path"] is None and "not found" in lost["why"]
    assert await client.ask(rq.PathInfo(a.number, 0)) == "path: not a peer"
    reply = await client.ask(rq.PreferDirect(b.number))
    assert reply["had_tunnel"] is True and reply["resolve_error"] == "" and reply["node_id"] == b.number


async def test_after_trust_the_path_becomes_direct_without_waiting_for_a_retry(world: World) -> None:
    a, b = await world.agent("alpha"), await world.agent("bravo")
    await world.trust(a, b)
    await until(lambda: a.node.traversal.describe(b.number)["phase"] == "direct", "direct", seconds=8)


async def test_the_node_works_on_while_the_registry_is_down(world: World) -> None:
    a, b = await world.agent("alpha", "-keepalive", "1s"), await world.agent("bravo", "-public", "-keepalive", "1s")
    await world.trust(a, b)
    client = await a.client()
    found = await client.ask(rq.ResolveHostname("bravo"))
    assert found["node_id"] == b.number
    await world.close_registry()
    await until(lambda: not a.node.registration.reachable, "the outage is noticed", seconds=30)
    assert (await client.ask(rq.Info()))["registry_ok"] is False
    assert (await client.ask(rq.ResolveHostname("bravo")))["node_id"] == b.number
    conn = await dial(client, b.address, 7)
    client.send(rq.Send(conn, b"still here"))
    assert await read_stream(client, conn, 10) == b"still here"
    await world.open_registry()  # it has forgotten everybody
    await until(lambda: a.node.registration.reachable and b.node.registration.reachable, "registered again", seconds=40)
    other = await b.client()
    assert (await other.ask(rq.ResolveHostname("alpha")))["hostname"] == "alpha"


async def test_key_rotation_survives_restart(world: World) -> None:
    a = await world.agent("alpha")
    client = await a.client()
    before = await client.ask(rq.Info())
    reply = await client.ask(rq.RotateKey())
    after = await client.ask(rq.Info())
    assert reply["type"] == "rotate_key_ok" and reply["public_key"] == after["public_key"] != before["public_key"]
    await a.stop()
    world.agents.remove(a)
    again = await world.agent("alpha")
    assert again.number == before["node_id"] and again.node.identity.public_text == after["public_key"]


@pytest.mark.parametrize("registry_agreed", [False, True])
async def test_key_rotation_cut_short(world: World, registry_agreed: bool) -> None:
    """kill -9 between the registry's yes and the file: the node keeps its number either way."""
    a = await world.agent("alpha")
    number, file = a.number, a.node._identity_file
    assert file
    new = NodeIdentity.generate()
    file.prepare(new, number)
    if registry_agreed:
        await a.node.registry.rotate_key(new)
    a.node.registration.registered = False  # as a killed daemon: it does not deregister
    await a.stop()
    world.agents.remove(a)
    again = await world.agent("alpha")
    assert again.number == number
    assert (again.node.identity.public_key == new.public_key) is registry_agreed


async def test_registration_refused_is_a_clear_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the half-started node lets go of its socket, file lock and threads."""
    monkeypatch.setattr(registration, "START_S", 0.5)
    await world.close_registry()
    with pytest.raises(PilotError, match="registration failed") as e:
        await world.agent("alpha")
    assert e.value.hint and not (world.root / "alpha" / "sock").exists()
    await world.open_registry()
    assert (await world.agent("alpha")).number == 1


async def test_a_fast_asker_is_slowed_not_harmed(world: World) -> None:
    """5000 requests in one write are all answered, each once."""
    client = await (await world.agent("alpha")).client()
    client.send(rq.WaitForTrust(9, 0).frame() * 3000 + rq.PathInfo(9, 0).frame() * 2000)
    codes: dict[int, int] = {}
    for _ in range(5000):
        code, _ = await client.frame(30)
        codes[code] = codes.get(code, 0) + 1
    assert codes == {Cmd.HANDSHAKE_OK: 3000, Cmd.PATH_INFO_OK: 2000}


async def test_fixed_endpoint_and_hidden_node(world: World) -> None:
    a = await world.agent("alpha", "-endpoint", "198.51.100.7:4000")
    info = await (await a.client()).ask(rq.Info())
    assert info["startup"] == ["Registered with fixed endpoint (STUN skipped)", "Registered as alpha (1:0001.0000.0001)"]
    assert info["endpoint"] == "198.51.100.7:4000" and info["stun"] is False
    b = await world.agent("bravo", "-relay-only")
    assert (await (await b.client()).ask(rq.Info()))["startup"][0] == "Endpoint hidden (relay only)"
    assert b.node.where.listen_addr() == "" and b.node.where.lan_addrs() == []
