"""Requests about streams, ports and datagrams (ipc.md section 2). Stream bytes themselves never come here."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pilot._core import OWNER_CLIENT, CoreError, Event
from pilot.daemon.ipc import Client, Handler, Refusal, Reply
from pilot.daemon.opening import open_conn
from pilot.errors import PilotError
from pilot.wire import ipc_requests as rq
from pilot.wire.address import BROADCAST_NODE, Address
from pilot.wire.ipc import Accept, BindOk, CloseOk, Cmd, DialOk, UnbindOk
from pilot.wire.ipc_message import Request

if TYPE_CHECKING:
    from pilot.daemon.node import Node

DIAL_S = 30.0
CONFIRM_S = 15.0
MAX_CONNS = 4096  # a client may hold or open
MAX_PORTS = 1024  # a client may bind
MAX_DATAGRAM = 65000
_EEXIST, _ELIMIT = -9, -7


class StreamCommands:
    """Bind, Unbind, Dial, SendToConfirm, and the Accept push."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._plane = node.plane
        self._holders: dict[int, Client] = {}  # connection: the client that holds it

    def table(self) -> Mapping[type[Request], Handler]:
        """Handlers by request."""
        return {
            rq.Bind: self._bind,
            rq.Unbind: self._unbind,
            rq.Dial: self._dial,
            rq.SendToConfirm: self._confirm,
            rq.Broadcast: self._broadcast,
        }

    # ---- what clients hold (ipc.Owner) ----

    def hand_over(self, client: Client, conn: int, code: int, payload: bytes) -> None:
        """See ipc.Owner."""
        self._holders[conn] = client
        try:
            self._plane.attach(conn, client.id, code, payload)
        except CoreError:  # reset meanwhile, or the client is gone
            self._plane.client_send(client.id, Cmd.CLOSE_OK, CloseOk(conn).payload)
            self.discard(client, conn)

    def discard(self, client: Client, conn: int) -> None:
        """See ipc.Owner."""
        self._holders.pop(conn, None)
        client.conns -= 1
        self._plane.abort(conn)

    def gone(self, client: Client) -> None:
        """Its ports are free. The data plane has closed its connections."""
        for port in client.ports:
            with contextlib.suppress(CoreError):
                self._plane.unlisten(port)
        client.ports.clear()

    # ---- events ----

    def accepted(self, client: Client | None, event: Event) -> None:
        """An inbound stream on a port that a client bound."""
        if client is None or self._full(client):
            self._plane.abort(event.conn)
            return
        push = Accept(event.local_port, event.conn, Address(event.remote_net, event.node), event.remote_port)
        client.conns += 1
        self.hand_over(client, event.conn, push.code, push.payload)

    def taken(self, client: Client | None, conn: int) -> None:
        """The data plane has given a client a stream by itself."""
        if client:  # else it has closed the connection
            client.conns += 1
            self._holders[conn] = client

    def closed(self, conn: int) -> None:
        """A connection is gone."""
        client = self._holders.pop(conn, None)
        if client:
            client.conns -= 1

    # ---- requests ----

    def _bind(self, client: Client, request: rq.Bind) -> Reply:
        port = request.port
        if len(client.ports) >= MAX_PORTS:
            raise Refusal(f"bind: per-client port quota ({MAX_PORTS}) reached")
        try:
            self._plane.listen(port, OWNER_CLIENT, client.id)
        except CoreError as error:
            if error.code == _EEXIST:
                raise Refusal(f"port {port} already bound") from None
            raise
        client.ports.add(port)
        return Reply(BindOk(port).payload)

    def _unbind(self, client: Client, request: rq.Unbind) -> Reply:
        if request.port not in client.ports:
            raise Refusal("unbind: port is not owned by this client")
        client.ports.discard(request.port)
        self._plane.unlisten(request.port)
        return Reply(UnbindOk(request.port).payload)

    async def _dial(self, client: Client, request: rq.Dial) -> Reply:
        self._check_peer("dial", request.address)
        if self._full(client):
            raise Refusal(f"dial: per-client connection quota ({MAX_CONNS}) reached")
        client.conns += 1
        try:
            conn = await self._open(client, request.address, request.port)
        except BaseException:
            client.conns -= 1
            raise
        return Reply(DialOk(conn).payload, conn)

    async def _open(self, client: Client, to: Address, port: int) -> int:
        try:
            return int((await open_conn(self._node, to, port, client=client.id, seconds=DIAL_S)).conn)
        except PilotError as error:
            raise Refusal(error.message) from None

    async def _confirm(self, client: Client, request: rq.SendToConfirm) -> Reply:
        """Answers when the datagram was handed to a proved session: it leaves this node under encryption."""
        to, size = request.address, len(request.data)
        self._check_peer("sendto", to)
        if not size:
            raise Refusal("sendto: empty datagram")
        if size > MAX_DATAGRAM:
            raise Refusal(f"sendto: datagram too large ({size} bytes, at most {MAX_DATAGRAM})")
        await self._node.traversal.connect(to.node, CONFIRM_S)
        try:
            self._plane.send_datagram(
                to.node,
                request.port,
                request.data,
                local_net=self._node.local_net(to.network),
                remote_net=to.network,
            )
        except CoreError as error:
            if error.code == _ELIMIT:
                raise Refusal("sendto: the peer's queue is full, or the datagram too large") from None
            raise
        return Reply()

    async def _broadcast(self, client: Client, request: rq.Broadcast) -> Reply:
        """A datagram to each member of a network; as datagrams are, any may be lost."""
        token = self._node.config.admin_token
        if not token:
            raise Refusal("broadcast: broadcast denied: daemon has no admin token configured")
        if not hmac.compare_digest(token.encode(), request.token.encode()):
            raise Refusal("broadcast: broadcast denied: invalid admin token")
        if not 0 < len(request.data) <= MAX_DATAGRAM:
            raise Refusal(f"broadcast: want 1 to {MAX_DATAGRAM} bytes")
        network = request.network
        for member in await self._node.registry.list_nodes(network):
            to = member.get("node_id")
            if type(to) is int and 0 < to < BROADCAST_NODE and to != self._node.node_id:
                with contextlib.suppress(CoreError):  # its queue is full
                    self._plane.send_datagram(
                        to, request.port, request.data, local_net=self._node.local_net(network), remote_net=network
                    )
        return Reply()

    # ---- inside ----

    def _full(self, client: Client) -> bool:
        """Whether the client holds all it may. Streams in TIME_WAIT do not count; who they are is looked up only then."""
        if client.conns < MAX_CONNS:
            return False
        live = {c["id"] for c in self._plane.conns() if c["state"] != "TIME_WAIT"}
        for conn in [c for c, holder in self._holders.items() if holder is client and c not in live]:
            self.closed(conn)
        return client.conns >= MAX_CONNS

    def _check_peer(self, label: str, to: Address) -> None:
        if to.node == self._node.node_id:
            raise Refusal(f"{label}: invalid address: {to} is this node itself")
        if to.node == 0 or to.is_broadcast:
            raise Refusal(f"{label}: invalid address: {to} is not one node")
