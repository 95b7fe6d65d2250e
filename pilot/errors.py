"""The one error family. What a user reads is `message` and `hint`; programs act on `code` and `retryable`."""

from __future__ import annotations


class PilotError(Exception):
    """An operation failed.

    code: one of cli.md section 1 (`invalid_argument`, `not_found`, `already_exists`, `not_running`,
    `connection_failed`, `timeout`, `internal`, `permission_denied`, `trust_required`, `auth_required`,
    `not_supported`). hint: what the user can do, "" if nothing. retryable: the same call may succeed later.
    """

    def __init__(self, code: str, message: str, hint: str = "", retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = retryable
