"""A node stays findable: what it does when the registry forgets it, moves, stutters or refuses; against a scripted registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest
from world import until

from pilot.daemon import registration, schedule
from pilot.daemon.names import Names
from pilot.daemon.registration import Registration
from pilot.daemon.whereabouts import usable_beacon
from pilot.errors import PilotError

DOWN = PilotError("connection_failed", "connection refused", retryable=True)
UNKNOWN = PilotError("not_found", "node 8: node not found")
FOREIGN = PilotError("auth_required", "signature verification failed")


class Script:
    """A registry whose next answers are set by the test; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.faults: dict[str, list[PilotError]] = {}
        self.down = False
        self.register_reply: dict[str, Any] = {"node_id": 8, "address": "1:0001.0000.0008", "hostname": "alpha"}
        self.beacons: list[str] = []

    def names(self) -> list[str]:
        return [name for name, _ in self.asked]

    async def _answer(self, name: str, about: Any = None, reply: Any = None) -> Any:
        self.asked.append((name, about))
        await asyncio.sleep(0)
        if self.down:
            raise DOWN
        if self.faults.get(name):
            raise self.faults[name].pop(0)
        return reply

    async def register(self, **fields: Any) -> Any:
        return await self._answer("register", fields, self.register_reply)

    async def heartbeat(self) -> Any:
        return await self._answer("heartbeat", reply={"time": 1})

    async def deregister(self) -> None:
        await self._answer("deregister")

    async def announce_key(self, pila: bytes) -> Any:
        return await self._answer("announce_key", pila, {})

    async def set_hostname(self, hostname: str) -> Any:
        return await self._answer("set_hostname", hostname, {"hostname": hostname})

    async def set_visibility(self, public: bool) -> Any:
        return await self._answer("set_visibility", public, {})

    async def set_tags(self, tags: Sequence[str]) -> Any:
        return await self._answer("set_tags", list(tags), {"tags": list(tags)})

    async def report_trust(self, peer: int, /) -> None:
        await self._answer("report_trust", peer)

    async def beacon_list(self) -> list[str]:
        found: list[str] = await self._answer("beacon_list", reply=self.beacons)
        return found

    async def join_network(self, network: int, token: str = "") -> Any:
        return await self._answer("join_network", network, {})


class Place:
    """What registration asks about the node."""

    def __init__(self) -> None:
        self.addr = "198.51.100.7:4000"
        self.again: list[bool] = []
        self.beacons: list[str] = []
        self.pila = b"one"

    def listen_addr(self) -> str:
        return self.addr

    def lan_addrs(self) -> list[str]:
        return ["10.0.0.2:4000"]

    def announcement(self) -> bytes:
        return self.pila

    def trusted(self) -> Iterable[int]:
        return (5, 6)

    def registered(self, again: bool) -> None:
        self.again.append(again)

    def use_beacons(self, beacons: Sequence[str]) -> None:
        self.beacons = list(beacons)


class Case:
    def __init__(self) -> None:
        self.registry = Script()
        self.place = Place()
        self.task: asyncio.Task[None] | None = None

    async def start(self, *, keepalive: float = 0.02, **options: Any) -> Registration:
        self.reg = Registration(self.registry, self.place, hostname="alpha", keepalive=keepalive, **options)
        await self.reg.start()
        self.task = asyncio.create_task(self.reg.run())
        return self.reg


@pytest.fixture
async def case(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Case]:
    monkeypatch.setattr(registration, "START_PAUSE_S", 0.01)
    for name, value in (("GAP_S", 0.01), ("SETTLE_S", 0.01), ("AGAIN_S", (0.01, 0.02))):
        monkeypatch.setattr(schedule, name, value)
    c = Case()
    yield c
    if c.task:
        c.task.cancel()
        await asyncio.gather(c.task, return_exceptions=True)


async def test_first_registration_tells_everything(case: Case) -> None:
    case.registry.beacons = ["198.51.100.9:9001"]
    reg = await case.start(public=True, email="a@example.org", networks=(3,))
    name, fields = case.registry.asked[0]
    assert name == "register" and fields["listen_addr"] == "198.51.100.7:4000" and fields["owner"] == "a@example.org"
    assert ("set_visibility", True) in case.registry.asked
    assert (reg.node_id, str(reg.address), reg.hostname, reg.registered) == (8, "1:0001.0000.0008", "alpha", True)
    assert case.place.again == [False] and case.place.beacons == ["198.51.100.9:9001"]
    assert "report_trust" not in case.registry.names()
    await until(lambda: reg.networks == [3], "the network is joined")


@pytest.mark.parametrize("text", [UNKNOWN, FOREIGN])
async def test_a_registry_that_does_not_know_us_is_told_at_once(case: Case, text: PilotError) -> None:
    reg = await case.start()
    await reg.set_tags(["a"])
    before = case.registry.names().count("register")
    case.registry.faults["heartbeat"] = [text]
    await until(lambda: case.registry.names().count("register") == before + 1, "registered again")
    await until(lambda: ("report_trust", 6) in case.registry.asked, "trust is repeated")
    assert ("report_trust", 5) in case.registry.asked and case.registry.asked.count(("set_tags", ["a"])) == 2
    assert case.place.again[-1] is True


async def test_three_lost_heartbeats(case: Case) -> None:
    await case.start()
    case.registry.faults["heartbeat"] = [DOWN, DOWN]
    beats = case.registry.names().count("heartbeat")
    await until(lambda: case.registry.names().count("heartbeat") >= beats + 5, "heartbeats go on")
    assert case.registry.names().count("register") == 1  # two are no reason
    case.registry.faults["heartbeat"] = [DOWN, DOWN, DOWN]
    await until(lambda: case.registry.names().count("register") == 2, "three are")


async def test_an_outage_of_any_length_ends_in_a_registration(case: Case) -> None:
    reg = await case.start()
    case.registry.down = True
    await until(lambda: case.registry.names().count("register") >= 6, "it keeps trying")
    assert reg.reachable is False and case.task and not case.task.done()
    case.registry.down = False
    await until(lambda: reg.reachable and len(case.place.again) == 2, "back")


async def test_a_registry_that_closed_the_connection_hears_of_us_early(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a new process: nobody would find this node before the next heartbeat."""
    monkeypatch.setattr(schedule, "DOUBT_S", (0.01, 0.02))
    reg = await case.start(keepalive=3600.0)
    case.registry.faults["heartbeat"] = [DOWN, UNKNOWN]
    reg.doubt()
    await until(lambda: len(case.place.again) == 2, "registered again, after one try that did not get through")
    assert case.registry.names().count("heartbeat") == 2


async def test_a_registry_that_closes_every_connection_is_not_asked_for_ever(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some close a connection after each reply: that is no restart, and no reason for one heartbeat after the other."""
    monkeypatch.setattr(schedule, "DOUBT_S", (0.01, 0.02))
    reg = await case.start(keepalive=3600.0)
    for _ in range(10):
        reg.doubt()
        await asyncio.sleep(0.05)
    assert case.registry.names().count("heartbeat") == 1


async def test_a_new_endpoint_is_registered(case: Case) -> None:
    reg = await case.start()
    case.place.addr = "203.0.113.5:4001"
    reg.endpoint_changed()
    reg.endpoint_changed()
    await until(lambda: len(case.place.again) == 2, "registered again")
    registers = [about["listen_addr"] for name, about in case.registry.asked if name == "register"]
    assert registers == ["198.51.100.7:4000", "203.0.113.5:4001"]


async def test_a_node_that_moves_often_is_found_at_once_but_the_registry_is_spared(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "GAP_S", 0.3)
    reg = await case.start()
    times = []
    for moves in range(2, 7):
        before = asyncio.get_running_loop().time()
        reg.endpoint_changed()
        await until(lambda n=moves: len(case.place.again) == n, "registered again")  # type: ignore[misc]
        times.append(asyncio.get_running_loop().time() - before)
    assert sum(times[:3]) < 0.3, f"three at once: {times}"
    assert sum(times) > 0.4, f"then one per gap: {times}"


async def test_the_peers_are_looked_for_before_the_rest_is_repeated(case: Case) -> None:
    reg = await case.start()
    last: list[str] = []
    case.place.registered = lambda again: last.append(case.registry.names()[-1])  # type: ignore[method-assign]
    reg.endpoint_changed()
    await until(lambda: last, "registered again")
    assert last == ["register"]


async def test_a_node_the_user_took_out_stays_out(case: Case) -> None:
    reg = await case.start()
    assert await reg.deregister() == {"type": "deregister_ok"}
    count = len(case.registry.asked)
    reg.endpoint_changed()
    await asyncio.sleep(0.2)
    assert case.registry.asked[count:] == [] and not reg.registered


async def test_a_new_key_of_a_node_that_was_taken_out_stops_nothing(case: Case) -> None:
    """After `deregister` and `rotate-key` the daemon answered nobody: it tried to tell the key, for ever, without pause."""
    case.registry.register_reply["announce_key"] = True
    reg = await case.start()
    await reg.deregister()
    count = len(case.registry.asked)
    reg.key_changed()
    await asyncio.sleep(0.1)
    assert case.registry.asked[count:] == [] and case.task and not case.task.done()


async def test_start_fails_with_the_registrys_reason(case: Case) -> None:
    case.registry.faults["register"] = [PilotError("invalid_argument", "invalid public key", "hint")]
    with pytest.raises(PilotError, match="registration failed: invalid public key") as e:
        await case.start()
    assert e.value.hint == "hint" and case.registry.names() == ["register"]


async def test_start_survives_a_registry_that_comes_late(case: Case) -> None:
    case.registry.faults["register"] = [DOWN] * 5
    assert (await case.start()).registered


async def test_start_gives_up(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "START_S", 0.1)
    case.registry.down = True
    with pytest.raises(PilotError, match="registration failed: connection refused"):
        await case.start()


@pytest.mark.parametrize("reply", [
    {}, {"node_id": 8}, {"node_id": "8", "address": "1:0001.0000.0008"}, {"node_id": 8, "address": "nonsense"},
    {"node_id": 9, "address": "1:0001.0000.0008"}, {"node_id": 0, "address": "0:0000.0000.0000"},
])  # fmt: skip
async def test_a_senseless_reply_is_no_registration(
    case: Case, reply: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "START_S", 0.1)
    case.registry.register_reply = reply
    with pytest.raises(PilotError, match="names no usable address"):
        await case.start()


async def test_a_name_that_is_taken_is_asked_for_and_the_node_goes_on(case: Case) -> None:
    """The first release drops the name without a word: set_hostname brings the reason."""
    case.registry.register_reply = {"node_id": 8, "address": "0:0000.0000.0008"}
    case.registry.faults["set_hostname"] = [PilotError("already_exists", 'hostname "alpha" already in use by node 2')]
    reg = await case.start()
    assert reg.hostname == "" and reg.registered and ("set_hostname", "alpha") in case.registry.asked


async def test_goodbye_does_not_wait_for_a_dead_registry(case: Case) -> None:
    reg = await case.start()
    assert case.task
    case.task.cancel()

    async def never() -> None:
        await asyncio.sleep(3600)

    case.registry.deregister = never  # type: ignore[method-assign]
    async with asyncio.timeout(2):
        await reg.stop(0.1)
    assert not reg.registered


class Resolver:
    def __init__(self) -> None:
        self.asked = 0
        self.error: PilotError | None = None

    async def resolve_hostname(self, hostname: str) -> dict[str, Any]:
        self.asked += 1
        if self.error:
            raise self.error
        return {"hostname": hostname, "node_id": self.asked}


async def test_names_are_kept_for_an_outage_and_refusals_are_not() -> None:
    resolver, now = Resolver(), [0.0]
    names = Names(resolver, lambda: "own", lambda: now[0])
    assert (await names.resolve("b"))["node_id"] == (await names.resolve("b"))["node_id"] == 1
    now[0] = 61.0
    assert (await names.resolve("b"))["node_id"] == 2
    now[0], resolver.error = 130.0, DOWN
    assert (await names.resolve("b"))["node_id"] == 2
    now[0] = 130.0 + 3600
    with pytest.raises(PilotError):
        await names.resolve("b")
    resolver.error = None
    assert [(await names.resolve("own"))["node_id"] for _ in range(2)] == [5, 6]
    resolver.error = UNKNOWN
    with pytest.raises(PilotError, match="not found"):
        await names.resolve("own")


@pytest.mark.parametrize(("text", "local", "good"), [
    ("beacon1.example:9001", False, True), ("203.0.113.9:9001", False, True), ("[2001:db8::1]:9001", False, True),
    ("10.0.0.1:9001", False, True), ("127.0.0.1:9001", False, False), ("localhost:9001", False, False),
    ("127.0.0.1:9001", True, True), ("localhost:9001", True, True), ("0.0.0.0:9001", True, False), ("224.0.0.1:1", True, False),
    ("nohost", True, False), (":9001", True, False), ("a:0", True, False), ("a:70000", True, False), ("", True, False),
])  # fmt: skip
def test_beacons_a_registry_may_name(text: str, local: bool, good: bool) -> None:
    """A registry must not be able to aim its nodes at their own hosts' services."""
    assert usable_beacon(text, local) is good


async def test_a_registry_of_our_kind_learns_the_tunnel_key(case: Case) -> None:
    reg = await case.start(keepalive=30.0)
    reg.key_changed()
    await asyncio.sleep(0.05)
    assert "announce_key" not in case.registry.names(), "others do not know the command"
    case.registry.register_reply["announce_key"] = True
    reg.endpoint_changed()
    await until(lambda: ("announce_key", b"one") in case.registry.asked, "it is told with the registration")
    case.place.pila = b"two"
    reg.key_changed()
    await until(lambda: ("announce_key", b"two") in case.registry.asked, "and when there is another")
    assert case.registry.names().count("register") == 2
    case.registry.faults["announce_key"] = [DOWN]
    reg.key_changed()
    await asyncio.sleep(0.05)
    assert case.task and not case.task.done()
