"""Trust pairs and the handshake mailbox."""

from __future__ import annotations

import pytest
from registry_support import Lab, Node, registration

DENIED = {"type": "error", "error": "request failed"}


async def trusted(asker: Node, a: int, b: int) -> bool:
    return bool((await asker.ask("check_trust", node_id=a, peer_id=b))["trusted"])


async def test_one_word_opens_nothing(lab: Lab) -> None:
    """Whoever reports trust in a stranger learns nothing about it until the stranger says so too."""
    a, b = await lab.node(), await lab.node()
    assert await a.report(2) == {"type": "report_trust_ok"}
    assert await a.resolve(2) == DENIED and await b.resolve(1) == DENIED
    assert not await trusted(a, 1, 2)
    assert await b.report(1) == {"type": "report_trust_ok"}
    assert "real_addr" in await a.resolve(2) and "real_addr" in await b.resolve(1)
    assert await trusted(b, 2, 1)


async def test_revoked_pair_needs_both_again(lab: Lab) -> None:
    """The other side's daemon repeats its report after a reconnect; that alone must not undo a revocation."""
    a, b = await lab.node(), await lab.node()
    await a.report(2)
    await b.report(1)
    assert await b.revoke(1) == {"type": "revoke_trust_ok"}
    await a.report(2)
    assert await a.resolve(2) == DENIED
    assert await a.revoke(2) == {"type": "revoke_trust_ok"}
    assert await a.revoke(2) == DENIED  # none left


async def test_handshake(lab: Lab) -> None:
    a, b = await lab.node(), await lab.node()
    assert (await a.shake(2, justification="data"))["status"] == "delivered"
    assert lab.mail == [2]
    mail = await b.own("poll_handshakes")
    assert [(m["from_node_id"], m["justification"]) for m in mail["requests"]] == [(1, "data")]
    await b.respond(1, True)
    assert lab.mail == [2, 1]
    assert [(m["from_node_id"], m["accept"]) for m in (await a.own("poll_handshakes"))["responses"]] == [(2, True)]
    assert "real_addr" in await a.resolve(2) and "real_addr" in await b.resolve(1)


async def test_rejection_opens_nothing(lab: Lab) -> None:
    a, b = await lab.node(), await lab.node()
    await a.shake(2)
    await b.respond(1, False)
    assert (await a.own("poll_handshakes"))["responses"][0]["accept"] is False
    assert not await trusted(a, 1, 2)
    assert (await b.own("poll_handshakes"))["requests"] == []


async def test_accept_without_request_is_one_word(lab: Lab) -> None:
    """Otherwise a node would open a stranger's endpoint by "accepting" what was never asked."""
    a, b = await lab.node(), await lab.node()
    assert await b.respond(1, True) == {"type": "respond_handshake_ok", "accept": True, "peer_id": 1}
    assert await b.resolve(1) == DENIED
    assert (await a.own("poll_handshakes"))["responses"] == []


async def test_answer_after_hours(lab: Lab) -> None:
    """People approve late; the polled request still counts then, also after a restart of the registry."""
    a, b = await lab.node(), await lab.node()
    await a.shake(2)
    await b.own("poll_handshakes")
    await b.own("poll_handshakes")
    await lab.restart()
    lab.clock.offset += 7 * 3600
    a.raw = b.raw = await lab.connect()
    await b.respond(1, True)
    assert await trusted(a, 1, 2)


async def test_mail_survives_a_lost_reply(lab: Lab) -> None:
    """The connection breaks after the poll: the next one gets the mail again. The next request on it settles the matter."""
    a, b = await lab.node(), await lab.node()
    await a.shake(2)
    await b.respond(1, True)
    await b.shake(1)
    mail = await a.own("poll_handshakes")
    assert [len(mail[k]) for k in ("requests", "responses")] == [1, 1]
    a.raw.close()
    a.raw = await lab.connect()
    mail = await a.own("poll_handshakes")
    assert [len(mail[k]) for k in ("requests", "responses")] == [1, 1]
    assert "time" in await a.own("heartbeat")
    other = await lab.connect()
    a.raw = other
    assert await a.own("poll_handshakes") == {"type": "poll_handshakes_ok", "requests": [], "responses": []}


async def test_mail_of_a_client_that_always_hangs_up_ends(lab: Lab) -> None:
    a, b = await lab.node(), await lab.node()
    await a.shake(2)
    counts = []
    for _ in range(5):
        b.raw.close()
        b.raw = await lab.connect()
        counts.append(len((await b.own("poll_handshakes"))["requests"]))
    assert counts == [1, 1, 1, 0, 0]


async def test_an_answer_does_not_outlive_the_next_request(lab: Lab) -> None:
    """Clients with several connections poll on one and ask on another: what the first poll delivered is not confirmed yet."""
    a, b = await lab.node(), await lab.node()
    await a.shake(2)
    await b.respond(1, False)
    assert len((await a.own("poll_handshakes"))["responses"]) == 1
    first, a.raw = a.raw, await lab.connect()
    await a.shake(2)
    assert (await a.own("poll_handshakes"))["responses"] == []
    await b.respond(1, True)
    a.raw = first
    assert [r["accept"] for r in (await a.own("poll_handshakes"))["responses"]] == [True]


@pytest.mark.parametrize("revoker", [0, 1])
async def test_an_answer_does_not_outlive_a_revocation(lab: Lab, revoker: int) -> None:
    a, b = nodes = await lab.node(), await lab.node()
    await a.shake(2)
    await b.respond(1, True)
    assert len((await a.own("poll_handshakes"))["responses"]) == 1
    a.raw = await lab.connect()
    assert await nodes[revoker].revoke(2 - revoker) == {"type": "revoke_trust_ok"}
    assert (await a.own("poll_handshakes"))["responses"] == []


async def test_inbox_limits(lab: Lab) -> None:
    await lab.node()
    target = await lab.node("127.0.0.2")
    senders = [await lab.node(f"127.0.1.{i}") for i in range(101)]
    for sender in senders[:100]:
        assert "status" in await sender.shake(2)
    assert (await senders[0].shake(2))["error"] == "handshake request already pending from node 3"
    assert await senders[100].shake(2) == DENIED  # inbox full
    assert len((await target.own("poll_handshakes"))["requests"]) == 100
    assert "status" in await senders[100].shake(2)
    assert "too long" in (await senders[0].shake(1, justification="x" * 1025))["error"]
    assert "status" in await senders[0].shake(1, justification="x" * 1024)


async def test_signatures_are_of_the_acting_node(lab: Lab) -> None:
    a, b = await lab.node(), await lab.node()
    b.number = 1  # acts for node 1 with the key of node 2
    own = [await b.own(command) for command in ("poll_handshakes", "heartbeat", "deregister", "set_hostname", "set_tags")]
    for reply in (*own, await b.report(2), await b.revoke(2)):
        assert reply["error"] == "signature verification failed"
    assert (await b.shake(2))["error"] == "handshake request signature verification failed"
    assert (await b.respond(2, True))["error"] == "handshake response signature verification failed"
    assert "time" in await a.own("heartbeat")


async def test_trust_outlives_expiry(lab: Lab) -> None:
    a, b = await lab.node(), await lab.node()
    await a.report(2)
    await b.report(1)
    await a.own("deregister")
    await a.raw.ask(registration(a.identity))
    assert "real_addr" in await b.resolve(1)


async def test_scores(lab: Lab) -> None:
    """A daemon that finishes a task changes both scores; a stranger changes none, nobody makes leaps."""
    a, _ = await lab.node(), await lab.node()
    stranger = await lab.connect()
    change = {"type": "update_polo_score", "node_id": 2, "delta": 5}
    assert "signature required" in (await stranger.ask(change))["error"]
    assert (await a.ask("update_polo_score", node_id=2, delta=5))["polo_score"] == 5
    assert (await a.ask("set_polo_score", node_id=1, polo_score=-7.9))["polo_score"] == -7
    assert "invalid score" in (await a.ask("update_polo_score", node_id=2, delta=10**30))["error"]
    replies = [await a.ask("update_polo_score", node_id=2, delta=1) for _ in range(15)]
    assert "rate limited" in replies[-1]["error"]
    assert (await stranger.ask({"type": "get_polo_score", "node_id": 2}))["polo_score"] == 14
