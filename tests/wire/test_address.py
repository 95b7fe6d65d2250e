"""Addresses as people type them and as they travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.errors import PilotError
from pilot.wire import address
from pilot.wire.address import Address, SocketAddress

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "transport.json").read_text())["addresses"]
addresses = st.builds(Address, st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF))


@pytest.mark.parametrize("row", VECTORS["format"], ids=lambda row: row["text"])
def test_format(row: dict) -> None:
    value = Address(row["network"], row["node"])
    assert str(value) == row["text"]
    assert value.pack().hex() == row["wire_hex"] and address.unpack(value.pack()) == value
    assert (value.is_zero, value.is_broadcast) == (row["is_zero"], row["is_broadcast"])


@pytest.mark.parametrize("row", VECTORS["parse_ok"], ids=lambda row: row["text"])
def test_parse(row: dict) -> None:
    assert address.parse(row["text"]) == Address(row["network"], row["node"])


@pytest.mark.parametrize("row", VECTORS["parse_reject"], ids=lambda row: repr(row["text"]))
def test_parse_rejects(row: dict) -> None:
    assert address.parse(row["text"]) is None


@pytest.mark.parametrize("row", VECTORS["socket_format"] + VECTORS["socket_parse_ok"], ids=lambda row: row["text"])
def test_socket_address(row: dict) -> None:
    value = SocketAddress(Address(row["network"], row["node"]), row["port"])
    assert address.parse_socket(row["text"]) == value
    assert address.parse_socket(str(value)) == value


@pytest.mark.parametrize("row", VECTORS["socket_format"], ids=lambda row: row["text"])
def test_socket_format(row: dict) -> None:
    assert str(SocketAddress(Address(row["network"], row["node"]), row["port"])) == row["text"]


@pytest.mark.parametrize("row", VECTORS["socket_parse_reject"], ids=lambda row: repr(row["text"]))
def test_socket_parse_rejects(row: dict) -> None:
    assert address.parse_socket(row["text"]) is None


@settings(deadline=None, print_blob=True)
@given(addresses, st.integers(0, 65535))
def test_what_is_printed_can_be_typed(value: Address, port: int) -> None:
    assert address.parse(str(value)) == value
    assert address.parse(str(value).lower()) == value
    assert address.parse_socket(f"{value}:{port}") == (value, port)
    assert address.split_target(f"{value}:{port}") == (str(value), port)
    assert address.unpack(value.pack()) == value


@settings(deadline=None, print_blob=True)
@given(st.text() | st.from_regex(r"[0-9]{0,6}:[0-9a-fA-Fx]{0,5}\.[0-9a-f]{0,5}\.[0-9a-f]{0,5}(:[0-9]{0,6})?"))
def test_any_text_is_an_address_or_none(text: str) -> None:
    value = address.parse(text)
    if value is not None:
        assert str(value).split(":")[1] == text.split(":")[1].upper()
    address.parse_socket(text)
    address.parse_node(text)


def test_numbers_of_any_length_cost_nothing() -> None:
    assert address.parse("0" * 100_000 + "1:0001.0000.0002") == Address(1, 2)
    assert address.parse("9" * 100_000 + ":0001.0000.0002") is None
    assert address.parse_node("9" * 100_000) is None and address.parse_node("4294967295") == 0xFFFFFFFF
    assert address.parse_node("4294967296") is None and address.parse_node("²") is None


@pytest.mark.parametrize("text", ["", "x", ":7", "0:0000.0000.0001", "alpha:", "alpha:65536", "alpha:-1", "alpha:7 "])
def test_split_target_says_what_is_wrong(text: str) -> None:
    with pytest.raises(PilotError) as caught:
        address.split_target(text)
    assert caught.value.code == "invalid_argument" and caught.value.hint
