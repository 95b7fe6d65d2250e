"""The texts that are signed, by command (registry.md section 3). Client and server take them from here."""

from __future__ import annotations


def register(listen_addr: str, public_key: str) -> str:
    """Both as sent: the key in base64."""
    return f"register:{listen_addr}:{public_key}"


def of_node(command: str, node: int) -> str:
    """heartbeat, deregister, poll_handshakes, poll_invites, set_visibility, set_hostname, set_tags, set_task_exec."""
    return f"{command}:{node}"


def of_pair(command: str, node: int, other: int) -> str:
    """resolve (requester, target), report_trust, revoke_trust, punch (node_a, node_b), join_network and leave_network
    (node, network)."""
    return f"{command}:{node}:{other}"


def handshake(sender: int, target: int) -> str:
    """request_handshake."""
    return f"handshake:{sender}:{target}"


def respond(responder: int, requester: int) -> str:
    """respond_handshake."""
    return f"respond:{responder}:{requester}"


def rotate(node: int, new_public_key: str) -> str:
    """rotate_key, bound to the new key (base64 as sent)."""
    return f"rotate:{node}:{new_public_key}"


def rotate_unbound(node: int) -> str:
    """rotate_key of the first releases. Whoever sees it once can install any key."""
    return f"rotate:{node}"
