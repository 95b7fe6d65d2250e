"""send-file, send-message, publish, subscribe: services of a peer (cli.md section 5)."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from pilot.cli.args import parse_duration, usage
from pilot.cli.mailbox import reply_to
from pilot.cli.output import clean, seconds, size
from pilot.cli.progress import Bar
from pilot.cli.session import Session, Steps
from pilot.errors import PilotError
from pilot.sdk import events, exchange
from pilot.sdk.streams import Connection

DIAL_TIMEOUT = 30.0
MAX_DATA = 64 << 20


def send_file(s: Session) -> None:
    """A file into the peer's received files; returns when it is stored and verified there."""
    _, path = s.args.need("target", "path")
    patience = s.args.duration("timeout", exchange.STALL)
    if not os.path.exists(path):  # before anything goes over the network
        raise PilotError("not_found", f"no such file: {path}", "check the path")
    target = s.dial_target()
    if s.args.has("prefer-direct"):
        with suppress(PilotError):  # a wish: the file may go over the relay as well
            s.client.prefer_direct(target.address.node)

    def dial() -> Connection:
        return s.dial(target, exchange.PORT, min(DIAL_TIMEOUT, patience), "data exchange")

    with Bar("hashing", os.path.getsize(path), s.out.json) as bar:
        done = exchange.send_file(dial, path, lambda phase, count, _: bar.update(count, phase), patience)
    rate = done.bytes_sent / max(done.seconds, 1e-9)
    data: dict[str, Any] = {
        "filename": done.name,
        "bytes": done.size,
        "destination": str(target.address),
        "elapsed_ms": round(done.seconds * 1e3, 3),
        "throughput_mbps": round(rate / (1 << 20), 3),
    }
    if done.streamed:
        data |= {
            "bytes_sent": done.bytes_sent,
            "bytes_resumed": done.bytes_resumed,
            "sha256": done.sha256.hex(),
            "transport": "filestream",
            "verified": True,  # the receiver compared the digest before it said so
        }
    else:
        s.out.note("the receiver takes no streamed files; sent in one frame")
        data["ack"] = done.ack
    text = f"{clean(done.name)}: {size(done.size)} in {seconds(done.seconds)} ({size(rate)}/s) to {target.label}"
    if done.bytes_resumed:
        text += f", {size(done.bytes_resumed)} were there already"
    text += f", sha256 verified: {done.sha256.hex()}" if done.streamed else f", {clean(done.ack) or 'no acknowledgement'}"
    s.out.done(data, text)


class _Deadline:
    """`--timeout`: for everything together. Without it each step has its own limit."""

    def __init__(self, s: Session) -> None:
        self._text = s.args.text("timeout")
        self._at = monotonic() + s.args.duration("timeout", 0.0) if self._text else float("inf")

    def left(self, most: float) -> float:
        """Seconds for the next step. Raises PilotError(timeout) when there are none."""
        seconds = min(most, self._at - monotonic())
        if seconds <= 0:
            hint = "delivery may already have occurred; check the inbox before retrying"
            raise PilotError("timeout", f"send-message exceeded total timeout {self._text}", hint, True)
        return seconds


def send_message(s: Session) -> None:
    """Messages into the peer's inbox; with `--wait` until an answer to the last one came."""
    steps, deadline = Steps(s), _Deadline(s)
    s.args.need("target")
    kind = s.args.text("type", "text")
    if kind not in exchange.MESSAGE_TYPES:
        raise usage(f"unknown message type: {kind}", "text, json or binary")
    body = _body(s)
    wait, count = 0.0, s.args.count("count", 1)
    if "wait" in s.args.flags:
        given = s.args.text("wait")
        wait = 30.0 if given == "true" else parse_duration(given)
    s.client  # noqa: B018 - connects
    steps.passed("connectDriver")
    target = s.dial_target(steps.passed)
    steps.passed("dial+send")
    results: list[dict[str, Any]] = []
    with s.dial(target, exchange.PORT, deadline.left(DIAL_TIMEOUT), "data exchange") as conn:
        steps.passed("dataexchange.Dial" if count == 1 else "dataexchange.Dial (shared)")
        for seq in range(count):
            results.append(_one_message(s, conn, deadline, kind, body, seq))
    common = {"target": str(target.address), "to": str(target.address), "type": kind}
    data: dict[str, Any] = common | (results[0] if count == 1 else {"results": results, "reuse_conn": True})
    last = results[-1]
    text = f"{kind} message of {size(len(body))} to {target.label}: "
    text += clean(str(last.get("inner_ack", last["ack"]))) or "sent, not acknowledged"
    if "total_ms" in last:
        text += _times(last)
    if wait:
        data["reply"] = _await_reply(s, last["message_id"], wait, deadline)
        text += f"\n{s.out.foreign(str(data['reply'].get('data', '')).encode())}"
    s.out.done(data, text)
    steps.passed("outputOK")


def _times(row: dict[str, Any]) -> str:
    words = {"to_receiver_ms": "there", "receiver_process_ms": "stored in", "return_trip_ms": "back", "total_ms": "in all"}
    return "\n  " + ", ".join(f"{text} {row[name]:.3f}ms" for name, text in words.items() if name in row)


def _body(s: Session) -> bytes:
    given = s.args.text("data")
    if "data-file" in s.args.flags:
        path = s.args.text("data-file")
        try:
            with open(path, "rb") as f:
                body = f.read(MAX_DATA + 1)
        except OSError as e:
            raise PilotError("not_found", f"cannot read {path}: {e.strerror}", "check the path") from None
    elif given == "-":
        body = sys.stdin.buffer.read(MAX_DATA + 1)
    elif "data" in s.args.flags:
        body = os.fsencode(given)
    else:
        raise usage("missing flag: --data <text>", "or --data - for standard input, or --data-file PATH")
    if len(body) > MAX_DATA:
        raise usage(f"a message has at most {size(MAX_DATA)}", "send larger data as a file: pilotctl send-file")
    return body


def _one_message(s: Session, conn: Connection, deadline: _Deadline, kind: str, body: bytes, seq: int) -> dict[str, Any]:
    message_id, reply_to = os.urandom(16).hex(), s.args.text("reply-to")
    number, seconds, began = exchange.MESSAGE_TYPES[kind], deadline.left(exchange.ANSWER_WAIT), monotonic()
    more: dict[str, Any] = {}
    if s.args.has("trace"):
        ack, tagged, times = exchange.send_traced(conn, number, body, message_id, reply_to, seconds)
        took = {"total_ms": (monotonic() - began) * 1e3}
        parts = {name: value for name, value in times._asdict().items() if value is not None}
        more = {name: value if isinstance(value, str) else round(value, 3) for name, value in (parts | took).items()}
    else:
        ack, tagged = exchange.send_tagged(conn, number, body, message_id, reply_to, seconds)
    said = str(more.get("inner_ack", ack))
    if said.startswith("ERR"):
        raise PilotError("connection_failed", f"message not stored: {said}")
    if not ack:
        deadline.left(1.0)
    row = {"bytes": len(body), "ack": ack, "seq": seq, "message_id": message_id, "tagged": tagged, "reused": seq > 0}
    return row | more


def _await_reply(s: Session, message_id: str, wait: float, deadline: _Deadline) -> dict[str, Any]:
    until = monotonic() + wait
    while True:
        found = reply_to(s.settings.home, message_id)
        if found is not None:
            return found
        if monotonic() > until:
            raise PilotError("timeout", f"no reply within {wait:g}s", "the message was sent; see pilotctl inbox", True)
        sleep(min(0.2, deadline.left(wait)))


def publish(s: Session) -> None:
    """An event to the subscribers at a peer."""
    _, topic = s.args.need("target", "topic")
    if "data" not in s.args.flags:
        raise usage("missing flag: --data <text>")
    body = os.fsencode(s.args.text("data"))
    events.encode(topic, body)  # refuse what is too long before dialling
    target = s.dial_target()
    with s.dial(target, events.PORT, DIAL_TIMEOUT, "event stream") as conn:
        events.publish(conn, topic, body)
    s.out.done({"target": str(target.address), "topic": topic, "bytes": len(body)})


def subscribe(s: Session) -> None:
    """Prints events; with `--count` as one result. A time-out is no error."""
    _, topic = s.args.need("target", "topic")
    events.encode(topic)
    count = s.args.count("count", 0) if "count" in s.args.flags else 0
    target = s.dial_target()
    deadline = monotonic() + s.args.duration("timeout", 0.0) if "timeout" in s.args.flags else None
    got: list[dict[str, Any]] = []
    seen, end = 0, ""
    with events.Subscription(s.dial(target, events.PORT, DIAL_TIMEOUT, "event stream"), topic) as source:
        s.out.note(f'subscribed to "{clean(topic)}" on {target.address} — waiting for events...')
        while not count or seen < count:
            try:
                event = source.next(None if deadline is None else max(0.0, deadline - monotonic()))
            except PilotError as e:
                if e.code != "timeout":
                    raise
                end = "timeout"
                break
            if event is None:
                end = "the peer ended the subscription"
                break
            seen += 1
            text = s.out.foreign(event.data)
            row = {"topic": event.topic, "data": text, "bytes": len(event.data)}
            if s.out.json and count:
                got.append(row)
            else:
                s.out.item(row, f"[{clean(event.topic)}] {text}")
    if end and end != "timeout" and not (count and s.out.json):
        raise PilotError("connection_failed", end, "subscribe again; the peer accepts only nodes it trusts", True)
    if end:
        s.out.note(end)
    if s.out.json and count:
        data: dict[str, Any] = {"events": got or None, "timeout": end == "timeout"}
        if end and end != "timeout":
            data["error"] = end
        s.out.done(data)
