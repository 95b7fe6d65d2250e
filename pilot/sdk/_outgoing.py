"""Frames on their way to the daemon: whole, in order; a frame that was begun goes on before the next one starts."""

from __future__ import annotations

import socket
import threading


class Outgoing:
    """The writing half of a non-blocking socket. `lock` is held for every call."""

    def __init__(self, sock: socket.socket) -> None:
        self.lock = threading.Lock()
        self._sock = sock
        self._rest = memoryview(b"")

    def __bool__(self) -> bool:
        """Part of a frame is still here."""
        return bool(self._rest)

    def begin(self, head: bytes, body: bytes | memoryview) -> bool:
        """Starts a frame if the socket takes any of it. What is left of `body` is not copied (`keep`). Raises OSError."""
        if self._rest and not self.flush():
            return False
        try:
            sent = self._sock.sendmsg((head, body)) if body else self._sock.send(head)
        except BlockingIOError:
            return False
        if sent < len(head):
            self._rest = memoryview(head[sent:] + bytes(body))
        elif sent < len(head) + len(body):
            self._rest = memoryview(body)[sent - len(head) :]
        return True

    def flush(self) -> bool:
        """Goes on with the frame that was begun; True if it is with the kernel. Raises OSError."""
        while self._rest:
            try:
                sent = self._sock.send(self._rest)
            except BlockingIOError:
                return False
            self._rest = self._rest[sent:]
        return True

    def keep(self) -> None:
        """The caller takes his bytes back, and may resize what holds them: what is left is copied."""
        if self._rest:
            self._rest = memoryview(bytes(self._rest))
