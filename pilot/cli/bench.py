"""bench: throughput of one or many streams, there and back or one way, and the round trip beside it (cli.md section 6)."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from pilot.cli.args import usage
from pilot.cli.output import millis, seconds, size
from pilot.cli.progress import Bar
from pilot.cli.session import Session, Target
from pilot.errors import PilotError
from pilot.sdk import LocalClient
from pilot.sdk.streams import Connection
from pilot.wire.services import PORT_COUNTER as COUNTER

ECHO = 7
DIAL_S, TIMEOUT_S = 30.0, 120.0
PIECE = 256 << 10
PATTERN = bytes(range(256)) * ((PIECE + 256) // 256)  # the byte at position i is i mod 256
MAX_MB, MAX_STREAMS, MAX_DURATION_S = 1 << 20, 1000, 86400.0
IDLE_PROBES, PROBE_PAUSE_S = 25, 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for: bytes in all, or a time when `total` is 0. timeout: seconds for everything."""

    one_way: bool
    streams: int
    total: int
    duration: float
    timeout: float
    latency: bool

    @property
    def text(self) -> str:
        what = f"{size(self.total)}" if self.total else f"for {seconds(self.duration)}"
        way = "one way" if self.one_way else "via echo port"
        return f"sending {what} {way}" + (f", {self.streams} streams" if self.streams > 1 else "")


@dataclass(slots=True)
class Flow:
    """One stream of the load. got: bytes that came back, or that the peer has counted."""

    conn: Connection
    load: Load
    share: int  # bytes to send; 0 = as long as the time lasts
    sent: int = 0
    got: int = 0
    sending: bool = True
    counts: bytearray = field(default_factory=bytearray)

    @property
    def done(self) -> bool:
        return not self.sending and self.got >= self.sent

    def push(self) -> bool:
        """Hands over what the daemon takes at once; whether it took anything."""
        if not self.sending:
            return False
        at = self.sent % 256
        room = PIECE if not self.share else min(PIECE, self.share - self.sent)
        put = self.conn.try_write(memoryview(PATTERN)[at : at + room])
        self.sent += put
        self.sending = not self.share or self.sent < self.share
        return put > 0

    def pull(self) -> bool:
        """Takes what has arrived; whether there was anything. Raises PilotError when it is wrong, or the stream has ended."""
        data = self.conn.try_read(PIECE)
        if not data:
            if self.conn.ended and not self.done:
                raise PilotError("connection_failed", "the peer closed the stream")
            return False
        if self.load.one_way:
            self._count(data)
            return True
        at = self.got % 256
        if data != PATTERN[at : at + len(data)]:
            raise PilotError("connection_failed", "the echo differs from what was sent")
        self.got += len(data)
        return True

    def _count(self, data: bytes) -> None:
        self.counts += data
        whole = len(self.counts) // 8 * 8
        if whole:
            self.got = int.from_bytes(self.counts[whole - 8 : whole], "big")
            del self.counts[:whole]
        if self.got > self.sent:
            raise PilotError("connection_failed", "the peer counts more than was sent")


class Prober(threading.Thread):
    """Round trips of a stream of its own, on a connection to the daemon of its own: first alone, then beside the load."""

    def __init__(self, socket: Any, target: Target) -> None:
        super().__init__(name="bench-latency", daemon=True)
        self._client = LocalClient(socket)
        self._target = target
        self._ending = threading.Event()
        self.idle: list[float] = []
        self.loaded: list[float] = []
        self.error = ""

    def __enter__(self) -> Prober:
        try:
            self._conn = self._client.dial_addr(self._target.address, ECHO, DIAL_S)
            self.idle = [self._probe() for _ in range(IDLE_PROBES)]
        except BaseException:
            self._client.close()
            raise
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join()
        self._client.close()

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                self.loaded.append(self._probe())
        except PilotError as e:
            self.error = e.message

    def _probe(self) -> float:
        """Milliseconds."""
        started = monotonic()
        self._conn.write(b"bench-rtt", DIAL_S)
        self._conn.read_exactly(9, DIAL_S)
        took = monotonic() - started
        self._ending.wait(PROBE_PAUSE_S)
        return took * 1e3

    def figures(self) -> dict[str, Any]:
        """JSON: idle and loaded, each p50_ms, p99_ms, count."""
        out: dict[str, Any] = {"idle": _times(self.idle), "loaded": _times(self.loaded)}
        return out | ({"error": self.error} if self.error else {})


def _times(samples: list[float]) -> dict[str, Any]:
    ordered = sorted(samples)
    if not ordered:
        return {"count": 0}
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)]
    return {"p50_ms": round(at[0], 3), "p99_ms": round(at[1], 3), "count": len(ordered)}


def bench(s: Session) -> int:
    """Sends a pattern to the peer's echo service and checks every byte that comes back, or has the peer count it. 1 if not all
    of it arrived."""
    s.args.need("target")
    load = _load(s)
    target = s.dial_target()
    s.out.line(f"BENCH {target.label} — {load.text}")
    prober: Prober | None = None
    with ExitStack() as stack:
        flows = [Flow(stack.enter_context(_dial(s, target, load)), load, share) for share in _shares(load)]
        if load.latency:
            prober = stack.enter_context(Prober(s.settings.socket, target))
        bar = stack.enter_context(Bar("bench", load.total or 1, s.out.json or not load.total))
        sent_s, total_s, error = _pump(s, flows, load, bar)
    sent, got = sum(f.sent for f in flows), sum(f.got for f in flows)
    data: dict[str, Any] = {
        "target": str(target.address),
        "mode": "one-way" if load.one_way else "echo",
        "streams": load.streams,
        "sent_bytes": sent,
        "recv_bytes": got,
        "send_duration_ms": round(sent_s * 1e3, 3),
        "total_duration_ms": round(total_s * 1e3, 3),
        "send_mbps": sent / (1 << 20) / max(sent_s, 1e-9),
        "total_mbps": got / (1 << 20) / max(total_s, 1e-9),
        "complete": not error,
    }
    state = s.path(target.address.node)
    data |= {"path": state.kind or None, "encrypted": state.encrypted}
    if prober:
        data["latency"] = prober.figures()
    if error:
        data["error"] = error
    lines = [
        f"  Sent:     {_rate(sent, sent_s)}",
        f"  {'Counted: ' if load.one_way else 'Echoed:  '} {_rate(got, total_s)}{f' ({state})' if str(state) else ''}",
    ]
    if prober:
        lines.append(f"  Latency:  {_latency('idle', prober.idle)}, {_latency('under load', prober.loaded)}")
    if error:
        lines.append(f"  Incomplete: {error}")
    s.out.done(data, "\n".join(lines))
    return 0 if not error else 1


def _load(s: Session) -> Load:
    """Raises PilotError(invalid_argument)."""
    timed = "duration" in s.args.flags
    if timed and len(s.args.positional) > 1:
        raise usage("give a size or --duration, not both")
    duration = s.args.duration("duration", 0.0)
    if timed and not 0 < duration <= MAX_DURATION_S:
        raise usage(f"flag --duration: want a time above 0, got {s.args.text('duration')}")
    try:
        megabytes = float(s.args.at(1, "1"))
    except ValueError:
        megabytes = 0.0
    if not 0 < megabytes <= MAX_MB:
        raise usage(f"size_mb: want a number of megabytes above 0, got {s.args.at(1)}")
    streams = s.args.count("streams", 1)
    if streams > MAX_STREAMS:
        raise usage(f"flag --streams: want a number from 1 to {MAX_STREAMS}, got {streams}")
    total = 0 if timed else max(streams, int(megabytes * (1 << 20)))
    timeout = s.args.duration("timeout", TIMEOUT_S + duration)
    return Load(s.args.has("one-way"), streams, total, duration, timeout, s.args.has("latency"))


def _shares(load: Load) -> list[int]:
    """Bytes of each stream."""
    whole, rest = divmod(load.total, load.streams)
    return [whole + (i < rest) for i in range(load.streams)]


def _dial(s: Session, target: Target, load: Load) -> Connection:
    if not load.one_way:
        return s.dial(target, ECHO, DIAL_S)
    try:
        return s.dial(target, COUNTER, DIAL_S)
    except PilotError as e:
        if "refused" not in e.message:
            raise
        hint = "it is another implementation, or runs with -no-echo; without --one-way its echo service is used"
        raise PilotError("not_supported", f"{target.label} does not count what arrives (port {COUNTER})", hint) from None


def _pump(s: Session, flows: list[Flow], load: Load, bar: Bar) -> tuple[float, float, str]:
    """(seconds to send, seconds in all, "" or why it ended early)."""
    started = sent_at = monotonic()
    try:
        while True:
            now = monotonic()
            if not load.total and now - started >= load.duration:
                for flow in flows:
                    flow.sending = False
            pushed = [flow.push() for flow in flows]
            pulled = [flow.pull() for flow in flows]
            if any(pushed):
                sent_at = monotonic()
            if any(pulled):
                bar.update(sum(flow.got for flow in flows))
            if all(flow.done for flow in flows):
                return sent_at - started, monotonic() - started, ""
            if any(pushed) or any(pulled):
                continue
            rest = load.timeout - (now - started)
            if rest <= 0:
                return sent_at - started, monotonic() - started, f"not done within {load.timeout:g}s"
            sending = any(flow.sending for flow in flows)
            pause = min(rest, 1.0, max(0.001, load.duration - (now - started)) if sending and not load.total else 1.0)
            s.client.wait(writable=sending, timeout=pause)
    except PilotError as e:
        if e.code == "not_running":
            raise
        return sent_at - started, monotonic() - started, e.message


def _rate(count: int, took: float) -> str:
    per_second = count / max(took, 1e-9)
    return f"{size(count)} in {seconds(took)} ({size(per_second)}/s, {per_second * 8 / 1e6:.0f} Mbit/s)"


def _latency(when: str, samples: list[float]) -> str:
    times = _times(samples)
    if not samples:
        return f"no reply {when}"
    return f"{millis(times['p50_ms'])} {when} (p99 {millis(times['p99_ms'])})"
