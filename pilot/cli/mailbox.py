"""received, inbox: what came, read from ~/.pilot without the daemon (services.md section 3, on-disk layout)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

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


def _clear(s: Session, directory: str) -> None:
    cleared = 0
    for path, _ in list(_files(directory)):
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
    found = sorted(_files(directory), key=lambda f: (-f[1].st_mtime_ns, f[0]))
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
    messages = list(_messages(directory))
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
        lines.append(f"    {clean(str(m.get('data', m.get('data_b64', ''))))[:PREVIEW]}")
    s.out.done(data, "\n".join(lines))


def _messages(directory: str) -> Iterator[dict[str, Any]]:
    """Readable messages, newest first. Names are TYPE-TIME[-SEQ].json: the part behind the first dash orders them."""

    def order(item: tuple[str, os.stat_result]) -> str:
        return os.path.basename(item[0]).partition("-")[2]

    for path, st in sorted(_files(directory), key=order, reverse=True):
        if st.st_size > MAX_MESSAGE_BYTES:
            continue
        with suppress(OSError, ValueError, RecursionError), open(path, "rb") as f:
            value = json.loads(f.read())
            if isinstance(value, dict):
                yield {"id": os.path.basename(path).removesuffix(".json"), **value}


def reply_to(home: str, message_id: str) -> dict[str, Any] | None:
    """The message that answers another one, if it came."""
    found = (m for m in _messages(os.path.join(home, "inbox")) if m.get("reply_to") == message_id)
    return next(found, None)
