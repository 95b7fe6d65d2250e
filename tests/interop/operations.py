"""What a user does, once for every pair of makes: `a` acts toward `b`. An operation fails by an assertion that says what the
user would miss; it uses only what both makes of tools offer and what both kinds of daemons store. Here: one machine, trust,
reaching the other; exchanges.py, faults.py and operators.py have more.
"""

from __future__ import annotations

from collections.abc import Callable

from testbed import THEIRS, Machine, wait_for

Operation = Callable[[Machine, Machine], None]

OPERATIONS: dict[str, Operation] = {}
LOCAL: set[str] = set()  # concern one machine: the path to the other does not matter
SEPARATE: set[str] = set()  # stop or change a daemon: run last
LONG: set[str] = set()  # take minutes: only in the whole matrix


def operation(name: str, *, local: bool = False, separate: bool = False) -> Callable[[Operation], Operation]:
    def add(function: Operation) -> Operation:
        OPERATIONS[name] = function
        if local:
            LOCAL.add(name)
        if separate:
            SEPARATE.add(name)
        return function

    return add


# ---- one machine ----


@operation("info", local=True)
def info(a: Machine, b: Machine) -> None:
    data = a.json("info")
    assert data["node_id"] == a.node and data["address"] == a.address and data["hostname"] == a.name, data
    human = a.ctl("info").stdout
    assert a.address in human, human


@operation("health", local=True)
def health(a: Machine, b: Machine) -> None:
    assert a.json("health")["status"] == "ok"
    assert "ok" in a.ctl("health").stdout


@operation("daemon-status", local=True)
def daemon_status(a: Machine, b: Machine) -> None:
    data = a.json("daemon", "status")
    assert data["running"] and data["responsive"] and data["node_id"] == a.node, data
    assert a.ctl("daemon", "status", "--check").stdout == ""


@operation("set-hostname", local=True)
def set_hostname(a: Machine, b: Machine) -> None:
    other = f"{a.name}-renamed"
    assert a.json("set-hostname", other)["hostname"] == other
    try:
        wait_for(lambda: a.json("info")["hostname"] == other, "the new name in info", 2)  # may repeat an answer for 0.2 s
        assert a.json("clear-hostname")["hostname"] == ""
        wait_for(lambda: a.json("info")["hostname"] == "", "no name in info", 2)
    finally:
        a.json("set-hostname", a.name)


@operation("set-tags", local=True)
def set_tags(a: Machine, b: Machine) -> None:
    prefix = ["extras"] if a.tools == THEIRS else []
    assert a.json(*prefix, "set-tags", "robot", "mapper")["tags"] == ["robot", "mapper"]
    assert not a.json(*prefix, "clear-tags")["tags"]


@operation("visibility", local=True)
def visibility(a: Machine, b: Machine) -> None:
    assert a.json("set-public")["visibility"] == "public"
    assert a.json("lookup", str(a.node))["public"] is True
    assert a.json("set-private")["visibility"] == "private"


# ---- trust ----


@operation("handshake-reject")
def handshake_reject(a: Machine, b: Machine) -> None:
    ask(a, b)
    assert b.json("reject", str(a.node), "not today")["status"] == "rejected"
    assert not b.json("pending")["pending"]
    assert not b.trusts(a) and not a.trusts(b)


@operation("trust-required")
def trust_required(a: Machine, b: Machine) -> None:
    """A private node cannot be reached by a stranger."""
    done = a.ctl("--json", "ping", b.address, "--count", "1", "--timeout", "2s", check=False)
    assert done.returncode == 1, done.stdout


@operation("public")
def public(a: Machine, b: Machine) -> None:
    """A public node can be reached by a stranger, until it is private again."""
    b.json("set-public")
    try:
        assert a.json("find", b.name)["public"] is True
        data = a.json("ping", b.address, "--count", "1", "--no-auto-handshake")
        assert data["results"][0].get("bytes") == 6, data
    finally:
        b.json("set-private")


@operation("handshake-approve")
def handshake_approve(a: Machine, b: Machine) -> None:
    ask(a, b)
    rows = b.json("pending")["pending"]
    assert [r["justification"] for r in rows if r["node_id"] == a.node] == ["let us talk"], rows
    assert b.json("approve", str(a.node))["status"] == "approved"
    both_trust(a, b)


def ask(a: Machine, b: Machine) -> None:
    a.json("handshake", str(b.node), "let us talk")
    wait_for(
        lambda: any(r["node_id"] == a.node for r in b.json("pending")["pending"]), lambda: f"{a} pending at {b}", 15, 0.2
    )


def both_trust(a: Machine, b: Machine) -> None:
    wait_for(lambda: b.trusts(a), f"{b} trusts {a}", 15, 0.1)
    wait_for(lambda: a.trusts(b), f"{a} trusts {b}", 15, 0.1)


def ensure_trust(a: Machine, b: Machine) -> None:
    """So that one failed cell of trust does not fail all that come after it. Where one side trusts alone it begins anew: a
    published daemon drops an accept that follows another within ten minutes, but not a request in the other direction."""
    there, here = a.trusts(b), b.trusts(a)
    if there and here:
        return
    if here:
        a, b = b, a
    if there or here:
        a.json("untrust", str(b.node))
        wait_for(lambda: not b.trusts(a), f"{b} does not trust {a}")
    ask(a, b)
    b.json("approve", str(a.node))
    both_trust(a, b)


# ---- finding ----


@operation("find")
def find(a: Machine, b: Machine) -> None:
    data = a.json("find", b.name)
    assert data["node_id"] == b.node and data["address"] == b.address, data


@operation("ping")
def ping(a: Machine, b: Machine) -> None:
    data = a.json("ping", b.name, "--count", "2")
    assert [r.get("bytes") for r in data["results"]] == [6, 6], data


@operation("traceroute")
def traceroute(a: Machine, b: Machine) -> None:
    data = a.json("traceroute", b.address)
    assert len(data["rtt_samples"]) == 3, data


@operation("path")
def path(a: Machine, b: Machine) -> None:
    """Traffic of both sides takes the way that the network allows. The published daemon looks for a better one every 15 s."""
    wanted = "relay" if a.bed.relayed(a, b) else "direct"

    def settled() -> bool:
        a.json("ping", b.address, "--count", "1")
        b.json("ping", a.address, "--count", "1")
        return a.path_to(b) == b.path_to(a) == wanted

    wait_for(settled, lambda: f"{wanted} path: {a} says {a.path_to(b)}, {b} says {b.path_to(a)}", 40, 0.5)


@operation("prefer-direct")
def prefer_direct(a: Machine, b: Machine) -> None:
    """The tool is answered, and traffic goes on."""
    assert a.json("prefer-direct", b.address)["node_id"] == b.node
    ping_until(a, b)


@operation("peers")
def peers(a: Machine, b: Machine) -> None:
    a.json("ping", b.address, "--count", "1")
    rows = a.json("peers")["peers"]
    row = next(r for r in rows if r["node_id"] == b.node)
    assert row["encrypted"] and row["authenticated"], row
    assert a.ctl("peers").stdout.strip()


@operation("bench")
def bench(a: Machine, b: Machine) -> None:
    data = a.json("bench", b.name, "1")
    assert data["sent_bytes"] == data["recv_bytes"] == 1 << 20, data


def ping_until(a: Machine, b: Machine, seconds: float = 30.0) -> None:
    """A ping works again; what a user would type again and again."""

    def works() -> bool:
        done = a.ctl("--json", "ping", b.address, "--count", "1", "--timeout", "4s", check=False, timeout=30)
        return done.returncode == 0 and "rtt_ms" in done.stdout

    wait_for(works, lambda: f"{a} reaches {b} again\n{a.log[-1500:]}\n----\n{b.log[-1500:]}", seconds, 0.2)
