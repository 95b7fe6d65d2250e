"""Networks: the backbone, where every node is and which opens nothing, and those that nodes join (registry.md sections 5, 6).

The operator creates networks, open ones and such with a token; invitations and policies do not exist here. The number in backbone
addresses is the operator's choice, on the wire the backbone is 0.
"""

from __future__ import annotations

import hmac
from typing import Any

from pilot.registry import fields, texts
from pilot.registry.core import Peer, Registry, rfc3339
from pilot.registry.fields import Refused, Request
from pilot.registry.ops_directory import BACKBONE, shown_endpoint
from pilot.registry.state import Network, Node

LIST_MAX = 1000  # nodes in one reply
NETWORK_MAX = 0xFFFF
JOINED_MAX = 64  # networks of one node
NETWORKS_MAX = 4096  # all of them fit one reply


def list_networks(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """All networks. Members of the backbone are the nodes that are online."""
    backbone = {"id": BACKBONE, "name": "backbone", "members": len(reg.state.online), "join_rule": "open"}
    others = [
        {"id": n.id, "name": n.name, "members": len(n.members), "join_rule": "token" if n.token else "open"}
        for _, n in sorted(reg.state.networks.items())
    ]
    return {"networks": [backbone, *others]}


def list_nodes(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Members of a network, at most 1000, those that are online first; of the backbone only for the operator."""
    number = fields.number(request, "network_id", NETWORK_MAX)
    if number in (BACKBONE, reg.network):
        if not reg.is_admin(request):
            raise Refused("listing backbone nodes is not permitted (use lookup with a specific node_id)")
        listed = list(reg.state.online.values())[-LIST_MAX:]
        return {"nodes": [_entry(reg, node, reg.network, "") for node in sorted(listed, key=lambda node: node.id)]}
    network = _network(reg, number)
    members = sorted(network.members, key=lambda node_id: (not reg.state.nodes[node_id].online, node_id))[:LIST_MAX]
    return {"nodes": [_entry(reg, reg.state.nodes[m], number, network.members[m]) for m in members]}


def _entry(reg: Registry, node: Node, network: int, role: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "node_id": node.id,
        "address": reg.address(node, network),
        "public": node.public,
        "polo_score": node.score,
        "last_seen": rfc3339(int(reg.wall() - (reg.clock() - node.seen)) if node.online else node.departed),
    }
    optional = {
        "hostname": node.hostname,
        "tags": list(node.tags),
        "task_exec": node.task_exec,
        "real_addr": shown_endpoint(reg, node) if node.public else "",
        "version": node.version,
        "role": role,
        "offline": not node.online,
    }
    return entry | {name: value for name, value in optional.items() if value}


def _network(reg: Registry, number: int) -> Network:
    network = reg.state.networks.get(number)
    if network is None:
        raise Refused(f"network {number}: network not found")
    return network


def _checked_name(reg: Registry, request: Request) -> str:
    name = fields.text(request, "name")
    fault = fields.hostname_fault(name)
    if fault:
        raise Refused(f"invalid network name: {fault}")
    if any(network.name == name for network in reg.state.networks.values()):
        raise Refused(f'network "{name}" already exists')
    return name


def create_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The operator makes a network, for a node that becomes its owner and first member, or for nobody: the published pilotctl
    names no node."""
    reg.require_admin(request, unset="network creation is disabled")
    number = fields.number(request, "node_id")
    owner = reg.known(number) if number else None
    name = _checked_name(reg, request)
    rule, token = fields.text(request, "join_rule") or "open", fields.text(request, "token")
    if rule not in ("open", "token") or fields.flag(request, "enterprise"):
        raise Refused("invalid join_rule: this registry has open networks and such with a token")
    if rule == "token" and not token:
        raise Refused("token required for join_rule token")
    if owner is not None:
        _room(owner)
    number = max(reg.state.networks, default=0) + 1
    if number == reg.network:  # its addresses would be those of the backbone
        number += 1
    if number > NETWORK_MAX or len(reg.state.networks) >= NETWORKS_MAX:
        raise Refused("too many networks")
    digest = reg.keyed_hash(token) if rule == "token" else b""
    reg.state.put_network(Network(number, name, digest, reg.now_unix()), owner)
    return {"network_id": number, "name": name, "enterprise": False}


def _room(node: Node) -> None:
    if len(node.networks) >= JOINED_MAX:
        raise Refused(f"too many networks of node {node.id} (max {JOINED_MAX})")


def delete_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The operator removes a network."""
    reg.require_admin(request)
    network = _network(reg, fields.number(request, "network_id", NETWORK_MAX))
    reg.state.drop_network(network)
    return {"network_id": network.id}


def rename_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The operator gives a network another name."""
    reg.require_admin(request)
    network = _network(reg, fields.number(request, "network_id", NETWORK_MAX))
    network.name = _checked_name(reg, request)
    reg.store.network(network)
    return {"network_id": network.id, "name": network.name}


def _joining(verb: str, reg: Registry, peer: Peer, request: Request) -> tuple[Node, Network]:
    node = reg.known(fields.number(request, "node_id"))
    number = fields.number(request, "network_id", NETWORK_MAX)
    reg.require_signature_or_admin(peer, node, texts.of_pair(f"{verb}_network", node.id, number), request)
    if number == BACKBONE:
        raise Refused(f"cannot {verb} the backbone network")
    return node, _network(reg, number)


def join_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The node becomes a member."""
    node, network = _joining("join", reg, peer, request)
    if node.id in network.members:
        raise Refused(f"node {node.id} already in network {network.id}")
    given = reg.keyed_hash(fields.text(request, "token"))
    if network.token and not hmac.compare_digest(given, network.token):
        raise Refused(f"invalid token for network {network.id}")
    _room(node)
    reg.state.join(network, node)
    return {"network_id": network.id, "address": reg.address(node, network.id)}


def leave_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The node is a member no more."""
    node, network = _joining("leave", reg, peer, request)
    if node.id not in network.members:
        raise Refused(f"node {node.id} is not a member of network {network.id}")
    reg.state.leave(network, node)
    return {"network_id": network.id}


def get_member_role(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """owner or member."""
    network = _network(reg, fields.number(request, "network_id", NETWORK_MAX))
    node_id = fields.number(request, "target_node_id")
    if node_id not in network.members:
        raise Refused(f"node {node_id} is not a member of network {network.id}")
    return {"network_id": network.id, "target_node_id": node_id, "role": network.members[node_id]}


def poll_invites(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """There are no invitations: an empty list, which daemons take as an answer."""
    node = reg.known(fields.number(request, "node_id"))
    reg.require_signature(peer, node, texts.of_node("poll_invites", node.id), request)
    return {"invites": []}
