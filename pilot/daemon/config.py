"""The daemon's settings: flag > environment > config file > default (cli.md sections 1 and 8)."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pilot.daemon.dial import Door
from pilot.daemon.flags import BY_NAME, FLAGS, NO_EFFECT, REFUSED, Flag, parse_command_line, usage_error
from pilot.daemon.home import StateDir, default_socket
from pilot.errors import PilotError

BEACON_PORT = 9001
MAX_CONFIG_BYTES = 1 << 20
MEND = "mend it, or move it away"
NOT_IN_FILES = ("config", "dry-run", "json")
FOREIGN = {flag.name: flag for flag in NO_EFFECT + REFUSED}

Addr = tuple[str, int]


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """One field per flag, checked. Durations in seconds, sizes in bytes. Host names stay names: they are
    resolved when used and again when they stop answering."""

    registry: Addr
    beacon: Addr
    listen: Addr
    socket: Path | None
    home: Path
    identity: Path | None
    endpoint: Addr | None = None
    advertise_endpoint: Addr | None = None
    email: str = ""
    hostname: str = ""
    public: bool = False
    networks: tuple[int, ...] = ()
    relay_only: bool = False
    accept_era1: bool = False
    transport: str = "auto"
    door: Door = field(default_factory=lambda: Door("wss://localhost/v1/compat"))
    keepalive: float = 30.0
    idle_timeout: float = 120.0
    time_wait: float = 10.0
    syn_rate_limit: int = 100
    max_conns_per_port: int = 1024
    max_conns_total: int = 65536
    congestion: str = "bbr"
    max_segment: int = 8192
    spin: float | None = None  # None: as the processors allow
    no_echo: bool = False
    no_dataexchange: bool = False
    no_eventstream: bool = False
    dataexchange_b64: bool = False
    dataexchange_max_frame: int = 64 << 20
    received_quota: int = 2 << 30
    trust_auto_approve: bool = False
    trust_same_network: bool = False
    webhook: str = ""
    webhook_secret: str = ""
    admin_token: str = ""
    registry_tls: bool = False
    registry_trust: str = "pinned"
    registry_fingerprint: str = ""
    metrics_addr: Addr | None = None
    log_level: str = "info"
    log_format: str = "text"
    dry_run: bool = False
    json: bool = False
    ignored: tuple[str, ...] = ()  # settings that were given and have no effect, one sentence each
    state_dir: StateDir | None = None  # where settings are kept between starts; None: nowhere

    @property
    def trust_file(self) -> Path | None:
        """`trust.json` beside the identity; None = memory only."""
        return self.identity.parent / "trust.json" if self.identity else None


def split_host_port(text: str, what: str, default_port: int | None = None) -> Addr:
    """`host:port` or `[v6]:port` -> (host, port). PilotError naming `what` if it is neither."""
    host, colon, port = text.rpartition(":")
    if (not colon or (":" in host and not host.startswith("["))) and default_port is not None:
        host, port = text, str(default_port)
    elif not colon:
        raise usage_error(f"{what}: want host:port, got {text!r}")
    if host.startswith("["):
        if not host.endswith("]"):
            raise usage_error(f"{what}: unbalanced bracket in {text!r}")
        host = host[1:-1]
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise usage_error(f"{what}: {port!r} is not a port number")
    return host, int(port)


def _endpoint(text: str, what: str) -> Addr | None:
    if not text:
        return None
    host, port = split_host_port(text, what)
    try:
        ip = str(ipaddress.ip_address(host))
    except ValueError:
        raise usage_error(f"{what}: want ip:port, got {text!r}") from None
    if port == 0:
        raise usage_error(f"{what}: port 0 cannot be reached")
    return ip, port


def _listen(text: str) -> Addr:
    host, port = split_host_port(text, "listen")
    host = {"": "0.0.0.0", "localhost": "127.0.0.1"}.get(host, host)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise usage_error(f"listen: want ip:port or :port, got {text!r}") from None


def _server(text: str, what: str) -> Addr:
    host, port = split_host_port(text, what)
    if not host or port == 0:
        raise usage_error(f"{what}: want host:port, got {text!r}")
    return host, port


def _file_values(path: str, notes: list[str], default: bool) -> dict[str, str]:
    """Flag name -> text from a config file. Values: strings, numbers, booleans; `-` equals `_`.

    The default file is shared with other programs: keys that are no flags of ours are noted there, and a missing file is
    an empty one. A file the user names is for this program: its unknown keys are mistakes.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_CONFIG_BYTES + 1)
    except OSError as e:
        if default and isinstance(e, FileNotFoundError):
            return {}
        message = f"config file {path}: {e.strerror}"
        raise PilotError("not_found", message, "check the path after -config") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise usage_error(f"config file {path}: larger than 1 MiB")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise PilotError("invalid_argument", f"config file {path}: not JSON ({e})", MEND) from None
    if not isinstance(data, dict):
        raise PilotError("invalid_argument", f"config file {path}: want one JSON object", MEND)
    out = {}
    for key, value in data.items():
        name = key.replace("_", "-")
        flag = BY_NAME.get(name) or FOREIGN.get(name)
        if flag is None or flag.name in NOT_IN_FILES:
            if not default:
                raise usage_error(f"config file {path}: unknown key {key!r}")
            notes.append(f"config file {path}: {key} is not a setting of this daemon")
        elif isinstance(value, bool):
            out[flag.name] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            out[flag.name] = str(value)
        elif isinstance(value, list) and all(isinstance(v, str | int) for v in value):
            out[flag.name] = ",".join(map(str, value))
        else:
            raise usage_error(f"config file {path}: {key}: want a string, a number or true/false")
    return out


def _parse(flag: Flag, text: str, source: str) -> Any:
    try:
        return flag.parse(text)
    except ValueError as e:
        raise usage_error(f"{source}: {e}, got {text!r}") from None


def load(argv: Sequence[str], env: Mapping[str, str], *, installed: bool = False) -> DaemonConfig:
    """Settings from a command line (without the program name) and an environment.

    installed: this is the machine's daemon, so what `~/.pilot` holds counts too, below flags and environment: config.json
    (unless -config names another file), webhook_url, account.json. Raises PilotError whose message names the flag, variable
    or file key at fault. `-help` and `-version` are the caller's business.
    """
    given = parse_command_line(argv)
    home = _home(env)
    notes: list[str] = []
    from_file: dict[str, str] = {}
    if given.get("config"):
        from_file = _file_values(given["config"], notes, default=False)
    elif installed:
        from_file = _file_values(str(home / "config.json"), notes, default=True)
    from_env = {f.name: env[f.env] for f in (*FLAGS, *REFUSED) if f.env and env.get(f.env)}
    from_argv = {k: v for k, v in given.items() if k in BY_NAME or k in FOREIGN}
    if installed and not given.get("config"):
        _part_beacon(from_file, from_env | from_argv)
    sources: dict[str, tuple[str, str]] = {f.name: (f.default, f"flag -{f.name}") for f in FLAGS}
    sources |= {k: (v, f"config file: {k}") for k, v in from_file.items()}
    sources |= {k: (v, BY_NAME[k].env if k in BY_NAME else FOREIGN[k].env) for k, v in from_env.items()}
    sources |= {k: (v, f"flag -{k}") for k, v in from_argv.items()}
    notes += _foreign({k: sources.pop(k) for k in list(sources) if k in FOREIGN})
    values = {flag.field: _parse(flag, *sources[flag.name]) for flag in FLAGS}
    config = replace(_assemble(values, home), ignored=tuple(notes))
    return _with_state(config, {*from_file, *from_env, *from_argv}, env) if installed else config


def _home(env: Mapping[str, str]) -> Path:
    return (Path(env.get("PILOT_HOME") or env.get("HOME") or Path.home()) / ".pilot").absolute()


def _part_beacon(from_file: dict[str, str], stronger: Mapping[str, str]) -> None:
    """The beacon of the default file belongs to the registry beside it and does not go with another one."""
    registry = stronger.get("registry")
    if registry and from_file.get("registry") not in (None, registry):
        from_file.pop("beacon", None)


def _foreign(given: Mapping[str, tuple[str, str]]) -> list[str]:
    """A sentence for each setting of the published daemon that does nothing here. PilotError for those that must not be lost."""
    notes = []
    for name, (text, source) in given.items():
        flag = FOREIGN[name]
        if flag in REFUSED and _parse(flag, text, source) != flag.parse(flag.default):
            raise PilotError("not_supported", f"{source}: not supported: {flag.help}", "leave it out if you can do without")
        notes.append(f"{source} has no effect")
    return notes


def _with_state(config: DaemonConfig, given: set[str], env: Mapping[str, str]) -> DaemonConfig:
    """Adds what earlier starts have left in the state directory, where nothing else was given."""
    state = StateDir(config.home, config.identity)
    email, webhook = state.email(), state.webhook()
    return replace(
        config,
        state_dir=state,
        email=config.email if "email" in given else email,
        webhook=config.webhook if "webhook" in given else webhook,
        socket=config.socket if "socket" in given else default_socket(env.get("XDG_RUNTIME_DIR", "")),
    )


def _door(values: Mapping[str, Any], beacon_host: str) -> Door:
    pin, trust = values["compat_fingerprint"].replace(":", "").lower(), values["tls_trust"]
    if pin and not re.fullmatch(r"[0-9a-f]{64}", pin):
        raise usage_error("flag -compat-fingerprint: want the 64 hex digits of a SHA-256")
    if trust == "pinned" and not pin:
        raise usage_error("flag -tls-trust pinned: needs the -compat-fingerprint")
    host = f"[{beacon_host}]" if ":" in beacon_host else beacon_host
    door = Door(
        values["compat_beacon"] or f"wss://{host}/v1/compat", "" if trust == "system" else pin, values["proxy"]
    )
    try:
        if values["compat_beacon"]:
            door.uri()
    except PilotError as error:
        raise usage_error(f"flag -compat-beacon: {error.message}") from None
    return door


def _assemble(values: dict[str, Any], home: Path) -> DaemonConfig:
    if not values["registry"]:
        raise PilotError(
            "invalid_argument", "no registry given", "pilot-daemon -registry HOST:9000, or set PILOT_REGISTRY"
        )
    if not values["encrypt"]:
        raise PilotError(
            "not_supported",
            "-encrypt=false: plaintext tunnels are not supported",
            "leave the flag out; traffic is always encrypted",
        )
    registry = _server(values["registry"], "registry")
    beacon = _server(values["beacon"], "beacon") if values["beacon"] else (registry[0], BEACON_PORT)
    if not 1152 <= values["max_segment"] <= 65000:
        raise usage_error("flag -max-segment: want 1152 to 65000")
    if not 64 << 10 <= values["dataexchange_max_frame"] <= 2 << 30:
        raise usage_error("flag -dataexchange-max-frame: want 64K to 2G")
    if not 1.0 <= values["keepalive"] <= 120.0:  # a registry drops a node after 180 s
        raise usage_error("flag -keepalive: want 1s to 120s")
    if values["idle_timeout"] < 1.0 or values["time_wait"] < 0.1:
        raise usage_error("flags -idle-timeout and -time-wait: too short")
    if values["relay_only"] and (values["endpoint"] or values["advertise_endpoint"]):
        raise usage_error("flag -relay-only hides the endpoint: leave out -endpoint and -advertise-endpoint")
    if values["registry_tls"] and values["registry_trust"] == "pinned" and not values["registry_fingerprint"]:
        raise usage_error("flag -registry-tls: needs -registry-fingerprint, or -registry-trust system")
    door = _door(values, beacon[0])
    special = {
        "registry": registry,
        "beacon": beacon,
        "door": door,
        "listen": _listen(values["listen"]),
        "socket": Path(values["socket"]).absolute() if values["socket"] else None,
        "home": home,
        "identity": Path(values["identity"]).expanduser().absolute() if values["identity"] else None,
        "endpoint": _endpoint(values["endpoint"], "endpoint"),
        "advertise_endpoint": _endpoint(values["advertise_endpoint"], "advertise-endpoint"),
        "metrics_addr": _endpoint(values["metrics_addr"], "metrics-addr"),
    }
    known = {f.name for f in fields(DaemonConfig)}
    return DaemonConfig(**{k: v for k, v in values.items() if k in known} | special)
