"""Commands that change what a node shows: visibility, name, tags, task flag, score (registry.md section 5)."""

from __future__ import annotations

from typing import Any

from pilot.registry import fields, texts
from pilot.registry.core import Peer, Registry
from pilot.registry.fields import Refused, Request
from pilot.registry.state import Node

SCORE_MAX = 10**9


def _own(command: str, reg: Registry, peer: Peer, request: Request) -> Node:
    node = reg.known(fields.number(request, "node_id"))
    reg.require_signature_or_admin(peer, node, texts.of_node(command, node.id), request)
    return node


def set_visibility(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Public: every registered node may resolve it."""
    node = _own("set_visibility", reg, peer, request)
    public = fields.flag(request, "public")
    if node.public != public:
        node.public = public
        reg.state.save(node)
    return {"node_id": node.id, "visibility": "public" if public else "private"}


def set_hostname(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Names the node; the name of a node that is offline may be taken over."""
    node = _own("set_hostname", reg, peer, request)
    name = fields.text(request, "hostname")
    if name != node.hostname:
        fault = fields.hostname_fault(name) if name else ""
        if fault:
            raise Refused(f"invalid hostname: {fault}")
        holder = reg.state.by_name.get(name)
        if holder is not None and reg.holds(holder):
            raise Refused(f'hostname "{name}" already in use by node {holder.id}')
        reg.state.set_hostname(node, name)
        reg.state.save(node)
    return {"node_id": node.id, "hostname": name}


def set_tags(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Replaces the whole list."""
    node = _own("set_tags", reg, peer, request)
    tags = tuple(fields.clean_tags(fields.strings(request, "tags")))
    if tags != node.tags:
        node.tags = tags
        reg.state.save(node)
    return {"node_id": node.id, "tags": list(tags) or None}


def set_task_exec(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Whether the node takes tasks."""
    node = _own("set_task_exec", reg, peer, request)
    enabled = fields.flag(request, "enabled")
    if node.task_exec != enabled:
        node.task_exec = enabled
        reg.state.save(node)
    return {"node_id": node.id, "task_exec": enabled}


def get_polo_score(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The score of a node."""
    return _score_reply(reg, _scored(reg, request))


def set_polo_score(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Sets the score, within the step that one request may make."""
    score = fields.signed_number(request, "polo_score")
    if score is None:
        raise Refused("set_polo_score requires polo_score field")
    node = _scored(reg, request)
    return _change_score(reg, peer, request, node, score - node.score)


def update_polo_score(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Adds `delta` to the score."""
    delta = fields.signed_number(request, "delta")
    if delta is None:
        raise Refused("update_polo_score requires delta field")
    return _change_score(reg, peer, request, _scored(reg, request), delta)


def _scored(reg: Registry, request: Request) -> Node:
    node_id = fields.number(request, "node_id")
    node = reg.state.nodes.get(node_id)
    if node is None:
        raise Refused(f"node {node_id} not found")
    return node


def _score_reply(reg: Registry, node: Node) -> dict[str, Any]:
    return {"node_id": node.id, "address": reg.address(node), "polo_score": node.score}


def _change_score(reg: Registry, peer: Peer, request: Request, node: Node, delta: int) -> dict[str, Any]:
    """Score requests carry no signature: they count from a connection on which a node has signed something else, in small
    steps, a few a minute. A daemon that has finished a task fits easily."""
    if not reg.is_admin(request):
        author = next((n for n in map(reg.state.nodes.get, peer.proved) if n is not None and peer.speaks_for(n)), None)
        if author is None:
            raise Refused("signature required: scores change only on the connection of a registered node")
        if abs(delta) > reg.config.score_step:
            raise Refused(f"invalid score: changes by more than {reg.config.score_step} at once")
        if not reg.score_changes.take(f"{author.id}:{node.id}", reg.clock()):
            raise Refused(f"rate limited: too many score changes of node {node.id}")
    score = max(-SCORE_MAX, min(SCORE_MAX, node.score + delta))
    if score != node.score:
        node.score = score
        reg.state.save(node)
    return _score_reply(reg, node)
