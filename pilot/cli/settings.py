"""Where things are and what is configured: flag > environment > ~/.pilot/config.json > default (cli.md section 1)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pilot.errors import PilotError

MAX_CONFIG_BYTES = 1 << 20
BEACON_PORT = 9001
TEXT_KEYS = (
    "registry", "beacon", "socket", "hostname", "webhook", "email", "admin_token", "networks", "transport", "proxy",
    "proxy_cmd", "registry_trust", "registry_fingerprint", "identity", "listen", "endpoint", "log_level", "log_format",
)  # fmt: skip
BOOL_KEYS = ("public", "encrypt", "trust_auto_approve", "registry_tls")


class Settings:
    """Settings of one run. flags: those of the command line; env: the environment."""

    def __init__(self, flags: Mapping[str, str], env: Mapping[str, str]) -> None:
        self.flags = flags
        self.env = env
        self.home = os.path.join(env.get("PILOT_HOME") or env.get("HOME") or os.path.expanduser("~"), ".pilot")
        self.config_path = os.path.join(self.home, "config.json")
        self.pid_path = os.path.join(self.home, "pilot.pid")
        self.log_path = os.path.join(self.home, "pilot.log")
        self._config: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The config file; {} if there is none. Raises PilotError if it cannot be used."""
        if self._config is None:
            self._config = self._load()
        return self._config

    def _load(self) -> dict[str, Any]:
        try:
            with open(self.config_path, "rb") as f:
                raw = f.read(MAX_CONFIG_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as e:
            raise PilotError("permission_denied", f"cannot read {self.config_path}: {e.strerror}") from None
        try:
            value = json.loads(raw) if len(raw) <= MAX_CONFIG_BYTES else None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise PilotError(
                "invalid_argument",
                f"{self.config_path} is not a JSON object",
                "mend it, or remove it and run: pilotctl init",
            )
        return value

    def _configured(self, key: str) -> str:
        value = self.config.get(key)
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value) if isinstance(value, str | int | float) else ""

    def get(self, key: str, default: str = "") -> str:
        """A setting by its config key; flags have `-` where keys have `_`. Environment: PILOT_<KEY>."""
        return (
            self.flags.get(key.replace("_", "-"), "")
            or self.env.get(f"PILOT_{key.upper()}", "")
            or self._configured(key)
            or default
        )

    def on(self, key: str) -> bool:
        """A setting that is true or false."""
        return self.get(key, "false").lower() in ("true", "1", "yes", "on")

    @property
    def socket(self) -> str:
        """Where the daemon listens for local clients."""
        from pilot.sdk._socket import default_socket

        return self.get("socket") or default_socket()

    @property
    def new_socket(self) -> str:
        """Where a daemon that is started now shall listen: in the user's own directory if there is one."""
        runtime = self.env.get("XDG_RUNTIME_DIR", "")
        own = os.path.join(runtime, "pilot.sock") if runtime and os.path.isdir(runtime) else "/tmp/pilot.sock"
        return os.path.abspath(self.get("socket") or own)

    @property
    def registry(self) -> str:
        """`host:port`, "" if none is configured."""
        return self.get("registry")

    @property
    def beacon(self) -> str:
        """`host:port`, "" if none is configured: the registry's host on port 9001.

        A beacon of the config file belongs to the registry beside it and does not go with another one.
        """
        given = self.flags.get("beacon", "") or self.env.get("PILOT_BEACON", "")
        if given:
            return given
        registry = self.registry
        if self._configured("beacon") and self._configured("registry") in ("", registry):
            return self._configured("beacon")
        host = registry.rpartition(":")[0] if ":" in registry else registry
        return f"{host}:{BEACON_PORT}" if host else ""

    def update(self, changes: Mapping[str, str | bool | None]) -> None:
        """Writes keys of the config file (None removes one), atomically, mode 0600."""
        from pathlib import Path

        from pilot.files import make_private_dir, write_atomic

        try:
            make_private_dir(Path(self.home))
            with self._locked():
                value = self._load()
                value.update(changes)
                value = {k: v for k, v in value.items() if v is not None}
                text = json.dumps(value, indent=2, sort_keys=True) + "\n"
                write_atomic(Path(self.config_path), text.encode(), 0o600)
        except OSError as e:
            raise PilotError("permission_denied", f"cannot write {self.config_path}: {e.strerror}") from None
        self._config = value

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two commands that write at the same time keep each other's keys."""
        import fcntl

        directory = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
