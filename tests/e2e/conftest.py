"""Fixtures of this folder; its helper module is importable by name under any import mode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Agent, Cluster, cluster


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Cluster]:
    """A rendezvous; agents are added by the test."""
    with cluster(tmp_path) as c:
        yield c


@pytest.fixture
def pair(net: Cluster) -> tuple[Agent, Agent]:
    """Two agents that trust each other."""
    a, b = net.agent("alpha"), net.agent("bravo")
    net.trust(a, b)
    return a, b
