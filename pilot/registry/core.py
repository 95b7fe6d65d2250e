"""What all commands share: state, clock, checks of signatures and permissions. Knows no socket.

A command is a function (registry, peer, request) -> reply fields that raises Refused. `peer` is the connection it came on.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pilot.registry.config import RegistryConfig
from pilot.registry.fields import Refused, Request, decode_base64, text
from pilot.registry.limits import Buckets
from pilot.registry.signatures import Verifier
from pilot.registry.state import HandshakeRequest, HandshakeResponse, Node, State
from pilot.registry.store import MemoryStore, Store
from pilot.wire.address import Address

UNSIGNED = "signature required for authenticated node"
MISSIGNED = "signature verification failed"
MAX_IDENTITIES = 16  # nodes that one connection may have proved to be


@dataclass(slots=True)
class Claim:
    """A registration that takes effect with the next signed heartbeat on the same connection."""

    node: int
    endpoint: str
    lan_addrs: tuple[str, ...]
    relay_only: bool
    version: str


@dataclass(slots=True)
class Peer:
    """One connection, as far as commands care."""

    ip: str
    port: int
    proved: OrderedDict[int, bytes] = field(default_factory=OrderedDict)  # node -> key that signed on this connection
    claim: Claim | None = None
    # What the last reply carried. The client's next request shows that it has arrived.
    unconfirmed: list[HandshakeRequest | HandshakeResponse] = field(default_factory=list)

    def prove(self, node: Node) -> None:
        """Remembers that the holder of the node's key speaks on this connection."""
        self.proved[node.id] = node.key
        self.proved.move_to_end(node.id)
        if len(self.proved) > MAX_IDENTITIES:
            self.proved.popitem(last=False)

    def speaks_for(self, node: Node) -> bool:
        """Whether the holder of the node's present key has signed something on this connection."""
        return self.proved.get(node.id) == node.key


class Registry:
    """The registry without its sockets. All methods are called from one thread."""

    def __init__(
        self,
        store: Store | MemoryStore,
        *,
        network: int = 0,
        config: RegistryConfig | None = None,
        admin_token: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_mail: Callable[[int], None] = lambda node: None,
        on_endpoint: Callable[[int, str | None], None] = lambda node, ip: None,
    ) -> None:
        """network: the number in the addresses of replies. clock: monotonic seconds, wall: Unix seconds. on_mail(node): a
        handshake message waits for it. on_endpoint(node, ip): where it registered from, None when it went offline."""
        self.config = config or RegistryConfig()
        self.network = network
        self.store = store
        self.clock = clock
        self.wall = wall
        self.on_mail = on_mail
        self.on_endpoint = on_endpoint
        self.state = State(store, store.load(), int(wall()))
        self.started = clock()
        self.registrations = Buckets(self.config.registrations_per_min_ip / 60, self.config.registrations_per_min_ip)
        self.score_changes = Buckets(self.config.score_changes_per_min / 60, self.config.score_changes_per_min)
        self.beacons: OrderedDict[int, tuple[str, float]] = OrderedDict()  # id -> (addr, until)
        self._verifier = Verifier()
        self._admin_token = admin_token.encode()

    # Words

    def now_unix(self) -> int:
        return int(self.wall())

    def address(self, node: Node, network: int | None = None) -> str:
        """The node's virtual address as text, on the backbone or in a network."""
        return str(Address(self.network if network is None else network, node.id))

    def keyed_hash(self, word: str) -> bytes:
        """What is stored instead of an owner string or the token of a network."""
        return hmac.digest(self.store.salt, word.encode(), "sha256")

    # Who is there

    def known(self, node_id: int) -> Node:
        """A node, online or not. Raises Refused."""
        node = self.state.nodes.get(node_id)
        if node is None:
            raise Refused(f"node {node_id}: node not found")
        return node

    def online(self, node_id: int) -> Node:
        """A node that is online. Raises Refused."""
        node = self.known(node_id)
        if not node.online:
            raise Refused(f"node {node_id}: node not found")
        return node

    def awaited(self, node: Node) -> bool:
        """It was online when this registry stopped, and has had no time yet to come back."""
        return node.expected and self.clock() - self.started <= self.config.stale_s

    def holds(self, node: Node) -> bool:
        """Whether its name and owner are out of reach of others."""
        return node.online or self.awaited(node)

    # Who may

    def is_admin(self, request: Request) -> bool:
        """The request carries the operator's token."""
        given = text(request, "admin_token").encode()
        return bool(self._admin_token) and hmac.compare_digest(given, self._admin_token)

    def require_admin(self, request: Request, unset: str = "invalid admin token") -> None:
        """Raises Refused, with `unset` if there is no token at all."""
        if not self._admin_token:
            raise Refused(unset)
        if not self.is_admin(request):
            raise Refused("invalid admin token")

    def fits(self, node: Node, signed: str, request: Request) -> bool:
        """Whether the request's signature is the node's over `signed`. Raises Refused if it is no base64."""
        return self.fits_key(node.key, signed, request)

    def fits_key(self, key: bytes, signed: str, request: Request) -> bool:
        """The same for a key."""
        try:
            signature = decode_base64(text(request, "signature"))
        except ValueError as error:
            raise Refused(f"invalid signature encoding: {error}") from None
        return self._verifier.fits(key, signed.encode(), signature)

    def require_signature(
        self, peer: Peer, node: Node, signed: str, request: Request, missing: str = UNSIGNED, wrong: str = MISSIGNED
    ) -> None:
        """Raises Refused unless the node signed; from then on the connection speaks for it."""
        if not text(request, "signature"):
            raise Refused(missing)
        if not self.fits(node, signed, request):
            raise Refused(wrong)
        peer.prove(node)

    def require_signature_or_admin(self, peer: Peer, node: Node, signed: str, request: Request) -> None:
        """The operator's token stands in for the signature."""
        if not self.is_admin(request):
            self.require_signature(peer, node, signed, request)

    def may_reach(self, requester: Node, target: Node) -> bool:
        """The endpoint of `target` is for `requester` (section 7)."""
        a, b = requester.id, target.id
        return target.public or a == b or self.state.trusted(a, b) or self.state.share_network(a, b)

    # Life and death

    def arrive(self, node: Node, ip: str) -> bool:
        """The node is online at `ip`. True if this must be stored."""
        node.ip = ip
        changed = self.state.arrive(node, self.clock())
        self.on_endpoint(node.id, ip)
        return changed

    def depart(self, node: Node) -> None:
        """The node is offline."""
        self.state.depart(node, self.now_unix())
        self.on_endpoint(node.id, None)

    def reap(self) -> int:
        """Takes silent nodes offline and forgets silent beacons. Returns how many nodes went."""
        now = self.clock()
        gone = list(self.state.expired(now, self.config.stale_s))
        for node in gone:
            self.depart(node)
        while self.beacons and next(iter(self.beacons.values()))[1] <= now:
            self.beacons.popitem(last=False)
        return len(gone)

    def confirm(self, peer: Peer) -> None:
        """The peer has the reply before its present request: what that reply delivered is done with."""
        delivered, peer.unconfirmed = peer.unconfirmed, []
        for message in delivered:
            if isinstance(message, HandshakeResponse):
                if self.state.responses.get(message.target, {}).get(message.sender) is message:
                    self.state.drop_response(message.target, message.sender)
            elif self.state.requests.get(message.target, {}).get(message.sender) is message and not message.polled:
                message.polled = True
                self.store.request(message)


Command = Callable[[Registry, Peer, Request], dict[str, Any]]


def key_text(node: Node) -> str:
    """The node's key in base64."""
    return base64.b64encode(node.key).decode()


def rfc3339(unix: int) -> str:
    """Unix seconds as the protocol writes times."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
