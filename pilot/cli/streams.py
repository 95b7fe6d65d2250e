"""connect, send, recv, dgram, listen (cli.md section 5)."""

from __future__ import annotations

import os
import sys
from time import monotonic
from typing import Any

from pilot.cli.args import usage
from pilot.cli.output import rows
from pilot.cli.paths import Story, connected_text
from pilot.cli.session import Session, Target
from pilot.errors import PilotError
from pilot.sdk.streams import Connection
from pilot.wire.address import parse_port

DEFAULT_PORT = 1000
ONE_READ = 65536
TIMEOUT = 30.0


def connect(s: Session) -> None:
    """One message to a port, and the answer. Without `--message` it comes from standard input."""
    s.args.need("target")
    port = parse_port(s.args.at(1, str(DEFAULT_PORT)))
    if "message" in s.args.flags:
        message = os.fsencode(s.args.text("message"))
    elif sys.stdin is not None and not sys.stdin.isatty():
        message = sys.stdin.buffer.read()
    else:
        raise usage("nothing to send", "give --message TEXT, or pipe data into the command")
    if not message:
        raise usage("the message is empty")
    target = s.dial_target()
    started = monotonic()
    timeout = s.args.duration("timeout", TIMEOUT)
    with Story(s.settings.socket, target.address.node, s.out) as story:
        conn = s.dial(target, port, timeout)
        data = _exchange(s, conn, target, port, message, timeout - (monotonic() - started), story)
    state = s.path(target.address.node)
    data |= {"path": state.kind or None, "encrypted": state.encrypted}
    s.out.done(data, data["response"].removesuffix("\n"))


def send(s: Session) -> None:
    """Data to a port, and the answer."""
    _, port_text = s.args.need("target", "port")
    port = parse_port(port_text)
    data = os.fsencode(_data(s))
    target = s.dial_target()
    timeout = s.args.duration("timeout", TIMEOUT)
    conn = s.dial(target, port, timeout)
    reply = _exchange(s, conn, target, port, data, timeout, None)
    s.out.done(reply, reply["response"].removesuffix("\n"))


def _data(s: Session) -> str:
    if "data" not in s.args.flags:
        raise usage("missing flag: --data <text>")
    return s.args.text("data")


def _exchange(
    s: Session, conn: Connection, target: Target, port: int, data: bytes, timeout: float, story: Story | None
) -> dict[str, Any]:
    """One write, one read. story: is told to its end, and then that the peer has the message."""
    with conn:
        conn.write(data, max(timeout, 1.0))
        try:
            response = conn.read(ONE_READ, max(timeout, 0.1))
        except PilotError as e:
            if e.code != "timeout":
                raise
            arrived = "; the message was delivered" if _delivered(s, conn.conn_id) else ""
            message = f"no answer from {target.address} port {port} within {timeout:.0f}s{arrived}"
            raise PilotError("timeout", message, "a longer wait: --timeout 2m", True) from None
        delivered = bool(response) or (story is not None and _delivered(s, conn.conn_id))
        if story is not None:
            if not story.finish():
                s.out.note(connected_text(s.path(target.address.node)))
            if delivered:
                s.out.note("Message delivered")
    if not response:
        s.out.note(f"sent {len(data)} bytes (no response)")
    return {
        "target": str(target.address),
        "port": port,
        "sent": data.decode("utf-8", "replace"),
        "response": s.out.foreign(response),
    }


def _delivered(s: Session, conn_id: int) -> bool:
    """Whether the peer acknowledged everything that was sent on a connection."""
    for row in rows(s.client.info(), "conn_list"):
        if row.get("id") == conn_id:
            return row.get("unacked") == 0 and row.get("in_flight") == 0
    return False


def recv(s: Session) -> None:
    """Accepts connections and prints one read of each. A time-out is no error."""
    port = parse_port(s.args.need("port")[0])
    count = s.args.count("count", 1)
    deadline = monotonic() + s.args.duration("timeout", TIMEOUT)
    messages: list[dict[str, Any]] = []
    timed_out = False
    with s.client.listen(port) as listener:
        while len(messages) < count:
            try:
                conn = listener.accept(max(0.0, deadline - monotonic()))
            except PilotError as e:
                if e.code != "timeout":
                    raise
                timed_out = True
                break
            with conn:
                messages.append(_one_read(s, conn, len(messages), port, deadline))
    if timed_out:
        s.out.note("timeout")
    if s.out.json:
        s.out.done({"messages": messages or None, "timeout": timed_out})


def _one_read(s: Session, conn: Connection, seq: int, port: int, deadline: float) -> dict[str, Any]:
    try:
        data = conn.read(ONE_READ, max(0.0, deadline - monotonic()))
    except PilotError as e:
        if e.code != "timeout":
            raise
        s.out.note(f"{conn.remote} sent nothing")
        return {"seq": seq, "port": port, "error": e.message}
    text = s.out.foreign(data)
    s.out.line(text.removesuffix("\n"))
    return {"seq": seq, "port": port, "data": text, "bytes": len(data)}


def dgram(s: Session) -> None:
    """A datagram. confirmed: it left this node; nobody confirms that it arrived."""
    _, port_text = s.args.need("target", "port")
    port = parse_port(port_text)
    data = os.fsencode(_data(s))
    target = s.dial_target()
    confirmed = True
    try:
        s.client.send_to_confirm(target.address, port, data)
    except PilotError as e:
        if e.code != "not_supported":
            raise
        confirmed = False
        s.client.send_to(target.address, port, data)
    result = {"target": str(target.address), "port": port, "bytes": len(data), "confirmed": confirmed}
    s.out.done(result, f"sent {len(data)} byte(s) to {target.address} port {port}")


def listen(s: Session) -> None:
    """Prints datagrams for a port; with `--count` as one result."""
    port = parse_port(s.args.need("port")[0])
    count = s.args.count("count", 0) if "count" in s.args.flags else 0
    deadline = monotonic() + s.args.duration("timeout", 0.0) if "timeout" in s.args.flags else None
    source = s.client.datagrams(port)
    s.out.note(f"listening on port {port} — waiting for datagrams...")
    messages: list[dict[str, Any]] = []
    seen, timed_out = 0, False
    while not count or seen < count:
        try:
            got = source.receive(None if deadline is None else max(0.0, deadline - monotonic()))
        except PilotError as e:
            if e.code != "timeout":
                raise
            timed_out = True
            break
        seen += 1
        text = s.out.foreign(got.data)
        row = {"src_addr": str(got.source), "src_port": got.source_port, "data": text, "bytes": len(got.data)}
        if s.out.json and count:
            messages.append(row)
        else:
            s.out.item(row, f"[{got.source}:{got.source_port}] {text}")
    if timed_out:
        s.out.note("timeout")
    if s.out.json and count:
        s.out.done({"messages": messages or None, "timeout": timed_out})
