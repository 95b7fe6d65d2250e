"""LocalClient: a blocking, thread-safe client of the local daemon on its Unix socket (ipc.md).

Threads share one socket: whoever waits reads the socket for all (one at a time, the others sleep on the
condition). Requests go one by one, as the protocol has no request ids; a request that timed out stays in
flight, and the next one first takes its late reply, so that no reply ever reaches the wrong caller.

Back-pressure: bytes are read only while somebody waits. A stream with more than SOFT_LIMIT unread bytes stops
reading on behalf of blocked writers; at HARD_LIMIT every call raises until it is read or closed.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from pilot.errors import PilotError
from pilot.sdk._faults import disconnected, from_daemon, not_running, timed_out
from pilot.sdk._gate import Gate
from pilot.sdk._outgoing import Outgoing
from pilot.sdk._router import HARD_LIMIT, LARGE, SOFT_LIMIT, AcceptQueue, DatagramQueue, Router, Stream
from pilot.sdk._services import Services
from pilot.sdk._socket import default_socket
from pilot.sdk.streams import Connection, DatagramPort, Listener
from pilot.wire import ipc_requests as rq
from pilot.wire.address import Address, split_target
from pilot.wire.ipc_frames import Cmd
from pilot.wire.ipc_message import Request

REQUEST_TIMEOUT = 60.0  # a handshake may dial and then ask the registry
DIAL_TIMEOUT = 30.0


class LocalClient(Services):
    """A connection to the daemon. Close it, or use it in `with`: streams and ports live no longer than it."""

    def __init__(self, path: str | None = None) -> None:
        """Connects. Raises PilotError: not_running, permission_denied."""
        self.path = path or default_socket()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.settimeout(5.0)
            self._sock.connect(self.path)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                self._sock.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
            self._sock.setblocking(False)
        except OSError as e:  # includes a path too long for AF_UNIX
            self._sock.close()
            raise not_running(self.path, e) from None
        self._router = Router()
        self._gate = Gate()
        self._lock = self._gate.lock  # guards the router and `_reading`
        self._reading = False  # some thread reads the socket
        self._plenty = False  # the last read brought all that was asked for, or much: there may be more
        self._failed: PilotError | None = None
        self._out = Outgoing(self._sock)
        self._request_lock = threading.Lock()
        self._late: Request | None = None  # a request whose caller has gone
        # Poll objects refuse concurrent use: `_read_*` are the reader's, `_write_*` the writer's.
        self._read_in, self._read_both = self._poller(select.POLLIN), self._poller(select.POLLIN | select.POLLOUT)
        self._write_out, self._write_both = self._poller(select.POLLOUT), self._poller(select.POLLIN | select.POLLOUT)

    # ---- public ----

    def dial(self, target: str, timeout: float | None = DIAL_TIMEOUT) -> Connection:
        """A stream to `peer:port`; peer is an address, a node number or a name.

        Raises PilotError: connection_failed, timeout, not_found, invalid_argument.
        """
        peer, port = split_target(target)
        return self.dial_addr(self.resolve(peer), port, timeout)

    def dial_addr(self, to: Address, port: int, timeout: float | None = DIAL_TIMEOUT) -> Connection:
        """A stream to a port of an address; returns when the peer accepted."""
        body = self._call(rq.Dial(to, port), timeout)
        conn_id = int.from_bytes(body[:4], "big")
        with self._lock:
            return Connection(self, self._router.streams[conn_id], to, port)

    def listen(self, port: int, timeout: float | None = DIAL_TIMEOUT) -> Listener:
        """Binds a port. Raises PilotError(already_exists)."""
        self._call(rq.Bind(port), timeout)
        with self._lock:
            return Listener(self, self._router.listen(port))

    def datagrams(self, port: int) -> DatagramPort:
        """Datagrams for a port; no bind is needed. Those that came before this call are lost."""
        with self._lock:
            queue = self._router.datagrams.setdefault(port, DatagramQueue(port))
        return DatagramPort(self, queue)

    def send_to(self, to: Address, port: int, data: bytes, timeout: float | None = 30.0) -> None:
        """Hands a datagram to the daemon. It may be lost; no error is reported."""
        deadline = None if timeout is None else monotonic() + timeout
        self._write(rq.SendTo(to, port, data).frame(), b"", deadline, "sendto")

    def disconnect(self, conn_id: int) -> None:
        """Closes any connection of the daemon by its number; unknown numbers are ignored by the daemon."""
        self._write(rq.Close(conn_id).frame(), b"", monotonic() + 30.0, "disconnect")

    def wait(self, *, readable: bool = True, writable: bool = False, timeout: float | None = None) -> None:
        """Sleeps until the socket can be read or written, for users of `try_read` and `try_write`."""
        poll = self._poller(select.POLLIN * readable | select.POLLOUT * (writable or bool(self._out)))
        poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        with self._out.lock:
            self._send(self._out.flush, "wait")

    def close(self) -> None:
        """Closes the socket: the daemon ends all streams and releases all ports. Safe to call twice."""
        with self._lock:
            if self._failed is None:
                self._failed = PilotError("invalid_argument", "the client is closed")
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes a thread that polls
            self._gate.wake()
            while self._reading:  # its descriptor must not be reused under it
                self._gate.sleep(1.0)
        self._sock.close()

    def __enter__(self) -> LocalClient:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- requests ----

    def _call(self, request: Request, timeout: float | None = REQUEST_TIMEOUT) -> bytes:
        """Sends a request and returns the payload of its reply."""
        seconds = REQUEST_TIMEOUT if timeout is None else timeout
        deadline = monotonic() + seconds
        frame = request.frame()
        if not self._request_lock.acquire(timeout=max(0.0, seconds)):
            raise timed_out(request.label, seconds)
        try:
            if self._late is not None:
                self._drop_late_reply(deadline, request.label, seconds)
            with self._lock:
                self._router.begin(request.reply)
            self._write(frame, b"", deadline, request.label, request)
            code, body = self._await_reply(deadline, request.label, seconds)
        finally:
            self._request_lock.release()
        if code == Cmd.ERROR:
            raise from_daemon(request.label, body)
        return body

    def _await_reply(self, deadline: float, label: str, seconds: float) -> tuple[int, bytes]:
        """The reply of the request in flight."""
        with self._lock:
            router = self._router
            while router.reply is None:
                if self._failed is not None:
                    raise self._failure(label)
                rest = deadline - monotonic()
                if rest <= 0:
                    raise timed_out(label, seconds)
                if self._reading:
                    self._gate.sleep(rest)
                else:
                    self._read_as_leader(rest, False)
            reply, router.reply = router.reply, None
            router.settle()
            self._late = None
        if router.refused:
            self._close_refused()
        return reply

    def _drop_late_reply(self, deadline: float, label: str, seconds: float) -> None:
        """Waits for the reply whose caller has gone; a connection it brings is closed."""
        code, body = self._await_reply(deadline, label, seconds)
        if code == Cmd.DIAL_OK:
            self._close_stream(self._router.streams[int.from_bytes(body[:4], "big")])
        elif code == Cmd.BIND_OK:  # the port stays bound until the client closes; who comes is turned away
            with self._lock:
                self._router.accepts.pop(int.from_bytes(body[:2], "big"), None)

    # ---- waiting and reading ----

    def _wait(
        self, ready: Callable[[], bool], timeout: float | None, label: str, into: tuple[Stream, memoryview] | None = None
    ) -> int:
        """Until `ready()`, called under the lock, is true. Raises timeout, or why the client failed. into: a stream without bytes
        and where they are wanted; returns how many were put there, then without being `ready`."""
        deadline = None if timeout is None else monotonic() + timeout
        direct = 0
        with self._lock:
            while not direct and not ready():
                if self._failed is not None:
                    raise self._failure(label)
                rest = None if deadline is None else deadline - monotonic()
                if rest is not None and rest <= 0:
                    raise timed_out(label, timeout or 0.0)
                if self._reading:
                    self._gate.sleep(rest)
                else:
                    direct = self._read_as_leader(rest, into=into)
        if self._router.refused:
            self._close_refused()
        return direct

    def _wait_stream(self, conn: Connection, timeout: float | None, view: memoryview | None = None) -> int:
        """Until the stream has bytes or has ended. view: where they are wanted; the number of bytes that were put there."""
        conn._open()
        stream = conn._stream
        direct = 0
        if not stream.size and not stream.ended:
            into = (stream, view) if view is not None and len(view) >= LARGE else None
            direct = self._wait(lambda: bool(stream.size) or stream.ended or conn.closed, timeout, "read", into)
            conn._open()
        return direct

    def _read_as_leader(
        self, timeout: float | None, at_once: bool = True, into: tuple[Stream, memoryview] | None = None
    ) -> int:
        """One read of the socket for all threads. Called and left with the lock held; released in between. at_once: there may be
        something to read already, else it is waited for first. into: as for `_wait`."""
        self._guard_memory()
        self._reading = True
        targets, room = self._router.targets(*into) if into else ([self._router.get_buffer()], 0)
        self._lock.release()
        count = -1
        try:
            if at_once and self._plenty:
                count = self._receive(targets)
            if count < 0:
                poll = self._read_both if self._out else self._read_in
                for _, events in poll.poll(None if timeout is None else timeout * 1000):
                    if events & ~select.POLLOUT:
                        count = self._receive(targets)
                if self._out:
                    self._flush_unless_busy()
        except OSError:
            count = 0
        finally:
            self._lock.acquire()
            self._reading = False
            self._gate.wake()
        if count < 0:
            return 0
        self._plenty = count >= LARGE or count == len(targets[0])
        direct = min(count, room)
        self._router.bypassed(direct)
        self._took(count - direct, not count)
        return direct

    def _receive(self, targets: list[memoryview]) -> int:
        """What the socket has, -1 if nothing. Raises OSError."""
        try:
            return self._sock.recvmsg_into(targets)[0] if len(targets) > 1 else self._sock.recv_into(targets[0])
        except BlockingIOError:
            return -1

    def _poller(self, events: int) -> select.poll:
        poll = select.poll()
        poll.register(self._sock, events)
        return poll

    def _took(self, count: int, ended: bool) -> None:
        """Routes `count` bytes; the socket may have ended. Lock held."""
        if count:
            try:
                self._router.buffer_updated(count)
            except PilotError as e:
                self._failed = self._failed or e
        if ended:
            self._failed = self._failed or disconnected("read")
            for stream in self._router.streams.values():
                stream.ended = True  # ipc.md: reads on open connections return EOF

    def _pump_ready(self) -> None:
        """Reads what the socket has, without waiting, unless another thread reads."""
        with self._lock:
            if not self._reading and self._failed is None:
                self._guard_memory()
                try:
                    count = self._sock.recv_into(self._router.get_buffer())
                except BlockingIOError:
                    return
                except OSError:
                    count = 0
                self._took(count, count == 0)
                self._gate.wake()
        self._close_refused()

    def _guard_memory(self) -> None:
        stream = self._router.heavier_than(HARD_LIMIT)
        if stream is not None:
            raise PilotError(
                "internal",
                f"connection {stream.conn_id} holds {stream.size} unread bytes",
                "read or close it; waiting for anything else would need more memory",
            )

    def _failure(self, label: str) -> PilotError:
        assert self._failed is not None
        if self._failed.code == "not_running":
            return disconnected(label)
        return PilotError(self._failed.code, self._failed.message, self._failed.hint)

    # ---- writing ----

    def _write(
        self, head: bytes, body: bytes | memoryview, deadline: float | None, label: str, request: Request | None = None
    ) -> None:
        """Writes one frame, reading meanwhile so that a daemon blocked on us can go on. Returns when it is
        with the kernel. Raises timeout; a frame that was begun then goes out before the next one. request: what it is if a
        reply to it will come."""
        out = self._out
        with out.lock:
            try:
                while not out.begin(head, body):
                    self._sleep_blocked(deadline, label)
                if request is not None:
                    self._late = request  # from here on the reply comes, wanted or not
                while out and not out.flush():
                    self._sleep_blocked(deadline, label)
            except OSError:
                raise self._broken_pipe(label) from None
            finally:
                out.keep()

    def _try_write(self, head: bytes, body: bytes | memoryview) -> bool:
        with self._out.lock:
            try:
                return self._send(lambda: self._out.begin(head, body), "write")
            finally:
                self._out.keep()

    def _send(self, step: Callable[[], bool], label: str) -> bool:
        try:
            return step()
        except OSError:
            raise self._broken_pipe(label) from None

    def _flush_unless_busy(self) -> None:
        """The rest of a frame that `try_write` began must go out even if its writer only reads now."""
        if self._out and self._out.lock.acquire(blocking=False):
            try:
                with suppress(PilotError):  # kept in `_failed`
                    self._send(self._out.flush, "write")
            finally:
                self._out.lock.release()

    def _sleep_blocked(self, deadline: float | None, label: str) -> None:
        rest = 1.0 if deadline is None else deadline - monotonic()
        if rest <= 0:
            raise PilotError("timeout", f"{label}: the daemon takes no more data", "", True)
        with self._lock:
            read = not self._reading and self._router.heavier_than(SOFT_LIMIT) is None
        poll = self._write_both if read else self._write_out
        for _, events in poll.poll(min(rest, 1.0) * 1000):
            if events & select.POLLIN and read:
                self._pump_ready()
        if self._failed is not None:
            raise self._failure(label)

    def _broken_pipe(self, label: str) -> PilotError:
        with self._lock:
            self._failed = self._failed or disconnected(label)
            self._gate.wake()
            return self._failure(label)

    # ---- closing ----

    def _close_stream(self, stream: Stream) -> None:
        with self._lock:
            self._router.forget(stream.conn_id)
            stream.parts.clear()
            stream.size = 0
            self._gate.wake()
            gone = self._failed is not None
        if not gone:
            self._write(rq.Close(stream.conn_id).frame(), b"", monotonic() + 30.0, "close")

    def _close_listener(self, queue: AcceptQueue) -> None:
        with self._lock:
            self._router.accepts.pop(queue.port, None)
            waiting = [item.stream for item in queue.items]
            queue.items.clear()
        for stream in waiting:
            self._close_stream(stream)
        if self._failed is None:
            try:
                self._call(rq.Unbind(queue.port), 5.0)
            except PilotError as e:
                if e.code not in ("not_supported", "timeout"):
                    raise

    def _close_refused(self) -> None:
        """Ends connections that found an accept queue full."""
        while self._router.refused:
            with self._lock:
                conn_id = self._router.refused.pop() if self._router.refused else None
            if conn_id is not None:
                self._write(rq.Close(conn_id).frame(), b"", monotonic() + 30.0, "close")
