"""Typed surface of the bindings. Semantics: csrc/engine.h and csrc/loop.h, function by function."""

from collections.abc import Mapping, Sequence
from typing import Any

Addr = tuple[str, int]  # numeric IP text, port

# Event.type values (enum pl_event_type)
EV_FRAME: int
EV_BEACON: int
EV_PEER_WANTED: int
EV_NO_SESSION: int
EV_SESSION_PROVED: int
EV_SESSION_BROKEN: int
EV_PATH_SEEN: int
EV_PONG: int
EV_CONN_OPEN: int
EV_CONN_FAILED: int
EV_ACCEPT: int
EV_READABLE: int
EV_WRITABLE: int
EV_CONN_CLOSED: int
EV_DATAGRAM: int
EV_CLIENT_OPEN: int
EV_CLIENT_FRAME: int
EV_CLIENT_CLOSED: int
EV_PMTU: int
EV_PEER_STIRRED: int
EV_CLIENT_CONN: int
DIAL_REFUSED: int
DIAL_TIMEOUT: int
DIAL_NO_KEY: int
CAP_NOCRC: int
CAP_STREAM_OPTS: int
OWNER_NONE: int
OWNER_APP: int
OWNER_ECHO: int
OWNER_CLIENT: int

class Event:
    type: int
    node: int
    conn: int
    client: int
    remote_net: int
    remote_port: int
    local_net: int
    local_port: int
    relayed: bool
    addr: Addr | None
    a: int
    b: int
    data: bytes

class PeerCommands:
    """The part of EngineBase that concerns the node and its peers."""

    def set_node(self, node: int) -> None: ...
    def set_public(self, public: bool) -> None: ...
    def set_beacons(self, beacons: Sequence[Addr]) -> None: ...
    def set_trusted(self, node: int, trusted: bool) -> None: ...
    def install_key(
        self,
        node: int,
        key: bytes,
        key_id: int,
        features: int = 0,
        max_segment: int = 0,
        reorder_segments: int = 0,
        era1: bytes | None = None,
        foretold: bool = False,
    ) -> None:
        """era1: the key of era 1, for a peer that may be of it. Ignored without the engine option `accept_era1`. foretold: the
        peer has not said the key yet."""
    def drop_session(self, node: int) -> None: ...
    def reset_streams(self, node: int, key_id: int = 0) -> int:
        """Resets the streams with a peer that is gone; dials go on. key_id: those only that are older than this key of the
        session, 0 = all. How many. CoreError if there is no such peer or key."""
    def forget_peer(self, node: int) -> None: ...
    def set_path(self, node: int, addr: Addr, relay: bool) -> None: ...
    def probe(self, node: int, addr: Addr, relay: bool, token: int) -> None: ...
    def send_raw(self, addr: Addr, data: bytes) -> None: ...
    def peer_info(self, node: int) -> dict[str, Any] | None:
        """Fields of pl_peer_info; `path` is Addr or None."""
    def peers(self, since_ns: int = 0) -> list[dict[str, Any]]:
        """Fields of pl_peer_info of every peer that sent or received since then and does not rest, all of them for 0."""
    def rest(self, node: int, until_ns: int) -> bool:
        """Nobody wants to hear of the idle peer until then or until there is application traffic; EV_PEER_STIRRED tells. 0: it
        rests no more. False if there is no such peer."""

class EngineBase(PeerCommands):
    """Commands common to DataPlane (threaded, real sockets) and Engine (sans-I/O, virtual time).

    Commands that fail raise CoreError."""

    def listen(self, port: int, owner: int, client: int = 0, open_port: bool = False) -> None: ...
    def unlisten(self, port: int) -> None: ...
    def dial(
        self, node: int, port: int, *, local_net: int = 0, remote_net: int = 0, client: int = 0, timeout: float = 30.0
    ) -> int:
        """Returns the connection id; the result arrives as EV_CONN_OPEN or EV_CONN_FAILED."""
    def own(self, conn: int, owner: int, client: int = 0) -> None: ...
    def write(self, conn: int, data: bytes | bytearray | memoryview) -> int:
        """Bytes taken (0 when the send buffer is full; EV_WRITABLE follows)."""
    def read(self, conn: int, max_bytes: int = 65536) -> bytes | None:
        """Bytes, b"" at end of stream, None when nothing waits (EV_READABLE follows). Keep reading until None or b""."""
    def read_into(self, conn: int, buffer: bytearray | memoryview) -> int | None:
        """As read, into `buffer` (writable, contiguous, not empty): how many bytes; 0 at the end, None when nothing waits."""
    def unacked(self, conn: int) -> int: ...
    def close(self, conn: int) -> None: ...
    def abort(self, conn: int) -> None: ...
    def conn_info(self, conn: int) -> dict[str, Any] | None:
        """Fields of pl_conn_info and pl_stream_info, flat; `state` as text of ipc.md 3 (ESTABLISHED, ...)."""
    def conns(self) -> list[dict[str, Any]]: ...
    def send_datagram(
        self,
        node: int,
        port: int,
        data: bytes | bytearray | memoryview,
        *,
        local_net: int = 0,
        src_port: int = 0,
        remote_net: int = 0,
    ) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def events(self, limit: int = 1024) -> list[Event]: ...

class DataPlane(EngineBase):
    """Engine + data thread + tunnel socket + local clients (pl_loop). The constructor opens the socket (OSError)."""

    def __init__(
        self,
        bind: Addr = ("0.0.0.0", 0),
        *,
        gso: bool = True,
        gro: bool = True,
        congestion: str = "bbr",
        max_segment: int = 8192,
        socket_buffer: int = 8 << 20,
        spin_us: int = 200,
        options: Mapping[str, int] | None = None,
    ) -> None:
        """spin_us: the longest that a conversation of small messages is waited for without sleep; 0 = never.
        options: overrides by field name of pl_engine_cfg / pl_stream_cfg (e.g. "keepalive_ns", "max_conns", "syn_rate")."""
    def start(self) -> None: ...
    def stop(self) -> None:
        """Stops and joins the thread, closes all. Idempotent. Call it off the event loop (it may take a moment)."""
    def serve(self, listen_fd: int) -> None:
        """Takes over a listening Unix socket (detach it from Python first), also when it raises."""
    @property
    def event_fd(self) -> int:
        """Readable when events wait. On wake-up call events() until it returns fewer than `limit`; events() clears the fd."""
    @property
    def local_addr(self) -> Addr: ...
    def client_send(self, client: int, cmd: int, payload: bytes = b"") -> bool:
        """Queues one IPC frame; False if the client is gone or hopelessly slow."""
    def client_close(self, client: int) -> None: ...
    def serve_streams(self, network: int) -> None:
        """Inbound streams of clients' ports, and dials to addresses of `network` whose peer is there, come to clients
        without Python from now on (CLIENT_CONN tells of them); -1: none do. Then `dial_answered` is due for every Dial request
        that comes as CLIENT_FRAME, once it is answered."""
    def dial_answered(self, client: int) -> None: ...
    def attach(self, conn: int, client: int, cmd: int = 0, payload: bytes = b"") -> None:
        """Hands a connection to a client. cmd: queues that frame (DialOK, Accept) in front of the connection's bytes, in the
        same moment, so that the client may use the connection as soon as it has read it."""
    def read_wait(self, conn: int, buffer: bytearray | memoryview, timeout: float | None = None) -> int | None:
        """Blocks the thread, without the GIL, until bytes of an APP connection are in `buffer` (writable,
        contiguous, not empty): how many, 0 at the end of the stream, None after `timeout` seconds. CoreError: gone (PL_ENOENT),
        closed here (PL_ESTATE), another thread reads (PL_EEXIST). Never call it in the thread that handles events."""
    def write_wait(self, conn: int, data: bytes | bytearray | memoryview, timeout: float | None = None) -> int:
        """Blocks the thread, without the GIL, until the send buffer has taken all of `data`: how many bytes it
        took, fewer only after `timeout` seconds. CoreError as read_wait."""

class Engine(EngineBase):
    """Sans-I/O engine for tests and the simulator. Time is what was last passed in, nanoseconds."""

    def __init__(
        self,
        *,
        seed: bytes,
        now_ns: int,
        congestion: str = "bbr",
        max_segment: int = 8192,
        options: Mapping[str, int] | None = None,
    ) -> None: ...
    def input(self, data: bytes, addr: Addr, now_ns: int, seg: int = 0) -> None: ...
    def flush(self, now_ns: int) -> None: ...
    def output(self) -> list[tuple[bytes, Addr]]:
        """Datagrams sent since last asked, in order."""
    def deadline(self) -> int | None: ...
