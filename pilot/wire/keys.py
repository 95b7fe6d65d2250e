"""Session keys of both eras and the replay window (transport.md 3.4, 3.5.3).

The window here is the plain form of the rule, the oracle of csrc/replay.c.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from pilot.wire.errors import WireError

if TYPE_CHECKING:
    from pilot._core import AgreementKey

KEY_SIZE = 32
REPLAY_WINDOW = 8192
REPLAY_LIVE = 5  # the newest prefix and four earlier ones keep a window
REPLAY_PREFIXES = 64  # prefixes retired before the session must be renewed

_TUNNEL_INFO = b"pilot-tunnel-v1"
_TUNNEL_ERA1 = b"pilot-tunnel-v1:"


def tunnel_key(private: AgreementKey, peer_public: bytes) -> bytes:
    """AES-256 key (32 bytes) of the session with the holder of `peer_public` (32 bytes).

    Raises WireError for a key of another length and for a low-order point, whose shared secret everybody knows.
    """
    return hkdf(shared_secret(private, peer_public), _TUNNEL_INFO)


def tunnel_key_era1(private: AgreementKey, peer_public: bytes) -> bytes:
    """The key (32 bytes) of the same session with a node of era 1. Raises WireError as `tunnel_key` does."""
    return hashlib.sha256(_TUNNEL_ERA1 + shared_secret(private, peer_public)).digest()


def shared_secret(private: AgreementKey, peer_public: bytes) -> bytes:
    """X25519 agreement, 32 bytes. Raises WireError as `tunnel_key` does."""
    from pilot._core import CoreError

    if len(peer_public) != KEY_SIZE:
        raise WireError("X25519 key is not 32 bytes")
    try:
        return private.agree(peer_public)
    except CoreError:
        raise WireError("low-order X25519 key") from None


def hkdf(shared: bytes, info: bytes) -> bytes:
    """HKDF-SHA-256 with empty salt, 32 bytes out (RFC 5869; one block, so one expansion step)."""
    prk = hmac.digest(bytes(32), shared, hashlib.sha256)
    return hmac.digest(prk, info + b"\x01", hashlib.sha256)


def verify_signature(public: bytes, signature: bytes, message: bytes) -> bool:
    """Plain Ed25519. False for anything wrong, keys and signatures of other lengths included."""
    from pilot._core import verify

    return verify(public, signature, message)


class ReplayWindow:
    """Sliding window over the counters of one nonce prefix. Counter 0 is never accepted."""

    def __init__(self, size: int = REPLAY_WINDOW) -> None:
        """size: counters that may come late, in frames."""
        self.size = size
        self.highest = 0
        self._seen: set[int] = set()

    def check(self, counter: int) -> bool:
        """Not seen yet and not too old."""
        return counter > 0 and self.highest - counter < self.size and counter not in self._seen

    def commit(self, counter: int) -> None:
        """Records the counter of a frame that opened."""
        self._seen.add(counter)
        if counter > self.highest:
            self.highest = counter
            self._seen = {c for c in self._seen if counter - c < self.size}

    def accept(self, counter: int) -> bool:
        """check, and commit if it passed."""
        passed = self.check(counter)
        if passed:
            self.commit(counter)
        return passed


class Replay:
    """Windows of one session: a new prefix opens one, the newest REPLAY_LIVE prefixes keep theirs, earlier
    ones are refused for good."""

    def __init__(self, size: int = REPLAY_WINDOW) -> None:
        self._size = size
        self._live: dict[int, ReplayWindow] = {}  # oldest first
        self._retired: set[int] = set()

    @property
    def exhausted(self) -> bool:
        """No new prefix is accepted any more: the session has to be renewed."""
        return len(self._retired) >= REPLAY_PREFIXES

    def check(self, prefix: int, counter: int) -> bool:
        """May a frame with this nonce be opened? It is recorded only by `commit`, after its tag has verified."""
        window = self._live.get(prefix)
        if window:
            return window.check(counter)
        return counter > 0 and prefix not in self._retired and not self.exhausted

    def commit(self, prefix: int, counter: int) -> None:
        """Records an authenticated frame that passed `check`."""
        window = self._live.get(prefix)
        if not window:
            window = self._live[prefix] = ReplayWindow(self._size)
            if len(self._live) > REPLAY_LIVE:
                oldest = next(iter(self._live))
                del self._live[oldest]
                self._retired.add(oldest)
        window.commit(counter)
