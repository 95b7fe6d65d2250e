"""Who sees what of whom (section 7): public and private nodes, friends, strangers, people who are not registered."""

from __future__ import annotations

from typing import Any

import pytest
from registry_support import Identity, Lab, Node, registration

from pilot.registry.config import RegistryConfig

ENDPOINT = "127.0.0.7:4000"


async def scene(lab: Lab, public: bool) -> tuple[Node, Node, Node]:
    """(target, friend, stranger), numbers 1, 2, 3."""
    target, friend, stranger = await lab.node("127.0.0.7", hostname="target"), await lab.node(), await lab.node()
    await target.own("set_visibility", public=public)
    await target.report(2)
    await friend.report(1)
    return target, friend, stranger


@pytest.mark.parametrize("public", [True, False], ids=["public", "private"])
@pytest.mark.parametrize("who", ["self", "friend", "stranger", "unregistered"])
async def test_matrix(lab: Lab, public: bool, who: str) -> None:
    target, friend, stranger = await scene(lab, public)
    outsider = Node(await lab.connect(), Identity(), 77)
    asker = {"self": target, "friend": friend, "stranger": stranger, "unregistered": outsider}[who]
    registered = who != "unregistered"
    may = registered and (public or who != "stranger")

    looked_up = await asker.ask("lookup", node_id=1)
    assert looked_up.get("real_addr") == (ENDPOINT if public else None)
    assert looked_up["public_key"] == target.identity.key_text and looked_up["hostname"] == "target"

    assert (await asker.resolve(1)).get("real_addr") == (ENDPOINT if may else None)

    signed = f"punch:{asker.number}:1"
    punched = await asker.ask("punch", signed, requester_id=asker.number, node_a=asker.number, node_b=1)
    assert punched.get("node_b_addr") == (ENDPOINT if may else None)

    named = await asker.ask("resolve_hostname", hostname="target", requester_id=asker.number)
    assert named["node_id"] == 1 and ENDPOINT not in str(named)


@pytest.mark.parametrize("public", [True, False], ids=["public", "private"])
async def test_strict_names(lab: Lab, public: bool) -> None:
    """The operator's choice: private names are for friends, and a number alone proves nobody."""
    await lab.start(RegistryConfig(strict_names=True))
    target, friend, stranger = await scene(lab, public)
    unknown = await stranger.ask("resolve_hostname", hostname="nobody")
    cases = ((target, 1, True), (friend, 2, True), (stranger, 3, False), (stranger, 2, False), (stranger, 0, False))
    for asker, number, may in cases:
        reply = await asker.ask("resolve_hostname", hostname="target", requester_id=number)
        if may or public:
            assert reply["node_id"] == 1
        else:
            assert reply["error"] == unknown["error"].replace("nobody", "target")


async def test_a_name_leads_to_nobody_while_its_node_is_away(lab: Lab) -> None:
    """But not in the time that a restarted registry gives its nodes to come back."""
    target, other = await lab.node(hostname="target"), await lab.node()
    await lab.restart()
    other.raw, target.raw = await lab.connect(), await lab.connect()
    assert (await other.ask("resolve_hostname", hostname="target"))["node_id"] == 1
    await target.own("deregister")  # before it was back
    assert (await other.ask("resolve_hostname", hostname="target"))["error"] == 'hostname "target" not found'
    await target.raw.ask(registration(target.identity))
    assert (await other.ask("resolve_hostname", hostname="target"))["node_id"] == 1


async def join(node: Node, network: int, token: str = "") -> dict[str, Any]:
    return await node.ask(
        "join_network", f"join_network:{node.number}:{network}", node_id=node.number, network_id=network, token=token
    )


async def test_members_of_a_network_reach_each_other(lab: Lab) -> None:
    """Until one leaves; the backbone and a wrong token open nothing, and the member list shows no private endpoint."""
    await lab.start(admin_token="op")
    target, friend, stranger = await scene(lab, public=False)
    request: dict[str, Any] = {"node_id": 1, "name": "team", "join_rule": "token", "token": "word", "admin_token": "op"}
    assert (await target.ask("create_network", **request))["network_id"] == 1
    assert (await join(stranger, 1, "guess"))["error"] == "invalid token for network 1"
    assert (await stranger.resolve(1))["error"] == "request failed"
    assert (await join(stranger, 1, "word"))["address"] == "1:0001.0000.0003"
    assert (await stranger.resolve(1))["real_addr"] == ENDPOINT
    assert (await stranger.ask("lookup", node_id=1))["networks"] == [0, 1]
    assert (await stranger.ask("check_trust", node_id=3, peer_id=1))["trusted"] is True
    listed = (await friend.ask("list_nodes", network_id=1))["nodes"]
    assert [(n["node_id"], n["role"]) for n in listed] == [(1, "owner"), (3, "member")] and ENDPOINT not in str(listed)
    await target.own("deregister")
    assert [n.get("offline") for n in (await friend.ask("list_nodes", network_id=1))["nodes"]] == [None, True]
    await target.ask("leave_network", "leave_network:1:1", node_id=1, network_id=1)
    assert (await friend.ask("get_member_role", network_id=1, target_node_id=1))["error"].endswith("not a member of network 1")


async def test_networks_are_the_operators(lab: Lab) -> None:
    node = await lab.node()
    disabled = await node.ask("create_network", node_id=1, name="x", admin_token="guess")
    assert disabled["error"] == "request failed"
    await lab.restart(admin_token="op", network=1)
    node = await lab.node(identity=node.identity)
    for command in ("create_network", "delete_network", "rename_network"):
        reply = await node.ask(command, node_id=1, network_id=1, name="x", admin_token="guess")
        assert reply["error"] == "invalid admin token"
    for name in ("backbone", "No!", ""):
        assert "invalid network name" in (await node.ask("create_network", node_id=1, name=name, admin_token="op"))["error"]
    made = await node.ask("create_network", node_id=1, name="x", admin_token="op")
    assert made["network_id"] == 2  # the addresses of network 1 are those of the backbone here
    nobodys = await node.ask("create_network", name="nobodys", admin_token="op")
    assert (await node.ask("list_nodes", network_id=nobodys["network_id"], admin_token="op"))["nodes"] == []


async def test_nothing_secret_in_any_reply(lab: Lab) -> None:
    """Owner, private endpoint and LAN addresses of a private node reach no stranger, whatever it asks."""
    await lab.node("127.0.0.7", owner="secret-owner", lan_addrs=["192.168.77.1:4000"])
    stranger = await lab.node("127.0.0.8")
    replies: list[Any] = [await stranger.resolve(1)]
    for command in (
        "lookup",
        "get_key_info",
        "get_polo_score",
        "resolve",
        "list_networks",
        "list_nodes",
        "check_trust",
        "beacon_list",
    ):
        replies.append(await stranger.ask(command, node_id=1, peer_id=2, requester_id=1, network_id=0))
    for secret in ("127.0.0.7", "secret-owner", "192.168.77"):
        assert secret not in str(replies)


async def test_operator_token(lab: Lab) -> None:
    await lab.start(admin_token="op")
    await lab.node()
    raw = await lab.connect()
    changes: dict[str, dict[str, Any]] = {
        "set_visibility": {"public": True},
        "set_hostname": {"hostname": "x"},
        "set_tags": {"tags": ["t"]},
        "set_task_exec": {"enabled": True},
        "deregister": {},
    }
    for command, fields in changes.items():
        request = {"type": command, "node_id": 1, **fields}
        assert "signature required" in (await raw.ask(request | {"admin_token": "wrong"}))["error"]
        assert (await raw.ask(request | {"admin_token": "op"}))["type"] == f"{command}_ok"
    listing = await raw.ask({"type": "list_nodes", "network_id": 0, "admin_token": "op"})
    assert listing["nodes"] == []


async def test_no_token_configured_means_no_operator(lab: Lab) -> None:
    await lab.node()
    raw = await lab.connect()
    for token in ("", None, 0):
        assert "error" in await raw.ask({"type": "list_nodes", "network_id": 0, "admin_token": token})
        assert "error" in await raw.ask({"type": "beacon_register", "beacon_id": 1, "addr": "127.0.0.1:1", "admin_token": token})


async def test_a_key_leads_to_its_node(lab: Lab) -> None:
    """Whoever holds a key may ask which number it has, before it registers."""
    target, friend, _ = await scene(lab, public=False)
    by_key = await friend.ask("lookup", public_key=target.identity.key_text)
    assert by_key == await friend.ask("lookup", node_id=1)
    assert "error" in await friend.ask("lookup", public_key=Identity().key_text)
    assert "error" in await friend.ask("lookup", public_key="?")
