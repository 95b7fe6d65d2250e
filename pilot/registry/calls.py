"""Requests and replies as clients see them: what to send, what an error text means (registry.md sections 2, 3, 5)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Protocol

from pilot.errors import PilotError
from pilot.registry import texts
from pilot.wire import registry as wire
from pilot.wire.errors import WireError

Message = dict[str, Any]

DEADLINE_S = 8.0  # for one call, connecting and one repetition included
HIDDEN = "request failed"
HINT = "check that the registry runs and that its address and port are right"


class Signer(Protocol):
    """A node's Ed25519 identity."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64 bytes, plain Ed25519."""


def frame(command: str, fields: Mapping[str, Any]) -> bytes:
    """A request as it is sent. Raises PilotError(invalid_argument) for fields that cannot be."""
    try:
        return wire.encode({"type": command, **fields})
    except WireError as error:
        raise PilotError("invalid_argument", f"{command}: {error}") from error


def signature(identity: Signer, signed: str) -> str:
    """The `signature` field over a text."""
    return base64.b64encode(identity.sign(signed.encode())).decode()


def register(identity: Signer, listen_addr: str, optional: Mapping[str, Any]) -> Message:
    """The fields of a signed registration; `optional` fields that are empty are left out."""
    key = base64.b64encode(identity.public_key).decode()
    return {
        "listen_addr": listen_addr,
        "public_key": key,
        "signature": signature(identity, texts.register(listen_addr, key)),
        **{name: value for name, value in optional.items() if value},
    }


def check(command: str, reply: Any) -> Message:
    """The reply, if it reports success. Raises PilotError for an error reply and for what is no reply."""
    if not isinstance(reply, dict):
        raise PilotError("internal", "the registry sent something that is no reply")
    if "error" in reply:
        raise fault(command, str(reply["error"]))
    if reply.get("type") != f"{command}_ok":
        raise PilotError("internal", f"the registry answered {command} with another kind of reply")
    return reply


def node_number(reply: Mapping[str, Any]) -> int:
    """`node_id` of a reply. Raises PilotError if there is none."""
    node = reply.get("node_id")
    if not isinstance(node, int) or isinstance(node, bool) or not 0 < node < 0xFFFFFFFF:
        raise PilotError("internal", "the registry sent a reply without a usable node_id")
    return node


# What a bare "request failed" means for the commands where it can mean only one thing to the caller.
_BARE = {
    "lookup": "not_found",
    "resolve_hostname": "not_found",
    "get_polo_score": "not_found",
    "revoke_trust": "not_found",
    "resolve": "permission_denied",
    "punch": "permission_denied",
    "list_nodes": "permission_denied",
}
_BY_WORD = (
    ("rate limited", "internal", "wait a minute and try again", True),
    ("yet", "connection_failed", "try again in a minute", True),
    ("not found", "not_found", "", False),
    ("admin token", "auth_required", "set the operator's admin token", False),
    ("signature", "auth_required", "", False),
    ("already", "already_exists", "", False),
    ("cannot", "not_supported", "", False),
    ("invalid", "invalid_argument", "", False),
    ("too", "invalid_argument", "", False),
    ("require", "invalid_argument", "", False),
)


def fault(command: str, error: str) -> PilotError:
    """The PilotError for the text of an error reply."""
    error = error[:500]
    if error == HIDDEN:
        code = _BARE.get(command, "internal")
        message = {
            "not_found": "the registry does not know it",
            "permission_denied": "the registry does not allow it (the node is private, or unknown)",
        }.get(code, f"the registry refused {command}")
        return PilotError(code, message)
    for word, code, hint, retryable in _BY_WORD:
        if word in error:
            return PilotError(code, error, hint, retryable)
    return PilotError("internal", error)
