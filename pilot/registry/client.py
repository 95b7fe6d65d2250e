"""The registry client of the daemon: every command as a method, signed where it must be (registry.md sections 3, 5, 6)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from pilot.errors import PilotError
from pilot.registry import calls, texts
from pilot.registry.calls import DEADLINE_S, Message, Signer
from pilot.registry.pool import Detour, Pool


class RegistryClient:
    """Calls to one registry on behalf of one node. Belongs to one event loop.

    Every method raises PilotError: `timeout` and `connection_failed` when the registry is out of reach (retryable), otherwise the
    registry's own answer, such as `not_found`, `permission_denied`, `already_exists`, `auth_required`.
    """

    def __init__(
        self, host: str, port: int, identity: Signer | None = None, *, tls_trust: str = "", fingerprint: str = "",
        admin_token: str = "",
    ) -> None:  # fmt: skip
        """tls_trust: "" for plain TCP, "pinned" (by `fingerprint`, hex SHA-256 of the certificate) or "system". identity: None
        for calls that need no signature."""
        self.node = 0  # own number, set by register()
        self.address = ""  # own virtual address, set by register()
        self._pool = Pool(host, port, tls_trust=tls_trust, fingerprint=fingerprint)
        self._identity = identity
        self._admin_token = admin_token

    async def close(self) -> None:
        """Ends all connections; calls under way fail with connection_failed. Idempotent."""
        self._pool.close()

    def reset(self) -> None:
        """Takes all connections for dead, drops the back-off: the network has changed. Requests under way repeat themselves."""
        self._pool.reset()

    def use_detour(self, detour: Detour | None) -> None:
        """Another way to the registry for connections from now on, where its port cannot be reached. Not with TLS: the detour has
        its own."""
        if detour is None or not self._pool.secure:
            self._pool.detour = detour

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Called when the registry closes a connection: it may be a new one that has forgotten us."""
        self._pool.on_lost = callback

    def use_identity(self, identity: Signer) -> None:
        """Calls are signed with another key from now on."""
        self._identity = identity

    @property
    def connected(self) -> bool:
        """Whether a connection to the registry stands."""
        return self._pool.connected

    async def call(self, command: str, fields: Message, deadline_s: float = DEADLINE_S) -> Message:
        """Sends a command with its fields as they are and returns the reply. For commands without a method of their own."""
        return calls.check(command, await self._pool.exchange(calls.frame(command, fields), deadline_s))

    # Commands

    def _sign(self, signed: str) -> str:
        if self._identity is None:
            raise PilotError("auth_required", "this call needs the node's identity")
        return calls.signature(self._identity, signed)

    def _own(self) -> int:
        if not self.node:
            raise PilotError("not_running", "not registered yet", retryable=True)
        return self.node

    async def register(
        self, listen_addr: str = "", *, hostname: str = "", owner: str = "", lan_addrs: Sequence[str] = (), version: str = "",
        relay_only: bool = False,
    ) -> Message:  # fmt: skip
        """Registers the identity. listen_addr: `host:port` of the tunnel socket as others reach it; the registry takes the host
        from the connection. Sets `node` and `address`. The reply has also observed_addr, and hostname or hostname_error."""
        if self._identity is None:
            raise PilotError("auth_required", "registration needs the node's identity")
        request = calls.register(
            self._identity, listen_addr,
            {
                "hostname": hostname, "owner": owner, "lan_addrs": list(lan_addrs), "version": version,
                "relay_only": relay_only, "admin_token": self._admin_token,
            },
        )  # fmt: skip
        reply = await self.call("register", request)
        self.node = calls.node_number(reply)
        self.address = str(reply.get("address") or "")
        return reply

    async def heartbeat(self) -> Message:
        """Says that the node lives. auth_required or not_found: register again at once."""
        return await self._of_node("heartbeat")

    async def announce_key(self, pila: bytes) -> Message:
        """Lets `resolve` tell others the node's PILA. Only for a registry whose register reply has `announce_key`."""
        return await self._of_node("announce_key", tunnel_key=base64.b64encode(pila).decode())

    async def deregister(self) -> None:
        """Takes the node offline."""
        await self._of_node("deregister")

    async def poll_handshakes(self) -> Message:
        """`requests` and `responses` that wait for this node; the same message may come twice."""
        return await self._of_node("poll_handshakes")

    async def poll_invites(self) -> list[Message]:
        """Invitations to networks."""
        return _objects((await self._of_node("poll_invites")).get("invites"))

    async def set_hostname(self, hostname: str) -> Message:
        """Names the node, "" takes the name away. already_exists: somebody else has it."""
        return await self._of_node("set_hostname", hostname=hostname)

    async def set_visibility(self, public: bool) -> Message:
        """Whether every registered node may resolve this one."""
        return await self._of_node("set_visibility", public=public)

    async def set_tags(self, tags: Sequence[str]) -> Message:
        """Replaces the tags."""
        return await self._of_node("set_tags", tags=list(tags))

    async def set_task_exec(self, enabled: bool) -> Message:
        """Whether this node takes tasks."""
        return await self._of_node("set_task_exec", enabled=enabled)

    async def _of_node(self, command: str, **fields: Any) -> Message:
        node = self._own()
        signed = self._sign(texts.of_node(command, node))
        return await self.call(command, {"node_id": node, "signature": signed, **fields})

    async def lookup(self, node: int) -> Message:
        """What everybody may know about a node: public_key (base64), public, hostname, real_addr if public, ..."""
        return await self.call("lookup", {"node_id": node})

    async def resolve(self, node: int) -> Message:
        """Where a node is: real_addr, lan_addrs, relay_only. permission_denied: it is private and does not trust us."""
        own = self._own()
        signed = self._sign(texts.of_pair("resolve", own, node))
        return await self.call("resolve", {"node_id": node, "requester_id": own, "signature": signed})

    async def resolve_hostname(self, hostname: str) -> Message:
        """The node of a name: node_id, address, public."""
        requester = {"requester_id": self.node} if self.node else {}
        return await self.call("resolve_hostname", {"hostname": hostname, **requester})

    async def punch(self, node_a: int, node_b: int) -> Message:
        """The endpoints of two nodes, one of them this one."""
        own = self._own()
        signed = self._sign(texts.of_pair("punch", node_a, node_b))
        fields = {"requester_id": own, "node_a": node_a, "node_b": node_b, "signature": signed}
        return await self.call("punch", fields)

    async def report_trust(self, peer: int) -> None:
        """This node trusts `peer`. It counts when the peer says so too."""
        await self._of_pair("report_trust", "peer_id", peer)

    async def revoke_trust(self, peer: int) -> None:
        """Ends the pair with `peer`. not_found: there was none."""
        await self._of_pair("revoke_trust", "peer_id", peer)

    async def join_network(self, network: int, token: str = "") -> Message:
        """Joins a network."""
        return await self._of_pair("join_network", "network_id", network, token=token)

    async def leave_network(self, network: int) -> Message:
        """Leaves a network."""
        return await self._of_pair("leave_network", "network_id", network)

    async def _of_pair(self, command: str, field: str, other: int, **fields: Any) -> Message:
        node = self._own()
        signed = self._sign(texts.of_pair(command, node, other))
        return await self.call(command, {"node_id": node, field: other, "signature": signed, **fields})

    async def request_handshake(self, peer: int, justification: str = "") -> None:
        """Leaves a request for trust in the peer's inbox; one that waits there already is as good."""
        own = self._own()
        signed = self._sign(texts.handshake(own, peer))
        fields = {"from_node_id": own, "to_node_id": peer, "justification": justification, "signature": signed}
        try:
            await self.call("request_handshake", fields)
        except PilotError as error:
            if error.code != "already_exists":
                raise

    async def respond_handshake(self, peer: int, accept: bool) -> None:
        """Answers the request of `peer`."""
        own = self._own()
        signed = self._sign(texts.respond(own, peer))
        await self.call("respond_handshake", {"node_id": own, "peer_id": peer, "accept": accept, "signature": signed})

    async def check_trust(self, node: int, peer: int) -> bool:
        """Whether the registry holds a trust pair of two nodes."""
        return (await self.call("check_trust", {"node_id": node, "peer_id": peer})).get("trusted") is True

    async def rotate_key(self, new: Signer) -> Message:
        """Replaces this node's key; calls from then on are signed with the new one."""
        own = self._own()
        key = base64.b64encode(new.public_key).decode()
        signed = self._sign(texts.rotate(own, key))
        reply = await self.call("rotate_key", {"node_id": own, "new_public_key": key, "signature": signed})
        self._identity = new
        return reply

    async def get_key_info(self, node: int) -> Message:
        """created_at, rotated_at, rotate_count, key_age_days."""
        return await self.call("get_key_info", {"node_id": node})

    async def get_polo_score(self, node: int) -> int:
        """The score of a node."""
        return _integer((await self.call("get_polo_score", {"node_id": node})).get("polo_score"))

    async def update_polo_score(self, node: int, delta: int) -> int:
        """Adds to the score of a node; returns the new one."""
        return _integer((await self.call("update_polo_score", {"node_id": node, "delta": delta})).get("polo_score"))

    async def set_polo_score(self, node: int, score: int) -> int:
        """Sets the score of a node; returns it."""
        return _integer((await self.call("set_polo_score", {"node_id": node, "polo_score": score})).get("polo_score"))

    async def list_networks(self) -> list[Message]:
        """id, name, members, join_rule of each network."""
        return _objects((await self.call("list_networks", {})).get("networks"))

    async def list_nodes(self, network: int) -> list[Message]:
        """node_id, address, hostname, ... of the members of a network."""
        token = {"admin_token": self._admin_token} if self._admin_token else {}
        return _objects((await self.call("list_nodes", {"network_id": network, **token})).get("nodes"))

    async def beacon_register(self, beacon: int, addr: str) -> None:
        """Announces a beacon for a minute; needs the admin token."""
        await self.call("beacon_register", {"beacon_id": beacon, "addr": addr, "admin_token": self._admin_token})

    async def beacon_list(self) -> list[str]:
        """`host:port` of the beacons; empty: keep the configured one."""
        found = _objects((await self.call("beacon_list", {})).get("beacons"))
        return [addr for entry in found if isinstance(addr := entry.get("addr"), str) and addr]


def _objects(value: Any) -> list[Message]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0
