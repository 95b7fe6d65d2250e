"""Flags of the programs: types of values, and how a command line is read (cli.md section 8).

Both dash spellings work, values come as `-x=v` or `-x v`, a boolean needs no value. Each program has a table of its own;
what the values mean together is decided beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pilot.errors import PilotError

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZE_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `1m30s`, `500ms` or a plain number of seconds. ValueError if it is neither."""
    total, at = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != at:
            break
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    if at and at == len(text):
        return total
    if re.fullmatch(r"\d+(\.\d*)?", text):
        return float(text)
    raise ValueError("want a duration such as 30s, 2m or 500ms")


def parse_spin(text: str) -> float | None:
    """Seconds from a duration of at most 1 ms, None from `auto`."""
    if text == "auto":
        return None
    seconds = parse_duration(text)
    if seconds > 0.001:
        raise ValueError("want auto, 0 (never), or a duration of at most 1ms")
    return seconds


def parse_bool(text: str) -> bool:
    """`true/false`, `1/0`, `t/f`, `yes/no`, in any case."""
    low = text.lower()
    if low in ("true", "t", "1", "yes"):
        return True
    if low in ("false", "f", "0", "no"):
        return False
    raise ValueError("want true or false")


def parse_count(text: str) -> int:
    """A whole number, 1 to 2^31-1."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) < 1 << 31:
        raise ValueError("want a whole number of at least 1")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes from `1048576`, `64M`, `2GiB`; 0 is allowed."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError("want a size such as 64M or 2GiB")
    return int(match[1]) << _SIZE_SHIFT[match[2].lower()]


def one_of(*allowed: str) -> Callable[[str], str]:
    """A parser that takes one of the given words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"want one of {', '.join(allowed)}")
        return text

    return parse


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. parse: text to value (ValueError says what it wants). default: as text. env: its variable."""

    name: str
    parse: Callable[[str], Any]
    default: str
    help: str
    env: str = ""
    alias: str = ""

    @property
    def is_bool(self) -> bool:
        return self.parse is parse_bool

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")


class FlagTable:
    """The flags of one program."""

    def __init__(self, program: str, usage: str, flags: Sequence[Flag], foreign: Sequence[Flag] = ()) -> None:
        """program: its name. usage: what follows "Usage: " in the help text. foreign: flags of another make that are read
        like the others and not shown in the help; the caller decides what becomes of them."""
        self.program = program
        self.flags = tuple(flags)
        self.foreign: Mapping[str, Flag] = {flag.name: flag for flag in foreign}
        self.by_name: Mapping[str, Flag] = {
            name: flag for flag in self.flags for name in (flag.name, flag.alias) if name
        }
        self._usage = usage

    def usage_error(self, message: str) -> PilotError:
        """What a wrong command line raises; main() exits 2 on it."""
        return PilotError("invalid_argument", message, f"{self.program} -help lists the flags")

    def parse_command_line(self, argv: Sequence[str]) -> dict[str, str]:
        """Flag name -> text (a repeated flag: the last wins). `-help` and `-version` appear as keys.

        Raises PilotError(invalid_argument) for unknown flags, missing values and stray words.
        """
        out: dict[str, str] = {}
        words = iter(argv)
        for word in words:
            if not word.startswith("-") or word in ("-", "--"):
                raise self.usage_error(f"unexpected argument {word!r}")
            name, has_value, value = word.lstrip("-").partition("=")
            if name in ("h", "help", "version"):
                out["help" if name == "h" else name] = "true"
                continue
            flag = self.by_name.get(name) or self.foreign.get(name)
            if flag is None:
                raise self.usage_error(f"unknown flag -{name}")
            if not has_value:
                if flag.is_bool:
                    value = "true"
                else:
                    following = next(words, None)
                    if following is None:
                        raise self.usage_error(f"flag -{name} needs a value")
                    value = following
            out[flag.name] = value
        return out

    def parse_value(self, flag: Flag, text: str, source: str) -> Any:
        """The value of a flag; PilotError names `source` if the text does not fit."""
        try:
            return flag.parse(text)
        except ValueError as e:
            raise self.usage_error(f"{source}: {e}, got {text!r}") from None

    def help_text(self) -> str:
        """What `-help` prints."""
        lines = [f"Usage: {self._usage}", ""]
        for flag in self.flags:
            names = f"-{flag.name}" + (f", -{flag.alias}" if flag.alias else "")
            default = f" (default {flag.default})" if flag.default and flag.default != "false" else ""
            env = f" [{flag.env}]" if flag.env else ""
            lines += [f"  {names}{'' if flag.is_bool else ' value'}", f"        {flag.help}{default}{env}"]
        lines += ["  -version", "        print the version and exit"]
        lines += ["  -help", "        print this text and exit"]
        return "\n".join(lines) + "\n"
