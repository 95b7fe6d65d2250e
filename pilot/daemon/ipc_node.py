"""Requests about the node, its peers, trust and the registry (ipc.md sections 2 and 3)."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from pilot.daemon import envelopes, info
from pilot.daemon.ipc import Client, Handler, Refusal, Reply
from pilot.errors import PilotError
from pilot.registry.calls import signature
from pilot.trust.relay import read_key
from pilot.trust.store import key_text
from pilot.wire import ipc_networks as net
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address
from pilot.wire.ipc_message import Request

if TYPE_CHECKING:
    from pilot.daemon.node import Node

Json = dict[str, Any]

TRUST_BYTES = 900 << 10  # of the list of trusted peers: the reply must fit one frame


class NodeCommands:
    """Everything that is answered by JSON."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def table(self) -> Mapping[type[Request], Handler | None]:
        """Handlers by request; None: taken without an answer."""
        return {
            rq.Cancel: None,
            rq.Info: lambda client, request: _json(info.info(self._node)),
            rq.Health: lambda client, request: _json(info.health(self._node)),
            rq.Handshake: self._ask,
            rq.ApproveHandshake: self._approve,
            rq.RejectHandshake: self._reject,
            rq.PendingHandshakes: self._pending,
            rq.TrustedPeers: self._trusted,
            rq.RevokeTrust: self._revoke,
            rq.WaitForTrust: self._wait,
            rq.ResolveHostname: self._resolve_hostname,
            rq.SetHostname: self._set_hostname,
            rq.SetVisibility: self._set_visibility,
            rq.Deregister: self._deregister,
            rq.SetTags: self._set_tags,
            rq.SetTaskExec: self._set_task_exec,
            rq.SetWebhook: self._set_webhook,
            rq.RotateKey: self._rotate_key,
            rq.SignEnvelope: self._sign_envelope,
            rq.VerifyEnvelope: self._verify_envelope,
            rq.PreferDirect: self._prefer_direct,
            rq.PathInfo: self._path,
            net.NetworkList: self._network_list,
            net.NetworkJoin: self._network_join,
            net.NetworkLeave: self._network_leave,
            net.NetworkMembers: self._network_members,
            net.NetworkInvite: self._network_invite,
            net.NetworkPollInvites: self._network_invites,
            net.NetworkRespondInvite: self._network_respond,
            net.PolicyGet: self._policy,
            net.ManagedStatus: _unmanaged,
            net.ManagedCycle: _unmanaged,
            net.ManagedReconcile: _unmanaged,
            net.PolicySet: _unmanaged,
            net.MemberTagsGet: _unmanaged,
            net.MemberTagsSet: _unmanaged,
        }

    # ---- trust ----

    async def _ask(self, client: Client, request: rq.Handshake) -> Reply:
        status = await self._node.trust.send(request.node, request.justification)
        return _json({"status": status, "node_id": request.node})

    async def _approve(self, client: Client, request: rq.ApproveHandshake) -> Reply:
        await self._node.trust.approve(request.node)
        return _json({"status": "approved", "node_id": request.node})

    async def _reject(self, client: Client, request: rq.RejectHandshake) -> Reply:
        await self._node.trust.reject(request.node, request.reason)
        return _json({"status": "rejected", "node_id": request.node})

    async def _revoke(self, client: Client, request: rq.RevokeTrust) -> Reply:
        await self._node.trust.revoke(request.node)
        return _json({"status": "revoked", "node_id": request.node})

    async def _wait(self, client: Client, request: rq.WaitForTrust) -> Reply:
        seconds = min(request.timeout_ms, rq.WAIT_MAX_MS) / 1000
        return _json({"node_id": request.node, "trusted": await self._node.trust.wait(request.node, seconds)})

    async def _pending(self, client: Client, request: rq.PendingHandshakes) -> Reply:
        rows = [
            {
                "node_id": p.node_id,
                "public_key": key_text(p.public_key),
                "justification": p.justification,
                "received_at": int(p.received_at),
            }
            for p in await self._node.trust.pending()
        ]
        dropped = self._node.trust.pending_dropped
        return _json({"pending": rows, "dropped": dropped} if dropped else {"pending": rows})

    async def _trusted(self, client: Client, request: rq.TrustedPeers) -> Reply:
        """The list stands under both keys: the published Python SDK looks for `peers` (ipc.md, quirk Q8)."""
        rows: list[Json] = []
        size, cut = 0, False
        for p in await self._node.trust.trusted():
            row = {
                "node_id": p.node_id,
                "public_key": key_text(p.public_key),
                "approved_at": int(p.approved_at),
                "mutual": p.mutual,
                "network": p.network,
            }
            size += 2 * len(msgspec.json.encode(row)) + 2
            if size > TRUST_BYTES:
                cut = True
                break
            rows.append(row)
        return _json({"trusted": rows, "peers": rows} | ({"trusted_truncated": True} if cut else {}))

    # ---- names and attributes ----

    async def _resolve_hostname(self, client: Client, request: rq.ResolveHostname) -> Reply:
        return await _passed(self._node.names.resolve(request.hostname))

    async def _set_hostname(self, client: Client, request: rq.SetHostname) -> Reply:
        self._node.names.flush()
        return await _passed(self._node.registration.set_hostname(request.hostname))

    async def _set_visibility(self, client: Client, request: rq.SetVisibility) -> Reply:
        if not request.public:
            self._node.plane.set_public(False)  # closing a door waits for nobody
        try:
            return await _passed(self._node.registration.set_visibility(request.public))
        finally:
            self._node.plane.set_public(self._node.registration.public)

    async def _deregister(self, client: Client, request: rq.Deregister) -> Reply:
        return await _passed(self._node.registration.deregister())

    async def _set_tags(self, client: Client, request: rq.SetTags) -> Reply:
        return await _passed(self._node.registration.set_tags(request.tags))

    async def _set_task_exec(self, client: Client, request: rq.SetTaskExec) -> Reply:
        return await _passed(self._node.registry.set_task_exec(request.on))

    def _set_webhook(self, client: Client, request: rq.SetWebhook) -> Reply:
        try:
            self._node.webhook.set_url(request.url)
            if self._node.config.state_dir:
                self._node.config.state_dir.keep_webhook(request.url)
        except PilotError as error:
            raise Refusal(error.message) from None
        return _json({"webhook": request.url})

    async def _rotate_key(self, client: Client, request: rq.RotateKey) -> Reply:
        return _json(await self._node.rotation.rotate())

    # ---- signed requests ----

    def _sign_envelope(self, client: Client, request: rq.SignEnvelope) -> Reply:
        node = self._node
        made = str(envelopes.requested(request.fields, node.registration.address, int(time.time()), os.urandom(8).hex()))
        return _json(
            {
                "type": "sign_envelope_ok",
                "envelope": made,
                "signature": signature(node.identity, made),
                "address": str(node.registration.address),
            }
        )

    async def _verify_envelope(self, client: Client, request: rq.VerifyEnvelope) -> Reply:
        fields = request.fields
        text, signed = str(fields.get("envelope") or ""), str(fields.get("signature") or "")
        skew = fields.get("max_skew_secs")
        skew = skew if type(skew) is int and skew > 0 else envelopes.MAX_SKEW_S
        envelope, reason = envelopes.fault(text, signed, int(time.time()), skew)
        if envelope is None:
            return _json({"type": "verify_envelope_ok", "valid": False, "reason": reason})
        signer = envelope.address.node
        peer = self._node.trust.store.trusted.get(signer)
        own = signer == self._node.node_id
        key = self._node.identity.public_key if own else peer.public_key if peer else b""
        standing: Json = {}
        if not key or fields.get("check_standing") is True:
            try:
                entry = await self._node.registry.lookup(signer)
            except PilotError as error:
                if key or error.retryable:
                    raise PilotError(error.code, f"registry: {error.message}", error.hint, error.retryable) from None
                return _json({"type": "verify_envelope_ok", "valid": False, "reason": "unknown node"})
            standing = {k: entry[k] for k in ("last_seen_unix", "online", "key_generation") if k in entry}
            via, key = ("cache", key) if key else ("registry", read_key(entry) or b"")
        else:
            via = "cache"
        if not key or not envelopes.signed_by(key, text, signed):
            return _json({"type": "verify_envelope_ok", "valid": False, "reason": "signature verification failed"})
        return _json(
            {
                "type": "verify_envelope_ok",
                "valid": True,
                "node_id": signer,
                "address": str(envelope.address),
                "verified_via": via,
                "trusted": own or peer is not None,
                **standing,
            }
        )

    # ---- networks ----

    async def _network_list(self, client: Client, request: net.NetworkList) -> Reply:
        return await self._registry("list_networks")

    async def _network_join(self, client: Client, request: net.NetworkJoin) -> Reply:
        reply = await _passed(self._node.registry.join_network(request.network, request.token))
        self._node.registration.network_changed(request.network, joined=True)
        return reply

    async def _network_leave(self, client: Client, request: net.NetworkLeave) -> Reply:
        reply = await _passed(self._node.registry.leave_network(request.network))
        self._node.registration.network_changed(request.network, joined=False)
        return reply

    async def _network_members(self, client: Client, request: net.NetworkMembers) -> Reply:
        token = self._node.config.admin_token
        return await self._registry(
            "list_nodes", network_id=request.network, **({"admin_token": token} if token else {})
        )

    async def _network_invite(self, client: Client, request: net.NetworkInvite) -> Reply:
        own = self._node.node_id
        return await self._registry(
            "invite_to_network",
            f"invite:{own}:{request.network}:{request.node}",
            network_id=request.network,
            inviter_id=own,
            target_node_id=request.node,
        )

    async def _network_invites(self, client: Client, request: net.NetworkPollInvites) -> Reply:
        own = self._node.node_id
        return await self._registry("poll_invites", f"poll_invites:{own}", node_id=own)

    async def _network_respond(self, client: Client, request: net.NetworkRespondInvite) -> Reply:
        own = self._node.node_id
        reply = await self._registry(
            "respond_invite",
            f"respond_invite:{own}:{request.network}",
            node_id=own,
            network_id=request.network,
            accept=request.accept,
        )
        if request.accept:
            self._node.registration.network_changed(request.network, joined=True)
        return reply

    async def _policy(self, client: Client, request: net.PolicyGet) -> Reply:
        return _json({"engine": "none", "network_id": request.network, "type": "managed_policy_ok"})

    async def _registry(self, command: str, signed: str = "", **fields: Any) -> Reply:
        """A command of the registry that the client has no method for, or whose whole reply is wanted."""
        if signed:
            fields["signature"] = signature(self._node.identity, signed)
        return await _passed(self._node.registry.call(command, fields))

    # ---- paths ----

    async def _path(self, client: Client, request: rq.PathInfo) -> Reply:
        peer = request.node
        if peer in (0, self._node.node_id):
            raise Refusal("path: not a peer")
        seconds = min(request.wait_ms, rq.WAIT_MAX_MS) / 1000
        traversal = self._node.traversal
        reason = ""
        if seconds:
            until = time.monotonic() + seconds
            try:
                await traversal.connect(peer, seconds)
                await traversal.settled(peer, until - time.monotonic())
            except PilotError as error:
                reason = error.message
        told = traversal.describe(peer)
        now = time.time()
        for row in told["history"]:
            row["time"] = round(now - row["age_s"], 3)
        proved = bool(told.get("proved"))
        out: Json = {
            "session": False,
            "proved": False,
            "nat": traversal.nat_type.value,
            "peer_nat": "unknown",
            "relay_only": False,
            "candidates": [],
            **told,
            "node_id": peer,
            "address": str(Address(self._node.registration.address.network, peer)),
            "encrypted": proved and told["path"] is not None,
        }
        if reason and not proved:
            out["why"] = reason
        return _json(out)

    async def _prefer_direct(self, client: Client, request: rq.PreferDirect) -> Reply:
        peer = request.node
        if peer in (0, self._node.node_id):
            raise Refusal("prefer_direct: not a peer")
        before = self._node.plane.peer_info(peer)
        error = ""
        try:
            await self._node.registry.resolve(peer)
        except PilotError as failed:
            error = f"resolve node {peer}: registry: {failed.message}"
        self._node.traversal.prefer_direct(peer)
        return _json(
            {
                "node_id": peer,
                "had_tunnel": bool(before and before["session"]),
                "was_relay_active": bool(before and before["has_path"] and before["relay"]),
                "was_relay_pinned": False,
                "pila_pushed": not error,
                "resolve_error": error,
            }
        )


async def _passed(call: Awaitable[Mapping[str, Any]]) -> Reply:
    """The registry's reply object, unchanged."""
    try:
        return _json(await call)
    except PilotError as error:
        raise PilotError(error.code, f"registry: {error.message}", error.hint, error.retryable) from None


def _unmanaged(client: Client, request: Request) -> Reply:
    raise Refusal("managed: no active managed networks")


def _json(value: Any) -> Reply:
    return Reply(msgspec.json.encode(value))
