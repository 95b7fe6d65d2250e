"""Recorded exchanges of other implementations, replayed: same requests, same replies, field by field.

The addresses of the recording (203.0.113.N) are 127.0.0.N here. Where we answer differently the table says what and why. Two
rules hold for all exchanges: the reason of an error is sent when it holds a word that newer servers send too; replies may have
the fields that newer releases added.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from registry_support import KEYS, VECTORS, Lab, Raw

from pilot.registry import texts
from pilot.registry.config import RegistryConfig

TOLD = (
    "rate limited", "enterprise feature", "expired", "already", "not a member", "cannot", "too many", "too long", "not found",
    "invalid", "require", "signature",
)  # fmt: skip
NEWER_FIELDS = {
    "register": {"observed_addr", "protocol_version", "announce_key"},
    "resolve": {"key_age_days"},
    "lookup": {"version"},
}
VOLATILE = {"time", "timestamp", "last_seen", "created_at"}
ADMIN = "admin-secret"


@dataclasses.dataclass(frozen=True)
class Differs:
    """reply: what we answer instead (fields of the recorded reply that stay are not repeated); error: our error text."""

    why: str
    reply: dict[str, Any] | None = None
    error: str | None = None
    request: dict[str, Any] = dataclasses.field(default_factory=dict)  # added to the request


LATER = "networks came with later releases"
NO_INVITES = "no networks by invitation"
TAKEOVER = "an owner string is no proof: the node of its holder is not given away"
FIRST_RELEASE = {
    "register_hostname_taken": Differs(
        "newer releases say that the name was refused", {"hostname_error": 'hostname "node-b" already in use'}
    ),
    "punch_private_untrusted_target": Differs("a private endpoint is shown to trusted peers only", error="request failed"),
    "set_tags_ok": Differs("newer releases drop duplicates", {"tags": ["web", "gpu"]}),
    "create_network_disabled": Differs(LATER, {"type": "create_network_ok", "network_id": 1, "name": "lab", "enterprise": False}),
    "join_network_disabled": Differs(LATER, error="node 1 already in network 1"),
    "leave_network_disabled": Differs(LATER, {"type": "leave_network_ok", "network_id": 1}),
    "beacon_register_ok": Differs(
        "a beacon draws the traffic of all daemons: the operator's token", request={"admin_token": ADMIN}
    ),
    "owner_takeover_live_node": Differs(TAKEOVER, error='owner "owner-b" is already bound to a node with a different key'),
    "old_key_after_takeover": Differs(TAKEOVER, {"type": "heartbeat_ok", "time": 0}),
    "old_key_reregisters": Differs(TAKEOVER, {"node_id": 2, "address": "0:0000.0000.0002", "hostname": "node-b2"}),
}


def expected(exchange: dict[str, Any], differs: Differs | None) -> dict[str, Any]:
    if differs and differs.error is not None:
        return {"type": "error", "error": differs.error}
    recorded = dict(exchange["response"])
    if differs and differs.reply:
        return ({} if "error" in recorded else recorded) | differs.reply
    if "error" in recorded and "reason" in exchange:
        reason = exchange["reason"]
        hidden = reason.startswith(("resolve denied", "punch denied")) or not any(word in reason for word in TOLD)
        recorded["error"] = "request failed" if hidden else reason
    return recorded


def same(ours: dict[str, Any], wanted: dict[str, Any], command: str) -> bool:
    extra = set(ours) - set(wanted)
    return extra <= NEWER_FIELDS.get(command, set()) and _equal({k: ours[k] for k in ours if k not in extra}, wanted)


def _equal(a: Any, b: Any, name: str = "") -> bool:
    if name in VOLATILE:
        return type(a) is type(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k], k) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and bool(a == b)


def here(value: Any, c_port: int) -> Any:
    """The recording's addresses as they are on this host."""
    if isinstance(value, str):
        return value.replace("203.0.113.30:50030", f"127.0.0.30:{c_port}").replace("203.0.113.", "127.0.0.")
    if isinstance(value, dict):
        return {k: v if k == "addr" else here(v, c_port) for k, v in value.items()}
    if isinstance(value, list):
        return [here(v, c_port) for v in value]
    return value


def actor(exchange: dict[str, Any], numbers: dict[int, str]) -> str:
    request = exchange["request"]
    for name, identity in KEYS.items():
        if request.get("type") == "register" and request.get("public_key") == identity.key_text:
            return "A" if name == "A2" else name
    for field in ("requester_id", "from_node_id", "node_id"):
        if request.get(field) in numbers:
            return numbers[request[field]]
    return "A"


async def replay(
    lab: Lab, exchanges: list[dict[str, Any]], differences: dict[str, Differs], ips: dict[str, str], before: Any = None
) -> None:
    clients: dict[str, Raw] = {name: await lab.connect(ip) for name, ip in ips.items()}
    numbers = {1: "A", 2: "B", 3: "C"}
    wrong = []
    for exchange in exchanges:
        case, request = exchange["case"], exchange["request"]
        differs = differences.get(case)
        if before:
            await before(case, clients)
        ours = await clients[actor(exchange, numbers)].ask(request | (differs.request if differs else {}))
        wanted = here(expected(exchange, differs), clients["C"].port)
        if not same(ours, wanted, str(request.get("type"))):
            wrong.append(f"{case}\n  ours   {ours}\n  wanted {wanted}")
    assert not wrong, "\n".join(wrong)


async def test_first_release(lab: Lab) -> None:
    await lab.start(RegistryConfig(short_rotate=True), admin_token=ADMIN)
    exchanges = VECTORS["first_release"]
    assert len(exchanges) == 104
    await replay(lab, exchanges, FIRST_RELEASE, {"A": "127.0.0.10", "B": "127.0.0.20", "C": "127.0.0.30", "D": "127.0.0.40"})


MAY_2026 = {
    "heartbeat_unsigned_within_120s": Differs(
        "each heartbeat is checked: without that anybody keeps a dead node alive",
        error="signature required for authenticated node",
    ),
    "poll_invites": Differs(NO_INVITES, {"invites": []}),
    "list_networks": Differs(
        "the fields of the first release, and no network by invitation",
        {
            "networks": [
                {"id": 0, "join_rule": "open", "members": 3, "name": "backbone"},
                {"id": 1, "join_rule": "open", "members": 2, "name": "lab"},
                {"id": 2, "join_rule": "token", "members": 2, "name": "lab2"},
            ]
        },
    ),
}
INVITATIONS_AND_POLICIES = {
    "create_network_invite", "join_invite_refused", "invite", "invite_again", "respond_invite_accept", "get_member_role",
    "set_key_expiry", "get_network_policy", "get_expr_policy_none",
}  # fmt: skip


async def test_release_of_may_2026(lab: Lab) -> None:
    await lab.start(RegistryConfig(strict_names=True), admin_token=ADMIN)
    exchanges = []
    for exchange in VECTORS["may_2026"]:
        if exchange["case"] in INVITATIONS_AND_POLICIES:
            continue
        reply = dict(exchange["response"])
        if exchange["case"] == "resolve_with_lan_addrs":
            del reply["public_key"]  # the key comes from lookup, as in the other releases
        exchanges.append(exchange | {"response": reply})
    assert len(exchanges) == 37

    async def both_sides(case: str, clients: dict[str, Raw]) -> None:
        """One report made a pair there. Here the other side has to report too."""
        if case == "check_trust_yes":
            assert await clients["A"].ask({"type": "check_trust", "node_id": 1, "peer_id": 2}) == {
                "type": "check_trust_ok",
                "trusted": False,
            }
            signature = KEYS["B"].signature("report_trust:2:1")
            await clients["B"].ask({"type": "report_trust", "node_id": 2, "peer_id": 1, "signature": signature})

    ips = {"A": "127.0.0.10", "B": "127.0.0.20", "C": "127.0.0.20"}
    await replay(lab, exchanges, MAY_2026, ips, both_sides)


SIGNED = {
    "register": texts.register("198.51.100.7:40001", KEYS["A"].key_text),
    "rotate_key": texts.rotate(1, KEYS["A2"].key_text),
    "join_network": texts.of_pair("join_network", 1, 7),
    "leave_network": texts.of_pair("leave_network", 1, 7),
    "poll_invites": texts.of_node("poll_invites", 1),
}


@pytest.mark.parametrize("command", SIGNED)
def test_what_clients_sign(command: str) -> None:
    """A client of ours would be refused by other registries if it signed another text."""
    recorded = next(e for e in VECTORS["signed"] if e["command"] == command)
    assert SIGNED[command] == recorded["signed_string"]
    assert KEYS["A"].signature(SIGNED[command]) == recorded["signature"]


async def test_signed_registration_and_rotation_of_later_releases(lab: Lab) -> None:
    raw = await lab.connect()
    recorded = {e["command"]: e["signature"] for e in VECTORS["signed"]}
    request = {"type": "register", "public_key": KEYS["A"].key_text, "listen_addr": "198.51.100.7:40001"}
    assert "node_id" in await raw.ask(request | {"signature": recorded["register"]})
    wrong = await raw.ask(request | {"signature": recorded["rotate_key"]})
    assert wrong == {"type": "error", "error": "signature verification failed"}
    rotation = {"type": "rotate_key", "node_id": 1, "new_public_key": KEYS["A2"].key_text}
    assert "node_id" in await raw.ask(rotation | {"signature": recorded["rotate_key"]})
