"""Who this node trusts, and how two nodes come to trust each other (services.md section 2).

service    TrustService: port 444, the registry's relay, the user's wishes; the only part with tasks
handshake  the rules, sans-I/O: messages and wishes in, actions out
message    the JSON message and its signature        store  trust.json
"""

from pilot.trust.handshake import HandshakeMachine, Policy
from pilot.trust.service import TrustService
from pilot.trust.store import PendingRequest, TrustedPeer, TrustStore

__all__ = ["HandshakeMachine", "PendingRequest", "Policy", "TrustService", "TrustStore", "TrustedPeer"]
