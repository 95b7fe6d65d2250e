"""Contenders side by side on one bed: measured in turn, a little each, so that the machine's mood meets them all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from net.bed import BenchError
from net.contenders import Values
from net.record import Plan, Record

MOST_FAILURES = 2  # at one task; then it is asked for the others alone
MOST_RESTARTS = 8  # for failures at all tasks together


class Race:
    """Those that came up. Whoever fails is started again, and what it failed at twice is not asked of it any more."""

    def __init__(self, record: Record, plan: Plan, title: str, entries: Iterable[Callable[[], Any]]) -> None:
        """entries: make a contender each, BenchError when it cannot be had. title: what each scenario's name begins with."""
        self._record, self.plan, self.title = record, plan, title
        self._warming = False
        self._failed: dict[tuple[str, str], int] = {}  # by contender and scenario
        self.rivals: list[Any] = []
        for entry in entries:
            label = getattr(entry, "label", "?")
            with record.attempt(title, label):
                rival = entry()
                if plan.only and rival.name not in plan.only:
                    continue
                try:
                    rival.start()
                except BaseException:
                    rival.stop()
                    raise
                self.rivals.append(rival)

    def rounds(self, runs: int | None = None, warm_up: bool = True) -> Iterator[int]:
        """A round for warming up (0), which is not recorded, then plan.runs; each begins with another contender than the last.
        Fewer, and a note of it, when time is short."""
        wanted = runs or self.plan.runs
        for run in range(0 if warm_up else 1, wanted + 1):
            if run > 1 and self.plan.late(0.9):
                self._record.note(self.title, "all", f"{run - 1} of {wanted} rounds: out of time")
                return
            self._warming = run == 0
            yield run
            self.rivals.append(self.rivals.pop(0)) if self.rivals else None

    def measure(self, skill: str, what: str, work: Callable[[Any], Values], must_end: bool = False) -> None:
        """`work` of every rival that can do `skill`, recorded as scenario `what`. must_end: whether it ends is recorded too."""
        scenario = f"{self.title}: {what}"
        for rival in self.rivals[:]:
            if skill not in rival.can or self._failed.get((rival.label, scenario), 0) >= MOST_FAILURES:
                continue
            values: Values = {}
            with self._record.attempt(scenario, rival.label):
                try:
                    values = work(rival)
                except Exception:
                    self._failed[rival.label, scenario] = self._failed.get((rival.label, scenario), 0) + 1
                    raise
            if not values:
                self._again(rival)
            if self._warming:
                continue
            self._record.add_all(scenario, rival.label, values)
            if must_end:
                self._record.add(scenario, rival.label, "finished", float(bool(values)))

    def leave_out(self, what: str, whom: Callable[[Any], bool]) -> None:
        """Those are not asked for scenario `what` from here on."""
        for rival in filter(whom, self.rivals):
            self._failed[rival.label, f"{self.title}: {what}"] = MOST_FAILURES

    def _again(self, rival: Any) -> None:
        """After a failure. What does not come up again is out of the race."""
        up = False
        with self._record.attempt(self.title, f"{rival.label}, started again"):
            if rival.failures >= MOST_RESTARTS:
                raise BenchError(f"failed {rival.failures + 1} times: left out from here on")
            rival.restart()
            up = True
        if not up:
            self.rivals.remove(rival)
            rival.stop()


def entry(kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """For Race: a contender that is made when its turn comes."""

    def make() -> Any:
        return kind(*args, **kwargs)

    make.label = kind.label  # type: ignore[attr-defined]
    return make
