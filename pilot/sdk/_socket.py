"""Where the daemon's socket is (ipc.md section 1)."""

from __future__ import annotations

import os


def default_socket() -> str:
    """$PILOT_SOCKET, else $XDG_RUNTIME_DIR/pilot.sock if it exists, else /tmp/pilot.sock."""
    path = os.environ.get("PILOT_SOCKET")
    if path:
        return path
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.exists(os.path.join(runtime, "pilot.sock")):
        return os.path.join(runtime, "pilot.sock")
    return "/tmp/pilot.sock"
