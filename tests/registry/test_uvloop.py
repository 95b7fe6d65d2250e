"""The programs run on uvloop, whose transports pause, half-close and fail in their own way: the socket tests once more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import test_framing
import test_limits
import test_trust
import uvloop
from registry_support import Lab

Test = Callable[[Lab], Coroutine[Any, Any, None]]

TESTS: list[Test] = [
    function
    for module in (test_framing, test_limits, test_trust)
    for name, function in vars(module).items()
    if name.startswith("test_")
    and inspect.iscoroutinefunction(function)
    and list(inspect.signature(function).parameters) == ["lab"]
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_under_uvloop(test: Test, tmp_path: Path) -> None:
    async def run() -> None:
        lab = Lab(tmp_path)
        try:
            await test(lab)
        finally:
            await lab.close()

    uvloop.run(run())
