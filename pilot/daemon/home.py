"""What earlier starts left in `~/.pilot` for the next one, shared with the published daemon (cli.md section 1).

    config.json    flag names as keys; also the settings of pilotctl
    webhook_url    the receiver of events that was set while the daemon ran
    account.json   {"email"}: the operator; lies beside the identity

A file that cannot be understood stops the start and stays as it is: each of them is somebody's only copy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pilot.errors import PilotError
from pilot.files import write_atomic

MAX_BYTES = 1 << 20
RESTORE = "restore it from a backup, or move it away to start without it"


class StateDir:
    """`~/.pilot` and the folder of the identity. Reading raises PilotError for damaged files; a missing one is empty."""

    def __init__(self, home: Path, identity: Path | None) -> None:
        self.config_path = home / "config.json"
        self.webhook_path = home / "webhook_url"
        self.account_path = identity.parent / "account.json" if identity else None

    def email(self) -> str:
        """The operator's address, "" if none was kept."""
        raw = _read(self.account_path) if self.account_path else None
        if raw is None:
            return ""
        email = parse_object(raw, f"account file {self.account_path}").get("email", "")
        if not isinstance(email, str):
            raise damaged(f"account file {self.account_path}", "email is not a string")
        return email

    def keep_email(self, email: str) -> None:
        """Remembers the address for starts that do not name it. Raises PilotError."""
        if self.account_path and email and self.email() != email:
            _write(self.account_path, json.dumps({"email": email}, indent=2).encode())

    def webhook(self) -> str:
        """The receiver of events, "" if none was kept."""
        raw = _read(self.webhook_path)
        try:
            url = (raw or b"").decode().strip()
        except UnicodeDecodeError:
            raise damaged(f"webhook file {self.webhook_path}", "not text") from None
        if url and (not url.lower().startswith(("http://", "https://")) or not url.isprintable()):
            raise damaged(f"webhook file {self.webhook_path}", "not an http or https URL")
        return url

    def keep_webhook(self, url: str) -> None:
        """Remembers the receiver; "" forgets it. Raises PilotError."""
        if url:
            _write(self.webhook_path, url.encode())
            return
        try:
            self.webhook_path.unlink(missing_ok=True)
        except OSError as error:
            raise PilotError("permission_denied", f"{self.webhook_path} cannot be removed: {error.strerror}") from None


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """A file that holds one JSON object. PilotError naming `what` if it does not."""
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise damaged(what, f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise damaged(what, "not a JSON object")
    return data


def damaged(what: str, reason: str) -> PilotError:
    """A file that is there and cannot be used."""
    return PilotError("internal", f"{what} is damaged: {reason}", RESTORE)


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PilotError("permission_denied", f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise damaged(str(path), "larger than 1 MiB")
    return raw


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise PilotError("permission_denied", f"{path} cannot be written: {error.strerror}") from None


def default_socket(runtime: str) -> Path:
    """Where clients look first: in the user's own directory, `$XDG_RUNTIME_DIR`, if there is one."""
    return Path(runtime, "pilot.sock") if runtime and os.path.isdir(runtime) else Path("/tmp/pilot.sock")
