"""Who this node trusts, and how two nodes come to trust each other (services.md section 2).

service    TrustService: what users, peers and the registry say goes to the rules; tasks and clocks are here and below
effects    what the rules decide is carried out: store, data plane, peer, registry
courier    messages over streams: port 444          relay      handshakes that the registry carries
handshake  the rules, sans-I/O: messages and wishes in, actions out
message    the JSON message and its signature        store  trust.json
"""

from pilot.trust.handshake import HandshakeMachine, Policy
from pilot.trust.service import TrustService
from pilot.trust.store import PendingRequest, TrustedPeer, TrustStore

__all__ = ["HandshakeMachine", "PendingRequest", "Policy", "TrustService", "TrustStore", "TrustedPeer"]
