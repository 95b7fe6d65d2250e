"""network and broadcast (cli.md sections 5 and 6).

The daemon does what a member may; making and removing networks is a call to the registry with the operator's token.
"""

from __future__ import annotations

import os
from typing import Any

from pilot.cli.args import parse_number, usage
from pilot.cli.lookup import ask
from pilot.cli.output import number, rows, table
from pilot.cli.session import Session
from pilot.errors import PilotError

BROADCAST_PORT = 1000


def _network(s: Session) -> int:
    return parse_number(s.args.need("network")[0], "network", 0, 65535)


def list_networks(s: Session) -> None:
    """Networks of the registry."""
    reply = s.client.network_list()
    found = rows(reply, "networks")
    lines = [
        (str(int(number(n.get("id")))), str(n.get("name", "")), str(n.get("join_rule", "")), str(int(number(n.get("members")))))
        for n in found
    ]
    s.out.done(reply, table(("ID      ", "NAME", "JOIN RULE", "MEMBERS"), lines) if found else "no networks")


def join(s: Session) -> None:
    """Joins a network."""
    network = _network(s)
    reply = s.client.network_join(network, s.args.text("token"))
    s.out.done(reply, f"joined network {network}")


def leave(s: Session) -> None:
    """Leaves a network."""
    network = _network(s)
    s.out.done(s.client.network_leave(network), f"left network {network}")


def members(s: Session) -> None:
    """Nodes of a network."""
    reply = s.client.network_members(_network(s))
    found = rows(reply, "nodes", "members")
    lines = [(str(int(number(n.get("node_id")))), str(n.get("address", "")), str(n.get("hostname") or "-")) for n in found]
    s.out.done(reply, table(("NODE ID", "ADDRESS", "HOSTNAME"), lines) if found else "no members")


def invite(s: Session) -> None:
    """Invites a node."""
    _, peer = s.args.need("network", "target")
    network, node = _network(s), s.target(peer).address.node
    s.out.done(s.client.network_invite(network, node), f"invited node {node} to network {network}")


def invites(s: Session) -> None:
    """Invitations for this node."""
    reply = s.client.network_poll_invites()
    found = rows(reply, "invites")
    lines = [(str(int(number(i.get("network_id")))), str(int(number(i.get("inviter_id"))))) for i in found]
    s.out.done(reply, table(("NETWORK", "INVITED BY"), lines) if found else "no invitations")


def accept(s: Session) -> None:
    """Accepts an invitation."""
    network = _network(s)
    s.out.done(s.client.network_respond_invite(network, True), f"joined network {network}")


def reject(s: Session) -> None:
    """Declines an invitation."""
    network = _network(s)
    s.out.done(s.client.network_respond_invite(network, False), f"declined the invitation to network {network}")


def create(s: Session) -> None:
    """Makes a network that this node owns."""
    if not s.args.text("name"):
        raise usage("missing flag: --name <name>")
    token = s.args.text("token")
    reply = _operate(
        s, "create_network", node_id=s.client.info().get("node_id"), name=s.args.text("name"), token=token,
        join_rule=s.args.text("join-rule", "token" if token else "open"),
    )  # fmt: skip
    s.out.done(reply, f"network {reply.get('network_id')} created: {s.args.text('name')}")


def rename(s: Session) -> None:
    """Gives a network another name."""
    _, name = s.args.need("network", "name")
    reply = _operate(s, "rename_network", network_id=_network(s), name=name)
    s.out.done(reply, f"network {reply.get('network_id')} renamed: {name}")


def delete(s: Session) -> None:
    """Removes a network with all memberships."""
    reply = _operate(s, "delete_network", network_id=_network(s))
    s.out.done(reply, f"network {reply.get('network_id')} deleted")


def broadcast(s: Session) -> None:
    """One datagram to each member of a network."""
    _, message = s.args.need("network", "message")
    network, data = _network(s), os.fsencode(message)
    port = parse_number(s.args.text("port", str(BROADCAST_PORT)), "flag --port", 0, 65535)
    s.client.broadcast(network, port, data, _admin_token(s))
    s.out.done(
        {"network_id": network, "port": port, "bytes": len(data)},
        f"broadcast on network {network} port {port} ({len(data)} bytes)",
    )


def _admin_token(s: Session) -> str:
    token = s.args.text("admin-token") or os.environ.get("PILOT_ADMIN_TOKEN", "") or str(s.settings.config.get("admin_token", ""))
    if not token:
        raise PilotError("auth_required", "this needs the operator's token", "set PILOT_ADMIN_TOKEN, or give --admin-token")
    return token


def _operate(s: Session, command: str, **fields: Any) -> dict[str, Any]:
    """A command of the registry that takes the operator's token."""
    request = {"type": command, "admin_token": _admin_token(s), **fields}
    return ask(s.settings.registry or str(s.client.info().get("registry_addr", "")), request)
