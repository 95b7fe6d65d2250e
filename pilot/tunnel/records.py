"""What the key exchange remembers per peer, in a bounded table."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import astuple, dataclass, field

from pilot.tunnel.actions import Addr
from pilot.tunnel.packing import NEVER, long, pack, short, unpack
from pilot.wire.frames import Capabilities

FRAMES_PER_S = 5  # exchange frames to one peer, per route: what other implementations accept
MAX_RECORDS = 65536  # as many as the data plane has peers
MAX_STRANGERS = 4096  # from here on records without session, pin or demand make room
MAX_OLD_KEYS = 16
FOR_EVER = float("inf")


@dataclass(slots=True)
class Session:
    """A session key as it was given to the data plane."""

    public: bytes  # the peer's X25519 key
    own: int  # which of ours it was derived with: how many there were before
    key: bytes
    key_id: int
    at: float
    caps: Capabilities | None
    proved: bool = False
    foretold: bool = False  # by the registry; the peer has not said it yet


@dataclass(slots=True)
class PeerRecord:
    """One peer. Times are seconds on the caller's clock."""

    node: int
    pin: bytes | None = None  # Ed25519, fixed by trust
    registered: bytes | None = None  # Ed25519, the registry's answer
    asked_at: float = NEVER  # last question to the registry
    refreshed_at: float = NEVER  # last question past the caches
    waiting: tuple[bytes, Addr, bool] | None = (
        None  # newest frame that waits for the answer: data, from, relayed
    )
    foretold: bytes = b""  # the registry's copy of a PILA, until it can be judged
    doubted: bytes = b""  # the X25519 key that was foretold last, in vain
    live: Session | None = None
    pending: Session | None = None
    pending_from: Addr | None = None
    probes: int = 0  # sent for `pending`
    old: dict[bytes, float] = field(default_factory=dict)  # X25519 key: refused until; the newest last
    want_until: float = NEVER
    attempts: int = 0
    next_send: float | None = None
    replied_at: float = NEVER
    hinted_at: float = NEVER
    reported_at: float = NEVER
    vouched_at: float = NEVER  # last look at a chain of identities
    _sent: tuple[float, ...] = ()  # when frames went out within the last second, directly
    _sent_relay: tuple[float, ...] = ()

    def packed(self, now: float) -> bytes | None:
        """All that is needed later, for `unpacked`; None unless the session is proved and nothing is under way or just over."""
        live = self.live
        if not live or not live.proved or self.pending or self.waiting or self.next_send is not None or self.want_until >= now:
            return None
        if any(now - at < 1.0 for at in (*self._sent, *self._sent_relay)):
            return None
        caps = None if live.caps is None else astuple(live.caps)
        session = (live.public, live.own, live.key, live.key_id, live.at, caps)
        times = short((self.asked_at, self.refreshed_at, self.replied_at, self.hinted_at, self.reported_at))
        registered = True if self.registered and self.registered == self.pin else self.registered
        return pack((self.pin, registered, session, tuple(self.old.items()), *times))

    @classmethod
    def unpacked(cls, node: int, data: bytes) -> PeerRecord:
        """The record that `packed` saw."""
        pin, registered, (public, own, key, key_id, at, caps), old, *times = unpack(data)
        out = cls(node, pin, pin if registered is True else registered)
        out.live = Session(public, own, key, key_id, at, None if caps is None else Capabilities(*caps), proved=True)
        out.old = dict(old)
        out.asked_at, out.refreshed_at, out.replied_at, out.hinted_at, out.reported_at = long(times)
        return out

    @property
    def identity(self) -> bytes | None:
        """The Ed25519 key that frames of this peer are judged by."""
        return self.pin or self.registered

    @property
    def proved(self) -> bool:
        """The peer has shown that it holds the live key."""
        return self.live is not None and self.live.proved

    def wanted(self, now: float) -> bool:
        """A session is wanted and not there yet."""
        return self.want_until >= now and not self.proved

    @property
    def agreed(self) -> bool:
        """The peer has said or shown the live key: that it was foretold matters no more."""
        return self.live is not None and (self.live.proved or not self.live.foretold)

    def may_send(self, relay: bool, now: float) -> bool:
        """Counts one frame on a route; False if the peer would drop it for its rate."""
        times = tuple(t for t in (self._sent_relay if relay else self._sent) if now - t < 1.0)
        if len(times) >= FRAMES_PER_S:
            return False
        if relay:
            self._sent_relay = (*times, now)
        else:
            self._sent = (*times, now)
        return True

    def remember_old(self, public: bytes, until: float) -> None:
        """Refuses an X25519 key of this peer until then."""
        self.old.pop(public, None)
        self.old[public] = until
        if len(self.old) > MAX_OLD_KEYS:
            del self.old[next(iter(self.old))]

    def is_old(self, public: bytes, now: float) -> bool:
        """The key was replaced by a proved one, or failed the proof lately."""
        return now < self.old.get(public, NEVER)


class PeerTable:
    """Records by node number, least recently used first. Those of idle peers rest, packed, until somebody asks for them."""

    def __init__(self) -> None:
        self._records: OrderedDict[int, PeerRecord] = OrderedDict()
        self._resting: dict[int, bytes] = {}

    def find(self, node: int) -> PeerRecord | None:
        """The record, None if there is none."""
        record = self._records.get(node)
        if record is None and (state := self._resting.pop(node, None)):
            record = self._records[node] = PeerRecord.unpacked(node, state)
        return record

    def get(self, node: int) -> PeerRecord:
        """The record, made if need be."""
        record = self.find(node)
        if record:
            self._records.move_to_end(node)
            return record
        if len(self) >= MAX_STRANGERS:
            self._evict()
        record = self._records[node] = PeerRecord(node)
        return record

    def pop(self, node: int) -> PeerRecord | None:
        """Removes and returns a record."""
        self.find(node)
        return self._records.pop(node, None)

    def rests(self, node: int) -> bool:
        """The record rests. Its session is proved, or it would not."""
        return node in self._resting

    def rest(self, node: int, now: float) -> None:
        """Nobody is expected to ask for this record soon."""
        record = self._records.get(node)
        state = record.packed(now) if record else None
        if state:
            del self._records[node]
            self._resting[node] = state

    def with_session(self) -> list[int]:
        """The nodes that we share a key with."""
        return [*self._resting, *(record.node for record in self._records.values() if record.live)]

    def __len__(self) -> int:
        return len(self._records) + len(self._resting)

    def _evict(self) -> None:
        # A few only are looked at, so that a stranger's frame costs O(1) however full the table is.
        for node in list(itertools.islice(self._records, 16)):
            record = self._records[node]
            if record.live is None and record.pin is None and record.next_send is None:
                del self._records[node]
                return
            self._records.move_to_end(node)
        if len(self) >= MAX_RECORDS:
            self.pop(next(itertools.chain(self._records, self._resting)))
