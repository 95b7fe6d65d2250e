"""Paths: own endpoint discovery, hole-punching, relaying, and the choice among them, for every peer.

controller    Traversal: the asyncio shell, the only part with a clock and tasks; config: its settings
peer_paths    all machines of a node wired to one data plane (the simulator drives this)
path          the machine of one peer: candidates, health, story are its parts
discovery     own endpoint, NAT class, which beacons answer
beacons       what beacons' names mean, the bridge to one    waiting               callers that wait for a session
address_book  registry answers, cached                       describe, decisions   what the user reads
"""

from pilot.traversal.address_book import RegistryClient
from pilot.traversal.config import TraversalConfig
from pilot.traversal.controller import Traversal
from pilot.traversal.decisions import Decision, Step
from pilot.traversal.nat import NatType

__all__ = ["Decision", "NatType", "RegistryClient", "Step", "Traversal", "TraversalConfig"]
