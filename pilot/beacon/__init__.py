"""The beacon's policy around its native forwarding thread (beacon.md sections 4, 6, 7, 14).

service   the beacon as a whole: socket, gossip, what the registry tells it, counters
peers     which other beacons there are: given names, resolved again and again, and the registry's list
notify    "the registry holds something for you" (0x0A), at most once a second and node
"""

from pilot.beacon.peers import Announcement
from pilot.beacon.service import Beacon, BeaconConfig

__all__ = ["Announcement", "Beacon", "BeaconConfig"]
