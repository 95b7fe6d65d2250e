"""init, config, context, version."""

from __future__ import annotations

import os
import sys
from typing import Any

from pilot.cli.args import usage
from pilot.cli.session import Session
from pilot.cli.settings import BOOL_KEYS, TEXT_KEYS

_SECRET = ("admin_token",)


def init(s: Session) -> None:
    """Merges the given flags into the config file."""
    changes: dict[str, str | bool | None] = {
        key: s.args.text(key) for key in ("registry", "beacon", "hostname") if key in s.args.flags
    }
    for key in ("registry", "beacon"):
        _check("--" + key, key, s.args.text(key))
    changes["socket"] = s.settings.new_socket
    if "public" in s.args.flags:
        changes["public"] = s.args.has("public")
    s.settings.update(changes)
    settings = s.settings
    data = {
        "config_path": settings.config_path,
        "registry": str(settings.config.get("registry", "")),
        "beacon": str(settings.config.get("beacon", "")),
        "socket": str(settings.config.get("socket", "")),
        "hostname": str(settings.config.get("hostname", "")),
        "public": settings.config.get("public") is True,
    }
    shown = [("Hostname", data["hostname"]), ("Registry", data["registry"]), ("Beacon", data["beacon"]),
             ("Socket", data["socket"]), ("Visible", "public" if data["public"] else "private")]  # fmt: skip
    lines = [f"Configuration written to {settings.config_path}"]
    lines += [f"  {name + ':':<10}{value}" for name, value in shown if value]
    s.out.done(data, "\n".join(lines))


def config(s: Session) -> None:
    """Shows the configuration, or changes one key with `--set key=value`."""
    if "set" in s.args.flags:
        key, equals, value = s.args.text("set").partition("=")
        key = key.replace("-", "_")
        if not equals:
            raise usage("config: want --set key=value")
        if key not in TEXT_KEYS and key not in BOOL_KEYS:
            raise usage(f'config: unknown key "{key}"', f"keys: {', '.join(sorted(TEXT_KEYS + BOOL_KEYS))}")
        _check("config", key, value)
        stored: str | bool = value.lower() in ("true", "1", "yes", "on") if key in BOOL_KEYS else value
        s.settings.update({key: stored if value else None})
        shown = "(set)" if key in _SECRET and value else value
        s.out.done({"key": key, "value": shown}, f"{key} = {shown}" if value else f"{key} removed")
        return
    data: dict[str, Any] = {k: "(set)" if k in _SECRET else v for k, v in s.settings.config.items()}
    data.setdefault("registry", s.settings.registry)
    data.setdefault("beacon", s.settings.beacon)
    data.setdefault("socket", s.settings.socket)
    data["config_path"] = s.settings.config_path
    data["pid_file"] = s.settings.pid_path
    data["log_file"] = s.settings.log_path
    s.out.done(data)


def _check(what: str, key: str, value: str) -> None:
    """Refuses values that could never work, when they are typed rather than when they are used."""
    if key in ("registry", "beacon") and value:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise usage(f"{what}: {key} must be host:port, got {value}", "for example rendezvous.example.com:9000")
    if key in BOOL_KEYS and value.lower() not in ("", "true", "false", "1", "0", "yes", "no", "on", "off"):
        raise usage(f"{what}: {key} must be true or false, got {value}")


def quickstart(s: Session) -> None:
    """The first steps, as text, with `--json` too."""
    print(
        "Set this node up, once:\n"
        "  pilotctl init --hostname NAME --registry HOST:9000\n"
        "  pilotctl daemon start\n\n"
        "Find a node, ask it for trust, talk to it:\n"
        "  pilotctl find NAME\n"
        '  pilotctl handshake NAME "why we should talk"      # there: pilotctl pending, pilotctl approve NAME\n'
        '  pilotctl send-message NAME --data "hello" --wait\n\n'
        "All commands: pilotctl help"
    )


def version(s: Session) -> None:
    """Prints the bare version, with `--json` too."""
    from pilot import __version__

    print(__version__)


ERROR_CODES = {
    "invalid_argument": "the command line or a value is wrong",
    "not_found": "no such name, node or file",
    "already_exists": "it is there already",
    "not_running": "the daemon is not running",
    "connection_failed": "the peer or the registry could not be reached, or refused",
    "timeout": "no answer in time",
    "internal": "something that should not happen",
    "permission_denied": "this user or node may not do that",
    "trust_required": "trust must be established first",
    "auth_required": "a token is needed",
    "not_supported": "the daemon or the peer does not offer this",
}
ENVIRONMENT = {
    "PILOT_HOME": "directory that holds .pilot (default: the home directory)",
    "PILOT_SOCKET": "Unix socket of the daemon",
    "PILOT_REGISTRY": "registry, host:port",
    "PILOT_BEACON": "beacon, host:port (default: the registry's host, port 9001)",
    "PILOT_DAEMON_BIN": "the pilot-daemon program that `daemon start` runs",
    "PILOT_ADMIN_TOKEN": "token for networks and broadcasts",
    "PILOT_DEBUG": "1 shows where an internal error happened",
}


def context(s: Session) -> None:
    """The catalog of commands, for programs."""
    from pilot import __version__
    from pilot.cli.commands import COMMANDS

    commands = {
        name: {"args": list(c.args), "description": c.description, "returns": c.returns} for name, c in COMMANDS.items()
    }
    wanted = " ".join(s.args.positional)
    if wanted:
        if wanted not in commands:
            raise usage(f"unknown command: {wanted}")
        commands = {wanted: commands[wanted]}
    s.out.done(
        {
            "version": "1.4",
            "program_version": __version__,
            "commands": commands,
            "error_codes": ERROR_CODES,
            "global_flags": {"--json": "JSON output", "--socket": "Unix socket of the daemon", "--help": "help"},
            "environment": ENVIRONMENT,
            "config_file": "~/.pilot/config.json",
            "exit_codes": {"0": "success", "1": "error", "2": "usage", "130": "interrupted"},
            "program": os.path.abspath(sys.argv[0]),
        }
    )
