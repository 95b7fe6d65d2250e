"""Fixtures of this folder; its helper module is importable by name under any import mode."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A rendezvous on loopback, and the nodes that a test starts beside it."""
    w = World(tmp_path)
    await w.open()
    try:
        yield w
    finally:
        await w.close()
