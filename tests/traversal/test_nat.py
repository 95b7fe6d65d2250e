"""Addresses: which may be used, and by whose word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.traversal.address_book import read_addresses
from pilot.traversal.nat import Scope, may_punch, parse_addr, same_subnet, scope, show


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("::ffff:127.0.0.1", Scope.LOOPBACK),
        ("10.1.2.3", Scope.PRIVATE),
        ("100.64.0.1", Scope.PRIVATE),
        ("169.254.1.1", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("fe80::1", Scope.PRIVATE),
        ("8.8.8.8", Scope.PUBLIC),
        ("203.0.113.5", Scope.PUBLIC),
        ("2001:db8::5", Scope.PUBLIC),
        ("0.0.0.0", Scope.NONE),
        ("255.255.255.255", Scope.NONE),
        ("224.0.0.1", Scope.NONE),
        ("ff02::1", Scope.NONE),
        ("example.org", Scope.NONE),
        ("", Scope.NONE),
    ],
)
def test_scope(host: str, expected: Scope) -> None:
    assert scope(host) is expected


def test_punch_targets() -> None:
    public = ("198.51.100.1", 9001)
    assert may_punch(("203.0.113.9", 4000), public)
    for target in (("127.0.0.1", 22), ("192.168.0.1", 53), ("224.0.0.1", 1), ("203.0.113.9", 0)):
        assert not may_punch(target, public), "a public beacon cannot have seen that source"
    assert may_punch(("192.168.0.7", 4000), ("192.168.0.1", 9001))
    assert not may_punch(("127.0.0.1", 4000), ("192.168.0.1", 9001))
    assert may_punch(("127.0.0.1", 4000), ("127.0.0.1", 9001))


UNUSABLE = [":", "1.2.3.4", "1.2.3.4:", "1.2.3.4:0", "1.2.3.4:65536", "1.2.3.4:+5", "1.2.3.4:४", "1.2.3:4"]
UNUSABLE += ["::1:4000", "[::1]", "host:4000", "0.0.0.0:1"]


@pytest.mark.parametrize("text", ["", *UNUSABLE])
def test_unusable_text(text: str) -> None:
    assert parse_addr(text) is None


@given(st.ip_addresses(), st.integers(1, 65535))
def test_text_and_back(ip: object, port: int) -> None:
    if scope(str(ip)) is not Scope.NONE and not str(ip).startswith("::ffff:"):
        assert parse_addr(show((str(ip), port))) == (str(ip), port)


@given(st.text(max_size=40))
def test_any_text_is_survived(text: str) -> None:
    parse_addr(text)
    scope(text)
    same_subnet(text, "10.0.0.1")


def test_registry_replies() -> None:
    local = ["192.168.1.2"]
    near = read_addresses(
        {"real_addr": "203.0.113.1:5", "lan_addrs": ["192.168.1.3:4000", "10.9.9.9:4000"]},
        local,
        "198.51.100.9",
    )
    assert near.registered == (("203.0.113.1", 5),) and near.lan == (("192.168.1.3", 4000),)
    behind_our_nat = read_addresses(
        {"real_addr": "203.0.113.1:5", "lan_addrs": ["10.9.9.9:4000"]}, local, "203.0.113.1"
    )
    assert behind_our_nat.lan == (("10.9.9.9", 4000),)
    hidden = read_addresses(
        {"relay_only": True, "real_addr": "198.51.100.1:9001", "lan_addrs": ["10.0.0.1:1"]}, local, None
    )
    assert hidden.relay_only and not hidden.registered and not hidden.lan


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "real_addr": st.one_of(st.none(), st.text(max_size=20), st.integers(), st.just("203.0.113.1:5")),
            "endpoint": st.one_of(st.none(), st.text(max_size=20), st.lists(st.integers())),
            "lan_addrs": st.one_of(
                st.none(), st.text(), st.lists(st.one_of(st.none(), st.text(), st.just("10.0.0.1:4")))
            ),
            "relay_only": st.one_of(st.none(), st.booleans(), st.text()),
        },
    )
)
def test_any_registry_reply_is_survived(reply: dict[str, object]) -> None:
    found = read_addresses(reply, ["10.0.0.9"], "203.0.113.1")
    assert len(found.registered) <= 2 and len(found.lan) <= 4
