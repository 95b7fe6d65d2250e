"""Networks: this registry has the backbone, the network of everybody (registry.md sections 5, 6).

Membership of the backbone opens nothing. The number in the addresses is the operator's choice; on the wire the backbone is 0.
"""

from __future__ import annotations

from typing import Any

from pilot.registry import fields, texts
from pilot.registry.core import Peer, Registry, rfc3339
from pilot.registry.fields import Refused, Request
from pilot.registry.ops_directory import BACKBONE, shown_endpoint

LIST_MAX = 1000


def list_networks(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The backbone, which every node that is online belongs to."""
    backbone = {"id": BACKBONE, "name": "backbone", "members": len(reg.state.online), "join_rule": "open"}
    return {"networks": [backbone]}


def list_nodes(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Members of a network; those of the backbone only for the operator, and at most the 1000 seen last."""
    network = fields.number(request, "network_id", 0xFFFF)
    if network not in (BACKBONE, reg.network):
        raise Refused(f"network {network}: network not found")
    if not reg.is_admin(request):
        raise Refused("listing backbone nodes is not permitted (use lookup with a specific node_id)")
    nodes = []
    seen_last = list(reg.state.online.values())[-LIST_MAX:]
    for node in sorted(seen_last, key=lambda n: n.id):
        entry: dict[str, Any] = {
            "node_id": node.id,
            "address": reg.address(node),
            "public": node.public,
            "polo_score": node.score,
            "last_seen": rfc3339(int(reg.wall() - (reg.clock() - node.seen))),
        }
        optional = {
            "hostname": node.hostname,
            "tags": list(node.tags),
            "task_exec": node.task_exec,
            "real_addr": shown_endpoint(reg, node) if node.public else "",
            "version": node.version,
        }
        nodes.append(entry | {name: value for name, value in optional.items() if value})
    return {"nodes": nodes}


def create_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Refused: there is one network."""
    reg.require_admin(request, unset="network creation is disabled")
    raise Refused("cannot create networks: only the backbone (network 0) is available")


def join_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Refused: everybody is in the backbone, and there is no other."""
    return _no_network("join", reg, peer, request)


def leave_network(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Refused, likewise."""
    return _no_network("leave", reg, peer, request)


def _no_network(verb: str, reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    node = reg.known(fields.number(request, "node_id"))
    network = fields.number(request, "network_id", 0xFFFF)
    reg.require_signature_or_admin(peer, node, texts.of_pair(f"{verb}_network", node.id, network), request)
    if network == BACKBONE:
        raise Refused(f"cannot {verb} the backbone network")
    raise Refused(f"network {network}: network not found")


def poll_invites(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """No networks, no invitations: an empty list, which daemons take as an answer."""
    node = reg.known(fields.number(request, "node_id"))
    reg.require_signature(peer, node, texts.of_node("poll_invites", node.id), request)
    return {"invites": []}
