"""What an operator can set, and the limits of section 9."""

from __future__ import annotations

from dataclasses import dataclass

from pilot.registry.endpoint import IPNetwork


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Times in seconds, rates per second."""

    stale_s: float = 180.0  # silence after which a node counts as offline
    reap_s: float = 5.0
    idle_s: float = 300.0  # a connection that sends no whole request for so long is closed
    beacon_ttl_s: float = 60.0

    max_connections: int = 10_000
    max_connections_per_ip: int = 512
    settled_s: float = 10.0  # a connection that was used since then does not give way to a new one, if it has proved a node
    opens_per_s_ip: float = 100.0  # new connections from one address
    opens_burst_ip: float = 1000.0
    requests_per_s: float = 100.0  # of one connection; beyond its burst it is read no faster
    requests_burst: float = 1000.0
    requests_per_s_ip: float = 500.0  # of all connections of one address
    requests_burst_ip: float = 5000.0
    registrations_per_min_ip: float = 10.0  # of new keys
    max_nodes: int = 1_000_000
    max_unfinished_bytes: int = 64 << 20  # half-received requests of all connections

    score_step: int = 100  # largest change of a score by one request
    score_changes_per_min: float = 10.0  # by one node to one node

    believed: tuple[IPNetwork, ...] = ()  # sources whose public listen_addr host is taken as given
    short_rotate: bool = False  # accept rotate_key signed without the new key
    strict_names: bool = False  # names of private nodes only for nodes that they trust
    relay_addr: str = ""  # shown instead of the endpoint of a relay-only node: the beacon, host:port
