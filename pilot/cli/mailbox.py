"""received, inbox: what came, read from ~/.pilot without the daemon (services.md section 3, on-disk layout)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from time import time
from typing import Any

from pilot.cli.args import parse_duration, usage
from pilot.cli.output import clean, moment, size, table
from pilot.cli.session import Session
from pilot.errors import PilotError

MAX_MESSAGE_BYTES = 256 << 20
PREVIEW = 80


def _files(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files as (path, stat); partial ones begin with a dot and are left out."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    except OSError as e:
        raise PilotError("permission_denied", f"cannot read {directory}: {e.strerror}") from None
    for name in names:
        path = os.path.join(directory, name)
        with suppress(FileNotFoundError):
            found = os.lstat(path)
            if not name.startswith(".") and stat.S_ISREG(found.st_mode):
                yield path, found


def _moment(s: Session, flag: str, otherwise: float) -> float:
    """Unix time of a flag: a duration before now, or a date and time (RFC 3339)."""
    if flag not in s.args.flags:
        return otherwise
    text = s.args.text(flag)
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp() if "-" in text else time() - parse_duration(text)
    raise usage(f"flag --{flag}: want a duration or a time such as 2026-01-31T12:00:00Z, got {text}")


def _clear(s: Session, directory: str) -> None:
    cleared, before = 0, _moment(s, "before", float("inf"))
    for path, found in list(_files(directory)):
        if found.st_mtime >= before:
            continue
        with suppress(FileNotFoundError):
            os.unlink(path)
            cleared += 1
    s.out.done({"cleared": cleared}, f"removed {cleared} file{'' if cleared == 1 else 's'}")


def received(s: Session) -> None:
    """Files that peers sent, newest first."""
    directory = os.path.join(s.settings.home, "received")
    if s.args.has("clear"):
        _clear(s, directory)
        return
    since = _moment(s, "since", 0.0)
    found = sorted((f for f in _files(directory) if f[1].st_mtime >= since), key=lambda f: (-f[1].st_mtime_ns, f[0]))
    shown = found[: s.args.count("limit", max(1, len(found)))]
    files = [
        {"name": os.path.basename(p), "bytes": st.st_size, "modified": _rfc3339(st.st_mtime), "path": p} for p, st in shown
    ]
    data = {"files": files, "total": len(found), "shown": len(files), "dir": directory}
    if not files:
        s.out.done(data, "no received files")
        return
    lines = [(str(f["name"]), size(st.st_size), moment(st.st_mtime)) for f, (_, st) in zip(files, shown, strict=True)]
    s.out.done(data, f"Received ({len(found)} files) in {directory}:\n" + table(("NAME", "SIZE", "RECEIVED"), lines))


def _rfc3339(unix: float) -> str:
    from time import localtime, strftime

    text = strftime("%Y-%m-%dT%H:%M:%S%z", localtime(unix))
    return f"{text[:-2]}:{text[-2:]}"


def inbox(s: Session) -> None:
    """Messages that peers sent, newest first."""
    directory = os.path.join(s.settings.home, "inbox")
    if s.args.has("clear"):
        _clear(s, directory)
        return
    messages = list(_messages(directory, _moment(s, "since", 0.0)))
    if s.args.at(0) == "read" or s.args.has("latest"):
        _read(s, messages)
        return
    if s.args.positional:
        raise usage(f"inbox has no {s.args.at(0)}", "pilotctl inbox read ID shows one message")
    sender = s.args.text("from")
    if sender:
        messages = [m for m in messages if sender in (m.get("from"), s.target(sender).address.__str__())]
    total = len(messages)
    messages = messages[: s.args.count("limit", max(1, total))]
    data = {"messages": messages, "total": total, "shown": len(messages), "dir": directory}
    if not messages:
        s.out.done(data, "inbox is empty")
        return
    lines = [f"Inbox ({total} messages):"]
    for m in messages:
        kind, when = clean(str(m.get("type", ""))), clean(str(m.get("received_at", "")))
        lines.append(f"  [{when}] from {clean(str(m.get('from', '')))} type={kind}")
        text = str(m.get("data", m.get("data_b64", "")))
        lines.append(f"    {s.out.foreign(text.encode()) if s.args.has('full') else clean(text)[:PREVIEW]}")
    s.out.done(data, "\n".join(lines))


def _read(s: Session, messages: list[dict[str, Any]]) -> None:
    """One message whole, by the name of its file or by its sender's number for it; or the newest."""
    wanted = "" if s.args.has("latest") else s.args.need("read", "id")[1]
    for m in messages:
        if not wanted or wanted in (m["id"], m.get("message_id")):
            s.out.done(m, s.out.foreign(str(m.get("data", m.get("data_b64", ""))).encode()))
            return
    raise PilotError("not_found", f"no message {wanted}" if wanted else "inbox is empty", "pilotctl --json inbox lists the ids")


def _messages(directory: str, since: float = 0.0) -> Iterator[dict[str, Any]]:
    """Readable messages, newest first. Names are TYPE-TIME[-SEQ].json: the part behind the first dash orders them. since: Unix
    seconds."""

    def order(item: tuple[str, os.stat_result]) -> str:
        return os.path.basename(item[0]).partition("-")[2]

    for path, st in sorted(_files(directory), key=order, reverse=True):
        if st.st_size > MAX_MESSAGE_BYTES or st.st_mtime < since:
            continue
        with suppress(OSError, ValueError, RecursionError), open(path, "rb") as f:
            value = json.loads(f.read())
            if isinstance(value, dict):
                yield {"id": os.path.basename(path).removesuffix(".json"), **value}


def reply_to(home: str, message_id: str) -> dict[str, Any] | None:
    """The message that answers another one, if it came."""
    found = (m for m in _messages(os.path.join(home, "inbox")) if m.get("reply_to") == message_id)
    return next(found, None)
