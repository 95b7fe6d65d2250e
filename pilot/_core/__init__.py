"""Bindings on the native core (csrc/). Semantics: the C headers; typed surface: the .pyi files.

One class owns one C object and frees it. Everything that may take time runs without the GIL.
"""

from pilot._core._codec import (
    aead_open,
    aead_seal,
    beacon_parse,
    crc32,
    ipc_parse,
    packet_build,
    packet_parse,
    pils_parse,
    sack_parse,
    sack_write,
    synopt_parse,
    synopt_write,
)
from pilot._core._engine import (
    CAP_NOCRC,
    CAP_STREAM_OPTS,
    DIAL_NO_KEY,
    DIAL_REFUSED,
    DIAL_TIMEOUT,
    EV_ACCEPT,
    EV_BEACON,
    EV_CLIENT_CLOSED,
    EV_CLIENT_FRAME,
    EV_CLIENT_OPEN,
    EV_CONN_CLOSED,
    EV_CONN_FAILED,
    EV_CONN_OPEN,
    EV_DATAGRAM,
    EV_FRAME,
    EV_NO_SESSION,
    EV_PATH_SEEN,
    EV_PEER_WANTED,
    EV_PMTU,
    EV_PONG,
    EV_READABLE,
    EV_SESSION_BROKEN,
    EV_SESSION_PROVED,
    EV_WRITABLE,
    OWNER_APP,
    OWNER_CLIENT,
    OWNER_ECHO,
    OWNER_NONE,
    DataPlane,
    Engine,
    EngineBase,
    Event,
)
from pilot._core._errors import CoreError
from pilot._core._relay import RelayLoop

__all__ = [name for name in dir() if not name.startswith("_")]
