"""`measure(what, function)`: pytest-benchmark with a name that the report shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Measure = Callable[[str, Callable[[], Any]], Any]


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    def run(what: str, work: Callable[[], Any]) -> Any:
        benchmark.extra_info["what"] = what
        return benchmark(work)

    return run
