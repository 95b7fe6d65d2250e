"""What a user sees: JSON envelopes or text on standard output, errors and notes on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from pilot.errors import PilotError

_CONTROL = {c: "\ufffd" for c in (*range(0x20), *range(0x7F, 0xA0)) if c != 0x09}
_CONTROL_BUT_LINES = {c: r for c, r in _CONTROL.items() if c != 0x0A}


def clean(text: str) -> str:
    """One line of text from elsewhere, without anything a terminal would act on."""
    return text.translate(_CONTROL)


def size(count: float) -> str:
    """`512 B`, `1.5 KB`, `64.0 MB` (1024 based)."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KB", "MB"):
        count /= 1024
        if round(count, 1) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GB"


def millis(value: float) -> str:
    """A duration in milliseconds for people: `0.35ms`, `2.4ms`, `12ms`."""
    digits = 2 if value < 0.995 else 1 if value < 9.95 else 0
    return f"{value:.{digits}f}ms"


def seconds(value: float) -> str:
    """A duration in seconds for people: `35ms`, `1.24s`, `3m12s`."""
    if value < 1:
        return millis(value * 1000)
    return f"{value:.2f}s" if value < 60 else f"{int(value) // 60}m{int(value) % 60:02}s"


def clock(value: Any) -> str:
    """Seconds as `HH:MM:SS`."""
    total = int(number(value))
    return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"


def moment(unix: Any) -> str:
    """A Unix time as local `YYYY-MM-DD HH:MM:SS`."""
    from time import localtime, strftime

    try:
        return strftime("%Y-%m-%d %H:%M:%S", localtime(number(unix)))
    except (OverflowError, ValueError, OSError):
        return "-"


def number(value: Any) -> float:
    """A number of a reply, 0 if it is something else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def rows(reply: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """A list of objects in a reply under the first of `keys` that is there."""
    for key in keys:
        value = reply.get(key)
        if isinstance(value, list):
            return [row for row in value if isinstance(row, dict)]
    return []


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns aligned to the left, two blanks apart; cells are cleaned."""
    cells = [list(head), *([clean(c) for c in line] for line in lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    texts = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(t.rstrip() for t in texts)


def dumps(value: Any) -> str:
    """One line of JSON, keys sorted."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


class Output:
    """Where a command writes. json: the user asked for JSON."""

    def __init__(self, as_json: bool) -> None:
        self.json = as_json

    def done(self, data: Any, text: str | None = None) -> None:
        """The result. text: its human form; None prints the data as indented JSON."""
        if self.json:
            self._print(dumps({"data": data, "status": "ok"}))
        elif text is None:
            self._print(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True))
        elif text:
            self._print(text)

    def item(self, data: Any, text: str) -> None:
        """One of many results, as it comes: a JSON object per line, or text."""
        self._print(dumps(data) if self.json else text)

    def line(self, text: str) -> None:
        """A line of human output; nothing with JSON."""
        if not self.json:
            self._print(text)

    def note(self, text: str) -> None:
        """Something on the side: standard error, nothing with JSON."""
        if not self.json:
            print(text, file=sys.stderr, flush=True)

    def foreign(self, data: bytes) -> str:
        """Bytes of a peer as text. On a terminal without control characters, since they could command it."""
        text = data.decode("utf-8", "replace")
        return text.translate(_CONTROL_BUT_LINES) if not self.json and sys.stdout.isatty() else text

    def error(self, error: PilotError) -> None:
        """The error envelope, or `error:` and `hint:`."""
        if self.json:
            envelope = {"code": error.code, "error": error.message, "message": error.message, "status": "error"}
            if error.hint:
                envelope["hint"] = error.hint
            print(dumps(envelope), file=sys.stderr, flush=True)
            return
        print(f"error: {clean(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {clean(error.hint)}", file=sys.stderr)
        sys.stderr.flush()

    @staticmethod
    def _print(text: str) -> None:
        # At once: somebody may wait for this line, and a closed pipe shows here.
        print(text, flush=True)
