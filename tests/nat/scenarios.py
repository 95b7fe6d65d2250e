"""What happens to two agents after they have met, and what a user of a running stream notices of it.

Each scenario plays trials: a disturbance, and the time until things are well again. test_roaming.py plays each once or twice in
every run, report.py often enough for figures. Both agents are private and trust each other; a numbered stream runs all the time
and is checked to the last byte.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fleet import Agent, Fleet, wait_for
from lab import DOUBLE, Lab, Link, Site
from measure import Flow, open_cold, quantile

PORT_RESTRICTED = "port_restricted_cone"
LINK = Link(delay_ms=20.0)
TIMEOUT_S = 30  # of the NATs' UDP mappings
IDLE_S = 600.0
PING_S = 0.250  # a stream opens and echoes in two round trips of 80 ms
PUNCHED, RELAY = {"hole-punched"}, {"relay"}
STREAM_PORT = 5000


@dataclass(frozen=True, slots=True)
class Trial:
    """seconds: until it was well again. gap: the longest pause of the stream, None if nobody looked. fault: what went wrong."""

    seconds: float = 0.0
    gap: float | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """play(n): n trials. Before the first one it may yield None: begun, now something has to become old. most: trials.
    p95_s, median_s, gap_s: the bars."""

    name: str
    title: str
    play: Callable[[int], Iterator[Trial | None]]
    p95_s: float
    median_s: float | None = None
    gap_s: float | None = None
    most: int = 1000
    slow: bool = False  # begins before all others and is asked after them

    def missed(self, values: Sequence[float], gaps: Sequence[float]) -> list[str]:
        """The bars that these values miss, in words."""
        found = []
        if values and quantile(values, 0.95) > self.p95_s:
            found.append(f"{quantile(values, 0.95):.3f} s (p95)")
        if values and self.median_s and statistics.median(values) > self.median_s:
            found.append(f"{statistics.median(values):.3f} s (median)")
        if gaps and self.gap_s and max(gaps) > self.gap_s:
            found.append(f"a gap of {max(gaps):.3f} s")
        return found


class Pair:
    """Two trusting agents behind a NAT each, in a laboratory of their own."""

    def __init__(
        self, lab: Lab, left: str = PORT_RESTRICTED, right: str = PORT_RESTRICTED, link: Link = LINK, **options: Any
    ) -> None:
        """options: of Lab.site."""
        self.lab = lab
        self.fleet = Fleet(lab, second_address=True)
        self.agents = [
            self.fleet.agent(lab.place(side, kind, link, timeout_s=TIMEOUT_S, **options), side, "-trust-auto-approve")
            for side, kind in (("a", left), ("b", right))
        ]
        self.sites: list[Site] = lab.sites
        trust(*self.agents)


def trust(a: Agent, b: Agent) -> None:
    """Returns when each trusts the other."""
    numbers = [str(data(agent, "info")["node_id"]) for agent in (a, b)]
    a.ctl("handshake", numbers[1], "to be measured")
    for agent, peer in ((a, numbers[1]), (b, numbers[0])):
        wait_for(lambda x=agent, p=peer: p in [str(t["node_id"]) for t in data(x, "trust")["trusted"]], "trust", 20)  # type: ignore[misc]


def data(agent: Agent, *args: str) -> Any:
    return json.loads(agent.ctl("--json", *args).stdout)["data"]


Disturbance = Callable[[Pair, int], Awaitable[None]]


def _trials(n: int, one: Callable[[int], Awaitable[Trial]]) -> Iterator[Trial]:
    for number in range(n):
        try:
            yield asyncio.run(one(number))  # type: ignore[arg-type]
        except Exception as error:
            yield Trial(fault=f"{type(error).__name__}: {error}")


def _standstill(
    disturb: Disturbance, before: set[str], after: set[str], end: Disturbance | None = None,
    *, left: str = PORT_RESTRICTED, rest_s: float = 0.0,
) -> Callable[[int], Iterator[Trial]]:
    """Trials that disturb a stream. The time is how long it stands still; its direction changes from trial to trial. before,
    after: the kinds of path that both sides use then. end: of the disturbance. left: the NAT there. rest_s: after each trial."""

    def play(n: int) -> Iterator[Trial]:
        with Lab() as lab:
            pair = Pair(lab, left)

            async def one(number: int) -> Trial:
                ends = pair.agents[:: 1 if number % 2 else -1]
                async with Flow(ends[0], ends[1], STREAM_PORT) as flow:
                    await flow.settles(before, 60)
                    await asyncio.sleep(0.5)
                    since = time.monotonic()
                    await disturb(pair, number)
                    await flow.flows(time.monotonic(), 20)
                    await flow.settles(after, 10)
                    await asyncio.sleep(1.0)
                    took = flow.gap(since)
                await asyncio.sleep(rest_s)
                if end:
                    await end(pair, number)
                return Trial(took)

            yield from _trials(n, one)

    return play


async def _renumber(pair: Pair, number: int) -> None:
    """The left agent gets another inside address: a laptop on another network."""
    await asyncio.to_thread(pair.sites[0].renumber, pair.agents[0].host)


async def _move(pair: Pair, number: int) -> None:
    """The left router gets another public address and forgets its mappings; no host is told."""
    await asyncio.to_thread(pair.sites[0].move)


async def _deafen(pair: Pair, number: int) -> None:
    """Nothing from the right comes in at the left any more; what goes out arrives."""
    left, right = pair.sites[:: 1 if number // 2 % 2 else -1]
    await asyncio.to_thread(left.deafen, right.public_ip)


async def _hear(pair: Pair, number: int) -> None:
    for site in pair.sites:
        await asyncio.to_thread(site.deafen)


def _wall(n: int) -> Iterator[Trial]:
    """Nothing passes between the two sites while the stream begins, over the relay; then it does. The time is until both sides
    use the punched path."""
    with Lab() as lab:
        pair = Pair(lab)
        addresses = [site.public_ip for site in pair.sites]

        async def one(number: int) -> Trial:
            lab.wall(*addresses)
            await asyncio.to_thread(pair.fleet.restart)
            ends = pair.agents[:: 1 if number % 2 else -1]
            async with Flow(ends[0], ends[1], STREAM_PORT) as flow:
                await asyncio.sleep(0.4)
                kinds = {p["path"]["kind"] for p in await flow.paths()}
                assert kinds == RELAY, kinds
                await asyncio.to_thread(lab.wall)
                took = await flow.settles(PUNCHED, 60)
                await asyncio.sleep(0.5)
                return Trial(took, flow.gap())

        yield from _trials(n, one)


def _cold(left: str, right: str, best: str, **options: Any) -> Callable[[int], Iterator[Trial]]:
    """Trials that open cold. The time is until both sides use the path named `best`."""

    def play(n: int) -> Iterator[Trial]:
        with Lab() as lab:
            pair = Pair(lab, left, right, **options)
            yield from _openings(pair.fleet, pair.agents, best, n)

    return play


def _neighbours(n: int) -> Iterator[Trial]:
    with Lab() as lab:
        fleet = Fleet(lab, second_address=True)
        site = lab.site("home", nat=PORT_RESTRICTED, link=LINK, hairpin=False)
        agents = [fleet.agent(site.host(name), name, "-trust-auto-approve") for name in ("a", "b")]
        trust(*agents)
        yield from _openings(fleet, agents, "lan", n)


def _openings(fleet: Fleet, agents: list[Agent], best: str, n: int) -> Iterator[Trial]:
    async def one(number: int) -> Trial:
        await asyncio.to_thread(fleet.restart)
        ends = agents[:: 1 if number % 2 else -1]
        opening = await open_cold(ends[0], ends[1], STREAM_PORT, 1.5, best, 10)
        if opening.fault or opening.tier != best or opening.direct is None:
            return Trial(fault=opening.fault or f"{opening.tier} instead of {best}: {opening.told}")
        return Trial(opening.direct, opening.gap)

    yield from _trials(n, one)


IDLE_PAIRS = (
    (PORT_RESTRICTED, PORT_RESTRICTED), ("restricted_cone", "symmetric"), (DOUBLE, PORT_RESTRICTED), ("symmetric", "full_cone"),
)  # fmt: skip


class Idle:
    """Pairs that have met and say nothing any more. Ask after a while."""

    def __init__(self, lab: Lab, kinds: Sequence[tuple[str, str]] = IDLE_PAIRS) -> None:
        fleet = Fleet(lab, second_address=True)
        self.pairs: list[tuple[Agent, Agent]] = []
        for i, pair in enumerate(kinds):
            hosts = [lab.place(f"{side}{i}", kind, LINK, timeout_s=TIMEOUT_S) for side, kind in zip("ab", pair, strict=True)]
            self.pairs.append(tuple(fleet.agent(h, h.name, "-trust-auto-approve") for h in hosts))  # type: ignore[arg-type]
        for a, b in self.pairs:
            trust(a, b)
            self._settled(a, b)
        self.since = time.monotonic()

    def _settled(self, a: Agent, b: Agent) -> None:
        number = str(data(b, "info")["node_id"])
        wait_for(lambda: data(a, "path", number, "--wait", "2s")["phase"] == "direct", "a path without the relay", 60)

    def ask(self, idle_s: float) -> Iterator[Trial]:
        """One ping of each pair, `idle_s` after they fell silent. The time is all of it: dial and echo."""
        time.sleep(max(0.0, self.since + idle_s - time.monotonic()))
        for a, b in self.pairs:
            reply = data(a, "ping", str(data(b, "info")["node_id"]), "--count", "1")["results"][0]
            if "error" in reply or reply["path"] in (None, "relay"):
                yield Trial(fault=f"after {idle_s:.0f} s: {reply}")
            else:
                yield Trial((reply["dial_ms"] + reply["rtt_ms"]) / 1e3)


def _idle(n: int) -> Iterator[Trial | None]:
    with Lab() as lab:
        idle = Idle(lab, IDLE_PAIRS[:n])
        yield None
        yield from idle.ask(IDLE_S)


SCENARIOS = (
    Scenario("renumber", "inside address of one agent changes, mid-stream", _standstill(_renumber, PUNCHED, PUNCHED), 2.0),
    Scenario(
        "move", "public address of a router changes unannounced, mid-stream",
        _standstill(_move, PUNCHED, PUNCHED, rest_s=6.0), 3.0,
    ),
    Scenario(
        "move-relayed", "the same, behind a symmetric NAT on the relay",
        _standstill(_move, RELAY, RELAY, left="symmetric", rest_s=6.0), 3.0,
    ),
    Scenario("one-way", "punched path dies in one direction, mid-stream", _standstill(_deafen, PUNCHED, RELAY, _hear), 3.0),
    Scenario("upgrade", "stream on the relay, the way becomes free: punched path", _wall, 3.0, 1.0, 0.1),
    Scenario("lan", "two agents behind one router without hairpin: LAN path", _neighbours, 3.0, 1.0, 0.1),
    Scenario(
        "faulty", "routers that keep the port of a punch which came too early: punched path",
        _cold(PORT_RESTRICTED, PORT_RESTRICTED, "hole-punched", input_open=True), 3.0, 1.0, 0.1,
    ),
    Scenario(
        "lossy", "links that lose 2 % and delay by up to 10 ms more: punched path",
        _cold(PORT_RESTRICTED, PORT_RESTRICTED, "hole-punched", link=Link(delay_ms=20.0, jitter_ms=10.0, loss=0.02)), 3.0, 1.0,
    ),
    Scenario(
        "idle", f"ping after {IDLE_S:.0f} s of silence, mappings last {TIMEOUT_S} s: no relay", _idle, PING_S,
        most=len(IDLE_PAIRS), slow=True,
    ),
)  # fmt: skip
