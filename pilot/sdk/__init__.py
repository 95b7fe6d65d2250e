"""Clients of the local daemon (ipc.md): blocking and asyncio.

client    LocalClient: blocking, thread-safe, imports in milliseconds (pilotctl stands on it)
aio       Client: the same for asyncio, one socket per outgoing stream
streams   Connection, Listener, DatagramPort of the blocking client
exchange  messages and files to a peer (port 1001)      events    the event stream (port 1002)
_router   bytes of the daemon to replies, streams, accepts and datagrams; shared by both clients
_commands, _aio_commands   one method per request (pilot.wire.ipc_requests)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilot.errors import PilotError
    from pilot.sdk.aio import Client
    from pilot.sdk.client import LocalClient
    from pilot.sdk.streams import Connection, DatagramPort, Listener
    from pilot.wire.address import Address

__all__ = ["Address", "Client", "Connection", "DatagramPort", "Listener", "LocalClient", "PilotError"]

_HOME = {
    "Address": "pilot.wire.address",
    "Client": "pilot.sdk.aio",
    "Connection": "pilot.sdk.streams",
    "DatagramPort": "pilot.sdk.streams",
    "Listener": "pilot.sdk.streams",
    "LocalClient": "pilot.sdk.client",
    "PilotError": "pilot.errors",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that a command line pays for what it uses only.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
