"""Events reach the receiver once, in order, signed; a dead receiver costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import http.server
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.errors import PilotError
from pilot.services import webhook
from pilot.services.webhook import Webhook, check_url, signature

Requests = list[tuple[dict[str, str], bytes]]


class Receiver(http.server.ThreadingHTTPServer):
    requests: Requests
    statuses: list[int]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(http.server.BaseHTTPRequestHandler):
        server: Receiver

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.requests.append((dict(self.headers), body))
            self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = Receiver(("127.0.0.1", 0), Handler)
    server.requests, server.statuses = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def url(receiver: Receiver) -> str:
    return f"http://127.0.0.1:{receiver.server_address[1]}/hook?x=1"


@contextlib.asynccontextmanager
async def running(hook: Webhook) -> AsyncIterator[Webhook]:
    task = asyncio.create_task(hook.run())
    try:
        yield hook
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_events_arrive_in_order_and_signed(receiver: Receiver) -> None:
    async with running(Webhook(url=url(receiver), secret="s3cret")) as hook:
        hook.node_id = 7
        hook.emit("node.registered", {"address": "0:0000.0000.0007"})
        hook.emit("node.deregistered")
        await hook.drain(5)
    assert hook.stats.delivered == 2
    bodies = [json.loads(body) for _, body in receiver.requests]
    assert [(b["event_id"], b["event"], b["node_id"]) for b in bodies] == [
        (1, "node.registered", 7), (2, "node.deregistered", 7),
    ]  # fmt: skip
    assert bodies[0]["data"] == {"address": "0:0000.0000.0007"}
    assert "data" not in bodies[1]
    headers, body = receiver.requests[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Pilot-Signature-256"] == hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()


def test_signature_of_recorded_bodies() -> None:
    path = Path(__file__).parents[1] / "vectors" / "services.json"
    rows = json.loads(path.read_text())["webhook_1_18_0"]
    assert rows
    for row in rows:
        assert signature(row["secret"], row["body"].encode()) == row["X-Pilot-Signature-256"]


async def test_server_errors_are_retried_and_client_errors_are_not(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.01, 0.01))
    receiver.statuses = [503, 500, 204, 404]
    async with running(Webhook(url=url(receiver))) as hook:
        hook.emit("a")
        hook.emit("b")
        await hook.drain(5)
    assert [json.loads(body)["event"] for _, body in receiver.requests] == ["a", "a", "a", "b"]
    assert (hook.stats.delivered, hook.stats.failed) == (1, 1)


async def test_a_dead_receiver_opens_the_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.0, 0.0))
    failures: list[str] = []
    async with running(Webhook(url="http://127.0.0.1:1/", on_failure=lambda e, r: failures.append(e))) as hook:
        for i in range(9):
            hook.emit(f"e{i}")
        await hook.drain(5)
    assert failures == ["e0", "e1", "e2", "e3", "e4"]
    assert hook.stats.skipped == 4


async def test_redirects_are_not_followed(receiver: Receiver) -> None:
    receiver.statuses = [302]
    async with running(Webhook(url=url(receiver))) as hook:
        hook.emit("a")
        await hook.drain(5)
    assert len(receiver.requests) == 1
    assert (hook.stats.failed, hook.stats.delivered) == (1, 0), "where the event would have to go it never was"


class Talker:
    """A server that answers every request with the same pieces, `pause` apart, for ever, and counts them."""

    def __init__(self, pieces: list[bytes], pause: float) -> None:
        self.asked = 0
        self._pieces, self._pause = pieces, pause
        self._end = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while not self._end.is_set():
                client, _ = self._socket.accept()
                self.asked += 1
                with client, contextlib.suppress(OSError):
                    client.recv(65536)
                    for piece in itertools.cycle(self._pieces):
                        client.sendall(piece)
                        if self._end.wait(self._pause):
                            return

    def close(self) -> None:
        self._end.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.mark.parametrize(("pieces", "pause", "says"), [
    ([b"H"], 0.01, "TimeoutError"),  # a byte now and then, never an answer
    ([b"HTTP/1.1 100 Continue\r\n\r\n"], 0.01, "TimeoutError"),  # the answer is always about to come
    ([b"HTTP/1.1 100 Continue\r\n\r\n"], 0.0, "too long a head"),
    ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 8192], 0.0, "too long a head"),
    ([b"SSH-2.0-x\r\n"], 0.0, "not an HTTP response"),
])  # fmt: skip
async def test_a_receiver_that_never_comes_to_the_point(
    pieces: list[bytes], pause: float, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.0,))
    monkeypatch.setattr(webhook, "REQUEST_S", 0.3)
    reasons: list[str] = []
    talker = Talker(pieces, pause)
    try:
        async with running(Webhook(url=talker.url, on_failure=lambda event, reason: reasons.append(reason))) as hook:
            hook.emit("a")
            await hook.drain(10)
        assert talker.asked == 2 and len(reasons) == 1 and says in reasons[0]
    finally:
        talker.close()


async def test_an_interim_answer_is_no_answer() -> None:
    talker = Talker([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 2", b"01\r\n\r\n"], 0.01)
    try:
        async with running(Webhook(url=talker.url)) as hook:
            hook.emit("a")
            await hook.drain(10)
        assert hook.stats.delivered == 1
    finally:
        talker.close()


async def test_whatever_sending_raises_the_next_event_is_sent() -> None:
    faults: list[Exception] = [UnicodeError("label too long"), ValueError("x"), PilotError("invalid_argument", "y")]

    def send(url: str, body: bytes, headers: Mapping[str, str]) -> int:
        if faults:
            raise faults.pop(0)
        return 204

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhook, "RETRY_S", ())
        async with running(Webhook(url="http://h/", send=send)) as hook:
            for _ in range(4):
                hook.emit("a")
            await hook.drain(5)
    assert (hook.stats.failed, hook.stats.delivered) == (3, 1)


async def test_the_queue_is_bounded_and_swapping_the_receiver_works(receiver: Receiver) -> None:
    hook = Webhook(url="http://127.0.0.1:1/")
    for _ in range(webhook.QUEUE + 10):
        hook.emit("x")
    assert hook.stats.dropped == 10
    hook.set_url("")
    hook.emit("nobody hears this")
    hook.set_url(url(receiver))
    async with running(hook):
        hook.emit("y")
        await hook.drain(5)
    assert [json.loads(body)["event"] for _, body in receiver.requests] == ["y"]


@pytest.mark.parametrize(("bad", "says"), [
    ("ftp://x", 'URL must use http or https scheme, got "ftp"'),
    ("http://169.254.169.254/", "URL cannot target link-local address 169.254.169.254"),
    ("http://[fe80::1]/", "URL cannot target link-local address fe80::1"),
    ("http://[::ffff:169.254.1.1]/", "link-local"),
    ("http://[64:ff9b::a9fe:a9fe]/", "link-local"), ("http://[2002:a9fe:a9fe::1]/", "link-local"),
    ("http://[::169.254.169.254]/", "link-local"), ("http://168.63.129.16/", "link-local"),
    ("http://metadata.google.internal/x", "metadata host"),
    ("http://", "no host"), ("http://h:99999/", "invalid URL"), ("http://h/a b", "blanks"), ("", 'got ""'),
    (f"http://{'a' * 64}/", "invalid URL"), ("http://a..b/", "invalid URL"), ("http://h/\xe4", "invalid URL"),
    ("http://h:0/", "invalid URL"),
])  # fmt: skip
def test_urls_that_are_refused(bad: str, says: str) -> None:
    with pytest.raises(PilotError) as e:
        check_url(bad)
    assert says in e.value.message


def test_a_name_that_leads_to_a_link_local_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(2, 1, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(webhook.socket, "getaddrinfo", lambda *a, **k: answer)
    with pytest.raises(PilotError, match="link-local"):
        webhook.post("http://innocent.example/", b"{}", {})
