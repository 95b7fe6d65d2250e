"""Who becomes which node, who may move or rename it, and what outlives a disappearance."""

from __future__ import annotations

import base64

import pytest
from registry_support import Identity, Lab, registration, until

from pilot.registry.config import RegistryConfig
from pilot.wire.frames import build_pila

NOT_THERE = {"type": "error", "error": "node 1: node not found"}
UNSIGNED = {"type": "error", "error": "signature required for authenticated node"}


async def endpoint_of(lab: Lab, number: int) -> str:
    return lab.server.core.state.nodes[number].endpoint


@pytest.mark.parametrize(
    ("listen_addr", "stored"),
    [(":41", "127.0.0.9:41"), ("0.0.0.0:7", "127.0.0.9:7"), ("192.168.1.5:9", "127.0.0.9:9"), ("8.8.8.8:53", "127.0.0.9:53"),
     ("[2001:db8::1]:5", "127.0.0.9:5"), ("nonsense", ""), ("8.8.8.8", ""), ("8.8.8.8:70000", ""), ("", ""), (":0", "")],
)  # fmt: skip
async def test_endpoint_is_where_the_node_talks_from(lab: Lab, listen_addr: str, stored: str) -> None:
    """Nobody can aim other nodes at a third host. Without a usable port it is the source port of the connection."""
    node = await lab.node("127.0.0.9", listen_addr=listen_addr)
    assert await endpoint_of(lab, 1) == (stored or f"127.0.0.9:{node.raw.port}")


async def test_stranger_cannot_move_a_live_node(lab: Lab) -> None:
    """Anybody learns a public key from lookup. Registering it from elsewhere answers as ever and changes nothing, neither do the
    name, tags and LAN addresses that come with it; the node's own heartbeat keeps its endpoint."""
    victim = await lab.node("127.0.0.2", signed=False)
    thief = await lab.connect("127.0.0.3")
    reply = await thief.ask(
        registration(victim.identity, False, ":6666", hostname="stolen", lan_addrs=["10.0.0.1:1"], relay_only=True)
    )
    assert reply["node_id"] == 1
    assert "time" in await victim.own("heartbeat")
    looked_up = await thief.ask({"type": "lookup", "node_id": 1})
    assert await endpoint_of(lab, 1) == "127.0.0.2:4000"
    assert "hostname" not in looked_up and "relay_only" not in looked_up


async def test_moved_node_is_believed_after_its_heartbeat(lab: Lab) -> None:
    """A daemon of the first release whose host changes networks registers unsigned and then sends a heartbeat."""
    node = await lab.node("127.0.0.2", signed=False)
    moved = await lab.connect("127.0.0.3")
    reply = await moved.ask(registration(node.identity, signed=False, listen_addr=":5000"))
    assert reply["observed_addr"] == "127.0.0.3:5000"
    assert await endpoint_of(lab, 1) == "127.0.0.2:4000"
    node.raw = moved
    await node.own("heartbeat")
    assert await endpoint_of(lab, 1) == "127.0.0.3:5000"
    assert lab.endpoints[-1] == (1, "127.0.0.3")


async def test_restart_on_the_same_host_takes_a_new_port_at_once(lab: Lab) -> None:
    node = await lab.node("127.0.0.2", signed=False)
    again = await lab.connect("127.0.0.2")
    await again.ask(registration(node.identity, signed=False, listen_addr=":4100"))
    assert await endpoint_of(lab, 1) == "127.0.0.2:4100"


async def test_signed_registration_moves_at_once_and_binds_the_key_to_signing(lab: Lab) -> None:
    node = await lab.node("127.0.0.2")
    moved = await lab.connect("127.0.0.3")
    await moved.ask(registration(node.identity, listen_addr=":5000"))
    assert await endpoint_of(lab, 1) == "127.0.0.3:5000"
    # Neither from its own host nor where a heartbeat, which never changes and may have been overheard, was just accepted.
    same_host = await lab.connect("127.0.0.3")
    node.raw = same_host
    assert "time" in await node.own("heartbeat")
    assert await same_host.ask(registration(node.identity, signed=False, listen_addr=":6666")) == UNSIGNED
    lab.clock.offset += 200
    await until(lambda: not lab.server.core.state.online, "node expires")
    elsewhere = await lab.connect("127.0.0.4")
    assert await elsewhere.ask(registration(node.identity, signed=False)) == UNSIGNED


async def test_owner_does_not_give_a_node_away(lab: Lab) -> None:
    node = await lab.node(owner="me@example.org")
    raw = await lab.connect()
    taken = {"type": "error", "error": 'owner "me@example.org" is already bound to a node with a different key'}
    assert await raw.ask(registration(Identity(), owner="me@example.org")) == taken
    await node.own("deregister")
    assert await raw.ask(registration(Identity(), owner="me@example.org")) == taken


async def test_operator_gives_an_absent_owner_the_node_back(lab: Lab) -> None:
    await lab.start(admin_token="op")
    node = await lab.node(owner="me@example.org", hostname="mine")
    new, raw = Identity(), await lab.connect()
    request = registration(new, owner="me@example.org", admin_token="op")
    assert "error" in await raw.ask(request)  # still alive
    await node.own("deregister")
    reply = await raw.ask(request)
    assert (reply["node_id"], reply["hostname"]) == (1, "mine")
    assert (await raw.ask(registration(node.identity)))["node_id"] == 2


async def test_attributes_outlive_expiry(lab: Lab) -> None:
    """Daemons restore name and visibility after an outage, but not tags and the task flag: the registry keeps them all."""
    await lab.start(RegistryConfig(reap_s=0.01))
    node = await lab.node(hostname="keeper")
    await node.own("set_tags", tags=["gpu"])
    await node.own("set_task_exec", enabled=True)
    await node.own("set_visibility", public=True)
    lab.clock.offset += 179
    assert "time" in await node.own("heartbeat")
    lab.clock.offset += 181
    await until(lambda: lab.endpoints[-1] == (1, None), "node expires")
    assert await node.own("heartbeat") == NOT_THERE
    stranger = await lab.connect()
    gone = await stranger.ask({"type": "lookup", "node_id": 1})
    assert gone["offline"] is True and "real_addr" not in gone
    await node.raw.ask(registration(node.identity))
    back = await stranger.ask({"type": "lookup", "node_id": 1})
    assert (back["hostname"], back["tags"], back["task_exec"], back["public"]) == ("keeper", ["gpu"], True, True)
    assert back["real_addr"] == "127.0.0.1:4000" and "offline" not in back


async def test_name_of_an_absent_node_is_free(lab: Lab) -> None:
    first = await lab.node(hostname="db")
    second = await lab.node()
    assert (await second.own("set_hostname", hostname="db"))["error"] == 'hostname "db" already in use by node 1'
    await first.own("deregister")
    assert (await second.own("set_hostname", hostname="db"))["hostname"] == "db"
    back = await first.raw.ask(registration(first.identity, hostname="db"))
    assert back["hostname_error"] == 'hostname "db" already in use' and "hostname" not in back


async def test_restart_of_the_registry(lab: Lab) -> None:
    """Nobody is online after it, so daemons register at once; until they had time to, names stay theirs, keys are answered, and a
    resolve says "not yet" instead of "gone"."""
    node, other = await lab.node(hostname="db"), await lab.node()
    await node.own("set_visibility", public=True)
    await lab.restart()
    raw = await lab.connect()
    node.raw = other.raw = raw
    assert await node.own("heartbeat") == NOT_THERE
    assert (await raw.ask({"type": "lookup", "node_id": 1}))["public_key"] == node.identity.key_text
    await raw.ask(registration(other.identity))
    assert "already in use" in (await other.own("set_hostname", hostname="db"))["error"]
    assert "cannot resolve node 1 yet" in (await other.resolve(1))["error"]
    lab.clock.offset += 181
    assert await other.resolve(1) == NOT_THERE
    await raw.ask(registration(node.identity))
    assert (await other.resolve(1))["real_addr"] == "127.0.0.1:4000"


async def test_rotation(lab: Lab) -> None:
    node, new = await lab.node(), Identity()
    short = await node.ask("rotate_key", "rotate:1", node_id=1, new_public_key=new.key_text)
    assert short["error"] == "signature verification failed"  # such a signature would install any key
    long = f"rotate:1:{new.key_text}"
    for _ in range(2):  # the second is the repetition of a client that lost the reply
        reply = await node.ask("rotate_key", long, node_id=1, new_public_key=new.key_text)
        assert reply["public_key"] == new.key_text
    assert (await node.own("heartbeat"))["error"] == "signature verification failed"
    node.identity = new
    assert "time" in await node.own("heartbeat")
    info = await node.ask("get_key_info", node_id=1)
    assert info["rotate_count"] == 1 and "rotated_at" in info


async def test_after_a_rotation_registrations_need_a_signature_as_before(lab: Lab) -> None:
    """Or whoever shares the node's public address could move it elsewhere until its daemon registers again."""
    node, new = await lab.node(), Identity()
    assert "node_id" in await node.ask("rotate_key", f"rotate:1:{new.key_text}", node_id=1, new_public_key=new.key_text)
    neighbour = await lab.connect()
    moved = await neighbour.ask(registration(new, signed=False, listen_addr=":4999"))
    assert moved["error"] == "signature required for authenticated node"
    assert (await node.ask("lookup", node_id=1))["public_key"] == new.key_text


async def test_rotation_to_the_key_of_another_node(lab: Lab) -> None:
    node, other = await lab.node(), await lab.node()
    key = other.identity.key_text
    reply = await node.ask("rotate_key", f"rotate:1:{key}", node_id=1, new_public_key=key)
    assert "already in use" in reply["error"]
    assert (await other.ask("lookup", node_id=2))["public_key"] == key


async def test_network_number_is_only_in_addresses(lab: Lab) -> None:
    """With -network 1 addresses read as in the documentation; being in the same network opens nothing."""
    await lab.start(network=1)
    node, _ = await lab.node(), await lab.node()
    looked_up = await node.ask("lookup", node_id=2)
    assert looked_up["address"] == "1:0001.0000.0002" and looked_up["networks"] == [0]
    assert await node.resolve(2) == {"type": "error", "error": "request failed"}


async def test_lan_addresses_and_relay_only(lab: Lab) -> None:
    await lab.start(RegistryConfig(relay_addr="198.51.100.1:9001"))
    lan = ["192.168.1.2:4000", "8.8.8.8:53", "10.0.0.1:0", "x", "127.0.0.1:1", "fe80::1:5", *[f"10.0.1.{i}:1" for i in range(30)]]
    node, other = await lab.node(lan_addrs=lan), await lab.node()
    await node.own("set_visibility", public=True)
    shown = (await other.resolve(1))["lan_addrs"]
    assert shown[0] == "192.168.1.2:4000" and len(shown) == 16 and all(a.startswith(("10.0.1", "192")) for a in shown)
    await node.raw.ask(registration(node.identity, lan_addrs=lan, relay_only=True))
    reply = await other.resolve(1)
    assert reply["real_addr"] == "198.51.100.1:9001" and reply["relay_only"] is True and "lan_addrs" not in reply
    assert "127.0.0.1:4000" not in str(await other.ask("lookup", node_id=1))


async def test_resolve_tells_the_announced_tunnel_key(lab: Lab) -> None:
    """Only what the node itself has signed, as long as it is there, until it registers anew or has another identity."""
    node, other = await lab.node("127.0.0.2"), await lab.node("127.0.0.3", listen_addr=":5000")
    assert "tunnel_key" not in await other.resolve(1)
    await node.own("set_visibility", public=True)
    pila = build_pila(1, bytes(range(32)), node.identity)
    text = base64.b64encode(pila).decode()
    assert await node.own("announce_key", tunnel_key=text) == {"type": "announce_key_ok"}
    assert (await other.resolve(1))["tunnel_key"] == text
    wrong = (
        "", "?", base64.b64encode(pila[:135]).decode(), base64.b64encode(pila + bytes(400)).decode(),
        base64.b64encode(build_pila(2, bytes(range(32)), node.identity)).decode(),
        base64.b64encode(build_pila(1, bytes(range(32)), other.identity)).decode(),
        base64.b64encode(pila[:72] + bytes(64)).decode(),
    )  # fmt: skip
    for value in wrong:
        assert "invalid tunnel_key" in (await node.own("announce_key", tunnel_key=value))["error"]
    assert (await other.resolve(1))["tunnel_key"] == text
    stranger = await lab.connect("127.0.0.9")
    refused = await stranger.ask({"type": "announce_key", "node_id": 1, "tunnel_key": text})
    assert refused["type"] == "error", "an older announcement is not for others to repeat"
    await node.raw.ask(registration(node.identity))
    assert "tunnel_key" not in await other.resolve(1)
    await node.own("announce_key", tunnel_key=text)
    new = Identity()
    await node.ask("rotate_key", f"rotate:1:{new.key_text}", node_id=1, new_public_key=new.key_text)
    assert "tunnel_key" not in await other.resolve(1)
    node.identity = new
    await node.own("announce_key", tunnel_key=base64.b64encode(build_pila(1, bytes(range(32)), new)).decode())
    assert "tunnel_key" in await other.resolve(1)
    await node.own("deregister")
    assert lab.server.core.state.nodes[1].tunnel_key == b""
