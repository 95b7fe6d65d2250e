"""Every message of the protocol in pure Python: control messages in production, the oracle of the C codecs in tests.

address   virtual and socket addresses                  packet    34-byte packets, SACK, stream options
frames    PILA, PILK, PILS, PILT, PILP                  keys      session key, replay window
beacon    datagrams of the beacon                       registry  framing of the registry's TCP port
ipc       the daemon's local socket: what it sends      services  data exchange, event stream; fields: what both are made of
ipc_requests, ipc_networks   what its clients send      ipc_frames, ipc_message   what both are made of

Two kinds of parsers. What a datagram may be is asked of functions that return None when it is something else, since
dropping it is all there is to do. What must be there on a stream raises WireError with the reason. Both
take any bytes whatever and raise nothing else.

Importing this package imports nothing else but the error: the core and cryptography are imported by the functions that need them.
"""

from pilot.wire.errors import WireError

__all__ = ["WireError"]
