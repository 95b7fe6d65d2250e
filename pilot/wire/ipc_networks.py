"""Requests about networks, their policies and their members: sub-commands of Network and Managed (ipc.md 3)."""

from __future__ import annotations

from collections.abc import Sequence

from pilot.wire.errors import WireError
from pilot.wire.ipc_frames import Cmd
from pilot.wire.ipc_message import FLAG, STRINGS, TEXT, U16, U32, Request, counted, labelled, split_counted, uints


class NetworkList(Request):
    """Networks the registry knows."""

    code, lead, label = Cmd.NETWORK, b"\x01", "network list"


class NetworkJoin(Request):
    """Becomes a member."""

    code, lead, label, layout = Cmd.NETWORK, b"\x02", "network join", (U16, TEXT)
    short = "network join: missing network_id"
    network: int
    token: str


class NetworkLeave(Request):
    """Ends a membership."""

    code, lead, label, layout = Cmd.NETWORK, b"\x03", "network leave", (U16,)
    short = "network leave: missing network_id"
    network: int


class NetworkMembers(Request):
    """Who is in a network."""

    code, lead, label, layout = Cmd.NETWORK, b"\x04", "network members", (U16,)
    short = "network members: missing network_id"
    network: int


class NetworkInvite(Request):
    """Invites a node."""

    code, lead, label, layout = Cmd.NETWORK, b"\x05", "network invite", (U16, U32)
    short = "network invite: missing network_id/node_id"
    network: int
    node: int


class NetworkPollInvites(Request):
    """Invitations to this node."""

    code, lead, label = Cmd.NETWORK, b"\x06", "network poll-invites"


class NetworkRespondInvite(Request):
    """Accepts or declines an invitation."""

    code, lead, label, layout = Cmd.NETWORK, b"\x07", "network respond-invite", (U16, FLAG)
    short = "network respond-invite: missing network_id/accept"
    network: int
    accept: bool


class ManagedStatus(Request):
    """State of a managed network."""

    code, lead, label, layout = Cmd.MANAGED, b"\x02", "managed status", (U16,)
    short = "managed status: missing network_id"
    network: int


class ManagedCycle(Request):
    """Runs a cycle now."""

    code, lead, label, layout = Cmd.MANAGED, b"\x04", "managed cycle", (U16,)
    short = "managed cycle: missing network_id"
    network: int


class ManagedReconcile(Request):
    """Fetches membership anew."""

    code, lead, label, layout = Cmd.MANAGED, b"\x07", "managed reconcile", (U16,)
    short = "managed reconcile: missing network_id"
    network: int


class PolicyGet(Request):
    """The policy of a network."""

    code, lead, label, layout = Cmd.MANAGED, b"\x05\x00", "policy get", (U16,)
    short = "managed policy: missing network_id"
    network: int


class PolicySet(Request):
    """Replaces the policy. policy: JSON text, not judged here."""

    code, lead, label = Cmd.MANAGED, b"\x05\x01", "policy set"
    short = "managed policy: missing network_id/token"
    network: int
    token: str
    policy: bytes

    @property
    def payload(self) -> bytes:
        """network, length and bytes of the token, policy. Raises WireError."""
        return self.lead + uints((self.network, 2)) + counted(self.token) + self.policy

    @classmethod
    def parse(cls, payload: bytes) -> PolicySet:
        """Raises WireError."""
        if len(payload) < 6:
            raise WireError(cls.short)
        return cls(U16.unpack(payload[2:4]), *split_counted(payload[4:], "managed policy: truncated token"))


class MemberTagsGet(Request):
    """Tags of a member."""

    code, lead, label, layout = Cmd.MANAGED, b"\x06\x00", "member-tags get", (U16, U32)
    short = "managed member-tags: missing network_id/node_id"
    network: int
    node: int


class MemberTagsSet(Request):
    """Replaces the tags of a member."""

    code, lead, label, layout = Cmd.MANAGED, b"\x06\x01", "member-tags set", (U16, U32, STRINGS)
    short = "managed member-tags: missing network_id/node_id"
    network: int
    node: int
    tags: Sequence[str]

    @classmethod
    def parse(cls, payload: bytes) -> MemberTagsSet:
        """Raises WireError."""
        if len(payload) < 8:
            raise WireError(cls.short)
        tags = labelled("managed member-tags", STRINGS, payload[8:])
        return cls(U16.unpack(payload[2:4]), U32.unpack(payload[4:8]), tags)


TYPES: tuple[type[Request], ...] = (
    NetworkList, NetworkJoin, NetworkLeave, NetworkMembers, NetworkInvite, NetworkPollInvites, NetworkRespondInvite,
    ManagedStatus, ManagedCycle, ManagedReconcile, PolicyGet, PolicySet, MemberTagsGet, MemberTagsSet,
)  # fmt: skip
