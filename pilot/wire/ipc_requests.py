"""What clients ask of the daemon on its local socket (ipc.md 2; docs/wire-extensions.md 4).

Clients build: `Dial(address, 7).frame()`. The daemon parses: `parse_request(code, payload)`; the reason of the WireError
is the text of its Error frame, word for word as other daemons say it, since clients know some of them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pilot.wire import ipc_networks as networks
from pilot.wire.address import Address
from pilot.wire.errors import WireError
from pilot.wire.ipc_frames import Cmd
from pilot.wire.ipc_message import (
    ADDRESS,
    DATA,
    FLAG,
    LATER_U32,
    NAME,
    OBJECT,
    STRINGS,
    TEXT,
    U16,
    U32,
    Request,
    counted,
    labelled,
    split_counted,
    uints,
)

MAX_TAGS = 3
WAIT_MAX_MS = 30_000

_DIAL = struct.Struct(">IBHIH").pack
_CLOSE = struct.Struct(">IBI").pack

# ---- streams and datagrams ----


class Bind(Request):
    """Connections to `port` shall come to this client."""

    code, label, layout, short = Cmd.BIND, "bind", (U16,), "bind: missing port"
    port: int


class Unbind(Request):
    """Gives a bound port back."""

    code, label, layout, short = Cmd.UNBIND, "unbind", (U16,), "unbind: port is required"
    port: int


class Dial(Request):
    """Opens a connection."""

    code, label, layout, short = Cmd.DIAL, "dial", (ADDRESS, U16), "dial: missing address/port"
    address: Address
    port: int

    def frame(self) -> bytes:
        try:
            return _DIAL(9, Cmd.DIAL, *self.address, self.port)  # a dial waits for it
        except (struct.error, TypeError):
            return super().frame()  # which says what is wrong


class Send(Request):
    """Stream bytes, at most MAX_SEND. No reply."""

    code, label, layout, short = Cmd.SEND, "send", (U32, DATA), "send: missing conn_id"
    conn_id: int
    data: bytes


class Close(Request):
    """Ends a connection; CloseOk comes as a push."""

    code, label, layout, short = Cmd.CLOSE, "close", (U32,), "close: missing conn_id"
    conn_id: int

    def frame(self) -> bytes:
        try:
            return _CLOSE(5, Cmd.CLOSE, self.conn_id)
        except struct.error:
            return super().frame()


class SendTo(Request):
    """A datagram. No reply."""

    code, label, layout, short = Cmd.SEND_TO, "sendto", (ADDRESS, U16, DATA), "sendto: missing address/port"
    address: Address
    port: int
    data: bytes


class SendToConfirm(Request):
    """A datagram whose sending is confirmed."""

    code, label, layout, short = Cmd.SEND_TO_CONFIRM, "sendto", (ADDRESS, U16, DATA), "sendto: missing header"
    address: Address
    port: int
    data: bytes


class Cancel(Request):
    """Ends the dials of this client that are under way. No reply."""

    code, label = Cmd.CANCEL, "cancel"


class Broadcast(Request):
    """A datagram to every member of a network."""

    code, label, short = Cmd.BROADCAST, "broadcast", "broadcast: missing header"
    network: int
    port: int
    token: str
    data: bytes

    @property
    def payload(self) -> bytes:
        """network, port, length and bytes of the token, data."""
        return uints((self.network, 2), (self.port, 2)) + counted(self.token) + self.data

    @classmethod
    def parse(cls, payload: bytes) -> Broadcast:
        """Raises WireError."""
        if len(payload) < 6:
            raise WireError(cls.short)
        token, data = split_counted(payload[4:], "broadcast: truncated token")
        return cls(U16.unpack(payload[:2]), U16.unpack(payload[2:4]), token, data)


# ---- the node itself ----


class Info(Request):
    """State of the node."""

    code, label = Cmd.INFO, "info"


class Health(Request):
    """State in short, without asking anybody."""

    code, label = Cmd.HEALTH, "health"


class ResolveHostname(Request):
    """Node of a name."""

    code, label, layout, short = Cmd.RESOLVE_HOSTNAME, "resolve_hostname", (NAME,), "resolve_hostname: missing hostname"
    hostname: str


class SetHostname(Request):
    """Own name; "" gives it up."""

    code, label, layout = Cmd.SET_HOSTNAME, "set_hostname", (TEXT,)
    hostname: str


class SetVisibility(Request):
    """public: everybody may resolve and dial the node."""

    code, label, layout, short = Cmd.SET_VISIBILITY, "set_visibility", (FLAG,), "set_visibility: missing value"
    public: bool


class Deregister(Request):
    """Leaves the registry."""

    code, label = Cmd.DEREGISTER, "deregister"


class SetTags(Request):
    """Own tags, at most MAX_TAGS."""

    code, label, layout = Cmd.SET_TAGS, "set_tags", (STRINGS,)
    tags: Sequence[str]

    @classmethod
    def parse(cls, payload: bytes) -> SetTags:
        """JSON null reads as no tags. Raises WireError."""
        tags = labelled("set_tags", STRINGS, payload)
        if len(tags) > MAX_TAGS:
            raise WireError(f"set_tags: maximum {MAX_TAGS} tags allowed")
        return cls(tags)


class SetWebhook(Request):
    """Where events are posted; "" for nowhere."""

    code, label, layout = Cmd.SET_WEBHOOK, "set_webhook", (TEXT,)
    url: str


class SetTaskExec(Request):
    """The node takes tasks (Feb-2026 clients)."""

    code, label, layout, short = Cmd.SET_TASK_EXEC, "set_task_exec", (FLAG,), "set_task_exec: missing value"
    on: bool


class RotateKey(Request):
    """A new identity key."""

    code, label = Cmd.ROTATE_KEY, "rotate_key"


class PreferDirect(Request):
    """Tries again to reach a relayed peer directly. The payload is exactly the node."""

    code, label, layout = Cmd.PREFER_DIRECT, "prefer_direct", (U32,)
    node: int

    @classmethod
    def parse(cls, payload: bytes) -> PreferDirect:
        """Raises WireError."""
        if len(payload) != 4:
            raise WireError("prefer_direct: payload must be 4 bytes (node_id)")
        return cls(U32.unpack(payload))


class PathInfo(Request):
    """How a peer is reached. wait_ms: look for a path so long, at most WAIT_MAX_MS; 0 = tell what is known."""

    code, label, layout, short = Cmd.PATH_INFO, "path", (U32, LATER_U32), "path: missing node_id"
    node: int
    wait_ms: int = 0


class SubmitBadge(Request):
    """fields: badge, badge_sig."""

    code, label, layout = Cmd.SUBMIT_BADGE, "submit_badge", (OBJECT,)
    fields: Mapping[str, Any]


class EnrollRecovery(Request):
    """fields: enrollment, enrollment_sig."""

    code, label, layout = Cmd.ENROLL_RECOVERY, "enroll_recovery", (OBJECT,)
    fields: Mapping[str, Any]


class SignEnvelope(Request):
    """fields: audience, body_hash or body_b64, nonce?."""

    code, label, layout = Cmd.SIGN_ENVELOPE, "sign_envelope", (OBJECT,)
    fields: Mapping[str, Any]


class VerifyEnvelope(Request):
    """fields: envelope, signature, check_standing, max_skew_secs."""

    code, label, layout = Cmd.VERIFY_ENVELOPE, "verify_envelope", (OBJECT,)
    fields: Mapping[str, Any]


# ---- trust: sub-commands of Handshake ----


class Handshake(Request):
    """Asks a node for trust."""

    code, lead, label, layout = Cmd.HANDSHAKE, b"\x01", "handshake", (U32, TEXT)
    short = "handshake request: missing node_id"
    node: int
    justification: str


class ApproveHandshake(Request):
    """Trusts a node that asked."""

    code, lead, label, layout = Cmd.HANDSHAKE, b"\x02", "approve", (U32,)
    short = "handshake approve: missing node_id"
    node: int


class RejectHandshake(Request):
    """Turns a node down."""

    code, lead, label, layout = Cmd.HANDSHAKE, b"\x03", "reject", (U32, TEXT)
    short = "handshake reject: missing node_id"
    node: int
    reason: str


class PendingHandshakes(Request):
    """Nodes that asked and have no answer."""

    code, lead, label = Cmd.HANDSHAKE, b"\x04", "pending"


class TrustedPeers(Request):
    """Nodes that are trusted."""

    code, lead, label = Cmd.HANDSHAKE, b"\x05", "trusted"


class RevokeTrust(Request):
    """Trusts a node no longer."""

    code, lead, label, layout = Cmd.HANDSHAKE, b"\x06", "revoke", (U32,)
    short = "handshake revoke: missing node_id"
    node: int


class WaitForTrust(Request):
    """Answers when the node is trusted, at the latest after timeout_ms (at most WAIT_MAX_MS); 0 = at once."""

    code, lead, label, layout = Cmd.HANDSHAKE, b"\x07", "wait", (U32, U32)
    short = "handshake wait: payload must be [nodeID(4)][timeoutMs(4)]"
    node: int
    timeout_ms: int


# A command with sub-commands: what its error texts start with.
_GROUPS: dict[int, str] = {Cmd.HANDSHAKE: "handshake", Cmd.NETWORK: "network", Cmd.MANAGED: "managed"}
_TYPES: tuple[type[Request], ...] = (
    Bind, Unbind, Dial, Send, Close, SendTo, SendToConfirm, Cancel, Broadcast, Info, Health, ResolveHostname, SetHostname,
    SetVisibility, Deregister, SetTags, SetWebhook, SetTaskExec, RotateKey, PreferDirect, PathInfo, SubmitBadge, EnrollRecovery,
    SignEnvelope, VerifyEnvelope, Handshake, ApproveHandshake, RejectHandshake, PendingHandshakes, TrustedPeers, RevokeTrust,
    WaitForTrust, *networks.TYPES,
)  # fmt: skip
_PLAIN: dict[int, type[Request]] = {t.code: t for t in _TYPES if not t.lead}
_SUB: dict[tuple[int, bytes], type[Request]] = {(t.code, t.lead): t for t in _TYPES if t.lead}


def parse_request(code: int, payload: bytes) -> Request:
    """The request of a frame. Raises WireError; the reason is what the Error frame has to say."""
    plain = _PLAIN.get(code)
    if plain is not None:
        return plain.parse(payload)
    group = _GROUPS.get(code)
    if group is None:
        raise WireError(f"unknown command: 0x{code:02X}")
    if not payload:
        raise WireError(f"{group}: missing sub-command")
    kind = _SUB.get((code, payload[:1])) or _SUB.get((code, payload[:2]))
    if kind is None:
        raise WireError(f"{group}: unknown sub-command 0x{payload[0]:02X}")
    return kind.parse(payload)
