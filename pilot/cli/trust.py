"""handshake, approve, reject, untrust, pending, trust (cli.md section 4)."""

from __future__ import annotations

from contextlib import suppress

from pilot.cli.output import clean, moment, number, rows, table
from pilot.cli.session import Session
from pilot.errors import PilotError
from pilot.wire.address import parse, parse_node


def handshake(s: Session) -> None:
    """Asks a node for trust."""
    s.args.need("target")
    typed = s.args.at(0)
    node = s.target(typed).address.node
    reply = s.client.handshake(node, " ".join(s.args.positional[1:]))
    s.out.done({"node_id": node, "status": str(reply.get("status", "sent"))}, "Handshake sent...")
    own = ""
    with suppress(PilotError):
        own = str(s.client.info().get("address", ""))
    s.out.note(f"  they must approve: pilotctl approve {own}".rstrip())
    s.out.note("  check with: pilotctl trust")


def approve(s: Session) -> None:
    """Grants the trust a node asked for. A daemon says yes to nodes that never asked, so the outcome is checked."""
    s.args.need("target")
    node = s.waiting_node(s.args.at(0))
    s.client.approve_handshake(node)
    if all(row.get("node_id") != node for row in rows(s.client.trusted_peers(), "trusted", "peers")):
        raise PilotError("not_found", f"node {node} has not asked for trust", "pilotctl pending lists who has")
    s.out.done({"node_id": node, "status": "approved"}, "Trust established")


def reject(s: Session) -> None:
    """Refuses trust."""
    s.args.need("target")
    node = s.waiting_node(s.args.at(0))
    s.client.reject_handshake(node, " ".join(s.args.positional[1:]))
    s.out.done({"node_id": node, "status": "rejected"}, f"handshake from node {node} rejected")


def untrust(s: Session) -> None:
    """Ends trust."""
    s.args.need("target")
    node = s.target(s.args.at(0)).address.node
    s.client.revoke_trust(node)
    s.out.done({"node_id": node}, f"trust revoked for node {node}")


def pending(s: Session) -> None:
    """Who asks for trust."""
    reply = s.client.pending_handshakes()
    waiting, dropped = rows(reply, "pending"), number(reply.get("dropped"))
    if not waiting:
        s.out.done({"pending": []}, "no pending handshake requests")
        s.out.note("  nodes ask with: pilotctl handshake <this node>")
        return
    lines = [
        (str(int(number(r.get("node_id")))), clean(str(r.get("justification") or ""))[:40], moment(r.get("received_at")))
        for r in waiting
    ]
    shown = table(("NODE ID   ", "JUSTIFICATION".ljust(40), "RECEIVED"), lines)
    s.out.done({"pending": waiting, "dropped": dropped} if dropped else {"pending": waiting}, shown)
    if dropped:
        s.out.note(f"  {int(dropped)} more found the list full: answer some of these, the others may ask again")


def trusted(s: Session) -> None:
    """Whom this node trusts."""
    peers = rows(s.client.trusted_peers(), "trusted", "peers")
    wanted = s.args.text("search")
    if wanted:
        address = parse(wanted)
        node = address.node if address else parse_node(wanted)
        peers = [
            p for p in peers if p.get("node_id") == node
            or any(wanted.lower() in str(p.get(k, "")).lower() for k in ("node_id", "public_key", "hostname"))
        ]  # fmt: skip
    total = len(peers)
    if "limit" in s.args.flags:
        peers = peers[: s.args.count("limit", total)]
    data = {"trusted": peers, "total": total}
    if not peers:
        s.out.done(data, "no trusted peers")
        s.out.note('  ask a node with: pilotctl handshake <target> "reason"')
        return
    lines = [
        (
            str(int(number(p.get("node_id")))),
            "yes" if p.get("mutual") is True else "no",
            str(p.get("network") or "-"),
            moment(p.get("approved_at")),
        )
        for p in peers
    ]
    s.out.done(data, table(("NODE ID   ", "MUTUAL    ", "NETWORK   ", "APPROVED AT"), lines))
