"""What a traversal is told when it is made: settings of the node, and the clock, random source and interfaces of the host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pilot.traversal.decisions import Addr
from pilot.traversal.interfaces import local_hosts
from pilot.wire.frames import Capabilities


@dataclass(slots=True)
class TraversalConfig:
    """beacons: `host:port` texts, names allowed. endpoint: the fixed public endpoint, which skips discovery. local_port: of the
    tunnel socket. relay_only: show our address to no peer. caps: what our PILA announces. accept_era1: also keys of era 1, for a
    data plane with that option. clock: seconds, the data plane's own (monotonic)."""

    beacons: Sequence[str] = ()
    endpoint: Addr | None = None
    local_port: int = 0
    relay_only: bool = False
    caps: Capabilities = field(default_factory=Capabilities)
    accept_era1: bool = False
    clock: Callable[[], float] = time.monotonic
    random: Callable[[int], bytes] = os.urandom
    local_hosts: Callable[[], list[str]] = local_hosts
