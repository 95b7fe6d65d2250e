"""send-file, send-message, publish, subscribe: services of a peer (cli.md section 5)."""

from __future__ import annotations

import os
import sys
from time import monotonic, sleep
from typing import Any

from pilot.cli.args import parse_duration, usage
from pilot.cli.mailbox import reply_to
from pilot.cli.output import clean, seconds, size
from pilot.cli.progress import Bar
from pilot.cli.session import Session, Target
from pilot.errors import PilotError
from pilot.sdk import events, exchange
from pilot.sdk.streams import Connection

DIAL_TIMEOUT = 30.0
MAX_DATA = 64 << 20


def send_file(s: Session) -> None:
    """A file into the peer's received files; returns when it is stored and verified there."""
    _, path = s.args.need("target", "path")
    if not os.path.exists(path):  # before anything goes over the network
        raise PilotError("not_found", f"no such file: {path}", "check the path")
    target = s.dial_target()

    def dial() -> Connection:
        return s.dial(target, exchange.PORT, DIAL_TIMEOUT, "data exchange")

    with Bar("hashing", os.path.getsize(path), s.out.json) as bar:
        done = exchange.send_file(dial, path, lambda phase, count, _: bar.update(count, phase))
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


def send_message(s: Session) -> None:
    """Messages into the peer's inbox; with `--wait` until an answer to the last one came."""
    s.args.need("target")
    kind = s.args.text("type", "text")
    if kind not in exchange.MESSAGE_TYPES:
        raise usage(f"unknown message type: {kind}", "text, json or binary")
    body = _body(s)
    wait = 0.0
    if "wait" in s.args.flags:
        given = s.args.text("wait")
        wait = 30.0 if given == "true" else parse_duration(given)
    target = s.dial_target()
    data: dict[str, Any] = {}
    with s.dial(target, exchange.PORT, DIAL_TIMEOUT, "data exchange") as conn:
        for seq in range(s.args.count("count", 1)):
            data = _one_message(s, conn, target, kind, body, seq)
    text = f"{kind} message of {size(len(body))} to {target.label}: {clean(data['ack']) or 'sent, not acknowledged'}"
    if wait:
        data["reply"] = _await_reply(s, data["message_id"], wait)
        text += f"\n{s.out.foreign(str(data['reply'].get('data', '')).encode())}"
    s.out.done(data, text)


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


def _one_message(s: Session, conn: Connection, target: Target, kind: str, body: bytes, seq: int) -> dict[str, Any]:
    message_id = os.urandom(16).hex()
    number = exchange.MESSAGE_TYPES[kind]
    ack, tagged = exchange.send_tagged(conn, number, body, message_id, s.args.text("reply-to"))
    if ack.startswith("ERR"):
        raise PilotError("connection_failed", f"message not stored: {ack}")
    return {
        "target": str(target.address),
        "to": str(target.address),
        "type": kind,
        "bytes": len(body),
        "ack": ack,
        "seq": seq,
        "message_id": message_id,
        "tagged": tagged,
        "reused": seq > 0,
    }


def _await_reply(s: Session, message_id: str, wait: float) -> dict[str, Any]:
    deadline = monotonic() + wait
    while True:
        found = reply_to(s.settings.home, message_id)
        if found is not None:
            return found
        if monotonic() > deadline:
            raise PilotError("timeout", f"no reply within {wait:g}s", "the message was sent; see pilotctl inbox", True)
        sleep(0.2)


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
