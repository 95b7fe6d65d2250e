"""info, health, peers, connections, disconnect (cli.md section 6)."""

from __future__ import annotations

from typing import Any

from pilot.cli.args import parse_number
from pilot.cli.output import clean, clock, millis, number, rows, size, table
from pilot.cli.session import Session

MAX_ROWS = 50


def _whole(row: dict[str, Any], key: str) -> str:
    return str(int(number(row.get(key))))


def _word(row: dict[str, Any], key: str) -> str:
    return clean(str(row.get(key) or ""))


def info(s: Session) -> None:
    """State of this node."""
    i = s.client.info()
    lines = ["Pilot Protocol Daemon"]

    def add(name: str, value: str) -> None:
        if value:
            lines.append(f"  {name + ':':<13}{value}")

    add("Version", _word(i, "version"))
    add("Node ID", _whole(i, "node_id"))
    add("Address", _word(i, "address"))
    add("Hostname", _word(i, "hostname"))
    if "public" in i:
        add("Visible", "public" if i["public"] is True else "private")
    add("Endpoint", _word(i, "endpoint"))
    add("NAT type", _word(i, "nat_type"))
    if i.get("registry_ok") is False:
        add("Registry", f"{_word(i, 'registry_addr')} does not answer")
    add("Uptime", clock(i.get("uptime_secs")))
    add("Connections", _whole(i, "connections"))
    add("Ports", _whole(i, "ports"))
    add("Peers", _whole(i, "peers"))
    encrypted = f"{_whole(i, 'encrypted_peers')}/{_whole(i, 'peers')} peers encrypted"
    state = f"enabled (X25519 + AES-256-GCM), {encrypted}, {_whole(i, 'authenticated_peers')} authenticated"
    add("Encryption", "disabled" if i.get("encrypt") is False else state)
    key = _word(i, "public_key")[:16]
    add("Identity", f"persistent (Ed25519 {key}...)" if i.get("identity") is True else "ephemeral (not persisted)")
    add("Owner", _word(i, "owner") or _word(i, "email"))
    add("Traffic", f"{size(number(i.get('bytes_sent')))} sent / {size(number(i.get('bytes_recv')))} recv")
    add("Packets", f"{_whole(i, 'pkts_sent')} sent / {_whole(i, 'pkts_recv')} recv")
    streams = [row for row in rows(i, "conn_list") if row.get("state") not in ("TIME_WAIT", "CLOSED")]
    if streams:
        lines += ["", f"Active connections: {len(streams)}", _streams(streams, counters=False)]
    s.out.done(i, "\n".join(lines))


def health(s: Session) -> None:
    """Counters of the daemon; the registry is not asked."""
    h = s.client.health()
    lines = [
        f"● pilot-daemon {_word(h, 'status') or 'unknown'}",
        f"  uptime {clock(h.get('uptime_seconds'))} · {_whole(h, 'connections')} connection(s)",
        f"  peers     {_whole(h, 'peers')} ({_whole(h, 'encrypted_peers')} encrypted, "
        f"{_whole(h, 'relay_peer_count')} via relay)",
        f"  traffic   ↑ {size(number(h.get('bytes_sent')))}  ↓ {size(number(h.get('bytes_recv')))}",
    ]
    s.out.done(h, "\n".join(lines))


def peers(s: Session) -> None:
    """Nodes with a tunnel."""
    found = rows(s.client.info(), "peer_list")
    wanted = s.args.text("search")
    found = [p for p in found if wanted in str(p.get("node_id")) or wanted in str(p.get("endpoint", ""))]
    total, encrypted = len(found), sum(p.get("encrypted") is True for p in found)
    if s.args.text("limit", "0") != "0":
        found = found[: s.args.count("limit", total)]
    data = {"peers": found, "total": total, "encrypted": encrypted}
    if not found:
        s.out.done(data, "no peers")
        return
    lines = [
        (
            _whole(p, "node_id"),
            _word(p, "endpoint") or "-",
            _word(p, "path") or ("relay" if p.get("relay") is True else "-"),
            millis(number(p["rtt_ms"])) if p.get("rtt_ms") is not None else "-",
            ("yes (AES-256-GCM, era 1)" if p.get("era") == 1 else "yes (AES-256-GCM)") if p.get("encrypted") is True else "no",
            "yes (Ed25519)" if p.get("authenticated") is True else "no",
        )
        for p in found
    ]
    s.out.done(data, table(("NODE ID", "ENDPOINT", "PATH", "RTT", "ENCRYPTED", "AUTH"), lines))


def connections(s: Session) -> None:
    """Open streams."""
    found = rows(s.client.info(), "conn_list")
    text = _streams(found, counters=True) if found else "no connections"
    s.out.done({"connections": found, "total": len(found)}, text)


def _streams(found: list[dict[str, Any]], counters: bool) -> str:
    head = ["ID", "LOCAL", "REMOTE ADDR", "RPORT", "STATE", "CWND", "FLIGHT", "SRTT"]
    if counters:
        head += ["UNACK", "OOO", "PEERWIN", "RCVWIN"]
    cells = []
    for row in found[:MAX_ROWS]:
        line = [
            _whole(row, "id"), _whole(row, "local_port"), _word(row, "remote_addr"), _whole(row, "remote_port"),
            _word(row, "state"), size(number(row.get("cong_win"))), size(number(row.get("in_flight"))),
            f"{_whole(row, 'srtt_ms')}ms",
        ]  # fmt: skip
        if counters:
            line += [_whole(row, "unacked"), _whole(row, "ooo_buf")]
            line += [size(number(row.get("peer_recv_win"))), size(number(row.get("recv_win")))]
        cells.append(line)
    lines = table(head, cells).split("\n")
    out = lines[:1]
    for text, row in zip(lines[1:], found, strict=False):
        out.append(text)
        if counters:
            out.append(
                f"    tx: {size(number(row.get('bytes_sent')))} ({_whole(row, 'segs_sent')} segs)  "
                f"rx: {size(number(row.get('bytes_recv')))} ({_whole(row, 'segs_recv')} segs)  "
                f"retx: {_whole(row, 'retransmits')}  fast-retx: {_whole(row, 'fast_retx')}  "
                f"sack: {_whole(row, 'sack_sent')}/{_whole(row, 'sack_recv')}  dup-ack: {_whole(row, 'dup_acks')}"
            )
    if len(found) > MAX_ROWS:
        out.append(f"... and {len(found) - MAX_ROWS} more")
    return "\n".join(out)


def disconnect(s: Session) -> None:
    """Closes a stream by its number."""
    conn_id = parse_number(s.args.need("conn_id")[0], "conn_id", 0, (1 << 32) - 1)
    s.client.disconnect(conn_id)
    s.out.done({"conn_id": conn_id})
