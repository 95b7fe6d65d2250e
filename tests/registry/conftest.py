"""Lets the tests of this folder import their helper module by name under any import mode; the server fixture."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from registry_support import Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A registry server, started when a test first needs it, and clients that are closed afterwards."""
    lab = Lab(tmp_path)
    yield lab
    await lab.close()
