"""Virtual addresses `N:NNNN.HHHH.LLLL` and socket addresses `N:NNNN.HHHH.LLLL:PORT` (transport.md 1)."""

from __future__ import annotations

from typing import NamedTuple

from pilot.errors import PilotError

BACKBONE = 0  # the network every node belongs to
BROADCAST_NODE = 0xFFFFFFFF

_HEX = frozenset("0123456789abcdefABCDEF")


class Address(NamedTuple):
    """network: 0..65535; node: 0..2^32-1."""

    network: int
    node: int

    def __str__(self) -> str:
        return f"{self.network}:{self.network:04X}.{self.node >> 16:04X}.{self.node & 0xFFFF:04X}"

    def pack(self) -> bytes:
        """The 6 bytes of the wire: network, node."""
        return self.network.to_bytes(2, "big") + self.node.to_bytes(4, "big")

    @property
    def is_zero(self) -> bool:
        """The unspecified address 0:0000.0000.0000."""
        return self.network == 0 and self.node == 0

    @property
    def is_broadcast(self) -> bool:
        """Every node of `network`."""
        return self.node == BROADCAST_NODE


class SocketAddress(NamedTuple):
    """An address and a port, 0..65535."""

    address: Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def unpack(data: bytes | memoryview, at: int = 0) -> Address:
    """An address from its 6 bytes at offset `at`; the caller has checked that they are there."""
    return Address(int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 6], "big"))


def parse(text: str) -> Address | None:
    """An address from its text, None if the text has another form (transport.md 1.2).

    Decimal and hexadecimal network must agree; each hexadecimal group has exactly four digits.
    """
    decimal, colon, rest = text.partition(":")
    groups = rest.split(".")
    if not colon or len(groups) != 3 or any(len(g) != 4 or not _HEX.issuperset(g) for g in groups):
        return None
    network = int(groups[0], 16)
    if _decimal(decimal, 0xFFFF) != network:
        return None
    return Address(network, int(groups[1] + groups[2], 16))


def parse_socket(text: str) -> SocketAddress | None:
    """`ADDRESS:PORT`, split at the last colon; None if the text has another form."""
    left, _, right = text.rpartition(":")
    address, port = parse(left), _decimal(right, 0xFFFF)
    return None if address is None or port is None else SocketAddress(address, port)


def parse_node(text: str) -> int | None:
    """A node number from decimal digits, None if it is something else or does not fit 32 bits."""
    return _decimal(text, 0xFFFFFFFF)


def parse_port(text: str) -> int:
    """A port, 0..65535. Raises PilotError(invalid_argument)."""
    port = _decimal(text, 0xFFFF)
    if port is None:
        raise PilotError("invalid_argument", f"invalid port: {text}", "ports are numbers from 0 to 65535")
    return port


def split_target(text: str) -> tuple[str, int]:
    """`peer:port` -> (peer, port), where peer is an address, a node number or a name.

    Raises PilotError(invalid_argument).
    """
    peer, colon, port = text.rpartition(":")
    if not colon or not peer or parse(text) is not None:
        message = f'parse address: invalid socket address: "{text}" (no port)'
        raise PilotError("invalid_argument", message, "write ADDRESS:PORT, for example 0:0000.0000.0002:7")
    return peer, parse_port(port)


def _decimal(text: str, most: int) -> int | None:
    """ASCII digits, leading zeros allowed, 0..most."""
    if not (text.isascii() and text.isdigit()):
        return None
    significant = text.lstrip("0")
    if len(significant) > 10:  # also keeps int() away from texts of any length
        return None
    value = int(significant or "0")
    return value if value <= most else None
