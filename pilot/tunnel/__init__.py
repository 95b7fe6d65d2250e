"""Key exchange: who a peer is and which session key is shared with it. Sans-I/O; traversal drives it.

exchange  the machine for all peers     judging   what follows from its inputs
records   what it remembers per peer    continuity   identity keys that vouch for their successors
proof     a new key beside a live one   own_key   the process's X25519 key
actions   what the machine asks for     limits, deadlines   bounded tables behind it
"""

from pilot.tunnel.exchange import KeyExchange
from pilot.tunnel.judging import ExchangeStats
from pilot.tunnel.own_key import Identity

__all__ = ["ExchangeStats", "Identity", "KeyExchange"]
