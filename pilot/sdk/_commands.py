"""One blocking method per JSON request of ipc.md. What daemons answer is returned as it came."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pilot.sdk._router import broken
from pilot.wire import ipc_networks as networks
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address, parse, parse_node
from pilot.wire.ipc_message import Request

Json = dict[str, Any]


def decode(label: str, body: bytes) -> Json:
    """The JSON object of a reply. PilotError(internal) if it is something else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise broken(f"{label}: reply is not JSON") from None
    if not isinstance(value, dict):
        raise broken(f"{label}: reply is not an object")
    return value


def resolved(name: str, reply: Json) -> Address:
    """The address in a resolve reply."""
    text, node = reply.get("address"), reply.get("node_id")
    address = parse(text) if isinstance(text, str) else None
    if address is None or not isinstance(node, int) or isinstance(node, bool):
        raise broken(f'resolve_hostname: no address for "{name}"')
    return address


class Commands:
    """Base of LocalClient. Every method raises PilotError with the daemon's text."""

    def _call(self, request: Request, timeout: float | None = 60.0) -> bytes:
        raise NotImplementedError

    def _json(self, request: Request, timeout: float = 60.0) -> Json:
        return decode(request.label, self._call(request, timeout))

    def resolve(self, peer: str) -> Address:
        """The address of a peer given as address, node number or name."""
        address = parse(peer)
        if address is None:
            node = parse_node(peer)
            if node is not None:
                return Address(0, node)
            address = resolved(peer, self.resolve_hostname(peer))
        return address

    def wait_for_trust(self, node: int, timeout_ms: int = 30_000) -> bool:
        """Whether a node is trusted, waiting up to `timeout_ms` (at most 30 000) for it; 0 = just asks."""
        reply = self._json(rq.WaitForTrust(node, timeout_ms), 35.0 + timeout_ms / 1000)
        return reply.get("trusted") is True

    def send_to_confirm(self, to: Address, port: int, data: bytes) -> None:
        """Sends a datagram and reports why it could not leave this node."""
        self._call(rq.SendToConfirm(to, port, data), 30.0)

    def broadcast(self, network: int, port: int, data: bytes, token: str = "") -> None:
        """A datagram to every member of a network."""
        self._call(rq.Broadcast(network, port, token, data), 30.0)

    def info(self) -> Json:
        """State of the node, its peers and connections (ipc.md section 3)."""
        return self._json(rq.Info())

    def health(self) -> Json:
        """Counters that cost nothing to ask."""
        return self._json(rq.Health())

    def resolve_hostname(self, name: str) -> Json:
        """`{hostname, node_id, address, public}` of a name."""
        return self._json(rq.ResolveHostname(name))

    def set_hostname(self, name: str) -> Json:
        """Names this node; "" removes the name."""
        return self._json(rq.SetHostname(name))

    def set_visibility(self, public: bool) -> Json:
        """Public nodes can be resolved by everybody."""
        return self._json(rq.SetVisibility(public))

    def deregister(self) -> Json:
        """Takes this node out of the registry."""
        return self._json(rq.Deregister())

    def set_tags(self, tags: Sequence[str]) -> Json:
        """Replaces the tags, at most three."""
        return self._json(rq.SetTags(list(tags)))

    def set_webhook(self, url: str) -> Json:
        """Where events are posted; "" = nowhere."""
        return self._json(rq.SetWebhook(url))

    def set_task_exec(self, on: bool) -> Json:
        """Feb-2026 daemons only."""
        return self._json(rq.SetTaskExec(on))

    def rotate_key(self) -> Json:
        """Gives this node a new identity key."""
        return self._json(rq.RotateKey())

    def prefer_direct(self, node: int) -> Json:
        """Forgets that a peer needed the relay."""
        return self._json(rq.PreferDirect(node))

    def peer_path(self, node: int, wait_ms: int = 0) -> Json:
        """The path to a peer, why it is taken, and what was decided before (docs/wire-extensions.md section 4).

        wait_ms: look for the peer and answer when the path is settled, at most 30 000; 0 = what is known now.
        """
        return self._json(rq.PathInfo(node, wait_ms), 60.0 + wait_ms / 1000)

    def handshake(self, node: int, justification: str = "") -> Json:
        """Asks a node for trust."""
        return self._json(rq.Handshake(node, justification))

    def approve_handshake(self, node: int) -> Json:
        """Grants the trust a node asked for."""
        return self._json(rq.ApproveHandshake(node))

    def reject_handshake(self, node: int, reason: str = "") -> Json:
        """Refuses the trust a node asked for."""
        return self._json(rq.RejectHandshake(node, reason))

    def pending_handshakes(self) -> Json:
        """`{pending: [...]}`: who asks for trust."""
        return self._json(rq.PendingHandshakes())

    def trusted_peers(self) -> Json:
        """`{trusted: [...]}`: whom this node trusts."""
        return self._json(rq.TrustedPeers())

    def revoke_trust(self, node: int) -> Json:
        """Ends trust. PilotError if there was none."""
        return self._json(rq.RevokeTrust(node))

    def network_list(self) -> Json:
        """Networks of the registry."""
        return self._json(networks.NetworkList())

    def network_join(self, network: int, token: str = "") -> Json:
        """Joins a network."""
        return self._json(networks.NetworkJoin(network, token))

    def network_leave(self, network: int) -> Json:
        """Leaves a network."""
        return self._json(networks.NetworkLeave(network))

    def network_members(self, network: int) -> Json:
        """Nodes of a network."""
        return self._json(networks.NetworkMembers(network))

    def network_invite(self, network: int, node: int) -> Json:
        """Invites a node to a network."""
        return self._json(networks.NetworkInvite(network, node))

    def network_poll_invites(self) -> Json:
        """Invitations for this node."""
        return self._json(networks.NetworkPollInvites())

    def network_respond_invite(self, network: int, accept: bool) -> Json:
        """Answers an invitation."""
        return self._json(networks.NetworkRespondInvite(network, accept))

    def managed_status(self, network: int) -> Json:
        """State of a managed network."""
        return self._json(networks.ManagedStatus(network))

    def managed_cycle(self, network: int) -> Json:
        """Runs a cycle of a managed network now."""
        return self._json(networks.ManagedCycle(network))

    def managed_reconcile(self, network: int) -> Json:
        """Reconciles a managed network."""
        return self._json(networks.ManagedReconcile(network))

    def policy_get(self, network: int) -> Json:
        """The policy of a network."""
        return self._json(networks.PolicyGet(network))

    def policy_set(self, network: int, policy: bytes, token: str = "") -> Json:
        """Sets the policy of a network."""
        return self._json(networks.PolicySet(network, token, policy))

    def member_tags_get(self, network: int, node: int) -> Json:
        """Tags of a member."""
        return self._json(networks.MemberTagsGet(network, node))

    def member_tags_set(self, network: int, node: int, tags: Sequence[str]) -> Json:
        """Sets the tags of a member."""
        return self._json(networks.MemberTagsSet(network, node, tags))

    def sign_envelope(self, fields: Mapping[str, Any]) -> Json:
        """Signs a request envelope with the node's identity."""
        return self._json(rq.SignEnvelope(dict(fields)))

    def verify_envelope(self, fields: Mapping[str, Any]) -> Json:
        """Checks a request envelope."""
        return self._json(rq.VerifyEnvelope(dict(fields)))

    def submit_badge(self, badge: str, signature: str) -> Json:
        """Hands in a badge."""
        return self._json(rq.SubmitBadge({"badge": badge, "badge_sig": signature}))

    def enroll_recovery(self, enrollment: str, signature: str) -> Json:
        """Enrols for key recovery."""
        return self._json(rq.EnrollRecovery({"enrollment": enrollment, "enrollment_sig": signature}))
