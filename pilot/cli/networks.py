"""network list, join, leave, members (cli.md section 6)."""

from __future__ import annotations

from pilot.cli.args import parse_number
from pilot.cli.output import number, rows, table
from pilot.cli.session import Session


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
