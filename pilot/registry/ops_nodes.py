"""Commands of a node about itself: register, heartbeat, announce_key, deregister, rotate_key, get_key_info (registry.md 4, 5).

Registration needs no signature in the first releases, so what an unsigned one may do is limited: it creates nodes, brings a node
back, changes the port at the address it already has. An address it moves a live node to counts only after a signed heartbeat on
the same connection, which the daemon of that key sends within seconds. A key that has signed once must sign from then on.
"""

from __future__ import annotations

import re
from typing import Any

from pilot.registry import endpoint, fields, texts
from pilot.registry.core import MISSIGNED, UNSIGNED, Claim, Peer, Registry, key_text, rfc3339
from pilot.registry.fields import Refused, Request
from pilot.registry.state import Node
from pilot.wire.frames import parse_pila

OWNER_MAX = 256  # characters
MAX_PILA = 512  # bytes; with the records of today 231
_VERSION = re.compile(r"[A-Za-z0-9.+_-]{1,32}")
PROTOCOL_VERSION = 1


def register(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """A node, new or known, says where it is."""
    limited = not reg.registrations.take_all(endpoint.ip_groups(peer.ip), reg.clock())
    sent_key = fields.text(request, "public_key")
    if not sent_key:
        raise Refused("registration requires public_key")
    key = fields.public_key(sent_key, "invalid public key")
    owner = fields.text(request, "owner")
    if len(owner) > OWNER_MAX:
        raise Refused(f"owner too long (max {OWNER_MAX} chars)")
    listen_addr = fields.text(request, "listen_addr")
    signed = bool(fields.text(request, "signature"))
    if signed and not reg.fits_key(key, texts.register(listen_addr, sent_key), request):
        raise Refused(MISSIGNED)

    node = reg.state.by_key.get(key)
    new = node is None
    if node is None:
        if limited:
            raise Refused(f"rate limited: too many registrations from {peer.ip}")
        node = _create(reg, key, owner, request)
    if signed:
        peer.prove(node)
    neighbour = node.online and node.ip == peer.ip and not node.signs_register
    entitled = new or neighbour or peer.speaks_for(node)
    changed = new or (signed and not node.signs_register)
    node.signs_register |= signed
    if owner and node.owner is None and entitled:
        digest = reg.keyed_hash(owner)
        if digest not in reg.state.by_owner:
            reg.state.set_owner(node, digest)
            changed = True
    observed = endpoint.observed(peer.ip, peer.port, listen_addr, reg.config.believed)
    changed |= _settle(reg, peer, node, observed, request, signed)
    reply = {
        "node_id": node.id,
        "network_id": reg.network,
        "address": reg.address(node),
        "public_key": sent_key,
        "observed_addr": observed,
        "protocol_version": PROTOCOL_VERSION,
        "announce_key": True,
    }
    name = fields.text(request, "hostname")
    if name:
        fault = _name_fault(reg, node, name, entitled and (new or not node.hostname or peer.speaks_for(node)))
        if fault:
            reply["hostname_error"] = fault
        elif name != node.hostname:
            reg.state.set_hostname(node, name)
            changed = True
    if node.hostname and "hostname_error" not in reply:
        reply["hostname"] = node.hostname
    if changed:
        reg.state.save(node)
    return reply


def _create(reg: Registry, key: bytes, owner: str, request: Request) -> Node:
    bound = reg.state.by_owner.get(reg.keyed_hash(owner)) if owner else None
    if bound is not None:
        # The first releases gave the owner's node to whoever named the owner. Here that takes the operator.
        if reg.holds(bound) or not reg.is_admin(request):
            raise Refused(f'owner "{owner}" is already bound to a node with a different key')
        reg.state.set_key(bound, key, reg.now_unix(), same_holder=False)
        return bound
    if reg.state.next_id > fields.MAX_NODE:
        raise Refused("node ID space exhausted")
    if len(reg.state.nodes) >= reg.config.max_nodes:
        raise Refused("registry full")
    return reg.state.create(key, reg.now_unix())


def _settle(reg: Registry, peer: Peer, node: Node, observed: str, request: Request, signed: bool) -> bool:
    """Decides whether the endpoint is believed. True if the node must be stored."""
    claim = Claim(
        node.id, observed, endpoint.lan_addrs(fields.strings(request, "lan_addrs")), fields.flag(request, "relay_only"),
        _version(fields.text(request, "version")),
    )  # fmt: skip
    peer.claim = None
    same = node.online and (node.endpoint, node.ip) == (observed, peer.ip)
    if node.signs_register and not signed:
        if not same:
            raise Refused(UNSIGNED)
        return False
    if node.online and node.ip != peer.ip and not peer.speaks_for(node):
        peer.claim = claim
        return False
    return _move(reg, peer, node, claim)


def _version(sent: str) -> str:
    """A version as daemons write them, "" for anything else: everybody who looks the node up gets to read it."""
    return sent if _VERSION.fullmatch(sent) else ""


def _move(reg: Registry, peer: Peer, node: Node, claim: Claim) -> bool:
    node.endpoint, node.lan_addrs = claim.endpoint, claim.lan_addrs
    node.relay_only, node.version = claim.relay_only, claim.version
    node.tunnel_key = b""  # perhaps of a former process
    return reg.arrive(node, peer.ip)


def _name_fault(reg: Registry, node: Node, name: str, entitled: bool) -> str:
    fault = fields.hostname_fault(name)
    holder = reg.state.by_name.get(name)
    if fault or holder is node:
        return fault
    if holder is not None and reg.holds(holder):
        return f'hostname "{name}" already in use'
    return "" if entitled else "signature required to set the hostname"


def heartbeat(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """A sign of life. The daemons register again when they read one of its two errors."""
    node = reg.online(fields.number(request, "node_id"))
    reg.require_signature(peer, node, texts.of_node("heartbeat", node.id), request)
    if peer.claim is not None and peer.claim.node == node.id:
        claim, peer.claim = peer.claim, None
        _move(reg, peer, node, claim)
    reg.state.alive(node, reg.clock())
    return {"time": reg.now_unix()}


def announce_key(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The PILA by which the node answers those who want a session (docs/wire-extensions.md 9): `resolve` tells it. Not stored."""
    node = reg.online(fields.number(request, "node_id"))
    reg.require_signature(peer, node, texts.of_node("announce_key", node.id), request)
    try:
        sent = fields.decode_base64(fields.text(request, "tunnel_key"))
    except ValueError as error:
        raise Refused(f"invalid tunnel_key: {error}") from None
    pila = parse_pila(sent[:MAX_PILA])
    if pila is None or len(sent) > MAX_PILA or pila.node != node.id or pila.ed25519 != node.key or not pila.verify():
        raise Refused("invalid tunnel_key: no PILA of this node")
    node.tunnel_key = sent
    return {}


def deregister(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The node goes offline; what is known about it stays. Not there already: nothing to do, no signature needed."""
    node = reg.state.nodes.get(fields.number(request, "node_id"))
    if node is not None and reg.holds(node):
        reg.require_signature_or_admin(peer, node, texts.of_node("deregister", node.id), request)
        reg.depart(node)
    return {}


def rotate_key(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """The old key's holder installs a new one."""
    node = reg.known(fields.number(request, "node_id"))
    if not fields.text(request, "signature"):
        raise Refused("rotate_key requires a valid signature")
    sent_key = fields.text(request, "new_public_key")
    if not sent_key:
        raise Refused("rotate_key requires new_public_key")
    key = fields.public_key(sent_key, "invalid new_public_key")
    bound = texts.rotate(node.id, sent_key)
    repeated = key == node.key and node.previous_key is not None and reg.fits_key(node.previous_key, bound, request)
    if not repeated:
        fits = reg.fits(node, bound, request)
        if not fits and not (reg.config.short_rotate and reg.fits(node, texts.rotate_unbound(node.id), request)):
            raise Refused(MISSIGNED)
        holder = reg.state.by_key.get(key)
        if holder is None:
            reg.state.set_key(node, key, reg.now_unix(), same_holder=True)
        elif holder is not node:
            raise Refused("invalid new_public_key: already in use by another node")
    return {"node_id": node.id, "address": reg.address(node), "public_key": key_text(node)}


def get_key_info(reg: Registry, peer: Peer, request: Request) -> dict[str, Any]:
    """Age and rotations of a node's key."""
    node = reg.known(fields.number(request, "node_id"))
    reply: dict[str, Any] = {
        "node_id": node.id,
        "created_at": rfc3339(node.key_created),
        "rotate_count": node.rotations,
        "key_age_days": key_age_days(reg, node),
    }
    if node.key_rotated:
        reply["rotated_at"] = rfc3339(node.key_rotated)
    return reply


def key_age_days(reg: Registry, node: Node) -> int:
    """Whole days since the node's present key came into use."""
    return max(0, reg.now_unix() - max(node.key_created, node.key_rotated)) // 86400
