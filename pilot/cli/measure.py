"""ping, traceroute: the echo service of a peer, port 7 (cli.md section 6)."""

from __future__ import annotations

import time
from time import monotonic
from typing import Any

from pilot.cli.output import millis
from pilot.cli.session import Session, Steps, Target
from pilot.errors import PilotError
from pilot.sdk.streams import Connection

ECHO = 7
PAUSE = 1.0
PROBE_TIMEOUT = 30.0


def ping(s: Session) -> int:
    """A new stream per probe (`--reuse-conn`: one for all); the time is that of the echo, set-up is reported beside it. 1 if
    nothing came back."""
    steps = Steps(s)
    s.client  # noqa: B018 - connects
    steps.passed("connectDriver")
    target = s.dial_target(steps.passed)
    count = s.args.count("count", 4)
    limit = s.args.duration("timeout", 0.0) if "timeout" in s.args.flags else None
    deadline = None if limit is None else monotonic() + limit
    s.out.line(f"PING {target.label}:")
    results: list[dict[str, Any]] = []
    kept: Connection | None = None
    timed_out = False
    try:
        for seq in range(count):
            rest = PROBE_TIMEOUT if deadline is None else min(PROBE_TIMEOUT, deadline - monotonic())
            if rest <= 0:
                timed_out = True
                break
            row, kept = _probe(s, target, seq, rest, kept)
            results.append(row)
            if seq + 1 < count:
                time.sleep(PAUSE if deadline is None else max(0.0, min(PAUSE, deadline - monotonic())))
    except KeyboardInterrupt:
        s.out.line(_summary(results))
        raise
    finally:
        if kept:
            kept.close()
    data = {"target": str(target.address), "to": target.typed, "results": results, "timeout": timed_out}
    s.out.done(data, _summary(results))
    return 0 if any("rtt_ms" in r for r in results) else 1


def _probe(
    s: Session, target: Target, seq: int, timeout: float, kept: Connection | None
) -> tuple[dict[str, Any], Connection | None]:
    """One round trip: its row, and the stream for the next one if it is to be used again."""
    started = monotonic()
    payload = f"ping-{seq}".encode()
    reused, keep, conn = kept is not None, False, kept
    try:
        try:
            conn = conn or s.client.dial_addr(target.address, ECHO, timeout)
            dialled = monotonic()
            _echo(conn, payload, max(0.05, timeout - (dialled - started)))
            done = monotonic()
            keep = s.args.has("reuse-conn")
        finally:
            if conn and not keep:
                conn.close()
    except PilotError as e:
        if e.code == "not_running":
            raise
        reason = e.message.rpartition("daemon: ")[2]
        s.out.line(f"  No reply: {reason}")
        return {"seq": seq, "error": reason}, None
    rtt = (done - dialled) * 1e3
    state = s.path(target.address.node)
    line = f"  Reply: {millis(rtt)} ({state})" if str(state) else f"  Reply: {millis(rtt)}"
    if s.args.has("trace"):
        line += " [reused]" if reused else f" [dial={millis((dialled - started) * 1e3)}]"
    s.out.line(line)
    row = {
        "seq": seq,
        "bytes": len(payload),
        "rtt_ms": round(rtt, 3),
        "dial_ms": round((dialled - started) * 1e3, 3),
        "path": state.kind or None,
        "encrypted": state.encrypted,
    }
    return row | ({"reused": True} if reused else {}), conn if keep else None


def _echo(conn: Connection, payload: bytes, timeout: float) -> None:
    conn.write(payload, timeout)
    if conn.read_exactly(len(payload), timeout) != payload:
        raise PilotError("connection_failed", "the echo differs from what was sent")


def _summary(results: list[dict[str, Any]]) -> str:
    times = [r["rtt_ms"] for r in results if "rtt_ms" in r]
    loss = round(100 * (len(results) - len(times)) / len(results)) if results else 0
    text = f"{len(results)} packet{'' if len(results) == 1 else 's'}, {loss}% loss"
    if times:
        mean = sum(times) / len(times)
        text += f", avg {mean:.2f}ms" if mean < 0.995 else f", avg {mean:.1f}ms"
    return text


def traceroute(s: Session) -> int:
    """One stream: time to set it up, then three round trips."""
    s.args.need("target")
    target = s.target(s.args.at(0))
    timeout = s.args.duration("timeout", PROBE_TIMEOUT)
    started = monotonic()
    samples: list[dict[str, Any]] = []
    data: dict[str, Any] = {"target": str(target.address), "rtt_samples": samples}
    with s.dial(target, ECHO, timeout) as conn:
        data["setup_ms"] = round((monotonic() - started) * 1e3, 3)
        try:
            for seq in range(3):
                payload = f"trace-{seq}".encode()
                at = monotonic()
                _echo(conn, payload, max(0.05, timeout - (at - started)))
                samples.append({"rtt_ms": round((monotonic() - at) * 1e3, 3), "bytes": len(payload)})
        except PilotError as e:
            if e.code == "not_running":
                raise
            data["error"] = e.message
    state = s.path(target.address.node)
    data |= {"path": state.kind or None, "encrypted": state.encrypted}
    lines = [f"TRACEROUTE {target.label}", f"  Set-up: {millis(data['setup_ms'])}" + (f" ({state})" if str(state) else "")]
    lines += [f"  Round trip {i + 1}: {millis(r['rtt_ms'])}" for i, r in enumerate(samples)]
    if "error" in data:
        lines.append(f"  No reply: {data['error']}")
    s.out.done(data, "\n".join(lines))
    return 0 if samples else 1
