"""Contenders side by side on one bed: measured in turn, a little each, so that the machine's mood meets them all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from net.contenders import Values
from net.record import Plan, Record

MOST_FAILURES = 2


class Race:
    """Those that came up. Whoever fails is started again, twice; then the others go on without it."""

    def __init__(self, record: Record, plan: Plan, title: str, entries: Iterable[Callable[[], Any]]) -> None:
        """entries: make a contender each, BenchError when it cannot be had. title: what each scenario's name begins with."""
        self._record, self.plan, self.title = record, plan, title
        self._warming = False
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

    def rounds(self, runs: int | None = None) -> Iterator[int]:
        """A round for warming up, which is not recorded, then plan.runs; each begins with another contender than the last.
        Fewer, and a note of it, when time is short."""
        wanted = runs or self.plan.runs
        for run in range(wanted + 1):
            if run > 1 and self.plan.late(0.9):
                self._record.note(self.title, "all", f"{run - 1} of {wanted} rounds: out of time")
                return
            self._warming = run == 0
            yield run
            self.rivals.append(self.rivals.pop(0)) if self.rivals else None

    def measure(self, skill: str, what: str, work: Callable[[Any], Values]) -> None:
        """`work` of every rival that can do `skill`, recorded as scenario `what`."""
        scenario = f"{self.title}: {what}"
        for rival in self.rivals:
            if skill not in rival.can or rival.failures > MOST_FAILURES:
                continue
            with self._record.attempt(scenario, rival.label):
                try:
                    values = work(rival)
                except BaseException:
                    self._again(rival)
                    raise
                if not self._warming:
                    self._record.add_all(scenario, rival.label, values)

    def _again(self, rival: Any) -> None:
        if rival.failures < MOST_FAILURES:
            rival.restart()
        else:
            rival.failures += 1
            rival.stop()


def entry(kind: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """For Race: a contender that is made when its turn comes."""

    def make() -> Any:
        return kind(*args, **kwargs)

    make.label = kind.label  # type: ignore[attr-defined]
    return make
