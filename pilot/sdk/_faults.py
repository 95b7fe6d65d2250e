"""The daemon's error texts as PilotError codes (ipc.md section 2, table of texts). Pure."""

from __future__ import annotations

from pilot.errors import PilotError

START_HINT = "start the daemon with: pilotctl daemon start"

# First match wins: (text inside the daemon's message, lower case; code; retryable).
_CODES: tuple[tuple[str, str, bool], ...] = (
    ("unknown command", "not_supported", False),
    ("unknown sub-command", "not_supported", False),
    ("already bound", "already_exists", False),
    ("dial timeout", "timeout", True),
    ("key exchange", "connection_failed", True),
    ("connection refused", "connection_failed", True),
    ("was not trusted", "connection_failed", False),
    ("trust", "trust_required", False),
    ("quota", "connection_failed", True),
    ("token", "auth_required", False),
    ("denied", "permission_denied", False),
    ("not owned", "permission_denied", False),
    ("not found", "not_found", False),
    ("timed out", "timeout", True),
    ("timeout", "timeout", True),
    ("invalid", "invalid_argument", False),
    ("missing", "invalid_argument", False),
    ("maximum", "invalid_argument", False),
    ("must use", "invalid_argument", False),
    ("cannot target", "invalid_argument", False),
    ("payload must", "invalid_argument", False),
    ("no active managed networks", "not_supported", False),
)

_HINTS = {
    "not_supported": "the running daemon does not offer this; `pilotctl info` shows its version",
    "auth_required": "set PILOT_ADMIN_TOKEN or admin_token in ~/.pilot/config.json",
}


def from_daemon(label: str, body: bytes) -> PilotError:
    """The Error frame `code(2) text` that answered a request with this label."""
    text = body[2:].decode("utf-8", "replace") if len(body) >= 2 else "error without a text"
    low = text.lower()
    code, retryable = "connection_failed", False
    for needle, mapped, again in _CODES:
        if needle in low:
            code, retryable = mapped, again
            break
    return PilotError(code, f"{label}: daemon: {text}", _HINTS.get(code, ""), retryable)


def not_running(path: str, reason: OSError | None = None) -> PilotError:
    """Nobody listens on the socket."""
    if isinstance(reason, PermissionError):
        return PilotError(
            "permission_denied",
            f"the socket {path} belongs to another user",
            "run as the user that started the daemon, or set PILOT_SOCKET",
        )
    return PilotError("not_running", "daemon is not running", f"{START_HINT}  (tried {path})", True)


def timed_out(label: str, seconds: float) -> PilotError:
    """The daemon did not answer in time."""
    return PilotError("timeout", f"{label}: no answer within {round(seconds, 2):g}s", "", True)


def disconnected(label: str) -> PilotError:
    """The daemon closed the socket while this was waiting."""
    return PilotError("not_running", f"{label}: daemon disconnected", START_HINT, True)
