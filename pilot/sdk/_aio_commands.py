"""One coroutine per JSON request of ipc.md. What daemons answer is returned as it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilot.sdk import _requests as rq
from pilot.sdk._commands import Json, decode, resolved
from pilot.wire.address import Address, parse, parse_node


class AioCommands:
    """Base of the asyncio Client. Every coroutine raises PilotError with the daemon's text."""

    async def _call(self, request: rq.Request, seconds: float | None = 60.0) -> bytes:
        raise NotImplementedError

    async def _json(self, request: rq.Request, seconds: float = 60.0) -> Json:
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
        reply = await self._json(rq.wait_for_trust(node, timeout_ms), 35.0 + timeout_ms / 1000)
        return reply.get("trusted") is True

    async def send_to_confirm(self, to: Address, port: int, data: bytes) -> None:
        """Sends a datagram and reports why it could not leave this node."""
        await self._call(rq.send_to_confirm(to, port, data), 30.0)

    async def broadcast(self, network: int, port: int, data: bytes, token: str = "") -> None:
        """A datagram to every member of a network."""
        await self._call(rq.broadcast(network, port, data, token), 30.0)

    async def info(self) -> Json:
        """State of the node, its peers and connections (ipc.md section 3)."""
        return await self._json(rq.info())

    async def health(self) -> Json:
        """Counters that cost nothing to ask."""
        return await self._json(rq.health())

    async def resolve_hostname(self, name: str) -> Json:
        """`{hostname, node_id, address, public}` of a name."""
        return await self._json(rq.resolve_hostname(name))

    async def set_hostname(self, name: str) -> Json:
        """Names this node; "" removes the name."""
        return await self._json(rq.set_hostname(name))

    async def set_visibility(self, public: bool) -> Json:
        """Public nodes can be resolved by everybody."""
        return await self._json(rq.set_visibility(public))

    async def deregister(self) -> Json:
        """Takes this node out of the registry."""
        return await self._json(rq.deregister())

    async def set_tags(self, tags: Sequence[str]) -> Json:
        """Replaces the tags, at most three."""
        return await self._json(rq.set_tags(tags))

    async def set_webhook(self, url: str) -> Json:
        """Where events are posted; "" = nowhere."""
        return await self._json(rq.set_webhook(url))

    async def set_task_exec(self, on: bool) -> Json:
        """Feb-2026 daemons only."""
        return await self._json(rq.set_task_exec(on))

    async def rotate_key(self) -> Json:
        """Gives this node a new identity key."""
        return await self._json(rq.rotate_key())

    async def prefer_direct(self, node: int) -> Json:
        """Forgets that a peer needed the relay."""
        return await self._json(rq.prefer_direct(node))

    async def peer_path(self, node: int, wait_ms: int = 0) -> Json:
        """The path to a peer, why it is taken, and what was decided before (docs/wire-extensions.md section 4).

        wait_ms: look for the peer and answer when the path is settled, at most 30 000; 0 = what is known now.
        """
        return await self._json(rq.peer_path(node, wait_ms), 60.0 + wait_ms / 1000)

    async def handshake(self, node: int, justification: str = "") -> Json:
        """Asks a node for trust."""
        return await self._json(rq.handshake(node, justification))

    async def approve_handshake(self, node: int) -> Json:
        """Grants the trust a node asked for."""
        return await self._json(rq.approve_handshake(node))

    async def reject_handshake(self, node: int, reason: str = "") -> Json:
        """Refuses the trust a node asked for."""
        return await self._json(rq.reject_handshake(node, reason))

    async def pending_handshakes(self) -> Json:
        """`{pending: [...]}`: who asks for trust."""
        return await self._json(rq.pending_handshakes())

    async def trusted_peers(self) -> Json:
        """`{trusted: [...]}`: whom this node trusts."""
        return await self._json(rq.trusted_peers())

    async def revoke_trust(self, node: int) -> Json:
        """Ends trust. PilotError if there was none."""
        return await self._json(rq.revoke_trust(node))

    async def network_list(self) -> Json:
        """Networks of the registry."""
        return await self._json(rq.network_list())

    async def network_join(self, network: int, token: str = "") -> Json:
        """Joins a network."""
        return await self._json(rq.network_join(network, token))

    async def network_leave(self, network: int) -> Json:
        """Leaves a network."""
        return await self._json(rq.network_leave(network))

    async def network_members(self, network: int) -> Json:
        """Nodes of a network."""
        return await self._json(rq.network_members(network))

    async def network_invite(self, network: int, node: int) -> Json:
        """Invites a node to a network."""
        return await self._json(rq.network_invite(network, node))

    async def network_poll_invites(self) -> Json:
        """Invitations for this node."""
        return await self._json(rq.network_poll_invites())

    async def network_respond_invite(self, network: int, accept: bool) -> Json:
        """Answers an invitation."""
        return await self._json(rq.network_respond_invite(network, accept))

    async def managed_status(self, network: int) -> Json:
        """State of a managed network."""
        return await self._json(rq.managed_status(network))

    async def managed_cycle(self, network: int) -> Json:
        """Runs a cycle of a managed network now."""
        return await self._json(rq.managed_cycle(network))

    async def managed_reconcile(self, network: int) -> Json:
        """Reconciles a managed network."""
        return await self._json(rq.managed_reconcile(network))

    async def policy_get(self, network: int) -> Json:
        """The policy of a network."""
        return await self._json(rq.policy_get(network))

    async def policy_set(self, network: int, policy: bytes, token: str = "") -> Json:
        """Sets the policy of a network."""
        return await self._json(rq.policy_set(network, policy, token))

    async def member_tags_get(self, network: int, node: int) -> Json:
        """Tags of a member."""
        return await self._json(rq.member_tags_get(network, node))

    async def member_tags_set(self, network: int, node: int, tags: Sequence[str]) -> Json:
        """Sets the tags of a member."""
        return await self._json(rq.member_tags_set(network, node, tags))

    async def sign_envelope(self, fields: Mapping[str, Any]) -> Json:
        """Signs a request envelope with the node's identity."""
        return await self._json(rq.sign_envelope(fields))

    async def verify_envelope(self, fields: Mapping[str, Any]) -> Json:
        """Checks a request envelope."""
        return await self._json(rq.verify_envelope(fields))

    async def submit_badge(self, badge: str, signature: str) -> Json:
        """Hands in a badge."""
        return await self._json(rq.submit_badge(badge, signature))

    async def enroll_recovery(self, enrollment: str, signature: str) -> Json:
        """Enrols for key recovery."""
        return await self._json(rq.enroll_recovery(enrollment, signature))
