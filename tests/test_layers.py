"""Imports point down only (docs/architecture.md): a lower layer never knows the one above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pilot

ROOT = Path(pilot.__file__).parent

# Package -> the packages of ours that it may import. Anything else is upward or sideways.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "flags": {"errors"},
    "logs": set(),
    "websocket": set(),
    "_core": set(),
    "wire": {"errors", "_core"},
    "tunnel": {"errors", "wire", "_core"},
    "traversal": {"errors", "wire", "tunnel", "_core"},
    "registry": {"errors", "wire"},
    "beacon": {"errors", "wire", "_core", "registry", "websocket"},
    "trust": {"errors", "files", "wire", "_core", "registry", "services", "tunnel", "traversal"},
    "services": {"errors", "files", "wire", "_core"},
    "daemon": {
        "errors", "files", "flags", "logs", "websocket", "wire", "_core", "tunnel", "traversal", "registry", "trust", "services",
    },
    "rendezvous": {"errors", "logs", "wire", "_core", "registry", "beacon", "rendezvous_flags"},
    "rendezvous_flags": {"errors", "flags", "registry"},
    "node": {"errors", "wire", "_core", "services", "daemon"},
    "blocking": {"errors", "wire", "_core", "services", "node"},
    "sdk": {"errors", "wire"},
    "cli": {"errors", "files", "wire", "sdk", "registry"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "pilot":
                names = [f"pilot.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pilot" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1])
    return found


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_imports_point_down(layer: str) -> None:
    files = list((ROOT / layer).rglob("*.py")) if (ROOT / layer).is_dir() else [ROOT / f"{layer}.py"]
    assert files
    for path in files:
        wrong = imported(path) - ALLOWED[layer] - {layer}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_every_package_has_its_place() -> None:
    there = {p.name for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    there |= {p.stem for p in ROOT.glob("*.py")} - {"__init__"}
    assert there <= set(ALLOWED), "add new packages to the table above"
