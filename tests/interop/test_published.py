"""A machine without the published programs: a failure where CI runs the tests, elsewhere a skip with the reason."""

from __future__ import annotations

import published
import pytest


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_missing_programs(monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no index here"):
        published.missing(published.Unavailable("no index here"))
