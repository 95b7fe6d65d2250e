"""Typed surface of the relay binding. Semantics: csrc/relay.h."""

from collections.abc import Mapping, Sequence

Addr = tuple[str, int]  # numeric IP text, port

class RelayLoop:
    """The beacon's sockets and native forwarding thread (pl_relay_loop). Closed when the object goes.

    alt: another IP of this host, for NAT probes; probe_ports: of the observers and of the quiet sockets, 0 = any free one.
    options: fields of pl_relay_cfg (max_nodes, max_nodes_per_ip, node_ttl_ns, claim_ttl_ns, punch_rate, probe_rate,
    pace_rate, relay_bytes_per_s). OSError if an address cannot be bound, ValueError for one that is not numeric.
    """

    def __init__(
        self,
        bind: Addr,
        *,
        alt: str | None = None,
        probe_ports: tuple[int, int] = (0, 0),
        options: Mapping[str, int] | None = None,
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None:
        """Joins the thread. Idempotent; the table is kept."""
    @property
    def local_addr(self) -> Addr: ...
    def set_peers(self, peers: Sequence[Addr]) -> None:
        """The peer beacons; replaces the set. Routes through those that stay are kept."""
    def nodes(self, limit: int = 0xFFFFFFFF) -> tuple[list[int], bytes]:
        """Up to `limit` numbers of local nodes for gossip: registered ones last, each kind heard last first; and their ages."""
    def lookup(self, node: int) -> Addr | None: ...
    def vouch(self, node: int, ip: str | None) -> None:
        """The registry's word that `node` is at `ip`; None takes it back. CoreError when the table is full."""
    def send(self, addr: Addr, data: bytes) -> None:
        """One datagram from the beacon's socket. CoreError with errno if the kernel refuses it."""
    def send_peer(self, addr: Addr, data: bytes) -> bool:
        """The same to a peer beacon, sealed if there is a secret. False if it is no peer, or there is no key for it yet."""
    def set_secret(self, key: bytes) -> None:
        """32 bytes that authenticate letters. From here on peers are believed in sealed datagrams alone."""
    def set_seal_key(self, addr: Addr, session: int, key: bytes) -> bool:
        """What goes to the peer is sealed with this key from here on. False if it is no peer."""
    def add_open_key(self, addr: Addr, session: int, key: bytes) -> bool:
        """What comes from the peer may be sealed with this key too. False if it is no peer."""
    def take_letters(self) -> list[tuple[Addr, bytes]]:
        """Genuine letters of the handshake between beacons, and b"\\x0e\\x02" from peers that seal with an unknown key."""
    def send_node(self, node: int, data: bytes) -> bool:
        """The same to a node, from the address it knows. False if it is not in the table."""
    def attach(self, node: int) -> None:
        """The node speaks through inject() from here on; its deliveries wait for take(). CoreError when the table is full."""
    def detach(self, node: int) -> None:
        """Its stream is gone. Nothing happens if it was not attached."""
    def inject(self, node: int, datagrams: Sequence[bytes]) -> None:
        """At most 4096 datagrams of an attached node, in order; what is not its own to say is dropped and counted."""
    @property
    def news_fd(self) -> int:
        """Readable when peers should hear of something at once, a byte 1, or when letters wait, a byte 2. Read it empty."""
    @property
    def hand_fd(self) -> int:
        """Readable when take() has something."""
    def take(self) -> list[tuple[int, bytes]]:
        """(node, 0x06 datagram) for attached nodes, oldest first."""
    def stats(self) -> dict[str, int]:
        """Counters of pl_relay_stats and pl_relay_loop_stats."""

class Relay:
    """The beacon's tables and answers without sockets (pl_relay): the simulator runs it on virtual time.

    observer_port, observer: where NAT probes are observed besides, on the beacon's own address and on its other one.
    """

    def __init__(
        self,
        *,
        seed: int,
        now_ns: int,
        observer_port: int = 0,
        observer: Addr | None = None,
        options: Mapping[str, int] | None = None,
    ) -> None: ...
    def input(self, at: int, data: bytes, src: Addr | int, local: Addr, now_ns: int) -> list[tuple[int, bytes, Addr | None]]:
        """One datagram that reached socket `at` (pl_relay_socket: 0 the beacon's own), bound to `local`; src: a number
        for an attached node. What leaves: (socket, datagram, to)."""
    def expire(self, now_ns: int) -> None:
        """Forgets what is too old; to be called about once a second."""
    def set_peers(self, peers: Sequence[Addr]) -> None:
        """The peer beacons, at most 16."""
    def take_news(self) -> bool:
        """True once after something that peers should hear of."""
    def nodes(self) -> tuple[list[int], bytes]:
        """Local nodes for gossip, at most 4096, and their ages."""
    def lookup(self, node: int) -> Addr | None: ...
    def vouch(self, node: int, ip: str) -> None:
        """The registry's word that `node` is at `ip`."""
    def attach(self, node: int) -> None:
        """The node speaks over a stream from here on."""
    def detach(self, node: int) -> None:
        """Its stream is gone."""
    def take(self) -> list[tuple[int, bytes]]:
        """(node, 0x06 datagram) for attached nodes, oldest first."""
    def stats(self) -> dict[str, int]:
        """Counters of pl_relay_stats."""
