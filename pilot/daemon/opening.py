"""Opening a stream to a peer: the dial, and beside it what the registry and the paths know about the peer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pilot._core import Event
from pilot.errors import PilotError
from pilot.services.stream import DialError
from pilot.wire.address import Address

if TYPE_CHECKING:
    from pilot.daemon.node import Node


async def open_conn(node: Node, to: Address, port: int, *, client: int = 0, seconds: float) -> Event:
    """Dials `to` and leaves the connection parked: the CONN_OPEN event, whose `conn` the caller gives an owner.

    Raises PilotError: not_found as soon as the registry says that there is no such node, connection_failed, timeout;
    CoreError when a limit is reached. Cancelling it ends the dial. client: as in StreamHub.dial_conn.
    """
    dialling = node.hub.dial_conn(
        to.node, port, local_net=node.local_net(to.network), remote_net=to.network, client=client, timeout=seconds
    )
    if node.traversal.connected(to.node):  # nothing to be learnt beside the dial
        node.traversal.want(to.node, seconds)
        return await dialling
    dial = asyncio.ensure_future(dialling)
    path = asyncio.ensure_future(node.traversal.connect(to.node, seconds))

    def unwanted(done: asyncio.Future[Event]) -> None:
        """Nobody waits any more as the dial succeeds."""
        if not done.cancelled() and done.exception() is None:
            node.plane.abort(done.result().conn)

    try:
        await asyncio.wait({dial, path}, return_when=asyncio.FIRST_COMPLETED)
        if not dial.done():
            refused = path.exception()
            if isinstance(refused, PilotError) and refused.code == "not_found":
                raise PilotError("not_found", f"resolve node {to.node}: registry: {refused.message}", refused.hint)
        return await asyncio.shield(dial)
    except DialError as error:
        raise PilotError(error.code, _text(error, path), error.hint, error.retryable) from None
    except BaseException:
        dial.cancel()
        dial.add_done_callback(unwanted)
        raise
    finally:
        path.cancel()
        await asyncio.gather(path, return_exceptions=True)


def _text(error: DialError, path: asyncio.Future[None]) -> str:
    """The reason of a failed dial; what the paths know about it goes with a timeout."""
    failed = path.exception() if path.done() and not path.cancelled() else None
    if error.code == "timeout" and isinstance(failed, PilotError) and "key exchange" not in error.message:
        return f"{error.message}: {failed.message}"
    return error.message
