"""Flags and positionals of one command (cli.md section 1). The command's argument texts say which flags exist."""

from __future__ import annotations

from collections.abc import Iterable

from pilot.errors import PilotError

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")
COMMON = ("--socket <path>", "--help")


def usage(message: str, hint: str = "") -> PilotError:
    """The user's command line is wrong."""
    return PilotError("invalid_argument", message, hint)


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `1m30s`, `500ms` or a plain number of seconds. Raises PilotError(invalid_argument)."""
    rest, total = text, 0.0
    try:
        if text.replace(".", "", 1).isdigit():
            return float(text)
        while rest:
            digits = len(rest) - len(rest.lstrip("0123456789."))
            unit_end = digits + len(rest[digits:]) - len(rest[digits:].lstrip("nuµmsh"))
            total += float(rest[:digits]) * _SECONDS[rest[digits:unit_end]]
            rest = rest[unit_end:]
    except (ValueError, KeyError):
        rest = "?"
    if rest or not text:
        raise usage(f"invalid duration: {text}", "write 30s, 2m, 500ms or a number of seconds")
    return total


def declared_flags(texts: Iterable[str]) -> dict[str, str]:
    """Flag name -> "none" (a switch), "value", or "maybe" (a value that may be left out).

    Texts are those of the command table: `[--json]`, `--data <text>`, `[--wait [<duration>]]`.
    """
    out = {}
    for text in texts:
        for alternative in text.split("|"):
            words = alternative.strip().strip("[]").split()
            if words and words[0].startswith("--"):
                value = words[1] if len(words) > 1 else ""
                out[words[0][2:]] = "none" if not value else "maybe" if value.startswith("[") else "value"
    return out


class Args:
    """What stands behind the command. unknown: flags the command does not have; they are ignored."""

    def __init__(self, words: Iterable[str], texts: Iterable[str], raw: bool = False) -> None:
        """raw: words are taken as they come, no flags but `--socket` and `--help` in front."""
        self.positional: list[str] = []
        self.flags: dict[str, str] = {}
        self.unknown: list[str] = []
        known = declared_flags(COMMON) if raw else declared_flags((*texts, *COMMON))
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                self.positional += rest
                break
            if not _is_flag(word) or (raw and (self.positional or word.lstrip("-").partition("=")[0] not in known)):
                self.positional.append(word)
                continue
            name, equals, value = word.lstrip("-").partition("=")
            name = "help" if name == "h" else name
            kind = known.get(name, "unknown")
            if not equals:
                value = self._value(name, kind, rest, known)
            if kind == "unknown":
                self.unknown.append(word.partition("=")[0])
            else:
                self.flags[name] = value

    @staticmethod
    def _value(name: str, kind: str, rest: list[str], known: dict[str, str]) -> str:
        following = rest[0] if rest else None
        if kind == "value":
            if following is None or (following.startswith("--") and following[2:].partition("=")[0] in known):
                raise usage(f"flag --{name} needs a value")
            return rest.pop(0)
        takes = following is not None and (
            (kind == "none" and following in ("true", "false"))
            or (kind == "maybe" and following[:1].isdigit())
            or (kind == "unknown" and not following.startswith("-"))
        )
        return rest.pop(0) if takes else "true"

    def need(self, *names: str) -> list[str]:
        """The first positionals, which must be there. Raises PilotError naming the missing one."""
        if len(self.positional) < len(names):
            raise usage(f"missing argument: <{names[len(self.positional)]}>")
        return self.positional[: len(names)]

    def at(self, index: int, default: str = "") -> str:
        """A positional that may be missing."""
        return self.positional[index] if index < len(self.positional) else default

    def text(self, name: str, default: str = "") -> str:
        """A flag's text."""
        return self.flags.get(name, default)

    def has(self, name: str) -> bool:
        """A switch: given, and not given as false."""
        value = self.flags.get(name)
        if value is None or value.lower() in _FALSE:
            return False
        if value.lower() not in _TRUE:
            raise usage(f"flag --{name}: want true or false, got {value}")
        return True

    def duration(self, name: str, default: float) -> float:
        """A flag in seconds."""
        return parse_duration(self.flags[name]) if name in self.flags else default

    def count(self, name: str, default: int) -> int:
        """A flag that is a whole number of at least 1."""
        return parse_number(self.flags[name], f"flag --{name}", 1, 1 << 31) if name in self.flags else default


def parse_number(text: str, what: str, least: int, most: int) -> int:
    """A decimal number in a range. Raises PilotError(invalid_argument) naming `what`."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or not least <= int(text) <= most:
        raise usage(f"{what}: want a number from {least} to {most}, got {text}")
    return int(text)


def _is_flag(word: str) -> bool:
    """`-x` and `--x`, but not `-`, `-5`, or a text such as `- item`."""
    name = word.lstrip("-").partition("=")[0]
    dashes = len(word) - len(word.lstrip("-"))
    return dashes in (1, 2) and name[:1].isalpha() and name.replace("-", "").replace("_", "").isalnum()
