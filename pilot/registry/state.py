"""What the registry knows: nodes, trust, the handshake mailbox, networks; in memory, every durable change told to a journal.

Invariants: an id belongs to one key for ever unless that key's holder rotates it; every index (key, hostname, owner) points at a
node in `nodes`; `online` holds exactly the nodes with an endpoint, least recently seen first, so that expiry looks only at what
has expired. Attributes outlive liveness: an expired or deregistered node keeps its name, visibility, tags and pairs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

LOW_REPORTED, HIGH_REPORTED, ACCEPTED = 1, 2, 4  # bits of a trust pair (low id, high id)
INBOX_MAX = 100  # handshake requests that wait for one node
KEPT_REQUESTS = 1000  # requests of one node that were delivered and not answered
RESPONSES_MAX = 1000  # answers that wait for one node
PENDING_MAX = 4096  # one-sided trust reports of one node
REQUEST_TTL_S = 30 * 86400.0


@dataclass(slots=True)
class Node:
    """One identity. The first group is durable, the second soft state."""

    id: int
    key: bytes
    owner: bytes | None = None  # keyed hash of the owner string, never the string
    hostname: str = ""
    public: bool = False
    tags: tuple[str, ...] = ()
    score: int = 0
    task_exec: bool = False
    key_created: int = 0  # Unix seconds
    key_rotated: int = 0
    rotations: int = 0
    signs_register: bool = False  # its holder has signed a registration: all must be signed from then on
    departed: int = 0  # Unix seconds when it was last seen, 0 while it is (or was at the last stop) online
    networks: set[int] = field(default_factory=set)  # joined ones, kept as members of the networks

    online: bool = False
    endpoint: str = ""
    ip: str = ""  # source address of the registration that was believed
    lan_addrs: tuple[str, ...] = ()
    relay_only: bool = False
    version: str = ""
    tunnel_key: bytes = b""  # the PILA that the node had announced; its holder alone can make one, its readers check that
    seen: float = 0.0  # clock of the last sign of life
    previous_key: bytes | None = None  # for the repeat of a rotate_key whose reply was lost
    expected: bool = False  # online at the last stop and not back yet


@dataclass(slots=True)
class HandshakeRequest:
    """A request for trust that `sender` left for `target`."""

    target: int
    sender: int
    justification: str
    time: int  # Unix seconds
    polled: bool = False  # delivered for certain; kept because the answer is still due
    deliveries: int = 0


@dataclass(slots=True)
class HandshakeResponse:
    """The answer of `sender` that waits for `target`."""

    target: int
    sender: int
    accept: bool
    time: int
    deliveries: int = 0


@dataclass(slots=True)
class Network:
    """A network that nodes join; sharing one opens endpoints like trust does."""

    id: int  # 1..65535
    name: str
    token: bytes  # keyed hash of the word that opens it, b"" = open to everybody
    created: int  # Unix seconds
    members: dict[int, str] = field(default_factory=dict)  # node -> role


class Journal(Protocol):
    """Where durable changes go, in order. `pair` with 0 bits deletes, `member` with the role "" too."""

    def node(self, node: Node) -> None: ...
    def pair(self, low: int, high: int, bits: int) -> None: ...
    def request(self, request: HandshakeRequest) -> None: ...
    def drop_request(self, target: int, sender: int) -> None: ...
    def response(self, response: HandshakeResponse) -> None: ...
    def drop_response(self, target: int, sender: int) -> None: ...
    def network(self, network: Network) -> None: ...
    def drop_network(self, network: int) -> None: ...
    def member(self, network: int, node: int, role: str) -> None: ...


@dataclass(slots=True)
class Loaded:
    """The durable state as a store gives it back."""

    nodes: list[Node] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    requests: list[HandshakeRequest] = field(default_factory=list)
    responses: list[HandshakeResponse] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    members: list[tuple[int, int, str]] = field(default_factory=list)  # network, node, role


def _in_force(bits: int) -> bool:
    return bool(bits & ACCEPTED) or bits & 3 == 3


class State:
    """The tables and their indexes. Methods keep them in step and write the journal; they check no permission."""

    def __init__(self, journal: Journal, loaded: Loaded | None = None, now_unix: int = 0) -> None:
        """now_unix: when nodes that were online at the last stop count as last seen."""
        self.journal = journal
        self.nodes: dict[int, Node] = {}
        self.by_key: dict[bytes, Node] = {}
        self.by_name: dict[str, Node] = {}
        self.by_owner: dict[bytes, Node] = {}
        self.online: OrderedDict[int, Node] = OrderedDict()
        self.pairs: dict[tuple[int, int], int] = {}
        self.requests: dict[int, dict[int, HandshakeRequest]] = {}
        self.responses: dict[int, dict[int, HandshakeResponse]] = {}
        self.networks: dict[int, Network] = {}
        self.links = 0  # pairs in force
        self._pending: dict[int, int] = {}  # node -> pairs that wait for the other side's word
        self._next = 1
        for node in (loaded or Loaded()).nodes:
            if not node.departed:
                node.departed = now_unix
                node.expected = True
            self._index(node)
        for low, high, bits in (loaded or Loaded()).pairs:
            self.pairs[low, high] = bits
            self._count((low, high), bits, 1)
        for request in (loaded or Loaded()).requests:
            self.requests.setdefault(request.target, {})[request.sender] = request
        for response in (loaded or Loaded()).responses:
            self.responses.setdefault(response.target, {})[response.sender] = response
        self.networks = {network.id: network for network in (loaded or Loaded()).networks}
        for network_id, node_id, role in (loaded or Loaded()).members:
            self.networks[network_id].members[node_id] = role
            self.nodes[node_id].networks.add(network_id)

    def _index(self, node: Node) -> None:
        self.nodes[node.id] = node
        self.by_key[node.key] = node
        if node.hostname:
            self.by_name[node.hostname] = node
        if node.owner:
            self.by_owner[node.owner] = node
        self._next = max(self._next, node.id + 1)

    # Nodes

    @property
    def next_id(self) -> int:
        return self._next

    def create(self, key: bytes, now_unix: int) -> Node:
        """A node under the next id, offline. The caller has checked that ids are left; it saves the node when it is complete."""
        node = Node(id=self._next, key=key, key_created=now_unix, departed=now_unix)
        self._index(node)
        return node

    def save(self, node: Node) -> None:
        """Makes the node's present attributes durable."""
        self.journal.node(node)

    def set_key(self, node: Node, key: bytes, now_unix: int, *, same_holder: bool) -> None:
        """Replaces the key; the old one leaves the index at once. same_holder: by whom holds the old one, whose programs sign as
        before."""
        del self.by_key[node.key]
        node.previous_key, node.key = node.key, key
        self.by_key[key] = node
        node.key_rotated = now_unix
        node.rotations += 1
        node.signs_register &= same_holder
        node.tunnel_key = b""
        self.save(node)

    def set_owner(self, node: Node, owner: bytes) -> None:
        """Binds an owner that no other node holds."""
        node.owner = owner
        self.by_owner[owner] = node

    def set_hostname(self, node: Node, name: str) -> None:
        """Names the node; "" clears. Takes the name from whoever holds it: the caller has decided that it may."""
        holder = self.by_name.get(name) if name else None
        if holder is not None and holder is not node:
            holder.hostname = ""
            self.save(holder)
        if node.hostname:
            self.by_name.pop(node.hostname, None)
        node.hostname = name
        if name:
            self.by_name[name] = node

    # Liveness (soft, except the time of departure)

    def alive(self, node: Node, now: float) -> None:
        """A sign of life of an online node."""
        node.seen = now
        self.online.move_to_end(node.id)

    def arrive(self, node: Node, now: float) -> bool:
        """Brings a node online. True if the journal should know (it had departed)."""
        node.online, node.seen = True, now
        self.online[node.id] = node
        self.online.move_to_end(node.id)
        changed = node.departed != 0
        node.departed = 0
        node.expected = False
        return changed

    def depart(self, node: Node, now_unix: int) -> None:
        """Takes a node offline; its endpoint is forgotten, its attributes stay."""
        self.online.pop(node.id, None)
        node.online = False
        node.endpoint = node.ip = ""
        node.lan_addrs = ()
        node.tunnel_key = b""
        node.expected = False
        node.departed = now_unix
        self.save(node)

    def expired(self, now: float, stale_s: float, limit: int = 5000) -> Iterable[Node]:
        """Online nodes silent for longer than `stale_s`, oldest first, at most `limit`."""
        out: list[Node] = []
        for node in self.online.values():
            if now - node.seen <= stale_s or len(out) == limit:
                break
            out.append(node)
        return out

    # Trust

    def trusted(self, a: int, b: int) -> bool:
        """Both sides stand for the pair: each reported it, or one accepted the other's handshake."""
        return _in_force(self.pairs.get((min(a, b), max(a, b)), 0))

    def reported(self, node: int, peer: int) -> bool:
        """Whether `node` itself has vouched for the pair."""
        bits = self.pairs.get((min(node, peer), max(node, peer)), 0)
        return bool(bits & (LOW_REPORTED if node < peer else HIGH_REPORTED))

    def pending_reports(self, node: int) -> int:
        """How many pairs this node has vouched for alone."""
        return self._pending.get(node, 0)

    def add_trust(self, node: int, peer: int, bits: int = 0) -> None:
        """Adds the word of `node` for its pair with `peer`, or the given bits."""
        pair = (min(node, peer), max(node, peer))
        old = self.pairs.get(pair, 0)
        new = old | (bits or (LOW_REPORTED if node < peer else HIGH_REPORTED))
        if new != old:
            self._count(pair, old, -1)
            self._count(pair, new, 1)
            self.pairs[pair] = new
            self.journal.pair(*pair, new)

    def drop_trust(self, a: int, b: int) -> bool:
        """Removes a pair, pending or in force; False if there is none."""
        pair = (min(a, b), max(a, b))
        old = self.pairs.pop(pair, 0)
        if old == 0:
            return False
        self._count(pair, old, -1)
        self.journal.pair(*pair, 0)
        return True

    def _count(self, pair: tuple[int, int], bits: int, step: int) -> None:
        self.links += step * _in_force(bits)
        reporter = {LOW_REPORTED: pair[0], HIGH_REPORTED: pair[1]}.get(bits)
        if reporter is not None:
            count = self._pending.get(reporter, 0) + step
            if count:
                self._pending[reporter] = count
            else:
                self._pending.pop(reporter, None)

    # Handshake mailbox

    def put_request(self, request: HandshakeRequest) -> None:
        """Stores a request; the oldest of those that were delivered and never answered give way."""
        box = self.requests.setdefault(request.target, {})
        box.pop(request.sender, None)
        if len(box) >= KEPT_REQUESTS:
            stale = next((r for r in box.values() if r.polled), None)
            if stale is not None:
                self.drop_request(stale.target, stale.sender)
        box[request.sender] = request
        self.journal.request(request)

    def drop_request(self, target: int, sender: int) -> None:
        """Forgets a request, if it exists."""
        box = self.requests.get(target)
        if box and box.pop(sender, None) is not None:
            self.journal.drop_request(target, sender)
            if not box:
                del self.requests[target]

    def put_response(self, response: HandshakeResponse) -> None:
        """Stores an answer; a later one of the same sender replaces it."""
        box = self.responses.setdefault(response.target, {})
        box.pop(response.sender, None)
        if len(box) >= RESPONSES_MAX:
            self.drop_response(response.target, next(iter(box)))
            box = self.responses.setdefault(response.target, {})
        box[response.sender] = response
        self.journal.response(response)

    def drop_response(self, target: int, sender: int) -> None:
        """Forgets an answer, if it exists."""
        box = self.responses.get(target)
        if box and box.pop(sender, None) is not None:
            self.journal.drop_response(target, sender)
            if not box:
                del self.responses[target]

    # Networks

    def put_network(self, network: Network, owner: Node | None) -> None:
        """Adds a network with its first member, if there is one."""
        self.networks[network.id] = network
        self.journal.network(network)
        if owner is not None:
            self.join(network, owner, "owner")

    def drop_network(self, network: Network) -> None:
        """Removes a network and all memberships in it."""
        for node_id in network.members:
            self.nodes[node_id].networks.discard(network.id)
        del self.networks[network.id]
        self.journal.drop_network(network.id)

    def join(self, network: Network, node: Node, role: str = "member") -> None:
        """Makes the node a member."""
        network.members[node.id] = role
        node.networks.add(network.id)
        self.journal.member(network.id, node.id, role)

    def leave(self, network: Network, node: Node) -> None:
        """Ends a membership."""
        del network.members[node.id]
        node.networks.discard(network.id)
        self.journal.member(network.id, node.id, "")

    def share_network(self, a: int, b: int) -> bool:
        """Whether two nodes are members of one network. The backbone does not count."""
        first, second = self.nodes.get(a), self.nodes.get(b)
        return first is not None and second is not None and not first.networks.isdisjoint(second.networks)
