"""Info and Health: what the node says about itself (ipc.md section 3, docs/wire-extensions.md section 4)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from pilot import __version__
from pilot.traversal.nat import NatType, show
from pilot.wire.address import Address

if TYPE_CHECKING:
    from pilot.daemon.node import Node

Json = dict[str, Any]

FEATURES = ["dgram_confirm"]  # of those 1.18.0 knows; `reply_window`, `key_request`, ... would be untrue
LIST_BYTES = 480 << 10  # each of the two lists: both and the rest stay below 1 MiB - 64
OPEN_STATES = ("ESTABLISHED", "SYN_SENT", "SYN_RECV")

NAT_NAMES = {
    NatType.UNKNOWN: "unknown",
    NatType.OPEN: "none (open internet or local network)",
    NatType.FULL_CONE: "full_cone",
    NatType.RESTRICTED_CONE: "restricted_cone",
    NatType.PORT_RESTRICTED_CONE: "port_restricted_cone",
    NatType.SYMMETRIC: "symmetric",
    NatType.BLOCKED: "UDP blocked",
}


def endpoint_lines(node: Node) -> list[str]:
    """What a user reads about the own endpoint, and `NAT type: ...` behind it if that can be known."""
    endpoint = node.traversal.endpoint
    if node.compat.active:
        return [f"STUN: no UDP gets out, the beacon is reached at {node.compat.url}", nat_line(node)]
    if node.config.relay_only:
        return ["Endpoint hidden (relay only)"]
    if node.config.endpoint:
        return ["Registered with fixed endpoint (STUN skipped)"]
    if endpoint is None:
        return ["STUN: no beacon answered, the public endpoint is not known"]
    return [f"STUN: discovered public endpoint {show(endpoint)}", nat_line(node)]


def nat_line(node: Node) -> str:
    """`NAT type: ...`, with what kept us from knowing more."""
    nat = node.traversal.nat_type
    if nat is NatType.UNKNOWN:
        return "NAT type: unknown (needs a second observer)"
    return f"NAT type: {NAT_NAMES[nat]}"


def registered_line(node: Node) -> str:
    """`Registered as home-agent-1 (1:0001.0000.0008)`."""
    reg = node.registration
    return f"Registered as {reg.hostname} ({reg.address})" if reg.hostname else f"Registered as {reg.address}"


def info(node: Node) -> Json:
    """The reply object of Info."""
    stats, peers, conns = node.plane.stats(), _peers(node), node.plane.conns()
    reg, endpoint = node.registration, node.traversal.endpoint
    peer_list, peers_cut = _fit(_peer_row(node, p) for p in peers)
    conn_list, conns_cut = _fit(_conn_row(c) for c in conns)
    out: Json = {
        "node_id": node.node_id,
        "address": str(reg.address),
        "hostname": reg.hostname,
        "uptime_secs": int(time.monotonic() - node.started_at),
        "ports": stats["ports"],
        "encrypt": True,
        "identity": node.config.identity is not None,
        "public_key": node.identity.public_text,
        "owner": node.config.email,
        "email": node.config.email,
        "pkts_sent": stats["pkts_sent"],
        "pkts_recv": stats["pkts_recv"],
        "peer_list": peer_list,
        "conn_list": conn_list,
        "endpoint": show(endpoint) if endpoint else "",
        "version": __version__,
        "features": FEATURES,
        "transport": "compat" if node.compat.active else "udp",
        "networks": list(reg.networks),
        "tunnel_encryption_success": stats["opened_ok"],
        "tunnel_encryption_failure": stats["opened_fail"],
        "motd": "",
        "startup": [*endpoint_lines(node), registered_line(node)],
        "stun": endpoint is not None and node.config.endpoint is None,
        "nat_type": node.traversal.nat_type.value,
        "public": reg.public,
        "registered": reg.registered,
        "registry_ok": reg.reachable,
        "registry_addr": show(node.config.registry),
        "socket": str(node.config.socket or ""),
        "identity_path": str(node.config.identity or ""),
        "pid": os.getpid(),
        **_common(node, stats, peers, conns),
    }
    if peers_cut:
        out["peer_list_truncated"] = True
    if conns_cut:
        out["conn_list_truncated"] = True
    return out


def health(node: Node) -> Json:
    """The reply object of Health: counters only, the registry is not asked."""
    stats, peers, conns = node.plane.stats(), _peers(node), node.plane.conns()
    return {
        "status": "ok",
        "uptime_seconds": int(time.monotonic() - node.started_at),
        "registered": node.registration.registered,
        "registry_ok": node.registration.reachable,
        **_common(node, stats, peers, conns),
    }


def _common(node: Node, stats: dict[str, int], peers: list[Json], conns: list[Json]) -> Json:
    """The fields that Info and Health share."""
    return {
        "connections": sum(c["state"] in OPEN_STATES for c in conns),
        "peers": len(peers),
        "encrypted_peers": sum(p["session"] for p in peers),
        "authenticated_peers": sum(p["session"] and p["proved"] for p in peers),
        "relay_peer_count": sum(p["has_path"] and p["relay"] for p in peers),
        "handshake_pending_count": len(node.trust.store.pending),
        "handshake_dropped_count": node.trust.pending_dropped,
        "bytes_sent": stats["bytes_sent"],
        "bytes_recv": stats["bytes_recv"],
        "accept_queue_drops": stats["accept_queue_drops"],
        "webhook_queue_dropped": node.webhook.stats.dropped,
        "webhook_circuit_skips": node.webhook.stats.skipped,
        "beacon_addr": next((b["addr"] for b in node.traversal.beacons()), ""),
    }


def _peers(node: Node) -> list[Json]:
    """Peers with a tunnel; those that are only trusted are not counted."""
    return [p for p in node.plane.peers() if p["session"] or p["has_path"]]


def _peer_row(node: Node, peer: Json) -> Json:
    machine = node.traversal.paths.machine(peer["node"])
    way = machine.active if machine else None
    row = {
        "node_id": peer["node"],
        "endpoint": show(peer["path"]) if peer["has_path"] and peer["path"] else "",
        "encrypted": peer["session"],
        "authenticated": peer["session"] and peer["proved"],
        "relay": peer["has_path"] and peer["relay"],
        "path": machine.kind if machine else "",
        "rtt_ms": round(way.srtt * 1e3, 3) if way and way.srtt is not None else None,
    }
    return row | {"era": 1} if peer["era"] == 1 else row


def _conn_row(conn: Json) -> Json:
    return {
        "id": conn["id"],
        "local_port": conn["local_port"],
        "remote_addr": str(Address(conn["remote_net"], conn["node"])),
        "remote_port": conn["remote_port"],
        "state": conn["state"],
        "cong_win": conn["cwnd"],
        "ssthresh": conn["ssthresh"],
        "in_flight": conn["in_flight"],
        "srtt_ms": conn["srtt_ns"] // 1_000_000,
        "rttvar_ms": conn["rttvar_ns"] // 1_000_000,
        "unacked": conn["unacked_segs"],
        "ooo_buf": conn["ooo_segs"],
        "peer_recv_win": conn["peer_window"],
        "recv_win": conn["local_window"],
        "in_recovery": conn["in_recovery"],
        "bytes_sent": conn["bytes_sent"],
        "bytes_recv": conn["bytes_recv"],
        "segs_sent": conn["segs_sent"],
        "segs_recv": conn["segs_recv"],
        "retransmits": conn["retransmits"],
        "fast_retx": conn["fast_retx"],
        "sack_recv": conn["sack_recv"],
        "sack_sent": conn["sack_sent"],
        "dup_acks": conn["dup_acks"],
        "mss": conn["mss"],
    }


def _fit(rows: Iterable[Json]) -> tuple[list[msgspec.Raw], bool]:
    """Encoded rows that fit LIST_BYTES, and whether some did not."""
    out: list[msgspec.Raw] = []
    room = LIST_BYTES
    for row in rows:
        text = msgspec.json.encode(row)
        room -= len(text) + 1
        if room < 0:
            return out, True
        out.append(msgspec.Raw(text))
    return out, False
