"""Raw results of several runs make one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[2] / "bench"


def suite() -> Any:
    """bench/run.py, under a name that no other test's modules have."""
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("bench_suite", BENCH / "run.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


def raw(path: Path, values: dict[str, list[float]]) -> Path:
    rows = [{"scenario": "s", "contender": "c", "metric": m, "unit": "", "values": v} for m, v in values.items()]
    path.write_text(json.dumps({"machine": {"cores": 2}, "runs": [path.name], "rows": rows, "missing": [], "limits": []}))
    return path


def test_all_values_of_a_figure_count(tmp_path: Path) -> None:
    files = [raw(tmp_path / "a", {"x": [1.0, 2.0], "y": [5.0]}), raw(tmp_path / "b", {"x": [3.0]})]
    out = suite().combined(files)
    assert {row["metric"]: row["values"] for row in out["rows"]} == {"x": [1.0, 2.0, 3.0], "y": [5.0]}
    assert out["runs"] == ["a", "b"]
