"""The beacon's policy around its native forwarding thread (beacon.md sections 4, 6, 7, 14).

service   the beacon as a whole: socket, gossip, what the registry tells it, counters
peers     which other beacons there are: given names, resolved again and again, and the registry's list
wss       nodes without UDP, over WebSockets on TCP 443; wss_session: one connection of these
gossip    telling the peers who is here, in rounds and at once when somebody comes
secret    keys between beacons that share a secret: the handshake; sessions: with the relay and the clock
notify    "the registry holds something for you" (0x0A), at most once a second and node
"""

from pilot.beacon.peers import Announcement
from pilot.beacon.service import Beacon, BeaconConfig
from pilot.beacon.wss import WssConfig, WssServer

__all__ = ["Announcement", "Beacon", "BeaconConfig", "WssConfig", "WssServer"]
