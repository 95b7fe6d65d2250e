"""Commands that read: lookup, resolve, punch, names, trust, beacons (registry.md sections 5 to 7).

A node that is offline keeps its public attributes: peers still verify its key, its name still leads to it; its endpoint is gone.
"""

from __future__ import annotations

import base64
from typing import Any

from pilot.registry import endpoint, fields, texts
from pilot.registry.core import Peer, Registry, key_text
from pilot.registry.fields import Refused, Request
from pilot.registry.ops_nodes import key_age_days
from pilot.registry.state import Node

BACKBONE = 0
MAX_BEACONS = 1024


def lookup(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """What everybody may know about a node, named by its number or by its key."""
    node_id = fields.number(request, "node_id")
    key = fields.text(request, "public_key")
    if not node_id and key:
        named = reg.state.by_key.get(fields.public_key(key, "invalid public key"))
        node_id = named.id if named else 0
    node = reg.known(node_id)
    reply: dict[str, Any] = {
        "node_id": node.id,
        "address": reg.address(node),
        "networks": [BACKBONE, *sorted(node.networks)],
        "public_key": key_text(node),
        "public": node.public,
        "polo_score": node.score,
    }
    optional = {
        "hostname": node.hostname,
        "tags": list(node.tags),
        "task_exec": node.task_exec,
        "real_addr": shown_endpoint(reg, node) if node.public else "",
        "relay_only": node.relay_only,
        "version": node.version,
        "offline": not node.online,
    }
    return reply | {name: value for name, value in optional.items() if value}


def shown_endpoint(reg: Registry, node: Node) -> str:
    """Where to send to: the node itself, or the beacon if it wants to stay hidden."""
    return reg.config.relay_addr if node.relay_only and node.online else node.endpoint


def _reachable(reg: Registry, requester: Node, target_id: int) -> Node:
    target = reg.known(target_id)
    if not target.online and reg.awaited(target):
        # Not the words of "gone": the askers keep what they have cached.
        raise Refused(f"cannot resolve node {target_id} yet: the registry has restarted and waits for it")
    target = reg.online(target_id)
    if not reg.may_reach(requester, target):
        raise Refused(f"resolve denied: node {target_id} is private (establish mutual trust first)")
    return target


def resolve(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The endpoint of a node, for those who may reach it."""
    target_id = fields.number(request, "node_id")
    requester_id = fields.number(request, "requester_id")
    requester = reg.state.nodes.get(requester_id)
    if requester is None:
        raise Refused(f"resolve denied: requester node {requester_id} is not registered")
    reg.require_signature(peer, requester, texts.of_pair("resolve", requester_id, target_id), request)
    target = _reachable(reg, requester, target_id)
    reply: dict[str, Any] = {
        "node_id": target.id,
        "real_addr": shown_endpoint(reg, target),
        "key_age_days": key_age_days(reg, target),
    }
    if target.relay_only:
        reply["relay_only"] = True
    elif target.lan_addrs:
        reply["lan_addrs"] = list(target.lan_addrs)
    if target.tunnel_key:
        reply["tunnel_key"] = base64.b64encode(target.tunnel_key).decode()
    return reply


def punch(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The endpoints of two nodes for one of them; the rule of resolve holds here too."""
    requester_id = fields.number(request, "requester_id")
    a, b = fields.number(request, "node_a"), fields.number(request, "node_b")
    requester = reg.known(requester_id)
    reg.require_signature(peer, requester, texts.of_pair("punch", a, b), request)
    if requester_id not in (a, b):
        raise Refused("punch denied: requester must be participant")
    nodes = [_reachable(reg, requester, node) for node in (a, b)]
    return {
        "node_a": a,
        "node_a_addr": shown_endpoint(reg, nodes[0]),
        "node_b": b,
        "node_b_addr": shown_endpoint(reg, nodes[1]),
    }


def resolve_hostname(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The node of a name, as long as it is there: nobody can be reached by the name of one that has left."""
    name = fields.text(request, "hostname")
    if not name:
        raise Refused("hostname required")
    node = reg.state.by_name.get(name)
    if node is None or not reg.holds(node) or not _may_know(reg, peer, node, fields.number(request, "requester_id")):
        raise Refused(f'hostname "{name}" not found')
    return {"node_id": node.id, "address": reg.address(node), "public": node.public, "hostname": name}


def _may_know(reg: Registry, peer: Peer, node: Node, requester_id: int) -> bool:
    if node.public or not reg.config.strict_names:
        return True
    requester = reg.state.nodes.get(requester_id)
    return requester is not None and peer.speaks_for(requester) and reg.may_reach(requester, node)


def check_trust(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Whether two nodes trust each other, or share a network."""
    a, b = fields.number(request, "node_id"), fields.number(request, "peer_id")
    return {"trusted": reg.state.trusted(a, b) or reg.state.share_network(a, b)}


def beacon_register(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """A beacon announces itself. All daemons send their traffic to what is listed here: the operator's token is needed."""
    beacon = fields.number(request, "beacon_id")
    addr = fields.text(request, "addr")
    if not beacon:
        raise Refused("beacon_id required")
    if not addr:
        raise Refused("addr required")
    reg.require_admin(request)
    parts = endpoint.split(addr)
    if parts is None or not parts[0] or not parts[1] or len(addr) > 260:
        raise Refused("invalid addr: want host:port")
    reg.beacons.pop(beacon, None)
    reg.beacons[beacon] = (addr, reg.clock() + reg.config.beacon_ttl_s)
    if len(reg.beacons) > MAX_BEACONS:
        reg.beacons.popitem(last=False)
    return {"beacon_id": beacon}


def beacon_list(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The beacons that announced themselves; none is normal, daemons then keep the one they were given."""
    now = reg.clock()
    return {"beacons": [{"id": beacon, "addr": addr} for beacon, (addr, until) in reg.beacons.items() if until > now]}
