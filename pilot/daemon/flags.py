"""Flags of `pilot-daemon` (cli.md section 8): the table, their types, and how a command line is read.

Both dash spellings work, values come as `-x=v` or `-x v`, a boolean needs no value. What the values mean
together is decided in config.py.
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


def parse_ids(text: str) -> tuple[int, ...]:
    """Network numbers 1..65535, separated by commas; empty = none."""
    out = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if not re.fullmatch(r"[0-9]{1,5}", part) or not 1 <= int(part) <= 65535:
            raise ValueError("want network numbers separated by commas, each 1 to 65535")
        out.append(int(part))
    return tuple(out)


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


FLAGS: tuple[Flag, ...] = (
    Flag("config", str, "", "JSON file with flag names as keys; flags and environment win over it"),
    Flag("registry", str, "", "registry address, host:port", env="PILOT_REGISTRY"),
    Flag("beacon", str, "", "beacon address, host:port (default: the registry's host, port 9001)",
         env="PILOT_BEACON"),
    Flag("listen", str, ":0", "UDP address of the tunnel, ip:port; port 0 takes a free one"),
    Flag("socket", str, "/tmp/pilot.sock", "Unix socket for local clients", env="PILOT_SOCKET"),
    Flag("endpoint", str, "", "fixed public endpoint ip:port of this host; discovery is skipped"),
    Flag("advertise-endpoint", str, "", "endpoint ip:port to register instead of the discovered one"),
    Flag("identity", str, "", "identity file; empty: a fresh identity that is not kept"),
    Flag("email", str, "", "contact of the operator, sent to the registry", alias="owner"),
    Flag("hostname", str, "", "name to register"),
    Flag("public", parse_bool, "false", "visible and reachable for every registered node"),
    Flag("networks", parse_ids, "", "networks to join after registration, numbers separated by commas"),
    Flag("relay-only", parse_bool, "false", "hide this host's address: all traffic through the beacon"),
    Flag("encrypt", parse_bool, "true", "must stay true: plaintext tunnels are not supported"),
    Flag("keepalive", parse_duration, "30s", "interval of heartbeats to the registry"),
    Flag("idle-timeout", parse_duration, "120s", "silence after which a stream is closed"),
    Flag("time-wait", parse_duration, "10s", "how long a closed stream is remembered"),
    Flag("syn-rate-limit", parse_count, "100", "inbound streams accepted per second"),
    Flag("max-conns-per-port", parse_count, "1024", "open streams per local port"),
    Flag("max-conns-total", parse_count, "65536", "open streams in total"),
    Flag("congestion", one_of("bbr", "cubic"), "bbr", "congestion control: bbr or cubic"),
    Flag("max-segment", parse_count, "8192", "largest stream segment, 1152 to 65000 bytes"),
    Flag("no-echo", parse_bool, "false", "do not run the echo service (port 7)"),
    Flag("no-dataexchange", parse_bool, "false", "do not receive files and messages (port 1001)"),
    Flag("no-eventstream", parse_bool, "false", "do not run the event broker (port 1002)"),
    Flag("dataexchange-b64", parse_bool, "false", "store every message as base64 in the inbox"),
    Flag("dataexchange-max-frame", parse_size, "64M", "largest message or unchunked file, 64K to 2G",
         env="PILOT_DATAEXCHANGE_MAX_FRAME"),
    Flag("received-quota", parse_size, "2G", "disk space for received files; 0 = as much as is free"),
    Flag("trust-auto-approve", parse_bool, "false", "approve every handshake request"),
    Flag("trust-same-network", parse_bool, "false", "approve requests of nodes that share a joined network"),
    Flag("webhook", str, "", "URL that gets events by POST"),
    Flag("webhook-secret", str, "", "key of the events' HMAC signature", env="PILOT_WEBHOOK_SECRET"),
    Flag("admin-token", str, "", "token for broadcasts and networks", env="PILOT_ADMIN_TOKEN"),
    Flag("registry-tls", parse_bool, "false", "speak TLS to the registry"),
    Flag("registry-trust", one_of("pinned", "system"), "pinned",
         "how the registry's certificate is judged: pinned or system"),
    Flag("registry-fingerprint", str, "", "SHA-256 of the registry's certificate, hex"),
    Flag("metrics-addr", str, "", "serve Prometheus metrics on ip:port, for instance 127.0.0.1:9102"),
    Flag("log-level", one_of("debug", "info", "warn", "error"), "info", "debug, info, warn or error",
         env="PILOT_LOG_LEVEL"),
    Flag("log-format", one_of("text", "json"), "text", "text or json", env="PILOT_LOG_FORMAT"),
)  # fmt: skip

BY_NAME: Mapping[str, Flag] = {name: flag for flag in FLAGS for name in (flag.name, flag.alias) if name}


def usage_error(message: str) -> PilotError:
    """What a wrong command line raises; main() exits 2 on it."""
    return PilotError("invalid_argument", message, "pilot-daemon -help lists the flags")


def parse_command_line(argv: Sequence[str]) -> dict[str, str]:
    """Flag name -> text (a repeated flag: the last wins). `-help` and `-version` appear as keys.

    Raises PilotError(invalid_argument) for unknown flags, missing values and stray words.
    """
    out: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("-") or word in ("-", "--"):
            raise usage_error(f"unexpected argument {word!r}")
        name, has_value, value = word.lstrip("-").partition("=")
        if name in ("h", "help", "version"):
            out["help" if name == "h" else name] = "true"
            continue
        flag = BY_NAME.get(name)
        if flag is None:
            raise usage_error(f"unknown flag -{name}")
        if not has_value:
            if flag.is_bool:
                value = "true"
            else:
                following = next(words, None)
                if following is None:
                    raise usage_error(f"flag -{name} needs a value")
                value = following
        out[flag.name] = value
    return out


def help_text() -> str:
    """What `pilot-daemon -help` prints."""
    lines = ["Usage: pilot-daemon -registry HOST:PORT [flags]", ""]
    for flag in FLAGS:
        names = f"-{flag.name}" + (f", -{flag.alias}" if flag.alias else "")
        default = f" (default {flag.default})" if flag.default and flag.default != "false" else ""
        env = f" [{flag.env}]" if flag.env else ""
        lines += [f"  {names}{'' if flag.is_bool else ' value'}", f"        {flag.help}{default}{env}"]
    lines += ["  -version", "        print the version and exit"]
    lines += ["  -help", "        print this text and exit"]
    return "\n".join(lines) + "\n"
