"""A new identity key is vouched for by the one it replaces (docs/wire-extensions.md 1.1).

A link is the signature of the old key over the node number and the new key. Links form a chain, oldest first: each hands over to
the old key of the next, the last to the key in force. A chain alone moves nobody's trust: a former key may be stolen. The
registry, which changes a key for the holder of the present one only, has to name the same key.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilot.wire.frames import MAX_LINKS, KeyLink, Signer
from pilot.wire.keys import verify_signature

_DOMAIN = b"pilot-rotate-v1"


def hand_over(old: Signer, node: int, new: bytes) -> KeyLink:
    """The link by which `old` declares `new` (32 bytes) to be the identity key of `node` from now on."""
    return KeyLink(old.public_key, old.sign(_signed(node, new)))


def leads(links: Sequence[KeyLink], node: int, pinned: bytes, offered: bytes) -> bool:
    """Whether the chain of `node` leads from the pinned key to the offered one (32 bytes each). At most MAX_LINKS count."""
    chain = links[-MAX_LINKS:]
    start = next((i for i, link in enumerate(chain) if link.old == pinned), None)
    return start is not None and len(_sound(chain[start:], node, offered)) == len(chain) - start


def sound(links: Sequence[KeyLink], node: int, present: bytes) -> tuple[KeyLink, ...]:
    """The newest links, at most MAX_LINKS, that lead to the present key of `node` without a break. None are left when the node
    got another number: a chain belongs to one."""
    return _sound(links[-MAX_LINKS:], node, present)


def _sound(chain: Sequence[KeyLink], node: int, last: bytes) -> tuple[KeyLink, ...]:
    good: list[KeyLink] = []
    for link in reversed(chain):
        if not verify_signature(link.old, link.signature, _signed(node, last)):
            break
        good.append(link)
        last = link.old
    return tuple(reversed(good))


def _signed(node: int, new: bytes) -> bytes:
    return _DOMAIN + node.to_bytes(4, "big") + new
