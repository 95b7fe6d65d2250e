"""path: how traffic to a node flows, and why. Decisions are told while a connection is being set up."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from time import monotonic
from typing import Any

from pilot.cli.output import Output, clean, millis, number, rows, seconds, table
from pilot.cli.session import PathState, Session
from pilot.errors import PilotError
from pilot.sdk.client import LocalClient

POLL = 0.05
SETTLE_S = 5.0  # longer than any race of paths
_CONNECTED = {
    "direct": "Connected directly",
    "lan": "Connected over the local network",
    "hole-punched": "Connected via hole-punch",
    "relay": "Connected via relay",
}


def path(s: Session) -> None:
    """The present path, alternatives and decisions."""
    s.args.need("target")
    target = s.target(s.args.at(0))
    try:
        reply = s.client.peer_path(target.address.node, int(1000 * s.args.duration("wait", 3.0)))
    except PilotError as e:
        if e.code != "not_supported":
            raise
        state = s.path(target.address.node)
        data: dict[str, Any] = {"node_id": target.address.node, "path": state.kind or None, "encrypted": state.encrypted}
        s.out.done(data, f"{target.label}: {state or 'unknown'}; this daemon tells no more")
        return
    s.out.done(reply, _describe(target.label, reply))


def _describe(label: str, reply: dict[str, Any]) -> str:
    way = reply.get("path")
    lines = [label]

    def add(name: str, value: str) -> None:
        if value:
            lines.append(f"  {name + ':':<12}{clean(value)}")

    if isinstance(way, dict):
        carrier = " over WebSocket" if way.get("transport") == "websocket" else ""
        add("Path", f"{way.get('kind')}{carrier} via {way.get('addr')}")
        if way.get("rtt_ms") is not None:
            add("RTT", millis(number(way["rtt_ms"])))
        if way.get("overhead_ms") is not None:
            add("Relay cost", millis(number(way["overhead_ms"])))
    else:
        add("Path", "none")
    add("Why", str(reply.get("why") or ""))
    add("Encrypted", "yes" if reply.get("encrypted") is True else "no")
    add("NAT", f"{reply.get('nat', 'unknown')} here, {reply.get('peer_nat', 'unknown')} there")
    ways = rows(reply, "candidates")
    if ways:
        cells = [
            (
                str(w.get("kind", "")),
                str(w.get("addr", "")),
                "answers" if w.get("answers") is True else "silent",
                millis(number(w["rtt_ms"])) if w.get("rtt_ms") is not None else "-",
                ", ".join(map(str, w["sources"])) if isinstance(w.get("sources"), list) else "",
            )
            for w in ways
        ]
        head = ("KIND", "ADDRESS", "STATE", "RTT", "KNOWN FROM")
        lines += ["", *("  " + line for line in table(head, cells).split("\n"))]
    told = rows(reply, "history")
    if told:
        lines += ["", "  Decisions:"]
        lines += [f"    {seconds(number(d.get('age_s')))} ago  {clean(str(d.get('text', '')))}" for d in told[-16:]]
    return "\n".join(lines)


def prefer_direct(s: Session) -> None:
    """The daemon forgets that the peer needed the relay, and looks for a direct path at once."""
    s.args.need("target")
    target = s.target(s.args.at(0))
    reply = s.client.prefer_direct(target.address.node)
    text = f"looking for a direct path to {target.label}"
    if reply.get("resolve_error"):
        text += f"\nnote: {clean(str(reply['resolve_error']))}"
    s.out.done(reply, f"{text}; pilotctl path {target.typed} shows what comes of it")


def connected_text(state: PathState) -> str:
    """`Connected via hole-punch (encrypted, 12ms)`."""
    details = ["encrypted" if state.encrypted else "not encrypted"] if state.encrypted is not None else []
    if state.rtt_ms is not None:
        details.append(millis(state.rtt_ms))
    head = _CONNECTED.get(state.kind, "Connected")
    return f"{head} ({', '.join(details)})" if details else head


def fresh(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decisions of a bounded history that were not there before: its end may have grown, its start gone."""

    def key(decision: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(decision.get(k) for k in ("step", "text", "kind", "addr"))

    old, new = [key(d) for d in before], [key(d) for d in now]
    for gone in range(len(old) + 1):
        kept = len(old) - gone
        if new[:kept] == old[gone:]:
            return now[kept:]
    return now


class Story:
    """Prints decisions about a peer on standard error while it is used in `with`.

    It asks over a connection of its own: a dial keeps the other one busy. Daemons that tell nothing are fine.
    """

    def __init__(self, socket_path: str, node: int, out: Output) -> None:
        self._told = False
        self._racing = False
        self._path, self._node, self._out = socket_path, node, out
        self._client: LocalClient | None = None
        self._known: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Story:
        if not self._out.json:
            try:
                self._client = LocalClient(self._path)
                self._known = self._history()
            except PilotError:
                self._end()
            else:
                self._thread.start()
        return self

    def finish(self) -> bool:
        """Waits until the daemon has decided on a path: data may flow long before. Whether there was anything to tell."""
        deadline = monotonic() + SETTLE_S
        with suppress(PilotError):
            self._halt()
            while self._client is not None and monotonic() < deadline:
                self._tell()
                if not self._racing:
                    break
                time.sleep(POLL)
        return self._told or self._out.json

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._halt()
            with suppress(PilotError):
                self._tell()
            self._end()

    def _halt(self) -> None:
        self._stop.set()
        if self._client is not None:
            self._thread.join()

    def _end(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _history(self) -> list[dict[str, Any]]:
        assert self._client is not None
        reply = self._client.peer_path(self._node)
        self._racing = reply.get("phase") in ("opening", "racing")
        return rows(reply, "history")

    def _tell(self) -> None:
        now = self._history()
        for decision in fresh(self._known, now):
            self._told = True
            self._out.note(clean(str(decision.get("text", ""))))
        self._known = now

    def _follow(self) -> None:
        with suppress(PilotError):
            while not self._stop.wait(POLL):
                self._tell()
