"""`pilot-daemon -dry-run`: what a start would use, without starting (docs/migration.md).

Reads files, asks a daemon that answers on the socket who it is, and asks the registry one question. Writes, locks and
registers nothing.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.daemon import local_socket
from pilot.daemon.config import DaemonConfig
from pilot.daemon.identity import NodeIdentity, peek
from pilot.errors import PilotError
from pilot.registry.blocking import BlockingRegistry
from pilot.trust import TrustStore
from pilot.wire import ipc
from pilot.wire.errors import WireError
from pilot.wire.ipc_requests import Info

ASK_S = 3.0  # for the daemon on the socket, and for the registry
SHOWN = 20  # names of files in a list
MAX_MESSAGE_BYTES = 256 << 20
OWN = ("config.json", "webhook_url", "trust.json", "account.json", "inbox", "received", "pilot.pid", "pilot.log", "start.lock")


@dataclass(slots=True)
class Report:
    """facts: what would be used. notes: what the operator should know. problems: what would keep the node from starting."""

    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def problem(self, error: PilotError) -> None:
        self.problems.append(f"{error.message} ({error.hint})" if error.hint else error.message)

    def to_json(self) -> str:
        return json.dumps({**self.facts, "notes": self.notes, "problems": self.problems, "would_start": not self.problems})

    def to_text(self) -> str:
        """One fact a line, then notes and problems."""
        lines = [f"{name.replace('_', ' ').capitalize() + ':':<12}{_shown(name, value)}" for name, value in self.facts.items()]
        lines += [f"note: {text}" for text in self.notes] + [f"problem: {text}" for text in self.problems]
        return "\n".join([*lines, "Nothing was changed." if not self.problems else "It would not start. Nothing was changed."])


def examine(config: DaemonConfig) -> Report:
    """What `config` would start with."""
    report = Report()
    identity = _identity(config, report)
    running = _running(config, report)
    known = _number(config, report, identity, running)
    report.facts |= {
        "hostname": config.hostname or str(known.get("hostname", "")),
        "public": config.public,
        "email": config.email,
        "socket": str(config.socket or ""),
        "listen": "{}:{}".format(*config.listen),
        "registry": "{}:{}".format(*config.registry),
        "beacon": "{}:{}".format(*config.beacon),
        "transport": config.transport,
        "webhook": config.webhook,
        "networks": list(config.networks),
    }
    if known.get("public") is True and not config.public:
        report.notes.append("the registry shows this node as public; it becomes private (to keep it public: -public)")
    tags = known.get("tags")
    if isinstance(tags, list):
        report.facts["tags"] = [str(tag) for tag in tags]
    _trust(config, report)
    _exchange(config.home, report)
    _left_alone(config, report)
    report.notes += config.ignored
    return report


def _identity(config: DaemonConfig, report: Report) -> NodeIdentity | None:
    facts: dict[str, Any] = {"path": str(config.identity or ""), "state": "not kept", "public_key": ""}
    report.facts["identity"] = facts
    if config.identity is None:
        report.notes.append("without -identity the node gets a new key and address at every start")
        return None
    try:
        identity = peek(config.identity)
    except PilotError as error:
        facts["state"] = "unusable"
        report.problem(error)
        return None
    facts["state"] = "kept" if identity else "new"
    facts["public_key"] = identity.public_text if identity else ""
    if identity is None:
        report.notes.append(f"{config.identity} does not exist: a new identity would be made, with a new address")
    return identity


def _running(config: DaemonConfig, report: Report) -> dict[str, Any]:
    """Info of the daemon that answers on the socket, {} if there is none."""
    if config.socket is None:
        return {}
    try:
        local_socket.ensure_free(config.socket)
        return {}
    except PilotError as error:
        info = _ask_daemon(config.socket) if error.code == "already_exists" else {}
        if not info:
            report.problem(error)
            return {}
    release = str(info.get("version") or "of an early release")[:64]
    report.notes.append(f"a daemon ({release}) answers on {config.socket}: it must be stopped first (pilotctl daemon stop)")
    return info


def _ask_daemon(path: Path) -> dict[str, Any]:
    frames = ipc.FrameReader()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ASK_S)
            sock.connect(str(path))
            sock.sendall(Info().frame())
            while data := sock.recv(1 << 16):
                for code, payload in frames.feed(data):
                    reply = ipc.parse_reply(code, payload)
                    return dict(reply.fields) if isinstance(reply, ipc.JsonReply) else {}
    except (OSError, WireError):
        pass
    return {}


def _number(
    config: DaemonConfig, report: Report, identity: NodeIdentity | None, running: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Node number and address: the registry keeps them by key. Returns its record of the node, {} if it has none to show."""
    known: Mapping[str, Any] = {}
    if identity is not None:
        known = _ask_registry(config, report, identity)
        if not known and running.get("public_key") == identity.public_text:
            known = running
            report.facts["told_by"] = "the running daemon"
    report.facts |= {"node_id": int(known.get("node_id") or 0), "address": str(known.get("address") or "")}
    return known


def _ask_registry(config: DaemonConfig, report: Report, identity: NodeIdentity) -> Mapping[str, Any]:
    trust = config.registry_trust if config.registry_tls else ""
    asked = BlockingRegistry(*config.registry, tls_trust=trust, fingerprint=config.registry_fingerprint, deadline_s=ASK_S)
    try:
        with asked as registry:
            reply = registry.call("lookup", {"public_key": identity.public_text})
    except PilotError as error:
        if error.retryable:
            report.notes.append(f"{error.message}: node number and address are not checked")
        else:
            report.notes.append("the registry does not tell the number of this key; it gives it at the start")
        return {}
    return reply if reply.get("public_key") == identity.public_text else {}


def _trust(config: DaemonConfig, report: Report) -> None:
    facts: dict[str, Any] = {"path": str(config.trust_file or ""), "trusted": [], "pending": [], "revoked": []}
    report.facts["trust"] = facts
    try:
        store = TrustStore.load(config.trust_file)
    except PilotError as error:
        report.problem(error)
        return
    facts |= {"trusted": sorted(store.trusted), "pending": sorted(store.pending), "revoked": sorted(store.revoked)}
    if store.foreign:
        report.notes.append(f"{config.trust_file}: kept but not used: {', '.join(sorted(store.foreign))}")


def _exchange(home: Path, report: Report) -> None:
    messages = [entry for entry in _scan(home / "inbox") if entry.name.endswith(".json")]
    bad = [entry.name for entry in messages if not _readable(entry)]
    files = [entry for entry in _scan(home / "received") if entry.is_file(follow_symlinks=False)]
    report.facts["inbox"] = {"path": str(home / "inbox"), "messages": len(messages), "unreadable": bad[:SHOWN]}
    report.facts["received"] = {
        "path": str(home / "received"),
        "files": len(files),
        "bytes": sum(entry.stat().st_size for entry in files),
        "partial": sum(1 for _ in _scan(home / "received" / ".partial")),
    }
    if bad:
        report.notes.append(f"{len(bad)} messages in {home / 'inbox'} cannot be read; they stay as they are")


def _readable(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.stat().st_size > MAX_MESSAGE_BYTES:
            return False
        with open(entry.path, "rb") as f:
            return isinstance(json.loads(f.read()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def _left_alone(config: DaemonConfig, report: Report) -> None:
    """What in the state directory belongs to other programs or makes."""
    own = {*OWN, *(f"{config.identity.name}{kind}" for kind in ("", ".next", ".links") if config.identity)}
    names = [e.name for e in _scan(config.home) if e.name not in own and not _is_log(e.name)]
    report.facts["left_alone"] = sorted(names)
    if config.identity and config.identity.with_name(f"{config.identity.name}.next").exists():
        report.notes.append("an interrupted change of the identity key would be completed or dropped, as the registry says")


def _is_log(name: str) -> bool:
    return name.startswith("pilot-") and name.endswith(".log")


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _shown(name: str, value: Any) -> str:
    match name, value:
        case "identity", dict():
            return f"{value['path'] or '-'} ({value['state']}) {value['public_key']}".rstrip()
        case "trust", dict():
            waiting = f", {len(value['pending'])} waiting" if value["pending"] else ""
            return f"{len(value['trusted'])} trusted peers{waiting} ({value['path'] or 'not kept'})"
        case "inbox", dict():
            return f"{value['messages']} messages ({value['path']})"
        case "received", dict():
            return f"{value['files']} files, {value['bytes']} bytes ({value['path']})"
        case "node_id" | "address", _ if not value:
            return "given by the registry at the start"
        case _, bool():
            return "yes" if value else "no"
        case _, list():
            return ", ".join(map(str, value[:SHOWN])) + (f" and {len(value) - SHOWN} more" if len(value) > SHOWN else "") or "-"
    return str(value) or "-"
