"""Import path of the test tools, and the table of the matrix at the end of a run."""

import sys
from pathlib import Path
from typing import Any

import pytest

# Shared test tools live beside the tests that use them; the laboratory is that of tests/nat.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "nat")]

MARKS = {"passed": "pass", "failed": "FAIL", "skipped": "skip"}
_cells: dict[tuple[str, str], dict[str, str]] = {}  # (path, operation) -> role -> outcome


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    outcome = yield
    report = outcome.get_result()
    spec = getattr(item, "callspec", None)
    if spec is None or set(spec.params) != {"role", "path", "name"} or not (report.when == "call" or report.outcome != "passed"):
        return
    row = _cells.setdefault((spec.params["path"], spec.params["name"]), {})
    row[spec.params["role"]] = MARKS[report.outcome]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _cells:
        return
    roles = list(dict.fromkeys(role for row in _cells.values() for role in row))
    out = terminalreporter
    out.section("published programs and ours")
    out.write_line(f"{'path':8} {'operation':24}" + "".join(f"{role:>10}" for role in roles))
    for (path, name), row in _cells.items():
        out.write_line(f"{path:8} {name:24}" + "".join(f"{row.get(role, '-'):>10}" for role in roles))
    every = [mark for row in _cells.values() for mark in row.values()]
    out.write_line(f"{every.count('pass')} cells passed of {len(every)}")
