"""The trust handshake without I/O (services.md section 2): messages and the user's wishes in, actions out.

Per peer:

    state      event                                        new state   actions
    stranger   send (user)                                  requested   the service dials, or asks the
    registry
    stranger   request arrives                              pending     -
    pending    approve (user)                               trusted     Grant, Report, Respond, Send accept
    pending    reject (user)                                stranger    Respond, Send reject
    requested  accept arrives                               trusted     Grant, Report
    requested  reject arrives                               stranger    -
    requested  request arrives (both want it)               trusted     Grant, Report, Send accept
    trusted    request arrives                              trusted     Send accept
    trusted    revoke (user)                                stranger    Withdraw, Send revoke, Forget
    any        revoke arrives                               stranger    Withdraw, Forget

Stricter than the published daemons where their looseness is a hole, and compatible with them: a message
counts only
if it comes from the node it names; its key must be the one the tunnel was authenticated with, and the
pinned one; an
accept needs a request of ours (an accept after the peer's own request would let a peer approve itself).
Our requests are remembered across restarts: people approve after hours.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pilot.errors import PilotError
from pilot.trust.message import HandshakeMessage, MessageError
from pilot.trust.store import (
    MAX_PENDING,
    MAX_REQUESTED,
    MAX_TRUSTED,
    PENDING_S,
    PendingRequest,
    TrustedPeer,
    TrustStore,
)

MAX_AGE_S = 300.0
MAX_AHEAD_S = 30.0
REPLAY_S = 600.0
REPLAY_MAX = 8192
REPLAY_PER_NODE = 64
REVOKED_S = 300.0
JUSTIFICATION_BYTES = 1024

REQUEST, ACCEPT, REJECT, REVOKE = (
    "handshake_request",
    "handshake_accept",
    "handshake_reject",
    "handshake_revoke",
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message of `type` to `node` over a stream of its own; best effort."""

    node: int
    type: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """`node` is trusted from now on: open the data plane for it, pin `key` (b"": find it out first)."""

    node: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Withdraw:
    """`node` is not trusted any more: close the data plane for it, drop the pin. at_registry: tell the
    registry too."""

    node: int
    at_registry: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Tear down tunnel and connections of `node`, after everything before this action is done."""

    node: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the registry that we trust `node`."""

    node: int


@dataclass(frozen=True, slots=True)
class Respond:
    """Answer a handshake request of `node` through the registry."""

    node: int
    accept: bool


@dataclass(frozen=True, slots=True)
class Emit:
    """An event for the webhook and the log."""

    event: str
    data: Mapping[str, Any]


Action = Send | Grant | Withdraw | Forget | Report | Respond | Emit


@dataclass(frozen=True, slots=True)
class Policy:
    """auto_approve: every authenticated request is approved. same_network: requests of nodes in a joined
    network are."""

    auto_approve: bool = False
    same_network: bool = False


@dataclass(slots=True)
class HandshakeStats:
    """Messages by reason of being dropped."""

    received: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class HandshakeMachine:
    """The handshake of one node. `changed` is set when the store needs saving."""

    def __init__(self, store: TrustStore, policy: Policy = Policy()) -> None:
        self.store = store
        self.policy = policy
        self.stats = HandshakeStats()
        self.changed = False
        self.own_node = 0
        self._seen: OrderedDict[bytes, tuple[float, int]] = OrderedDict()  # message hash: (time, node)
        self._seen_of: Counter[int] = Counter()

    # ---- messages ----

    def check(self, data: bytes, remote_node: int, now: float) -> HandshakeMessage | None:
        """Receiver checks 1 to 3 on one message from the stream of `remote_node`; None if it is to be
        dropped.

        now: Unix seconds.
        """
        self.stats.received += 1
        try:
            msg = HandshakeMessage.parse(data)
        except MessageError:
            self._drop("malformed")
            return None
        if objection := self._objection(msg, remote_node, now):
            self._drop(objection)
            return None
        self._seen[msg.replay_hash()] = (now, remote_node)
        self._seen_of[remote_node] += 1
        return msg

    def _objection(self, msg: HandshakeMessage, remote_node: int, now: float) -> str:
        """Why a message is to be dropped; "" if it is not."""
        if msg.node_id != remote_node or msg.node_id in (0, self.own_node):
            return "wrong_node"
        if not -MAX_AGE_S <= msg.timestamp - now <= MAX_AHEAD_S:
            return "stale"
        self._sweep(now)
        if msg.replay_hash() in self._seen:
            return "replay"
        if not msg.verify(self.own_node):
            return "signature"
        expected = remote_node in self.store.trusted or remote_node in self.store.requested
        if len(self._seen) >= REPLAY_MAX and not expected:  # strangers who fill it do not shut out who is expected
            return "replay_full"
        if self._seen_of[remote_node] >= REPLAY_PER_NODE:
            return "limited"
        return ""

    def receive(self, msg: HandshakeMessage, now: float, *, peer_key: bytes | None, shared_network: int = 0) -> list[Action]:
        """Dispatches a checked message. peer_key: the identity key the tunnel of that node was
        authenticated with, or the
        registry's, None if neither is known. shared_network: a joined network both nodes are in, 0 if
        none."""
        node = msg.node_id
        trusted = self.store.trusted.get(node)
        if trusted and msg.type == ACCEPT and trusted.public_key not in (b"", msg.key) and msg.key == peer_key:
            return self.key_replaced(trusted, msg.key)
        known = [k for k in (peer_key, trusted.public_key if trusted else b"") if k]
        if any(k != msg.key for k in known):
            self._drop("key_mismatch")
            return [Emit("security.key_mismatch", {"peer_node_id": node})]
        if not known:
            self._drop("unknown_key")
            return []
        if msg.type == REQUEST:
            return self._requested(node, msg.key, msg.justification, now, shared_network, relayed=False)
        if msg.type == ACCEPT:
            return self._accepted(node, msg.key, now)
        if msg.type == REJECT:
            return self._rejected(node, msg.reason)
        return self._revoked(node)

    def relayed_request(self, node: int, justification: str, now: float, shared_network: int = 0) -> list[Action]:
        """A request that the registry handed out; it has checked who sent it."""
        if node in (0, self.own_node):
            return []
        return self._requested(node, b"", justification, now, shared_network, relayed=True)

    def relayed_response(self, node: int, accept: bool, now: float) -> list[Action]:
        """An answer that the registry handed out."""
        return self._accepted(node, b"", now) if accept else self._rejected(node, "")

    # ---- the user's wishes ----

    def start(self, node: int, now: float) -> bool:
        """The user asks `node` for trust. False if it is trusted already: nothing to send."""
        if node in self.store.trusted:
            return False
        if node in (0, self.own_node):
            raise PilotError("invalid_argument", "a node does not need its own trust")
        self.store.revoked.pop(node, None)
        if node not in self.store.requested and len(self.store.requested) >= MAX_REQUESTED:
            raise PilotError("internal", "too many handshake requests without an answer", retryable=True)
        self.store.requested[node] = now
        self.changed = True
        return True

    def approve(self, node: int, now: float) -> list[Action]:
        """Nothing happens if `node` is not pending."""
        request = self.store.pending.get(node)
        if request is None:
            return []
        return [
            *self._grant(node, request.public_key, now, mutual=False, network=0),
            Emit("handshake.approved", {"peer_node_id": node}),
            Emit("trust.changed", {"peer_node_id": node, "state": "granted", "reason": "approved"}),
            Report(node),
            Respond(node, True),
            Send(node, ACCEPT),
        ]

    def reject(self, node: int, reason: str) -> list[Action]:
        """Nothing happens if `node` is not pending."""
        if self.store.pending.pop(node, None) is None:
            return []
        self.changed = True
        return [
            Emit("handshake.rejected", {"peer_node_id": node, "reason": reason}),
            Respond(node, False),
            Send(node, REJECT, reason),
        ]

    def revoke(self, node: int, now: float) -> list[Action]:
        """Ends trust. Raises PilotError(not_found) if `node` was not trusted (other entries are dropped
        all the same)."""
        was_trusted = self._drop_entries(node)
        if not was_trusted:
            raise PilotError("not_found", f"node {node} was not trusted")
        self.store.revoked[node] = now + REVOKED_S
        return [
            Emit("trust.revoked", {"peer_node_id": node}),
            Emit("trust.changed", {"peer_node_id": node, "state": "revoked", "reason": "revoked"}),
            # The notice goes first: once the registry knows, a private peer cannot be resolved any more.
            Send(node, REVOKE, "trust revoked"),
            Withdraw(node, at_registry=True),
            Forget(node),
        ]

    def expire(self, now: float) -> None:
        """Drops entries that are too old to matter."""
        for table, limit in ((self.store.requested, PENDING_S), (self.store.revoked, 0.0)):
            for node in [n for n, at in table.items() if now - at > limit]:
                del table[node]
                self.changed = True
        for node in [n for n, p in self.store.pending.items() if now - p.received_at > PENDING_S]:
            del self.store.pending[node]
            self.changed = True

    # ---- rules ----

    def _requested(
        self, node: int, key: bytes, justification: str, now: float, shared_network: int, *, relayed: bool
    ) -> list[Action]:
        answer: list[Action] = [Respond(node, True)] if relayed else [Send(node, ACCEPT)]
        text = clean_justification(justification)
        received = Emit("handshake.received", {"peer_node_id": node, "justification": text})
        if node in self.store.trusted:
            return [received, *answer]
        network = shared_network if self.policy.same_network else 0
        if node in self.store.requested:
            reason, network = "mutual", 0
        elif network:
            reason = "same_network"
        elif self.policy.auto_approve:
            reason = "auto_approve"
        else:
            return self._make_pending(node, key, text, now, received)
        return [
            received,
            *self._grant(node, key, now, mutual=reason == "mutual", network=network),
            Emit("handshake.auto_approved", {"peer_node_id": node, "reason": reason}),
            Emit("trust.changed", {"peer_node_id": node, "state": "granted", "reason": reason}),
            Report(node),
            *answer,
        ]

    def _make_pending(self, node: int, key: bytes, text: str, now: float, received: Emit) -> list[Action]:
        old = self.store.pending.get(node)
        if old is None and len(self.store.pending) >= MAX_PENDING:
            self._drop("pending_full")  # one of them: this, or one that gives way
            if not self.store.make_way(node, now):
                return [received]
        if old is not None and not key:
            key = old.public_key
        self.store.pending[node] = PendingRequest(node, key, text, now)
        self.changed = True
        return [received, Emit("handshake.pending", {"peer_node_id": node, "justification": text})]

    def _accepted(self, node: int, key: bytes, now: float) -> list[Action]:
        if node in self.store.trusted:
            self.changed |= bool(key) and self.store.pin(node, key)
            return []
        if self.store.revoked.get(node, 0.0) > now or node not in self.store.requested:
            self._drop("unsolicited")
            return []
        return [
            *self._grant(node, key, now, mutual=True, network=0),
            Emit("trust.changed", {"peer_node_id": node, "state": "granted", "reason": "accepted"}),
            Report(node),
        ]

    def key_replaced(self, peer: TrustedPeer, key: bytes) -> list[Action]:
        """A trusted node says in a session that its pinned key authenticated, or by a chain of signatures that begins with it,
        that it has another key now, and the registry has that key too. Neither the registry nor who stole a former key can do
        that alone."""
        self.store.trusted[peer.node_id] = replace(peer, public_key=key)
        self.changed = True
        return [Grant(peer.node_id, key), Emit("trust.key_replaced", {"peer_node_id": peer.node_id})]

    def _rejected(self, node: int, reason: str) -> list[Action]:
        if self.store.requested.pop(node, None) is None:
            return []
        self.changed = True
        return [Emit("handshake.rejected_by_peer", {"peer_node_id": node, "reason": clean_justification(reason)})]

    def _revoked(self, node: int) -> list[Action]:
        if not self._drop_entries(node):
            return []
        return [
            Emit("trust.revoked_by_peer", {"peer_node_id": node}),
            Emit("trust.changed", {"peer_node_id": node, "state": "revoked", "reason": "revoked_by_peer"}),
            Withdraw(node, at_registry=True),
            Forget(node),
        ]

    def _grant(self, node: int, key: bytes, now: float, *, mutual: bool, network: int) -> list[Action]:
        if len(self.store.trusted) >= MAX_TRUSTED:
            raise PilotError("internal", f"too many trusted peers ({MAX_TRUSTED})")
        self.store.trusted[node] = TrustedPeer(node, key, now, mutual, network)
        self.store.pending.pop(node, None)
        self.store.requested.pop(node, None)
        self.store.revoked.pop(node, None)
        self.changed = True
        return [Grant(node, key)]

    def _drop_entries(self, node: int) -> bool:
        was_trusted = self.store.trusted.pop(node, None) is not None
        others = [self.store.pending.pop(node, None), self.store.requested.pop(node, None)]
        self.changed |= was_trusted or any(o is not None for o in others)
        return was_trusted

    def _drop(self, why: str) -> None:
        self.stats.dropped[why] = self.stats.dropped.get(why, 0) + 1

    def _sweep(self, now: float) -> None:
        while self._seen and now - next(iter(self._seen.values()))[0] > REPLAY_S:
            _, (_, node) = self._seen.popitem(last=False)
            self._seen_of[node] -= 1
            if not self._seen_of[node]:
                del self._seen_of[node]


def clean_justification(text: str) -> str:
    """Printable characters only, at most 1024 bytes of UTF-8."""
    printable = "".join(c for c in text if c.isprintable())
    return printable.encode()[:JUSTIFICATION_BYTES].decode(errors="ignore")
