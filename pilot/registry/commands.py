"""The table of commands. `stores`: a success means that the change is on disk (or was before), so its reply waits for that."""

from __future__ import annotations

from dataclasses import dataclass

from pilot.registry import ops_attributes, ops_directory, ops_networks, ops_nodes, ops_trust
from pilot.registry.core import Command


@dataclass(frozen=True, slots=True)
class Entry:
    """One command."""

    run: Command
    stores: bool = False


COMMANDS: dict[str, Entry] = {
    "register": Entry(ops_nodes.register, stores=True),
    "heartbeat": Entry(ops_nodes.heartbeat),
    "announce_key": Entry(ops_nodes.announce_key),
    "deregister": Entry(ops_nodes.deregister, stores=True),
    "rotate_key": Entry(ops_nodes.rotate_key, stores=True),
    "get_key_info": Entry(ops_nodes.get_key_info),
    "lookup": Entry(ops_directory.lookup),
    "resolve": Entry(ops_directory.resolve),
    "punch": Entry(ops_directory.punch),
    "resolve_hostname": Entry(ops_directory.resolve_hostname),
    "check_trust": Entry(ops_directory.check_trust),
    "beacon_register": Entry(ops_directory.beacon_register),
    "beacon_list": Entry(ops_directory.beacon_list),
    "list_networks": Entry(ops_networks.list_networks),
    "list_nodes": Entry(ops_networks.list_nodes),
    "create_network": Entry(ops_networks.create_network, stores=True),
    "join_network": Entry(ops_networks.join_network, stores=True),
    "leave_network": Entry(ops_networks.leave_network, stores=True),
    "delete_network": Entry(ops_networks.delete_network, stores=True),
    "rename_network": Entry(ops_networks.rename_network, stores=True),
    "get_member_role": Entry(ops_networks.get_member_role),
    "poll_invites": Entry(ops_networks.poll_invites),
    "set_visibility": Entry(ops_attributes.set_visibility, stores=True),
    "set_hostname": Entry(ops_attributes.set_hostname, stores=True),
    "set_tags": Entry(ops_attributes.set_tags, stores=True),
    "set_task_exec": Entry(ops_attributes.set_task_exec, stores=True),
    "get_polo_score": Entry(ops_attributes.get_polo_score),
    "set_polo_score": Entry(ops_attributes.set_polo_score, stores=True),
    "update_polo_score": Entry(ops_attributes.update_polo_score, stores=True),
    "report_trust": Entry(ops_trust.report_trust, stores=True),
    "revoke_trust": Entry(ops_trust.revoke_trust, stores=True),
    "request_handshake": Entry(ops_trust.request_handshake, stores=True),
    "poll_handshakes": Entry(ops_trust.poll_handshakes),
    "respond_handshake": Entry(ops_trust.respond_handshake, stores=True),
}
