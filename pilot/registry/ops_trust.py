"""Trust pairs and the handshake mailbox (registry.md section 5).

A pair opens endpoints when both sides stand for it: each reported it, or one asked and the other accepted. One side's word alone
waits. Mail is delivered at least once: a poll hands it out again until the client's next request on the same connection shows
that the reply arrived.
"""

from __future__ import annotations

from typing import Any

from pilot.registry import fields, texts
from pilot.registry.core import Peer, Registry
from pilot.registry.fields import Refused, Request
from pilot.registry.state import (
    ACCEPTED,
    INBOX_MAX,
    PENDING_MAX,
    REQUEST_TTL_S,
    HandshakeRequest,
    HandshakeResponse,
)

JUSTIFICATION_MAX = 1024  # bytes
DELIVERIES_MAX = 3  # a client that hangs up after each poll gets its mail so often


def report_trust(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """`node_id` stands for its pair with `peer_id`."""
    node = reg.known(fields.number(request, "node_id"))
    other = fields.number(request, "peer_id")
    reg.require_signature(peer, node, texts.of_pair("report_trust", node.id, other), request)
    _vouch(reg, node.id, reg.known(other).id)
    return {}


def _vouch(reg: Registry, node: int, other: int) -> None:
    if node == other:
        raise Refused("invalid peer_id: a node cannot trust itself")
    if reg.state.trusted(node, other) or reg.state.reported(node, other):
        return
    if reg.state.pending_reports(node) >= PENDING_MAX and not reg.state.reported(other, node):
        raise Refused("too many trust reports that no peer has confirmed")
    reg.state.add_trust(node, other)


def revoke_trust(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Either side ends a pair, also one that waits for the other's word."""
    node = reg.known(fields.number(request, "node_id"))
    other = fields.number(request, "peer_id")
    reg.require_signature(peer, node, texts.of_pair("revoke_trust", node.id, other), request)
    reg.state.drop_response(node.id, other)
    reg.state.drop_response(other, node.id)
    if not reg.state.drop_trust(node.id, other):
        raise Refused(f"no trust pair between {node.id} and {other}")
    return {}


def request_handshake(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Leaves a request for trust in the target's inbox."""
    sender = reg.known(fields.number(request, "from_node_id"))
    target_id = fields.number(request, "to_node_id")
    reg.require_signature(
        peer, sender, texts.handshake(sender.id, target_id), request,
        "handshake request requires signature", "handshake request signature verification failed",
    )  # fmt: skip
    target = reg.known(target_id)
    if target is sender:
        raise Refused("invalid to_node_id: a node cannot shake its own hand")
    justification = fields.text(request, "justification")
    if len(justification.encode()) > JUSTIFICATION_MAX:
        raise Refused(f"justification too long (max {JUSTIFICATION_MAX} bytes)")
    box = reg.state.requests.get(target.id, {})
    if sender.id in box and _unseen(reg, box[sender.id]):
        raise Refused(f"handshake request already pending from node {sender.id}")
    if sum(_unseen(reg, waiting) for waiting in box.values()) >= INBOX_MAX:
        raise Refused(f"handshake inbox full for node {target.id}")
    answer = reg.state.responses.get(sender.id, {}).get(target.id)
    if answer is not None and not answer.accept:
        reg.state.drop_response(sender.id, target.id)
    reg.state.put_request(HandshakeRequest(target.id, sender.id, justification, reg.now_unix()))
    reg.on_mail(target.id)
    return {"status": "delivered"}


def _unseen(reg: Registry, request: HandshakeRequest) -> bool:
    return not request.polled and request.deliveries == 0 and _valid(reg, request)


def _valid(reg: Registry, request: HandshakeRequest) -> bool:
    return reg.wall() - request.time <= REQUEST_TTL_S


def poll_handshakes(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Hands out what waits for the node; the reply stays below the size of a frame, the rest comes with the next poll."""
    node = reg.known(fields.number(request, "node_id"))
    reg.require_signature(peer, node, texts.of_node("poll_handshakes", node.id), request)
    requests: list[HandshakeRequest] = []
    for mail in list(reg.state.requests.get(node.id, {}).values()):
        if not _valid(reg, mail):
            reg.state.drop_request(mail.target, mail.sender)
        elif not mail.polled and len(requests) < INBOX_MAX:
            requests.append(mail)
            mail.deliveries += 1
            if mail.deliveries >= DELIVERIES_MAX:
                mail.polled = True
                reg.store.request(mail)
    responses = list(reg.state.responses.get(node.id, {}).values())
    for answer in responses:
        answer.deliveries += 1
        if answer.deliveries >= DELIVERIES_MAX:
            reg.state.drop_response(answer.target, answer.sender)
    peer.unconfirmed = [*requests, *responses]
    return {
        "requests": [{"from_node_id": m.sender, "justification": m.justification, "timestamp": m.time} for m in requests],
        "responses": [{"from_node_id": m.sender, "accept": m.accept, "timestamp": m.time} for m in responses],
    }


def respond_handshake(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Answers a request. Without one there is nobody to answer; an accept then is the responder's word alone."""
    node = reg.known(fields.number(request, "node_id"))
    other_id = fields.number(request, "peer_id")
    reg.require_signature(
        peer, node, texts.respond(node.id, other_id), request,
        "handshake response requires signature", "handshake response signature verification failed",
    )  # fmt: skip
    other = reg.known(other_id)
    accept = fields.flag(request, "accept")
    asked = reg.state.requests.get(node.id, {}).get(other.id)
    if asked is not None and _valid(reg, asked):
        if accept:
            reg.state.add_trust(node.id, other.id, ACCEPTED)
        reg.state.put_response(HandshakeResponse(other.id, node.id, accept, reg.now_unix()))
        reg.state.drop_request(node.id, other.id)
        reg.on_mail(other.id)
    elif accept:
        _vouch(reg, node.id, other.id)
    return {"accept": accept, "peer_id": other.id}
