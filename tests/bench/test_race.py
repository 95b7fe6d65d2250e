"""The race of the benchmark suite: who fails is started again under new names, and every failure is in the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import goals
import pages
from net.bed import BenchError
from net.contenders import Contender
from net.race import MOST_FAILURES, Race
from net.record import Plan, Record


class Rival:
    """Ends that are up or not, and fail at what they are told to."""

    can = frozenset({"bulk", "streams"})

    def __init__(self, name: str, fails: tuple[str, ...] = (), comes_up_again: bool = True) -> None:
        self.name = self.label = name
        self.fails, self.comes_up_again = fails, comes_up_again
        self.failures = self.starts = 0
        self.asked: list[str] = []

    def start(self) -> None:
        self.starts += 1
        if self.failures and not self.comes_up_again:
            raise BenchError("no socket")

    def stop(self) -> None:
        pass

    restart = Contender.restart

    def work(self, task: str) -> Mapping[str, float]:
        self.asked.append(task)
        if task in self.fails:
            raise BenchError(f"not finished within 20 s: {task}")
        return {"mbit_s": 8.0}


def race_of(*rivals: Rival) -> tuple[Record, Race]:
    record = Record()
    plan = Plan(runs=5, seconds=0.1, round_trips=1, peers=True, budget_s=60)
    return record, Race(record, plan, "here", [lambda rival=rival: rival for rival in rivals])


def run(race: Race) -> None:
    for _ in race.rounds(warm_up=False):
        race.measure("streams", "crowd", lambda r: r.work("crowd"), must_end=True)
        race.measure("bulk", "one", lambda r: r.work("one"), must_end=True)


def reasons(record: Record) -> list[tuple[str, str]]:
    return [(m["scenario"], m["reason"]) for m in record.missing]


def test_who_fails_at_one_task_goes_on_with_the_others() -> None:
    good, bad = Rival("good"), Rival("bad", fails=("crowd",))
    record, race = race_of(good, bad)
    run(race)
    assert good.asked.count("crowd") == bad.asked.count("one") == good.asked.count("one") == 5
    assert bad.asked.count("crowd") == MOST_FAILURES and bad.starts == 1 + MOST_FAILURES
    assert record.rows["here: crowd", "bad", "finished"] == [0.0] * MOST_FAILURES
    assert record.rows["here: one", "bad", "finished"] == [1.0] * 5
    assert reasons(record) == [("here: crowd", "BenchError: not finished within 20 s: crowd")] * MOST_FAILURES


def test_the_reason_of_a_failure_is_kept_where_nothing_comes_up_again() -> None:
    good, bad = Rival("good"), Rival("bad", fails=("crowd",), comes_up_again=False)
    record, race = race_of(good, bad)
    run(race)
    assert good.asked.count("one") == 5 and bad.asked == ["crowd"] and race.rivals == [good]
    assert reasons(record) == [("here: crowd", "BenchError: not finished within 20 s: crowd"), ("here", "BenchError: no socket")]


def test_who_is_left_out_of_one_task() -> None:
    slow, quick = Rival("slow"), Rival("quick")
    _, race = race_of(slow, quick)
    race.leave_out("one", lambda r: r is slow)
    run(race)
    assert slow.asked == ["crowd"] * 5 and quick.asked.count("one") == 5


def test_new_ends_have_new_names() -> None:
    """The registry keeps the old name for the old identity: a handshake with it would go to a node that has ended."""

    class Ends(Contender):
        name, label = "ends", "ends"

        def start(self) -> None:
            seen.append((self.alias, self.home.name))

    class Anywhere:
        root = Path("/nowhere")

        def release(self, *processes: object) -> None:
            pass

    seen: list[tuple[str, str]] = []
    ends = Ends(Anywhere(), None, None)  # type: ignore[arg-type]
    ends.start()
    ends.restart()
    ends.restart()
    assert seen == [("ends", "ends"), ("ends-1", "ends-1"), ("ends-2", "ends-2")]


@pytest.mark.parametrize(("tries", "verdict", "text"), [([1.0] * 5, "met", "5 of 5"), ([1.0, 0.0], "missed", "1 of 2")])
def test_the_report_counts_what_finished(tries: list[float], verdict: str, text: str) -> None:
    record = Record()
    record.add(goals.GIGABYTE, goals.DAEMON, "finished", *tries)
    machine = {"cpu": "x", "cores": 2, "vaes": True, "kernel": "6", "python": "3"}
    result = {"machine": machine, "runs": [], "rows": record.as_rows(), "missing": [], "limits": []}
    found = {goal.text: goal.verdict for goal in goals.goals(result)}
    assert found["1 GB through daemons: share of tries that finish"] == verdict
    assert found["64 streams at once through daemons: share of tries that finish"] == "not measured"
    assert f"| {goals.DAEMON} | {text} |" in pages.markdown(result, {})
