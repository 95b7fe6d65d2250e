"""Virtual addresses and their text form `N:NNNN.HHHH.LLLL` (ipc.md, conventions)."""

from __future__ import annotations

from typing import NamedTuple

from pilot.errors import PilotError

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


def unpack(data: bytes | memoryview, at: int = 0) -> Address:
    """An address from its 6 bytes at offset `at`."""
    return Address(int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 6], "big"))


def parse(text: str) -> Address | None:
    """An address from its text, None if the text has another form.

    Decimal and hexadecimal network must agree; each hexadecimal group has exactly four digits.
    """
    decimal, colon, rest = text.partition(":")
    groups = rest.split(".")
    if not colon or len(groups) != 3 or not (decimal.isascii() and decimal.isdigit()) or len(decimal) > 5:
        return None
    if any(len(g) != 4 or not _HEX.issuperset(g) for g in groups):
        return None
    network = int(groups[0], 16)
    if int(decimal) != network:
        return None
    return Address(network, int(groups[1] + groups[2], 16))


def parse_node(text: str) -> int | None:
    """A node number from decimal digits, None if it is something else or does not fit 32 bits."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    node = int(text)
    return node if node < 1 << 32 else None


def parse_port(text: str) -> int:
    """A port, 0..65535. Raises PilotError(invalid_argument)."""
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 65535:
        raise PilotError("invalid_argument", f"invalid port: {text}", "ports are numbers from 0 to 65535")
    return int(text)


def split_target(text: str) -> tuple[str, int]:
    """`peer:port` -> (peer, port), where peer is an address, a node number or a name.

    Raises PilotError(invalid_argument).
    """
    peer, colon, port = text.rpartition(":")
    if not colon or not peer or parse(text) is not None:
        message = f'parse address: invalid socket address: "{text}" (no port)'
        raise PilotError("invalid_argument", message, "write ADDRESS:PORT, for example 0:0000.0000.0002:7")
    return peer, parse_port(port)
