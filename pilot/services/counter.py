"""Counter, port 9: takes whatever comes and says how much it was, for one-way measurements (wire-extensions.md section 8).

A reader that keeps up answers often and briefly; one that does not is slowed down by its own unread answers.
"""

from __future__ import annotations

from pilot.services.stream import OverlayStream, StreamHub
from pilot.wire.services import PORT_COUNTER

READ_BYTES = 1 << 20


def start(hub: StreamHub) -> None:
    """Binds the port for trusted peers. Raises PilotError(already_exists)."""
    hub.listen(PORT_COUNTER, serve)


async def serve(stream: OverlayStream) -> None:
    """One stream, until the peer ends it."""
    buffer = bytearray(READ_BYTES)
    total = 0
    while n := await stream.read_into(buffer):
        total += n
        await stream.write(total.to_bytes(8, "big"))  # each time: after a full buffer nothing more may come
