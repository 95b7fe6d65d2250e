"""One coroutine per JSON request of ipc.md. What daemons answer is returned as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilot.sdk._commands import Json, decode, resolved
from pilot.wire import ipc_networks as networks
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address, parse, parse_node
from pilot.wire.ipc_message import Request


class AioCommands:
    """Base of the asyncio Client. Every coroutine raises PilotError with the daemon's text."""

    async def _call(self, request: Request, seconds: float | None = 60.0) -> bytes:
        raise NotImplementedError

    async def _json(self, request: Request, seconds: float = 60.0) -> Json:
        return decode(request.label, await self._call(request, seconds))

    async def resolve(self, peer: str) -> Address:
        """The address of a peer given as address, node number or name."""
        address = parse(peer)
        if address is None:
            node = parse_node(peer)
            if node is not None:
                return Address(0, node)
            address = resolved(peer, await self.resolve_hostname(peer))
        return address

    async def wait_for_trust(self, node: int, timeout_ms: int = 30_000) -> bool:
        """Whether a node is trusted, waiting up to `timeout_ms` (at most 30 000) for it; 0 = just asks."""
        reply = await self._json(rq.WaitForTrust(node, timeout_ms), 35.0 + timeout_ms / 1000)
        return reply.get("trusted") is True

    async def send_to_confirm(self, to: Address, port: int, data: bytes) -> None:
        """Sends a datagram and reports why it could not leave this node."""
        await self._call(rq.SendToConfirm(to, port, data), 30.0)

    async def broadcast(self, network: int, port: int, data: bytes, token: str = "") -> None:
        """A datagram to every member of a network."""
        await self._call(rq.Broadcast(network, port, token, data), 30.0)

    async def info(self) -> Json:
        """State of the node, its peers and connections (ipc.md section 3)."""
        return await self._json(rq.Info())

    async def health(self) -> Json:
        """Counters that cost nothing to ask."""
        return await self._json(rq.Health())

    async def resolve_hostname(self, name: str) -> Json:
        """`{hostname, node_id, address, public}` of a name."""
        return await self._json(rq.ResolveHostname(name))

    async def set_hostname(self, name: str) -> Json:
        """Names this node; "" removes the name."""
        return await self._json(rq.SetHostname(name))

    async def set_visibility(self, public: bool) -> Json:
        """Public nodes can be resolved by everybody."""
        return await self._json(rq.SetVisibility(public))

    async def deregister(self) -> Json:
        """Takes this node out of the registry."""
        return await self._json(rq.Deregister())

    async def set_tags(self, tags: Sequence[str]) -> Json:
        """Replaces the tags, at most three."""
        return await self._json(rq.SetTags(list(tags)))

    async def set_webhook(self, url: str) -> Json:
        """Where events are posted; "" = nowhere."""
        return await self._json(rq.SetWebhook(url))

    async def set_task_exec(self, on: bool) -> Json:
        """Feb-2026 daemons only."""
        return await self._json(rq.SetTaskExec(on))

    async def rotate_key(self) -> Json:
        """Gives this node a new identity key."""
        return await self._json(rq.RotateKey())

    async def prefer_direct(self, node: int) -> Json:
        """Forgets that a peer needed the relay."""
        return await self._json(rq.PreferDirect(node))

    async def peer_path(self, node: int, wait_ms: int = 0) -> Json:
        """The path to a peer, why it is taken, and what was decided before (docs/wire-extensions.md section 4).

        wait_ms: look for the peer and answer when the path is settled, at most 30 000; 0 = what is known now.
        """
        return await self._json(rq.PathInfo(node, wait_ms), 60.0 + wait_ms / 1000)

    async def handshake(self, node: int, justification: str = "") -> Json:
        """Asks a node for trust."""
        return await self._json(rq.Handshake(node, justification))

    async def approve_handshake(self, node: int) -> Json:
        """Grants the trust a node asked for."""
        return await self._json(rq.ApproveHandshake(node))

    async def reject_handshake(self, node: int, reason: str = "") -> Json:
        """Refuses the trust a node asked for."""
        return await self._json(rq.RejectHandshake(node, reason))

    async def pending_handshakes(self) -> Json:
        """`{pending: [...]}`: who asks for trust."""
        return await self._json(rq.PendingHandshakes())

    async def trusted_peers(self) -> Json:
        """`{trusted: [...]}`: whom this node trusts."""
        return await self._json(rq.TrustedPeers())

    async def revoke_trust(self, node: int) -> Json:
        """Ends trust. PilotError if there was none."""
        return await self._json(rq.RevokeTrust(node))

    async def network_list(self) -> Json:
        """Networks of the registry."""
        return await self._json(networks.NetworkList())

    async def network_join(self, network: int, token: str = "") -> Json:
        """Joins a network."""
        return await self._json(networks.NetworkJoin(network, token))

    async def network_leave(self, network: int) -> Json:
        """Leaves a network."""
        return await self._json(networks.NetworkLeave(network))

    async def network_members(self, network: int) -> Json:
        """Nodes of a network."""
        return await self._json(networks.NetworkMembers(network))

    async def network_invite(self, network: int, node: int) -> Json:
        """Invites a node to a network."""
        return await self._json(networks.NetworkInvite(network, node))

    async def network_poll_invites(self) -> Json:
        """Invitations for this node."""
        return await self._json(networks.NetworkPollInvites())

    async def network_respond_invite(self, network: int, accept: bool) -> Json:
        """Answers an invitation."""
        return await self._json(networks.NetworkRespondInvite(network, accept))

    async def managed_status(self, network: int) -> Json:
        """State of a managed network."""
        return await self._json(networks.ManagedStatus(network))

    async def managed_cycle(self, network: int) -> Json:
        """Runs a cycle of a managed network now."""
        return await self._json(networks.ManagedCycle(network))

    async def managed_reconcile(self, network: int) -> Json:
        """Reconciles a managed network."""
        return await self._json(networks.ManagedReconcile(network))

    async def policy_get(self, network: int) -> Json:
        """The policy of a network."""
        return await self._json(networks.PolicyGet(network))

    async def policy_set(self, network: int, policy: bytes, token: str = "") -> Json:
        """Sets the policy of a network."""
        return await self._json(networks.PolicySet(network, token, policy))

    async def member_tags_get(self, network: int, node: int) -> Json:
        """Tags of a member."""
        return await self._json(networks.MemberTagsGet(network, node))

    async def member_tags_set(self, network: int, node: int, tags: Sequence[str]) -> Json:
        """Sets the tags of a member."""
        return await self._json(networks.MemberTagsSet(network, node, tags))

    async def sign_envelope(self, fields: Mapping[str, Any]) -> Json:
        """Signs a request envelope with the node's identity."""
        return await self._json(rq.SignEnvelope(dict(fields)))

    async def verify_envelope(self, fields: Mapping[str, Any]) -> Json:
        """Checks a request envelope."""
        return await self._json(rq.VerifyEnvelope(dict(fields)))

    async def submit_badge(self, badge: str, signature: str) -> Json:
        """Hands in a badge."""
        return await self._json(rq.SubmitBadge({"badge": badge, "badge_sig": signature}))

    async def enroll_recovery(self, enrollment: str, signature: str) -> Json:
        """Enrols for key recovery."""
        return await self._json(rq.EnrollRecovery({"enrollment": enrollment, "enrollment_sig": signature}))
