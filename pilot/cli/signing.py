"""sign-request, verify-request: envelopes that prove to services outside the network which node asks (ipc.md section 3)."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from pilot.cli.args import parse_number, usage
from pilot.cli.output import clean
from pilot.cli.session import Session
from pilot.errors import PilotError

_BODIES = ("body", "body-file", "body-hash")


def sign(s: Session) -> None:
    """Signs the digest of a request's body for one audience."""
    audience = s.args.text("audience")
    if not audience:
        raise usage("missing flag: --audience <name>", "whom the request goes to; the receiver compares it")
    reply = s.client.sign_envelope({"audience": audience, "body_hash": _digest(s)})
    data = {k: reply.get(k) for k in ("envelope", "signature", "address")}
    s.out.done(data, "\n".join(f"{k + ':':<11}{clean(str(v))}" for k, v in data.items()))


def _digest(s: Session) -> str:
    """64 hex digits of the SHA-256."""
    given = [name for name in _BODIES if name in s.args.flags]
    if len(given) != 1:
        raise usage("want one of --body, --body-file, --body-hash")
    value = s.args.text(given[0])
    if given[0] == "body-hash":
        if len(value) != 64 or not set(value.lower()) <= set("0123456789abcdef"):
            raise usage("flag --body-hash: want 64 hexadecimal digits")
        return value.lower()
    if given[0] == "body":
        return hashlib.sha256(os.fsencode(value)).hexdigest()
    try:
        with open(value, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise PilotError("not_found", f"cannot read {value}: {e.strerror}", "check the path") from None


def verify(s: Session) -> int:
    """Who signed an envelope. 1 if it is not valid."""
    fields: dict[str, Any] = {"check_standing": s.args.has("standing")}
    for name in ("envelope", "signature"):
        fields[name] = s.args.text(name)
        if not fields[name]:
            raise usage(f"missing flag: --{name}")
    if "max-skew" in s.args.flags:
        fields["max_skew_secs"] = parse_number(s.args.text("max-skew"), "flag --max-skew", 1, 86400)
    reply = s.client.verify_envelope(fields)
    valid = reply.get("valid") is True
    trusted = "trusted" if reply.get("trusted") is True else "not trusted"
    text = f"valid: signed by node {reply.get('node_id')} ({clean(str(reply.get('address')))}), {trusted}"
    s.out.done(reply, text if valid else f"not valid: {clean(str(reply.get('reason') or 'no reason given'))}")
    return 0 if valid else 1
