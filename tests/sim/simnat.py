"""A NAT on virtual time (RFC 4787 terms): mapping and filtering chosen apart, mappings expire, hairpin on or
off."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

Addr = tuple[str, int]
SECOND = 1_000_000_000


@dataclass(slots=True)
class _Mapping:
    inside: Addr
    port: int
    used_ns: int  # last packet from inside: only those refresh (REQ-6)
    allowed: dict[object, int] = field(
        default_factory=dict
    )  # remote, as far as the filter looks: last sent to


class Nat:
    """mapping: "eim" (one outside port per inside address) or "apdm" (one per destination, symmetric).
    filtering: "none", "addr" or "port". ports: "random", "sequential" or "keep". open_input: the router takes a packet that
    nobody inside waits for as its own, which gives that pair of endpoints away: what goes out to that sender gets another port
    (many Linux routers)."""

    def __init__(
        self,
        ip: str,
        mapping: str = "eim",
        filtering: str = "port",
        *,
        rng: random.Random,
        timeout_s: float = 120.0,
        hairpin: bool = False,
        ports: str = "random",
        open_input: bool = False,
        outer: Nat | None = None,
    ) -> None:
        self.ip = ip
        self.mapping = mapping
        self.filtering = filtering
        self.timeout_ns = int(timeout_s * SECOND)
        self.hairpin = hairpin
        self.outer = outer
        self.open_input = open_input
        self._taken: dict[tuple[int, Addr], int] = {}  # outside port, stranger: last packet from there
        self._ports = ports
        self._rng = rng
        self._next_port = 20000
        self._by_key: dict[object, _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}

    def outbound(self, src: Addr, dst: Addr, now_ns: int) -> Addr:
        """Translates a packet that leaves; returns its outside source."""
        key: object = src if self.mapping == "eim" else (src, dst)
        entry = self._by_key.get(key)
        if entry and self._is_taken(entry.port, dst, now_ns):
            key = (src, dst)
            entry = self._by_key.get(key)
        if entry is None or now_ns - entry.used_ns > self.timeout_ns:
            if entry:
                self._by_port.pop(entry.port, None)
            entry = _Mapping(src, self._new_port(src), now_ns)
            self._by_key[key] = entry
            self._by_port[entry.port] = entry
        entry.used_ns = now_ns
        entry.allowed[self._seen(dst)] = now_ns
        return self.ip, entry.port

    def inbound(self, src: Addr, port: int, now_ns: int) -> Addr | None:
        """Where a packet from `src` to our outside `port` goes inside; None if it is dropped."""
        entry = self._by_port.get(port)
        if entry is None or now_ns - entry.used_ns > self.timeout_ns:
            return None
        if self.filtering != "none":
            sent = entry.allowed.get(self._seen(src))
            if sent is None or now_ns - sent > self.timeout_ns:
                if self.open_input:
                    self._taken[port, src] = now_ns
                return None
        return entry.inside

    def _is_taken(self, port: int, dst: Addr, now_ns: int) -> bool:
        at = self._taken.get((port, dst))
        return at is not None and now_ns - at < 30 * SECOND

    def reset(self) -> None:
        """All mappings are lost, as by a restart of the router."""
        self._by_key.clear()
        self._by_port.clear()
        self._taken.clear()

    def _seen(self, remote: Addr) -> object:
        return remote[0] if self.filtering == "addr" else remote

    def _new_port(self, src: Addr) -> int:
        if self._ports == "keep" and src[1] not in self._by_port:
            return src[1]
        if self._ports == "sequential":
            self._next_port += 1
            return self._next_port
        while True:
            port = self._rng.randrange(1024, 65536)
            if port not in self._by_port:
                return port


KINDS: dict[str, tuple[str, str] | None] = {
    "none": None,
    "full_cone": ("eim", "none"),
    "restricted": ("eim", "addr"),
    "port_restricted": ("eim", "port"),
    "symmetric": ("apdm", "port"),
}
